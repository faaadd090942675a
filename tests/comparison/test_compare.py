"""Whole comparisons with a random model: the same work for all, kept as it is done, and what is in the results."""

import json
import time

import pytest
import torch

from peft_be import load_checks
from peft_be.comparison.compare import compare_methods
from peft_be.comparison.methods import SoftPrompt


PROMPT = (
    "You are a lighthouse keeper. You answer in short sentences, and you never leave the island, whatever happens."
)
QUERIES = [f"What did you see on day {number}?" for number in range(15)]
SETTINGS = {"max_steps": 2, "max_answer_length": 4, "seeds": (1, 2)}


@pytest.fixture
def compare(tiny_model, tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("PEFT_BE_CACHE", str(tmp_path / "cache"))
    for parameter in tiny_model.parameters():
        parameter.data.mul_(3)
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")

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
        assert run["gap"]["mean"] == run["kl_gap_closed"] and run["gap"]["quoted_share"] == 0
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
    results = compare(["soft-prompt"], max_steps=100_000, max_minutes=0.15, seeds=(1,))
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


def test_queries_of_the_prompt_are_no_test_queries(compare):
    inside = "You never leave the island, whatever happens!"
    with pytest.warns(UserWarning, match="Left out 1 of 3 held-out queries"):
        results = compare(["truncation:8"], test_queries=["Who are you?", inside, "Is it cold?"])
    assert results["num_queries"]["test"] == 2 and inside not in results["queries"]
    assert results["left_out"] == [{"query": inside, "passage": "you never leave the island, whatever happens"}]
    assert all(len(method["runs"][0]["query_kl"]) == 2 for method in results["methods"])


def test_test_queries_that_all_stand_in_the_prompt_are_found_before_the_work(compare, tmp_path):
    with pytest.raises(ValueError, match="All held-out queries stand in the prompt"):
        compare(["truncation:8"], test_queries=["You never leave the island, whatever happens!"])
    assert not (tmp_path / "out").exists()


def test_runs_of_an_earlier_version_are_made_again(compare, tmp_path, monkeypatch):
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
    cells = [json.loads(line) for line in kept.read_text().splitlines()]
    old = ({name: value for name, value in cell.items() if not name.startswith("quoted")} for cell in cells)
    kept.write_text("".join(json.dumps(cell) + "\n" for cell in old))
    results = compare(["soft-prompt"], resume=True)
    assert fits == [1, 2, 1, 2] and all(run["gap"] for method in results["methods"] for run in method["runs"])


def test_a_prompt_that_is_too_long_is_found_before_the_work(compare, tmp_path, monkeypatch):
    monkeypatch.setattr("tests.comparison.test_compare.PROMPT", PROMPT * 40)
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


@pytest.mark.parametrize("kind", [ZeroDivisionError, torch.OutOfMemoryError, AttributeError, KeyError])
def test_a_method_may_fail_with_anything_and_is_tried_again(compare, tmp_path, monkeypatch, kind):
    fits = []

    def fit(self, job):
        fits.append(job.seed)
        raise kind("it broke")

    with monkeypatch.context() as patch:
        patch.setattr(SoftPrompt, "fit", fit)
        results = compare(["soft-prompt", "truncation:8"])
    failed, other = results["methods"][2:]
    assert failed["runs"] == [] and other["error"] is None and len(other["runs"]) == 1
    words = "Out of memory" if kind is torch.OutOfMemoryError else f"{kind.__name__}: "
    assert words in failed["error"]
    assert json.loads((tmp_path / "out" / "results.json").read_text())["methods"][2]["error"] == failed["error"]
    for name in ("table.md", "report.html"):
        text = (tmp_path / "out" / name).read_text()
        assert "soft-prompt" in text and words.split(":")[0] in text

    with pytest.raises(FileExistsError, match="--resume"):
        compare(["soft-prompt", "truncation:8"])
    kept = (tmp_path / "out" / "training" / "cells.jsonl").read_text()
    again = compare(["soft-prompt", "truncation:8"], resume=True)
    assert [method["error"] for method in again["methods"]] == [None] * 4 and fits == [1]
    assert len(again["methods"][2]["runs"]) == 2 and again["methods"][3]["runs"] == other["runs"] and kept
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"results.json", "report.html", "table.md"}


def test_a_budget_that_ends_before_the_first_step_is_one_methods_failure(compare, monkeypatch):
    from peft_be.comparison.methods.learned_rows import LearnedRows

    original = LearnedRows.fit

    def late(self, job):
        job.on_progress = lambda *_: time.sleep(0.3)  # the teacher's answers are read from the cache
        return original(self, job)

    monkeypatch.setattr(LearnedRows, "fit", late)
    results = compare(["be", "truncation:8"], max_minutes=0.001, seeds=(1,))
    failed, other = results["methods"][2:]
    assert "max_minutes=0.001 is over before the first step" in failed["error"]
    assert other["error"] is None and len(other["runs"]) == 1


def test_the_curve_and_its_line_are_of_the_same_queries(compare, tmp_path):
    results = compare(["be", "cartridge"], seeds=(1,))
    none, *trained = results["methods"][1:]
    values = [method["runs"][0]["curve_no_prompt"] for method in trained]
    # On the validation queries, from the same answers; no prompt's own score is on the test queries
    assert values[0] == pytest.approx(values[1], rel=1e-3)
    assert none["runs"][0]["curve_no_prompt"] is None and values[0] != pytest.approx(none["runs"][0]["kl"], rel=1e-3)
    html = (tmp_path / "out" / "report.html").read_text()
    assert "no prompt, validation" in html and "no prompt, test" not in html
    assert f"of {values[0]:.3f} without a prompt, gap closed" in html


CHECKS = {"is short": {"characters": {"max": 1}}, "speaks of a day": {"when": "day", "never_says": "island"}}


def test_checks_are_counted(compare, tmp_path):
    results = compare(["be"], checks=load_checks(CHECKS))
    runs = [run for method in results["methods"] for run in method["runs"]]
    answers = {method["name"]: method["runs"][0]["answers"] for method in results["methods"]}
    assert all(list(run["checks"]) == [*CHECKS, "all checks"] for run in runs)
    for run in runs:
        score = run["checks"]["is short"]
        for side, texts in (("full", results["full_answers"]), ("no_prompt", answers["none"]), ("be", run["answers"])):
            assert score[side] == sum(len(text.strip()) <= 1 for text in texts) / 3
    assert results["cut_answers"] <= 3
    assert "| speaks of a day |" in (tmp_path / "out" / "table.md").read_text()
    # The same checks are known again, however often they are read
    assert compare(["be"], checks=load_checks(CHECKS), resume=True)["methods"] == json.loads(
        json.dumps(results["methods"])
    )
    for other in (None, load_checks({**CHECKS, "is short": {"characters": {"max": 2}}})):
        with pytest.raises(ValueError, match="another checks"):
            compare(["be"], checks=other, resume=True)


def test_a_check_that_no_test_query_asks_for_is_found_before_the_work(compare, tmp_path):
    with pytest.raises(ValueError, match="No query matches 'when' of the check 'refunds'"):
        compare(["be"], checks=load_checks({"refunds": {"when": "refund", "contains": "30 days"}}))
    assert not (tmp_path / "out").exists()
