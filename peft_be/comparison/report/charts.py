"""The charts of a comparison's report."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from markupsafe import Markup

from ...figures import gap_closed
from .rows import Row, fixed, is_number
from .svg import DASHES, Axis, Line, Pin, bar, line_chart, pin_chart, strip_axis, strip_chart


# Scores below this are drawn at the lower edge: otherwise a failed method would leave no room for the others
LOWEST_GAP = -0.5


def gap_bar(row: Row) -> Markup:
    """The KL gap closed, for a cell of the table."""
    cell = row.cells["gap"]
    return Markup("") if cell.value is None else bar(cell.value, cell.low, cell.high, row.css)


def trade_off(rows: list[Row]) -> Markup | None:
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


def curve_sections(rows: list[Row]) -> list[dict]:
    """The sections with a panel for each method, as far as there is something to show."""
    known = any(_no_prompt_on_validation(row) for row in rows)
    sections = [
        _lines(
            rows,
            "curves",
            "Training",
            "KL on the validation queries while training, the teacher's answers as target. Pale lines are the other "
            "methods." + (" The dashed horizontal line is the KL of no prompt on the same queries." if known else ""),
            lambda run: run.get("curve"),
            "steps",
            "validation KL, nats a token",
            reference=_no_prompt_on_validation,
        ),
        _lines(
            rows,
            "norms",
            "Length of the learned vectors",
            "Their Euclidean length while training. Each panel has a scale of its own.",
            lambda run: run.get("norm"),
            "steps",
            "length",
            together=False,
        ),
        _lines(
            rows,
            "reconstruction",
            "Reconstruction of the prompt",
            "Share of the prompt's first n tokens that the model writes when all before them are given. Pale lines are the other methods.",
            lambda run: (run.get("reconstruction") or {}).get("curve"),
            "first tokens of the prompt",
            "share that is right",
            high=1.0,
            extra=_reconstruction_figures,
        ),
    ]
    return [section for section in sections if section]


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
    reference: Callable[[Row], tuple[float, str] | None] = lambda row: None,
    extra: Callable[[Row], str] | None = None,
) -> dict | None:
    """A section with a panel for each method that has such a curve; `together` on one scale, with the other methods in the background."""
    curves: dict[int, list[tuple[str, list[tuple[float, float]]]]] = {}
    for i, row in enumerate(rows):
        for run in row.runs:
            points = [(p[0], p[1]) for p in curve(run) or [] if len(p) == 2 and all(map(is_number, p))]
            if points:
                curves.setdefault(i, []).append((seed_of(run), points))
    if not curves:
        return None
    seeds = sorted({seed for lines in curves.values() for seed, _ in lines})
    references = {i: found for i in curves if (found := reference(rows[i]))}

    def axes(lines: list, heights: list[float]) -> tuple[Axis, Axis]:
        points = [point for _, points in lines for point in points]
        top = high or max([b for _, b in points] + heights)
        if heights and not high:
            top = min(top, 2.5 * max(heights))  # what starts far above would press the rest to the ground
        return (
            Axis(0, max(a for a, _ in points) or 1, x_label),
            Axis(0, (top or 1) * (1 if high else 1.08), y_label),
        )

    everything = [line for lines in curves.values() for line in lines]
    panels = []
    for i, own in curves.items():
        levels = {j: level for j, (level, _) in references.items() if together or j == i}
        x, y = axes(everything if together else own, list(levels.values()))
        others = [line for j, lines in curves.items() if j != i for line in lines] if together else []
        lines = [Line(points, name, "other") for name, points in others]
        lines += [Line(points, f"{rows[i].label}, {name}", rows[i].css, seeds.index(name)) for name, points in own]
        last = [points[-1][1] for _, points in own]
        show = fixed(3 if max(map(abs, last)) < 10 else 0)
        ends = " to ".join(dict.fromkeys(map(show, (min(last), max(last)))))
        caption = extra(rows[i]) if extra else f"at the end: {ends}"
        if i in references:
            kl_no_prompt = references[i][0]
            gap = gap_closed(statistics.fmean(last), kl_no_prompt)
            caption += f" of {show(kl_no_prompt)} without a prompt" + (
                "" if gap is None else f", gap closed {gap:.3f}"
            )
        title = f"{heading}: {rows[i].label}; {caption}"
        panels.append((rows[i], caption, line_chart(x, y, lines, title, reference=references.get(i))))
    legend = [(seed, DASHES[i % len(DASHES)]) for i, seed in enumerate(seeds)]
    return {"id": key, "heading": heading, "text": text, "panels": panels, "legend": legend}


def _no_prompt_on_validation(row: Row) -> tuple[float, str] | None:
    """The KL of no prompt on a method's validation answers, which are the same for all of its runs."""
    values = [value for run in row.runs if is_number(value := run.get("curve_no_prompt"))]
    return (statistics.fmean(values), "no prompt, validation") if values else None


def _reconstruction_figures(row: Row) -> str:
    found = [run["reconstruction"] for run in row.runs if run.get("reconstruction")]
    parts = []
    for key, text in (("token_accuracy", "tokens right"), ("greedy_prefix_match", "up to the first mistake")):
        values = [value for figures in found if is_number(value := figures.get(key))]
        if values:
            parts.append(f"{text}: {statistics.fmean(values):.3f}")
    return ", ".join(parts)


def query_strips(results: dict, rows: list[Row]) -> dict | None:
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
            if is_number(value):
                found.setdefault(i, []).append(value)
    return {i: statistics.fmean(values) for i, values in found.items()}


def seed_of(run: dict) -> str:
    return "no seed" if run.get("seed") is None else f"seed {run['seed']}"
