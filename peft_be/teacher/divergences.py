"""How far a model is from the teacher where it reads something else instead of the teacher's prompt."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from ..losses import OutputHead, divergence
from .answers import answer_states
from .cache import Answer
from .prefix import SharedPrefix


@torch.no_grad()
def answer_divergences(
    model: PreTrainedModel,
    head: OutputHead,
    prompts: list[list[int]],
    teacher: list[Answer],
    batch_size: int = 32,
    pad_token_id: int = 0,
    prefix: SharedPrefix | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Answer], list[torch.Tensor]]:
    """
    KL(teacher || model) at temperature 1, of each token of the teacher's answers.

    Args:
        model ([`~transformers.PreTrainedModel`]): the causal LM, not wrapped by PEFT.
        head ([`OutputHead`]): of the model.
        prompts (`list[list[int]]`): what the model reads in front of each answer, as ids.
        teacher (`list[Answer]`): the answers, with the teacher's hidden states.
        batch_size, pad_token_id, prefix, on_progress: as in [`answer_states`].

    Returns:
        `tuple[list[Answer], list[torch.Tensor]]`: the answers with the model's hidden states, and for each of them the
            KL of its tokens, in double precision.

    Raises:
        `FloatingPointError`: a KL is not a finite number.
    """
    ids = [answer.ids for answer in teacher]
    states = answer_states(model, prompts, ids, batch_size, pad_token_id, prefix=prefix, on_progress=on_progress)
    kl = [divergence(s.hidden, t.hidden.to(s.hidden), head).cpu().double() for s, t in zip(states, teacher)]
    if not all(values.isfinite().all() for values in kl):
        raise FloatingPointError(
            "The KL to the full prompt is not a finite number: the model's weights are damaged, or their dtype is too "
            "narrow. Load it in float32 or bfloat16, or use another copy."
        )
    return states, kl
