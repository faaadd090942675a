"""The outcome of a comparison in a few sentences."""

from __future__ import annotations

import math

from .rows import Row, count_tokens


def verdict(rows: list[Row], prompt_tokens: float | None = None) -> str:
    """
    What the fewest tokens keep of the prompt's effect, what the best method keeps, whether another one is as good, and what is
    saved.

    Args:
        rows (`list[Row]`): the methods, the best one first.
        prompt_tokens (`int`, *optional*): length of the prompt.

    Returns:
        `str`: sentences, or nothing if there is no gap to speak of.
    """
    methods = [row for row in rows if not row.is_bound and row.cells["gap"].value is not None]
    if not methods:
        # Whether the prompt matters is known from its KL alone
        known = any(row.name == "none" and row.cells["kl"].value is not None for row in rows)
        has_gap = any(row.cells["gap"].value is not None for row in rows)
        return (
            "The prompt changes nothing on these queries, so there is no gap to close."
            if known and not has_gap
            else ""
        )
    best = methods[0]
    shortest = min(methods, key=lambda row: row.cells["tokens"].value or math.inf)
    full = f" of {count_tokens(prompt_tokens)}" if prompt_tokens else ""
    most = f", the most of {len(methods)} methods" if len(methods) > 1 else ""
    gap = f"the gap between no prompt and the full prompt{full}"
    sentences = [_closes(shortest, gap + (most if best is shortest else ""))]
    if best is not shortest:
        sentences.append(_closes(best, "the gap" + most))
    if equal := [row.label for row in methods[1:] if _overlap(row, best)]:
        them = " and ".join(filter(None, [", ".join(equal[:-1]), equal[-1]]))
        sentences.append(f"The seeds of {best.label} overlap with those of {them}: which is better stays open")
    if saved := _saved(shortest, rows):
        sentences.append(saved)
    return " ".join(f"{sentence}." for sentence in sentences)


def _closes(row: Row, gap: str) -> str:
    share, tokens = round(100 * row.cells["gap"].number), row.cells["tokens"].value
    subject = row.label if tokens is None else f"{count_tokens(tokens)} ({row.kind})"
    one = tokens in (None, 1)
    if share < 0:
        return f"{subject} {'is' if one else 'are'} further from the full prompt than no prompt is"
    return f"{subject} close{'s' if one else ''} {share} % of {gap}"


def _overlap(row: Row, best: Row) -> bool:
    """Whether the ranges of two methods meet. One run has no range."""
    ranges = [row.cells["gap"], best.cells["gap"]]
    return all(cell.low < cell.high for cell in ranges) and row.cells["gap"].high >= best.cells["gap"].low


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
