"""P once more, in another order: how much of a method's distance from P is no more than noise."""

from __future__ import annotations

import random
import re

from ...evaluation.stand_in import StandIn
from ...prompting.messages import check_prompt
from .method import Job, Method
from .pruning import exchanges_of


MIN_PARTS = 4


class Reordered(Method):
    """
    P with the second half of its parts in a random order: of its worked examples, where P has several exchanges, or else of its
    paragraphs, or of its lines where there are fewer than four paragraphs.

    It shortens nothing. To a reader it is the same prompt, so a method can hardly be blamed for as much KL as it leaves.

    Raises:
        `ValueError`: P has fewer than four parts.
    """

    is_random = True

    def fit(self, job: Job) -> StandIn:
        rng = random.Random(job.seed)
        messages = check_prompt(job.prompt)
        start = int(messages[0]["role"] == "system")
        exchanges = exchanges_of(messages)[start:]
        if len(exchanges) >= MIN_PARTS:
            mixed = [messages[number] for exchange in _mixed(exchanges, rng) for number in exchange]
            return StandIn(prompt=messages[:start] + mixed)
        text = messages[0]["content"] if start else ""
        for separator in (r"(\n[ \t]*\n\s*)", r"(\n\s*)"):
            # Even places have the parts, odd ones what stands between them
            pieces = re.split(separator, text.strip())
            if len(pieces) // 2 + 1 >= MIN_PARTS:
                pieces[::2] = _mixed(pieces[::2], rng)
                return StandIn(prompt=[{"role": "system", "content": "".join(pieces)}, *messages[1:]])
        raise ValueError(f"'reordered' needs a prompt with at least {MIN_PARTS} examples, paragraphs or lines.")


def _mixed(parts: list, rng: random.Random) -> list:
    """The first half as it is, for a prompt says at its start what it is about; the others in another order than theirs."""
    half = len(parts) // 2
    order = list(range(half, len(parts)))
    while order == sorted(order):
        rng.shuffle(order)
    return parts[:half] + [parts[i] for i in order]
