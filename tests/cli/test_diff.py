"""`peft-be diff`."""

import json

import pytest

from peft_be import load_checks
from peft_be.cli.diff import show_changes
from peft_be.evaluation import check_changes

from ..exports import save_adapter
from .outcomes import fails


@pytest.fixture
def adapters(job, tiny_dir):
    return [save_adapter(tiny_dir, job.folder / name, k=k) for name, k in (("old", 1), ("new", 2))]


def test_two_adapters(cli, job, adapters):
    (job.folder / "checks.yaml").write_text("answers: '^'\nsays goodbye: {ends_with: Goodbye!}\n")
    options = ["--queries", job.folder / "held_out.txt", "--max-answer-length", 4]
    options += ["--checks", job.folder / "checks.yaml", "--samples", 2, "--json", job.folder / "diff.json"]
    code, out, err = cli("diff", *adapters, *options)
    assert code == 0, err
    figures = json.loads((job.folder / "diff.json").read_text())
    assert (figures["a"], figures["b"]) == tuple(map(str, adapters)) and figures["tokens"] == {"a": 1, "b": 2}
    assert figures["checks"]["answers"]["b"] == 1 and figures["num_queries"] == len(figures["queries"]) == 3
    assert [q["kl"] for q in figures["queries"]] == sorted((q["kl"] for q in figures["queries"]), reverse=True)
    assert f"A: {adapters[0]}" in out and f"{round(3 * figures['same_answers'])} of 3" in out
    for name in ("median", "mean"):
        assert f"{figures['kl'][name]:.4f}" in out and f"{figures['kl_no_prompt'][name]:.4f}" in out
    # Those that differ most are shown
    shown = [query["query"] in out for query in figures["queries"]]
    assert shown == [True, True, False] and f"(KL {figures['queries'][0]['kl']:.4f})" in out
    assert "No check is clearly lost or gained" in out and "there are fewer for 'answers' (3)" in out
    assert "answers of A are as long as they may be, 4 tokens" in err and "answers of B" in err


def test_two_prompts_and_an_adapter_with_a_prompt(cli, job, tiny_dir, adapters):
    (job.folder / "new.txt").write_text("You sell umbrellas.")
    options = ["--queries", job.folder / "held_out.txt", "--max-answer-length", 4, "--samples", 0]
    code, out, err = cli("diff", job.folder / "prompt.txt", job.folder / "new.txt", "--model", tiny_dir, *options)
    assert code == 0 and "the same answer as A" in out, err
    # The base model is the adapter's
    code, out, err = cli("diff", job.folder / "prompt.txt", adapters[1], *options)
    assert code == 0 and "the same answer as A" in out, err


def test_queries_that_were_trained_on_are_left_out(cli, job, adapters):
    assert cli(*job.arguments)[0] == 0
    options = ["--max-answer-length", 4, "--samples", 0]
    code, out, err = cli("diff", adapters[0], job.folder / "out", "--queries", job.folder / "held_out.txt", *options)
    assert code == 0 and "Left out 1 queries that were trained on" in out and "2 held-out queries" in out, err
    fails(
        cli("diff", adapters[0], job.folder / "out", "--queries", job.folder / "queries.jsonl"),
        "All queries were trained on",
    )


def test_what_cannot_be_compared(cli, job, adapters, tmp_path):
    options = ["--queries", job.folder / "held_out.txt", "--model", "/no/such/folder"]
    fails(cli("diff", adapters[0], job.folder / "none", *options), "There is no adapter in")
    fails(cli("diff", adapters[0], job.folder / "none.txt", *options), "none.txt")
    (job.folder / "checks.yaml").write_text("a: {contains: b, when: refund}\n")
    fails(cli("diff", *adapters, *options, "--checks", job.folder / "checks.yaml"), "No query matches 'when'")
    config = json.loads((adapters[1] / "adapter_config.json").read_text())
    (adapters[1] / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "org/other"}))
    fails(cli("diff", *adapters, "--queries", job.folder / "held_out.txt"), "belongs to org/other")


def test_changes_are_said_in_answers(capsys):
    checks = load_checks({"greets": {"starts_with": "Hello"}, "waves": {"ends_with": "Bye"}})
    answers = [{"query": "Hi", "a": "Hello", "b": "Bye"}] * 8
    show_changes(check_changes(checks, answers))
    told = capsys.readouterr().out.splitlines()
    assert told[:2] == [
        "Lost by B: 'greets'. 8 answers pass with A alone, 0 with B alone (McNemar's exact test: p = 0.0078).",
        "Gained by B: 'waves'. 0 answers pass with A alone, 8 with B alone (McNemar's exact test: p = 0.0078).",
    ]
