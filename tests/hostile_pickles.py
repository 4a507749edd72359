"""Pickles that run code when Python's own unpickler reads them, and the means to write more."""

import copyreg
import functools
import os
import pickle
import struct
import subprocess
import timeit
from pathlib import Path

import numpy as np
import pytest


class Call:
    """Pickles as a call of any function; may itself be the function of another call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call

    def __call__(self):
        """Only has to exist for pickle to write it as a function."""


def text_operation(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def stack_call(module: str, name: str, argument: str) -> bytes:
    """A call in protocol 4, which names a function by two strings on the stack."""
    return b"\x80\x04" + text_operation(module) + text_operation(name) + b"\x93" + text_operation(argument) + b"\x85R."


EXTENSION = 0x7F00      # a code under which some package may have registered a function


def running_pickles(sentinel: Path) -> dict[str, bytes]:
    """Pickles by which Python's own unpickler makes the file `sentinel`."""
    shell, opening = f"touch {sentinel}", f"open({str(sentinel)!r}, 'w')"
    line = b"V" + shell.encode() + b"\n"
    return {
        "os.system": pickle.dumps(Call(os.system, shell)),
        "eval": pickle.dumps(Call(eval, opening), protocol=2),
        "exec in a dictionary": pickle.dumps({"v_template": Call(exec, opening)}, protocol=4),
        "subprocess": pickle.dumps(Call(subprocess.check_call, ["touch", str(sentinel)])),
        "inside an array of objects": pickle.dumps(np.array([Call(os.system, shell)], dtype=object), protocol=2),
        "state of an array": b"cnumpy\nndarray\n((I0\nttR(I1\n(cos\nsystem\n(" + line + b"tRtb.",
        "open": pickle.dumps(Call(open, str(sentinel), "w")),
        "names on the stack": stack_call("posix", "system", shell),
        "dotted name below an allowed module": stack_call("numpy", "lib._datasource.os.system", shell),
        "f2py's eval": stack_call("numpy.f2py.crackfortran", "myeval", opening),
        "numpy.testing's exec": pickle.dumps(Call(np.testing.runstring, opening, {})),
        "timeit": pickle.dumps(Call(timeit.timeit, opening, "pass", timeit.default_timer, 1)),
        "operation INST": b"(" + line + b"ios\nsystem\n.",
        "operation OBJ": b"(cos\nsystem\n" + line + b"o.",
        "a call's result called": pickle.dumps(Call(Call(getattr, sentinel, "touch"))),
        "functools.partial": pickle.dumps(Call(functools.partial(os.system, shell))),
        "state of a partial": b"cfunctools\npartial\n(cbuiltins\nprint\ntR(cos\nsystem\n(" + line + b"t}Ntb)R.",
        "copyreg": b"\x80\x02ccopyreg\n__newobj__\n(cfunctools\npartial\ncos\nsystem\n" + line + b"tR)R.",
        "extension code": b"\x80\x02\x83" + struct.pack("<H", EXTENSION) + text_operation(shell) + b"\x85R.",
    }


@pytest.fixture
def extension(monkeypatch):
    """os.system under an extension code that was used before."""
    copyreg.add_extension("os", "system", EXTENSION)
    monkeypatch.setitem(copyreg._extension_cache, EXTENSION, os.system)
    yield
    copyreg.remove_extension("os", "system", EXTENSION)
