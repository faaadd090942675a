"""The files of an adapter's folder: which there are, and what they say."""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path

from ..figures import TARGET_METRICS, metric_of
from ..files import read_json
from ..tuner import BETokenConfig
from ..tuner.checks import read_rows
from ..tuner.registration import EARLIER_NAME
from .card import CARD_FILE


CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
# What `save_pretrained` writes. These files and the report are uploaded, and no others
ADAPTER_FILES = (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE)
# Written by the jobs
REPORT_FILE = "training.json"
QUERY_FILE = "queries.jsonl"  # where the model wrote them
_PICKLES = ("adapter_model.bin", "adapter_model.pt", "pytorch_model.bin")
_REPORT_TYPES: dict[str, type | tuple[type, ...]] = {
    "model": str,
    "settings": dict,
    "seconds": (int, float, type(None)),  # `None` after a resume
    "steps": int,
    "best": dict,
    "seen_queries": list,
    "search": dict,
}


def read_config(directory: str | os.PathLike) -> BETokenConfig:
    """
    Read the configuration in an adapter's folder, and check that the rows there fit it.

    Args:
        directory (`str` or `os.PathLike`): the folder.

    Raises:
        `FileNotFoundError`: there is no adapter in the folder.
        `ValueError`: it is one of another method, or is damaged.
    """
    directory = Path(directory)
    _check_files(directory)
    path = directory / CONFIG_FILE
    try:
        values = read_json(path, "adapter configuration", dict)
    except ValueError as error:
        raise ValueError(f"{str(error).rstrip('.')}: it is damaged, train or download the adapter again.") from error
    method = values.get("peft_type")
    if method not in (EARLIER_NAME, "BE_TOKEN"):
        if not isinstance(method, str):
            raise ValueError(
                f"The adapter configuration '{path}' is damaged (its peft_type is missing): train or download it "
                "again."
            )
        raise ValueError(
            f"'{directory}' is a {method} adapter, and not one of this package: load it with PEFT, or give a folder "
            "that peft-be compress made."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT says in four lines that it leaves out fields of later versions
            config = BETokenConfig.from_pretrained(directory)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"The adapter configuration '{path}' is damaged: {str(error).rstrip('.')}.") from error
    read_rows(directory / WEIGHTS_FILE, config)
    return config


def read_report(directory: str | os.PathLike) -> dict:
    """
    What `training.json` in the folder of an adapter says of its training; empty where there is none.

    Raises:
        `ValueError`: it is no such report.
    """
    path = Path(directory) / REPORT_FILE
    if not path.is_file():
        return {}
    report = read_json(path, "training report", dict)
    damaged = [
        name
        for name, kind in _REPORT_TYPES.items()
        if name in report and (not isinstance(report[name], kind) or isinstance(report[name], bool))
    ]
    if not damaged and not all(isinstance(key, str) for key in report.get("seen_queries", [])):
        damaged = ["seen_queries"]
    if not damaged and not _is_search(report.get("search")):
        damaged = ["search"]
    if damaged:
        raise ValueError(
            f"The training report '{path}' is damaged ({damaged[0]}): delete the file, which the adapter can do "
            "without."
        )
    return report


def _is_search(search: dict | None) -> bool:
    """Whether a report's record of a search for a k is one, or there is none."""
    if search is None:
        return True
    curve = search.get("curve")
    entries = curve if isinstance(curve, list) and all(isinstance(entry, dict) for entry in curve) else []
    metric = metric_of(search)
    if not isinstance(metric, str) or metric not in TARGET_METRICS:
        return False
    numbers = [search.get("target"), *(entry.get(metric) for entry in entries)]
    counts = [search.get("k"), *(entry.get(name) for entry in entries for name in ("k", "steps"))]
    flags = [search.get("reached"), *(entry.get("full") for entry in entries)]
    return (
        bool(entries)
        and all(type(value) in (int, float) and math.isfinite(value) for value in numbers)
        and all(type(value) is int for value in counts)
        and all(isinstance(value, bool) for value in flags)
    )


def _check_files(directory: Path) -> None:
    missing = next((name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (directory / name).is_file()), None)
    if missing is None:
        return
    folders = sorted(path.parent.name for path in directory.glob(f"*/{CONFIG_FILE}") if path.parent.name != "training")
    if (directory / "training" / "settings.json").is_file():
        hint = "its training is not finished: go on with --resume"
    elif any((directory / name).is_file() for name in _PICKLES):
        hint = "its rows are in a pickle, which can run code when it is read: ask for a safetensors file"
    elif folders:
        hint = f"there are {len(folders)} in its folders, such as '{directory / folders[0]}'"
    else:
        hint = "check the path"
    raise FileNotFoundError(f"There is no adapter in '{directory}' ({missing} is missing): {hint}.")
