from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from .common import bold, quoted, resumable, say
from .options import (
    AE,
    QUERY_FILES,
    Init,
    InitText,
    KDWeight,
    LearningRate,
    MaxAnswerLength,
    MaxSteps,
    Model,
    Overwrite,
    QueryField,
    Resume,
    Seed,
    Slot,
    Temperature,
)
from .progress import progress_bars


def compress(
    prompt: Annotated[Path, typer.Option(help="The prompt: .txt is a system prompt, .json a list of chat messages.")],
    queries: Annotated[Path, typer.Option(help=f"What users may ask: {QUERY_FILES}")],
    output: Annotated[Path, typer.Option(help="Folder for the adapter.")],
    model: Model = "smollm2",
    test_queries: Annotated[
        Optional[Path], typer.Option(help="Queries kept for peft-be eval: their duplicates are not trained on.")
    ] = None,
    query_field: QueryField = None,
    ae: AE = None,
    num_be_tokens: Annotated[int, typer.Option(min=1, help="Number of [BE] rows.")] = 1,
    slot: Slot = "system",
    init: Init = None,
    init_text: InitText = None,
    kd_weight: KDWeight = None,
    temperature: Temperature = None,
    learning_rate: LearningRate = None,
    max_steps: MaxSteps = None,
    batch_size: Annotated[Optional[int], typer.Option(min=1, help="Answers a step.", show_default="2")] = None,
    max_answer_length: MaxAnswerLength = None,
    reconstruction_steps: Annotated[int, typer.Option(min=0, help="Steps of stage 1 alone before the rest.")] = 0,
    reconstruction_interval: Annotated[
        Optional[int], typer.Option(min=1, help="Reconstruct at every n-th step only.", show_default="32")
    ] = None,
    max_minutes: Annotated[Optional[float], typer.Option(help="Time for all of it, model loading excluded.")] = None,
    seed: Seed = 42,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Compress a prompt into one learned token."""
    # Imported here, so that --help needs no torch
    from ..data import load_queries
    from ..figures import best_sentence
    from ..prompting import load_prompt
    from ..runs.compress import compress_prompt

    training_args = {
        "init": init,
        "init_text": init_text,
        "kd_weight": kd_weight,
        "temperature": temperature,
        "learning_rate": learning_rate,
        "max_steps": max_steps,
        "per_device_train_batch_size": batch_size,
        "max_answer_length": max_answer_length,
        "reconstruction_interval": reconstruction_interval,
    }
    text, asked = load_prompt(prompt), load_queries(queries, query_field)
    held_out = load_queries(test_queries, query_field) if test_queries else None
    say("Compressing ", bold(prompt), f" with {len(asked)} queries on ", bold(model))
    with resumable(output), progress_bars() as on_progress:
        result = compress_prompt(
            text,
            asked,
            output,
            model=model,
            test_queries=held_out,
            ae=ae,
            num_be_tokens=num_be_tokens,
            slot=slot,
            reconstruction_steps=reconstruction_steps,
            max_minutes=max_minutes,
            seed=seed,
            resume=resume,
            overwrite=overwrite,
            on_progress=on_progress,
            on_preview=show_preview,
            **{name: value for name, value in training_args.items() if value is not None},
        )
    size = (output / "adapter_model.safetensors").stat().st_size
    say(f"{result.report['steps']} steps in {result.report['seconds'] / 60:.1f} min.")
    say(f"{best_sentence(result.report)}.")
    say("Saved to ", bold(output), f" ({size} bytes).")
    folder = quoted(output)
    say(f"Next: peft-be eval {folder} --prompt {quoted(prompt)} --queries HELD_OUT.jsonl, or peft-be chat {folder}")


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
