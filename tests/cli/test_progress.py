"""How far the work is: readable at 80 columns, and told where no terminal is."""

import io
import re

from rich.console import Console

from .streams import run_into, terminal


def test_the_time_left_and_the_value_are_readable_at_80_columns(job, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    with terminal() as (stream, shown):
        assert run_into(monkeypatch, stream, *job.with_(max_steps=40)) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown[0])
    lines = [line for line in re.split(r"[\r\n]+", text) if line.startswith("stage 2")]
    assert lines and all(len(line) <= 80 for line in lines)
    assert any(re.search(r" \d+/40 +\d:\d\d:\d\d +\w+ \d+\.\d{4}$", line.rstrip()) for line in lines), lines[-3:]
    assert not any("..." in line or "…" in line for line in lines)


def test_a_long_part_is_shortened_and_nothing_else_at_80_columns():
    from peft_be.cli.progress import progress_bars

    to = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    with progress_bars(to) as update:
        update(
            "121-128 of 1000: stage 1 and 2, together", 99_998, 100_000, {"reconstruction_loss": 12.5, "loss": 3.25}
        )
        update(
            "121-128 of 1000: stage 1 and 2, together", 99_999, 100_000, {"reconstruction_loss": 12.5, "loss": 3.25}
        )
    last = [line for line in re.split(r"[\r\n]+", to.file.getvalue()) if "99999" in line][-1]
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", last)
    assert len(last.rstrip()) <= 80
    assert "99999/100000 " in last and "reconstruction_loss 12.5000" in last and "121-128 of 1000:" in last


def test_a_pipe_gets_lines(job, monkeypatch):
    stream = io.StringIO()
    assert run_into(monkeypatch, stream, *job.with_(max_steps=40)) == 0
    lines = stream.getvalue().splitlines()
    steps = [line for line in lines if line.startswith("stage 2")]
    assert re.fullmatch(r"stage 2: 1/40 \(2%\)(, .*)?", steps[0])
    assert re.fullmatch(r"stage 2: 40/40 \(100%\), took \d:\d\d:\d\d(, \w+ \d+\.\d{4})+", steps[-1])
    assert len(steps) <= 8  # not one a step
    assert any(line.startswith("teacher, train queries: ") for line in lines)


def test_a_line_every_ten_seconds_tells_the_time_left():
    from peft_be.cli.progress import Lines

    now = [0.0]
    to = Console(file=io.StringIO(), width=80)
    lines = Lines(to, clock=lambda: now[0])
    for step in range(1, 101):
        now[0] += 3
        lines.update("stage 2", step, 100, {"loss": 1 / step})
    shown = to.file.getvalue().splitlines()
    assert shown[0] == "stage 2: 1/100 (1%), loss 1.0000"
    assert shown[1] == "stage 2: 5/100 (5%), 0:04:45 left, loss 0.2000"
    assert shown[-1] == "stage 2: 100/100 (100%), took 0:04:57, loss 0.0100"
    assert len(shown) == 2 + 24


def test_a_part_that_comes_again_begins_anew():
    from peft_be.cli.progress import Lines

    to = Console(file=io.StringIO(), width=80)
    lines = Lines(to, clock=lambda: 0.0)
    for _ in range(2):
        for done in (1, 2, 3):
            lines.update("answers", done, 3, {})
    assert to.file.getvalue().splitlines() == ["answers: 1/3 (33%)", "answers: 3/3 (100%), took 0:00:00"] * 2
