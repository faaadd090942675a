from __future__ import annotations

import torch
from transformers import PreTrainedModel

from ..prompting import PromptRenderer
from ..prompting.context import check_length
from ..prompting.reconstruction import reconstruction_example
from .row_trainer import RowCollator


def reconstruction_batches(
    base: PreTrainedModel, renderers: dict[str, PromptRenderer], ae_token_id: int | None, collator: RowCollator
) -> dict[str, dict[str, torch.Tensor]]:
    """
    The one example of Eq. 2 for each prompt, `[BE][AE] -> P`, as a batch on the device of the base model.

    Args:
        base ([`~transformers.PreTrainedModel`]): the base model, whose context must hold the example.
        renderers (`dict[str, PromptRenderer]`): for each prompt, how it is written.
        ae_token_id (`int`, *optional*): the id of [AE]; without one, the example is the memory token's, `[BE] -> P`.
        collator ([`RowCollator`]): makes the batch.

    Raises:
        `ValueError`: an example is longer than the context.
    """
    batches = {}
    for name, renderer in renderers.items():
        ids, labels = reconstruction_example(
            renderer.tokenizer, renderer.be_token_ids, ae_token_id, renderer.prompt_ids
        )
        check_length(base, len(ids), "its reconstruction")
        batch = collator([{"input_ids": ids, "labels": labels}])
        batches[name] = {key: tensor.to(base.device) for key, tensor in batch.items()}
    return batches
