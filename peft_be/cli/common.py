"""What the subcommands share: the console, progress, clean errors, and loading an adapter."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from pathlib import Path

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


console = Console()

# What a wrong input, a full disk, a missing file or package raises. Anything else is a bug and keeps its traceback.
EXPECTED_ERRORS = (ValueError, OSError, ImportError, FloatingPointError, torch.OutOfMemoryError)


def run_cleanly(app: typer.Typer) -> None:
    """Run a command; an expected error ends in one sentence and exit code 1, unless `PEFT_BE_DEBUG` is set."""
    quiet()
    try:
        app()
    except EXPECTED_ERRORS as error:
        if os.environ.get("PEFT_BE_DEBUG"):
            raise
        message = str(error)
        if isinstance(error, torch.OutOfMemoryError):
            message = "Out of memory: lower --batch-size, or give a shorter prompt or a smaller model."
        elif isinstance(error, OSError) and error.strerror and error.filename:
            message = f"{error.filename}: {error.strerror}."
        # Escaped, for `pip install "peft_be[demo]"` must not lose what looks like a style
        text = f"[bold red]Error:[/] {escape(' '.join(message.split()))}"
        Console(stderr=True).print(text, highlight=False, soft_wrap=True)
        sys.exit(1)


def quiet() -> None:
    """Keep the libraries' warnings and progress bars out of the command's own output."""
    if os.environ.get("PEFT_BE_DEBUG"):
        return
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()


@contextlib.contextmanager
def resumable(output: Path):
    """Context of a run in the folder `output`: Ctrl-C ends it with exit code 130 and says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        console.print(f"Interrupted. What was done is kept in {output}: run the same command with --resume to go on.")
        raise typer.Exit(130) from None


def check_json_file(path: Path | None) -> None:
    """Refuse a file for results whose folder does not exist, before the work that fills it."""
    if path is not None and not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"The folder of '{path}' does not exist: create it first.")


@contextlib.contextmanager
def progress_bars():
    """Context that gives a callback `(what, done, total, values)` which draws a bar for each kind of work."""
    bars = Progress(
        TextColumn("{task.description:<34}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[values]}"),
        console=console,
    )
    tasks: dict[str, int] = {}

    def update(what: str, done: int, total: int, values: dict | None = None) -> None:
        shown = ("eval_kl", "kd_loss", "reconstruction_loss", "eval_loss", "loss")
        text = "  ".join(f"{name} {float(values[name]):.4f}" for name in shown if name in (values or {}))
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=total, values=text)
        bars.update(tasks[what], completed=done, total=total, values=text)

    with bars:
        yield update
