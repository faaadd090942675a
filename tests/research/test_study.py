"""The runner of studies: cells are skipped when they are done, and the table comes from the results alone."""

import json
import runpy
import sys
from pathlib import Path
from statistics import median

import pytest


STUDY = Path(__file__).parent.parent.parent / "research" / "study.py"


@pytest.fixture
def study(tmp_path, tiny_model, tiny_tokenizer, monkeypatch):
    """Runs the script on a manifest of two cells with a random model; returns its results."""
    monkeypatch.setenv("PEFT_BE_CACHE", str(tmp_path / "cache"))
    for parameter in tiny_model.parameters():
        parameter.data.mul_(3)  # a random model says nearly the same to everything
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
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
    cells.append(
        {**cells[0], "variant": "none", "method": "none", "args": {"model": args["model"], "max_answer_length": 4}}
    )
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
    assert first["kl"]["be"] == pytest.approx(min(kl for _, kl in first["curve"]), rel=1e-3)
    assert first["kl_gap_closed"] == pytest.approx(1 - first["kl"]["be"] / first["kl"]["no_prompt"])
    *both, none = study()
    assert both[0] == first and [result["seed"] for result in both] == [1, 2]
    assert study() == [*both, none]
    default, zero = capsys.readouterr().out.splitlines()[-2:]
    mean = sum(result["kl_gap_closed"] for result in both) / 2
    middle = sum(median(1 - kl / no for kl, no in zip(r["query_kl"], none["query_kl"])) for r in both) / 2
    assert (
        f"| {mean:.3f} |" in default
        and f"| {middle:.3f} |" in default
        and "| 0.000 | one seed | 0.000 to 0.000 | 0.000 |" in zero
    )
    study("--answers")
    shown = capsys.readouterr().out
    assert first["answers"] and all(answer["query"] in shown for answer in first["answers"])


def test_queries_drawn_anew():
    from study import interval

    assert interval([([1.0] * 5, [4.0] * 5)]) == "0.750 to 0.750"
    # One query of ten decides: the gap is 0.48, 0.9 where it is not drawn, 0.25 where it is drawn three times
    low, high = map(float, interval([([0.1] * 9 + [9.0], [1.0] * 9 + [10.0])]).split(" to "))
    assert 0.2 < low < 0.3 and high == 0.9


def test_a_failed_cell_leaves_the_others_alone(study, tmp_path):
    manifest = tmp_path / "cells.jsonl"
    good = json.loads(manifest.read_text().splitlines()[-1])
    bad = {**good, "variant": "several greedy answers", "method": "be", "args": {**good["args"], "num_answers": 4}}
    manifest.write_text(json.dumps(bad) + "\n" + json.dumps(good) + "\n")
    with pytest.raises(SystemExit, match="several greedy answers, seed 1: num_answers above 1 needs sampling"):
        study()
    assert [json.loads(r)["variant"] for r in (tmp_path / "out" / "results.jsonl").read_text().splitlines()] == [
        "none"
    ]


@pytest.mark.slow
def test_every_cell_of_the_papers_tables_runs(tmp_path, tiny_model, tiny_tokenizer, monkeypatch, capsys):
    """A dry run of examples/paper: one step of each cell on a random model."""
    from peft import get_peft_model

    from peft_be import BETokenConfig

    root = STUDY.parent.parent
    monkeypatch.setenv("PEFT_BE_CACHE", str(tmp_path / "cache"))
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    vocab_size = tiny_model.get_input_embeddings().num_embeddings
    ae = get_peft_model(tiny_model, BETokenConfig.for_tokenizer(tiny_tokenizer, vocab_size, 0, True))
    ae.save_pretrained(tmp_path / "ae")
    folder = tmp_path / "prompts" / "gsm8k-1shot"
    folder.mkdir(parents=True)
    (folder / "prompt.txt").write_text("Question: One and one? Answer: The answer is 2.")
    (folder / "train.jsonl").write_text("".join(f'{{"question": "{i} and one?"}}\n' for i in range(6)))
    (folder / "test.jsonl").write_text('{"question": "Nine and nine?"}\n')
    (folder / "items.jsonl").write_text('{"question": "Nine and nine?", "final": "18"}\n')
    (folder / "task.json").write_text('{"name": "gsm8k", "path": "items.jsonl", "max_answer_length": 4}')
    arguments = ["--model", tmp_path / "model", "--ae", tmp_path / "ae", "--prompts", tmp_path / "prompts"]
    arguments += ["--seeds", 1, "--max-steps", 1, "--max-answer-length", 4, "--tables", 1, 2, "figure3"]
    monkeypatch.setattr(sys, "argv", ["cells.py", *map(str, arguments)])
    runpy.run_path(str(root / "examples" / "paper" / "cells.py"), run_name="__main__")
    cells = capsys.readouterr().out
    assert len(cells.splitlines()) == 8 + 8 + 6
    (tmp_path / "cells.jsonl").write_text(cells)
    results = tmp_path / "results.jsonl"
    monkeypatch.setattr(
        sys, "argv", ["study.py", str(tmp_path / "cells.jsonl"), str(results), "--work", str(tmp_path / "work")]
    )
    runpy.run_path(str(STUDY), run_name="__main__")
    done = [json.loads(line) for line in results.read_text().splitlines()]
    assert len(done) == 22 and all(result["task_score"]["score"] is not None for result in done)
    assert {result["steps"] for result in done} == {None, 1}
