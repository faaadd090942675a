from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from .common import console


def export(
    directories: Annotated[list[Path], typer.Argument(help="Folders of adapters of one base model.")],
    output: Annotated[Path, typer.Option(help="Folder for the checkpoint.")],
    model: Annotated[Optional[str], typer.Option(help="Base model; by default the one of the training.")] = None,
    default: Annotated[
        Optional[str],
        typer.Option(help="Folder name of the adapter that is the system message where a chat has none."),
    ] = None,
) -> None:
    """Write a transformers checkpoint in which [BE] is an ordinary special token, for any engine."""
    from ..serving import export_merged

    names = [directory.absolute().name for directory in directories]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise ValueError(f"Tokens are named like the folders, and more than one is called {', '.join(repeated)}.")
    tokens = export_merged(dict(zip(names, directories)), output, model=model, default=default)
    for name, token in tokens.items():
        where = "as the system message" if token.slot == "system" else "in front of the user's turn"
        console.print(f"[bold]{name}[/]: {token.text} {where} (ids {token.ids})", highlight=False)
    console.print(f"Saved to [bold]{output}[/].")
