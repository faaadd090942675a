"""
The kinds of checks. Each is a function that takes the value under the kind's name in a checks file and returns the test of an answer,
whose ends have no white space. The error of a wrong value goes on after the kind's name: "must be a text".
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from ...files import is_blank, shown
from .counting import count_sentences, count_words, length_test
from .json_answers import is_json, json_test
from .language import language_test


Test = Callable[[str], bool]

# In double quotes, YAML and JSON read \b as a backspace
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
# What a regular expression looks at without taking it. One that has none of it, and matches an empty text, matches any
_LOOKS_AROUND = re.compile(r"[\^$]|\\[AbBZ]|\(\?<?[=!]")


def contains(text: Any, ignore_case: bool) -> Test:
    if isinstance(text, list):
        raise ValueError("must be one text: contains_any and contains_all take a list.")
    return contains_all(text, ignore_case)


def contains_any(texts: Any, ignore_case: bool) -> Test:
    wanted = _texts(texts, ignore_case)
    return lambda answer: any(text in _plain(answer, ignore_case) for text in wanted)


def contains_all(texts: Any, ignore_case: bool) -> Test:
    wanted = _texts(texts, ignore_case)
    return lambda answer: all(text in _plain(answer, ignore_case) for text in wanted)


def never_says(texts: Any, ignore_case: bool) -> Test:
    says = contains_any(texts, ignore_case)
    return lambda answer: not says(answer)


def starts_with(texts: Any, ignore_case: bool) -> Test:
    starts = _texts(texts, ignore_case)
    return lambda answer: _plain(answer, ignore_case).startswith(starts)


def ends_with(texts: Any, ignore_case: bool) -> Test:
    ends = _texts(texts, ignore_case)
    return lambda answer: _plain(answer, ignore_case).endswith(ends)


def one_of(labels: Any, ignore_case: bool) -> Test:
    allowed = _texts(labels, ignore_case)
    return lambda answer: _plain(answer, ignore_case) in allowed


def regex(pattern: Any, ignore_case: bool) -> Test:
    expression = compiled(pattern, ignore_case)
    return lambda answer: expression.search(answer) is not None


def never_regex(pattern: Any, ignore_case: bool) -> Test:
    expression = compiled(pattern, ignore_case)
    return lambda answer: expression.search(answer) is None


def valid_json(wanted: Any) -> Test:
    if wanted is not True:
        raise ValueError(f"must be true, got {shown(wanted)}: leave it out if the answer need not be JSON.")
    return is_json


# Those that compare letters also take whether upper and lower case are alike
TEXT_KINDS: dict[str, Callable[[Any, bool], Test]] = {
    "contains": contains,
    "contains_any": contains_any,
    "contains_all": contains_all,
    "never_says": never_says,
    "starts_with": starts_with,
    "ends_with": ends_with,
    "one_of": one_of,
    "regex": regex,
    "never_regex": never_regex,
}
OTHER_KINDS: dict[str, Callable[[Any], Test]] = {
    "words": partial(length_test, count_words),
    "sentences": partial(length_test, count_sentences),
    "characters": partial(length_test, len),
    "json": valid_json,
    "json_schema": json_test,
    "language": language_test,
}
# Where the two are alike unless the file says otherwise: what must not be said must not be said in capitals either
IGNORE_CASE = ("never_says",)


def compiled(pattern: Any, ignore_case: bool) -> re.Pattern:
    """A regular expression of a checks file."""
    if not isinstance(pattern, str) or not pattern:
        raise ValueError(f"must be a regular expression, written as a text, got {shown(pattern)}.")
    if _CONTROL.search(pattern):
        raise ValueError("holds a control character: double the backslashes.")
    try:
        expression = re.compile(pattern, re.IGNORECASE if ignore_case else 0)
    except re.error as error:
        raise ValueError(f"is not a regular expression: {error}.") from None
    if expression.search("") and not _LOOKS_AROUND.search(pattern):
        raise ValueError(f"is found in every text, for it may match nothing at all: {shown(pattern)}.")
    return expression


def _texts(value: Any, ignore_case: bool) -> tuple[str, ...]:
    """A text or a list of texts, as they are compared."""
    texts = value if isinstance(value, list) else [value]
    if not texts:
        raise ValueError("is an empty list: give texts.")
    for text in texts:
        # YAML reads yes, no, on, off, dates and numbers as something else
        if not isinstance(text, str):
            raise ValueError(f"must be a text or a list of texts, got {shown(text)}: put quotes around each text.")
        if is_blank(text):
            raise ValueError("has an empty text: give one that can be seen.")
        if text.strip("\n") != text.strip():  # YAML may have added a line end
            raise ValueError(
                f"has white space at an end of {shown(text)}, which is not compared: leave it out, or write regex or never_regex."
            )
    return tuple(_plain(text, ignore_case) for text in texts)


def _plain(text: str, ignore_case: bool) -> str:
    """A text as it is compared: models write both apostrophes."""
    text = text.strip().replace("\u2019", "'")
    return text.casefold() if ignore_case else text
