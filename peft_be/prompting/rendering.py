"""
A conversation as the chat template itself writes it, with the places of its special tokens.

A skeleton knows no contents, and some templates look into them: for a `/no_think` switch, for thinking in earlier
turns, for their length. So the template renders every conversation as it is, too. Where the two differ, its own text
is taken, and a copy of the template tells which special tokens are its own: it writes characters around them that no
content has.
"""

from __future__ import annotations

import contextlib
import difflib
import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ..files import well_formed
from .encoding import UNTOLD, Mark, Span, shift
from .skeleton import ChatTemplate, Messages, Piece, Rendering, UnknownContents, roles_of


_WORD = re.compile(r"\w+|[^\w\s]")
_MANY_WORDS = 2000  # for more, difflib would take minutes unless it leaves out frequent ones to begin with
_PRIVATE_USE = range(0xF0000, 0x10FFFE)


@dataclass
class ChangedRendering(Rendering):
    """
    A rendering for which the template has done more with the contents than put them in.

    Attributes:
        unchanged (`str`): A text with the contents as they are, at the places `placed`.
        hostile (`bool`): Whether a message spells a special token.
    """

    unchanged: str
    hostile: bool

    @cached_property
    def pieces(self) -> list[Piece]:
        """Which parts of the contents stand where: the words that are still there, in upper or lower case."""
        pieces = []
        for before, after, length in _same_text(self.unchanged, self.text):
            by = after - before
            for message, start, end, origin in self.placed:
                first, last = max(start, before), min(end, before + length)
                if first < last:
                    pieces.append(Piece(message, first + by, last + by, origin + by))
        return pieces

    @property
    def spans(self) -> list[Span] | None:
        """
        Characters that a message may have written: all but the template's special tokens. `None` where no message
        spells such a token: if there is one more in the text, then nobody knows whose it is.
        """
        if not self.hostile:
            return None
        borders = [0, *(border for mark in self.marks for border in (mark.start, mark.end)), len(self.text)]
        return [Span(start, end) for start, end in zip(borders[::2], borders[1::2])]


def render(template: ChatTemplate, messages: Messages, slot: str | None = None) -> Rendering:
    """
    Render a conversation.

    Args:
        template (`ChatTemplate`): The template.
        messages (`list[dict]`): The messages.
        slot (`str`, *optional*): Where [BE] goes, in front of the messages.

    Raises:
        `ValueError`: if the template cannot render the conversation, has no place for [BE], changes the kept text, or
            changes the text with the contents so that its special tokens cannot be told from those that a message
            spells.
    """
    conversation = _Conversation(template, messages, slot == "system")
    expected = None
    with contextlib.suppress(UnknownContents):
        skeleton = template.skeleton(conversation.roles, "system" if slot == "system" else None)
        expected = skeleton.fill(conversation.messages)
    try:
        own, failure = conversation.own_text(), None
    except ValueError as error:
        own, failure = None, error
    if expected is not None and own == expected.text:
        rendering = expected
    else:
        rendering = _changed(conversation, own, failure, expected)
        if slot == "system" and {mark.output for mark in rendering.marks}.isdisjoint(template.be_token_ids):
            without = ", without kept text" if template.after_be else ""
            raise ValueError(f"The chat template leaves [BE] out of this conversation: use slot='prefix'{without}.")
        if slot == "system" and template.after_be.rstrip() not in rendering.text:
            raise ValueError("The chat template changes the kept text, which is to be exact: keep other text.")
    if slot != "prefix":
        return rendering
    if isinstance(rendering, ChangedRendering):
        return _with_prefix(template, conversation.roles, rendering)
    return template.skeleton(conversation.roles, "prefix").fill(conversation.messages)


def generation_prompt(template: ChatTemplate, messages: Messages, slot: str | None = None) -> str:
    """What the template writes after a conversation for the model to go on with; arguments as in [`render`]."""
    conversation = _Conversation(template, messages, slot == "system")
    closed, opened = (template.apply(conversation.asked, generation=generation) for generation in (False, True))
    return opened[len(os.path.commonprefix([closed, opened])) :]


def _changed(
    conversation: _Conversation, own: str | None, failure: ValueError | None, expected: Rendering | None
) -> Rendering:
    """The rendering where `own`, which the template writes, or the `failure` of it is not what is `expected`."""
    encoder = conversation.template.encoder
    hostile = any(encoder.spells_guarded(message["content"]) for message in conversation.messages)
    if failure is not None and not hostile:
        raise failure
    text, marks = conversation.marked_text()
    if hostile:
        # The engine would read special tokens here that the message spells: there is no text to compare with
        if expected is not None and text == expected.text:
            return expected
        if not conversation.marks_all():
            raise ValueError(UNTOLD + "take the special token out of the message.")
    elif text != own:
        raise ValueError(UNTOLD + "use another template, or leave out of the messages what it looks for.")
    if expected is None:
        expected = _joined(conversation.messages)
    return ChangedRendering(text, marks, expected.placed, expected.text, hostile)


class _Conversation:
    """
    Messages, and what a template writes for them.

    [BE] is written as characters of private use that no message has, and a copy of the template writes such characters
    around each special token that it spells: what stands between them is from the template.

    Args:
        template (`ChatTemplate`): The template.
        messages (`list[dict]`): The messages.
        with_be (`bool`): Whether [BE] is the system message in front of them.
    """

    def __init__(self, template: ChatTemplate, messages: Messages, with_be: bool) -> None:
        self.template = template
        self.messages = [{**message, "content": well_formed(message["content"])} for message in messages]
        self.roles = roles_of(messages)
        self._row_ids = template.be_token_ids if with_be else []

    def own_text(self) -> str:
        """What the template itself writes, with [BE] as its stand-in."""
        text = self.template.apply(self.asked)
        for character, (spelling, _) in self._rows.items():
            text = text.replace(character, spelling)
        return text

    def marked_text(self) -> tuple[str, list[Mark]]:
        """What the copy writes: the text, and the guarded tokens in it that are the template's own."""
        opening, closing = self._characters[:2]
        ids = self.template.spellings
        token = "|".join(map(re.escape, ids)) or "(?!)"
        source = re.sub(f"({token})", rf"{opening}\1{closing}", self.template.source)
        named: dict[str, Any] = {
            n: f"{opening}{t}{closing}" for n, t in self.template.named_tokens.items() if t in ids
        }
        found = self.template.apply(self.asked, source=source, **named)

        pieces, marks, length = [], [], 0
        between = f"[^{''.join(self._characters)}]+|."
        for match in re.finditer(f"{opening}(?P<token>{token}){closing}|(?P<text>{between})", found, re.DOTALL):
            piece, output = match["token"] or match["text"], None
            if match["token"]:
                output = ids[piece]
                self.template.check_not_reserved([output])
            elif piece in self._rows:
                piece, output = self._rows[piece]
            elif piece in (opening, closing):  # of a token of which the template has made something else
                continue
            if output is not None:
                token_id = self.template.tokenizer.convert_tokens_to_ids(piece)
                marks.append(Mark(token_id, length, length + len(piece), output))
            pieces.append(piece)
            length += len(piece)
        return "".join(pieces), marks

    def marks_all(self) -> bool:
        """Whether the copy knows all special tokens of the template: it may put some together from pieces."""
        plain = _Conversation(self.template, [{**m, "content": "x"} for m in self.messages], bool(self._row_ids))
        text, marks = plain.marked_text()
        found = [token.place for token in self.template.encoder.tokenize(text) if token.guarded]
        return text == plain.own_text() and found == [mark.place for mark in marks]

    @cached_property
    def asked(self) -> Messages:
        """The messages that the template gets."""
        content = "".join(self._rows) + self.template.after_be
        be = [{"role": "system", "content": content}] if self._rows else []
        return self.template.arrange([*be, *self.messages])

    @cached_property
    def _rows(self) -> dict[str, tuple[str, int]]:
        """The characters for the rows of [BE], what stands in for them in a text, and their ids."""
        rows = ((self.template.encoder.stand_in(row), row) for row in self._row_ids)
        return dict(zip(self._characters[2:], rows))

    @cached_property
    def _characters(self) -> list[str]:
        """One in front of special tokens, one after them, and one for each row of [BE]."""
        used = set(self.template.after_be).union(*(message["content"] for message in self.messages))
        unused = (chr(code) for code in _PRIVATE_USE if chr(code) not in used)
        return list(itertools.islice(unused, 2 + len(self._row_ids)))


def _with_prefix(template: ChatTemplate, roles: tuple[str, ...], rendering: ChangedRendering) -> Rendering:
    """A changed rendering without [BE], with [BE] in front of the user's turn instead of any system turn."""
    plain, prefix = template.skeleton(roles), template.skeleton(roles, "prefix")
    head, opening = plain.segments[0], prefix.segments[0]
    if not rendering.text.startswith(head):
        raise ValueError("The chat template changes what stands in front of the user's turn: use slot='system'.")
    by = len(opening) - len(head)
    marks = prefix.marks[0] + [shift(mark, by) for mark in rendering.marks if mark.start >= len(head)]
    return replace(rendering, text=opening + rendering.text[len(head) :], marks=marks)


def _joined(messages: Messages) -> Rendering:
    """The contents one after the other, to look for them in a text."""
    texts, placed, length = [], [], 0
    for number, message in enumerate(messages):
        placed.append(Piece(number, length, length + len(message["content"]), length))
        texts.append(message["content"])
        length += len(message["content"]) + 1
    return Rendering("\n".join(texts), [], placed)


def _same_text(first: str, second: str) -> Iterator[tuple[int, int, int]]:
    """Where two texts are the same but for upper and lower case: start in the first, start in the second, length."""
    head = len(os.path.commonprefix([first, second]))
    tail = len(os.path.commonprefix([first[head:][::-1], second[head:][::-1]]))
    yield 0, 0, head
    words = [list(_WORD.finditer(text, head, len(text) - tail)) for text in (first, second)]
    spelled = [[word[0].lower() for word in found] for found in words]
    matcher = difflib.SequenceMatcher(None, spelled[0], spelled[1], autojunk=len(spelled[1]) > _MANY_WORDS)
    for a, b, size in matcher.get_matching_blocks():
        pairs = zip(words[0][a : a + size], words[1][b : b + size])
        alike = ((one, other) for one, other in pairs if len(one[0]) == len(other[0]))
        for by, run in itertools.groupby(alike, key=lambda pair: pair[1].start() - pair[0].start()):
            same = [one for one, _ in run]
            yield same[0].start(), same[0].start() + by, same[-1].end() - same[0].start()
    yield len(first) - tail, len(second) - tail, tail
