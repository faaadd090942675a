"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable


# Called with what is being done, how much of it is done, its total, and the latest logged values, `{}` if there are none
OnProgress = Callable[[str, int, int, dict], None]
