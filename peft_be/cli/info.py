from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

import typer
from rich.bar import Bar
from rich.table import Table
from rich.text import Text

from ..figures import TARGET_METRICS, metric_of
from .common import console


def info(directory: Annotated[Path, typer.Argument(help="Folder of an adapter, or its name on the Hub.")]) -> None:
    """Show what an adapter is, how much of the prompt it keeps, and where it comes from."""
    from ..adapters.card import fidelity_figures
    from ..adapters.folder import WEIGHTS_FILE, read_report
    from ..adapters.load import read_adapter

    directory, config = read_adapter(directory)
    provenance, report = dict(config.provenance or {}), read_report(directory)
    training = provenance.pop("training", None)
    sections = [
        {
            "base model": config.base_model_name_or_path,
            "[BE] rows": config.num_be_tokens,
            "kept text": config.kept_text,
            "kept text's tokens": provenance.pop("kept_tokens", None),
            "prompt tokens": provenance.pop("prompt_tokens", None),
            "[BE] ids": config.be_token_ids,
            "[AE] row": "yes" if config.use_ae_token else "no",
            "slot": config.slot,
            "width": config.hidden_size,
            "vocabulary": config.vocab_size,
            "rows on disk": f"{(directory / WEIGHTS_FILE).stat().st_size:,} bytes",
        },
        training_rows(provenance.pop("stages", None), training, report),
        {
            "started from": started_from(provenance.pop("started_from", None)),
            "base weights": weights(provenance.pop("base_weights", None)),
            **{name.replace("_", " "): value for name, value in provenance.items()},
        },
    ]
    table = Table(show_header=False, title=Text(str(directory)))
    table.add_column()
    table.add_column(overflow="fold")
    for rows in sections:
        for name, value in rows.items():
            if value is not None:
                table.add_row(Text(name), Text(shown(value)))  # nothing in a file is markup
        table.add_section()
    console.print(table)
    if config.num_be_tokens:
        console.print(fidelity_table(fidelity_figures(directory, config)))
    if "search" in report:
        console.print(search_table(report["search"]))


def training_rows(stages, training, report: dict) -> dict:
    """What is recorded of the training: by the adapter, and by `training.json` if that is there."""
    recorded = training if isinstance(training, dict) else {}
    seconds, best = report.get("seconds"), report.get("best", {})
    return {
        "training": ", ".join(map(str, stages)) if isinstance(stages, list) else stages,
        "steps": report.get("steps", recorded.get("steps")),
        "kept from step": best.get("step"),
        "training queries": recorded.get("train_queries"),
        "time": None if seconds is None else f"{seconds / 60:.1f} min",
    }


def fidelity_table(figures: dict[str, dict[str, float]]) -> Table:
    """How much of the prompt is kept, by the queries on which it was measured."""
    table = Table(
        title="The prompt's effect that [BE] keeps",
        caption="Gap closed: 1 is the full prompt, 0 no prompt; on the median query, and as a mean over tokens. KL in nats a token.",
    )
    table.add_column("", overflow="fold")
    columns = {
        "median gap": ("gap_median", 3),
        "mean gap": ("kl_gap_closed", 3),
        "KL": ("kl", 4),
        "KL of no prompt": ("kl_no_prompt", 4),
    }
    for column in columns:
        table.add_column(column, justify="right")
    for name, known in figures.items():
        cells = ((known.get(metric), digits) for metric, digits in columns.values())
        table.add_row(Text(name), *("-" if value is None else f"{value:.{digits}f}" for value, digits in cells))
    if not figures:
        table.add_row("not measured: peft-be eval --card does", *"-" * len(columns))
    return table


def search_table(search: dict) -> Table:
    """What each number of rows reached, when the rows that a target needs were looked for."""
    verdict = "reached" if search["reached"] else "not reached"
    metric = metric_of(search)
    what = TARGET_METRICS[metric]
    table = Table(
        title=f"{what}, with more rows",
        caption=f"On validation queries. The target of {search['target']:g} was {verdict}.",
    )
    for column in ("[BE] rows", "steps", what.lower()):
        table.add_column(column, justify="right")
    table.add_column("", width=20)
    for entry in sorted(search["curve"], key=lambda entry: (entry["k"], entry["full"])):
        share, kept = entry[metric], entry["full"] and entry["k"] == search["k"]
        cells = (str(entry["k"]), str(entry["steps"]), f"{share:.3f}")
        table.add_row(*cells, Bar(1, 0, min(1, max(0, share))), style="bold" if kept else None)
    return table


def shown(value) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return (
        ", ".join(f"{name} {shown(part)}" for name, part in value.items()) if isinstance(value, dict) else str(value)
    )


def started_from(record: dict | None) -> str | None:
    """The adapter whose rows a training started from, with short names of what it was."""
    if record is None:
        return None
    known = {"revision": record.get("revision"), "rows": record.get("rows_sha256")}
    told = [f"{name} {str(value)[:12]}" for name, value in known.items() if value is not None]
    return f"{record.get('adapter')} ({', '.join(told)})"


def weights(recorded) -> str:
    """What the base's weights were, and a short name by which to tell them from others."""
    if not isinstance(recorded, dict):
        return "not recorded: whether a base is the one of the training cannot be checked"
    short = hashlib.sha256(str(recorded.get("sketch")).encode()).hexdigest()[:12]
    return f"{recorded.get('quantisation') or recorded.get('dtype')}, fingerprint {short}"
