"""The simplest way to a shorter prompt."""

from __future__ import annotations

from collections.abc import Sequence

from .method import Job
from .pruning import Pruner, Word


class Truncation(Pruner):
    """
    The first words of P.

    The first and not the last, because a prompt says at its start who the model is and what it is to do, and goes on to
    details and examples. A limit on a prompt's length cuts it in the same way. Nothing is run or learned.

    The arguments are those of [`Pruner`].
    """

    def importance(self, job: Job, messages: list[dict[str, str]], words: list[Word]) -> Sequence[float]:
        return range(len(words), 0, -1)
