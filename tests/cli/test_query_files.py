"""Files of queries on the command line: every command reads the same ones, and refuses the others before a model is loaded."""

import json

import pytest
from datasets import Dataset

from .conftest import PROMPT, QUERIES
from .outcomes import fails


SYSTEM = {"role": "system", "content": "Be brief."}
PARTS = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
TOOLS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "", "tool_calls": []}, SYSTEM]


@pytest.fixture
def table(job):
    """The queries next to the system text that they are for, as a log of requests has them."""
    rows = [{"prompt": PROMPT, "question": query} for query in QUERIES]
    Dataset.from_list(rows).to_csv(job.folder / "log.csv", index=False)
    Dataset.from_list(rows).to_parquet(job.folder / "LOG.PARQUET")


def trained_on(folder):
    report = json.loads((folder / "training.json").read_text())
    return report["seen_queries"], report["num_queries"]


def test_a_table_trains_on_the_same_queries(cli, job, table):
    assert cli(*job.with_(kd_weight=1))[0] == 0
    expected = trained_on(job.folder / "out")
    for name in ("log.csv", "LOG.PARQUET"):
        changes = {"queries": job.folder / name, "query_field": "question", "output": job.folder / f"out-{name}"}
        code, _, err = cli(*job.with_(kd_weight=1, **changes))
        assert code == 0, err
        assert trained_on(changes["output"]) == expected

    paths = ["--prompt", job.folder / "prompt.txt", "--queries", job.folder / "log.csv"]
    for command in (["eval", job.folder / "out"], ["bench", job.folder / "out", "--new-tokens", 2, "--repeats", 2]):
        fails(cli(*command, *paths), "Line 2", "several fields", "prompt, question", "--query-field")
    fails(cli("eval", job.folder / "out", *paths, "--query-field", "question"), "were trained on")
    figures = job.folder / "bench.json"
    code, _, err = cli(
        "bench", job.folder / "out", *paths, "--query-field", "question", "--new-tokens", 2, "--repeats", 2, "--json", figures
    )  # fmt: skip
    assert code == 0, err
    assert figures.is_file()
    fails(cli("bench", job.folder / "out", *paths[:2], "--query-field", "question"), "--queries")


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("q.json", json.dumps([{"prompt": "a", "question": "b"}], indent=2), ["Item 1", "prompt, question", "--query-field"]),
        ("q.csv", "prompt,question\nYou are a pirate.,Who are you?\n", ["Line 2", "prompt, question", "--query-field"]),
        ("q.txt", '[\n  "a",\n  "b"\n]\n', ["q.txt", ".json"]),
        ("q.txt", "id,question\n1,a\n2,b\n", ["q.txt", ".csv"]),
        ("q.xlsx", "PK", ["q.xlsx", ".csv", ".parquet"]),
        ("q.jsonl", json.dumps({"query": PARTS}), ["line 1", "q.jsonl", "message 1 must be text"]),
        ("q.jsonl", json.dumps({"query": TOOLS}), ["line 1", "q.jsonl", "'tool_calls'"]),
        ("q.jsonl", json.dumps({"query": [SYSTEM, *PARTS]}), ["line 1", "q.jsonl"]),
    ],
)  # fmt: skip
def test_files_are_refused_before_a_model_is_loaded(cli, job, monkeypatch, name, content, words):
    def load(*args, **kwargs):
        raise AssertionError("a model was loaded")

    for module in (
        "peft_be.adapters.load.load_model",
        "peft_be.adapters.load.load_adapter",
        "peft_be.runs.prepare.load_base",
    ):
        monkeypatch.setattr(module, load)
    path = job.folder / name
    path.write_text(content)
    for option in ("queries", "test_queries"):
        fails(cli(*job.with_(kd_weight=1, **{option: path})), *words)
    paths = ["--prompt", job.folder / "prompt.txt", "--queries", path]
    for command in ("eval", "bench"):
        fails(cli(command, job.folder / "out", *paths), *words)
    fails(cli("compare", *paths, "--output", job.folder / "comparison"), *words)
    manifest = job.folder / "manifest.jsonl"
    manifest.write_text(json.dumps({"name": "a", "prompt": "prompt.txt", "queries": name}))
    fails(cli("compress-many", manifest, "--output", job.folder / "many"), *words)
    assert sorted(file.name for file in job.folder.iterdir() if file.is_dir() and file.name != "cache") == []


def test_a_question_that_was_trained_on_as_a_text_is_not_held_out_as_a_dialogue(cli, job):
    code, _, err = cli(*job.with_(kd_weight=1))
    assert code == 0, err
    held_out = job.folder / "dialogues.jsonl"
    rows = [{"messages": [{"role": "user", "content": query}]} for query in QUERIES]
    held_out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluation = ["eval", job.folder / "out", "--prompt", job.folder / "prompt.txt", "--queries", held_out]
    fails(cli(*evaluation), "were trained on")


def test_a_manifest_may_be_a_table(cli, job, tiny_dir, table):
    rows = [
        {"name": "log", "prompt": "prompt.txt", "queries": "log.csv", "query_field": "question", "test_queries": None},
        {"name": "list", "prompt": "prompt.txt", "queries": "queries.jsonl", "test_queries": "held_out.txt"},
        {"name": "gone", "prompt": "../nowhere.txt", "queries": "queries.jsonl"},
        {"name": "folder", "prompt": ".", "queries": "queries.jsonl"},
    ]
    (job.folder / "m.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(rows, indent=2).encode())
    Dataset.from_list(rows).to_csv(job.folder / "m.csv", index=False)
    for name in ("m.json", "m.csv"):
        output = job.folder / f"many-{name}"
        arguments = ["--output", output, "--model", tiny_dir, "--max-answer-length", 6, "--max-steps", 2]
        code, _, err = cli("compress-many", job.folder / name, *arguments)
        assert code == 1 and "2 of 4 prompts failed" in err and "nowhere.txt" in err, err
        assert trained_on(output / "log")[1] == {"train": 11, "validation": 1}
        assert trained_on(output / "list")[1] == {"train": 10, "validation": 1}
    name = job.folder / "m.jsonl"
    for row, words in (
        ({**rows[0], "name": "../out"}, ["'../out' cannot name"]),
        ({**rows[0], "queries": ["a", "b"]}, ["Line 1", "all of them texts"]),
        ({**rows[0], "lr": 1}, ["Line 1", "query_field"]),
    ):
        name.write_text(json.dumps(row))
        fails(cli("compress-many", name, "--output", job.folder / "many"), *words)
