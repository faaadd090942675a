from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ..runs.config import CompressConfig
from .common import bold, console, resumable, say
from .config_options import ABLATIONS, with_options_of
from .options import Model, Overwrite, Resume
from .progress import progress_bars


@with_options_of(
    CompressConfig,
    without=(
        *ABLATIONS,
        "from_adapter",
        "keep",
        "keep_tokens",
        "max_minutes",
        "reconstruction_steps",
        "save_steps",
        "target",
        "target_metric",
    ),
)
def compress_many(
    manifest: Annotated[
        Path,
        typer.Argument(
            help='JSON lines {"name", "prompt", "queries"} and optionally "test_queries" and "query_field", '
            "with paths relative to the file."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for the adapters, each in a folder of its name.")],
    config: CompressConfig,
    model: Model = "smollm2",
    group_size: Annotated[int, typer.Option(min=1, help="Prompts that learn together.")] = 8,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Compress many prompts in one run, with one model in memory."""
    from ..runs.compress_many import compress_prompts
    from ..runs.manifest import load_manifest

    jobs, errors = load_manifest(manifest)
    if not jobs:
        raise ValueError(f"No prompt of '{manifest}' can be used: {next(iter(errors.values()))}")
    say(f"Compressing {len(jobs)} prompts on ", bold(model), f", {group_size} at a time")
    with resumable(output), progress_bars() as on_progress:
        results = compress_prompts(
            jobs,
            output,
            config,
            model=model,
            group_size=group_size,
            resume=resume,
            overwrite=overwrite,
            on_progress=on_progress,
        )
    table = Table()
    for column in ("prompt", "validation queries", "KL", "KL, no prompt", "gap closed", "step", "adapter"):
        table.add_column(column, overflow="fold")
    for result in results:
        if result.report is not None:
            best = result.report["best"]
            told = [best.get("kl"), best.get("kl_no_prompt"), best.get("kl_gap_closed")]
            figures = ["-" if value is None else f"{value:.4f}" for value in told]
            count = str(result.report["num_queries"]["validation"])
            table.add_row(result.name, count, *figures, str(best["step"]), str(result.directory))
    console.print(table)
    errors |= {result.name: result.error for result in results if result.error is not None}
    if errors:
        lines = "\n".join(f"  {name}: {error}" for name, error in errors.items())
        # An expected error: the adapters of the others are there, and the exit code says that something is missing
        raise ValueError(f"{len(errors)} of {len(errors) + len(table.rows)} prompts failed:\n{lines}")
