"""The report of a comparison of methods: a markdown table, and one HTML file that opens without a network."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from .charts import DASHES, MINUS, Axis, Line, Pin, bar, line_chart, pin_chart, strip_axis, strip_chart


ASSETS = Path(__file__).parent.parent / "assets" / "report"
PAGES = Environment(
    loader=FileSystemLoader(ASSETS), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
)
MISSING = "–"
COLOURS = 8  # in the page's style
# Scores below this are drawn at the lower edge, or one that failed would leave no room for the others
LOWEST_GAP = -0.5


@dataclass(frozen=True)
class Cell:
    """
    A figure of one method.

    Attributes:
        text (`str`): the mean over its runs, as shown.
        value (`float`, *optional*): the same as a number; `None` where there is none.
        spread (`str`): from which to which value it goes, or from how little it comes.
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
    Column("bytes", "Size", "What is kept beside the model: text, or numbers in float32"),
    Column("kl", "KL", "KL(full prompt || method), nats a token, over the full prompt's answers; less is closer"),
    Column("gap", "KL gap closed", "1 is the full prompt's behaviour, 0 that of no prompt"),
    Column("top1", "Same top token", "Share of these tokens at which both find the same token the most probable"),
    Column("rouge", "ROUGE-L", "Of greedy answers against the full prompt's"),
    Column("task", "Task score", "Mean over runs; the standard error is that of the test questions"),
    Column("retention", "Task retention", "Task score in parts of the full prompt's"),
    Column("ttft", "First token", "Time to the first token, one request, nothing cached"),
    Column("kv", "KV cache", "Keys and values of a request's input"),
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


def markdown_table(results: dict) -> str:
    """
    The headline figures of a comparison as a markdown table, with notes and failed methods below.

    Args:
        results (`dict`): what the comparison found.

    Returns:
        `str`: markdown. Labels and errors are escaped.
    """
    rows, columns = _rows(results), _columns(results)
    table = [["Method", *(_markdown(column.heading) for column in columns)]]
    table.append(["---", *["---:"] * len(columns)])
    for row in _shown(rows):
        cells = [row.cells[column.key] for column in columns]
        texts = [f"{cell.text} ({cell.spread})" if cell.spread else cell.text for cell in cells]
        table.append([_markdown(row.label), *texts])
    lines = ["| " + " | ".join(cells) + " |" for cells in table] if len(table) > 2 else ["No method has a result."]
    notes = [f"- {_markdown(note)}" for note in _notes(results, rows)]
    notes += [f"- Failed: {_markdown(row.label)}: {_markdown(row.error)}" for row in rows if row.error]
    return "\n".join(lines + ([""] + notes if notes else [])) + "\n"


def html_report(results: dict) -> str:
    """
    A comparison as one HTML page that contains all it needs. It is complete without scripts; these sort the table and choose a
    query.

    Args:
        results (`dict`): what the comparison found. Parts that are missing have no section.

    Returns:
        `str`: HTML. All texts of the results are escaped, and the page's own policy lets nothing but its own script run.
    """
    rows = _rows(results)
    shown = _shown(rows)
    script, style = ((ASSETS / name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    kl_none = next((row.cells["kl"].value for row in rows if row.name == "none"), None)
    reference = None if kl_none is None else (kl_none, "no prompt, test")
    return PAGES.get_template("page.html").render(
        title=_title(results),
        facts=_facts(results),
        columns=_columns(results),
        rows=shown,
        failed=[row for row in rows if row.error],
        notes=_notes(results, rows),
        bar=_gap_bar,
        trade_off=_trade_off(shown),
        sections=[
            section
            for section in (
                _lines(
                    shown,
                    "curves",
                    "Training",
                    "KL on the validation queries while training, the teacher's answers as target. Pale lines are the other "
                    "methods. The dashed horizontal line is the KL of no prompt, on the test queries.",
                    lambda run: run.get("curve"),
                    "steps",
                    "validation KL, nats a token",
                    reference=reference,
                ),
                _lines(
                    shown,
                    "norms",
                    "Length of the learned vectors",
                    "Their Euclidean length while training. Each panel has a scale of its own.",
                    lambda run: run.get("norm"),
                    "steps",
                    "length",
                    together=False,
                ),
                _lines(
                    shown,
                    "reconstruction",
                    "Reconstruction of the prompt",
                    "Share of the prompt's first tokens that come back from the stand-in. Pale lines are the other methods.",
                    lambda run: (run.get("reconstruction") or {}).get("curve"),
                    "first tokens of the prompt",
                    "share that is right",
                    high=1.0,
                    extra=_reconstruction_figures,
                ),
            )
            if section
        ],
        strips=_strips(results, rows),
        queries=_queries(results, rows),
        tables=_tables(results),
        has_task=any(row.cells["task"].value is not None for row in rows),
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _rows(results: dict) -> list[Row]:
    prompt_tokens = (results.get("prompt") or {}).get("tokens")
    rows = []
    for method in results.get("methods") or []:
        name, number = method.get("name") or "", sum(not row.is_bound for row in rows) + 1
        sign, css = {"full": ("P", "full"), "none": ("0", "none")}.get(
            name, (str(number), f"m{(number - 1) % COLOURS + 1}")
        )
        row = Row(name, method.get("label") or name or MISSING, sign, css, method.get("runs") or [])
        row.error = " ".join(str(method["error"]).split()) if method.get("error") else None
        row.cells = _cells(row, method, prompt_tokens)
        rows.append(row)
    _add_retention(rows)
    return rows


def _shown(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.runs]


def _cells(row: Row, method: dict, prompt_tokens: int | None) -> dict[str, Cell]:
    def over_runs(key: str, show: Callable[[float], str], with_spread: bool = False) -> Cell:
        values = [value for run in row.runs if _is_number(value := run.get(key))]
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
    ratio = prompt_tokens / tokens if _is_number(tokens) and _is_number(prompt_tokens) and tokens > 0 else None
    tasks = [task for run in row.runs if _is_number((task := run.get("task") or {}).get("score"))]
    score = statistics.fmean(task["score"] for task in tasks) if tasks else None
    error = _standard_error(tasks)
    return {
        "tokens": Cell(f"{tokens:,}", tokens) if _is_number(tokens) else Cell(),
        "compression": Cell(f"{ratio:,.0f}×" if ratio >= 100 else f"{ratio:.3g}×", ratio) if ratio else Cell(),
        "bytes": Cell(_size(size), size) if _is_number(size) else Cell(),
        "kl": over_runs("kl", _fixed(4), with_spread=True),
        "gap": over_runs("kl_gap_closed", _fixed(3), with_spread=True),
        "top1": over_runs("top1_agreement", _fixed(3)),
        "rouge": over_runs("answer_rouge_l", _fixed(3)),
        "task": Cell()
        if score is None
        else Cell(_fixed(3)(score), score, "" if error is None else f"± {_fixed(3)(error)}"),
        "retention": Cell(),
        "ttft": over_runs("ttft_ms", lambda ms: f"{ms:,.0f} ms" if ms >= 10 else f"{ms:.1f} ms"),
        "kv": over_runs("kv_bytes", _size),
        "fit": over_runs("fit_seconds", _duration),
    }


def _add_retention(rows: list[Row]) -> None:
    """Fill in the parts of the full prompt's score that remain, if the prompt matters to the task at all."""
    if _retention_obstacle(rows):
        return
    full = next(row.cells["task"].value for row in rows if row.name == "full")
    for row in rows:
        if (score := row.cells["task"].value) is not None:
            row.cells["retention"] = Cell(_fixed(3)(score / full), score / full)


def _retention_obstacle(rows: list[Row]) -> str | None:
    """Why task scores cannot be given in parts of the full prompt's; `None` if they can."""
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
    errors = [task["stderr"] for task in tasks if _is_number(task.get("stderr"))]
    return statistics.fmean(errors) if errors else None


def _columns(results: dict) -> list[Column]:
    """The columns in which some method has something."""
    rows = _rows(results)
    task = results.get("task")
    found = [c for c in COLUMNS if any(row.cells[c.key].value is not None for row in _shown(rows))]
    # A dash in every row says that there is no retention, and the note below says why
    keys = {c.key for c in found} | ({"retention"} if any(c.key == "task" for c in found) else set())
    named = {"task": str(task)} if task else {}
    return [Column(c.key, named.get(c.key, c.heading), c.meaning) for c in COLUMNS if c.key in keys]


def _notes(results: dict, rows: list[Row]) -> list[str]:
    notes = []
    once = [row.label for row in rows if row.cells["kl"].spread == "one seed" or row.cells["gap"].spread == "one seed"]
    if once:
        notes.append(f"One seed only: {', '.join(once)}. A small difference to another method may be chance.")
    if any(row.cells["task"].value is not None for row in rows) and (obstacle := _retention_obstacle(rows)):
        notes.append(f"No task retention: {obstacle}.")
    wanted = len(results.get("seeds") or [])
    for row in rows:
        if not row.is_bound and 1 < len(row.runs) < wanted:
            notes.append(f"{row.label}: {len(row.runs)} of {wanted} seeds.")
    return notes


def _title(results: dict) -> str:
    tokens = (results.get("prompt") or {}).get("tokens")
    return (
        f"What can stand in for {tokens:,} prompt tokens?" if _is_number(tokens) else "What can stand in for a prompt?"
    )


def _facts(results: dict) -> list[tuple[str, str]]:
    """The setting in a few words, without what is not known."""
    prompt, counts, budget = (results.get(key) or {} for key in ("prompt", "num_queries", "budget"))
    answers = results.get("num_answer_tokens")
    limits = [
        f"{budget['max_steps']:,} steps" if _is_number(budget.get("max_steps")) else None,
        f"{budget['max_minutes']:g} min" if _is_number(budget.get("max_minutes")) else None,
    ]
    facts = {
        "Model": results.get("model"),
        "Prompt": prompt.get("name"),
        "Test queries": f"{counts['test']:,}" if _is_number(counts.get("test")) else None,
        "Answer tokens scored": f"{answers:,}" if _is_number(answers) else None,
        "Training queries": f"{counts['train']:,}" if _is_number(counts.get("train")) else None,
        "Budget of a run": " or ".join(filter(None, limits)),
        "Seeds": ", ".join(map(str, results.get("seeds") or [])),
        "Task": results.get("task"),
    }
    return [(name, str(value)) for name, value in facts.items() if value]


def _tables(results: dict) -> list[tuple[str, list[tuple[str, str]]]]:
    """Settings, machine and versions, each with the parts that are known."""
    counts, budget = results.get("num_queries") or {}, results.get("budget") or {}
    settings = {
        "model": results.get("model"),
        **{f"prompt {key}": value for key, value in (results.get("prompt") or {}).items()},
        **{f"{key} queries": value for key, value in counts.items()},
        "longest answer, tokens": results.get("max_answer_length"),
        "answer tokens scored": results.get("num_answer_tokens"),
        **{key.replace("_", " "): value for key, value in budget.items()},
        "seeds": ", ".join(map(str, results.get("seeds") or [])),
        "task": results.get("task"),
    }
    tables = {"Settings": settings, "Machine": results.get("machine") or {}, "Versions": results.get("versions") or {}}
    shown = {
        title: [(key, str(value)) for key, value in table.items() if value not in (None, "")]
        for title, table in tables.items()
    }
    return [(title, entries) for title, entries in shown.items() if entries]


def _gap_bar(row: Row) -> Markup:
    cell = row.cells["gap"]
    return Markup("") if cell.value is None else bar(cell.value, cell.low, cell.high, row.css)


def _trade_off(rows: list[Row]) -> Markup | None:
    """The gap closed against the compression."""
    rows = [row for row in rows if row.cells["gap"].value is not None and row.cells["compression"].value]
    if all(row.is_bound for row in rows):
        return None
    compressions = [row.cells["compression"].value for row in rows]
    x = Axis(min(1, *compressions) / 1.3, max(10, *compressions) * 1.4, "compression", log=True, unit="×")
    gaps = [row.cells["gap"] for row in rows]
    lowest = max(LOWEST_GAP, min(0.0, *(cell.low for cell in gaps)))
    y = Axis(lowest - 0.02 if lowest else 0.0, max(1.0, *(cell.high for cell in gaps)) * 1.04, "KL gap closed")
    pins = []
    for row in rows:
        gap = row.cells["gap"]
        label = row.label if gap.value >= lowest else f"{row.label}: {gap.text}"
        pins.append(Pin(row.cells["compression"].value, gap.value, row.sign, label, row.css, gap.low, gap.high))
    # The others make room for the full prompt, which is where everybody looks for it
    pins.sort(key=lambda pin: pin.css != "full")
    described = "; ".join(f"{row.label}: {row.cells['gap'].text} at {row.cells['compression'].text}" for row in rows)
    return pin_chart(
        x, y, pins, f"KL gap closed against compression. {described}", [(1.0, "full prompt"), (0.0, "no prompt")]
    )


def _lines(
    rows: list[Row],
    key: str,
    heading: str,
    text: str,
    curve: Callable[[dict], list | None],
    x_label: str,
    y_label: str,
    together: bool = True,
    high: float | None = None,
    reference: tuple[float, str] | None = None,
    extra: Callable[[Row], str] | None = None,
) -> dict | None:
    """A section with a panel for each method that has such a curve; `together` on one scale, with the others behind."""
    curves: dict[int, list[tuple[str, list[tuple[float, float]]]]] = {}
    for i, row in enumerate(rows):
        for run in row.runs:
            points = [(p[0], p[1]) for p in curve(run) or [] if len(p) == 2 and all(map(_is_number, p))]
            if points:
                curves.setdefault(i, []).append((_seed(run), points))
    if not curves:
        return None
    seeds = sorted({seed for lines in curves.values() for seed, _ in lines})

    def axes(lines: list) -> tuple[Axis, Axis]:
        points = [point for _, points in lines for point in points]
        top = high or max([b for _, b in points] + ([reference[0]] if reference else []))
        if reference and not high:
            top = min(top, 2.5 * reference[0])  # what starts far above would press the rest to the ground
        return (
            Axis(0, max(a for a, _ in points) or 1, x_label),
            Axis(0, (top or 1) * (1 if high else 1.08), y_label),
        )

    everything = [line for lines in curves.values() for line in lines]
    panels = []
    for i, own in curves.items():
        x, y = axes(everything if together else own)
        others = [line for j, lines in curves.items() if j != i for line in lines] if together else []
        lines = [Line(points, name, "other") for name, points in others]
        lines += [Line(points, f"{rows[i].label}, {name}", rows[i].css, seeds.index(name)) for name, points in own]
        last = [points[-1][1] for _, points in own]
        show = _fixed(3 if max(map(abs, last)) < 10 else 0)
        ends = " to ".join(dict.fromkeys(map(show, (min(last), max(last)))))
        caption = extra(rows[i]) if extra else f"at the end: {ends}"
        title = f"{heading}: {rows[i].label}; {caption}"
        panels.append((rows[i], caption, line_chart(x, y, lines, title, reference=reference)))
    legend = [(seed, DASHES[i % len(DASHES)]) for i, seed in enumerate(seeds)]
    return {"id": key, "heading": heading, "text": text, "panels": panels, "legend": legend}


def _reconstruction_figures(row: Row) -> str:
    found = [run["reconstruction"] for run in row.runs if run.get("reconstruction")]
    parts = []
    for key, text in (("token_accuracy", "tokens right"), ("greedy_prefix_match", "up to the first mistake")):
        values = [value for figures in found if _is_number(value := figures.get(key))]
        if values:
            parts.append(f"{text}: {statistics.fmean(values):.3f}")
    return ", ".join(parts)


def _strips(results: dict, rows: list[Row]) -> dict | None:
    """KL of every query, for no prompt and each method, as means over the runs."""
    kl = {row.sign: _query_kl(row) for row in rows if row.name != "full"}
    kl = {sign: values for sign, values in kl.items() if values}
    if not kl:
        return None
    queries = results.get("queries") or []
    none = kl.get("0", {})
    highest = max(value for values in kl.values() for value in values.values())
    if none and highest > 2 * max(none.values()) > 0:
        highest = 2 * max(none.values())
    x = Axis(0, highest or 1, "KL of a query's answer, nats a token")
    strips = []
    for row in sorted((row for row in rows if row.sign in kl), key=lambda row: row.name != "none"):
        values = kl[row.sign]
        both = [i for i in values if i in none]
        closer = sum(values[i] < none[i] for i in both)
        caption = f"closer than no prompt on {closer} of {len(both)}" if both and row.name != "none" else ""
        mean = statistics.fmean(values.values())
        dots = [(i, v, f"{v:.3f}: {queries[i] if i < len(queries) else f'query {i + 1}'}") for i, v in values.items()]
        title = f"KL of {len(values)} queries, {row.label}: mean {mean:.3f}. {caption}"
        strips.append((row, f"mean {mean:.3f}", caption, strip_chart(x, dots, mean, row.css, title)))
    beyond = any(value > highest for values in kl.values() for value in values.values())
    return {"strips": strips, "axis": strip_axis(x), "beyond": beyond, "choose": bool(queries)}


def _query_kl(row: Row) -> dict[int, float]:
    """Mean over the runs, by the query's number."""
    found: dict[int, list[float]] = {}
    for run in row.runs:
        for i, value in enumerate(run.get("query_kl") or []):
            if _is_number(value):
                found.setdefault(i, []).append(value)
    return {i: statistics.fmean(values) for i, values in found.items()}


def _queries(results: dict, rows: list[Row]) -> list[dict]:
    """Each query with the full prompt's answer and those of all methods, the first run in front."""
    full_answers = results.get("full_answers") or []
    queries = []
    for i, query in enumerate(results.get("queries") or []):
        cards = []
        for row in rows:
            answers = [
                {"text": run["answers"][i], "source": _source(run, i)}
                for run in row.runs
                if i < len(run.get("answers") or [])
            ]
            if answers and row.name != "full":
                cards.append({"row": row, "answers": answers})
        full = full_answers[i] if i < len(full_answers) else None
        if cards or full is not None:
            queries.append({"number": i, "text": query, "full": full, "cards": cards})
    return queries


def _source(run: dict, query: int) -> str:
    """A run's seed and its KL for a query, as far as known."""
    kl = (run.get("query_kl") or [])[query : query + 1]
    parts = [] if run.get("seed") is None else [_seed(run)]
    return ", ".join(parts + [f"KL {value:.3f}" for value in kl if _is_number(value)])


def _seed(run: dict) -> str:
    return "no seed" if run.get("seed") is None else f"seed {run['seed']}"


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _fixed(digits: int) -> Callable[[float], str]:
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


def _markdown(text: str) -> str:
    """Text in one line of a table, without a meaning in markdown or HTML."""
    return re.sub(r"([\\`*_|~<>\[\]])", r"\\\1", " ".join(str(text).split())).replace("&", "&amp;")
