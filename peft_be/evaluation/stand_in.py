"""What stands in for a prompt: another text, learned rows, learned keys and values, or learned weights."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from peft import PeftConfig, get_peft_model, set_peft_model_state_dict
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..adapters.create import add_adapter
from ..prompting import PromptRenderer
from ..teacher import SharedPrefix


Prompt = str | list[dict[str, str]]


@dataclass
class StandIn:
    """
    What a method puts in place of P: a shorter prompt, learned rows, learned keys and values, or learned weights. With
    nothing set, there is no prompt at all.

    Attributes:
        prompt (`str` or `list[dict]`, *optional*): a prompt, read where P would be.
        rows (`torch.Tensor` of shape `[k, d]`, *optional*): learned input embeddings.
        slot (`str`, *optional*, defaults to `"system"`): where the rows stand, as in [`BETokenConfig`].
        kept_text (`str`, *optional*): what of P follows the rows as text, as in [`BETokenConfig`].
        prefix ([`SharedPrefix`], *optional*): learned keys and values of everything in front of the user's turn.
        adapter (`tuple[PeftConfig, dict[str, torch.Tensor]]`, *optional*): another PEFT method's adapter, with which the model
            reads no prompt: its configuration, and its state dict as [`~peft.get_peft_model_state_dict`] gives it.
        reconstruction (`dict`, *optional*): how much of P the rows bring back with [AE], for methods that learn it; see
            [`reconstruction_scores`].
        log (`list[dict]`, *optional*): the log of the training.
    """

    prompt: Prompt | None = None
    rows: torch.Tensor | None = None
    slot: str = "system"
    kept_text: str | None = None
    prefix: SharedPrefix | None = None
    adapter: tuple[PeftConfig, dict[str, torch.Tensor]] | None = None
    reconstruction: dict | None = None
    log: list[dict] = field(default_factory=list)

    @contextlib.contextmanager
    def placed(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> Iterator[Callable[[str | list[dict]], list[int]]]:
        """
        Context in which `model`, not wrapped by PEFT, reads the stand-in. It gives a function from a query to ids. With
        learned keys and values, the first `prefix.length` ids stand for these.
        """
        if self.rows is not None:
            peft_model = add_adapter(model, tokenizer, len(self.rows), None, self.slot, self.kept_text).eval()
            peft_model.base_model.set_rows("default", self.rows)
            try:
                yield PromptRenderer.for_adapter(peft_model.peft_config["default"], tokenizer).be
            finally:
                peft_model.unload()
        elif self.prefix is not None:
            ids = [tokenizer.pad_token_id or 0] * self.prefix.length
            users_turn = render_users_turn(model, tokenizer)
            yield lambda query: ids + users_turn(query)
        elif self.adapter is not None:
            config, weights = self.adapter
            peft_model = get_peft_model(model, copy.deepcopy(config)).eval()
            try:
                set_peft_model_state_dict(peft_model, weights)
                yield PromptRenderer(tokenizer).no_prompt
            finally:
                peft_model.unload()
        elif self.prompt is not None:
            yield PromptRenderer(tokenizer, self.prompt).full
        else:
            yield PromptRenderer(tokenizer).no_prompt

    def num_tokens(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """Number of positions in the context that stand for P."""
        if self.rows is not None:
            return len(self.rows) + len(PromptRenderer(tokenizer, kept_text=self.kept_text).kept_ids)
        if self.prefix is not None:
            return self.prefix.length
        return 0 if self.prompt is None else len(PromptRenderer(tokenizer, self.prompt).prompt_ids)

    def num_bytes(self) -> int:
        """Bytes that have to be kept in addition to the base model: float32 numbers, or UTF-8 text."""
        if self.rows is not None:
            return 4 * self.rows.numel() + len((self.kept_text or "").encode())
        if self.prefix is not None:
            return 4 * sum(states.numel() for states in self.prefix.keys + self.prefix.values)
        if self.adapter is not None:
            return 4 * sum(weight.numel() for weight in self.adapter[1].values())
        messages = [{"content": self.prompt}] if isinstance(self.prompt, str) else self.prompt or []
        return sum(len(message["content"].encode()) for message in messages)


def render_users_turn(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Callable[[str | list[dict]], list[int]]:
    """A function from a query to the ids of the conversation without any system turn or anything else in front of it."""
    stand_in = model.get_input_embeddings().num_embeddings  # an id that no text has
    renderer = PromptRenderer(tokenizer, be_token_ids=[stand_in], slot="prefix")

    def render(query: str | list[dict]) -> list[int]:
        ids = renderer.be(query)
        return ids[ids.index(stand_in) + 1 :]

    return render
