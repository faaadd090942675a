from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from .common import console


def info(directory: Annotated[Path, typer.Argument(help="Folder of an adapter, or its name on the Hub.")]) -> None:
    """Show what an adapter is and where it comes from."""
    from ..adapters.folder import read_report
    from ..adapters.load import read_adapter

    directory, config = read_adapter(directory)
    rows = {
        "base model": config.base_model_name_or_path,
        "[BE] rows": config.num_be_tokens,
        "[BE] ids": config.be_token_ids,
        "[AE] row": "yes" if config.use_ae_token else "no",
        "slot": config.slot,
        "width": config.hidden_size,
        "vocabulary": config.vocab_size,
        "adapter file": f"{(directory / 'adapter_model.safetensors').stat().st_size} bytes",
    }
    provenance = dict(config.provenance or {})
    rows["base weights"] = _weights(provenance.pop("base_weights", None))
    for name, value in provenance.items():
        rows[name.replace("_", " ")] = value
    report = read_report(directory)
    rows |= {name: report[name] for name in ("steps", "seconds", "best", "num_queries") if name in report}
    table = Table(show_header=False, title=Text(str(directory)))
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in rows.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        table.add_row(Text(name), Text(shown))  # nothing in a file is markup
    console.print(table)


def _weights(recorded) -> str:
    """What the base's weights were, and a short name by which to tell them from others."""
    if not isinstance(recorded, dict):
        return "not recorded: whether a base is the one of the training cannot be checked"
    short = hashlib.sha256(str(recorded.get("sketch")).encode()).hexdigest()[:12]
    return f"{recorded.get('quantisation') or recorded.get('dtype')}, fingerprint {short}"
