"""Evaluation, `bench`, streaming and every method of `peft-be compare` on a GPU."""

import pytest
import torch

from peft_be.adapters.create import add_adapter
from peft_be.comparison.compare import run_method
from peft_be.comparison.methods import METHODS, Job
from peft_be.data import split_queries
from peft_be.evaluation import (
    AuditConfig,
    BenchConfig,
    FidelityScorer,
    audit_leakage,
    bench_inference,
    evaluate_fidelity,
    evaluate_reconstruction,
    stream_answer,
)
from peft_be.evaluation.audit import ATTACKS
from peft_be.evaluation.inference import MODES
from peft_be.prompting import PromptRenderer


pytestmark = pytest.mark.gpu

PROMPT = (
    "You are the keeper of a lighthouse, and you never leave your island.\n\n"
    "- Answer in short sentences; be friendly.\n- Mention the sea, the lamp, or the weather.\n- Don't promise a visit."
)
QUERIES = [f"What did you see on day {number}?" for number in range(12)]
# Two need llmlingua's model, which is not at hand, and two are `be` with settings that `test_training.py` has
LEFT_OUT = ("llmlingua-2", "prune-then-be", "distillation", "reconstruction")


@pytest.fixture
def adapted(model, tokenizer):
    return add_adapter(model, tokenizer, 1, None).eval()


def test_evaluation(adapted, tokenizer):
    ae_row = torch.linspace(-0.1, 0.1, 64)[None]
    scores, samples = evaluate_fidelity(adapted, tokenizer, PROMPT, QUERIES[:4], max_answer_length=6)
    assert 0 < scores["kl"]["no_prompt"] < 20 and 0 < scores["kl"]["be"] < 20
    assert len(samples) == 4 and scores["gap"]["mean"] == scores["kl_gap_closed"]
    assert evaluate_reconstruction(adapted, tokenizer, PROMPT, ae_row)["token_accuracy"] is not None
    assert all(value > 0 for value in scores["ttft_ms"].values())


def test_bench(adapted, tokenizer):
    result = bench_inference(adapted, tokenizer, PROMPT, QUERIES, BenchConfig((1, 3), 3, 2))
    for batch in result["batches"]:
        assert all(batch[mode]["ttft_ms"]["median"] > 0 for mode in MODES)
        assert batch["be"]["kv_bytes"] < batch["full_cached"]["kv_bytes"] <= batch["full"]["kv_bytes"]


def test_streaming(adapted, tokenizer, device):
    renderer = PromptRenderer.for_adapter(adapted.peft_config["default"], tokenizer)
    ids = renderer.be("Who are you?")
    *_, last = stream_answer(adapted, tokenizer, ids, max_new_tokens=4)
    inputs = torch.tensor([ids], device=device)
    mask = torch.ones_like(inputs)
    expected = adapted.generate(input_ids=inputs, attention_mask=mask, max_new_tokens=4, do_sample=False)
    assert last.ids == expected[0, len(ids) :].tolist()


def test_audit(adapted, tokenizer):
    config = AuditConfig(ATTACKS[:2], num_samples=1, max_answer_length=6)
    scores, outputs = audit_leakage(adapted, tokenizer, PROMPT, config=config)
    assert outputs and scores["attacks"] == 2


@pytest.mark.parametrize("name", [name for name in METHODS if name not in LEFT_OUT])
def test_methods(model, tokenizer, tmp_path, name):
    splits = split_queries(QUERIES, ["Who are you?", "Is it cold?"])
    job = Job(model, tokenizer, PROMPT, splits, tmp_path / "work", seed=1, max_steps=2, max_answer_length=4)
    before = {key: weight.clone() for key, weight in model.state_dict().items()}
    renderer = PromptRenderer(tokenizer, PROMPT)
    scorer = FidelityScorer(model, tokenizer, [renderer.full(query) for query in splits.test], 4)
    settings = {"use_ae_token": False} if name == "be-paper" else {}
    score = run_method(name, settings, job, scorer, splits.test)
    assert 0 <= score["kl"] < 20 and len(score["answers"]) == 2 and score["ttft_ms"] > 0
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
