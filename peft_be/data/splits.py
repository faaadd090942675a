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
    validation_queries: Iterable | None = None,
) -> QuerySplits:
    """
    Split queries into training, validation and test queries, none of which has a duplicate in another part.

    Two queries are duplicates if [`query_key`] is the same for both.

    Args:
        queries (`Iterable`):
            Queries to train on and to choose the checkpoint by, in any form that [`as_queries`] takes.
        test_queries (`Iterable`, *optional*):
            Held-out queries. They are kept; their duplicates among the others are dropped.
        validation_fraction (`float`, *optional*, defaults to `0.1`):
            Share of the distinct queries that goes to validation, at least one query.
        max_validation (`int`, *optional*, defaults to `48`):
            Upper bound of the validation queries.
        seed (`int`, *optional*, defaults to `42`):
            Seed of the shuffle that picks the validation queries.
        validation_queries (`Iterable`, *optional*):
            The validation queries. Then none of `queries` becomes one, and their duplicates there are dropped.

    Raises:
        `ValueError`: fewer than two distinct queries are left to train and validate on, no validation query is left of those
            that were given, or one is no query.
    """
    queries, test_queries = as_queries(queries), as_queries([] if test_queries is None else test_queries)
    given = len(test_queries) + len(queries)
    seen: set[str] = set()
    test, validation = _distinct(test_queries, seen), []
    if validation_queries is not None:
        validation_queries = as_queries(validation_queries)
        given += len(validation_queries)
        validation = validation_without(test, validation_queries)
        seen |= {query_key(query) for query in validation}
    pool = _distinct(queries, seen)
    if len(pool) < 2:
        others = " or the validation" if validation else ""
        raise ValueError(
            f"Only {len(pool)} distinct training quer{'y is' if len(pool) == 1 else 'ies are'} left of "
            f"{len(queries)} given{f', without those of the test{others}' if test or validation else ''}: at least two different queries "
            "are needed, a few hundred are good."
        )
    dropped = given - len(test) - len(validation) - len(pool)
    random.Random(seed).shuffle(pool)
    if not validation:
        size = min(max(1, round(validation_fraction * len(pool))), max_validation)
        pool, validation = pool[size:], pool[:size]
    return QuerySplits(train=pool, validation=validation, test=test, num_duplicates=dropped)


def validation_without(test: Iterable | None, validation: Iterable) -> list:
    """
    The distinct validation queries that are no test queries.

    Args:
        test (`Iterable`, *optional*), validation (`Iterable`): queries, in any form that [`as_queries`] takes.

    Raises:
        `ValueError`: there is none.
    """
    seen = {query_key(query) for query in as_queries([] if test is None else test)}
    left = _distinct(as_queries(validation), seen)
    if not left:
        raise ValueError("There is no validation query that is not among the test queries: give others.")
    return left


def _distinct(queries: list, seen: set[str]) -> list:
    """The queries without duplicates of each other and of what was `seen`, which they are added to."""
    distinct = []
    for query in queries:
        key = query_key(query)
        if key not in seen:
            seen.add(key)
            distinct.append(query)
    return distinct


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
