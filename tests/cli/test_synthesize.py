"""`peft-be synthesize`, and `peft-be compress` without queries."""

import json

import pytest

from peft_be.data import load_queries, query_key
from peft_be.runs.synthesize import UserTurn


QUERIES = ["Where is it?", "And why?", "Who was there?"]


@pytest.fixture
def prompt(tmp_path):
    (tmp_path / "prompt.txt").write_text("You are a pirate.")
    return tmp_path / "prompt.txt"


def test_the_queries_can_be_trained_with(cli, prompt, tiny_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(UserTurn, "write", lambda *_: [*QUERIES, None])
    file = tmp_path / "queries.jsonl"
    code, out, err = cli("synthesize", prompt, "--output", file, "--num-queries", 3, "--model", tiny_dir)
    assert code == 0, err
    assert load_queries(file) == QUERIES
    assert "Wrote 3 queries" in out and "left out: 1 not finished" in out and f"--queries {file}" in out

    out_dir = tmp_path / "out"
    run = ("compress", "--prompt", prompt, "--output", out_dir, "--model", tiny_dir, "--max-steps", 2)
    code, out, err = cli(*run)
    assert code == 0, err
    assert "with queries that the model writes" in out and "read them in" in out and "--validation-queries" in out
    assert load_queries(out_dir / "queries.jsonl") == QUERIES

    (tmp_path / "real.txt").write_text("Is it real?\nAnd this?\n")
    code, out, err = cli(*run, "--validation-queries", tmp_path / "real.txt", "--overwrite")
    assert code == 0, err
    assert " on 2 validation queries" in out and "--validation-queries" not in out
    report = json.loads((out_dir / "training.json").read_text())
    assert report["num_queries"] == {"train": 3, "validation": 2}
    assert {query_key(query) for query in ("Is it real?", "And this?")} < set(report["seen_queries"])


@pytest.mark.parametrize(
    "output, reason",
    [("queries.txt", "must end in .jsonl"), ("there.jsonl", "is there already"), ("no/queries.jsonl", "no folder")],
)
def test_where_they_cannot_go(cli, prompt, tmp_path, output, reason):
    (tmp_path / "there.jsonl").touch()
    code, _, err = cli("synthesize", prompt, "--output", tmp_path / output)
    assert code == 1 and reason in err and "Traceback" not in err
