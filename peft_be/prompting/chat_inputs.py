"""[BE] for code that renders its chats with a tokenizer: inputs of `generate`, and a chat template."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jinja2.exceptions import TemplateError
from transformers import BatchEncoding, PreTrainedTokenizerBase

from .kept_text import with_kept_text
from .skeleton import ChatTemplate


class ChatInputs:
    """What a [`PromptRenderer`] has in common with a tokenizer."""

    # Of the renderer
    tokenizer: PreTrainedTokenizerBase
    be_token_ids: list[int]
    slot: str
    kept_text: str | None
    be: Callable[[str | list[dict[str, str]]], list[int]]
    _template: ChatTemplate

    def apply_chat_template(
        self,
        conversation: str | list,
        *,
        add_generation_prompt: bool = True,
        return_dict: bool = True,
        return_tensors: str | None = "pt",
    ) -> BatchEncoding | torch.Tensor | list:
        """
        The input of `generate` for a conversation after [BE], as the tokenizer's method of this name gives it without
        [BE].

        Args:
            conversation (`str` or `list`):
                A query, as for [`~PromptRenderer.be`], or a list of them, which are padded on the left.
            add_generation_prompt (`bool`, *optional*, defaults to `True`):
                The model is asked to answer; nothing else can be rendered.
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return `input_ids` and `attention_mask`, or the ids alone.
            return_tensors (`str`, *optional*, defaults to `"pt"`):
                As of a tokenizer; `None` gives lists.

        Raises:
            `ValueError`: as [`~PromptRenderer.be`] does, or without a generation prompt.

        Example:

            ```python
            >>> be = PromptRenderer.for_adapter(model.peft_config["default"], tokenizer)
            >>> output = model.generate(**be.apply_chat_template([{"role": "user", "content": "Who are you?"}]))
            ```
        """
        if not add_generation_prompt:
            raise ValueError("[BE] is for answers: leave add_generation_prompt=True.")
        is_batch = isinstance(conversation, list) and not any(isinstance(turn, dict) for turn in conversation)
        rows = [self.be(query) for query in (conversation if is_batch else [conversation])]
        if not rows:
            raise ValueError("There is no conversation to render.")
        width, pad = max(map(len, rows)), self.tokenizer.pad_token_id or 0
        encoding: dict[str, list] = {
            "input_ids": [[pad] * (width - len(row)) + row for row in rows],
            "attention_mask": [[0] * (width - len(row)) + [1] * len(row) for row in rows],
        }
        if not is_batch and return_tensors is None:
            encoding = {name: values[0] for name, values in encoding.items()}
        encoding = BatchEncoding(encoding, tensor_type=return_tensors)
        return encoding if return_dict else encoding["input_ids"]

    @property
    def chat_template(self) -> str:
        """
        The tokenizer's chat template with [BE], and the kept text if there is one, as the system message. It is for
        code that takes a tokenizer, such as a pipeline: `tokenizer.chat_template = be.chat_template`. As with any chat
        template, a message that spells the special tokens in it becomes them; [`~ChatInputs.apply_chat_template`] has no
        such hole.

        Raises:
            `ValueError`: no text is read as [BE], since its ids have no special tokens in the tokenizer, or the
                template writes system messages in its own way.
        """
        tokens = [self.tokenizer.added_tokens_decoder.get(token_id) for token_id in self.be_token_ids]
        if not tokens or not all(token and token.special for token in tokens) or self.slot != "system":
            raise ValueError(
                f"A chat template cannot write [BE] with token ids {self.be_token_ids} in slot '{self.slot}': it "
                "needs ids of special tokens and slot 'system'. Use apply_chat_template, which gives ids."
            )
        text = jinja_string(with_kept_text("".join(token.content for token in tokens), self.kept_text))
        template = (
            "{%- if messages and messages[0]['role'] == 'system' -%}"
            "{{- raise_exception('[BE] stands for the system message: leave that out.') -}}{%- endif -%}"
            f"{{%- set messages = [{{'role': 'system', 'content': {text}}}] + messages -%}}{self._template.source}"
        )
        for length in (1, 3):
            roles = ("user", "assistant", "user")[:length]
            probe = [{"role": role, "content": f"What is {number}?"} for number, role in enumerate(roles)]
            try:
                ids = self.tokenizer.apply_chat_template(
                    probe, chat_template=template, add_generation_prompt=True, return_dict=False
                )
            except TemplateError as error:
                ids = error
            if ids != self.be(probe):
                raise ValueError(
                    "This chat template does not write a system message as it is, so that none can be made with [BE] "
                    "in it: use apply_chat_template, which gives ids."
                )
        return template


def jinja_string(text: str) -> str:
    """A text as a string in a chat template, in one line and with escapes that all engines' readers of templates know."""
    for character, escape in (("\\", "\\\\"), ("'", "\\'"), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
        text = text.replace(character, escape)
    return f"'{text}'"
