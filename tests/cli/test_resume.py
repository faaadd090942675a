"""A run that is killed in any stage goes on with --resume and ends bit-equal to one that was left alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from .conftest import QUERIES


# One worker runs them all, for they share what a fixture of the module makes
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("resume")]


def command(arguments, cache):
    environment = {**os.environ, "PEFT_BE_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    return [sys.executable, "-m", "peft_be.cli", *map(str, arguments)], environment


def run(arguments, cache):
    line, environment = command(arguments, cache)
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def kill_when(arguments, cache, happened):
    """Start a run and SIGKILL it as soon as `happened()`."""
    line, environment = command(arguments, cache)
    process = subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, "the run ended before it could be killed: " + process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL


def assert_equal_rows(left: Path, right: Path):
    a, b = (load_file(folder / "adapter_model.safetensors") for folder in (left, right))
    assert a.keys() == b.keys() and len(a) == 1
    assert all((a[key] == b[key]).all() for key in a)


def assert_equal_runs(left: Path, right: Path):
    logs = [json.loads((folder / "training.json").read_text())["log"] for folder in (left, right)]
    values = [
        [{k: v for k, v in e.items() if "runtime" not in k and "per_second" not in k} for e in log] for log in logs
    ]
    assert values[0] == values[1]
    assert_equal_rows(left, right)


@pytest.fixture(scope="module")
def ae(tmp_path_factory, tiny_dir):
    folder = tmp_path_factory.mktemp("ae")
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": f"{q} The sea is wide. " * 12}) + "\n" for q in QUERIES * 3))
    arguments = ["pretrain-ae", "--corpus", corpus, "--model", tiny_dir, "--max-steps", 60, "--max-passage-length", 64]
    run([*arguments, "--output", folder / "alone"], folder / "cache")
    return folder, arguments


def test_stage_0(ae):
    folder, arguments = ae
    output = folder / "killed"
    kill_when(
        [*arguments, "--output", output], folder / "cache", lambda: any(output.glob("training/stage0/checkpoint-*"))
    )
    assert not (output / "adapter_model.safetensors").exists()
    run([*arguments, "--output", output, "--resume"], folder / "cache")
    assert_equal_runs(folder / "alone", output)


@pytest.fixture(scope="module")
def compression(tmp_path_factory, tiny_dir, ae):
    """One joint and one sequential run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("compression")
    (folder / "prompt.txt").write_text("You are a lighthouse keeper. You answer in short sentences, whatever happens.")
    queries = [f"{q} And on the {i}th day behind it?" for i in range(20) for q in QUERIES]
    (folder / "queries.txt").write_text("\n".join(queries))
    arguments = [
        "compress",
        "--prompt",
        folder / "prompt.txt",
        "--queries",
        folder / "queries.txt",
        "--model",
        tiny_dir,
    ]
    # Checkpoints are written every 100 steps: each stage is killed with some of its work done
    arguments += ["--ae", ae[0] / "alone", "--kd-weight", 0.9, "--max-steps", 220, "--max-answer-length", 8]
    arguments += ["--reconstruction-steps", 120]
    run([*arguments, "--output", folder / "alone"], folder / "cache-alone")
    return folder, arguments


@pytest.mark.parametrize("where", ["stage1/checkpoint-*", "teacher", "stage2/checkpoint-*"])
def test_stages_1_and_2(compression, where):
    folder, arguments = compression
    name = where.split("/")[0]
    output, cache = folder / f"killed-{name}", folder / f"cache-{name}"
    place = (
        (lambda: cache.glob("teacher/*/*.safetensors"))
        if name == "teacher"
        else (lambda: output.glob(f"training/{where}"))
    )
    kill_when([*arguments, "--output", output], cache, lambda: any(place()))
    run([*arguments, "--output", output, "--resume"], cache)
    assert_equal_runs(folder / "alone", output)


def test_ctrl_c_saves_and_says_how_to_go_on(compression):
    folder, arguments = compression
    output, cache = folder / "interrupted", folder / "cache-interrupted"
    line, environment = command([*arguments, "--output", output], cache)
    process = subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, text=True)
    while not any(output.glob("training/stage2/checkpoint-*")):
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 130 and "--resume" in printed
    run([*arguments, "--output", output, "--resume"], cache)
    # Not the log: the checkpoint stands between two of its entries, and each entry is a mean since the one before
    assert_equal_rows(folder / "alone", output)
