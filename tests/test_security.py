"""Files of weights run nothing, and the program stays off the network."""

import contextlib
import hashlib
import io
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from hostile_pickles import extension, running_pickles  # noqa: F401

from common.errors import UserError
from common.nets.pretrained import load_pretrained
from common.nets.resnet import ResNet
from main.engine.run.snapshots import load_snapshot

ROOT = Path(__file__).resolve().parent.parent
KINDS = list(running_pickles(Path("x")))
pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("extension")
def test_the_hostile_pickles_are_real(tmp_path: Path, kind: str):
    """Python's own unpickler runs each of them."""
    with contextlib.suppress(Exception):
        pickle.loads(running_pickles(tmp_path / "executed")[kind])
    assert (tmp_path / "executed").exists()


def in_torch_s_archive(content: bytes) -> bytes:
    """A file as torch.save writes it, around a pickle of one's own."""
    saved, changed = io.BytesIO(), io.BytesIO()
    torch.save({}, saved)
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            new.writestr(name, content if name.endswith("data.pkl") else old.read(name))
    return changed.getvalue()


@pytest.mark.scorecard("malicious files")
@pytest.mark.parametrize("wrap", [bytes, in_torch_s_archive], ids=["bare", "archive"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("extension")
def test_a_snapshot_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path, kind: str, wrap):
    """With a right digest beside it. The message names what the file asked for; nothing else is tried."""
    file = tmp_path / "snapshot_0.pth.tar"
    file.write_bytes(wrap(running_pickles(tmp_path / "executed")[kind]))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    file.with_name(f"{file.name}.sha256").write_text(f"{digest}  {file.name}\n")
    with pytest.raises(UserError, match="snapshot_0.pth.tar is not a snapshot of this program: .+"):
        load_snapshot(file)
    assert not (tmp_path / "executed").exists()


@pytest.mark.scorecard("malicious files")
@pytest.mark.parametrize("wrap", [bytes, in_torch_s_archive], ids=["bare", "archive"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("extension")
def test_pretrained_weights_that_would_run_code_are_refused_and_run_nothing(tmp_path: Path, kind: str, wrap):
    file = tmp_path / "weights.pth"
    file.write_bytes(wrap(running_pickles(tmp_path / "executed")[kind]))
    with pytest.raises(UserError, match="weights.pth', which cannot be read: .+") as error:
        load_pretrained(ResNet("resnet18"), str(file))
    assert not (tmp_path / "executed").exists()
    assert "can still be loaded" not in str(error.value)        # torch's advice to read the file unprotected


@pytest.mark.slow
def test_importing_every_module_opens_no_connection():
    """Training, testing and the demo without a network: see test_mano_flag.py."""
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for folder in ("common", "data", "main", "tool")
             for file in sorted((ROOT / folder).rglob("*.py")) if file.name != "__init__.py"]
    code = (
        "import importlib, socket, sys\n"
        "def refuse(*words, **more): sys.exit(f'connection to {words}')\n"
        "socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse\n"
        "sys.path.insert(0, '.')\n"
        f"for name in {names!r}: importlib.import_module(name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
