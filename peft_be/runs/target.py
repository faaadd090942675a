"""
The search for the fewest rows that close a share of the gap: which training comes next. It knows of the trainings nothing but
what they reached, so that a resumed run decides as the one that was interrupted.

Short trainings, probes, show which k may do, and a full one shows whether it does. Each k starts from the rows of a smaller one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field


# The largest k that is tried
MOST_ROWS = 64
# A probe's share of the steps of a full training. The search is to cost at most 0.6 of one, its validations included: five
# probes are the most that it takes until a k is trained in full
PROBE_SHARE = 0.1
MAX_SHARE = 0.6
# A full training from the rows of a probe leaves at most this share of the KL that the probe left
# (research/log.md). Where it leaves less, a k may be chosen that is one doubling too large
LEFT = 0.75
# Seeds differ by as much in the gap closed
NOISE = 0.01
# Doublings between two probes: what lies between them is looked at only where the larger k does
STRIDE = 2


@dataclass(frozen=True)
class Trained:
    """
    What a training reached.

    Attributes:
        k (`int`): its number of rows.
        gap (`float`): the share of the KL gap that its best rows closed on the validation queries.
        full (`bool`): whether it had all steps; a probe had a share of them.
        steps (`int`): how many it had.
        best (`dict`): the figures of its best rows, as in a report.
        log (`list[dict]`): its log.
        seconds (`float`): the time it took.
    """

    k: int
    gap: float
    full: bool
    steps: int = 0
    best: dict = field(default_factory=dict)
    log: list[dict] = field(default_factory=list)
    seconds: float = 0.0


def candidates(first: int, prompt_tokens: int) -> list[int]:
    """The k that are tried: `first`, doubled as long as there are fewer rows than P has tokens."""
    ks = [first]
    while 2 * ks[-1] <= MOST_ROWS and 2 * ks[-1] < prompt_tokens:
        ks.append(2 * ks[-1])
    return ks


def next_training(
    done: Sequence[Trained], ks: Sequence[int], target: float, may_probe: bool = True
) -> tuple[int, bool] | None:
    """
    The training that comes next.

    Args:
        done (`Sequence[Trained]`): the trainings so far, in order.
        ks (`Sequence[int]`): the k that may be tried, in rising order.
        target (`float`): the share of the gap that is to be closed.
        may_probe (`bool`, *optional*, defaults to `True`): whether there is time for another probe.

    Returns:
        `tuple[int, bool]`: its k, and whether it is a full one. `None` if the search is over.
    """
    full = {trained.k: trained.gap for trained in done if trained.full}
    if any(gap >= target for gap in full.values()):
        return None
    if len(ks) == 1:
        return None if full else (ks[0], True)
    probes = {trained.k: trained.gap for trained in done if not trained.full}
    left = _share_left(done)
    fails = [k for k in ks if k in full or k in probes and not _promises(probes[k], left, target)]
    # Of a curve that is not monotone, what lies above the largest k that fails
    low = ks.index(fails[-1]) if fails else -1
    high = next((i for i in range(low + 1, len(ks)) if ks[i] in probes), None)
    if may_probe or not done:
        if high is None and low + 1 < len(ks):
            # What lies just above a k that has just missed is likely to do
            stride = 1 if low < 0 or ks[low] in full else STRIDE
            return ks[min(low + stride, len(ks) - 1)], False
        if high is not None and high - low > 1 and low >= 0:
            return ks[(low + high) // 2], False
    if high is not None:
        return ks[high], True
    # None promises to do. The best one is trained in full, unless that would bring nothing
    top = max(trained.gap for trained in done)
    if max(full.values(), default=-math.inf) >= top - NOISE:
        return None
    level = [k for k, gap in probes.items() if gap >= top - NOISE and k not in full]
    return (min(level), True) if level else None


def chosen(done: Sequence[Trained], target: float) -> Trained:
    """Of the full trainings, that of the smallest k that reaches the target; if there is none, the best."""
    full = [trained for trained in done if trained.full]
    reached = [trained for trained in full if trained.gap >= target]
    return min(reached, key=lambda trained: trained.k) if reached else max(full, key=lambda trained: trained.gap)


def starts_from(done: Sequence[Trained], k: int) -> Trained | None:
    """The training whose rows those of a new one with k rows start from: that of the most rows up to k, a full one first."""
    return max(
        (trained for trained in done if trained.k <= k), key=lambda trained: (trained.k, trained.full), default=None
    )


def _share_left(done: Sequence[Trained]) -> float:
    """The share of the KL after a probe that a full training is expected to leave: as the last one did, if there is one."""
    probes = {trained.k: trained.gap for trained in done if not trained.full}
    left = LEFT
    for trained in done:
        if trained.full and probes.get(trained.k, 1.0) < 1:
            left = min(1.0, (1 - trained.gap) / (1 - probes[trained.k]))
    return left


def _promises(gap: float, left: float, target: float) -> bool:
    return 1 - left * (1 - gap) >= target
