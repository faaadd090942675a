"""Progress of long work: bars on a terminal, and lines in a file or a pipe."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from ..progress import OnProgress
from .common import console, say


# Seconds between two lines, except for the first and the last of a part
INTERVAL = 10.0
# The values worth a glance, the most telling first
SHOWN = ("eval_kl", "kd_loss", "reconstruction_loss", "eval_loss", "loss")


@contextlib.contextmanager
def progress_bars(to: Console | None = None) -> Iterator[OnProgress]:
    """Context that gives a callback `(what, done, total, values)` which shows how far each part of the work is."""
    to = to or console
    if to.is_terminal and not to.is_dumb_terminal:
        bars = Bars(to)
        with bars.progress:
            yield bars.update
    else:
        yield Lines(to).update


class Bars:
    """
    A bar for each part. At 80 columns the bar and the part's name are shorter, never the time left or the values.
    """

    def __init__(self, to: Console):
        self.wide = to.width >= 110
        self.progress = Progress(
            TextColumn(
                "{task.description}",
                markup=False,
                table_column=Column(no_wrap=True, overflow="ellipsis", max_width=34 if self.wide else 26),
            ),
            BarColumn(bar_width=24 if self.wide else 6),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=7)),
            TextColumn("{task.fields[values]}", markup=False, table_column=Column(no_wrap=True)),
            console=to,
            # Steps of large models take longer than the 30 s that the time left is estimated from by default
            speed_estimate_period=600,
        )
        self._tasks: dict = {}

    def update(self, what: str, done: int, total: int, values: dict) -> None:
        text = "  ".join(latest(values)[: None if self.wide else 1])
        if what not in self._tasks:
            self._tasks[what] = self.progress.add_task(what, total=total, values=text)
        self.progress.update(self._tasks[what], completed=done, total=total, values=text)


@dataclass
class Part:
    """A part of the work: when it began, how much of it was done by then, and how much is done now."""

    began: float
    done_before: int
    done: int


class Lines:
    """
    A line when a part begins and ends, and in between every ten seconds.

    Args:
        to (`Console`): where they are printed.
        clock (`Callable`, *optional*, defaults to `time.monotonic`): tells the time, in seconds.
    """

    def __init__(self, to: Console, clock: Callable[[], float] = time.monotonic):
        self._to, self._clock = to, clock
        self._parts: dict[str, Part] = {}
        self._last_line = clock()

    def update(self, what: str, done: int, total: int, values: dict) -> None:
        now = self._clock()
        part = self._parts.get(what)
        begins = part is None or done < part.done
        if part is None or begins:
            part = self._parts[what] = Part(now, done, done)
        ends = done >= total and (begins or part.done < total)
        part.done = done
        if not (begins or ends or now - self._last_line >= INTERVAL and done < total):
            return
        self._last_line = now
        words = [f"{what}: {done}/{total} ({100 * done // max(total, 1)}%)"]
        steps, seconds = done - part.done_before, now - part.began
        if ends and not begins:
            words.append(f"took {clock_time(seconds)}")
        elif steps and done < total:
            words.append(f"{clock_time(seconds / steps * (total - done))} left")
        say(", ".join(words + latest(values)), to=self._to)


def latest(values: dict) -> list[str]:
    shown = {name: f"{name} {float(values[name]):.4f}" for name in SHOWN if name in values}
    if "eval_kl" in shown and "eval_gap_closed" in values:
        shown["eval_kl"] += f" (gap {float(values['eval_gap_closed']):.2f})"
    return list(shown.values())


def clock_time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
