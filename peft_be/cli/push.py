from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.table import Table
from rich.text import Text

from .common import console, quoted, say


if TYPE_CHECKING:
    from ..adapters.hub import PushPlan


CARD_LINES = 24


def push(
    directory: Annotated[Path, typer.Argument(help="Folder of an adapter, or of many in folders of their own.")],
    repo_id: Annotated[str, typer.Argument(help="user/repo; created if there is none.")],
    base_model: Annotated[
        Optional[str], typer.Option(help="Hub id of the base model, if the adapter was trained on a local folder.")
    ] = None,
    license: Annotated[Optional[str], typer.Option(help="For the card, for instance apache-2.0.")] = None,
    private: Annotated[Optional[bool], typer.Option(help="Whether a new repository is private.")] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Say what would be uploaded, and upload nothing. Needs neither network nor token."
        ),
    ] = False,
) -> None:
    """Upload adapters to the Hub."""
    from ..adapters.hub import plan_push, push_adapters

    if dry_run:
        show(plan_push(directory, repo_id, base_model=base_model, license=license), repo_id)
        return
    url = push_adapters(directory, repo_id, base_model=base_model, license=license, private=private)
    say(f"Uploaded: {url}")
    say(f"To use it: peft-be chat {quoted(repo_id)}, or peft_be.load_adapter({repo_id!r}).")


def show(plan: PushPlan, repo_id: str) -> None:
    """Print which files would go where, and how the card begins."""
    table = Table(title=Text(f"To {repo_id}: {len(plan.files)} files, {sum(plan.files.values()):,} bytes"))
    table.add_column("file", overflow="fold")
    table.add_column("bytes", justify="right")
    for name, size in plan.files.items():
        table.add_row(Text(name), f"{size:,}")
    console.print(table)
    say("The card begins:")
    for line in plan.card.strip().splitlines()[:CARD_LINES]:
        say(Text(f"  {line}", style="dim"))
    say("Nothing was uploaded.")
