"""
The search for the fewest rows that reach a target: which training comes next. It knows of the trainings nothing but
what they reached, so that a resumed run decides as the one that was interrupted.

Short trainings, probes, show which k may do, and a full one shows whether it does. Each k starts from the rows of a smaller one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field


# The largest k that is tried
MOST_ROWS = 64
# A probe's share of the steps of a full training. The search is to cost at most 0.6 of a training, with its validations: five
# probes are the most that it takes until a k is trained in full
PROBE_SHARE = 0.1
MAX_SHARE = 0.6
# Steps have a given length, and in the first ones the rows are still on their way: a probe of 12 steps tells nothing
FIRST_STEPS = 20
FEWEST_STEPS = 40
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
        share (`float`): what its best rows reached on the validation queries of what the target is a share of.
        gap (`float`): the share of the KL gap that they closed there, which is the same where the target is a share of that.
        full (`bool`): whether it had all steps; a probe had a share of them.
        steps (`int`): how many it had.
        taught (`int`): how many its rows have had, with those of the smaller k, or of the earlier run, that they grew from.
        best (`dict`): the figures of its best rows, as in a report.
        log (`list[dict]`): its log.
        seconds (`float`): the time it took.
    """

    k: int
    share: float
    gap: float
    full: bool
    steps: int
    taught: int
    best: dict = field(default_factory=dict)
    log: list[dict] = field(default_factory=list)
    seconds: float = 0.0


def candidates(first: int, replaced_tokens: int) -> list[int]:
    """The k that are tried: `first`, doubled as long as there are fewer rows than tokens of P that they replace."""
    ks = [first]
    while 2 * ks[-1] <= MOST_ROWS and 2 * ks[-1] < replaced_tokens:
        ks.append(2 * ks[-1])
    return ks


def next_training(
    done: Sequence[Trained],
    ks: Sequence[int],
    target: float,
    steps: int,
    may_probe: bool = True,
    probes_tell: bool = True,
    noise: float = NOISE,
) -> tuple[int, bool] | None:
    """
    The training that comes next.

    Args:
        done (`Sequence[Trained]`): the trainings so far, in order.
        ks (`Sequence[int]`): the k that may be tried, in rising order.
        target (`float`): the share that is to be reached.
        steps (`int`): those of a full training.
        may_probe (`bool`, *optional*, defaults to `True`): whether there is time for another probe.
        probes_tell (`bool`, *optional*, defaults to `True`):
            Whether a probe that falls short tells that all steps will, too. It does for a share of the gap. Of the same answers it
            may have none where all steps have most.
        noise (`float`, *optional*, defaults to `0.01`): what two shares differ by though nothing is better.

    Returns:
        `tuple[int, bool]`: its k, and whether it is a full one. `None` if the search is over.
    """
    full = {trained.k: trained.share for trained in done if trained.full}
    if any(share >= target for share in full.values()):
        return None
    if len(ks) == 1:
        return None if full else (ks[0], True)
    probes = {trained.k: trained for trained in done if not trained.full}
    speed = _speed(done, steps)
    hoped = {k: expected(probe, steps, speed) for k, probe in probes.items()}
    fails = [k for k in ks if k in full or k in hoped and hoped[k] < target]
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
    # None promises to do
    if not probes_tell:
        return _larger(full, list(probes.values()), ks, noise)
    # The best one is trained in full, unless that would bring nothing
    top = max([*full.values(), *hoped.values()])
    if max(full.values(), default=-math.inf) >= top - noise:
        return None
    level = [k for k, share in hoped.items() if share >= top - noise and k not in full]
    return (min(level), True) if level else None


def _larger(full: dict[int, float], probes: list[Trained], ks: Sequence[int], noise: float) -> tuple[int, bool] | None:
    """In full the k of the best probe, and then larger ones as long as more rows bring more."""
    if not full:
        best = max(probes, key=lambda probe: (probe.share, probe.gap))
        return best.k, True
    *smaller, largest = sorted(full)
    if smaller and full[largest] < max(full[k] for k in smaller) + noise:
        return None
    return next(((k, True) for k in ks if k > largest), None)


def chosen(done: Sequence[Trained], target: float) -> Trained:
    """Of the full trainings, that of the smallest k that reaches the target; if there is none, the best."""
    full = [trained for trained in done if trained.full]
    reached = [trained for trained in full if trained.share >= target]
    return min(reached, key=lambda trained: trained.k) if reached else max(full, key=lambda trained: trained.share)


def is_too_late(done: Sequence[Trained], seconds_left: float) -> bool:
    """Whether a k has been trained in full, and the time that is left is too short for another."""
    full = [trained.seconds for trained in done if trained.full]
    return bool(full) and max(full) > seconds_left


def starts_from(done: Sequence[Trained], k: int) -> Trained | None:
    """The training whose rows those of a new one with k rows start from: that of the most rows up to k, a full one first."""
    return max(
        (trained for trained in done if trained.k <= k), key=lambda trained: (trained.k, trained.full), default=None
    )


def expected(probe: Trained, steps: int, speed: float = 1.0) -> float:
    """
    The share that is reached after so many `steps` more than a probe had. What is left of the KL falls as a power of the steps
    after the first ones: if it is n^-b after n of them, it is the power `log N / log n` of that after N (research/log.md).

    Args:
        probe ([`Trained`]): the probe.
        steps (`int`): those of a full training from its rows.
        speed (`float`, *optional*, defaults to `1.0`): how many times as fast the logarithm falls as it should.
    """
    before = probe.taught - FIRST_STEPS
    if not 0 < probe.share < 1 or before < 2:
        return probe.share
    power = math.log(before + steps) / math.log(before)
    return 1 - (1 - probe.share) ** max(1.0, speed * power)


def _speed(done: Sequence[Trained], steps: int) -> float:
    """How fast the last full training was that had a probe, next to what was expected of it."""
    probes = {trained.k: trained for trained in done if not trained.full}
    speed = 1.0
    for trained in done:
        probe = probes.get(trained.k)
        if trained.full and probe and 0 < probe.share < 1 and trained.share < 1:
            speed = math.log(1 - trained.share) / math.log(1 - expected(probe, steps))
    return speed
