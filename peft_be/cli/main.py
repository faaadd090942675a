"""The `peft-be` command."""

from __future__ import annotations

import typer

from .bench import bench
from .cache import cache
from .chat import chat
from .common import run_cleanly
from .compare import compare
from .compress import compress
from .compress_many import compress_many
from .demo import demo
from .evaluate import evaluate
from .export import export
from .info import info
from .lm_eval import lm_eval
from .pretrain_ae import pretrain_ae
from .push import push


app = typer.Typer(
    name="peft-be",
    help="One learned token in place of a long system prompt (Behavior-Equivalent token, arXiv 2511.23271).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(compress)
app.command("compress-many")(compress_many)
app.command("eval")(evaluate)
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
