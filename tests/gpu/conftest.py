"""
Every public path on a GPU, in bfloat16, with a tiny random model. `benchmarks/gpu.sh --cpu` runs the same tests on a CPU.

With `PEFT_BE_GPU_REPORT=FILE`, what each test found is written there as soon as it has ended.
"""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
import torch

from peft_be.machine.versions import machine, versions
from peft_be.models import fastest_dtype

from ..tiny import tiny_llama


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
_tests: dict[str, dict] = {}


def pytest_runtest_logreport(report):
    if "tests/gpu/" not in report.nodeid or not os.environ.get("PEFT_BE_GPU_REPORT"):
        return
    if report.when != "call" and report.passed:
        return
    name = report.nodeid.partition("tests/gpu/")[2]
    _tests[name] = {"outcome": report.outcome, "seconds": report.duration, **dict(report.user_properties)}
    if report.failed:
        _tests[name]["error"] = str(report.longrepr)[-2000:]
    outcomes = Counter(test["outcome"] for test in _tests.values())
    passed = outcomes["passed"] / max(1, outcomes["passed"] + outcomes["failed"])
    found = {"machine": machine(DEVICE), "versions": versions(), "share_passed": passed, "tests": _tests}
    Path(os.environ["PEFT_BE_GPU_REPORT"]).write_text(json.dumps(found, indent=2) + "\n")


@pytest.fixture(scope="session", autouse=True)
def float32_by_default():
    """Not here: models have the number format that is the fastest on the device."""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFT_BE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def paths_of_a_gpu(monkeypatch):
    """On the CPU, too, the tuner takes the ways that do not wait for a device."""
    for module in ("layer", "inputs"):
        monkeypatch.setattr(f"peft_be.tuner.{module}.at_hand", lambda ids: False)


@pytest.fixture
def device():
    return DEVICE


@pytest.fixture
def make_model(tiny_tokenizer):
    """Makes random models on the device, whose answers depend on the prompt."""

    def make(dtype=None, **changes):
        model = tiny_llama(tiny_tokenizer, width=64, context=1024, **changes)
        for parameter in model.parameters():
            parameter.data.mul_(3)
        return model.to(DEVICE, dtype or fastest_dtype(DEVICE.type))

    return make


@pytest.fixture
def model(make_model):
    return make_model()


@pytest.fixture
def tokenizer(tiny_tokenizer):
    return tiny_tokenizer
