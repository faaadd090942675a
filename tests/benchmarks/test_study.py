"""The runner of studies: cells are skipped when they are done, and the table comes from the results alone."""

import json
import runpy
import sys
from pathlib import Path

import pytest


STUDY = Path(__file__).parent.parent.parent / "benchmarks" / "study.py"


@pytest.fixture
def study(tmp_path, tiny_model, smollm2_tokenizer, monkeypatch):
    """Runs the script on a manifest of two cells with a random model; returns its results."""
    monkeypatch.setenv("PEFT_BE_CACHE", str(tmp_path / "cache"))
    tiny_model.save_pretrained(tmp_path / "model")
    smollm2_tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "prompt.txt").write_text("You are a lighthouse keeper, and you answer in short sentences.")
    (tmp_path / "queries.txt").write_text("".join(f"What did you see on day {i}?\n" for i in range(12)))
    args = {
        "model": str(tmp_path / "model"),
        "max_steps": 2,
        "eval_steps": 1,
        "max_answer_length": 4,
        "kd_weight": 1.0,
    }
    cells = [
        {"variant": variant, "seed": seed, "args": args, "prompt": "prompt.txt", "queries": "queries.txt"}
        for variant, seed in (("default", 1), ("default", 2))
    ]
    manifest, results = tmp_path / "cells.jsonl", tmp_path / "out" / "results.jsonl"
    manifest.write_text("".join(json.dumps(cell) + "\n" for cell in cells))

    def run(*options):
        monkeypatch.setattr(
            sys, "argv", ["study.py", str(manifest), str(results), "--work", str(tmp_path / "work"), *options]
        )
        runpy.run_path(str(STUDY), run_name="__main__")
        return [json.loads(line) for line in results.read_text().splitlines()]

    return run


def test_cells_are_done_once(study, capsys):
    (first,) = study("--max-cells", "1")
    assert len(first["curve"]) == 2
    # The trainer's own validation and the scorer of all methods see the same answers
    assert first["kl"]["be"] == pytest.approx(min(kl for _, kl in first["curve"]), rel=1e-4)
    assert first["kl_gap_closed"] == pytest.approx(1 - first["kl"]["be"] / first["kl"]["no_prompt"])
    both = study()
    assert both[0] == first and [result["seed"] for result in both] == [1, 2]
    assert study() == both
    mean = sum(result["kl_gap_closed"] for result in both) / 2
    assert f"| {mean:.3f} |" in capsys.readouterr().out.splitlines()[-1]
