"""The `peft-be` command. At first only typer and Rich are imported; a command imports the rest when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__
from .audit import audit
from .bench import bench
from .cache import cache
from .chat import chat
from .common import run_cleanly, say
from .compare import compare
from .compress import compress
from .compress_many import compress_many
from .demo import demo
from .diff import diff
from .evaluate import evaluate
from .export import export
from .info import info
from .lm_eval import lm_eval
from .pretrain_ae import pretrain_ae
from .propose_checks import propose_checks
from .push import push
from .synthesize import synthesize


app = typer.Typer(
    name="peft-be",
    help="One learned token in place of a long system prompt (Behavior-Equivalent token, arXiv 2511.23271).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def show_version(wanted: bool) -> None:
    if wanted:
        say(f"peft-be {__version__}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


app.command()(compress)
app.command("compress-many")(compress_many)
app.command("eval")(evaluate)
app.command()(synthesize)
app.command()(diff)
app.command("propose-checks")(propose_checks)
app.command()(audit)
app.command()(compare)
app.command()(bench)
app.command()(export)
app.command()(chat)
app.command()(demo)
app.command()(info)
app.command()(push)
app.command()(cache)
# All that follows goes to the harness as it is, `--help` too
app.command(
    "lm-eval",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)(lm_eval)
app.command("pretrain-ae")(pretrain_ae)


def main() -> None:
    run_cleanly(app)


if __name__ == "__main__":
    main()
