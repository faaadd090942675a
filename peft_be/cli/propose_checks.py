from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from .common import bold, say


def propose_checks(
    prompt: Annotated[Path, typer.Argument(help="The prompt, as for compress.")],
    output: Annotated[Optional[Path], typer.Option(help="A new .yaml file; by default, the screen.")] = None,
) -> None:
    """Propose checks of form that the prompt's own sentences ask for, for you to review."""
    from ..evaluation.answer_checks.proposals import as_yaml, propose_checks
    from ..prompting import load_prompt

    if output is not None and output.suffix.lower() not in (".yaml", ".yml"):
        raise ValueError(f"--output '{output}' must end in .yaml or .yml: checks are written as YAML.")
    if output is not None and output.exists():
        raise ValueError(f"'{output}' is there already: give another name, so that your checks are not lost.")
    proposals = propose_checks(load_prompt(prompt))
    if not proposals:
        raise ValueError(f"No sentence of '{prompt}' reads as a rule of form: write a file of checks yourself.")
    if output is None:
        say(as_yaml(proposals).rstrip("\n"))
    else:
        output.write_text(as_yaml(proposals), encoding="utf-8")
        say(f"Proposed {len(proposals)} checks in ", bold(output), ". Read them before you use them.")
