"""The pruners on the real model and a prompt of 1,227 tokens."""

from pathlib import Path

import pytest
import torch

from peft_be.comparison.methods import AttentionSampling, Job, SelfInformation, Truncation
from peft_be.comparison.methods.attention import attention_received
from peft_be.comparison.methods.self_information import self_information
from peft_be.data import QuerySplits, load_queries
from peft_be.prompting import PromptRenderer, load_prompt


DEMO = Path(__file__).parent.parent.parent / "examples" / "demo"


@pytest.fixture
def job(smollm2, smollm2_tokenizer, tmp_path):
    queries = load_queries(DEMO / "train_queries.jsonl")[:8]
    return Job(
        smollm2, smollm2_tokenizer, load_prompt(DEMO / "prompt.txt"), QuerySplits(queries, [], [], 0), tmp_path / "job"
    )


@pytest.mark.slow
@pytest.mark.parametrize("pruner", [Truncation, SelfInformation, AttentionSampling])
def test_the_demo_prompt(job, pruner):
    for budget in (8, 64, 400):
        kept = pruner(budget).fit(job)
        assert budget - 8 < kept.num_tokens(job.tokenizer) <= budget
        rest = iter(job.prompt.split())
        assert all(word in rest for word in kept.prompt.split())  # whole words, in their order
    ids = PromptRenderer(job.tokenizer, kept.prompt).full(job.splits.train[0])
    answer = job.model.generate(torch.tensor([ids]), max_new_tokens=4, do_sample=False)
    assert answer.shape[1] > len(ids)


@pytest.mark.slow
def test_scores_are_the_models_own(job):
    full = PromptRenderer(job.tokenizer, job.prompt).full(job.splits.train[0])
    model = job.model
    with torch.no_grad():
        logits = model(torch.tensor([full])).logits[0]
        expected = -torch.log_softmax(logits[:-1], -1).gather(-1, torch.tensor(full[1:])[:, None])[:, 0]
        torch.testing.assert_close(self_information(model, full)[1:], expected, rtol=1e-4, atol=1e-4)
        received = attention_received(model, full[:-5], [full[-5:]])
        model.set_attn_implementation("eager")
        layers = model(torch.tensor([full]), output_attentions=True).attentions
    row = torch.stack([layer[0, :, -1].mean(0) for layer in layers]).mean(0)
    torch.testing.assert_close(received, row[:-5], rtol=1e-3, atol=1e-6)
    assert float(received.sum() + row[-5:].sum()) == pytest.approx(1, abs=1e-4)
