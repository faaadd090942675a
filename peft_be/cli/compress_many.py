from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.table import Table

from .common import console, progress_bars, resumable


def compress_many(
    manifest: Annotated[
        Path,
        typer.Argument(
            help='JSON lines {"name", "prompt", "queries"} and optionally "test_queries", with paths relative to the file.'
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for the adapters, each in a folder of its name.")],
    model: Annotated[str, typer.Option(help="smollm2, a folder, or a Hub id.")] = "smollm2",
    ae: Annotated[Optional[Path], typer.Option(help="Folder of the [AE] adapter; the package ships some.")] = None,
    num_be_tokens: Annotated[int, typer.Option(min=1, help="Number of [BE] rows of each prompt.")] = 1,
    slot: Annotated[
        str, typer.Option(help="system: inside the system turn; prefix: in front of the user's turn.")
    ] = "system",
    group_size: Annotated[int, typer.Option(min=1, help="Prompts that learn together.")] = 8,
    kd_weight: Annotated[
        Optional[float], typer.Option(help="lambda of Eq. 4, 0 to 1; the paper has 0.9.", show_default="1.0")
    ] = None,
    temperature: Annotated[
        Optional[float], typer.Option(help="tau of Eq. 3; the paper has 2.", show_default="1.0")
    ] = None,
    learning_rate: Annotated[
        Optional[float], typer.Option(help="Of AdamW, in units of the start rows' RMS.", show_default="0.2")
    ] = None,
    max_steps: Annotated[Optional[int], typer.Option(help="Number of steps.", show_default="600")] = None,
    batch_size: Annotated[Optional[int], typer.Option(help="Answers of a prompt in a step.", show_default="2")] = None,
    max_answer_length: Annotated[
        Optional[int], typer.Option(help="Longest answer of the teacher, in tokens.", show_default="64")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything that is random.")] = 42,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete an earlier run in the folder.")] = False,
) -> None:
    """Compress many prompts in one run, with one model in memory."""
    from ..compress_many import compress_prompts, load_manifest

    training_args = {
        "kd_weight": kd_weight,
        "temperature": temperature,
        "learning_rate": learning_rate,
        "max_steps": max_steps,
        "per_device_train_batch_size": batch_size,
        "max_answer_length": max_answer_length,
    }
    jobs, errors = load_manifest(manifest)
    if not jobs:
        raise ValueError(f"No prompt of '{manifest}' can be used: {next(iter(errors.values()))}")
    console.print(f"Compressing {len(jobs)} prompts on [bold]{model}[/], {group_size} at a time")
    with resumable(output), progress_bars() as on_progress:
        results = compress_prompts(
            jobs,
            output,
            model=model,
            ae=ae,
            num_be_tokens=num_be_tokens,
            slot=slot,
            group_size=group_size,
            seed=seed,
            resume=resume,
            overwrite=overwrite,
            on_progress=on_progress,
            **{name: value for name, value in training_args.items() if value is not None},
        )
    table = Table()
    for column in ("prompt", "best validation", "step", "adapter"):
        table.add_column(column)
    for result in results:
        if result.report is not None:
            *best, step = result.report["best"].items()
            values = ", ".join(f"{name} {value:.4f}" for name, value in best)
            table.add_row(result.name, values, str(step[1]), str(result.directory))
    console.print(table)
    errors |= {result.name: result.error for result in results if result.error is not None}
    if errors:
        lines = "\n".join(f"  {name}: {error}" for name, error in errors.items())
        # An expected error: the adapters of the others are there, and the exit code says that something is missing
        raise ValueError(f"{len(errors)} of {len(errors) + len(table.rows)} prompts failed:\n{lines}")
