"""The scripts of `benchmarks/`, which import each other by plain name, as modules and as programs."""

import json
import runpy
import sys
from pathlib import Path

import pytest


BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"


@pytest.fixture
def run_script(tmp_path, monkeypatch):
    """Runs a script in this process; returns the report that it wrote."""

    def run(name: str, *options) -> dict:
        report = tmp_path / f"{name}.json"
        monkeypatch.setattr(sys, "argv", [name, *map(str, options), "--json", str(report)])
        runpy.run_path(str(BENCHMARKS / name), run_name="__main__")
        return json.loads(report.read_text())

    return run


@pytest.fixture
def tiny_dir(tmp_path, tiny_model, tiny_tokenizer):
    """Folder of the random model, for `--model`."""
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"
