"""The charts of a comparison's report."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup

from ...figures import gap_closed
from .rows import Row, fixed, is_number, leading_gap
from .svg import DASHES, Axis, Dot, Line, bar, plot


# Scores below this are drawn at the lower edge: otherwise a failed method would leave no room for the others
LOWEST_GAP = -0.5
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """
    A figure of each run, drawn in a panel for each method.

    Attributes:
        key (`str`): id of its section.
        heading (`str`): the section's heading.
        text (`str`): what is drawn, for readers.
        points (`Callable[[dict], list | None]`): a run's `[x, y]` pairs.
        x (`str`): label of the horizontal axis.
        y (`str`): label of the vertical axis.
        together (`bool`): whether all panels have one scale, with the other methods in the background.
        high (`float`, *optional*): end of the vertical axis; `None` fits it to the data.
        has_reference (`bool`): whether the KL of no prompt belongs into it.
    """

    key: str
    heading: str
    text: str
    points: Callable[[dict], list | None]
    x: str
    y: str
    together: bool = True
    high: float | None = None
    has_reference: bool = False

    def axes(self, lines: list[tuple[str, Points]], levels: list[float]) -> tuple[Axis, Axis]:
        """The axes that hold these lines and levels."""
        points = [point for _, points in lines for point in points]
        top = self.high or max([b for _, b in points] + levels)
        if levels and not self.high:
            top = min(top, 2.5 * max(levels))  # what starts far above would press the rest to the ground
        return (
            Axis(0, max(a for a, _ in points) or 1, self.x),
            Axis(0, (top or 1) * (1 if self.high else 1.08), self.y),
        )


CURVES = (
    Curve(
        "curves",
        "Training",
        "KL on the validation queries while training, the teacher's answers as target. Pale lines are the other methods. "
        "A dashed horizontal line is the KL of no prompt on the same queries.",
        lambda run: run.get("curve"),
        "steps",
        "validation KL, nats a token",
        has_reference=True,
    ),
    Curve(
        "norms",
        "Length of the learned vectors",
        "Their Euclidean length while training. Each panel has its own scale.",
        lambda run: run.get("norm"),
        "steps",
        "length",
        together=False,
    ),
    Curve(
        "reconstruction",
        "Reconstruction of the prompt",
        "Share of the prompt's first n tokens that the model writes when all before them are given. Pale lines are the other "
        "methods.",
        lambda run: (run.get("reconstruction") or {}).get("curve"),
        "first tokens of the prompt",
        "share that is right",
        high=1.0,
    ),
)


def gap_bar(row: Row, lead: str) -> Markup:
    """The KL gap closed, for a cell of the table."""
    cell = row.cells[lead]
    return Markup("") if cell.value is None else bar(cell.value, cell.low, cell.high, row.css)


def trade_off(rows: list[Row]) -> Markup | None:
    """The gap closed against the compression."""
    lead = leading_gap(rows)
    rows = [row for row in rows if row.cells[lead].value is not None and row.cells["compression"].value]
    if all(row.is_bound for row in rows):
        return None
    compressions = [row.cells["compression"].number for row in rows]
    x = Axis(min(1, *compressions) / 1.3, max(10, *compressions) * 1.4, "compression", log=True, unit="×")
    gaps = [row.cells[lead] for row in rows]
    lowest = max(LOWEST_GAP, min(0.0, *(cell.low for cell in gaps)))
    y = Axis(lowest - 0.02 if lowest else 0.0, max(1.0, *(cell.high for cell in gaps)) * 1.04, "KL gap closed")
    dots = [
        Dot(
            row.cells["compression"].number,
            gap.number,
            f"{row.label}: {gap.text}{f' ({gap.spread})' if gap.spread else ''} at {row.cells['compression'].text}",
            row.css,
            row.sign,
            (gap.low, gap.high) if gap.low < gap.high else None,
        )
        for row, gap in zip(rows, gaps)
    ]
    references = [(1.0, "full prompt"), (0.0, "no prompt")]
    return plot(x, y, "KL gap closed against compression", dots=dots, references=references, height=320)


def curve_sections(rows: list[Row]) -> list[dict]:
    """The sections with a panel for each method, as far as there is something to show."""
    return [section for curve in CURVES if (section := _section(curve, rows))]


def _section(curve: Curve, rows: list[Row]) -> dict | None:
    curves: dict[int, list[tuple[str, Points]]] = {}
    for i, row in enumerate(rows):
        for run in row.runs:
            points = [(p[0], p[1]) for p in curve.points(run) or [] if len(p) == 2 and all(map(is_number, p))]
            if points:
                curves.setdefault(i, []).append((seed_of(run), points))
    if not curves:
        return None
    seeds = sorted({seed for lines in curves.values() for seed, _ in lines})
    levels = {i: level for i in curves if curve.has_reference and (level := _no_prompt_on_validation(rows[i]))}
    panels = []
    for i, own in curves.items():
        drawn = curves if curve.together else {i: own}
        x, y = curve.axes(
            [line for lines in drawn.values() for line in lines], [levels[j] for j in drawn if j in levels]
        )
        lines = [Line(points, name, "other") for j in drawn if j != i for name, points in drawn[j]]
        lines += [Line(points, f"{rows[i].label}, {name}", rows[i].css, seeds.index(name)) for name, points in own]
        caption = _caption([points[-1][1] for _, points in own], levels.get(i))
        references = [(levels[i], "no prompt, validation")] if i in levels else []
        title = f"{curve.heading}: {rows[i].label}; {caption}"
        panels.append((rows[i], caption, plot(x, y, title, lines, references=references)))
    legend = [(seed, DASHES[i % len(DASHES)]) for i, seed in enumerate(seeds)]
    return {"id": curve.key, "heading": curve.heading, "text": curve.text, "panels": panels, "legend": legend}


def _caption(last: list[float], kl_no_prompt: float | None) -> str:
    """Where the lines of a method end."""
    show = fixed(3 if max(map(abs, last)) < 10 else 0)
    caption = "at the end: " + " to ".join(dict.fromkeys(map(show, (min(last), max(last)))))
    if kl_no_prompt is None:
        return caption
    gap = gap_closed(statistics.fmean(last), kl_no_prompt)
    return f"{caption} of {show(kl_no_prompt)} without a prompt" + ("" if gap is None else f", gap closed {gap:.3f}")


def _no_prompt_on_validation(row: Row) -> float | None:
    """The KL of no prompt on a method's validation answers, which are the same for all of its runs."""
    values = [value for run in row.runs if is_number(value := run.get("curve_no_prompt"))]
    return statistics.fmean(values) if values else None


def seed_of(run: dict) -> str:
    return "no seed" if run.get("seed") is None else f"seed {run['seed']}"
