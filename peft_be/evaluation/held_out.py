"""Which queries an adapter can be judged by."""

from __future__ import annotations

import os

from ..adapters.folder import read_report
from ..data import query_key


def held_out_queries(directory: str | os.PathLike, queries: list) -> list:
    """
    The queries that an adapter was not trained on, as far as `training.json` in its folder knows.

    Args:
        directory (`str` or `os.PathLike`): the adapter's folder.
        queries (`list`): queries, as [`load_queries`] gives them.

    Raises:
        `ValueError`: all of them were trained on, or `training.json` is damaged.
    """
    seen = set(read_report(directory).get("seen_queries", []))
    fresh = [query for query in queries if query_key(query) not in seen]
    if not fresh:
        raise ValueError("All queries were trained on: give held-out ones.")
    return fresh
