"""What of P and of other queries a query repeats."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from ..prompting.messages import check_prompt, check_query
from .words import Word, placed_words, words


# A query of fewer words is a usual turn of phrase: it counts only where it is all that a message or a line of P says
MIN_WORDS = 5
# The share of words, in order, that makes a passage and a query the same question: one word of ten may be another
NEAR = 0.9
# What transcripts in a system text put before a question: "Q:", "User:", "Question 3:"
_LABEL = re.compile(r"^\s*\w[\w ]{0,20}:")


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
    return [_passage(texts, wholes, words(last_turn(query))) for query in queries]


def _passage(texts: list[tuple[str, list[Word]]], wholes: dict[tuple[str, ...], str], asked: list[str]) -> str | None:
    if not asked or tuple(asked) in wholes:  # a query of signs alone has no words
        return wholes[tuple(asked)] if asked else None
    for content, placed in texts if len(asked) >= MIN_WORDS else []:
        for start, end in _windows([word.text for word in placed], asked):
            return content[placed[start].start : placed[end - 1].end]
    return None


def last_turn(query: str | list[dict[str, str]]) -> str:
    """What the user asks in a query."""
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
        if end >= size and 2 * shared >= NEAR * (size + len(asked)) and nearly_same(text[end - size : end], asked):
            yield end - size, end


def nearly_same(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two texts, as words, differ in no more than one word of ten, and in no number."""
    numbers = [sorted(word for word in side if any(map(str.isdigit, word))) for side in (one, other)]
    # "What is 3 plus 4?" is another question than "What is 3 plus 5?"
    return numbers[0] == numbers[1] and difflib.SequenceMatcher(None, one, other, autojunk=False).ratio() >= NEAR
