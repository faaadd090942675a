from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from .common import quoted, say


def push(
    directory: Annotated[Path, typer.Argument(help="Folder of an adapter, or of many in folders of their own.")],
    repo_id: Annotated[str, typer.Argument(help="user/repo; created if there is none.")],
    base_model: Annotated[
        Optional[str], typer.Option(help="Hub id of the base model, if the adapter was trained on a local folder.")
    ] = None,
    license: Annotated[Optional[str], typer.Option(help="For the card, for instance apache-2.0.")] = None,
    private: Annotated[Optional[bool], typer.Option(help="Whether a new repository is private.")] = None,
) -> None:
    """Upload adapters to the Hub."""
    from ..adapters.hub import push_adapters

    url = push_adapters(directory, repo_id, base_model=base_model, license=license, private=private)
    say(f"Uploaded: {url}")
    say(f"To use it: peft-be chat {quoted(repo_id)}, or peft_be.load_adapter({repo_id!r}).")
