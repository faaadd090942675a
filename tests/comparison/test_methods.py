"""Each method makes a stand-in that the model then reads, and leaves the model as it was."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import CartridgeConfig, get_peft_model, initialize_kv_prefix_from_past_key_values

from peft_be import PromptRenderer
from peft_be.comparison.compare import run_method
from peft_be.comparison.methods import METHODS, Cartridge, PaperBE, make_method
from peft_be.evaluation import FidelityScorer
from peft_be.evaluation.stand_in import StandIn, render_users_turn
from peft_be.teacher import SharedPrefix


def scorer_of(job):
    renderer = PromptRenderer(job.tokenizer, job.prompt)
    return FidelityScorer(job.model, job.tokenizer, [renderer.full(q) for q in job.splits.test], job.max_answer_length)


LEARNED = {
    "be": 1,
    "be:3": 3,
    "be-paper": 1,
    "distillation": 1,
    "memory-token": 1,
    "soft-prompt:2": 2,
    "cartridge:2": 2,
}


@pytest.mark.parametrize("spec", LEARNED)
def test_learned_methods(job, spec):
    before = {name: weight.clone() for name, weight in job.model.state_dict().items()}
    settings = {"ae": save_ae(job)} if spec == "be-paper" else {}
    run = run_method(spec, settings, job, scorer_of(job), job.splits.test)
    assert run["tokens"] == LEARNED[spec] and run["steps"] == 4
    assert run["kl"] > 1e-4 and len(run["query_kl"]) == len(run["answers"]) == 2
    config = job.model.config
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim if "cart" in spec else 32
    assert run["bytes"] == 4 * numbers * run["tokens"]
    # Nothing of the adapter is left
    after = job.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    reconstructs = spec in ("be-paper", "memory-token")
    assert (run["reconstruction"] is not None) == reconstructs
    assert bool(run["curve"]) == (spec != "memory-token")  # which reads no query


def test_losses_of_training_are_kept_beside_those_of_validation(job):
    run = run_method("be", {"logging_steps": 2}, job, scorer_of(job), job.splits.test)
    assert [step for step, _ in run["train_curve"]] == [2, 4] and all(loss > 0 for _, loss in run["train_curve"])


def save_ae(job):
    from peft_be import BETokenConfig

    vocab_size = job.model.get_input_embeddings().num_embeddings
    model = get_peft_model(job.model, BETokenConfig.for_tokenizer(job.tokenizer, vocab_size, 0, True))
    folder = job.directory.parent / "ae"
    model.save_pretrained(folder)
    model.unload()
    return folder


def test_same_seed_same_rows(job):
    first = make_method("soft-prompt").fit(job)
    shutil.rmtree(job.directory)  # or the second would be the first, read again
    second = make_method("soft-prompt").fit(job)
    assert torch.equal(first.rows, second.rows)
    shutil.rmtree(job.directory)
    job.seed += 1
    assert not torch.equal(first.rows, make_method("soft-prompt").fit(job).rows)


def test_bounds(job):
    scorer = scorer_of(job)
    full = run_method("full", {}, job, scorer, job.splits.test)
    none = run_method("none", {}, job, scorer, job.splits.test)
    assert full["kl"] == pytest.approx(0, abs=1e-6) and full["top1_agreement"] == full["answer_rouge_l"] == 1
    assert full["answers"] == scorer.texts and none["kl"] > 1e-3
    assert full["tokens"] == len(PromptRenderer(job.tokenizer, job.prompt).prompt_ids) and none["tokens"] == 0
    assert full["bytes"] == len(job.prompt.encode()) and none["bytes"] == 0
    assert full["kv_bytes"] > none["kv_bytes"] and full["steps"] is None


def test_keys_and_values_of_the_system_turn_are_the_full_prompt(job):
    scorer, queries = scorer_of(job), job.splits.test
    full = PromptRenderer(job.tokenizer, job.prompt).full(queries[0])
    head = full[: len(full) - len(render_users_turn(job.model, job.tokenizer)(queries[0]))]
    stand_in = StandIn(prefix=SharedPrefix(job.model, head))
    with stand_in.placed(job.model, job.tokenizer) as render:
        fidelity = scorer.score([render(query) for query in queries], stand_in.prefix)
    assert fidelity.kl == pytest.approx(0, abs=1e-6) and fidelity.answers == scorer.texts


def test_cartridge_is_read_as_peft_reads_it(job):
    stand_in = Cartridge(3, learning_rate=0.5).fit(job)
    query = job.splits.test[0]
    model = get_peft_model(job.model, CartridgeConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    states = [(k[None], v[None]) for k, v in zip(stand_in.prefix.keys, stand_in.prefix.values)]
    initialize_kv_prefix_from_past_key_values(model, past_key_values=states)
    ids = torch.tensor([render_users_turn(job.model, job.tokenizer)(query)])
    written = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)
    with stand_in.placed(job.model, job.tokenizer) as render:
        answer = scorer_of(job).score([render(query), render(query)], stand_in.prefix).answers[0]
    assert answer == job.tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)


def test_cartridge_learns(job):
    job.max_steps = 60
    log = Cartridge(4, eval_steps=20).fit(job).log
    assert log[-1]["eval_kl"] < log[0]["eval_kl"]


def test_cartridge_makes_steps_of_its_time(job):
    seen = []
    job.on_progress = lambda stage, done, total, values: stage == "cartridge" and seen.append((done, total))
    job.max_steps, job.max_minutes = 10_000_000, 0.05
    log = Cartridge(1).fit(job).log
    # The schedule knows its end from the first step on, and reaches it
    totals = {total for _, total in seen}
    assert totals == {len(seen)} == {log[-1]["step"]} and len(seen) < job.max_steps
    job.max_minutes = 1e-9
    with pytest.raises(ValueError, match="is over before the first step"):
        Cartridge(1).fit(job)


def test_papers_learning_rate_is_absolute(job):
    method = PaperBE(learning_rate=0.1, ae=save_ae(job))
    method.fit(job)
    spread = job.model.get_input_embeddings().weight.std().item()
    assert method.settings["learning_rate"] * spread == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nothing", "Unknown method 'nothing': choose one of full, none, "),
        ("full:3", "'full:3' is no method"),
        ("be:x", "'be:x' is no method"),
        ("lora:16", "'lora:16' is no method: a number after the name, as in 'be:8', is one of tokens"),
        ("be:0", "needs at least one row, got 0"),
        ("cartridge:0", "needs at least one slot, got 0"),
    ],
)
def test_specs_that_are_none(spec, message):
    with pytest.raises(ValueError, match=message):
        make_method(spec)


def test_every_method_is_in_the_documentation():
    pages = "".join(page.read_text() for page in (Path(__file__).parents[2] / "docs").rglob("*.md"))
    # The two ends of the scale are in every comparison
    assert [name for name in METHODS.keys() - {"full", "none"} if f"`{name}`" not in pages] == []
