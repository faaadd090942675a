"""What a run prints and writes when all goes well."""

import io
import json
import re

import pytest
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


def test_eval_leads_with_the_median_and_leaves_the_prompts_own_queries_out(cli, job):
    assert cli(*job.arguments)[0] == 0
    figures, held_out = (job.folder / name for name in ("scores.json", "held_out.txt"))
    inside = "You answer in short sentences."
    held_out.write_text(f"{held_out.read_text()}Do you answer at length?\n{inside}")
    options = ["--prompt", job.folder / "prompt.txt", "--queries", held_out, "--json", figures]
    code, out, err = cli("eval", job.folder / "out", *options, "--max-answer-length", 4)
    assert code == 0, err
    places = [out.index(text) for text in ("median query", "mean over tokens", "KL to the full", "ROUGE")]
    assert places == sorted(places)
    assert "Note: Left out 1 of 4 held-out queries" in err and f"'{inside}'" in err
    scores = json.loads(figures.read_text())
    assert scores["num_queries"] == 3 and [left["query"] for left in scores["left_out"]] == [inside]
    gap = scores["gap"]
    (row,) = [line for line in out.splitlines() if "mean over tokens" in line]
    assert f"{gap['mean']:.3f} ({gap['mean_interval'][0]:.2f} to {gap['mean_interval'][1]:.2f})" in row
    held_out.write_text(inside)
    code, _, err = cli("eval", job.folder / "out", *options)
    assert code == 1 and "All held-out queries stand in the prompt" in err and "Traceback" not in err


def test_eval_shows_the_answer_that_copies_most(capsys, monkeypatch):
    from peft_be.cli.evaluate import show

    monkeypatch.setenv("COLUMNS", "200")
    both = {"no_prompt": 0.5, "be": 0.2}
    gap = {"median": 0.6, "median_interval": [0.5, 0.7], "median_queries": 22, "unchanged_queries": 2}
    gap |= {"behaviour": 0.55, "behaviour_interval": None, "quoted": None, "quoted_share": 0.031, "mean": 0.27}
    copied = [{"query": "Who [b]are[/b] you?", "answer": "A pirate\ncaptain.", "quoted": 0.94}, {"quoted": 0.6}]
    scores = {
        "prompt_tokens": 100, "be_tokens": 1, "compression_ratio": 100.0, "num_queries": 24, "num_answer_tokens": 240,
        "gap": gap, "kl": both, "top1_agreement": both, "answer_rouge_l": both, "ttft_ms": {**both, "full": 1.0},
        "copies": copied, "same_answers": {"no_prompt": 0.0, "be": 0.5},
    }  # fmt: skip
    show(scores, [])
    out = capsys.readouterr().out
    assert re.search(r"the same answers, word for word +│ +24 │ +0 │ +12 │", out)
    for text in ("gap closed, median query", "0.600 (0.50 to 0.70)", "without quotations", "(3.1%)"):
        assert text in out
    assert "Left out of the median: 2 of 24 queries" in " ".join(out.split())
    told = out[out.index("Mostly copied from the prompt's text: 2 of 24 answers of the full prompt") :]
    assert "94% of its tokens:\nWho [b]are[/b] you?\nA pirate\ncaptain." in told


def test_bench_refuses_batch_sizes_that_are_no_numbers(cli, job):
    assert cli(*job.arguments)[0] == 0
    options = ["--prompt", job.folder / "prompt.txt", "--batch-sizes", "1,many"]
    code, _, err = cli("bench", job.folder / "out", *options)
    assert code == 1 and "--batch-sizes takes whole numbers" in err


def test_a_quick_bench(cli, job):
    assert cli(*job.arguments)[0] == 0
    figures = job.folder / "figures.json"
    arguments = ["bench", job.folder / "out", "--prompt", job.folder / "prompt.txt", "--json", figures, "--quick"]
    code, out, err = cli(*arguments)
    assert code == 0, err
    result = json.loads(figures.read_text())
    assert (result["new_tokens"], result["repeats"], [b["batch_size"] for b in result["batches"]]) == (8, 2, [1])
    # Times of a tiny model, which would all be "3 (3-3)" without decimals
    cells = re.search(r"first token, ms │(.*)", out)[1].split("│")[:4]
    assert all(re.fullmatch(r" *[\d.]+ \([\d.]+-[\d.]+\) *", cell) for cell in cells)
    for figure, cell in zip(("full", "full_cached", "no_prompt", "be"), cells):
        median = result["batches"][0][figure]["ttft_ms"]["median"]
        assert float(cell.split()[0]) == pytest.approx(median, rel=0.01)
    assert cli(*arguments, "--new-tokens", 3)[0] == 0
    assert json.loads(figures.read_text())["new_tokens"] == 3


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
        assert code == 1 and "context is 512" in err and "('sea sea sea" in err and "Traceback" not in err
        assert not (job.folder / "figures.json").exists()


def test_the_last_lines_of_compress_say_what_the_kl_is_worth(cli, job):
    code, out, err = cli(*job.arguments)
    assert code == 0, err
    # Before the work: what to expect of so few queries, and what is to be imitated
    assert "only 11 training queries" in err and "Only 1 query is held out" in err
    preview = out[out.index("This is what [BE] will imitate") : out.index("steps in")]
    assert preview.count("with the prompt: ") == preview.count("without it: ") == 3
    best = json.loads((job.folder / "out" / "training.json").read_text())["best"]
    told = f"on 1 validation query: {best['kl']:.4f} nats a token, {best['kl_no_prompt']:.4f} without a prompt: gap closed"
    same, without = (round(best[name]) for name in ("same_answers", "same_answers_no_prompt"))
    answers = f", {same} of 1 answers the same, word for word ({without} without a prompt)" if same else ""
    assert f"{told} {best['kl_gap_closed']:.3f}{answers} (step 2)" in out
    assert "best validation" not in out
    code, out, err = cli("info", job.folder / "out")
    assert code == 0, err
    row = re.search(r"validation queries +│ +- │ +(-?[\d.]+) │ +([\d.]+) │ +([\d.]+) │", out)
    assert row.groups() == (f"{best['kl_gap_closed']:.3f}", f"{best['kl']:.4f}", f"{best['kl_no_prompt']:.4f}")


def test_a_method_that_fails_is_told_with_the_others(cli, job, tiny_dir):
    arguments = ["--prompt", job.folder / "prompt.txt", "--queries", job.folder / "queries.jsonl", "--model", tiny_dir]
    arguments += ["--output", job.folder / "compared", "--max-steps", 2, "--max-answer-length", 4]
    # Reconstruction needs an [AE] row, and none is shipped for a random model
    code, out, err = cli("compare", *arguments, "--methods", "be-paper,truncation:8")
    assert code == 1 and "1 of 4 methods failed: be-paper" in err and "--resume" in err and "Traceback" not in err
    assert "truncation:8" in out and "pretrain-ae" in out
    code, _, err = cli("compare", *arguments, "--methods", "be-paper,truncation:8", "--resume")
    assert code == 1 and "1 of 4 methods failed: be-paper" in err
    code, _, err = cli("compare", *arguments, "--methods", "truncation:8", "--overwrite")
    assert code == 0, err


def test_a_task_that_needs_a_judge_is_for_python(cli, job):
    options = [
        "--prompt",
        job.folder / "prompt.txt",
        "--queries",
        job.folder / "queries.jsonl",
        "--output",
        job.folder / "c",
    ]
    code, _, err = cli("compare", *options, "--task", "rolebench-judge", "--task-items", job.folder / "queries.jsonl")
    assert code == 1 and "needs a judge" in err


def test_settings_are_named_before_anything_is_loaded(cli, job):
    for option, value in (
        ("learning_rate", "-1"),
        ("learning_rate", "nan"),
        ("temperature", "nan"),
        ("temperature", "0"),
        ("kd_weight", "nan"),
        ("max_minutes", "0"),
        ("max_minutes", "-2"),
        ("max_minutes", "inf"),
        ("seed", "-1"),
    ):
        code, _, err = cli(*job.with_(model="/no/such/folder", **{option: value}))
        assert code == 1 and err.startswith("Error: ") and option in err and "Traceback" not in err, err
    audit = ["audit", "/no/such/folder", "--prompt", job.folder / "prompt.txt"]
    for option, value in (
        ("temperature", "0"),
        ("temperature", "nan"),
        ("seed", "-1"),
        ("canary", "not in the prompt"),
    ):
        code, _, err = cli(*audit, f"--{option}", value)
        assert code == 1 and err.startswith("Error: ") and option in err and "Traceback" not in err, err
    for option in ("batch_size", "max_answer_length", "num_be_tokens", "reconstruction_interval"):
        code, _, err = cli(*job.with_(model="/no/such/folder", **{option: 0}))
        assert code == 1 and err.startswith("Error: ") and option in err, err
    assert not (job.folder / "out").exists()
