"""What a run prints and writes when all goes well."""

import io
import json
import re

from huggingface_hub import ModelCard


def test_compress_then_bench_and_evaluate(cli, job):
    code, out, err = cli(*job.with_(max_minutes=1))
    assert code == 0, err
    assert "{'" not in out  # the trainer's own logging
    figures = job.folder / "latency.json"
    arguments = ["--prompt", job.folder / "prompt.txt", "--repeats", 2, "--new-tokens", 2, "--batch-sizes", "1,2"]
    code, out, err = cli("bench", job.folder / "out", *arguments, "--json", figures)
    assert code == 0, err
    result = json.loads(figures.read_text())
    assert result["training_seconds"] == json.loads((job.folder / "out" / "training.json").read_text())["seconds"]
    assert [batch["batch_size"] for batch in result["batches"]] == [1, 2]
    code, _, err = cli(
        "eval", job.folder / "out", "--prompt", job.folder / "prompt.txt", "--queries", job.folder / "held_out.txt",
        "--max-answer-length", 4, "--card",
    )  # fmt: skip
    assert code == 0, err
    results = ModelCard.load(job.folder / "out" / "README.md").data.eval_results
    assert {"validation queries", "2 held-out queries"} == {result.dataset_name for result in results}
    for text in ("first token, ms", "KV cache, MB", "NormFLOPs", "are paid"):
        assert text in out


def test_bench_refuses_batch_sizes_that_are_no_numbers(cli, job):
    assert cli(*job.arguments)[0] == 0
    options = ["--prompt", job.folder / "prompt.txt", "--batch-sizes", "1,many"]
    code, _, err = cli("bench", job.folder / "out", *options)
    assert code == 1 and "--batch-sizes takes whole numbers" in err


def test_chat_with_both_forms(cli, job, monkeypatch):
    assert cli(*job.arguments)[0] == 0
    monkeypatch.setattr("sys.stdin", io.StringIO("Who are you?\nAnd [bold]now[/]?\n\n"))
    options = ["--compare", job.folder / "prompt.txt", "--max-new-tokens", 3]
    code, out, err = cli("chat", job.folder / "out", *options)
    assert code == 0, err
    assert out.count("[BE]: ") == out.count("full prompt: ") == 2
    counts = [int(n) for n in re.findall(r"\((\d+) input tokens, first token after \d+ ms\)", out)]
    # The second turn reads the first one, too
    assert counts[0] < counts[1] and counts[0] < counts[2] < counts[3]


def test_a_chat_that_outgrows_the_context_forgets_its_beginning(cli, job, monkeypatch):
    assert cli(*job.arguments)[0] == 0
    questions = ["sea " * 150] * 4 + ["sea " * 600, "Is it cold?"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(questions) + "\n\n"))
    code, out, err = cli("chat", job.folder / "out", "--max-new-tokens", 3)
    assert code == 0, err
    counts = [int(n) for n in re.findall(r"\((\d+) input tokens", out)]
    assert len(counts) == 5 and max(counts) <= 509  # all but the one that does not fit by itself
    assert "the oldest question and the answers to them were dropped" in out
    assert "context is 512" in out
    monkeypatch.setattr("sys.stdin", io.StringIO("Is it cold?\n\n"))
    code, _, err = cli("chat", job.folder / "out", "--max-new-tokens", 600)
    assert code == 1 and "context is 512" in err


def test_what_does_not_fit_into_the_context(cli, job):
    assert cli(*job.arguments)[0] == 0
    queries = job.folder / "long.txt"
    queries.write_text("Is it cold?\n" + "sea " * 600 + "\n")
    for command in ("eval", "bench"):
        options = ["--prompt", job.folder / "prompt.txt", "--queries", queries, "--json", job.folder / "figures.json"]
        code, _, err = cli(command, job.folder / "out", *options)
        assert code == 1 and "context is 512" in err and "Traceback" not in err
        assert not (job.folder / "figures.json").exists()
