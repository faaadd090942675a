"""What is to run on a GPU is tried here first."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..forked import Forked


BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
# A figure of each stage's report, as a path: a ratio where it measures one
FIGURES = {
    "tests": ["share_passed"],
    "demo": ["steps", 0, "ratio"],
    "training": ["results", 0, "speedup"],
    "bench": ["ttft_ratio", "measured"],
    "many-8": ["speedup"],
    "scaling": ["axes", "vocab", 0, "step_s", "median"],
    "layer": ["results", 0, "be_to_trainable"],
    "many-32": ["speedup"],
    "attention": ["sides", "packed, sdpa", "to_padded"],
    "study": [0, "kl", "be"],
}


def run(script, *arguments, **environment):
    return subprocess.run(
        ["bash", BENCHMARKS / script, *map(str, arguments)],
        env={**os.environ, "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
    )


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def forked(tmp_path):
    with contextlib.closing(Forked(tmp_path, os.environ | {"HF_HUB_OFFLINE": "1"})) as server:
        yield server


@pytest.mark.slow
def test_every_stage_runs(tmp_path, forked):
    environment = {"WORK": str(tmp_path / "work"), "PYTHON": str(forked.bin / "forked-python")}
    done = run("gpu.sh", "--cpu", tmp_path / "out", **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    stages = {line["stage"]: line for line in read_lines(tmp_path / "out" / "results.jsonl")}
    assert list(stages) == list(FIGURES)
    for name, stage in stages.items():
        assert stage["status"] == "ok"
        report = figure = stage["report"]
        assert (report[0] if name == "study" else report)["machine"]["device"]
        for step in FIGURES[name]:
            figure = figure[step]
        assert figure > 0
    assert stages["tests"]["report"]["share_passed"] == 1
    # What is finished is not done again
    again = run("gpu.sh", "--cpu", tmp_path / "out", **environment)
    assert again.returncode == 0 and again.stdout.count("was finished before") == len(FIGURES)
    assert len(read_lines(tmp_path / "out" / "results.jsonl")) == len(FIGURES)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["log.txt", "results.jsonl"]


@pytest.fixture
def fake(tmp_path):
    """Makes runs with a Python that does nothing of the stages but what `cases` of a shell say."""

    def run_with(cases, seconds):
        python = tmp_path / "python"
        lines = [f'"- "*) exec {sys.executable} "$@" ;;', *cases, "-c*) echo no torch ;;"]
        python.write_text("\n".join(["#!/usr/bin/env bash", 'case "$*" in', *lines, "esac"]) + "\n")
        python.chmod(0o755)
        done = run("gpu.sh", tmp_path / "out", seconds, PYTHON=str(python), WORK=str(tmp_path / "work"))
        results = tmp_path / "out" / "results.jsonl"
        return done, {line["stage"]: line for line in (read_lines(results) if results.is_file() else [])}

    return run_with


def test_a_stage_that_fails_stops_no_other(fake):
    report = """*training.py*) echo '{"speedup": 2}' >"${@: -1}" ;;"""
    done, stages = fake(['*"-m pytest"*) echo a test failed; exit 1 ;;', report], 100)
    assert done.returncode == 1 and "a test failed" in done.stdout
    assert {name: stage["status"] for name, stage in stages.items()} == {
        **dict.fromkeys(FIGURES, "ok"),
        "tests": "failed",
    }
    assert stages["training"]["report"] == {"speedup": 2} and stages["tests"]["report"] is None
    done, stages = fake([], 100)  # that one is tried again, and no other
    assert done.returncode == 0 and stages["tests"]["status"] == "ok"
    assert done.stdout.count("was finished before") == len(FIGURES) - 1


@pytest.mark.slow
def test_nothing_goes_on_after_the_end(fake):
    begun = """*training.py*) echo '{"speedup": 2}' >"${@: -1}"; sleep 600 ;;"""
    done, stages = fake([begun], 18)
    assert done.returncode == 1 and list(stages) == ["tests", "demo", "training"]
    # What it had reported by then is kept
    assert stages["training"]["status"] == "stopped at its limit" and stages["training"]["report"] == {"speedup": 2}
    assert stages["training"]["seconds"] <= 19 and "== bench: no time is left" in done.stdout


def test_the_cells_of_the_study_can_be_made():
    from study import key

    from peft_be.comparison.methods import make_method
    from peft_be.data import load_queries
    from peft_be.prompting import load_prompt
    from peft_be.training import BEDistillConfig

    cells = read_lines(BENCHMARKS / "gpu.jsonl")
    assert len({key(cell) for cell in cells}) == len(cells)
    for cell in cells:
        assert load_prompt(BENCHMARKS / cell["prompt"])
        assert all(load_queries(BENCHMARKS / cell[name]) for name in ("queries", "test_queries"))
        make_method(cell["method"], **cell["args"])
        settings = {name: value for name, value in cell["args"].items() if name != "num_tokens"}
        BEDistillConfig("out", **settings)
