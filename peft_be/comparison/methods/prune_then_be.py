"""Two compressions, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ...evaluation.stand_in import StandIn
from .be import BE
from .method import Job, Method
from .pruning import Pruner
from .self_information import SelfInformation


class PruneThenBE(Method):
    """
    P pruned to fewer words, and [BE] instead of what is left, with the default recipe.

    The teacher of [BE] reads the pruned prompt, which makes the training cheaper. What the pruner has lost, [BE] cannot
    learn.

    Args:
        num_tokens (`int`, *optional*, defaults to `256`): budget of the pruner; at inference, [BE] alone is read.
        pruner (`Callable[[int], Pruner]`, *optional*, defaults to [`SelfInformation`]): makes a pruner of a budget.
        num_be_tokens (`int`, *optional*, defaults to `1`): k, the number of [BE] rows.

    Raises:
        `ValueError`: `num_tokens` or `num_be_tokens` below 1.
    """

    trains = True

    def __init__(
        self, num_tokens: int = 256, pruner: Callable[[int], Pruner] = SelfInformation, num_be_tokens: int = 1
    ):
        self.pruner = pruner(num_tokens)
        self.be = BE(num_be_tokens)

    def fit(self, job: Job) -> StandIn:
        prompt = self.pruner.fit(job).prompt
        assert prompt is not None  # a pruner keeps something, or raises
        pruned = replace(job, prompt=prompt)
        for split in ("train", "validation"):  # as P's answers, which a comparison has at hand, not part of the budget
            pruned.teacher_answers(split)
        return self.be.fit(pruned)
