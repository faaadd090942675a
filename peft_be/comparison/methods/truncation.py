"""The simplest way to a shorter prompt."""

from __future__ import annotations

from collections.abc import Sequence

from .method import Job
from .pruning import Pruner, Word


class Truncation(Pruner):
    """
    The first words of P.

    The first and not the last, for a prompt says at its start who the model is and what it is to do, and goes on to details
    and examples; it is also what a limit on the length of a prompt does to it. Nothing is run or learned.

    The arguments are those of [`Pruner`].
    """

    def importance(self, job: Job, messages: list[dict[str, str]], words: list[Word]) -> Sequence[float]:
        return range(len(words), 0, -1)
