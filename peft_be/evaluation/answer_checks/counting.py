"""How long an answer is, in words or in sentences, by rule."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ...data.words import UNSPACED
from ...files import shown


# The marks that end a sentence, and what may close it. A small letter after them goes on with it ("e.g. sand"); Chinese and Japanese
# have no space there
_END = re.compile(
    r"""[.!?\u2026]+["'\u2019\u201d\u00bb)\]*_]*\s+(?![a-z])|[\u3002\uff01\uff1f]+["\u201d\u300d\u300f\uff09]*(?=.)"""
)
# What ends in a full stop within a sentence: a title, or the number of a list's item
_NO_END = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|vs|e\.g|i\.e)|^\W*\d+)\.\s*$")


def count_words(text: str) -> int:
    """The parts between white space that have a letter or a digit; in scripts without spaces, the characters."""
    spaced, characters = UNSPACED.subn(" ", text)
    return characters + sum(any(map(str.isalnum, part)) for part in spaced.split())


def count_sentences(text: str) -> int:
    """
    The sentences of a text: what ends in `.`, `!`, `?` or an ellipsis before white space, or with its line. Lines without a letter or a
    digit are none.
    """
    count = 0
    for line in filter(count_words, text.splitlines()):
        ends = [match.end() for match in _END.finditer(line) if not _NO_END.search(line[: match.end()])]
        parts = [line[start:end] for start, end in zip([0, *ends], [*ends, len(line)])]
        count += sum(count_words(part) > 0 for part in parts)
    return count


def length_test(measure: Callable[[str], int], limits: Any) -> Callable[[str], bool]:
    """The test of a length between the `min` and the `max` of a checks file, both included."""
    if not isinstance(limits, dict) or not limits or not set(limits) <= {"min", "max"}:
        raise ValueError(f"takes min, max or both, as in {{max: 2}}, got {shown(limits)}.")
    for name, number in limits.items():
        if type(number) is not int or number < 0:
            raise ValueError(f"must have a whole number as its {name}, got {shown(number)}.")
    least, most = limits.get("min", 0), limits.get("max")
    if least == 0 and most is None:
        raise ValueError("has a min of 0, which every answer has: give a max, or a higher min.")
    if most is not None and most < least:
        raise ValueError(f"has a min of {least} above its max of {most}.")
    return lambda text: least <= measure(text) and (most is None or measure(text) <= most)
