"""
Chat messages to token ids: the one place that knows chat templates and where [BE] stands in them.

A template is never shown a real text. It renders placeholders once per conversation shape, which splits its output
into the template's own text and slots for the contents; a rendering is that *skeleton* with the contents put in,
tokenised in one call. So no content can change what the template writes, and the position of each token tells whether
the template or a content wrote it.
"""

from __future__ import annotations

import bisect
import datetime
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from jinja2.exceptions import TemplateError

from .chat_inputs import ChatInputs
from .fingerprints import check_adapter_prompt
from .messages import check_prompt, check_query


# Placeholders are private-use characters. The padding around them shows how a template strips a content: em spaces go
# with `trim` only, the outer newlines also with `lstrip("\n")`.
_PLACEHOLDER = re.compile("\ue000(\\d+)\ue001")
_LEFT_PAD, _RIGHT_PAD = "\n\u2003", "\u2002\n"
_BOS_MARK = "\ue002"

# Templates that print today's date get this one, Llama 3's own default, so that ids do not change over night. As
# functions cannot be passed to a template, a macro of the same name takes the place of transformers' `strftime_now`.
_DATE = datetime.datetime(2024, 7, 26)
_DATE_MACRO = "".join(
    ["{% macro strftime_now(format) %}{{ format"]
    + [f" | replace('%{letter}', '{_DATE.strftime('%' + letter)}')" for letter in "YymdBbAajHIMSp"]
    + [" }}{% endmacro %}\n"]
)

Messages = list[dict[str, str]]


class _Token(NamedTuple):
    id: int
    start: int  # characters of the rendered text; of its spelling only if guarded
    end: int
    guarded: bool  # a token that no content may produce


class _Mark(NamedTuple):
    """A guarded token that the template writes, or a stand-in for one [BE] row."""

    id: int
    start: int
    end: int
    output: int  # the id it has in the rendering


class _Slot(NamedTuple):
    content: int  # which message's content goes here
    left: str | None  # argument of `str.lstrip` for it
    right: str | None


@dataclass(frozen=True)
class _Skeleton:
    segments: list[str]  # the template's text around and between the slots
    marks: list[list[_Mark]]  # guarded tokens of each segment
    slots: list[_Slot]


class PromptRenderer(ChatInputs):
    """
    Renders a query in the three forms that the method compares: after the full prompt P, after [BE] in its place, and
    with no prompt at all. All forms end in the template's generation prompt.

    For ordinary text `full` and `no_prompt` give the ids of `tokenizer.apply_chat_template(messages,
    add_generation_prompt=True)`, and `be` gives the ids that this call would give if [BE] were a special token spelled
    out in the conversation. Text that spells a special token, [BE] or [AE] stays text: no content can produce the ids
    of special tokens, of [BE] or of [AE].

    Args:
        tokenizer (`PreTrainedTokenizerFast`):
            A fast tokenizer with a chat template.
        prompt (`str` or `list[dict]`, *optional*):
            P: a system text, or the chat messages in front of the user's turn. `None` if P is unknown, as in a chat
            with a finished adapter.
        be_token_ids (`Sequence[int]`, *optional*, defaults to `()`):
            The k ids of [BE], in order.
        ae_token_id (`int`, *optional*):
            The id of [AE], which contents must not produce either.
        slot (`str`, *optional*, defaults to `"system"`):
            Where [BE] goes: `"system"` is the content of the template's system turn, `"prefix"` the paper's `[BE] q`:
            the template's BOS if it writes one, [BE], and the conversation without any system turn.
        chat_template_kwargs (`dict`, *optional*):
            Further variables for the template, such as `enable_thinking` or `date_string`. Templates that print the
            current date get 26 July 2024 otherwise, so that the same input gives the same ids on every day.

    Raises:
        `ValueError`: if the tokenizer is not fast or has no chat template, if `prompt` or `slot` is invalid, or if the
        template writes one of the reserved ids itself.
    """

    def __init__(
        self,
        tokenizer,
        prompt: str | Messages | None = None,
        *,
        be_token_ids: Sequence[int] = (),
        ae_token_id: int | None = None,
        slot: str = "system",
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"{type(tokenizer).__name__} is not a fast tokenizer, and only fast ones tell which text a token comes"
                " from: load it with AutoTokenizer.from_pretrained(..., use_fast=True)."
            )
        if not tokenizer.chat_template:
            raise ValueError(
                "The tokenizer has no chat template, as base models often do: use the instruction-tuned model, or set "
                "tokenizer.chat_template to the template the model is to be used with."
            )
        if slot not in ("system", "prefix"):
            raise ValueError(f"slot must be 'system' or 'prefix', not {slot!r}.")
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.be_token_ids = [int(token_id) for token_id in be_token_ids]
        self.slot = slot
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        self._prompt_messages = None if prompt is None else check_prompt(prompt)
        self._template = tokenizer.get_chat_template(tools=self.chat_template_kwargs.get("tools"))
        if "strftime_now" in self._template:
            self._template = _DATE_MACRO + self._template
        self._skeletons: dict[tuple, _Skeleton] = {}
        self._head: tuple[str, list[_Token]] | None = None  # the part of the full rendering before the query

        self._added = tokenizer.added_tokens_decoder
        self._reserved = {*self.be_token_ids, *([] if ae_token_id is None else [int(ae_token_id)])}
        guarded = {token_id for token_id, token in self._added.items() if token.special}
        self._guarded = guarded | set(tokenizer.all_special_ids) | self._reserved
        self._guarded |= self._turn_markers()

    @classmethod
    def for_adapter(
        cls, config, tokenizer, prompt=None, chat_template_kwargs=None, allow_other_prompt=False
    ) -> PromptRenderer:
        """
        The renderer of an adapter: with its ids, in its slot.

        Args:
            config (`BETokenConfig`): The adapter's configuration, for instance `model.peft_config["default"]`.
            tokenizer, prompt, chat_template_kwargs: As in the constructor.
            allow_other_prompt (`bool`, *optional*, defaults to `False`):
                Accept another prompt than the one that the adapter was trained on.

        Raises:
            `ValueError`: as in the constructor, or if the adapter was trained on another prompt.
        """
        check_adapter_prompt(config, prompt, allow_other_prompt)
        return cls(
            tokenizer,
            prompt,
            be_token_ids=config.be_token_ids,
            ae_token_id=config.ae_token_id,
            slot=config.slot,
            chat_template_kwargs=chat_template_kwargs,
        )

    def full(self, query: str | Messages) -> list[int]:
        """
        Ids of the query after the full prompt P: the teacher's input.

        Args:
            query (`str` or `list[dict]`): The user's turn, or user and assistant messages that end in it.

        Raises:
            `ValueError`: if there is no P or the query is not such a query.
        """
        return [token.id for token in self._encode_full(query)[0]]

    def be(self, query: str | Messages) -> list[int]:
        """
        Ids of the query with [BE] in the place of P: the student's input.

        Args:
            query (`str` or `list[dict]`): The user's turn, or user and assistant messages that end in it.

        Raises:
            `ValueError`: if the renderer has no `be_token_ids`, the query is not such a query, or the template has no
            place for the slot.
        """
        if not self.be_token_ids:
            raise ValueError("This renderer has no [BE]: pass be_token_ids.")
        messages = check_query(query)
        skeleton = self._skeleton(_roles(messages), self.slot)
        return [token.id for token in self._encode(*self._fill(skeleton, messages))]

    def no_prompt(self, query: str | Messages) -> list[int]:
        """
        Ids of the query alone: what a user without a prompt gets, with the template's default system turn if it has
        one.

        Args:
            query (`str` or `list[dict]`): The user's turn, or user and assistant messages that end in it.

        Raises:
            `ValueError`: if the query is not such a query.
        """
        messages = check_query(query)
        skeleton = self._skeleton(_roles(messages))
        return [token.id for token in self._encode(*self._fill(skeleton, messages))]

    def answer(self, text: str) -> list[int]:
        """
        Ids of a text behind any of the renderings: an answer, or its start. Like contents, it cannot become a special
        token, [BE] or [AE].

        Args:
            text (`str`): What the assistant says.
        """
        opening, text = self._separator, _well_formed(text)
        mark = _Mark(token_id := self.tokenizer.convert_tokens_to_ids(opening), 0, len(opening), token_id)
        tokens = self._encode(opening + text, [mark], [(len(opening), len(opening) + len(text))])
        return [token.id for token in tokens[next(i for i, token in enumerate(tokens) if token.guarded) + 1 :]]

    @cached_property
    def prompt_ids(self) -> list[int]:
        """
        Ids of P as it stands in the full rendering, from the start of its first content to the end of its last: what
        Eq. 2 reconstructs. A token that P shares with the template's text belongs to P.
        """
        tokens, spans = self._encode_full("x")
        start, end = min(span[0] for span in spans), max(span[1] for span in spans)
        first = next(i for i, token in enumerate(tokens) if token.end > start)
        last = next(i for i in reversed(range(len(tokens))) if tokens[i].start < end)
        return [token.id for token in tokens[first : last + 1]]

    def prompt_spans(self, query: str | Messages) -> list[tuple[int, int, int] | None]:
        """
        What of P each id of `full(query)` stands for: the number of the message and the characters `[start, end)` of its
        content, or `None` for the template's text and the query. Tokens may share a character.

        Args:
            query (`str` or `list[dict]`): The user's turn, or user and assistant messages that end in it.

        Raises:
            `ValueError`: if there is no P or the query is not such a query.
        """
        tokens, spans = self._encode_full(query)
        slots = self._skeleton(_roles(self._prompt_messages + check_query(query))).slots
        contents = []  # (message, start and end in the rendered text, where the message's own characters count from)
        for slot, (start, end) in zip(
            (s for s in slots if s.content < len(self._prompt_messages)), spans, strict=True
        ):
            text = _well_formed(self._prompt_messages[slot.content]["content"])
            contents.append((slot.content, start, end, start - (len(text) - len(text.lstrip(slot.left)))))
        return [
            next(
                (
                    (message, max(token.start, start) - origin, min(token.end, end) - origin)
                    for message, start, end, origin in contents
                    if token.start < end and token.end > start
                ),
                None,
            )
            for token in tokens
        ]

    def _encode_full(self, query: str | Messages) -> tuple[list[_Token], list[tuple[int, int]]]:
        """The tokens of the full rendering, and the characters of each content of P in it."""
        if self._prompt_messages is None:
            raise ValueError("This renderer has no prompt: pass the prompt to render it in full.")
        messages = self._prompt_messages + check_query(query)
        skeleton = self._skeleton(_roles(messages))
        text, marks, spans = self._fill(skeleton, messages)
        of_prompt = [slot.content < len(self._prompt_messages) for slot in skeleton.slots]
        prompt_spans = list(itertools.compress(spans, of_prompt))

        # P is long and the same every time: it is tokenised once, up to the last special token before the query.
        # Special tokens split a text before anything else happens to it, so from that token on the ids are the same.
        query_start = min(span[0] for span, prompt in zip(spans, of_prompt, strict=True) if not prompt)
        border = next((mark for mark in reversed(marks) if mark.end <= query_start), None)
        if border is None:
            return self._encode(text, marks, spans), prompt_spans
        head = text[: border.end]
        if self._head is None or self._head[0] != head:
            head_marks = [mark for mark in marks if mark.end <= border.end]
            head_spans = [span for span in spans if span[1] <= border.end]
            self._head = head, self._encode(head, head_marks, head_spans)
        tail_marks = [_shift(mark, -border.start) for mark in marks if mark.start >= border.start]
        tail_spans = [(start - border.start, end - border.start) for start, end in spans if start >= border.end]
        tail = self._encode(text[border.start :], tail_marks, tail_spans)
        return self._head[1][:-1] + [_shift(token, border.start) for token in tail], prompt_spans

    # Template -> skeleton

    def _apply_template(self, messages: Messages, generation: bool = True, **kwargs) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                messages,
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=generation,
                **{**kwargs, **self.chat_template_kwargs},
            )
        except TemplateError as error:
            roles = ", ".join(_roles(messages))
            raise ValueError(f"The chat template cannot render a conversation of {roles}: {error}") from error

    def _segments(self, roles: tuple[str, ...], pads: tuple[str, str] = ("", ""), **kwargs) -> list[str]:
        """Template text and content numbers in turns: `[text, 0, text, 1, ..., text]` for contents in order."""
        contents = [f"{pads[0]}\ue000{number}\ue001{pads[1]}" for number in range(len(roles))]
        messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
        if roles[0] == "system" and not self._has_system_role and "user" in roles:
            # As Gemma 3's template does it.
            first_user = roles.index("user")
            messages[first_user]["content"] = contents[0] + "\n\n" + contents[first_user]
            messages = messages[1:]
        return _PLACEHOLDER.split(self._apply_template(messages, **kwargs))

    @cached_property
    def _has_system_role(self) -> bool:
        probe = [{"role": "system", "content": "\ue0000\ue001"}, {"role": "user", "content": "\ue0001\ue001"}]
        try:
            return "\ue0000\ue001" in self._apply_template(probe)
        except ValueError:
            return False

    def _skeleton(self, roles: tuple[str, ...], slot: str | None = None) -> _Skeleton:
        """The skeleton for contents of these roles, with [BE] at `slot` in front of them if given."""
        if (roles, slot) not in self._skeletons:
            self._skeletons[roles, slot] = self._make_skeleton(roles, slot)
        return self._skeletons[roles, slot]

    def _make_skeleton(self, roles: tuple[str, ...], slot: str | None) -> _Skeleton:
        shape = ("system", *roles) if slot == "system" else roles
        parts = self._segments(shape)
        segments, contents = parts[::2], [int(number) for number in parts[1::2]]
        missing = set(range(len(shape))) - set(contents)
        if missing:
            raise ValueError(
                f"The chat template does not show the text of {shape[min(missing)]} messages as it is, so it cannot be"
                " used here: set tokenizer.chat_template to one that does."
            )
        strips = self._strips(shape, segments)
        slots = [_Slot(content, *strip) for content, strip in zip(contents, strips, strict=True)]

        # [BE] becomes a part of the template's text: one special token for each of its rows.
        stand_ins = [self._stand_in(token_id) for token_id in self.be_token_ids] if slot else []
        be = "".join(stand_ins)
        be_at = []  # (segment, character) of each time [BE] stands in the text
        if slot == "system":
            while 0 in contents:
                i = contents.index(0)
                be_at.append((i, len(segments[i])))
                segments[i : i + 2] = [segments[i] + be + segments[i + 1]]
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
        marks = []
        for i, segment in enumerate(segments):
            tokens = [token for token in self._tokenize(segment) if token.guarded]
            if any(token.id in self._reserved and (i, token.start) not in outputs for token in tokens):
                raise ValueError("The chat template itself writes an id reserved for [BE] or [AE]: choose other ids.")
            marks.append([_Mark(*token[:3], outputs.pop((i, token.start), token.id)) for token in tokens])
        if outputs:
            raise ValueError("The tokenizer does not keep the special token that stands for [BE] apart from the text.")
        return _Skeleton(segments, marks, slots)

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
                raise ValueError("The chat template changes the white space of a content in an unknown way.")
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
        # A BOS token may be spelled in turns too (SmolLM2's is <|im_start|>): a mark shows what is written as BOS.
        mark = {"bos_token": _BOS_MARK} if self.tokenizer.bos_token else {}
        head = self._segments(("user",), **mark)[0]
        system_head = self._segments(("system", "user"), **mark)[0]
        between = self._segments(("user", "assistant", "user"), generation=False, **mark)[4]
        closing = self._segments(("user", "assistant"), generation=False, **mark)[4]
        same = _common_prefix(self._units(between), self._units(closing))
        header = between[len(same) :].removeprefix(_BOS_MARK)
        if (closing and not same) or not head.endswith(header):
            raise ValueError("Cannot tell where a user's turn starts in this chat template: use slot='system'.")
        opening = head[: len(head) - len(header)]
        if not system_head.startswith(opening):  # the default system turn follows BOS
            opening = _BOS_MARK if opening.startswith(_BOS_MARK) else ""
        bos = self.tokenizer.bos_token or ""
        return opening.replace(_BOS_MARK, bos), header.replace(_BOS_MARK, bos)

    def _units(self, text: str) -> list[str]:
        """The text as special tokens and single characters."""
        spellings = sorted((self._added[i].content for i in self._guarded if i in self._added), key=len, reverse=True)
        return re.findall("|".join([*map(re.escape, spellings), "."]), text, flags=re.DOTALL)

    def _turn_markers(self) -> set[int]:
        """Added tokens that open or close turns though they are not flagged as special (DeepSeek's <｜User｜>)."""
        try:
            parts = self._segments(("user", "assistant", "user"), generation=False)
        except ValueError:  # a template for a single turn
            return set()
        written = [[token.id for token in self._tokenize(text) if token.id in self._added] for text in parts[::2]]
        # After the marker of its turn an assistant's header may hold ordinary tags such as <think>.
        return {token_id for i, ids in enumerate(written[:3]) for token_id in (ids[:1] if i == 1 else ids)}

    def _stand_in(self, token_id: int) -> str:
        """A special token's spelling for a row of [BE]: its own if it has one."""
        token = self._added.get(token_id)
        return token.content if token is not None and token.special else self._separator

    @cached_property
    def _separator(self) -> str:
        """A special token that is found wherever it is spelled and leaves its surroundings alone."""
        for token in self._added.values():
            if token.special and not (token.lstrip or token.rstrip or token.normalized or token.single_word):
                return token.content
        raise ValueError("The tokenizer has no special token to mark the place of [BE] with: add one, such as an EOS.")

    # Skeleton and contents -> ids

    def _fill(self, skeleton: _Skeleton, messages: Messages) -> tuple[str, list[_Mark], list[tuple[int, int]]]:
        """The rendered text, the guarded tokens it is to have, and the characters of each slot's content."""
        pieces, marks, spans, length = [], [], [], 0
        for segment, found, slot in itertools.zip_longest(skeleton.segments, skeleton.marks, skeleton.slots):
            marks += [_shift(mark, length) for mark in found]
            pieces.append(segment)
            length += len(segment)
            if slot is not None:
                content = _well_formed(messages[slot.content]["content"]).lstrip(slot.left).rstrip(slot.right)
                spans.append((length, length + len(content)))
                pieces.append(content)
                length += len(content)
        return "".join(pieces), marks, spans

    def _encode(self, text: str, marks: list[_Mark], spans: list[tuple[int, int]]) -> list[_Token]:
        tokens = self._tokenize(text)
        if not _as_marked(tokens, marks):
            tokens = self._encode_hostile(text, marks, spans)
        outputs = {mark.start: mark.output for mark in marks}
        return [token._replace(id=outputs[token.start]) if token.guarded else token for token in tokens]

    def _encode_hostile(self, text: str, marks: list[_Mark], spans: list[tuple[int, int]]) -> list[_Token]:
        """
        Tokenise a text whose contents spell guarded tokens, as text.

        The usual case takes one round with the parsing of special tokens switched off. Guarded tokens that come out
        nevertheless (a reserved id may be a piece of ordinary vocabulary) are cut in two until none is left.
        """
        cuts: set[tuple[int, int]] = set()  # characters to leave out, mostly none: then the text is only split there
        while True:
            tokens = self._tokenize_apart(text, marks, cuts) if self._splits_alike else self._tokenize_cut(text, cuts)
            if _as_marked(tokens, marks):
                return tokens
            written = {mark[:3] for mark in marks}
            before = len(cuts)
            for token in tokens:
                if token.guarded and token[:3] not in written:
                    cuts |= _cuts(token, spans)
            if len(cuts) == before:
                raise ValueError("A message holds text that cannot be told from the chat template's special tokens.")

    def _tokenize(self, text: str, split_special_tokens: bool = False) -> list[_Token]:
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
            guarded = token_id in self._guarded
            if guarded:
                spelling = self._added[token_id].content if token_id in self._added else ""
                at = text.find(spelling, start, end) if spelling else -1
                if at >= 0:  # without the white space that the token takes with it
                    start, end = at, at + len(spelling)
                elif token_id == unk_token_id and token_id not in self._reserved:
                    guarded = False  # an unknown character, not a spelled-out <unk>
            tokens.append(_Token(token_id, start, end, guarded))
        return tokens

    @cached_property
    def _splits_alike(self) -> bool:
        """Whether text after a special token is tokenised as it is alone: not if only the very first gets a space."""
        ids = [token.id for token in self._tokenize(f"x{self._separator}x")]
        alone = [token.id for token in self._tokenize("x")]
        return ids == [*alone, *(token.id for token in self._tokenize(self._separator)), *alone]

    def _tokenize_apart(self, text: str, marks: list[_Mark], cuts: set[tuple[int, int]]) -> list[_Token]:
        """Tokenise the texts between marks and cuts one by one, with special tokens in them as text."""
        borders: list[tuple[int, int, _Mark | None]] = [(start, end, None) for start, end in cuts]
        for mark in marks:
            start, end, flags = mark.start, mark.end, self._added.get(mark.id)
            if flags is not None and flags.lstrip:
                start = len(text[:start].rstrip())
            if flags is not None and flags.rstrip:
                end = len(text) - len(text[end:].lstrip())
            borders.append((start, end, mark))
        tokens, position = [], 0
        for start, end, mark in sorted(borders, key=lambda border: border[:2]) + [(len(text), len(text), None)]:
            if position < start:
                piece = self._tokenize(text[position:start], split_special_tokens=True)
                tokens += [_shift(token, position) for token in piece]
            if mark is not None:
                tokens.append(_Token(*mark[:3], True))
            position = max(position, end)
        return tokens

    def _tokenize_cut(self, text: str, cuts: set[tuple[int, int]]) -> list[_Token]:
        """Tokenise the text in one call with a special token at each cut, and leave those tokens out again."""
        pieces, position, length = [], 0, 0
        starts, shifts = [0], [0]  # where each piece starts in the longer text, and how far that is off
        separators = set()
        for start, end in sorted(cuts):
            piece = text[position:start] if position < start else ""
            pieces += [piece, self._separator]
            separators.add(length + len(piece))
            length += len(piece) + len(self._separator)
            position = max(position, end)
            starts.append(length)
            shifts.append(position - length)
        longer = "".join([*pieces, text[position:]])
        return [
            _shift(token, shifts[bisect.bisect_right(starts, token.start) - 1])
            for token in self._tokenize(longer)
            if not (token.guarded and token.start in separators)
        ]


def _roles(messages: Messages) -> tuple[str, ...]:
    return tuple(message["role"] for message in messages)


def _well_formed(text: str) -> str:
    """The text without lone surrogates, which no tokenizer takes and which JSON files can hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _common_prefix(first: list[str], second: list[str]) -> str:
    pairs = zip(first, second, strict=False)
    return "".join(unit for unit, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _shift(token, by: int):
    return token._replace(start=token.start + by, end=token.end + by)


def _as_marked(tokens: list[_Token], marks: list[_Mark]) -> bool:
    """Whether the guarded tokens are those that the template writes, each where it writes it."""
    return [token[:3] for token in tokens if token.guarded] == [mark[:3] for mark in marks]


def _cuts(token: _Token, spans: list[tuple[int, int]]) -> set[tuple[int, int]]:
    """Where to cut a guarded token apart: in its middle, as far as that belongs to a content."""
    inside = [
        position
        for start, end in spans
        for position in range(max(start, token.start + 1), min(end, token.end - 1) + 1)
    ]
    if inside:
        middle = (token.start + token.end) / 2
        cut = min(inside, key=lambda position: abs(position - middle))
        return {(cut, cut)}
    # A single character that is a guarded token by itself has no spelling as text: it is left out.
    shared = [(max(start, token.start), min(end, token.end)) for start, end in spans]
    return {(start, end) for start, end in shared if start < end}
