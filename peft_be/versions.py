"""The versions that a result depends on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of those that compute."""
    found = {"python": platform.python_version()}
    for package in ("peft_be", "torch", "transformers", "peft", "trl", "accelerate"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a checkout
            found[package] = "unknown"
    return found
