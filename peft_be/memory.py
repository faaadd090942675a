"""How freed memory is treated on CPU."""

from __future__ import annotations

import ctypes
import gc
import sys


# Parameters of mallopt, from glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """
    Make glibc keep the memory of freed tensors for the next ones, until [`release_freed_memory`].

    By default each tensor of more than a few MB is mapped from the kernel and given back when it is freed, and the kernel
    zeroes it page by page every time. On virtual machines, where a page fault is dear, that can cost several times the
    arithmetic of a training step. Does nothing outside glibc.
    """
    glibc("mallopt", _M_MMAP_MAX, 0)
    glibc("mallopt", _M_TRIM_THRESHOLD, -1)


def release_freed_memory() -> None:
    """
    Give freed memory back to the system, where [`keep_freed_memory`] made glibc keep it.

    Between two works of a long-lived process: their tensors have other sizes, and the holes that one leaves are of little use
    to the next, so that the process would grow with each of them. Does nothing outside glibc.
    """
    gc.collect()
    glibc("malloc_trim", 0)


def glibc(name: str, *arguments: int) -> None:
    if sys.platform != "linux":
        return
    try:
        function = getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):  # musl, for instance
        return
    function(*arguments)
