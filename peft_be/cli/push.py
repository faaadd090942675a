from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from rich.table import Table
from rich.text import Text

from .common import console, quoted, say
from .config_options import with_options_of
from .loading import Loading


if TYPE_CHECKING:
    from ..adapters.hub import PushPlan


CARD_LINES = 24
PANEL = "Loading, for --format lora"


class PushFormat(str, Enum):
    native = "native"
    lora = "lora"


@with_options_of(
    Loading,
    without=("dtype", "allow_template_change", "allow_other_prompt"),
    name="loading",
    panel=PANEL,
)
def push(
    directory: Annotated[Path, typer.Argument(help="Folder of an adapter, or of many in folders of their own.")],
    repo_id: Annotated[str, typer.Argument(help="user/repo; created if there is none.")],
    loading: Loading,
    format: Annotated[
        list[PushFormat],
        typer.Option(
            help="native: as trained, for peft_be; lora: for PEFT, vLLM and others without it. Give both for both in one "
            "repository, LoRA in the folder lora."
        ),
    ] = [PushFormat.native],  # noqa: B006  # Typer's form of a default
    base_model: Annotated[
        Optional[str], typer.Option(help="Hub id of the base model, if the adapter was trained on a local folder.")
    ] = None,
    license: Annotated[Optional[str], typer.Option(help="For the card, for instance apache-2.0.")] = None,
    private: Annotated[Optional[bool], typer.Option(help="Whether a new repository is private.")] = None,
    dtype: Annotated[
        Optional[str],
        typer.Option(
            help="For --format lora: the dtype in which the engine computes, by default float32.",
            rich_help_panel=PANEL,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Say what would be uploaded, and upload nothing. Needs no token, and no network if the base model that "
            "--format lora loads is on this machine.",
        ),
    ] = False,
) -> None:
    """Upload adapters to the Hub."""
    from ..adapters.hub import plan_push, push_adapters
    from ..serving.lora_hub import plan_lora_push, push_lora

    options: dict[str, Any] = {"base_model": base_model, "license": license}
    how: dict[str, Any] = {
        "model": loading.model,
        "dtype": dtype,
        "device": loading.device,
        "allow_other_weights": loading.allow_other_weights,
    }
    plan: Callable[..., PushPlan] = plan_push
    upload: Callable[..., str] = push_adapters
    if PushFormat.lora in format:
        options |= {"native": PushFormat.native in format, **how}
        plan, upload = plan_lora_push, push_lora
    elif given := [name for name, value in how.items() if value]:
        raise ValueError(f"--{given[0].replace('_', '-')} is for --format lora: give that, too, or leave it out.")
    if dry_run:
        show(plan(directory, repo_id, **options), repo_id)
        return
    say(f"Uploaded: {upload(directory, repo_id, private=private, **options)}")
    if PushFormat.native in format:
        say(f"To use it: peft-be chat {quoted(repo_id)}, or peft_be.load_adapter({repo_id!r}).")
    if PushFormat.lora in format:
        say("Its card says how PEFT and vLLM load the LoRA adapter.")


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
