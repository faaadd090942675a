"""
Charts as inline SVG, in as little code as a report needs.

Positions are percentages of the plot and sizes are pixels, so that a chart fills any width without scaling its text. The page's
style decides on colours, fonts and margins: a mark has the class of its series and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup


# Seeds differ by the pattern of their lines, because colours belong to the methods
DASHES = ("none", "6 3", "2 3", "9 3 2 3", "12 4")
MINUS = "\u2212"


@dataclass(frozen=True)
class Axis:
    """
    One axis of a plot.

    Attributes:
        low (`float`): value at its start.
        high (`float`): value at its end, above `low`.
        label (`str`): what it shows, with the unit.
        log (`bool`): whether equal ratios are equally long; `low` is then above 0.
        unit (`str`): what follows the numbers.
    """

    low: float
    high: float
    label: str
    log: bool = False
    unit: str = ""

    def at(self, value: float) -> float:
        """The place of a value, in percent of the axis; below 0 or above 100 if it is outside."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        return round(100 * ((math.log(value) if self.log else value) - low) / (high - low), 2)

    def within(self, value: float) -> float:
        """As `at`, but values outside are at the nearer end."""
        return min(100, max(0, self.at(value)))

    def ticks(self, count: int = 5) -> list[tuple[float, str]]:
        """Positions and texts of about `count` round values."""
        if self.log:
            exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1,) if len(exponents) > 3 else (1, 2, 5)
            values = [step * 10.0**exponent for exponent in exponents for step in steps]
            texts = [f"{value:,.{0 if value >= 1 else 2}f}" for value in values]
        else:
            rough = (self.high - self.low) / count
            power = 10.0 ** math.floor(math.log10(rough))
            step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= 0.8 * rough)
            values = [step * i for i in range(math.ceil(self.low / step), math.floor(self.high / step + 1e-6) + 1)]
            texts = [f"{value:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}" for value in values]
        return [
            (self.at(value), text.replace("-", MINUS) + self.unit)
            for value, text in zip(values, texts)
            if self.low * (1 - 1e-9) <= value <= self.high * (1 + 1e-9) or value == 0
        ]


@dataclass(frozen=True)
class Line:
    """
    One line of a plot.

    Attributes:
        points (`list[tuple[float, float]]`): where it goes through.
        name (`str`): its text under the pointer.
        css (`str`): class of its series.
        dash (`int`): which of the patterns it has.
    """

    points: list[tuple[float, float]]
    name: str
    css: str
    dash: int = 0


@dataclass(frozen=True)
class Dot:
    """
    A point of a plot. It can be reached by keyboard, and tells its text under the pointer or when it has the focus.

    Attributes:
        x (`float`): where it is.
        y (`float`): where it is; beyond the axis it is drawn at its end.
        text (`str`): what it tells.
        css (`str`): class of its series.
        sign (`str`): one or two characters inside of it.
        spread (`tuple[float, float]`, *optional*): lower and upper end of a vertical line through it.
    """

    x: float
    y: float
    text: str
    css: str
    sign: str = ""
    spread: tuple[float, float] | None = None


def plot(
    x: Axis,
    y: Axis,
    title: str,
    lines: Sequence[Line] = (),
    dots: Sequence[Dot] = (),
    references: Sequence[tuple[float, str]] = (),
    height: int = 170,
) -> Markup:
    """Lines and dots over two axes, with dashed horizontal lines at values to compare with."""
    # A line of a single point would be invisible
    dots = [*dots, *(Dot(*line.points[0], line.name, line.css) for line in lines if len(line.points) == 1)]
    marks = [_stretched(x, y, lines), *(_spread(x, y, dot) for dot in dots if dot.spread)]
    return Markup(
        '<div class="plot" style="height:{}px" role="{}" aria-label="{}"><svg aria-hidden="true">{}'
        '<svg y="100%" x="50%"><text class="axis-label" y="38">{}</text></svg>'
        '<text class="axis-label y" x="-40" y="-10">{}</text>{}</svg>{}</div>'
    ).format(
        height,
        "group" if dots else "img",
        title,
        _grid(x, y, references),
        x.label,
        y.label,
        Markup("").join(marks),
        Markup("").join(_dot(x, y, dot) for dot in dots),
    )


def _grid(x: Axis, y: Axis, references: Sequence[tuple[float, str]]) -> Markup:
    parts = [
        Markup(
            '<line class="grid" x1="0" x2="100%" y1="{0:.2f}%" y2="{0:.2f}%"/>'
            '<text class="y-tick" x="-8" y="{0:.2f}%" dy="4">{1}</text>'
        ).format(100 - at, text)
        for at, text in y.ticks()
    ]
    parts += [
        Markup(
            '<svg x="{}%" y="100%"><line class="tick" y2="5"/><text y="19">{}</text></svg>',
        ).format(at, text)
        for at, text in x.ticks(4)
    ]
    parts += [
        Markup(
            '<line class="reference" x1="0" x2="100%" y1="{0:.2f}%" y2="{0:.2f}%"/>'
            '<text class="reference-label" x="62%" y="{0:.2f}%" dy="-5">{1}</text>'
        ).format(100 - y.at(value), text)
        for value, text in references
    ]
    return Markup("").join(parts)


def _stretched(x: Axis, y: Axis, lines: Sequence[Line]) -> Markup:
    """Lines in a box of their own, the only one that is stretched. They keep their width, and end at the plot's edge."""
    drawn = [
        Markup('<polyline class="{}" points="{}" stroke-dasharray="{}"><title>{}</title></polyline>').format(
            line.css,
            " ".join(f"{x.at(a):g},{100 - y.at(b):g}" for a, b in line.points),
            DASHES[line.dash % len(DASHES)],
            line.name,
        )
        for line in lines
    ]
    return Markup('<svg class="lines" viewBox="0 0 100 100" preserveAspectRatio="none">{}</svg>').format(
        Markup("").join(drawn)
    )


def _spread(x: Axis, y: Axis, dot: Dot) -> Markup:
    bottom, top = (100 - y.within(value) for value in dot.spread or ())
    return Markup('<line class="spread {0}" x1="{1}%" x2="{1}%" y1="{2:.2f}%" y2="{3:.2f}%"/>').format(
        dot.css, x.at(dot.x), bottom, top
    )


def _dot(x: Axis, y: Axis, dot: Dot) -> Markup:
    at, up = x.within(dot.x), y.within(dot.y)
    # The text goes to where there is room
    places = ("left " if at > 50 else "") + ("above" if up < 25 else "")
    return Markup(
        '<span class="pin dot {}" style="left:{}%;top:{:.2f}%" tabindex="0" role="img" aria-label="{}">{}'
        '<span class="tip {}">{}</span></span>'
    ).format(dot.css, at, 100 - up, dot.text, dot.sign, places, dot.text)


def bar(mean: float, low: float, high: float, css: str) -> Markup:
    """A share between 0 and 1 as a bar the length of a word, with its spread."""
    mean, low, high = (100 * min(1.0, max(0.0, value)) for value in (mean, low, high))
    spread = Markup('<rect class="whisker" x="{:.1f}%" y="3" width="{:.1f}%" height="2"/>').format(low, high - low)
    return Markup(
        '<svg class="bar {}" aria-hidden="true"><rect class="track" width="100%" height="8" rx="2"/>'
        '<rect class="fill" width="{:.1f}%" height="8" rx="2"/>{}</svg>'
    ).format(css, mean, spread if high > low else "")
