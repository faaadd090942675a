"""
Charts as inline SVG, in as little code as a report needs.

Positions are percentages of the plot and sizes are pixels, so that a chart fills any width without scaling its text. Colours,
fonts and margins are the page's business: a mark carries the class of its series and nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from markupsafe import Markup


# Seeds differ by the pattern of their lines, for colours belong to the methods
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
        unit (`str`): what stands after the numbers.
    """

    low: float
    high: float
    label: str
    log: bool = False
    unit: str = ""

    def at(self, value: float) -> float:
        """Where a value is, in percent of the axis; beyond 0 and 100 where it lies outside."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        return round(100 * ((math.log(value) if self.log else value) - low) / (high - low), 2)

    def ticks(self, count: int = 5) -> list[tuple[float, str]]:
        """Positions and texts of round values, some `count` of them."""
        if self.log:
            exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1,) if len(exponents) > 3 else (1, 2, 5)
            values = [step * 10.0**exponent for exponent in exponents for step in steps]
            digits = 0
        else:
            rough = (self.high - self.low) / count
            power = 10.0 ** math.floor(math.log10(rough))
            step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= 0.8 * rough)
            values = [step * i for i in range(math.ceil(self.low / step), math.floor(self.high / step + 1e-6) + 1)]
            digits = max(0, -math.floor(math.log10(step) + 1e-9))
        inside = [value for value in values if self.low * (1 - 1e-9) <= value <= self.high * (1 + 1e-9) or value == 0]
        return [
            (
                self.at(value),
                f"{value:,.{digits if value == 0 or value >= 1 or not self.log else 2}f}".replace("-", MINUS)
                + self.unit,
            )
            for value in inside
        ]


@dataclass(frozen=True)
class Line:
    """
    One line of a plot.

    Attributes:
        points (`list[tuple[float, float]]`): where it goes through.
        name (`str`): its text where the pointer rests on it.
        css (`str`): class of its series.
        dash (`int`): which of the patterns it has.
    """

    points: list[tuple[float, float]]
    name: str
    css: str
    dash: int = 0


@dataclass
class Pin:
    """
    A point with the sign of its series.

    Attributes:
        x (`float`): where it is.
        y (`float`): where it is.
        sign (`str`): one or two characters inside of it.
        label (`str`): the text next to it, where there is room.
        css (`str`): class of its series.
        low (`float`): lower end of its spread.
        high (`float`): upper end of its spread.
        shift (`int`): pixels by which it stands to the right of its place, so that it covers no other.
    """

    x: float
    y: float
    sign: str
    label: str
    css: str
    low: float
    high: float
    shift: int = field(default=0, init=False)


def line_chart(
    x: Axis, y: Axis, lines: list[Line], title: str, height: int = 170, reference: tuple[float, str] | None = None
) -> Markup:
    """Lines over two axes, with horizontal lines at values to compare with."""
    # Lines alone are stretched; they keep their width, and what leaves the plot is cut off
    drawn = [Markup('<svg class="lines" viewBox="0 0 100 100" preserveAspectRatio="none">')]
    for line in lines:
        points = " ".join(f"{x.at(a):g},{100 - y.at(b):g}" for a, b in line.points)
        drawn.append(
            Markup('<polyline class="{}" points="{}" stroke-dasharray="{}"><title>{}</title></polyline>').format(
                line.css, points, DASHES[line.dash % len(DASHES)], line.name
            )
        )
    drawn.append(Markup("</svg>"))
    # A line of a single point is nothing without a dot
    for line in lines:
        if len(line.points) == 1:
            (a, b) = line.points[0]
            drawn.append(_dot(x.at(a), y.at(b), line.css, line.name))
    return _plot(x, y, Markup("").join(drawn), title, height, [reference] if reference else [])


def pin_chart(
    x: Axis, y: Axis, pins: list[Pin], title: str, references: list[tuple[float, str]], height: int = 320
) -> Markup:
    """Pins with their spread. Pins that would cover each other stand side by side, and a label that has no room is left out."""
    drawn: list[Markup] = []
    _spread_out(pins, x, y, height)
    lines = [y.at(value) for value, _ in references]
    for pin, (anchor, dx, dy) in zip(pins, _label_places(pins, x, y, height, lines)):
        at, bottom, top = x.at(pin.x), *(100 - min(100, max(0, y.at(value))) for value in (pin.low, pin.high))
        if bottom != top:
            drawn.append(
                Markup(
                    '<line class="spread {}" x1="{}%" x2="{}%" y1="{:.2f}%" y2="{:.2f}%" transform="translate({} 0)"/>'
                ).format(pin.css, at, at, bottom, top, pin.shift)
            )
        height_of_pin = 100 - min(100, max(0, y.at(pin.y)))
        label = Markup('<text class="name" text-anchor="{}" x="{}" y="{}">{}</text>').format(anchor, dx, dy, pin.label)
        drawn.append(
            Markup(
                '<svg class="{}" x="{}%" y="{:.2f}%"><g transform="translate({} 0)"><title>{}: {}</title>'
                '<circle class="pin-dot" r="9"/><text class="sign" y="4">{}</text>{}</g></svg>'
            ).format(
                pin.css,
                at,
                height_of_pin,
                pin.shift,
                pin.label,
                f"{pin.y:.3f}".replace("-", MINUS),
                pin.sign,
                label if anchor else "",
            )
        )
    return _plot(x, y, Markup("").join(drawn), title, height, references)


def strip_chart(x: Axis, values: list[tuple[int, float, str]], mean: float, css: str, title: str) -> Markup:
    """
    A dot for each value on one line, with a stroke at their mean. A value is its number, where it lies, and its text; one beyond
    the axis is a hollow dot at its end.
    """
    dots = []
    for number, value, text in values:
        # Dots at the same place would hide each other: the golden ratio spreads any number of them over the height
        level = 20 + 60 * (number * 0.618034 % 1)
        at = x.at(value)
        dots.append(_dot(min(100, at), level, f"{css} hollow" if at > 100 else css, text, number))
    stroke = Markup('<line class="mean {}" x1="{}%" x2="{}%" y1="0" y2="100%"/>').format(
        css, min(100, x.at(mean)), min(100, x.at(mean))
    )
    grid = Markup("").join(
        Markup('<line class="grid" x1="{}%" x2="{}%" y1="0" y2="100%"/>').format(at, at) for at, _ in x.ticks()
    )
    return Markup('<div class="strip"><svg role="img" aria-label="{}">{}{}{}</svg></div>').format(
        title, grid, Markup("").join(dots), stroke
    )


def strip_axis(x: Axis) -> Markup:
    """The axis below the strips."""
    ticks = Markup("").join(Markup('<text x="{}%" y="14">{}</text>').format(at, text) for at, text in x.ticks())
    return Markup(
        '<div class="strip-axis"><svg aria-hidden="true">{}<text class="axis-label" x="50%" y="32">{}</text></svg></div>'
    ).format(ticks, x.label)


def bar(mean: float, low: float, high: float, css: str) -> Markup:
    """A share between 0 and 1 as a bar the length of a word, with its spread."""
    mean, low, high = (100 * min(1.0, max(0.0, value)) for value in (mean, low, high))
    spread = Markup('<rect class="whisker" x="{:.1f}%" y="3" width="{:.1f}%" height="2"/>').format(low, high - low)
    return Markup(
        '<svg class="bar {}" aria-hidden="true"><rect class="track" width="100%" height="8" rx="2"/>'
        '<rect class="fill" width="{:.1f}%" height="8" rx="2"/>{}</svg>'
    ).format(css, mean, spread if high > low else "")


def _dot(at: float, level: float, css: str, text: str, number: int | None = None) -> Markup:
    data = "" if number is None else Markup(' data-query="{}"').format(number)
    return Markup('<circle class="dot {}"{} cx="{}%" cy="{:.2f}%" r="4"><title>{}</title></circle>').format(
        css, data, at, 100 - level, text
    )


def _plot(x: Axis, y: Axis, marks: Markup, title: str, height: int, references: list[tuple[float, str]]) -> Markup:
    """Grid, axes and reference lines around marks."""
    parts = []
    for at, text in y.ticks():
        parts.append(
            Markup(
                '<line class="grid" x1="0" x2="100%" y1="{0:.2f}%" y2="{0:.2f}%"/>'
                '<text class="y-tick" x="-8" y="{0:.2f}%" dy="4">{1}</text>'
            ).format(100 - at, text)
        )
    for at, text in x.ticks(4):
        parts.append(
            Markup(
                '<line class="tick" x1="{0}%" x2="{0}%" y1="100%" y2="100%"/>'
                '<svg x="{0}%" y="100%"><line class="tick" y2="5"/><text y="19">{1}</text></svg>'
            ).format(at, text)
        )
    for value, text in references:
        parts.append(
            Markup(
                '<line class="reference" x1="0" x2="100%" y1="{0:.2f}%" y2="{0:.2f}%"/>'
                '<text class="reference-label" x="100%" y="{0:.2f}%" dy="-5">{1}</text>'
            ).format(100 - y.at(value), text)
        )
    return Markup(
        '<div class="plot" style="height:{}px"><svg role="img" aria-label="{}">{}'
        '<svg y="100%" x="50%"><text class="axis-label" y="38">{}</text></svg>'
        '<text class="axis-label y" x="-40" y="-10">{}</text>{}</svg></div>'
    ).format(height, title, Markup("").join(parts), x.label, y.label, marks)


def _pixels(pin: Pin, x: Axis, y: Axis, width: int, height: int) -> tuple[float, float]:
    return width * x.at(pin.x) / 100 + pin.shift, height * (1 - min(100, max(0, y.at(pin.y))) / 100)


def _spread_out(pins: list[Pin], x: Axis, y: Axis, height: int, width: int = 320, size: int = 19) -> None:
    """Shift pins until none covers an earlier one, on a plot as narrow as a phone's."""
    for i, pin in enumerate(pins):
        for step in range(2 * len(pins)):
            pin.shift = (step + 1) // 2 * size * (-1 if step % 2 else 1)
            a = _pixels(pin, x, y, width, height)
            if all(math.dist(a, _pixels(other, x, y, width, height)) >= size for other in pins[:i]):
                break


def _label_places(
    pins: list[Pin], x: Axis, y: Axis, height: int, lines: list[float], width: int = 640
) -> list[tuple[str, int, int]]:
    """
    Anchor and offset of each pin's label beside, below or above it; an empty anchor where all of these are taken, by other
    pins, by labels, or by horizontal `lines` (in percent).
    """
    taken = [(0.0, height * (1 - line / 100) - 1, float(width), height * (1 - line / 100) + 1) for line in lines]
    for pin in pins:
        left, top = _pixels(pin, x, y, width, height)
        taken.append((left - 10, top - 10, left + 10, top + 10))
    places = []
    for pin, own in zip(pins, taken[len(lines) :]):
        left, top = _pixels(pin, x, y, width, height)
        length = 6.8 * len(pin.label)
        for anchor, dx, dy, start in (
            ("start", 14, 4, 14),
            ("end", -14, 4, -14 - length),
            ("middle", 0, 23, -length / 2),
            ("middle", 0, -15, -length / 2),
            ("end", 9, 23, 9 - length),
            ("end", 9, -15, 9 - length),
        ):
            box = (left + start, top + dy - 10, left + start + length, top + dy + 3)
            inside = box[0] >= -20 and box[2] <= width and box[3] <= height
            if inside and not any(_overlap(box, other) for other in taken if other != own):
                taken.append(box)
                places.append((anchor, dx, dy))
                break
        else:
            places.append(("", 0, 0))
    return places


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
