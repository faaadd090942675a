"""The kills of `kills.py`, a few of each command; all of them are in docs/results/reliability/kills.json."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forked"),
]


def test_killed_runs_end_as_undisturbed_ones(tmp_path):
    record = tmp_path / "kills.json"
    # Another seed than that of the record: other moments
    options = ["--kills", "3", "--seed", "7", "--json", record, "--folder", tmp_path / "work"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.crashes.kills", *map(str, options)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    commands = json.loads(record.read_text())
    assert commands.keys() == {"pretrain-ae", "compress", "compress-many", "compare"}
    for table in commands.values():
        assert table["runs"] == table["resumed"] == table["bit_equal"] == 3
