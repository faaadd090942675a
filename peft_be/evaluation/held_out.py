"""Which queries an adapter can be judged by."""

from __future__ import annotations

import difflib
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence

from ..adapters.folder import read_report
from ..data import query_key
from ..files import shown
from ..prompting.messages import check_prompt, check_query
from .words import Word, placed_words, words


# A query of fewer words is a usual turn of phrase: it counts only where it is all that a message or a line of P says
MIN_WORDS = 5
# The share of words, in order, that makes a passage and a query the same question: one word of ten may be another
NEAR = 0.9
# What transcripts in a system text put before a question: "Q:", "User:", "Question 3:"
_LABEL = re.compile(r"^\s*\w[\w ]{0,20}:")


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
    found = [{"query": _asked(query), "passage": passage} for query, passage in zip(queries, passages) if passage]
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


def passages_of(prompt: str | list[dict[str, str]], queries: list) -> list[str | None]:
    """
    The passage of P that each query repeats, without regard to case and punctuation, or nearly repeats: but for one in ten,
    its words are the same in the same order, and so are its numbers. A query of fewer than 5 words must be a whole message
    or line of P, for any text may have such words. A dialogue is judged by its last turn.

    Args:
        prompt (`str` or `list[dict]`): P.
        queries (`list`): the queries.

    Returns:
        `list[str | None]`: for each query its passage, or `None` where there is none.
    """
    contents = [message["content"] for message in check_prompt(prompt)]
    texts = [(content, placed_words(content)) for content in contents]
    wholes: dict[tuple[str, ...], str] = {}
    for content in contents:
        for whole in (content, *content.splitlines()):
            for text in (whole, _LABEL.sub("", whole)):
                wholes.setdefault(tuple(words(text)), text.strip())
    return [_passage(texts, wholes, words(_asked(query))) for query in queries]


def _passage(texts: list[tuple[str, list[Word]]], wholes: dict[tuple[str, ...], str], asked: list[str]) -> str | None:
    if not asked or tuple(asked) in wholes:  # a query of signs alone has no words
        return wholes[tuple(asked)] if asked else None
    for content, placed in texts if len(asked) >= MIN_WORDS else []:
        for start, end in _windows([word.text for word in placed], asked):
            return content[placed[start].start : placed[end - 1].end]
    return None


def _asked(query: str | list[dict[str, str]]) -> str:
    return check_query(query)[-1]["content"]


def _windows(text: Sequence[str], asked: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Where runs of a text's words, as many as a query has, are the query or nearly are."""
    size, needed = min(len(text), len(asked)), Counter(asked)
    shared, held = 0, Counter[str]()
    for end, word in enumerate(text, start=1):
        held[word] += 1
        shared += held[word] <= needed[word]
        if end > size:
            gone = text[end - size - 1]
            shared -= held[gone] <= needed[gone]
            held[gone] -= 1
        # Words in order are no more than words in any order, which are counted in passing
        if end >= size and 2 * shared >= NEAR * (size + len(asked)) and _near(text[end - size : end], asked):
            yield end - size, end


def _near(one: Sequence[str], other: Sequence[str]) -> bool:
    numbers = [sorted(word for word in side if any(map(str.isdigit, word))) for side in (one, other)]
    # "What is 3 plus 4?" is another question than "What is 3 plus 5?"
    return numbers[0] == numbers[1] and difflib.SequenceMatcher(None, one, other, autojunk=False).ratio() >= NEAR
