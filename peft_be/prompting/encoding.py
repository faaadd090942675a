"""Turns text into ids so that no content becomes a special token, [BE] or [AE]."""

from __future__ import annotations

import bisect
import re
from collections.abc import Collection
from functools import cached_property, lru_cache
from typing import NamedTuple

from ..files import well_formed


UNTOLD = (
    "The chat template writes other text for other messages, and nobody can tell which special tokens are its own: "
)


class Span(NamedTuple):
    """Characters of a text."""

    start: int
    end: int


class Token(NamedTuple):
    id: int
    start: int  # characters of the rendered text; of its spelling only if guarded
    end: int
    guarded: bool  # a token that no content may produce

    @property
    def place(self) -> tuple[int, int, int]:
        return self.id, self.start, self.end


class Mark(NamedTuple):
    """A guarded token that the template writes, or a stand-in for one [BE] row."""

    id: int
    start: int
    end: int
    output: int  # the id it has in the rendering

    @property
    def place(self) -> tuple[int, int, int]:
        return self.id, self.start, self.end


class GuardedTokenizer:
    """
    Tokenises rendered conversations: guarded tokens come out where they are marked and nowhere else.

    Args:
        tokenizer (`PreTrainedTokenizerFast`): The tokenizer.
        reserved (`Collection[int]`): The ids of [BE] and [AE].

    Attributes:
        guarded (`set[int]`): Special tokens, the reserved ids, and the tokens around turns that a [`ChatTemplate`] adds.
    """

    def __init__(self, tokenizer, reserved: Collection[int]) -> None:
        self.tokenizer = tokenizer
        self.reserved = set(reserved)
        self.added = tokenizer.added_tokens_decoder
        special = {token_id for token_id, token in self.added.items() if token.special}
        self.guarded = special | set(tokenizer.all_special_ids) | self.reserved

    def units(self, text: str) -> list[str]:
        """The text as special tokens and single characters."""
        spellings = sorted((self.added[i].content for i in self.guarded if i in self.added), key=len, reverse=True)
        return re.findall("|".join([*map(re.escape, spellings), "."]), text, flags=re.DOTALL)

    def stand_in(self, token_id: int) -> str:
        """A special token's spelling for a row of [BE]: its own if it has one."""
        token = self.added.get(token_id)
        return token.content if token is not None and token.special else self.separator

    @cached_property
    def separator(self) -> str:
        """A special token that is found wherever it is spelled and leaves its surroundings alone."""
        for token in self.added.values():
            if token.special and not (token.lstrip or token.rstrip or token.normalized or token.single_word):
                return token.content
        raise ValueError("The tokenizer has no special token to mark the place of [BE] with: add one, such as an EOS.")

    @lru_cache(maxsize=1024)  # noqa: B019
    def spells_guarded(self, text: str) -> bool:
        """Whether the tokenizer itself reads a guarded token in the text."""
        return any(token.guarded for token in self.tokenize(text))

    def encode(self, text: str, marks: list[Mark], spans: list[Span] | None) -> list[Token]:
        """
        Tokenise a rendered text.

        Args:
            text (`str`): The text.
            marks (`list[Mark]`): The guarded tokens it is to have.
            spans (`list[Span]`, *optional*): The characters that are contents. `None`: they spell no guarded token.

        Raises:
            `ValueError`: if a content cannot be told from a special token of the template.
        """
        tokens = self.tokenize(text)
        if not _as_marked(tokens, marks):
            if spans is None:
                raise ValueError(UNTOLD + "use another template, or leave out of the messages what it looks for.")
            tokens = self._encode_hostile(text, marks, spans)
        outputs = {mark.start: mark.output for mark in marks}
        return [token._replace(id=outputs[token.start]) if token.guarded else token for token in tokens]

    def answer(self, text: str) -> list[int]:
        """Ids of a text after a special token."""
        opening, text = self.separator, well_formed(text)
        mark = Mark(token_id := self.tokenizer.convert_tokens_to_ids(opening), 0, len(opening), token_id)
        tokens = self.encode(opening + text, [mark], [Span(len(opening), len(opening) + len(text))])
        return [token.id for token in tokens[next(i for i, token in enumerate(tokens) if token.guarded) + 1 :]]

    def tokenize(self, text: str, split_special_tokens: bool = False) -> list[Token]:
        """The tokens of a text as the tokenizer itself reads it."""
        encoding = self.tokenizer(
            text,
            add_special_tokens=False,
            split_special_tokens=split_special_tokens,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        tokens = []
        unk_token_id = self.tokenizer.unk_token_id
        for token_id, (start, end) in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True):
            guarded = token_id in self.guarded
            if guarded:
                spelling = self.added[token_id].content if token_id in self.added else ""
                at = text.find(spelling, start, end) if spelling else -1
                if at >= 0:  # without the white space that the token takes with it
                    start, end = at, at + len(spelling)
                elif token_id == unk_token_id and token_id not in self.reserved:
                    guarded = False  # an unknown character, not a spelled-out <unk>
            tokens.append(Token(token_id, start, end, guarded))
        return tokens

    def _encode_hostile(self, text: str, marks: list[Mark], spans: list[Span]) -> list[Token]:
        """
        Tokenise a text whose contents spell guarded tokens, as text.

        The usual case takes one round with the parsing of special tokens switched off. Guarded tokens that come out
        nevertheless (a reserved id may be a piece of ordinary vocabulary) are cut in two until none is left.
        """
        cuts: set[Span] = set()  # characters to leave out, mostly none: then the text is only split there
        while True:
            tokens = self._tokenize_apart(text, marks, cuts) if self._splits_alike else self._tokenize_cut(text, cuts)
            if _as_marked(tokens, marks):
                return tokens
            written = {mark.place for mark in marks}
            before = len(cuts)
            for token in tokens:
                if token.guarded and token.place not in written:
                    cuts |= _cuts(token, spans)
            if len(cuts) == before:
                raise ValueError("A message holds text that cannot be told from the chat template's special tokens.")

    @cached_property
    def _splits_alike(self) -> bool:
        """Whether text after a special token is tokenised as it is alone: not if only the very first gets a space."""
        ids = [token.id for token in self.tokenize(f"x{self.separator}x")]
        alone = [token.id for token in self.tokenize("x")]
        return ids == [*alone, *(token.id for token in self.tokenize(self.separator)), *alone]

    def _tokenize_apart(self, text: str, marks: list[Mark], cuts: set[Span]) -> list[Token]:
        """Tokenise the texts between marks and cuts one by one, with special tokens in them as text."""
        borders: list[tuple[int, int, Mark | None]] = [(start, end, None) for start, end in cuts]
        for mark in marks:
            start, end, flags = mark.start, mark.end, self.added.get(mark.id)
            if flags is not None and flags.lstrip:
                start = len(text[:start].rstrip())
            if flags is not None and flags.rstrip:
                end = len(text) - len(text[end:].lstrip())
            borders.append((start, end, mark))
        tokens, position = [], 0
        for start, end, own in sorted(borders, key=lambda border: border[:2]) + [(len(text), len(text), None)]:
            if position < start:
                piece = self.tokenize(text[position:start], split_special_tokens=True)
                tokens += [shift(token, position) for token in piece]
            if own is not None:
                tokens.append(Token(*own.place, True))
            position = max(position, end)
        return tokens

    def _tokenize_cut(self, text: str, cuts: set[Span]) -> list[Token]:
        """Tokenise the text in one call with a special token at each cut, and leave those tokens out again."""
        pieces, position, length = [], 0, 0
        starts, shifts = [0], [0]  # where each piece starts in the longer text, and how far that is off
        separators = set()
        for start, end in sorted(cuts):
            piece = text[position:start] if position < start else ""
            pieces += [piece, self.separator]
            separators.add(length + len(piece))
            length += len(piece) + len(self.separator)
            position = max(position, end)
            starts.append(length)
            shifts.append(position - length)
        longer = "".join([*pieces, text[position:]])
        return [
            shift(token, shifts[bisect.bisect_right(starts, token.start) - 1])
            for token in self.tokenize(longer)
            if not (token.guarded and token.start in separators)
        ]


def shift(span, by: int):
    """A token, mark or span of a text that is a part of a longer one, there."""
    return span._replace(start=span.start + by, end=span.end + by)


def _as_marked(tokens: list[Token], marks: list[Mark]) -> bool:
    """Whether the guarded tokens are those that the template writes, each where it writes it."""
    return [token.place for token in tokens if token.guarded] == [mark.place for mark in marks]


def _cuts(token: Token, spans: list[Span]) -> set[Span]:
    """Where to cut a guarded token apart: in its middle, as far as that belongs to a content."""
    inside = [
        position
        for start, end in spans
        for position in range(max(start, token.start + 1), min(end, token.end - 1) + 1)
    ]
    if inside:
        middle = (token.start + token.end) / 2
        cut = min(inside, key=lambda position: abs(position - middle))
        return {Span(cut, cut)}
    # A single character that is a guarded token by itself has no spelling as text: it is left out.
    shared = [Span(max(start, token.start), min(end, token.end)) for start, end in spans]
    return {span for span in shared if span.start < span.end}
