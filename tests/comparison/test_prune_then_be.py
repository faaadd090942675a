"""Pruning, and [BE] for what is left."""

import pytest
import torch

from peft_be.comparison.methods import BE, PruneThenBE, Truncation

from .conftest import EXAMPLES, SYSTEM


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("PEFT_BE_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("prompt", [SYSTEM, EXAMPLES], ids=["system", "examples"])
def test_learns_rows_for_the_pruned_prompt(make_job, tiny_model, tiny_tokenizer, monkeypatch, prompt):
    seen = []
    fit = BE.fit
    monkeypatch.setattr(BE, "fit", lambda self, job: seen.append(job.prompt) or fit(self, job))
    job = make_job(prompt, max_steps=2, max_answer_length=6)
    before = {name: weight.clone() for name, weight in tiny_model.named_parameters()}
    stand_in = PruneThenBE(30, Truncation, num_be_tokens=2).fit(job)
    assert seen == [Truncation(30).fit(job).prompt]
    assert stand_in.rows.shape == (2, tiny_model.config.hidden_size) and stand_in.num_tokens(tiny_tokenizer) == 2
    assert stand_in.log and torch.isfinite(stand_in.rows).all()
    # The model is as it was, and the stand-in can be placed in it
    after = dict(tiny_model.named_parameters())
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    with stand_in.placed(tiny_model, tiny_tokenizer) as render:
        assert render("Who are you?")


def test_budget_of_the_pruner_is_checked():
    with pytest.raises(ValueError, match="num_tokens"):
        PruneThenBE(0)
