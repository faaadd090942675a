"""User queries: read from files, cleaned, and split so that no query is seen on two sides."""

from __future__ import annotations

import hashlib
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

from ..prompting.messages import check_query


# The field of a JSONL row that holds the query, in the order in which they are tried
QUERY_FIELDS = ("query", "prompt", "question", "instruction")


def load_queries(path: str | Path) -> list:
    """
    Read queries from a file.

    Args:
        path (`str` or `Path`):
            `.txt` with one query a line, or `.jsonl` with one object a line that has the query under `query`, `prompt`,
            `question` or `instruction`: a string, or a list of chat messages that ends with the user's turn.

    Returns:
        `list`: the queries in file order; empty lines are passed over.

    Raises:
        `FileNotFoundError`: there is no such file.
        `ValueError`: the file is not text, a row is no JSON object with a query, or there is no query at all.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no query file '{path}': check the path.")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"The query file '{path}' is not UTF-8 text: convert it first.") from error
    queries = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        queries.append(_parse_row(line, f"line {number} of '{path}'") if path.suffix == ".jsonl" else line.strip())
    if not queries:
        raise ValueError(f"The query file '{path}' holds no queries: give one query a line.")
    return queries


def _parse_row(line: str, where: str):
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where[0].upper()}{where[1:]} is not JSON: {error}.") from error
    field = next((name for name in QUERY_FIELDS if isinstance(row, dict) and row.get(name)), None)
    if field is None:
        raise ValueError(f"{where[0].upper()}{where[1:]} has no query: it needs one of {', '.join(QUERY_FIELDS)}.")
    query = row[field]
    is_dialogue = isinstance(query, list) and all(
        isinstance(m, dict) and {"role", "content"} <= m.keys() for m in query
    )
    if not isinstance(query, str) and not is_dialogue:
        raise ValueError(f"'{field}' in {where} must be a string or a list of chat messages.")
    return query


@dataclass
class QuerySplits:
    """Disjoint lists of queries, and how many duplicates were dropped to make them so."""

    train: list
    validation: list
    test: list
    num_duplicates: int


def split_queries(
    queries: list,
    test_queries: list | None = None,
    validation_fraction: float = 0.1,
    max_validation: int = 48,
    seed: int = 42,
) -> QuerySplits:
    """
    Split queries into training and validation, with duplicates removed, also those of the test queries.

    Two queries are duplicates if they differ in letter case and white space only.

    Args:
        queries (`list`):
            Queries to train on and to choose the checkpoint by.
        test_queries (`list`, *optional*):
            Held-out queries. They are kept; their duplicates among `queries` are dropped.
        validation_fraction (`float`, *optional*, defaults to `0.1`):
            Share of the distinct queries that goes to validation, at least one query.
        max_validation (`int`, *optional*, defaults to `48`):
            Upper bound of the validation queries.
        seed (`int`, *optional*, defaults to `42`):
            Seed of the shuffle that picks the validation queries.

    Raises:
        `ValueError`: fewer than two distinct queries are left to train and validate on.
    """
    test = list({query_key(q): q for q in reversed(test_queries or [])}.values())[::-1]
    held_out = {query_key(q) for q in test}
    distinct = {}
    for query in queries:
        if query_key(query) not in held_out:
            distinct.setdefault(query_key(query), query)
    if len(distinct) < 2:
        raise ValueError(
            f"Only {len(distinct)} distinct training quer{'y is' if len(distinct) == 1 else 'ies are'} left of "
            f"{len(queries)} given: at least two different queries are needed, a few hundred are good."
        )
    pool = list(distinct.values())
    random.Random(seed).shuffle(pool)
    size = min(max(1, round(validation_fraction * len(pool))), max_validation)
    dropped = len(queries) - len(pool) + len(test_queries or []) - len(test)
    return QuerySplits(train=pool[size:], validation=pool[:size], test=test, num_duplicates=dropped)


def query_column(queries: list) -> list:
    """Queries for a column of a dataset, whose cells are of one type: where one is a dialogue, texts become dialogues, too."""
    if all(isinstance(query, str) for query in queries):
        return queries
    return [check_query(query) for query in queries]


def query_key(query) -> str:
    """The same string for two queries that differ in letter case and white space only, otherwise different ones."""
    text = query if isinstance(query, str) else json.dumps([[m["role"], m["content"]] for m in query])
    return hashlib.sha256(re.sub(r"\s+", " ", text).strip().casefold().encode()).hexdigest()[:24]
