from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from .common import bold, quoted, resumable, say
from .options import Model, Overwrite, Resume, Seed
from .progress import progress_bars


def pretrain_ae(
    corpus: Annotated[Path, typer.Option(help="File with a `text` in each row: .jsonl, .json, .csv or .parquet.")],
    output: Annotated[Path, typer.Option(help="Folder for the adapter.")],
    model: Model = "smollm2",
    max_steps: Annotated[int, typer.Option(min=1, help="Number of steps.")] = 200,
    learning_rate: Annotated[Optional[float], typer.Option(help="Of AdamW.", show_default="0.01")] = None,
    batch_size: Annotated[Optional[int], typer.Option(min=1, help="Passages a step.", show_default="4")] = None,
    min_passage_length: Annotated[
        Optional[int], typer.Option(min=1, help="Shorter texts are left out, in tokens.", show_default="64")
    ] = None,
    max_passage_length: Annotated[
        Optional[int], typer.Option(min=1, help="Longer texts are cut, in tokens.", show_default="256")
    ] = None,
    seed: Seed = 42,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Train the universal [AE] token of a backbone (stage 0)."""
    from ..data import load_corpus
    from ..runs.pretrain_ae import pretrain_ae as run

    training_args = {
        "max_steps": max_steps,
        "learning_rate": learning_rate,
        "per_device_train_batch_size": batch_size,
        "min_passage_length": min_passage_length,
        "max_passage_length": max_passage_length,
    }
    texts = load_corpus(corpus)
    with resumable(output), progress_bars() as on_progress:
        run(
            texts,
            output,
            model=model,
            seed=seed,
            resume=resume,
            overwrite=overwrite,
            on_progress=on_progress,
            **{name: value for name, value in training_args.items() if value is not None},
        )
    say("Saved to ", bold(output), f". Next: peft-be compress --ae {quoted(output)} ...")
