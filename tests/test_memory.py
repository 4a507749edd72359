"""What becomes of freed memory."""

import platform
import subprocess
import sys

import pytest

CODE = """
import re
from pathlib import Path
import numpy as np
from common.memory import keep_freed_memory

def resident_mb():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

def kept_mb():
    before = resident_mb()
    for _ in range(4):
        np.ones(100 * 2**20, np.uint8)
    return resident_mb() - before

plain = kept_mb()
keep_freed_memory()
print(plain, kept_mb(), kept_mb())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is for glibc")
def test_freed_memory_stays_with_the_process_and_is_used_again():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    plain, first, second = map(float, done.stdout.split())
    assert plain < 20 and first > 90 and second < 20
