"""The options of `peft-be eval` for checks of answers, and how it shows what they found."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from ..checks import Range, check_number
from ..recipe import setting
from .common import fail, say


if TYPE_CHECKING:
    from ..evaluation.answer_checks import AnswerCheck


@dataclass
class AnswerChecks:
    """The options on checks of answers."""

    checks: Path | None = setting(None, "Checks of the answers, a .yaml, .yml or .json file.")
    fail_below: float | None = setting(
        None,
        "End with exit code 1 if a smaller share of the answers of [BE] passes a check of --checks, such as 0.95.",
    )

    def __post_init__(self):
        if self.fail_below is not None:
            check_number("--fail-below", self.fail_below, Range(above=0, high=1))
            if self.checks is None:
                raise ValueError("--fail-below is for the checks of --checks: give them, too.")

    def load(self, prompt: str | list[dict], queries: list) -> list[AnswerCheck]:
        """The checks, none without a file. What is wrong with them for these queries is said before anything is loaded."""
        from ..data.repeats import passages_of
        from ..evaluation.answer_checks import check_applies, load_checks

        if self.checks is None:
            return []
        loaded = load_checks(self.checks)
        # Queries that stand in the prompt are not scored
        scored = [query for query, passage in zip(queries, passages_of(prompt, queries)) if passage is None]
        check_applies(loaded, scored or queries)
        return loaded

    def end(self, loaded: list[AnswerCheck], scores: dict) -> None:
        """End the command with exit code 1 if [BE] passes a check of `scores["checks"]` too rarely."""
        from ..evaluation.answer_checks import failed_checks

        found = scores.get("checks", {})
        failed = failed_checks(loaded, found, self.fail_below)
        if failed:
            rates = [
                f"'{name}' in {passed(found[name], 'be')}, which is below {least}" for name, least in failed.items()
            ]
            fail(f"[BE] passes {len(failed)} of {len(loaded)} checks in too few answers: {', '.join(rates)}.")


def add_check_rows(table: Table, scores: dict, sides: Sequence[str] = ("full", "no_prompt", "be")) -> None:
    """The rows of a table on checks."""
    for name, score in scores.items():
        table.add_row(name, *(passed(score, side) for side in sides))


def passed(score: dict, side: str) -> str:
    """How many answers of a side pass a check."""
    return f"{round(score[side] * score['num_answers'])} of {score['num_answers']}"


def show_lost(scores: dict) -> None:
    """Say which checks [BE] has lost, and for which there are too few answers to tell."""
    lost = {name: score for name, score in scores.items() if score["lost"]}
    for name, score in lost.items():
        say(
            f"Lost: '{name}'. {score['only_full']} answers pass with the full prompt alone, {score['only_be']} with [BE] alone "
            f"{chance(score)}."
        )
    if not lost:
        say("No check is clearly lost (McNemar's exact test, p < 0.05).")
    show_few(scores)


def chance(score: dict) -> str:
    """How often chance would make such a difference."""
    return f"(McNemar's exact test: p = {score['p_value']:.2g})"


def show_few(scores: dict) -> None:
    """Say for which checks there are too few answers to tell."""
    from ..evaluation.answer_checks import MIN_LOST

    few = [f"'{name}' ({score['num_answers']})" for name, score in scores.items() if score["num_answers"] < MIN_LOST]
    if few:
        say(
            f"It takes {MIN_LOST} lost answers to tell a loss, and there are fewer for {', '.join(few)}: give more queries."
        )


def warn_of_cuts(cut: int, answers: int, max_answer_length: int, whose: str = "the full prompt") -> None:
    """Warn if answers were cut: how they would have ended, no check can see."""
    if cut:
        warnings.warn(
            f"{cut} of {answers} answers of {whose} are as long as they may be, {max_answer_length} tokens, and checks see "
            "no more of them: raise --max-answer-length.",
            stacklevel=2,
        )
