"""How much of the gap between no prompt and the full prompt a stand-in closes: over tokens, over queries, and apart from quotations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np

from ..figures import gap_closed


# A query has a gap of its own from this KL of no prompt on, in nats a token. Below it the prompt moves less than 7 % of the
# probability of a token (by Pinsker, the square root of half the KL), and a share of it would be rounding: the full prompt's
# own answers, read again in bfloat16, are up to 0.002 away from themselves. The limit is absolute, for one relative to the other
# queries would leave some out of every set
MIN_QUERY_KL = 0.01
# Fewer tokens than these are one phrase of one answer
MIN_TOKENS = 20
RESAMPLES, LEVEL, SEED = 1000, 0.95, 0

Interval = tuple[float, float]


@dataclass
class AnswerKL:
    """
    KL(full prompt || other) on each of the full prompt's answers: all that a [`Gap`] is computed from.

    Attributes:
        query_kl (`list[float]`): of each answer, its mean over the tokens, in nats.
        query_tokens (`list[int]`): tokens of each answer.
        quoted_kl (`list[float]`, *optional*): its mean over the tokens that are quoted from the prompt, 0 where none is;
            `None` if nobody knows what is quoted.
        quoted_tokens (`list[int]`, *optional*): the number of these tokens.
    """

    query_kl: list[float]
    query_tokens: list[int]
    quoted_kl: list[float] | None
    quoted_tokens: list[int] | None

    @property
    def mean(self) -> float:
        """The KL over all tokens."""
        return sum(kl * count for kl, count in zip(self.query_kl, self.query_tokens)) / sum(self.query_tokens)

    @classmethod
    def of_run(cls, run: dict) -> AnswerKL:
        """From a record of a run, which has these fields among others."""
        return cls(**{field.name: run[field.name] for field in fields(AnswerKL)})


@dataclass
class Gap:
    """
    The share of the gap that a stand-in closes, see [`gap_closed`]. Intervals hold 95 % of what other such queries would give,
    by 1,000 samples of the queries, drawn with replacement from a fixed seed.

    Attributes:
        median (`float`, *optional*): of the queries' own shares: no query counts more than another. Queries on which the prompt
            changes next to nothing (below 0.01 nats a token) have none and are left out.
        median_interval (`tuple[float, float]`, *optional*): its interval.
        median_queries (`int`): queries that have a share.
        unchanged_queries (`int`): queries that were left out.
        behaviour (`float`, *optional*): over the tokens that are not quoted from the prompt. `None` below 20 of them.
        behaviour_interval (`tuple[float, float]`, *optional*): its interval.
        quoted (`float`, *optional*): over the tokens that are quoted. `None` below 20 of them.
        quoted_share (`float`, *optional*): their share of all tokens.
        mean (`float`, *optional*): over all tokens. A query counts as much as the prompt changes its answer, so that a few
            may decide.
        mean_interval (`tuple[float, float]`, *optional*): its interval.
    """

    median: float | None
    median_interval: Interval | None
    median_queries: int
    unchanged_queries: int
    behaviour: float | None
    behaviour_interval: Interval | None
    quoted: float | None
    quoted_share: float | None
    mean: float | None
    mean_interval: Interval | None

    @classmethod
    def between(cls, stand_in: AnswerKL, no_prompt: AnswerKL) -> Gap:
        """
        Args:
            stand_in ([`AnswerKL`]): of the stand-in.
            no_prompt ([`AnswerKL`]): of no prompt, on the same answers.
        """
        tokens = np.array(no_prompt.query_tokens)
        kl, zero = np.array(stand_in.query_kl), np.array(no_prompt.query_kl)
        changed = zero >= MIN_QUERY_KL
        shares = 1 - kl[changed] / zero[changed]
        median, median_interval = _with_interval(lambda i: float(np.median(shares[i])), len(shares))
        mean, mean_interval = _with_interval(_over_tokens(kl * tokens, zero * tokens, tokens), len(tokens))
        behaviour, behaviour_interval, quoted, quoted_share = None, None, None, None
        if stand_in.quoted_kl is not None and no_prompt.quoted_kl is not None:
            marked = np.array(no_prompt.quoted_tokens)
            quoted_kl, quoted_zero = (np.array(side.quoted_kl) * marked for side in (stand_in, no_prompt))
            quoted_share = float(marked.sum() / tokens.sum())
            if marked.sum() >= MIN_TOKENS:
                quoted = _over_tokens(quoted_kl, quoted_zero, marked)(np.arange(len(tokens)))
            if (tokens - marked).sum() >= MIN_TOKENS:
                over_rest = _over_tokens(kl * tokens - quoted_kl, zero * tokens - quoted_zero, tokens - marked)
                behaviour, behaviour_interval = _with_interval(over_rest, len(tokens))
        return cls(
            median=median,
            median_interval=median_interval,
            median_queries=len(shares),
            unchanged_queries=int((~changed).sum()),
            behaviour=behaviour,
            behaviour_interval=behaviour_interval,
            quoted=quoted,
            quoted_share=quoted_share,
            mean=mean,
            mean_interval=mean_interval,
        )


def _over_tokens(kl: np.ndarray, zero: np.ndarray, tokens: np.ndarray) -> Callable[[np.ndarray], float | None]:
    """The gap closed over the tokens of some queries, from each query's sums."""

    def gap(queries: np.ndarray) -> float | None:
        count = tokens[queries].sum()
        return gap_closed(float(kl[queries].sum() / count), float(zero[queries].sum() / count)) if count else None

    return gap


def _with_interval(
    statistic: Callable[[np.ndarray], float | None], num_queries: int
) -> tuple[float | None, Interval | None]:
    """A figure of all queries, and its percentile interval over samples of as many, drawn with replacement."""
    value = statistic(np.arange(num_queries)) if num_queries else None
    if value is None or num_queries < 2:
        return value, None
    generator = np.random.default_rng(SEED)
    drawn = [statistic(generator.integers(num_queries, size=num_queries)) for _ in range(RESAMPLES)]
    known = [share for share in drawn if share is not None]
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return value, (float(low), float(high))
