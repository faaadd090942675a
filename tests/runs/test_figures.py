"""The figure that a user reads: a KL next to the KL without a prompt on the same queries, and what to expect of few queries."""

import json
import warnings

import peft
import pytest
import torch
from accelerate import Accelerator
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from peft_be import PromptJob, PromptRenderer, compress_prompt, compress_prompts
from peft_be.data import QuerySplits, split_queries
from peft_be.evaluation.fidelity import FidelityScorer
from peft_be.figures import best_sentence, gap_closed, kl_sentence
from peft_be.training.validation import ValidationSums

from ..stages import PROMPT


QUERIES = [f"What did you see on day {i}?" for i in range(30)]
FAST = {"max_steps": 4, "eval_steps": 2, "save_steps": 2, "max_answer_length": 6}


@pytest.fixture
def model(tiny_model, monkeypatch, tmp_path):
    """A random model whose answers depend on the prompt."""
    monkeypatch.setenv("PEFT_BE_CACHE", str(tmp_path / "cache"))
    for parameter in tiny_model.parameters():
        parameter.data.mul_(3)
    return tiny_model


def compress(model, tokenizer, folder, **changes):
    result = compress_prompt(PROMPT, QUERIES, folder, model=model, tokenizer=tokenizer, **{**FAST, **changes})
    result.model.unload()
    return result.report


def test_the_kl_of_no_prompt_is_that_of_the_validation_queries(model, tiny_tokenizer, tmp_path):
    report = compress(model, tiny_tokenizer, tmp_path / "out")
    queries, renderer = split_queries(QUERIES).validation, PromptRenderer(tiny_tokenizer, PROMPT)
    scorer = FidelityScorer(model, tiny_tokenizer, [renderer.full(query) for query in queries], 6)
    expected = scorer.kl([renderer.no_prompt(query) for query in queries])
    best = report["best"]
    assert expected > 0.02 and best["kl_no_prompt"] == pytest.approx(expected, rel=1e-4)
    assert best["kl_gap_closed"] == pytest.approx(1 - best["kl"] / best["kl_no_prompt"])
    # The same in each validation's entry, in training.json, and in the card
    for entry in (e for e in report["log"] if "eval_kl" in e):
        assert entry["eval_no_prompt_kl"] == best["kl_no_prompt"]
        assert entry["eval_gap_closed"] == pytest.approx(1 - entry["eval_kl"] / best["kl_no_prompt"])
    assert json.loads((tmp_path / "out" / "training.json").read_text())["best"] == best
    sentence = f"on 3 validation queries: {best['kl']:.4f} nats a token, {best['kl_no_prompt']:.4f} without a prompt"
    assert f"{sentence}: gap closed {best['kl_gap_closed']:.3f}" in best_sentence(report)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert f"gap closed {best['kl_gap_closed']:.3f}" in card.text
    metrics = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert metrics == {name: round(best[name], 4) for name in ("kl", "kl_no_prompt", "kl_gap_closed")}


@pytest.mark.parametrize("k, some", [(1, False), (34, True)])
def test_the_same_answers_are_those_that_greedy_decoding_writes(model, tiny_tokenizer, tmp_path, k, some):
    # The rows are P's first tokens, or all of them, and as good as untrained
    report = compress(
        model, tiny_tokenizer, tmp_path / "out", num_be_tokens=k, learning_rate=1e-4, max_answer_length=1
    )
    queries, renderer = split_queries(QUERIES).validation, PromptRenderer(tiny_tokenizer, PROMPT)
    scorer = FidelityScorer(model, tiny_tokenizer, [renderer.full(query) for query in queries], 1)
    adapter = peft.PeftModel.from_pretrained(model, tmp_path / "out")
    be = PromptRenderer.for_adapter(adapter.peft_config["default"], tiny_tokenizer, PROMPT)
    expected = scorer.score([be.be(query) for query in queries]).same_answers
    assert report["best"]["same_answers"] == expected
    assert {entry["eval_same_answers"] for entry in report["log"] if "eval_kl" in entry} == {expected}
    assert (expected > 0) == some
    without = scorer.score([renderer.no_prompt(query) for query in queries]).same_answers
    assert report["best"]["same_answers_no_prompt"] == without
    told = f", {round(3 * expected)} of 3 answers the same, word for word ({round(3 * without)} without a prompt)"
    assert (told in best_sentence(report)) == (expected > 0)


def test_several_prompts_have_their_own_same_answers():
    sums = ValidationSums(2, torch.device("cpu"))
    right = torch.tensor([True, True, False, True, True, True, False])
    lengths, prompts = torch.tensor([2, 1, 2, 2]), torch.tensor([0, 0, 1, 0, 0, 1, 1])
    for _ in range(2):
        sums.add({"answer_lengths": lengths, "prompt": prompts}, torch.arange(7.0), right)
    # An answer without a token is none
    sums.add({"answer_lengths": torch.tensor([0]), "prompt": prompts[:0]}, torch.ones(0), right[:0])
    means = sums.means(Accelerator(cpu=True), with_answers=True)
    assert means == {"kl": [8 / 4, 13 / 3], "same_answers": [1.0, 0.0]}


@pytest.mark.parametrize("kl", [0.0, 3e-6, 0.25])
def test_no_gap_is_told_where_the_prompt_changes_nothing(kl):
    told = kl_sentence(kl, 4.9e-5, 3)
    assert (
        told
        == f"KL to the full prompt on 3 validation queries: {kl:.4f} nats a token, 0.0000 without a prompt: there is no gap to close"
    )
    assert gap_closed(kl, 4.9e-5) is None is gap_closed(kl, 0.0)
    assert kl_sentence(kl, 0.5, 3).endswith(f"0.5000 without a prompt: gap closed {1 - 2 * kl:.3f}")
    assert kl_sentence(kl, None, 3).endswith(f"{kl:.4f} nats a token")


def test_a_share_of_an_answer_is_compared_with_the_same_share(model, tiny_tokenizer, tmp_path):
    whole = compress(model, tiny_tokenizer, tmp_path / "whole")
    first = compress(model, tiny_tokenizer, tmp_path / "first", max_kd_tokens=1)
    assert first["best"]["kl_no_prompt"] != whole["best"]["kl_no_prompt"]


def test_many_prompts(model, tiny_tokenizer, tmp_path):
    # Neither name may be mixed up with a figure's
    names = ("no_prompt", "gap_closed")
    jobs = [PromptJob(name, f"{PROMPT} {name}!", QUERIES) for name in names]
    args = {"model": model, "tokenizer": tiny_tokenizer, **FAST}
    results = compress_prompts(jobs, tmp_path / "out", **args)
    values = [result.report["best"]["kl_no_prompt"] for result in results]
    assert values[0] != values[1]
    for job, result in zip(jobs, results):
        alone = compress_prompt(job.prompt, QUERIES, tmp_path / job.name, **args)
        alone.model.unload()
        best = result.report["best"]
        assert best["kl_no_prompt"] == alone.report["best"]["kl_no_prompt"]
        assert best["kl_gap_closed"] == pytest.approx(1 - best["kl"] / best["kl_no_prompt"])
        assert best["same_answers"] == alone.report["best"]["same_answers"]
        assert f"gap closed {best['kl_gap_closed']:.3f}" in (result.directory / "README.md").read_text()


def test_nothing_of_it_changes_the_rows(model, tiny_tokenizer, tmp_path):
    seen = []
    compress(model, tiny_tokenizer, tmp_path / "shown", on_preview=seen.append)
    compress(model, tiny_tokenizer, tmp_path / "plain")
    rows = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("shown", "plain")]
    assert all(tensor.equal(rows[1][name]) for name, tensor in rows[0].items())
    (preview,) = seen
    train = split_queries(QUERIES).train
    assert [shown["query"] for shown in preview] == train[:3]
    renderer = PromptRenderer(tiny_tokenizer, PROMPT)
    for form in ("full", "no_prompt"):
        prompts = [getattr(renderer, form)(query) for query in train[:3]]
        assert FidelityScorer(model, tiny_tokenizer, prompts, 6).texts == [shown[form] for shown in preview]


def test_splits_have_their_validation_queries(tmp_path):
    with pytest.raises(ValueError, match="QuerySplits have their own"):
        compress_prompt(PROMPT, splits(60, 12), tmp_path / "out", validation_queries=["Why?"])


@pytest.mark.parametrize("settings", [{"answer_temperature": 1.0, "num_answers": 2}, {"max_kd_tokens": 1}])
def test_answers_that_are_sampled_or_cut_are_not_compared(model, tiny_tokenizer, tmp_path, settings):
    report = compress(model, tiny_tokenizer, tmp_path / "out", **settings)
    assert "same_answers" not in report["best"] and not any("eval_same_answers" in entry for entry in report["log"])


# Warnings


def warn_of_few_queries(splits):
    from peft_be.runs.report import warn_of_few_queries

    warn_of_few_queries(splits)


def splits(train, validation):
    return QuerySplits([f"a{i}" for i in range(train)], [f"b{i}" for i in range(validation)], [], 0)


@pytest.mark.parametrize(
    "counts, words", [((49, 12), ["49 training"]), ((50, 11), ["11 queries"]), ((3, 1), ["3 training", "1 query"])]
)
def test_few_queries(counts, words):
    with pytest.warns(UserWarning) as caught:
        warn_of_few_queries({"a": splits(*counts)})
    assert len(caught) == len(words)
    for warning, text in zip(caught, words):
        assert text in str(warning.message) and "research/log.md" in str(warning.message)


def test_enough_queries():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_few_queries({"a": splits(50, 12), "b": splits(300, 30)})


def test_few_queries_of_some_prompts():
    with pytest.warns(UserWarning) as caught:
        warn_of_few_queries({"a": splits(40, 12), "b": splits(20, 12), "c": splits(90, 12)})
    (warning,) = caught
    assert "20 training queries of 'b' (and fewer than 50 of 1 other prompts)" in str(warning.message)


def test_it_is_said_before_anything_is_loaded(tmp_path):
    with pytest.warns(UserWarning, match="only 2 training queries"), pytest.raises(FileNotFoundError):
        compress_prompt(PROMPT, ["a", "b", "c"], tmp_path / "out", model="/no/such/folder")


def test_a_prompt_that_changes_nothing(model, tiny_tokenizer, tmp_path, recwarn):
    """As a weak model ignores a prompt, so does one whose attention sees hardly anything but the token itself."""
    compress(model, tiny_tokenizer, tmp_path / "strong", max_steps=2)
    assert not [w for w in recwarn if "changes little" in str(w.message)]
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.data.mul_(1e-3)
    with pytest.warns(UserWarning, match="changes little"):
        report = compress(model, tiny_tokenizer, tmp_path / "weak", max_steps=2)
    assert report["best"]["kl_no_prompt"] < 0.02
