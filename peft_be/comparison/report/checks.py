"""Which checks of answers each method passes, as a table, and which ones it loses."""

from __future__ import annotations

import statistics

from ...evaluation.answer_checks import ALL_CHECKS
from .rows import Cell, Row, fixed, is_number


def check_names(rows: list[Row]) -> list[str]:
    """The checks that were counted, in their order."""
    names = dict.fromkeys(name for row in rows for run in row.runs for name in run.get("checks") or {})
    return [name for name in names if name != ALL_CHECKS]


def check_table(rows: list[Row]) -> list[tuple[Row, list[Cell]]]:
    """For each method the shares of its answers that pass the checks of [`check_names`], and whether these are lost."""
    names = check_names(rows)
    return [(row, [_cell(row, name) for name in names]) for row in rows] if names else []


def lost_checks(row: Row) -> list[str]:
    """The checks that at least half of a method's runs lose."""
    return [name for name in check_names([row]) if 2 * _losses(row, name) >= len(row.runs) > 0]


def _scores(row: Row, name: str) -> list[dict]:
    return [score for run in row.runs if (score := (run.get("checks") or {}).get(name))]


def _losses(row: Row, name: str) -> int:
    return sum(score.get("lost") is True for score in _scores(row, name))


def _cell(row: Row, name: str) -> Cell:
    shares = [share for score in _scores(row, name) if is_number(share := score.get("be"))]
    if not shares:
        return Cell()
    lost, runs = _losses(row, name), len(row.runs)
    told = "" if not lost else "lost" if runs == 1 else f"lost in {lost} of {runs} runs"
    mean = statistics.fmean(shares)
    return Cell(fixed(3)(mean), mean, told)
