"""The versions and the machine that a result depends on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch
from transformers import PreTrainedModel


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of those that compute."""
    found = {"python": platform.python_version()}
    for package in ("peft_be", "torch", "transformers", "peft", "trl", "accelerate"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a checkout
            found[package] = "unknown"
    return found


def machine(device: torch.device) -> dict[str, str | int]:
    """Name of the device that computes, and the number of threads on the CPU."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = platform.processor() or platform.machine()
    return {"device": name, "threads": torch.get_num_threads()}


def machine_of(model: PreTrainedModel) -> dict[str, str | int]:
    """The machine that a model computes on, and the number format of its weights."""
    return {**machine(model.device), "dtype": str(model.dtype).removeprefix("torch.")}
