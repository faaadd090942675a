"""Which queries an adapter can be judged by."""

from __future__ import annotations

import os
import warnings

from ..adapters.folder import read_report
from ..data import query_key
from ..data.repeats import last_turn, passages_of
from ..files import shown


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


def outside_the_prompt(prompt: str | list[dict[str, str]], queries: list) -> tuple[list, list[dict[str, str]]]:
    """
    Leave out the queries that stand in P, word by word or nearly so, and warn of them. The full prompt's answers to them can be
    copied from what P says next to them: they tell how well P's text is kept, and not how the model behaves.

    Args:
        prompt (`str` or `list[dict]`): P.
        queries (`list`): held-out queries, as [`as_queries`] gives them.

    Returns:
        `tuple[list, list[dict]]`: the other queries, and of each that was left out its `query` and the `passage` of P.

    Raises:
        `ValueError`: no query is left.
    """
    passages = passages_of(prompt, queries)
    found = [{"query": last_turn(query), "passage": passage} for query, passage in zip(queries, passages) if passage]
    if not found:
        return queries, []
    example = shown(found[0]["query"])
    if len(found) == len(queries):
        raise ValueError(
            f"All held-out queries stand in the prompt, such as {example}, and its answers can be copied from "
            "there: give queries that the prompt does not answer itself."
        )
    warnings.warn(
        f"Left out {len(found)} of {len(queries)} held-out queries, which stand in the prompt or nearly do, such as "
        f"{example}: the answers to them can be copied from it.",
        stacklevel=1,
    )
    return [query for query, passage in zip(queries, passages) if passage is None], found
