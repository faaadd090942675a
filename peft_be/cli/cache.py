from __future__ import annotations

import time
from typing import Annotated, Optional

import typer
from rich.table import Table
from rich.text import Text

from .common import console, say


PARTS = ("teacher", "models")


def cache(
    part: Annotated[
        Optional[str],
        typer.Argument(help="teacher: answers of prompts. models: unpacked GGUF files.", show_default="both"),
    ] = None,
    clear: Annotated[
        bool, typer.Option("--clear", help="Delete it; by default the teacher's answers. All of it can be made again.")
    ] = False,
) -> None:
    """Show what is kept for later runs, or delete it."""
    from ..files import cache_dir
    from ..teacher.cache import LIMIT_VARIABLE, cache_limit, cached_entries, delete_entry

    if part not in (None, *PARTS):
        raise ValueError(f"'{part}' is no part of the cache: give {' or '.join(PARTS)}.")
    if clear:
        part = part or "teacher"
        entries = cached_entries(cache_dir() / part)
        deleted = [entry for entry in entries if delete_entry(entry)]
        console.print(f"Deleted {shown_size(sum(entry.size for entry in deleted))} of {part}.")
        if len(deleted) < len(entries):
            console.print(
                f"{len(entries) - len(deleted)} entries stay: a process is using them, or they cannot be deleted."
            )
        return
    table = Table()
    for column in ("part", "what", "size", "last used"):
        table.add_column(column, justify="right" if column in ("size", "last used") else "left", overflow="fold")
    for name in PARTS if part is None else (part,):
        for entry in cached_entries(cache_dir() / name):
            table.add_row(
                name, Text(entry.about), shown_size(entry.size), f"{shown_age(time.time() - entry.used)} ago"
            )
    console.print(table)
    sizes = {name: sum(entry.size for entry in cached_entries(cache_dir() / name)) for name in PARTS}
    say(f"Folder: {cache_dir()}")
    console.print(
        f"Teacher: {shown_size(sizes['teacher'])} of {shown_size(cache_limit())} ({LIMIT_VARIABLE}); what was used "
        f"least recently goes first. Models: {shown_size(sizes['models'])}, no limit.",
        soft_wrap=True,
    )


def shown_size(size: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


def shown_age(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0, seconds):.0f} seconds"
