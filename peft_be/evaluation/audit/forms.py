"""The three forms of an attack, as ids: with the full prompt, with no prompt, and with [BE]."""

from __future__ import annotations

import os

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from ...prompting import PromptRenderer
from ...prompting.messages import check_prompt
from ...prompting.reconstruction import reconstruction_example
from ...tuner import active_config
from .attacks import BE, Attack


SIDES = {"full": "full prompt", "no_prompt": "no prompt", "be": "[BE]"}


def text_of(prompt: str | list[dict] | None) -> str | None:
    """What P says, without roles."""
    return None if prompt is None else "\n".join(message["content"] for message in check_prompt(prompt))


class Forms:
    """
    Renders attacks against an adapter. P, if it is known, takes [BE]'s place wherever that stands: in the system turn
    or inside the attack's text; with no prompt, that place is empty.

    Args:
        model ([`~peft.PeftModel`]): the base model with the active BE_TOKEN adapter.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): its tokenizer.
        prompt (`str` or `list[dict]`, *optional*): P.
        allow_other_prompt (`bool`, *optional*, defaults to `False`): accept a P that the adapter was not trained on.

    Attributes:
        sides (`list[str]`): the names of the forms; `"full"` is among them only if P is known.
        text (`str` or `None`): what P says.
        template (`str`): what the chat template writes around a user's turn.
        rows (`dict[str, torch.Tensor]`): what stands for P on each side, as embeddings `[n, d]`.
    """

    def __init__(
        self,
        model: PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        prompt: str | list[dict] | None,
        allow_other_prompt: bool = False,
    ):
        self._tokenizer = tokenizer
        config = active_config(model)
        self.renderer = PromptRenderer.for_adapter(config, tokenizer, prompt, allow_other_prompt=allow_other_prompt)
        self.sides = [side for side in SIDES if prompt is not None or side != "full"]
        self.text = text_of(prompt)
        self.prompt_ids = [] if prompt is None else self.renderer.prompt_ids
        self.template = tokenizer.decode(self.renderer.no_prompt("."), skip_special_tokens=True)
        self._ids = {"full": self.prompt_ids, "no_prompt": [], "be": self.renderer.be_token_ids}
        self.table = model.get_base_model().get_input_embeddings().get_base_layer().weight
        rows = model.base_model.get_rows(model.active_adapter)
        self.rows = {
            "full": self.table[torch.tensor(self.prompt_ids, dtype=torch.long, device=self.table.device)].float(),
            "no_prompt": rows[:0],
            "be": rows,
        }
        # A user's turn differs from another in its content alone
        first, second = self.renderer.no_prompt("A"), self.renderer.no_prompt("B")
        self._head = list(os.path.commonprefix([first, second]))
        self._tail = list(os.path.commonprefix([first[::-1], second[::-1]]))[::-1]

    def render(self, attack: Attack, side: str) -> list[int]:
        """The ids that the model gets."""
        opening = self.renderer.answer(attack.opening) if attack.opening else []
        if BE not in attack.text:
            form = {"full": self.renderer.full, "no_prompt": self.renderer.no_prompt, "be": self.renderer.be}[side]
            return form(attack.text) + opening
        ids: list[int] = []
        for number, piece in enumerate(attack.text.split(BE)):
            # P is long: of several places, it stands only in the first
            ids += self._ids[side] if number == 1 or (number and side == "be") else []
            ids += self.renderer.answer(piece) if piece else []
        if attack.raw:
            # An empty text has nothing to go on from, and gets the token that ends texts in training
            start = reconstruction_example(self._tokenizer, ids, None, [])[0]
            return (start or [self._tokenizer.eos_token_id]) + opening
        return self._head + ids + self._tail + opening
