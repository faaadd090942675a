"""Memory that work has freed is kept for its own next step alone."""

import platform
import subprocess
import sys

import pytest
import torch

from peft_be.machine.memory import copy_head_input


SCRIPT = """
import torch
from peft_be.machine.memory import freed_memory_kept

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20

before = resident()
with freed_memory_kept(torch.device("cpu")):
    tensors = [torch.ones(2**18) for _ in range(400)]  # 1 MB each
    last = tensors[-1]
    del tensors
    kept = resident()
print(kept - before, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="speaks of glibc's malloc")
def test_freed_memory_is_kept_and_given_back():
    out = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True).stdout
    kept, released = map(float, out.split())
    # The last tensor still stands at the top of the heap: trimming the top alone would give nothing back
    assert kept > 350 and released < kept / 4


def test_lm_head_reads_a_tensor_of_its_own(tiny_model):
    """Not a slice of the hidden states of all positions."""
    seen = []
    tiny_model.get_output_embeddings().register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    before = tiny_model(input_ids=ids, logits_to_keep=1).logits
    with copy_head_input(tiny_model):
        after = tiny_model(input_ids=ids, logits_to_keep=1).logits
    view, own = ((states.shape, states.untyped_storage().nbytes() == states.nbytes) for states in seen)
    assert view == (own[0], False) and own[1]
    torch.testing.assert_close(before, after)
