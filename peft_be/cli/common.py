"""
What the commands share: how they print, and how an error ends them. Nothing here imports torch, to keep `--help` fast.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import typer
from rich.console import Console
from rich.text import Text
from wrapt import register_post_import_hook

from ..machine.errors import is_out_of_memory


# What a wrong input, a full disk, a missing file or package raises. Anything else is a bug and keeps its traceback.
EXPECTED_ERRORS = (ValueError, OSError, ImportError, FloatingPointError)
# Control characters and what stands for them: their symbols (Control Pictures of Unicode), where there are some
_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
_CONTROLS |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
PACKAGE = Path(__file__).parent.parent


class Stream:
    """
    Standard output or standard error, which may break without ending the work: whoever reads it may go (`| head`), or
    the disk may be full. What is printed from then on is lost.

    Args:
        name (`str`): `"stdout"` or `"stderr"`. Looked up in `sys` at each use, for it may be replaced.

    Attributes:
        error (`OSError`, *optional*): what broke it.
    """

    def __init__(self, name: str):
        self._name = name
        self.error: OSError | None = None

    def __getattr__(self, name: str):
        return getattr(getattr(sys, self._name), name)

    def write(self, text: str) -> None:
        self._try(lambda stream: stream.write(text))

    def flush(self) -> None:
        self._try(lambda stream: stream.flush())

    def _try(self, action) -> None:
        stream = getattr(sys, self._name)
        if stream is None:  # closed by whoever started the command
            return
        try:
            action(stream)
        except OSError as error:
            self.error = error
            # What the stream still holds is written again at exit
            with open(os.devnull, "w") as nowhere, contextlib.suppress(io.UnsupportedOperation):
                os.dup2(nowhere.fileno(), stream.fileno())


class PlainConsole(Console):
    """
    A console whose texts cannot steer the terminal: control characters, such as those of an escape sequence in a query or
    an answer, are shown as their symbols. Line ends and tabs stay.
    """

    def render(self, renderable, options=None):
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=segment.text.translate(_CONTROLS))


def make_console(file) -> Console:
    """A console that reads no text as markup, neither `[/INST]` nor `:smile:`. Style is given with `rich.text.Text`."""
    return PlainConsole(file=file, markup=False, emoji=False, highlight=False)


_stdout = Stream("stdout")
console = make_console(_stdout)
error_console = make_console(Stream("stderr"))


def say(*parts: str | Text, to: Console | None = None) -> None:
    """Print the parts as one line, which is not broken: whoever copies a command or a path from it gets all of it."""
    (to or console).print(Text.assemble(*parts), soft_wrap=True)


def bold(value) -> Text:
    return Text(str(value), style="bold")


def quoted(value) -> str:
    """A path or another argument as it is typed at the command line. One that starts with a dash would be an option."""
    value = f"./{value}" if str(value).startswith("-") else value
    return subprocess.list2cmdline([str(value)]) if os.name == "nt" else shlex.quote(str(value))


def run_cleanly(app: typer.Typer) -> None:
    """Run a command; an expected error ends in one sentence and exit code 1, unless `PEFT_BE_DEBUG` is set."""
    quiet()
    _stdout.error = None
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an encoding must not end a run over a letter that it lacks
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except SystemExit as end:
        lost = _stdout.error
        if end.code or lost is None or lost.errno == errno.EPIPE:
            raise
        fail(f"What the command printed is lost: {os.strerror(lost.errno)}. The files that it wrote are complete.")
    except Exception as error:
        if os.environ.get("PEFT_BE_DEBUG") or not (is_out_of_memory(error) or isinstance(error, EXPECTED_ERRORS)):
            raise
        message = str(error)
        if is_out_of_memory(error):
            message = "Out of memory: lower --batch-size, or give a shorter prompt or a smaller model."
        elif isinstance(error, OSError) and error.strerror and error.filename:
            message = f"{error.filename}: {error.strerror}."
        fail(message)


def fail(message: str) -> None:
    """End the command with a sentence on standard error and exit code 1."""
    say(Text("Error:", style="bold red"), " ", one_line(message), to=error_console)
    sys.exit(1)


def one_line(text: str) -> str:
    return re.sub(r"\s*[\r\n]\s*", " ", text.strip())


def quiet() -> None:
    """
    Keep the libraries' warnings, progress bars and reports of use out of the command, and show this package's
    warnings.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    if os.environ.get("PEFT_BE_DEBUG"):
        return
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.disable(logging.WARNING)
    show_own_warnings()
    # Once a command imports them, if it does
    register_post_import_hook(quiet_transformers, "transformers")
    register_post_import_hook(lambda datasets: datasets.disable_progress_bars(), "datasets")


def quiet_transformers(transformers) -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def show_own_warnings() -> None:
    """Show the warnings of this package's modules as one line on standard error, once each, and no others."""
    shown = set()

    def show(message, category, filename, lineno, file=None, line=None):
        note = one_line(str(message))
        # Checked here, too: a library may have set filters of its own
        if PACKAGE in Path(filename).parents and note not in shown:
            shown.add(note)
            say(Text("Note:", style="bold yellow"), " ", note, to=error_console)

    warnings.simplefilter("ignore")
    warnings.filterwarnings("always", module=r"peft_be\.")
    warnings.showwarning = show


@contextlib.contextmanager
def resumable(output: Path):
    """Context of a run in the folder `output`: Ctrl-C ends it with exit code 130 and says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"Interrupted. What was done is kept in {output}: run the same command with --resume to go on.")
        raise typer.Exit(130) from None
