"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable


# Called with what is being done, how much of it is done, its total, and the latest logged values, `{}` if there are none
OnProgress = Callable[[str, int, int, dict], None]


def counter(on_progress: OnProgress | None, what: str) -> Callable[[int, int], None] | None:
    """A callback `(done, total)` that tells `on_progress` how much of `what` is done; `None` if there is nobody to tell."""
    if on_progress is None:
        return None

    def report(done: int, total: int) -> None:
        on_progress(what, done, total, {})

    return report
