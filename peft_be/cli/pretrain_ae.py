from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..runs.config import PretrainAEConfig
from .common import bold, quoted, resumable, say
from .config_options import with_options_of
from .options import Model, Overwrite, Resume
from .progress import progress_bars


@with_options_of(PretrainAEConfig)
def pretrain_ae(
    corpus: Annotated[Path, typer.Option(help="File with a `text` in each row: .jsonl, .json, .csv or .parquet.")],
    output: Annotated[Path, typer.Option(help="Folder for the adapter.")],
    config: PretrainAEConfig,
    model: Model = "smollm2",
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Train the universal [AE] token of a backbone (stage 0)."""
    from ..data import load_corpus
    from ..runs.pretrain_ae import pretrain_ae as run

    texts = load_corpus(corpus)
    with resumable(output), progress_bars() as on_progress:
        run(texts, output, config, model=model, resume=resume, overwrite=overwrite, on_progress=on_progress)
    say("Saved to ", bold(output), f". Next: peft-be compress --ae {quoted(output)} ...")
