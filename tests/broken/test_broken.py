"""No broken input ends in a traceback, and none passes for an intact one: docs/reliability.md."""

import random
import resource

import pytest

from . import corpus


# What the command line turns into one sentence and exit code 1 (peft_be/cli/common.py)
EXPECTED = (ValueError, OSError, ImportError, FloatingPointError)
# A sentence and its remedy fit into this many characters, with a path of a test in it
LONGEST = 700
# Inputs that whole runs go on with take minutes
NAMES = [
    pytest.param(group.name, marks=pytest.mark.slow if group.name.startswith(("interrupted", "checkpoint")) else ())
    for group in corpus.groups(None)
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return corpus.save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("PEFT_BE_CACHE", str(tmp_path / "cache"))


def outcome(group, folder, intact):
    """What is wrong with what reading a broken input came to, or `None`."""
    try:
        result = group.read(folder)
    except EXPECTED as error:
        message = " ".join(str(error).split())
        if not 10 < len(message) < LONGEST or "Traceback" in message or 'File "' in message:
            return f"no clear sentence: {message[:300]!r}"
        return None
    except Exception as error:
        return f"traceback: {type(error).__name__}: {str(error)[:200]}"
    return None if result == intact else "success, with another result"


def outcomes(group, folder):
    inputs = corpus.broken_inputs(group, folder)
    intact = group.read(next(inputs)[1])
    return {label: outcome(group, broken, intact) for label, broken in inputs}


@pytest.mark.parametrize("name", NAMES)
def test_a_broken_input_ends_in_a_sentence(base, tmp_path, name):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    group = next(group for group in corpus.groups(base) if group.name == name)
    found = outcomes(group, tmp_path)
    assert {label: what for label, what in found.items() if what} == {}
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 400, f"reading the inputs took {grown:.0f} MB"


def test_there_are_at_least_500_of_them(base, tmp_path):
    count = 0
    for number, group in enumerate(corpus.groups(base)):
        folder = tmp_path / str(number)
        folder.mkdir()
        group.make(folder)
        count += sum(1 for _ in group.breaks(next(folder.glob(group.file)), random.Random(0)))
    assert count >= 500
