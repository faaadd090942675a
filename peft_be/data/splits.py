"""Queries split so that none is in two parts."""

from __future__ import annotations

import hashlib
import json
import random
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from ..files import INVISIBLE
from .queries import as_queries


_SPACES = re.compile(r"\s+")


@dataclass
class QuerySplits:
    """Disjoint lists of queries, and how many duplicates were dropped to make them so."""

    train: list
    validation: list
    test: list
    num_duplicates: int


def split_queries(
    queries: Iterable,
    test_queries: Iterable | None = None,
    validation_fraction: float = 0.1,
    max_validation: int = 48,
    seed: int = 42,
) -> QuerySplits:
    """
    Split queries into training and validation queries, without duplicates of each other or of the test queries.

    Two queries are duplicates if [`query_key`] is the same for both.

    Args:
        queries (`Iterable`):
            Queries to train on and to choose the checkpoint by, in any form that [`as_queries`] takes.
        test_queries (`Iterable`, *optional*):
            Held-out queries. They are kept; their duplicates among `queries` are dropped.
        validation_fraction (`float`, *optional*, defaults to `0.1`):
            Share of the distinct queries that goes to validation, at least one query.
        max_validation (`int`, *optional*, defaults to `48`):
            Upper bound of the validation queries.
        seed (`int`, *optional*, defaults to `42`):
            Seed of the shuffle that picks the validation queries.

    Raises:
        `ValueError`: fewer than two distinct queries are left to train and validate on, or one is no query.
    """
    queries, test_queries = as_queries(queries), as_queries([] if test_queries is None else test_queries)
    test = list({query_key(q): q for q in reversed(test_queries)}.values())[::-1]
    held_out = {query_key(q) for q in test}
    distinct: dict[str, str | list[dict[str, str]]] = {}
    for query in queries:
        if query_key(query) not in held_out:
            distinct.setdefault(query_key(query), query)
    if len(distinct) < 2:
        raise ValueError(
            f"Only {len(distinct)} distinct training quer{'y is' if len(distinct) == 1 else 'ies are'} left of "
            f"{len(queries)} given{', without those of the test' if test else ''}: at least two different queries are needed, a few hundred are good."
        )
    pool = list(distinct.values())
    random.Random(seed).shuffle(pool)
    size = min(max(1, round(validation_fraction * len(pool))), max_validation)
    dropped = len(queries) - len(pool) + len(test_queries) - len(test)
    return QuerySplits(train=pool[size:], validation=pool[:size], test=test, num_duplicates=dropped)


def query_key(query: str | list[dict[str, str]]) -> str:
    """
    A hash that two queries share if they look alike: if they differ in letter case, white space, invisible characters
    and the way accents are encoded only. A dialogue of one turn is its text.

    Args:
        query (`str` or `list[dict]`): the query.

    Returns:
        `str`: 24 hexadecimal digits.
    """
    if isinstance(query, str):
        text = _look(query)
    elif len(query) == 1 and query[0]["role"] == "user":
        text = _look(query[0]["content"])
    else:
        text = json.dumps([[message["role"], _look(message["content"])] for message in query])
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:24]


def _look(text: str) -> str:
    # Adapters record the keys of their training queries: a text without accents in pieces and invisible characters
    # keeps the key that it has always had
    text = unicodedata.normalize("NFC", INVISIBLE.sub("", text))
    return unicodedata.normalize("NFC", _SPACES.sub(" ", text).strip().casefold())
