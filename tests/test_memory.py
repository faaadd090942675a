"""Memory that one work leaves behind is not there for the next alone."""

import subprocess
import sys

import pytest


SCRIPT = """
import torch
from peft_be.memory import keep_freed_memory, release_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20

keep_freed_memory()
before = resident()
tensors = [torch.ones(2**18) for _ in range(400)]  # 1 MB each
last = tensors[-1]
del tensors
kept = resident()
release_freed_memory()
print(kept - before, resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_freed_memory_is_kept_and_given_back():
    out = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True).stdout
    kept, released = map(float, out.split())
    # The last tensor still stands at the top of the heap: trimming the top alone would give nothing back
    assert kept > 350 and released < 50
