"""
Chat messages to token ids: the one place that knows where P, [BE] and a query stand.

A rendering is the text that the template itself writes, tokenised in one call, and the places of the special tokens
that are the template's own. So the position of each token tells whether the template or a content wrote it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from .chat_inputs import ChatInputs
from .encoding import GuardedTokenizer, Token, shift
from .fingerprints import check_adapter_prompt
from .messages import check_prompt, check_query
from .rendering import ChangedRendering, generation_prompt, render
from .skeleton import ChatTemplate, Messages, Piece, Rendering


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
        kept_text (`str`, *optional*):
            What of P stays text: it follows [BE] in the system turn, on a line of its own. For slot `"system"` only.

    Raises:
        `ValueError`: if the tokenizer is not fast or has no chat template, if `prompt` or `slot` is invalid, if the
            template writes one of the reserved ids itself, or if the kept text spells a special token.
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
        kept_text: str | None = None,
    ) -> None:
        _check_tokenizer(tokenizer)
        if slot not in ("system", "prefix"):
            raise ValueError(f"slot must be 'system' or 'prefix', not {slot!r}.")
        if kept_text is not None and slot != "system":
            raise ValueError("Kept text stands in the system turn, after [BE]: it needs slot='system'.")
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.be_token_ids = [int(token_id) for token_id in be_token_ids]
        self.slot = slot
        self.kept_text = kept_text
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        self._prompt_messages = [] if prompt is None else check_prompt(prompt)
        reserved = {*self.be_token_ids, *([] if ae_token_id is None else [int(ae_token_id)])}
        self._encoder = GuardedTokenizer(tokenizer, reserved)
        self._template = ChatTemplate(self._encoder, self.be_token_ids, self.chat_template_kwargs, kept_text)
        self._compared = False  # the ends of the full rendering and of the rendering with [BE]
        # Of the full rendering: what stands before the query, with its tokens, and the last one that the template
        # changed
        self._head: tuple[str, list[Token]] | None = None
        self._last_text = ""

    @classmethod
    def for_adapter(
        cls, config, tokenizer, prompt=None, chat_template_kwargs=None, allow_other_prompt=False
    ) -> PromptRenderer:
        """
        The renderer of an adapter: with its ids, in its slot, and with its kept text.

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
            kept_text=config.kept_text,
        )

    def full(self, query: str | Messages) -> list[int]:
        """
        Ids of the query after the full prompt P: the teacher's input.

        Args:
            query (`str` or `list[dict]`): The user's turn, or user and assistant messages that end in it.

        Raises:
            `ValueError`: if there is no P or the query is not such a query.
        """
        return [token.id for token in self._encode_with_head(self._render_full(query))]

    def be(self, query: str | Messages) -> list[int]:
        """
        Ids of the query with [BE] instead of P: the student's input.

        Args:
            query (`str` or `list[dict]`): The user's turn, or user and assistant messages that end in it.

        Raises:
            `ValueError`: if the renderer has no `be_token_ids`, the query is not such a query, or the template has no
                place for the slot.
        """
        if not self.be_token_ids:
            raise ValueError("This renderer has no [BE]: pass be_token_ids.")
        messages = check_query(query)
        rendering = render(self._template, messages, self.slot)
        if self.prompt is not None and not self._compared:
            self._compared = True
            self._warn_of_switch(messages)
        return self._ids(rendering)

    def no_prompt(self, query: str | Messages) -> list[int]:
        """
        Ids of the query alone: what a user without a prompt gets, with the template's default system turn if it has
        one.

        Args:
            query (`str` or `list[dict]`): The user's turn, or user and assistant messages that end in it.

        Raises:
            `ValueError`: if the query is not such a query.
        """
        return self._ids(render(self._template, check_query(query)))

    def answer(self, text: str) -> list[int]:
        """
        Ids of a text after any of the renderings: an answer, or its start. Like contents, it cannot become a special
        token, [BE] or [AE].

        Args:
            text (`str`): What the assistant says.
        """
        return self._encoder.answer(text)

    @cached_property
    def kept_ids(self) -> list[int]:
        """Ids of what follows [BE] in the system turn: the kept text and the line break before it. Empty without one."""
        return self.answer(self._template.after_be) if self._template.after_be else []

    @cached_property
    def prompt_ids(self) -> list[int]:
        """
        Ids of P as it stands in the full rendering, from the start of its first content to the end of its last: what
        Eq. 2 reconstructs. A token that P shares with the template's text belongs to P.
        """
        tokens, pieces = self._encode_full("x")
        if not pieces:
            raise ValueError("The chat template shows nothing of the prompt: write more than what it looks for.")
        start, end = min(piece.start for piece in pieces), max(piece.end for piece in pieces)
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
        tokens, pieces = self._encode_full(query)
        return [
            next(
                (
                    (message, max(token.start, start) - origin, min(token.end, end) - origin)
                    for message, start, end, origin in pieces
                    if token.start < end and token.end > start
                ),
                None,
            )
            for token in tokens
        ]

    def _ids(self, rendering: Rendering) -> list[int]:
        return [token.id for token in self._encoder.encode(rendering.text, rendering.marks, rendering.spans)]

    def _render_full(self, query: str | Messages) -> Rendering:
        if self.prompt is None:
            raise ValueError("This renderer has no prompt: pass the prompt to render it in full.")
        return render(self._template, self._prompt_messages + check_query(query))

    def _encode_full(self, query: str | Messages) -> tuple[list[Token], list[Piece]]:
        """The tokens of the full rendering, and where the contents of P stand in it."""
        rendering = self._render_full(query)
        pieces = [piece for piece in rendering.pieces if piece.message < len(self._prompt_messages)]
        return self._encode_with_head(rendering), pieces

    def _encode_with_head(self, rendering: Rendering) -> list[Token]:
        """
        The tokens of a full rendering. P is long and the same every time: it is tokenised once, up to the last special
        token before the query. Special tokens split a text before anything else happens to it, so from that token on
        the ids are the same.
        """
        text, marks, spans = rendering.text, rendering.marks, rendering.spans
        if self._head is None or not text.startswith(self._head[0]):
            known = self._start_of_query(rendering)
            border = next((mark for mark in reversed(marks) if mark.end <= known), None)
            if border is None:
                return self._encoder.encode(text, marks, spans)
            head_marks = [mark for mark in marks if mark.end <= border.end]
            head_spans = spans and [span for span in spans if span.end <= border.end]
            head = text[: border.end]
            self._head = head, self._encoder.encode(head, head_marks, head_spans)
        head, head_tokens = self._head
        last = head_tokens[-1]
        tail_marks = [shift(mark, -last.start) for mark in marks if mark.start >= last.start]
        tail_spans = spans and [shift(span, -last.start) for span in spans if span.start >= last.end]
        tail = self._encoder.encode(text[last.start :], tail_marks, tail_spans)
        return head_tokens[:-1] + [shift(token, last.start) for token in tail]

    def _start_of_query(self, rendering: Rendering) -> int:
        """A character of a full rendering up to which another query's is the same, as far as is known."""
        if not isinstance(rendering, ChangedRendering):
            return min(piece.start for piece in rendering.pieces if piece.message >= len(self._prompt_messages))
        shared, self._last_text = len(os.path.commonprefix([self._last_text, rendering.text])), rendering.text
        return shared

    def _warn_of_switch(self, query: Messages) -> None:
        """Warn of a prompt that makes the template end differently than with [BE] in its place."""
        full = generation_prompt(self._template, self._prompt_messages + query)
        be = generation_prompt(self._template, query, self.slot)
        if full != be:
            warnings.warn(
                f"The prompt switches the mode of the chat template: after the query it writes {full!r}, and {be!r} "
                "where [BE] stands for the prompt, as it will wherever [BE] is used. [BE] learns the answers of the "
                "prompt's mode; to have the template's usual mode for both, take the switch out of the prompt.",
                UserWarning,
                stacklevel=1,
            )


def _check_tokenizer(tokenizer) -> None:
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
