from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.text import Text

from ..runs.config import PAPER, CompressConfig
from .common import bold, quoted, resumable, say
from .config_options import ABLATIONS, not_given, with_options_of
from .options import QUERY_FILES, Model, Overwrite, PromptFile, QueryField, Resume
from .progress import progress_bars


@with_options_of(CompressConfig, without=ABLATIONS)
def compress(
    context: typer.Context,
    prompt: PromptFile,
    output: Annotated[Path, typer.Option(help="Folder for the adapter.")],
    config: CompressConfig,
    queries: Annotated[
        Optional[Path], typer.Option(help=f"What users may ask; without it, the model writes that: {QUERY_FILES}")
    ] = None,
    model: Model = "smollm2",
    test_queries: Annotated[
        Optional[Path], typer.Option(help="Queries kept for peft-be eval: their duplicates are not trained on.")
    ] = None,
    validation_queries: Annotated[
        Optional[Path],
        typer.Option(
            help="Queries to choose the checkpoint by, instead of a tenth of --queries: a few of your users'."
        ),
    ] = None,
    query_field: QueryField = None,
    paper: Annotated[
        bool,
        typer.Option(
            "--paper", help="Use the settings of the authors' scripts for every option that you do not give."
        ),
    ] = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Compress a prompt into one learned token."""
    # Imported here, so that --help needs no torch
    from ..adapters.folder import QUERY_FILE
    from ..data import load_queries
    from ..figures import best_sentence, search_sentences
    from ..prompting import load_prompt
    from ..runs.compress import compress_prompt

    if paper:
        config = replace(config, **not_given(context, PAPER))
    text = load_prompt(prompt)
    asked = load_queries(queries, query_field) if queries else None
    held_out = load_queries(test_queries, query_field) if test_queries else None
    validating = load_queries(validation_queries, query_field) if validation_queries else None
    what = "queries that the model writes" if asked is None else f"{len(asked)} queries"
    say("Compressing ", bold(prompt), f" with {what} on ", bold(model))
    if config.from_adapter is not None:
        say("The rows start from those of ", bold(config.from_adapter))
    with resumable(output), progress_bars() as on_progress:
        result = compress_prompt(
            text,
            asked,
            output,
            config,
            model=model,
            test_queries=held_out,
            validation_queries=validating,
            resume=resume,
            overwrite=overwrite,
            on_progress=on_progress,
            on_preview=show_preview,
        )
    size = (output / "adapter_model.safetensors").stat().st_size
    seconds = result.report["seconds"]
    say(f"{result.report['steps']} steps{'' if seconds is None else f' in {seconds / 60:.1f} min'}.")
    say(f"{best_sentence(result.report)}.")
    kept_text = result.model.peft_config["default"].kept_text
    if kept_text is not None:
        say(Text(f"Stays text, after [BE]: {' '.join(kept_text.split())}"))
    if "search" in result.report:
        say(search_sentences(result.report["search"]))
    say("Saved to ", bold(output), f" ({size} bytes).")
    folder = quoted(output)
    say(f"Next: peft-be eval {folder} --prompt {quoted(prompt)} --queries HELD_OUT.jsonl, or peft-be chat {folder}")
    if asked is None:
        say(f"The model wrote the training queries: read them in {quoted(output / QUERY_FILE)}.")
        if validating is None:
            say("On your users' queries, the score may be lower: give some of them as --validation-queries.")
    if config.target is None and config.kd_weight > 0:
        say("What more rows would bring: the same command with --target 0.9 and another --output finds out.")


def show_preview(answers: list[dict]) -> None:
    """Show what [BE] is to imitate: a prompt that the model does not follow shows here, and not after the training."""
    if not answers:
        return
    say("This is what [BE] will imitate, the teacher's answers:")
    for answer in answers:
        say("  ", bold(shortened(answer["query"])))
        say("    with the prompt: ", shortened(answer["full"]))
        say("    without it:      ", shortened(answer["no_prompt"]))


def shortened(text: str, length: int = 240) -> str:
    """A text in one line."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "\u2026"
