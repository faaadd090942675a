"""Time to the first token."""

from __future__ import annotations

import statistics
import time

import torch
from transformers import PreTrainedModel


@torch.no_grad()
def time_to_first_token(model: PreTrainedModel, prompts: list[list[int]], repeats: int = 3) -> float:
    """
    Median time, in milliseconds, from a rendered prompt to its first answer token, one request at a time and with
    nothing cached. Each prompt runs `repeats` times behind one warm-up.
    """
    times = []
    for prompt in prompts:
        ids = torch.tensor([prompt], device=model.device)
        for repeat in range(repeats + 1):
            start = time.perf_counter()
            model(input_ids=ids, use_cache=True, logits_to_keep=1).logits[0, -1].argmax().item()
            if repeat:
                times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)
