"""How many answers pass each check, and which checks [BE] has lost."""

from __future__ import annotations

from collections import Counter
from math import comb

from .check import AnswerCheck


SIDES = ("full", "no_prompt", "be")
ALL_CHECKS = "all checks"
# A check is lost if a difference as large would come by chance this rarely, both directions counted
LOST_BELOW = 0.05
# Fewer lost answers cannot be told from chance, however many there are
MIN_LOST = 6


def check_applies(checks: list[AnswerCheck], queries: list) -> None:
    """Raises a `ValueError` if the `when` of a check is found in none of the queries: it would say nothing."""
    for check in checks:
        if not any(map(check.applies_to, queries)):
            raise ValueError(
                f"No query matches 'when' of the check '{check.name}': give queries that do, or leave the check out."
            )


def check_scores(checks: list[AnswerCheck], answers: list[dict], sides: tuple[str, ...] = SIDES) -> dict[str, dict]:
    """
    The share of answers that pass each check, and whether [BE] has lost it.

    A check is lost if more answers pass it with the full prompt alone than with [BE] alone, and so unevenly that chance would make it
    in less than one of 20 cases: McNemar's exact test, two-sided, p < 0.05, each check by itself. With nothing gained, that takes six
    lost answers. On average, at most one of 40 checks that lose nothing is called lost.

    Args:
        checks (`list[AnswerCheck]`): as from [`load_checks`].
        answers (`list[dict]`): the texts `query`, `full`, `no_prompt` and `be` of each query, as from [`evaluate_fidelity`].
        sides (`tuple[str, ...]`, *optional*): names of the texts, if others than `full`, `no_prompt` and `be`. The last text is
            compared with the first.

    Returns:
        `dict[str, dict]`: for each check, and where there are several for `all checks` together (an answer passes if it passes
            all that apply to its query): the shares that pass of the answers to which it applies, `full`, `no_prompt` and `be`;
            `num_answers`, how many these are; `only_full` and `only_be`, how many pass with the full prompt and not with [BE], and
            the other way round; `p_value`; and `lost`.

    Raises:
        `ValueError`: a check applies to none of the queries, two have the same name, or there are no checks or answers.
    """
    if not checks or not answers:
        raise ValueError("There are no answers to check." if checks else "There are no checks.")
    check_applies(checks, [answer["query"] for answer in answers])
    name, count = Counter(check.name for check in checks).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{count} checks are called '{name}': give each a name of its own.")
    passed = {side: [[_passes(check, answer, side) for check in checks] for answer in answers] for side in sides}
    scores = {}
    for number, check in enumerate(checks):
        scores[check.name] = _score({side: [row[number] for row in rows] for side, rows in passed.items()})
    if len(checks) > 1:
        scores[ALL_CHECKS] = _score({side: list(map(_all, rows)) for side, rows in passed.items()})
    return scores


def failed_checks(
    checks: list[AnswerCheck], scores: dict[str, dict], fail_below: float | None = None
) -> dict[str, float]:
    """
    The checks that [BE] passes too rarely.

    Args:
        checks (`list[AnswerCheck]`): the checks.
        scores (`dict[str, dict]`): their scores.
        fail_below (`float`, *optional*): the least pass rate of checks that have no `min_pass_rate`.

    Returns:
        `dict[str, float]`: the least pass rates of these checks, by their names.
    """
    least = {check.name: fail_below if check.min_pass_rate is None else check.min_pass_rate for check in checks}
    return {name: rate for name, rate in least.items() if rate is not None and scores[name]["be"] < rate}


def mcnemar_p(one: int, other: int) -> float:
    """
    The two-sided p-value of McNemar's exact test: how often coins would part `one + other` pairs as unevenly as this.
    """
    pairs = one + other
    tail = sum(comb(pairs, count) for count in range(min(one, other) + 1))
    return min(1.0, 2 * tail / 2**pairs)


def is_lost(only_first: int, only_last: int) -> bool:
    """Whether more answers pass on the first side alone than on the last alone, and so unevenly that chance hardly makes it."""
    return only_first > only_last and mcnemar_p(only_first, only_last) < LOST_BELOW


def _passes(check: AnswerCheck, answer: dict, side: str) -> bool | None:
    """`None` where the check does not apply."""
    return check.passes(answer[side]) if check.applies_to(answer["query"]) else None


def _all(results: list[bool | None]) -> bool | None:
    applying = [result for result in results if result is not None]
    return all(applying) if applying else None


def _score(results: dict[str, list[bool | None]]) -> dict:
    """
    The score of a check from its results on each side, of answers to the same queries; `None` where it does not apply. It is
    the last side's, next to the first.
    """
    found = {side: [result for result in own if result is not None] for side, own in results.items()}
    first, *_, last = found
    pairs = list(zip(found[first], found[last]))
    only_first, only_last = pairs.count((True, False)), pairs.count((False, True))
    return {
        **{side: sum(own) / len(own) for side, own in found.items()},
        "num_answers": len(pairs),
        f"only_{first}": only_first,
        f"only_{last}": only_last,
        "p_value": mcnemar_p(only_first, only_last),
        "lost": is_lost(only_first, only_last),
    }
