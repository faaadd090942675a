"""What a report says about each method: figures over its runs, and notes on them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeGuard

from ...evaluation.answer_checks import ALL_CHECKS
from .svg import MINUS


MISSING = "–"
COLOURS = 8  # in the page's style
LABELS = {"full": "Full prompt", "none": "No prompt", "be": "[BE]"}
# What stands next to a figure that a note is about
ONE_SEED, SOME_SEEDS, NO_RETENTION, UNCHANGED = "†", "‡", "§", "¶"


@dataclass(frozen=True)
class Cell:
    """
    A figure of one method.

    Attributes:
        text (`str`): the mean over its runs, as shown.
        value (`float`, *optional*): the same as a number; `None` if there is none.
        spread (`str`): the range of its runs, an interval over the queries, or a standard error.
        low (`float`): least value of a run.
        high (`float`): largest value of a run.
    """

    text: str = MISSING
    value: float | None = None
    spread: str = ""
    low: float = math.nan
    high: float = math.nan

    @property
    def number(self) -> float:
        """`value`, where it is known that there is one."""
        assert self.value is not None
        return self.value


@dataclass(frozen=True)
class Column:
    """One column of the table: its key, its heading, what it means, and which end of it is best: `high` or `low`."""

    key: str
    heading: str
    meaning: str
    best: str


COLUMNS = (
    Column("checks", "All checks", "Share of the answers that pass all checks that apply to their query", "high"),
    Column("task", "Task score", "Mean over runs, with the standard error over the test questions", "high"),
    Column("retention", "Task retention", "Task score divided by the full prompt's", "high"),
    Column(
        "median",
        "Median gap",
        "KL gap closed on the middle query, and the 95 % interval for other such queries; 1 is the full prompt, 0 no prompt",
        "high",
    ),
    Column("behaviour", "Gap without quotations", "KL gap closed over the tokens not quoted from the prompt", "high"),
    Column("gap", "Mean gap", "KL gap closed over all tokens of the answers, of which a few may decide", "high"),
    Column(
        "kl", "KL", "KL(full prompt || method), nats a token, over the full prompt's answers; less is closer", "low"
    ),
    Column(
        "tokens", "Tokens", "Positions in the context that stand for the prompt, and prompt tokens for each", "low"
    ),
    Column("ttft", "First token", "Time to the first token, one request, nothing cached", "low"),
    Column("kv", "KV cache", "Keys and values of a request's input", "low"),
    Column("bytes", "Size", "What is kept in addition to the model: text, or numbers in float32", "low"),
    Column("same", "Same answers", "Share of the greedy answers that are the full prompt's, word for word", "high"),
    Column("top1", "Same top token", "Share of tokens for which both find the same one the most probable", "high"),
    Column("rouge", "ROUGE-L", "Of greedy answers against the full prompt's", "high"),
    Column("steps", "Steps", "Of training, mean over runs: a time budget holds few steps of a slow method", "high"),
    Column("fit", "Fit time", "Time to make the stand-in, mean over runs", "low"),
)


@dataclass
class Row:
    """
    What the report says about one method.

    Attributes:
        name (`str`): its name in the results, such as `be:8`.
        sign (`str`): what stands for it in charts.
        css (`str`): class of its colour.
        runs (`list[dict]`): its runs.
        cells (`dict[str, Cell]`): its figures, by the keys of [`COLUMNS`], and its `compression`.
        error (`str`, *optional*): why it failed.
        mark (`str`): the mark of the note about its runs.
    """

    name: str
    sign: str
    css: str
    runs: list[dict]
    cells: dict[str, Cell] = field(default_factory=dict)
    error: str | None = None
    mark: str = ""

    @property
    def is_bound(self) -> bool:
        return self.name in ("full", "none")

    @property
    def kind(self) -> str:
        """The method's name for readers, without its number of tokens."""
        name = self.name.partition(":")[0] or MISSING
        return LABELS.get(name, name)

    @property
    def label(self) -> str:
        number = self.name.partition(":")[2]
        return f"{self.kind}, {count_tokens(number)}" if number else self.kind


def count_tokens(number: float | str) -> str:
    return f"{number} tokens" if isinstance(number, str) else f"{number:,} token{'' if number == 1 else 's'}"


def report_rows(results: dict) -> list[Row]:
    """
    All methods: the closest to the full prompt first, by their [`leading_gap`] or else their KL, then those without a KL, which
    are also those that failed.
    """
    rows = [_row(method, results) for method in results.get("methods") or []]
    lead = leading_gap(rows)
    rows.sort(key=lambda row: math.inf if row.cells["kl"].value is None else row.cells["kl"].value)
    rows.sort(key=lambda row: math.inf if row.cells[lead].value is None else -row.cells[lead].number)
    number = 0
    for row in rows:
        if row.runs and not row.is_bound:
            row.sign, row.css = str(number + 1), f"m{number % COLOURS + 1}"
            number += 1
    _add_retention(results, rows)
    return rows


def leading_gap(rows: list[Row]) -> str:
    """
    The gap that ranks the methods: the median, which a few queries cannot decide. Results of earlier versions have none, and
    are ranked by the mean.
    """
    return "median" if any(row.cells["median"].value is not None for row in rows) else "gap"


def query_interval(row: Row) -> tuple[float, float] | None:
    """The interval of a method's median over the queries: its ends, each as a mean over the runs."""
    found = [(run.get("gap") or {}).get("median_interval") for run in row.runs]
    known = [
        ends for ends in found if isinstance(ends, (list, tuple)) and all(map(is_number, ends)) and len(ends) == 2
    ]
    if not known:
        return None
    low, high = zip(*known)
    return statistics.fmean(low), statistics.fmean(high)


def with_runs(rows: list[Row]) -> list[Row]:
    """The methods that have something to show."""
    return [row for row in rows if row.runs]


def _row(method: dict, results: dict) -> Row:
    name = str(method.get("name") or "")
    sign, css = {"full": ("P", "full"), "none": ("0", "none")}.get(name, ("", ""))
    row = Row(name, sign, css, method.get("runs") or [])
    row.error = " ".join(str(method["error"]).split()) if method.get("error") else None
    row.cells = _cells(row.runs, method, (results.get("prompt") or {}).get("tokens"))
    if not row.is_bound and (interval := query_interval(row)):
        row.cells["median"] = replace(row.cells["median"], spread=_range(*map(fixed(2), interval)))
    if len(row.runs) == 1 and method.get("trains", True) and not row.is_bound:
        row.mark = ONE_SEED
    elif 1 < len(row.runs) < len(results.get("seeds") or []):
        row.mark = SOME_SEEDS
    return row


def _cells(runs: list[dict], method: dict, prompt_tokens: int | None) -> dict[str, Cell]:
    figures = [{**(run.get("gap") or {}), **run, "checks": _passed_all(run)} for run in runs]

    def over_runs(key: str, show: Callable[[float], str], with_spread: bool = False) -> Cell:
        values = [value for run in figures if is_number(value := run.get(key))]
        if not values:
            return Cell()
        mean, low, high = statistics.fmean(values), min(values), max(values)
        spread = _range(show(low), show(high)) if with_spread else ""
        return Cell(show(mean), mean, spread, low, high)

    # Where nothing is quoted, the mean says the same
    has_quotations = any(run.get("quoted_share") for run in figures)
    tokens, size = method.get("tokens"), method.get("bytes")
    ratio = prompt_tokens / tokens if is_number(tokens) and is_number(prompt_tokens) and tokens > 0 else None
    times = "" if ratio is None else f"{ratio:,.0f}×" if ratio >= 100 else f"{ratio:.3g}×"
    # No prompt has neither tokens nor a size
    place = "in the weights" if tokens == 0 and size else times
    tasks = [task for run in runs if is_number((task := run.get("task") or {}).get("score"))]
    score = statistics.fmean(task["score"] for task in tasks) if tasks else None
    error = _standard_error(tasks)
    task = "" if error is None else f"± {fixed(3)(error)}"
    return {
        "checks": over_runs("checks", fixed(3), with_spread=True),
        "median": over_runs("median", fixed(3)),
        "behaviour": over_runs("behaviour", fixed(3)) if has_quotations else Cell(),
        "gap": over_runs("kl_gap_closed", fixed(3), with_spread=True),
        "kl": over_runs("kl", fixed(4)),
        "tokens": Cell(f"{tokens:,}", tokens, place) if is_number(tokens) else Cell(),
        "compression": Cell(times, ratio) if ratio else Cell(),
        "task": Cell() if score is None else Cell(fixed(3)(score), score, task),
        "retention": Cell(),
        "ttft": over_runs("ttft_ms", lambda ms: f"{ms:,.0f} ms" if ms >= 10 else f"{ms:.1f} ms", with_spread=True),
        "kv": over_runs("kv_bytes", _size),
        "bytes": Cell(_size(size), size) if is_number(size) else Cell(),
        "same": over_runs("same_answers", fixed(3)),
        "top1": over_runs("top1_agreement", fixed(3)),
        "rouge": over_runs("answer_rouge_l", fixed(3)),
        "steps": over_runs("steps", lambda steps: f"{steps:,.0f}"),
        "fit": over_runs("fit_seconds", _duration, with_spread=True),
    }


def _passed_all(run: dict) -> float | None:
    """The share of a run's answers that pass all checks. A single check has no sum."""
    checks: dict[str, dict] = run.get("checks") or {}
    single: dict = next(iter(checks.values()), {})
    return checks.get(ALL_CHECKS, single).get("be")


def _add_retention(results: dict, rows: list[Row]) -> None:
    """Fill in which share of the full prompt's score remains, if the prompt matters to the task at all."""
    if _retention_obstacle(results, rows):
        return
    full = next(row.cells["task"].number for row in rows if row.name == "full")
    for row in rows:
        if (score := row.cells["task"].value) is not None:
            row.cells["retention"] = Cell(fixed(3)(score / full), score / full)


def _retention_obstacle(results: dict, rows: list[Row]) -> str | None:
    """Why task scores cannot be compared with the full prompt's by division; `None` if they can."""
    if results.get("task_lower_is_better"):
        return "lower scores are better in this task"
    bounds = {row.name: row for row in rows if row.is_bound and row.cells["task"].value is not None}
    if len(bounds) < 2:
        return "the full prompt or no prompt has no score"
    full, none = (bounds[name].cells["task"].number for name in ("full", "none"))
    errors = [_standard_error([run.get("task") or {} for run in row.runs]) for row in bounds.values()]
    known = [error for error in errors if error is not None]
    if len(known) < len(errors):
        return "the scores' standard errors are not known"
    noise = 2 * math.hypot(*known)
    if full - none <= noise:
        return (
            f"the full prompt ({full:.3f}) is not better than no prompt ({none:.3f}) by more than two standard errors of "
            f"their difference ({noise:.3f})"
        )
    return None


def _standard_error(tasks: list[dict]) -> float | None:
    """Mean over the runs: they share the test questions, so that more runs do not make it smaller."""
    errors = [task["stderr"] for task in tasks if is_number(task.get("stderr"))]
    return statistics.fmean(errors) if errors else None


def report_columns(results: dict, rows: list[Row]) -> list[Column]:
    """The columns in which some method has something."""
    columns = []
    has_task = any(row.cells["task"].value is not None for row in rows)
    for column in COLUMNS:
        if any(row.cells[column.key].value is not None for row in with_runs(rows)):
            marked = column.key == "median" and _unchanged(rows)
            columns.append(replace(column, heading=f"{column.heading} {UNCHANGED}") if marked else column)
        elif column.key == "retention" and has_task:
            columns.append(replace(column, heading=f"{column.heading} {NO_RETENTION}"))
    task = {"heading": str(results["task"])} if results.get("task") else {}
    task |= {"best": "low"} if results.get("task_lower_is_better") else {}
    return [replace(column, **task) if column.key == "task" else column for column in columns]


def report_notes(results: dict, rows: list[Row]) -> dict[str, str]:
    """What the figures alone do not say, by the marks in the table."""
    notes = {
        ONE_SEED: "One seed. Nobody knows how much of its figures is chance.",
        SOME_SEEDS: f"Fewer runs than the {len(results.get('seeds') or [])} seeds.",
    }
    notes = {mark: note for mark, note in notes.items() if any(row.mark == mark for row in rows)}
    if any(row.cells["task"].value is not None for row in rows) and (obstacle := _retention_obstacle(results, rows)):
        notes[NO_RETENTION] = f"No task retention: {obstacle}."
    if unchanged := _unchanged(rows):
        which = "1 query has" if unchanged == 1 else f"{unchanged} queries have"
        notes[UNCHANGED] = f"{which} no part in the median: the prompt changes next to nothing there."
    return notes


def _unchanged(rows: list[Row]) -> int:
    """Queries that are in no median: the same ones for all methods."""
    runs = [run for row in rows for run in row.runs if row.cells["median"].value is not None]
    found = [(run.get("gap") or {}).get("unchanged_queries") for run in runs]
    return next((int(count) for count in found if is_number(count)), 0)


def is_number(value) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _range(low: str, high: str) -> str:
    """Two figures with the unit they share said once; nothing if they look the same."""
    if low == high:
        return ""
    number, _, unit = low.partition(" ")
    return f"{number if high.endswith(f' {unit}') else low} to {high}"


def fixed(digits: int) -> Callable[[float], str]:
    return lambda value: f"{value:,.{digits}f}".replace("-", MINUS)


def _size(size: float) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if size >= factor:
            return f"{size / factor:,.{1 if size >= 10 * factor else 2}f} {unit}"
    return f"{size:,.0f} B"


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds:.1f} s" if seconds else MISSING
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
