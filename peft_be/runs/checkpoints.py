"""The checkpoints of a [`~transformers.Trainer`]: which of them a run can go on from."""

from __future__ import annotations

import os
import shutil
import warnings
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..adapters.folder import WEIGHTS_FILE
from ..files import read_json, write_json


STATE = "trainer_state.json"


def last_checkpoint(directory: str | os.PathLike, needs_all: bool = False) -> str | None:
    """
    The newest checkpoint that training can go on from, or `None`. Those that are of no use are deleted.

    The trainer writes its state last: a checkpoint without one was cut off while it was written. One that is damaged
    in another way is left out with a warning, and so is one whose best rows are in a damaged or missing checkpoint:
    the trainer would silently go on without them.

    Args:
        directory (`str` or `os.PathLike`): the trainer's output folder.
        needs_all (`bool`, *optional*, defaults to `False`): whether all earlier checkpoints are needed, too.
    """
    numbered = {int(f.name.rpartition("-")[2]): f for f in Path(directory).glob("checkpoint-*") if _is_numbered(f)}
    usable: dict[str, dict] = {}
    broken = False
    for number, folder in sorted(numbered.items()):
        state = None
        if (folder / STATE).is_file():
            state = _read_checkpoint(folder, number)
            if state is None:
                warnings.warn(
                    f"The checkpoint '{folder}' is damaged: the run goes on from an earlier one.", stacklevel=1
                )
        broken = broken or state is None
        # The best rows are in an earlier checkpoint, or in this one
        best = state and state.get("best_model_checkpoint")
        best = Path(best).name if best else folder.name
        if state is None or (needs_all and broken) or best not in (*usable, folder.name):
            shutil.rmtree(folder)
        else:
            usable[folder.name] = state
    if not usable:
        return None
    name, state = list(usable.items())[-1]
    last = Path(directory) / name
    if state.get("best_model_checkpoint"):
        # As it is called from here: the run may have been moved, or started in another working directory
        best = str(Path(directory) / Path(state["best_model_checkpoint"]).name)
        if best != state["best_model_checkpoint"]:
            write_json(last / STATE, {**state, "best_model_checkpoint": best})
    return str(last)


def _is_numbered(folder: Path) -> bool:
    return folder.is_dir() and folder.name.rpartition("-")[2].isdecimal()


def _read_checkpoint(folder: Path, step: int) -> dict | None:
    """The trainer's state, or `None` if a file of the checkpoint is missing or damaged."""
    try:
        state = read_json(folder / STATE, "trainer's state", dict)
        rows = load_file(folder / WEIGHTS_FILE)
        whole = state.get("global_step") == step and rows and all(torch.isfinite(t).all() for t in rows.values())
        parts = [folder / "optimizer.pt", folder / "scheduler.pt", *folder.glob("rng_state*.pth")]
        # What torch saves is a zip archive, with a checksum of each part
        for path in parts:
            with zipfile.ZipFile(path) as archive:
                whole = whole and archive.testzip() is None
        return state if whole and len(parts) > 2 else None
    except (ValueError, FileNotFoundError, SafetensorError, zipfile.BadZipFile, EOFError, NotImplementedError):
        return None
