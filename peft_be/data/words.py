"""A text's words, in any script: what texts are compared by."""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple


# Scripts that put no spaces between words: each of their characters counts as a word
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
# Accents and vowel signs that are characters of their own. To `re` they are no part of a word, and would end it
_MARKS = "".join(c for c in map(chr, range(0x300, 0xFE30)) if unicodedata.category(c) in ("Mn", "Mc"))
UNSPACED = re.compile(f"[{_UNSPACED}]")
_WORD = re.compile(rf"[{_UNSPACED}]|(?:[^\W_{_UNSPACED}][{_MARKS}]*)+")


class Word(NamedTuple):
    """A word without case, and the characters `[start, end)` of the text that it stands for."""

    text: str
    start: int
    end: int


def placed_words(text: str) -> list[Word]:
    """A text's words with their places, without case and punctuation."""
    return [
        Word(unicodedata.normalize("NFKC", found[0]).casefold(), found.start(), found.end())
        for found in _WORD.finditer(text)
    ]


def words(text: str) -> list[str]:
    """A text's words, without case and punctuation."""
    return [word.text for word in placed_words(text)]
