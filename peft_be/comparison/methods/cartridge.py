from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from peft import CartridgeConfig, PeftModel, get_peft_model, initialize_kv_prefix_from_past_key_values

from ...evaluation.stand_in import StandIn, render_users_turn
from ...prompting import PromptRenderer
from ...teacher import SharedPrefix, can_share_prefix
from .learned_adapter import LearnedAdapter
from .method import Job


class Cartridge(LearnedAdapter):
    """
    Trained keys and values of all layers (Cartridges, arXiv 2506.06266), by PEFT's `CARTRIDGE`. They stand for everything in
    front of the user's turn, and start as the keys and values of its first tokens. The first slot is frozen, as the method's
    authors recommend, where there are more.

    A slot has `2 * layers * kv_heads * head_dim` numbers, where a row of [BE] has d: see [`StandIn.num_bytes`].

    Args:
        num_tokens (`int`, *optional*, defaults to `1`): slots.
        learning_rate (`float`, *optional*, defaults to `2e-2`): as in [`LearnedAdapter`].
        **settings: further arguments of [`LearnedAdapter`].

    Raises:
        `ValueError`: no slot, or a model whose attention cannot be given keys and values.
    """

    def __init__(self, num_tokens: int = 1, learning_rate: float = 2e-2, **settings):
        if num_tokens < 1:
            raise ValueError(f"A cartridge needs at least one slot, got {num_tokens}.")
        super().__init__(learning_rate, **settings)
        self.num_tokens = num_tokens

    def fit(self, job: Job) -> StandIn:
        if not can_share_prefix(job.model):
            raise ValueError(
                "A cartridge needs a model whose layers all attend to the whole past, and this one's do not."
            )
        return super().fit(job)

    def students_turn(self, job: Job) -> Callable[[str | list[dict]], list[int]]:
        return render_users_turn(job.model, job.tokenizer)

    @contextlib.contextmanager
    def wrapped(self, job: Job) -> Iterator[PeftModel]:
        frozen = 1 if self.num_tokens > 1 else 0
        config = CartridgeConfig(task_type="CAUSAL_LM", num_virtual_tokens=self.num_tokens, num_frozen_tokens=frozen)
        model = get_peft_model(job.model, config)
        first = PromptRenderer(job.tokenizer, job.prompt).full(job.splits.train[0])[: self.num_tokens]
        with torch.no_grad():
            cache = job.model(input_ids=torch.tensor([first], device=job.model.device), use_cache=True).past_key_values
        initialize_kv_prefix_from_past_key_values(model, past_key_values=cache)
        yield model

    def stand_in(self, model: PeftModel) -> StandIn:
        cache = model.get_prompt(batch_size=1)
        keys = [layer.keys[0].detach().clone() for layer in cache.layers]
        values = [layer.values[0].detach().clone() for layer in cache.layers]
        return StandIn(prefix=SharedPrefix.from_states(keys, values))
