"""
What a chat template writes around contents.

A template renders placeholders once per conversation shape, which splits its output into the template's own text and
slots for the contents: the *skeleton*. It tells what the template has written and where [BE] goes, for templates that
do not look into contents.
"""

from __future__ import annotations

import datetime
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from jinja2.exceptions import TemplateError

from ..files import shown, well_formed
from .encoding import GuardedTokenizer, Mark, Span, shift
from .kept_text import with_kept_text


# Placeholders are private-use characters. The padding around them shows how a template strips a content: em spaces go
# with `trim` only, the outer newlines also with `lstrip("\n")`.
_PLACEHOLDER = re.compile("\ue000(\\d+)\ue001")
_LEFT_PAD, _RIGHT_PAD = "\n\u2003", "\u2002\n"
_BOS_MARK = "\ue002"
_LONG = "You are a helpful assistant that answers every question in one short sentence."

# Templates that print today's date get this one, Llama 3's own default, so that ids do not change overnight. As
# functions cannot be passed to a template, a macro of the same name takes the place of transformers' `strftime_now`.
_DATE = datetime.datetime(2024, 7, 26)
_DATE_MACRO = "".join(
    ["{% macro strftime_now(format) %}{{ format"]
    + [f" | replace('%{letter}', '{_DATE.strftime('%' + letter)}')" for letter in "YymdBbAajHIMSp"]
    + [" }}{% endmacro %}\n"]
)

Messages = list[dict[str, str]]


class Slot(NamedTuple):
    content: int  # which message's content goes here
    left: str | None  # argument of `str.lstrip` for it
    right: str | None


class Piece(NamedTuple):
    """A part of a message's content in a rendered text."""

    message: int
    start: int  # characters of the rendered text
    end: int
    origin: int  # where the content's own characters count from in the rendered text


class UnknownContents(ValueError):
    """A template does something to contents that no skeleton describes."""


@dataclass
class Rendering:
    """
    The text of a conversation.

    Attributes:
        text (`str`): The text.
        marks (`list[Mark]`): The guarded tokens that it is to have.
        placed (`list[Piece]`): Where the skeleton puts the contents.
    """

    text: str
    marks: list[Mark]
    placed: list[Piece]

    @property
    def pieces(self) -> list[Piece]:
        """Which parts of the contents stand where."""
        return self.placed

    @property
    def spans(self) -> list[Span] | None:
        """Characters that a message may have written, in which no guarded token may come up."""
        return [Span(piece.start, piece.end) for piece in self.pieces]


@dataclass(frozen=True)
class Skeleton:
    segments: list[str]  # the template's text around and between the slots
    marks: list[list[Mark]]  # guarded tokens of each segment
    slots: list[Slot]

    def fill(self, messages: Messages) -> Rendering:
        """The rendering of contents, which are well-formed text."""
        texts, marks, pieces, length = [], [], [], 0
        for segment, found, slot in itertools.zip_longest(self.segments, self.marks, self.slots):
            marks += [shift(mark, length) for mark in found]
            texts.append(segment)
            length += len(segment)
            if slot is not None:
                stripped = messages[slot.content]["content"].lstrip(slot.left)
                origin = length - (len(messages[slot.content]["content"]) - len(stripped))
                stripped = stripped.rstrip(slot.right)
                pieces.append(Piece(slot.content, length, length + len(stripped), origin))
                texts.append(stripped)
                length += len(stripped)
        return Rendering("".join(texts), marks, pieces)


class ChatTemplate:
    """
    The chat template of a tokenizer, with [BE] in it.

    Args:
        encoder (`GuardedTokenizer`): The tokenizer. Tokens that open or close turns are guarded from here on.
        be_token_ids (`Sequence[int]`): The ids of [BE].
        variables (`dict`): Further variables for the template.
        kept_text (`str`, *optional*): What follows [BE] in the system turn.

    Attributes:
        after_be (`str`): The kept text with what separates it from [BE], or an empty text.

    Raises:
        `ValueError`: if the kept text spells a special token.
    """

    def __init__(
        self,
        encoder: GuardedTokenizer,
        be_token_ids: Sequence[int],
        variables: dict[str, Any],
        kept_text: str | None = None,
    ) -> None:
        self.tokenizer = encoder.tokenizer
        self.encoder = encoder
        self.be_token_ids = be_token_ids
        self.variables = variables
        self.source = self.tokenizer.get_chat_template(tools=variables.get("tools"))
        if "strftime_now" in self.source:
            self.source = _DATE_MACRO + self.source
        self._skeletons: dict[tuple, Skeleton] = {}
        encoder.guarded |= self._turn_markers()
        self.after_be = well_formed(with_kept_text("", kept_text))
        for token in encoder.tokenize(self.after_be) if self.after_be else ():
            if token.guarded:
                raise ValueError(
                    f"The kept text spells {shown(self.after_be[token.start : token.end])}, which engines read as a "
                    "special token: keep text without it."
                )

    @cached_property
    def spellings(self) -> dict[str, int]:
        """The guarded tokens that the template can spell, longest first, and their ids."""
        ids = {self.encoder.added[i].content: i for i in self.encoder.guarded if i in self.encoder.added}
        named = set(self.named_tokens.values())
        return {
            token: ids[token] for token in sorted(ids, key=len, reverse=True) if token in self.source or token in named
        }

    @cached_property
    def named_tokens(self) -> dict[str, str]:
        """The special tokens that the template knows as variables, such as `bos_token`."""
        return {
            name: str(token) for name, token in self.tokenizer.special_tokens_map.items() if isinstance(token, str)
        }

    def arrange(self, messages: Messages) -> Messages:
        """The messages as the template takes them: where it knows no system turns, the text goes to the first user."""
        roles = roles_of(messages)
        if roles[0] != "system" or self.has_system_role or "user" not in roles:
            return messages
        # As Gemma 3's template does it.
        system, *others = messages
        first = roles.index("user") - 1
        others[first] = {"role": "user", "content": system["content"] + "\n\n" + others[first]["content"]}
        return others

    def apply(self, messages: Messages, generation: bool = True, source: str | None = None, **kwargs) -> str:
        """The text that the template, or a changed copy of it, writes for messages."""
        try:
            return self.tokenizer.apply_chat_template(
                messages,
                chat_template=source or self.source,
                tokenize=False,
                add_generation_prompt=generation,
                **{**kwargs, **self.variables},
            )
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            roles = ", ".join(roles_of(messages))
            raise ValueError(f"The chat template cannot render a conversation of {roles}: {error}") from error

    def skeleton(self, roles: tuple[str, ...], slot: str | None = None) -> Skeleton:
        """The skeleton for contents of these roles, with [BE] at `slot` in front of them if given."""
        if (roles, slot) not in self._skeletons:
            self._skeletons[roles, slot] = self._make_skeleton(roles, slot)
        return self._skeletons[roles, slot]

    @cached_property
    def has_system_role(self) -> bool:
        """Whether the template shows system messages."""
        try:
            return 0 in self._shown(("system", "user"), arranged=False)
        except ValueError:
            return False

    def _shown(self, roles: tuple[str, ...], arranged: bool = True) -> set[int]:
        """Which contents of these roles the template shows if they are short, or if they are long."""
        messages = [{"role": role, "content": f"\ue000{number}\ue001"} for number, role in enumerate(roles)]
        shown = set()
        for form in ("{}", "{} " + _LONG, _LONG + " {}"):
            padded = [{**message, "content": form.format(message["content"])} for message in messages]
            text = self.apply(self.arrange(padded) if arranged else padded)
            shown |= {int(number) for number in _PLACEHOLDER.findall(text)}
        return shown

    def _segments(self, roles: tuple[str, ...], pads: tuple[str, str] = ("", ""), **kwargs) -> list[str]:
        """Template text and content numbers in turns: `[text, 0, text, 1, ..., text]` for contents in order."""
        contents = [f"{pads[0]}\ue000{number}\ue001{pads[1]}" for number in range(len(roles))]
        messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
        return _PLACEHOLDER.split(self.apply(self.arrange(messages), **kwargs))

    def _make_skeleton(self, roles: tuple[str, ...], slot: str | None) -> Skeleton:
        shape = ("system", *roles) if slot == "system" else roles
        parts = self._segments(shape)
        segments, contents = parts[::2], [int(number) for number in parts[1::2]]
        missing = set(range(len(shape))) - set(contents)
        if missing and missing <= self._shown(shape):
            raise UnknownContents(f"The chat template does not show every text of {shape[min(missing)]} messages.")
        if missing:
            raise ValueError(
                f"The chat template does not show the text of {shape[min(missing)]} messages as it is, so it cannot be"
                " used here: set tokenizer.chat_template to one that does."
            )
        strips = self._strips(shape, segments)
        slots = [Slot(content, *strip) for content, strip in zip(contents, strips, strict=True)]

        # [BE] becomes a part of the template's text, with the kept text: one special token for each of its rows.
        stand_ins = [self.encoder.stand_in(token_id) for token_id in self.be_token_ids] if slot else []
        be = "".join(stand_ins)
        be_at = []  # (segment, character) of each time [BE] stands in the text
        if slot == "system":
            while 0 in contents:
                i = contents.index(0)
                be_at.append((i, len(segments[i])))
                content = be + self.after_be.rstrip(slots[i].right)
                segments[i : i + 2] = [segments[i] + content + segments[i + 1]]
                del contents[i], slots[i]
            slots = [shifted._replace(content=shifted.content - 1) for shifted in slots]
        elif slot == "prefix":
            opening, header = self._user_turn
            be_at.append((0, len(opening)))
            segments[0] = opening + be + header

        outputs = {}  # (segment, character) of each stand-in -> the id of its row
        for i, start in be_at:
            for token_id, stand_in in zip(self.be_token_ids, stand_ins, strict=True):
                outputs[i, start] = token_id
                start += len(stand_in)
        return Skeleton(segments, self._marks(segments, outputs), slots)

    def _marks(self, segments: list[str], outputs: dict[tuple[int, int], int]) -> list[list[Mark]]:
        """The guarded tokens of each segment; those at `outputs` stand for rows of [BE]."""
        marks = []
        for i, segment in enumerate(segments):
            tokens = [token for token in self.encoder.tokenize(segment) if token.guarded]
            self.check_not_reserved(token.id for token in tokens if (i, token.start) not in outputs)
            marks.append([Mark(*token.place, outputs.pop((i, token.start), token.id)) for token in tokens])
        if outputs:
            raise ValueError("The tokenizer does not keep the special token that stands for [BE] apart from the text.")
        return marks

    def check_not_reserved(self, written: Iterable[int]) -> None:
        """Raises a `ValueError` if the template writes an id of [BE] or [AE]."""
        if not self.encoder.reserved.isdisjoint(written):
            raise ValueError("The chat template itself writes an id reserved for [BE] or [AE]: choose other ids.")

    def _strips(self, shape: tuple[str, ...], segments: list[str]) -> list[tuple[str | None, str | None]]:
        """How the template strips the content of each slot: the arguments of `str.lstrip` and `str.rstrip`."""
        padded = self._segments(shape, (_LEFT_PAD, _RIGHT_PAD))[::2]
        options = ("", "\n", None)  # nothing, newlines, all white space
        lefts, rights = [], []
        for i, (segment, text) in enumerate(zip(segments, padded, strict=True)):
            before = options if i > 0 else (None,)
            after = options if i < len(segments) - 1 else (None,)
            for right, left in itertools.product(before, after):
                if _RIGHT_PAD.rstrip(right) + segment + _LEFT_PAD.lstrip(left) == text:
                    break
            else:
                raise UnknownContents("The chat template changes the white space of a content in an unknown way.")
            rights.append(right)
            lefts.append(left)
        return list(zip(lefts[:-1], rights[1:], strict=True))

    @cached_property
    def _user_turn(self) -> tuple[str, str]:
        """
        What the template writes before any turn (BOS), and what it writes from there to a user's content.

        The latter follows from a turn in the middle of a conversation, where no default system turn is in the way: the
        text between an assistant's and a user's content without what closes the assistant's turn.
        """
        # Turns may spell a BOS token, too (SmolLM2's is <|im_start|>): a mark shows what is written as BOS.
        mark: dict[str, Any] = {"bos_token": _BOS_MARK} if self.tokenizer.bos_token else {}
        head = self._segments(("user",), **mark)[0]
        system_head = self._segments(("system", "user"), **mark)[0]
        *_, between, _, _ = self._segments(("user", "assistant", "user"), generation=False, **mark)
        *_, closing = self._segments(("user", "assistant"), generation=False, **mark)
        same = _common_prefix(self.encoder.units(between), self.encoder.units(closing))
        header = between[len(same) :].removeprefix(_BOS_MARK)
        if (closing and not same) or not head.endswith(header):
            raise ValueError("Cannot tell where a user's turn starts in this chat template: use slot='system'.")
        opening = head[: len(head) - len(header)]
        if not system_head.startswith(opening):  # the default system turn follows BOS
            opening = _BOS_MARK if opening.startswith(_BOS_MARK) else ""
        bos = self.tokenizer.bos_token or ""
        return opening.replace(_BOS_MARK, bos), header.replace(_BOS_MARK, bos)

    def _turn_markers(self) -> set[int]:
        """Added tokens that open or close turns though they are not flagged as special (DeepSeek's <｜User｜>)."""
        try:
            parts = self._segments(("user", "assistant", "user"), generation=False)
        except ValueError:  # a template for a single turn
            return set()
        added = self.encoder.added
        written = [[token.id for token in self.encoder.tokenize(text) if token.id in added] for text in parts[::2]]
        # After the last content the turn may hold anything. After the marker of its turn an assistant's header may
        # hold ordinary tags such as <think>.
        return {token_id for i, ids in enumerate(written[:3]) for token_id in (ids[:1] if i == 1 else ids)}


def roles_of(messages: Messages) -> tuple[str, ...]:
    return tuple(message["role"] for message in messages)


def _common_prefix(first: list[str], second: list[str]) -> str:
    pairs = zip(first, second, strict=False)
    return "".join(unit for unit, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
