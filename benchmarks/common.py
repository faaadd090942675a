"""What the scripts of this folder share: JSON lines, clocks, the memory of a process, and reports."""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from peft_be.evaluation import inference
from peft_be.machine.clock import synchronize
from peft_be.machine.memory import release_freed_memory
from peft_be.machine.versions import machine, versions


# Not part of a measurement's settings
_NOT_SETTINGS = ("json", "only", "resume", "vllm")


def timed(device: torch.device, work: Callable, *args) -> tuple[Any, float]:
    """What `work(*args)` returns, and its seconds."""
    synchronize(device)
    start = time.perf_counter()
    result = work(*args)
    synchronize(device)
    return result, time.perf_counter() - start


def quartiles(values: list[float]) -> dict[str, float]:
    if len(values) < 2:
        return dict.fromkeys(("q1", "median", "q3"), values[0])
    return inference.quartiles(values)


@torch.no_grad()
def start_of_peak(model: PreTrainedModel) -> int:
    """
    Memory of this process with the whole model in it and nothing else, or on a GPU what is allocated so far, in bytes. From
    here on, [`peak`] counts anew.

    Weights are mapped from their file and become resident when they are first read, which must not count as the memory of
    what is measured: a forward over one token reads them all. What loading needed and freed must not count as the model's:
    it is given back.
    """
    model(input_ids=torch.tensor([[0]], device=model.device), use_cache=False)
    release_freed_memory()
    if model.device.type == "cuda":
        synchronize(model.device)
        torch.cuda.reset_peak_memory_stats(model.device)
    elif sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to what is resident
    return peak(model.device)


def peak(device: torch.device) -> int:
    """Largest resident memory of this process so far, or on a GPU the largest allocation, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        # Not `ru_maxrss`: a process inherits that from the one that starts it
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def default_device() -> torch.device:
    """Where [`load_model`] puts a model."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def in_own_process(script: str, options: dict[str, Any]) -> int:
    """The last number that `script` prints when it runs with `options`, in a process of its own."""
    command = [sys.executable, script]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr}")
    return int(result.stdout.split()[-1])


def settings(args: argparse.Namespace) -> dict[str, Any]:
    return {key: _without_folder(value) for key, value in vars(args).items() if key not in _NOT_SETTINGS}


def _without_folder(value):
    """Where a file lies on this machine is nobody's business, and no setting either."""
    if isinstance(value, list):
        return [_without_folder(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def write_report(args: argparse.Namespace, device: torch.device, **results) -> None:
    """Write settings, machine, versions and results to the file of `--json`, if one was given."""
    if not args.json:
        return
    report = {"args": settings(args), "machine": machine(device), "versions": versions(), **results}
    part = Path(args.json).with_suffix(".part")
    part.write_text(json.dumps(report, indent=2) + "\n")
    part.replace(args.json)
