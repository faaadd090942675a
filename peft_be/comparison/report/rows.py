"""What a report says about each method: figures over its runs, and notes on them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

from .svg import MINUS


MISSING = "–"
COLOURS = 8  # in the page's style


@dataclass(frozen=True)
class Cell:
    """
    A figure of one method.

    Attributes:
        text (`str`): the mean over its runs, as shown.
        value (`float`, *optional*): the same as a number; `None` where there is none.
        spread (`str`): the range of its runs, or on how little it rests.
        low (`float`): least value of a run.
        high (`float`): largest value of a run.
    """

    text: str = MISSING
    value: float | None = None
    spread: str = ""
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class Column:
    """One column of the table: its key, its heading, and what it means."""

    key: str
    heading: str
    meaning: str


COLUMNS = (
    Column("tokens", "Tokens", "Positions in the context that stand for the prompt"),
    Column("compression", "Compression", "Tokens of the prompt for each of these"),
    Column("bytes", "Size", "What is kept in addition to the model: text, or numbers in float32"),
    Column("kl", "KL", "KL(full prompt || method), nats a token, over the full prompt's answers; less is closer"),
    Column("gap", "KL gap closed", "1 is the full prompt's behaviour, 0 that of no prompt"),
    Column("top1", "Same top token", "Share of these tokens at which both find the same token the most probable"),
    Column("rouge", "ROUGE-L", "Of greedy answers against the full prompt's"),
    Column("task", "Task score", "Mean over runs; the standard error is that of the test questions"),
    Column("retention", "Task retention", "Task score in parts of the full prompt's"),
    Column("ttft", "First token", "Time to the first token, one request, nothing cached"),
    Column("kv", "KV cache", "Keys and values of a request's input"),
    Column("steps", "Steps", "Of training, mean over runs: a time budget holds few of a method whose steps are long"),
    Column("fit", "Fit time", "Time to make the stand-in, mean over runs"),
)


@dataclass
class Row:
    """
    What the report says about one method.

    Attributes:
        name (`str`): its name in the results.
        label (`str`): its name for readers.
        sign (`str`): what stands for it in charts.
        css (`str`): class of its colour.
        runs (`list[dict]`): its runs.
        cells (`dict[str, Cell]`): its figures, by the keys of [`COLUMNS`].
        error (`str`, *optional*): why it failed.
    """

    name: str
    label: str
    sign: str
    css: str
    runs: list[dict]
    cells: dict[str, Cell] = field(default_factory=dict)
    error: str | None = None

    @property
    def is_bound(self) -> bool:
        return self.name in ("full", "none")


def report_rows(results: dict) -> list[Row]:
    """All methods, also those that failed."""
    prompt_tokens = (results.get("prompt") or {}).get("tokens")
    rows = []
    for method in results.get("methods") or []:
        name, number = method.get("name") or "", sum(not row.is_bound for row in with_runs(rows)) + 1
        sign, css = {"full": ("P", "full"), "none": ("0", "none")}.get(
            name, (str(number), f"m{(number - 1) % COLOURS + 1}")
        )
        row = Row(name, method.get("label") or name or MISSING, sign, css, method.get("runs") or [])
        row.error = " ".join(str(method["error"]).split()) if method.get("error") else None
        row.cells = _cells(row, method, prompt_tokens)
        rows.append(row)
    _add_retention(results, rows)
    return rows


def with_runs(rows: list[Row]) -> list[Row]:
    """The methods that have something to show."""
    return [row for row in rows if row.runs]


def _cells(row: Row, method: dict, prompt_tokens: int | None) -> dict[str, Cell]:
    def over_runs(key: str, show: Callable[[float], str], with_spread: bool = False) -> Cell:
        values = [value for run in row.runs if is_number(value := run.get(key))]
        if not values:
            return Cell()
        mean, low, high = statistics.fmean(values), min(values), max(values)
        spread = ""
        if with_spread and len(values) > 1:
            spread = f"{show(low)} to {show(high)}"
        elif with_spread and not row.is_bound:
            spread = "one seed" if method.get("trains", True) else "one run"
        return Cell(show(mean), mean, spread, low, high)

    tokens, size = method.get("tokens"), method.get("bytes")
    ratio = prompt_tokens / tokens if is_number(tokens) and is_number(prompt_tokens) and tokens > 0 else None
    tasks = [task for run in row.runs if is_number((task := run.get("task") or {}).get("score"))]
    score = statistics.fmean(task["score"] for task in tasks) if tasks else None
    error = _standard_error(tasks)
    return {
        "tokens": Cell(f"{tokens:,}", tokens) if is_number(tokens) else Cell(),
        "compression": Cell(f"{ratio:,.0f}×" if ratio >= 100 else f"{ratio:.3g}×", ratio) if ratio else Cell(),
        "bytes": Cell(_size(size), size) if is_number(size) else Cell(),
        "kl": over_runs("kl", fixed(4), with_spread=True),
        "gap": over_runs("kl_gap_closed", fixed(3), with_spread=True),
        "top1": over_runs("top1_agreement", fixed(3)),
        "rouge": over_runs("answer_rouge_l", fixed(3)),
        "task": Cell()
        if score is None
        else Cell(fixed(3)(score), score, "" if error is None else f"± {fixed(3)(error)}"),
        "retention": Cell(),
        "ttft": over_runs("ttft_ms", lambda ms: f"{ms:,.0f} ms" if ms >= 10 else f"{ms:.1f} ms"),
        "kv": over_runs("kv_bytes", _size),
        "steps": over_runs("steps", lambda steps: f"{steps:,.0f}"),
        "fit": over_runs("fit_seconds", _duration),
    }


def _add_retention(results: dict, rows: list[Row]) -> None:
    """Fill in the parts of the full prompt's score that remain, if the prompt matters to the task at all."""
    if _retention_obstacle(results, rows):
        return
    full = next(row.cells["task"].value for row in rows if row.name == "full")
    for row in rows:
        if (score := row.cells["task"].value) is not None:
            row.cells["retention"] = Cell(fixed(3)(score / full), score / full)


def _retention_obstacle(results: dict, rows: list[Row]) -> str | None:
    """Why task scores cannot be given in parts of the full prompt's; `None` if they can."""
    if results.get("task_lower_is_better"):
        return "of this task, lower scores are better"
    bounds = {row.name: row for row in rows if row.is_bound and row.cells["task"].value is not None}
    if len(bounds) < 2:
        return "the full prompt or no prompt has no score"
    full, none = (bounds[name].cells["task"].value for name in ("full", "none"))
    errors = [_standard_error([run.get("task") or {} for run in row.runs]) for row in bounds.values()]
    if None in errors:
        return "the scores' standard errors are not known"
    noise = 2 * math.hypot(*errors)
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
    task = results.get("task")
    found = [c for c in COLUMNS if any(row.cells[c.key].value is not None for row in with_runs(rows))]
    # A dash in every row says that there is no retention, and the note below says why
    keys = {c.key for c in found} | ({"retention"} if any(c.key == "task" for c in found) else set())
    named = {"task": str(task)} if task else {}
    return [Column(c.key, named.get(c.key, c.heading), c.meaning) for c in COLUMNS if c.key in keys]


def report_notes(results: dict, rows: list[Row]) -> list[str]:
    """What the figures alone do not say."""
    notes = []
    once = [row.label for row in rows if row.cells["kl"].spread == "one seed" or row.cells["gap"].spread == "one seed"]
    if once:
        notes.append(f"One seed only: {', '.join(once)}. A small difference to another method may be chance.")
    if any(row.cells["task"].value is not None for row in rows) and (obstacle := _retention_obstacle(results, rows)):
        notes.append(f"No task retention: {obstacle}.")
    wanted = len(results.get("seeds") or [])
    for row in rows:
        if not row.is_bound and 1 < len(row.runs) < wanted:
            notes.append(f"{row.label}: {len(row.runs)} of {wanted} seeds.")
    return notes


def is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


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
