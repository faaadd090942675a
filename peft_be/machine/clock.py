"""When a device has done what it was given."""

from __future__ import annotations

import torch


def synchronize(device: torch.device) -> None:
    """Wait until `device` has done what it was given: a GPU works on while Python goes ahead, and both are to be timed."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
