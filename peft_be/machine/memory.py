"""What memory costs on CPU: pages that are mapped anew at each step, and weights that are copied at each call."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel


# Parameters of mallopt, from glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
# What glibc's own thresholds grow to in a process that frees large tensors. Setting any of them ends that growth for good
_LARGEST_MMAP_THRESHOLD = 32 * 2**20
_DEFAULT_MMAP_MAX = 65536


@contextmanager
def freed_memory_kept(device: torch.device) -> Iterator[None]:
    """
    For work on CPU: make glibc keep the memory of freed tensors for the next ones, and give it back at the end.

    By default each tensor of more than a few MB is mapped from the kernel and given back when it is freed, and the kernel
    zeroes it page by page every time. On virtual machines, where a page fault is dear, that can cost several times the
    arithmetic of a training step. Meant for work whose steps are alike: tensors of other sizes leave holes of little use,
    and the process grows. Does nothing for other devices and outside glibc.
    """
    if device.type != "cpu":
        yield
        return
    _mallopt(_M_MMAP_MAX, 0)
    _mallopt(_M_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        _mallopt(_M_MMAP_MAX, _DEFAULT_MMAP_MAX)
        _mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        _mallopt(_M_TRIM_THRESHOLD, 2 * _LARGEST_MMAP_THRESHOLD)
        release_freed_memory()


def release_freed_memory() -> None:
    """Give the memory of freed tensors back to the system."""
    gc.collect()
    _glibc("malloc_trim", 0)


def copy_head_input(model: PreTrainedModel) -> RemovableHandle:
    """
    Have lm_head read a copy of its hidden states, until the returned handle is removed.

    For the first token of an answer, `generate` asks for the last position of each prompt alone. That slice is a view with the
    strides of the whole batch, for which torch on CPU copies the weights of lm_head, `[V, d]`, once a prompt: 0.2 s and
    50 MB each for SmolLM2 in bfloat16, where the product itself takes 0.01 s.
    """
    return model.get_output_embeddings().register_forward_pre_hook(_copy_first)


def _copy_first(_, args: tuple) -> tuple:
    return args[0].clone(), *args[1:]


def _mallopt(parameter: int, value: int) -> None:
    _glibc("mallopt", parameter, value)


def _glibc(name: str, *arguments: int) -> None:
    if sys.platform != "linux":
        return
    try:
        function = getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):  # musl, for instance
        return
    function(*arguments)
