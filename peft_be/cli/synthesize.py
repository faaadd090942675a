from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import bold, quoted, say
from .options import Model, Seed
from .progress import progress_bars


def synthesize(
    prompt: Annotated[Path, typer.Argument(help="The prompt, as for compress.")],
    output: Annotated[Path, typer.Option(help="A new .jsonl file.")],
    num_queries: Annotated[int, typer.Option(help="How many to write.")] = 480,
    model: Model = "smollm2",
    temperature: Annotated[float, typer.Option(help="Lower it for a model that rambles.")] = 1.0,
    seed: Seed = 42,
) -> None:
    """Write what users of a prompt may ask, if you have no queries: the model goes on where they would write."""
    from ..prompting import load_prompt
    from ..runs.synthesize import synthesize_queries

    if output.suffix.lower() != ".jsonl":
        raise ValueError(f"--output '{output}' must end in .jsonl: one query a line is written as JSON.")
    if output.exists():
        raise ValueError(f"'{output}' is there already: give another name, so that its queries are not lost.")
    if not output.parent.is_dir():
        raise ValueError(f"There is no folder '{output.parent}' to write the queries into: make it first.")
    text = load_prompt(prompt)
    with progress_bars() as on_progress:
        written = synthesize_queries(
            text, num_queries, model=model, temperature=temperature, seed=seed, on_progress=on_progress
        )
    written.save(output)
    say(
        f"Wrote {len(written.queries)} queries to ",
        bold(output),
        f" (left out: {written.reasons()}). Read some of them.",
    )
    say(f"Next: peft-be compress --prompt {quoted(prompt)} --queries {quoted(output)} --output OUT")
