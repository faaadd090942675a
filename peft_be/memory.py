"""How freed memory is treated on CPU."""

from __future__ import annotations

import ctypes
import sys


# Parameters of mallopt, from glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """
    Make glibc keep the memory of freed tensors for the next ones.

    By default each tensor of more than a few MB is mapped from the kernel and given back when it is freed, and the kernel
    zeroes it page by page every time. On virtual machines, where a page fault is dear, that can cost several times the
    arithmetic of a training step. The process then keeps its peak memory until it ends. Does nothing outside glibc.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl, for instance
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)
