"""The sequence `source [AE] target` of Eq. 1 and Eq. 2: the only place that lays it out."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase


def reconstruction_example(
    tokenizer: PreTrainedTokenizerBase, source_ids: list[int], ae_token_id: int | None, target_ids: list[int]
) -> tuple[list[int], list[int]]:
    """
    Lay out `[source][AE] -> target`. Eq. 1 has the text X on both sides, Eq. 2 has [BE] as source and P as target.
    Without `ae_token_id` it is `[source] -> target`, the memory token's.

    A tokenizer that starts every text with a BOS token does so here, too: the model has seen no text without it.

    Returns:
        `tuple[list[int], list[int]]`: input ids, and labels of the same length in which everything in front of the target
        is -100. The first target token counts: it is the one that the last token in front of it predicts.
    """
    start = tokenizer("")["input_ids"][:1]
    start = start if start == [tokenizer.bos_token_id] else []
    head = start + source_ids + ([] if ae_token_id is None else [ae_token_id])
    return head + target_ids, [-100] * len(head) + target_ids
