"""Whole comparisons with a random model: the same work for all, kept as it is done, and what is in the results."""

import json

import pytest

from peft_be.baselines import SoftPrompt
from peft_be.baselines.compare import compare_methods


PROMPT = (
    "You are a lighthouse keeper. You answer in short sentences, and you never leave the island, whatever happens."
)
QUERIES = [f"What did you see on day {number}?" for number in range(15)]
SETTINGS = {"max_steps": 2, "max_answer_length": 4, "seeds": (1, 2)}


@pytest.fixture
def compare(tiny_model, smollm2_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("PEFT_BE_CACHE", str(tmp_path / "cache"))
    for parameter in tiny_model.parameters():
        parameter.data.mul_(3)
    tiny_model.save_pretrained(tmp_path / "model")
    smollm2_tokenizer.save_pretrained(tmp_path / "model")

    def run(methods, **settings):
        settings = {**SETTINGS, "model": str(tmp_path / "model"), **settings}
        return compare_methods(PROMPT, QUERIES, tmp_path / "out", methods, **settings)

    return run


def test_results(compare, tmp_path):
    results = compare(["be", "soft-prompt:2"])
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == json.loads(json.dumps(results))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"results.json", "report.html", "table.md"}
    full, none, be, soft = results["methods"]
    assert [method["name"] for method in results["methods"]] == ["full", "none", "be", "soft-prompt:2"]
    # One run where nothing is random
    assert [len(method["runs"]) for method in results["methods"]] == [1, 1, 2, 2]
    assert none["runs"][0]["kl_gap_closed"] == 0 and full["runs"][0]["kl_gap_closed"] == pytest.approx(1, abs=1e-4)
    assert [run["seed"] for run in be["runs"]] == [1, 2] and be["tokens"] == 1 and soft["tokens"] == 2
    for run in be["runs"]:
        assert run["kl_gap_closed"] == pytest.approx(1 - run["kl"] / none["runs"][0]["kl"])
        assert run["steps"] == 2
    # A fifth of the queries is held out to score on, from all methods
    assert results["num_queries"] == {"train": 11, "validation": 1, "test": 3}
    assert all(len(run["query_kl"]) == 3 for method in results["methods"] for run in method["runs"])


def test_an_interrupted_comparison_goes_on(compare, monkeypatch):
    original, fits = SoftPrompt.fit, []

    def fit(self, job):
        fits.append(job.seed)
        if len(fits) == 2:
            raise KeyboardInterrupt
        return original(self, job)

    monkeypatch.setattr(SoftPrompt, "fit", fit)
    with pytest.raises(KeyboardInterrupt):
        compare(["soft-prompt"])
    with pytest.raises(FileExistsError, match="--resume"):
        compare(["soft-prompt"])
    with pytest.raises(ValueError, match="another methods"):
        compare(["soft-prompt:2"], resume=True)
    results = compare(["soft-prompt"], resume=True)
    assert fits == [1, 2, 2] and [run["seed"] for run in results["methods"][-1]["runs"]] == [1, 2]
    with pytest.raises(FileExistsError, match="finished"):
        compare(["soft-prompt"])


def test_a_method_that_fails_does_not_stop_the_others(compare):
    # Reconstruction needs an [AE] row, and none is shipped for a random model
    results = compare(["be-paper", "soft-prompt"])
    failed, other = results["methods"][2:]
    assert "pretrain-ae" in failed["error"] and failed["runs"] == []
    assert other["error"] is None and len(other["runs"]) == 2


def test_time_is_a_budget(compare):
    results = compare(["soft-prompt"], max_steps=100_000, max_minutes=0.05, seeds=(1,))
    assert results["methods"][-1]["runs"][0]["steps"] < 10_000


def test_unknown_methods_are_found_before_the_work(compare, tmp_path):
    with pytest.raises(ValueError, match="Unknown method 'bee'"):
        compare(["bee"])
    assert not (tmp_path / "out").exists()


def test_a_task_is_scored(compare, tmp_path):
    from peft_be.evaluation.tasks import load_task

    (tmp_path / "items.jsonl").write_text('{"question": "How many ships?", "final": "3"}\n' * 2)
    task = load_task("gsm8k", tmp_path / "items.jsonl", max_answer_length=4)
    results = compare(["truncation:8"], task=task)
    assert results["task"] == "GSM8K"
    for method in results["methods"]:
        assert 0 <= method["runs"][0]["task"]["score"] <= 1


def test_a_prompt_that_is_too_long_is_found_before_the_work(compare, tmp_path, monkeypatch):
    monkeypatch.setattr("tests.baselines.test_compare.PROMPT", PROMPT * 40)
    with pytest.raises(ValueError, match="context is 512"):
        compare(["truncation"])
    assert not (tmp_path / "out").exists()


def test_a_run_that_was_cut_off_while_it_was_kept_is_made_again(compare, tmp_path, monkeypatch):
    original, fits = SoftPrompt.fit, []

    def fit(self, job):
        fits.append(job.seed)
        if fits == [1, 2]:
            raise KeyboardInterrupt
        return original(self, job)

    monkeypatch.setattr(SoftPrompt, "fit", fit)
    with pytest.raises(KeyboardInterrupt):
        compare(["soft-prompt"])
    kept = tmp_path / "out" / "training" / "cells.jsonl"
    kept.write_text(kept.read_text()[:-5])
    results = compare(["soft-prompt"], resume=True)
    assert fits == [1, 2, 1, 2] and [run["seed"] for run in results["methods"][-1]["runs"]] == [1, 2]
