"""Errors that say nothing about the input: the machine has no more of something. Imports no torch."""

from __future__ import annotations

import re
import sys


def is_out_of_memory(error: Exception) -> bool:
    """Of a GPU, for which torch has a class, or of the machine, for which torch has a sentence and Python a class."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and re.search("can't allocate memory|out of memory", str(error)) is not None
