from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.table import Table

from .common import bold, console, resumable, say
from .options import (
    AE,
    Init,
    InitText,
    KDWeight,
    LearningRate,
    MaxAnswerLength,
    MaxSteps,
    Model,
    Overwrite,
    Resume,
    Seed,
    Slot,
    Temperature,
)
from .progress import progress_bars


def compress_many(
    manifest: Annotated[
        Path,
        typer.Argument(
            help='JSON lines {"name", "prompt", "queries"} and optionally "test_queries" and "query_field", '
            "with paths relative to the file."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for the adapters, each in a folder of its name.")],
    model: Model = "smollm2",
    ae: AE = None,
    num_be_tokens: Annotated[int, typer.Option(min=1, help="Number of [BE] rows of each prompt.")] = 1,
    slot: Slot = "system",
    init: Init = None,
    init_text: InitText = None,
    group_size: Annotated[int, typer.Option(min=1, help="Prompts that learn together.")] = 8,
    kd_weight: KDWeight = None,
    temperature: Temperature = None,
    learning_rate: LearningRate = None,
    max_steps: MaxSteps = None,
    batch_size: Annotated[
        Optional[int], typer.Option(min=1, help="Answers of a prompt in a step.", show_default="2")
    ] = None,
    max_answer_length: MaxAnswerLength = None,
    seed: Seed = 42,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Compress many prompts in one run, with one model in memory."""
    from ..runs.compress_many import compress_prompts
    from ..runs.manifest import load_manifest

    training_args = {
        "init": init,
        "init_text": init_text,
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
    say(f"Compressing {len(jobs)} prompts on ", bold(model), f", {group_size} at a time")
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
