"""The outcome of a comparison in a few sentences."""

from __future__ import annotations

import math

from .checks import lost_checks
from .rows import Row, count_tokens, leading_gap, query_interval


NOISE = "reordered"


def verdict(rows: list[Row], prompt_tokens: float | None = None) -> str:
    """
    How many answers of the fewest tokens pass the checks, what these tokens keep of the full prompt's task score and of its
    effect, what the best method keeps, whether another one is as good, how much of it is noise, and what is saved.

    Args:
        rows (`list[Row]`): the methods, the best one first.
        prompt_tokens (`int`, *optional*): length of the prompt.

    Returns:
        `str`: sentences, or nothing if there is no gap to speak of.
    """
    lead = leading_gap(rows)
    # The prompt in another order shortens nothing: it says how large the noise is
    methods = [row for row in rows if not row.is_bound and row.name != NOISE]
    ranked = [row for row in methods if row.cells[lead].value is not None]
    sentences = _checks(methods, rows) + _scores(methods, rows)
    if ranked:
        sentences += _gaps(ranked, lead, prompt_tokens)
        if equal := [row.label for row in ranked[1:] if _overlap(row, ranked[0], lead)]:
            them = " and ".join(filter(None, [", ".join(equal[:-1]), equal[-1]]))
            sentences.append(
                f"The seeds of {ranked[0].label} overlap with those of {them}: which is better stays open"
            )
    elif _changes_nothing(rows):
        sentences.append("The prompt changes nothing on these queries, so there is no gap to close")
    sentences += _noise(rows, lead)
    if ranked and (saved := _saved(_shortest(ranked), rows)):
        sentences.append(saved)
    return " ".join(f"{sentence}." for sentence in sentences)


def _checks(methods: list[Row], rows: list[Row]) -> list[str]:
    """How many answers pass all checks, and which checks are lost."""
    checked = [row for row in methods if row.cells["checks"].value is not None]
    if not checked:
        return []
    shortest, best = _shortest(checked), max(checked, key=lambda row: row.cells["checks"].number)
    bounds = {row.name: row.cells["checks"].value for row in rows if row.is_bound}
    parts = [
        f"{_subject(shortest)} pass{'es' if _s(shortest) else ''} all checks in {_percent(shortest.cells['checks'].number)} "
        "of the answers"
    ]
    for name, told in (("full", "the full prompt"), ("none", "no prompt")):
        if (share := bounds.get(name)) is not None:
            parts.append(f"{told} in {_percent(share)}")
    sentences = [", ".join(parts)]
    if lost := lost_checks(shortest):
        names = ", ".join(f"'{name}'" for name in lost)
        sentences.append(f"Lost with {_subject(shortest)}: {names}")
    if best.cells["checks"].number > shortest.cells["checks"].number:
        most = f"{_percent(best.cells['checks'].number)}, the most of {len(checked)} methods"
        sentences.append(f"{_subject(best)} pass{'es' if _s(best) else ''} them in {most}")
    return sentences


def _scores(methods: list[Row], rows: list[Row]) -> list[str]:
    """What is kept of the task score, where the full prompt's is worth something."""
    scored = [row for row in methods if row.cells["retention"].value is not None]
    if not scored:
        return []
    shortest, best = _shortest(scored), max(scored, key=lambda row: row.cells["retention"].number)
    none = next(row.cells["retention"].number for row in rows if row.name == "none")
    of = f"of the full prompt's task score, of which no prompt keeps {_percent(none)}"
    sentences = [f"{_subject(shortest)} keep{_s(shortest)} {_percent(shortest.cells['retention'].number)} {of}"]
    if best.cells["retention"].number > shortest.cells["retention"].number:
        most = f"{_percent(best.cells['retention'].number)}, the most of {len(scored)} methods"
        sentences.append(f"{_subject(best)} keep{_s(best)} {most}")
    return sentences


def _gaps(ranked: list[Row], lead: str, prompt_tokens: float | None) -> list[str]:
    """What of the gap the fewest tokens close, and the best method."""
    shortest, best = _shortest(ranked), ranked[0]
    full = f" of {count_tokens(prompt_tokens)}" if prompt_tokens else ""
    most = f", the most of {len(ranked)} methods" if len(ranked) > 1 else ""
    gap = f"the gap between no prompt and the full prompt{full}"
    middle = " on the median query" if lead == "median" else ""
    interval = query_interval(shortest) if lead == "median" else None
    if interval:
        middle += f" (95 % interval {round(100 * interval[0])} to {_percent(interval[1])})"
    sentences = [_closes(shortest, lead, gap + middle + (most if best is shortest else ""))]
    mean, behaviour = (shortest.cells[key].value for key in ("gap", "behaviour"))
    if lead == "median" and mean is not None:
        apart = _percent(mean)
        if behaviour is not None:
            apart = f"{_percent(behaviour)} without quotations from the prompt, and {_percent(mean)} with them"
        sentences.append(f"Over the tokens of the answers it is {apart}")
    if best is not shortest:
        sentences.append(_closes(best, lead, f"the gap{middle and ' on the median query'}{most}"))
    return sentences


def _noise(rows: list[Row], lead: str) -> list[str]:
    """What a change without a meaning costs."""
    kept = next((value for row in rows if row.name == NOISE and (value := row.cells[lead].value) is not None), None)
    if kept is None:
        return []
    return [
        f"The noise floor is {_percent(max(0.0, 1 - kept))}: as much of the gap stays open if the prompt is only reordered"
    ]


def _changes_nothing(rows: list[Row]) -> bool:
    """Whether the prompt does not matter, which is known from its KL alone."""
    known = any(row.name == "none" and row.cells["kl"].value is not None for row in rows)
    return known and all(row.cells["gap"].value is None for row in rows)


def _shortest(rows: list[Row]) -> Row:
    return min(rows, key=lambda row: row.cells["tokens"].value or math.inf)


def _subject(row: Row) -> str:
    tokens = row.cells["tokens"].value
    return f"{count_tokens(tokens)} ({row.kind})" if tokens else row.label


def _s(row: Row) -> str:
    """The ending of the verb after a [`_subject`]."""
    return "s" if row.cells["tokens"].value in (None, 0, 1) else ""


def _percent(share: float) -> str:
    return f"{round(100 * share)} %"


def _closes(row: Row, lead: str, gap: str) -> str:
    share = row.cells[lead].number
    if round(100 * share) < 0:
        return f"{_subject(row)} {'is' if _s(row) else 'are'} further from the full prompt than no prompt is"
    return f"{_subject(row)} close{_s(row)} {_percent(share)} of {gap}"


def _overlap(row: Row, best: Row, lead: str) -> bool:
    """Whether the ranges of two methods meet. One run has no range."""
    ranges = [row.cells[lead], best.cells[lead]]
    return all(cell.low < cell.high for cell in ranges) and ranges[0].high >= ranges[1].low


def _saved(row: Row, rows: list[Row]) -> str | None:
    """How much less a method costs than the full prompt."""
    full = next((other for other in rows if other.name == "full"), None)
    if full is None:
        return None
    parts = []
    for key, text in (("ttft", "gives the first token {} times faster"), ("kv", "needs {} times less KV cache")):
        cost, whole = row.cells[key].value, full.cells[key].value
        if cost and whole and whole / cost >= 1.1:
            parts.append(text.format(f"{whole / cost:.{0 if whole >= 10 * cost else 1}f}"))
    return f"Compared with the full prompt and nothing cached, {row.label} {' and '.join(parts)}" if parts else None
