from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from .common import console


def info(directory: Annotated[Path, typer.Argument(help="Folder of an adapter, or its name on the Hub.")]) -> None:
    """Show what an adapter is and where it comes from."""
    from ..models import read_adapter, read_report

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
    for name, value in (config.provenance or {}).items():
        rows[name.replace("_", " ")] = value
    report = read_report(directory)
    rows |= {name: report[name] for name in ("steps", "seconds", "best", "num_queries") if name in report}
    table = Table(show_header=False, title=str(directory))
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in rows.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        table.add_row(name, shown)
    console.print(table)
