from __future__ import annotations

import logging
import sys

import typer


def lm_eval(context: typer.Context) -> None:
    """The lm-evaluation-harness with the model `peft_be`: all arguments are those of `lm-eval`."""
    from ..evaluation import lm_eval  # noqa: F401  # registers the model

    from lm_eval.__main__ import cli_evaluate  # isort: skip

    logging.disable(logging.NOTSET)  # what the harness says is its own output
    sys.argv = ["lm-eval", *context.args]
    cli_evaluate()
