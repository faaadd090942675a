"""Time to the first token, decoding speed, and the memory of the key-value cache."""

from __future__ import annotations

import copy
import statistics
import time
from typing import NamedTuple

import torch
from transformers import DynamicCache, PreTrainedModel

from ..machine.clock import synchronize
from ..prompting.context import check_prompts
from ..tuner.inputs import any_input


class RequestTiming(NamedTuple):
    """
    What one batch of requests cost.

    Attributes:
        ttft_ms (`float`): from the rendered prompts to the first token of every answer, in milliseconds.
        decode_tokens_per_s (`float` or `None`): tokens after the first one, all rows together, per second.
        kv_bytes (`int`): keys and values of the prompts' tokens, a cached prefix counted once.
    """

    ttft_ms: float
    decode_tokens_per_s: float | None
    kv_bytes: int


@torch.no_grad()
def time_requests(
    model: PreTrainedModel, prompts: list[list[int]], new_tokens: int = 0, prefix: DynamicCache | None = None
) -> RequestTiming:
    """
    Answer rendered prompts as one batch, greedily, and time it.

    Args:
        model ([`~transformers.PreTrainedModel`]): the causal LM, not wrapped by PEFT.
        prompts (`list[list[int]]`): one or more rendered prompts.
        new_tokens (`int`, *optional*, defaults to `0`): tokens to decode after the first one; nothing ends an answer
            early.
        prefix ([`~transformers.DynamicCache`], *optional*): keys and values, for one row, of the ids that all prompts
            start with, as a server with prefix caching has them. Giving each row its copy is not timed.

    Returns:
        [`RequestTiming`]

    Raises:
        `ValueError`: a prompt and its answer are longer than the model's context.
    """
    check_prompts(model, prompts, new_tokens)
    shared = prefix.get_seq_length() if prefix else 0
    width = max(map(len, prompts))
    gaps = [width - len(prompt) for prompt in prompts]
    ids = torch.tensor([[0] * gap + prompt[shared:] for gap, prompt in zip(gaps, prompts)], device=model.device)
    mask = torch.tensor([[1] * shared + [0] * gap + [1] * (width - gap - shared) for gap in gaps], device=model.device)
    cache = DynamicCache(config=model.config)
    if prefix:
        cache = copy.deepcopy(prefix)
        cache.batch_repeat_interleave(len(prompts))

    # As an index: for a slice of the last position, torch on CPU copies lm_head (see `copy_head_input`)
    last = torch.tensor([-1], device=model.device)

    def forward(ids: torch.Tensor) -> torch.Tensor:
        """The next token of each row, `[B, 1]`."""
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        with any_input(model):
            logits = model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=last
            ).logits
        token = logits[:, -1].argmax(-1, keepdim=True)
        token.tolist()  # waits for the device
        return token

    synchronize(model.device)  # the copies of the prefix are not timed
    start = time.perf_counter()
    token = forward(ids)
    first = time.perf_counter()
    ones = mask.new_ones(len(prompts), 1)
    size = cache_bytes(cache)
    tokens = sum(map(len, prompts)) - shared * (len(prompts) - 1)
    for _ in range(new_tokens):
        mask = torch.cat([mask, ones], dim=1)
        token = forward(token)
    seconds = time.perf_counter() - first
    return RequestTiming(
        ttft_ms=1000 * (first - start),
        decode_tokens_per_s=len(prompts) * new_tokens / seconds if new_tokens else None,
        kv_bytes=round(size / mask.shape[0] / width * tokens),
    )


def cache_bytes(cache: DynamicCache) -> int:
    """Size of all keys and values that a cache holds."""
    return sum(tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values))


def time_to_first_token(model: PreTrainedModel, prompts: list[list[int]], repeats: int = 3) -> float:
    """
    Median time, in milliseconds, from a rendered prompt to its first answer token, one request at a time and with
    nothing cached. Each prompt runs `repeats` times after one warm-up.
    """
    times = [[time_requests(model, [prompt]).ttft_ms for _ in range(repeats + 1)][1:] for prompt in prompts]
    return statistics.median(sum(times, []))
