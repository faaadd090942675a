"""Methods that write the prompt into the model's weights: read with them, and nothing of them anywhere else."""

import pytest
import torch
from peft import get_peft_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file

from peft_be import PromptRenderer
from peft_be.comparison.compare import run_method
from peft_be.comparison.methods import LoRA, UniLoRA, make_method
from peft_be.evaluation import FidelityScorer
from peft_be.evaluation.stand_in import StandIn


# In few steps: Uni-LoRA's vector moves all matrices a little, so that it takes longer steps
RATES = {"lora": 0.1, "unilora": 1.0}


def scorer_of(job, split="test"):
    renderer = PromptRenderer(job.tokenizer, job.prompt)
    full = [renderer.full(query) for query in getattr(job.splits, split)]
    return FidelityScorer(job.model, job.tokenizer, full, job.max_answer_length)


@pytest.mark.parametrize("name", RATES)
def test_the_base_is_the_same_before_during_and_after(job, name):
    ids = torch.tensor([PromptRenderer(job.tokenizer).no_prompt(job.splits.test[0])])

    @torch.no_grad()
    def logits():
        return job.model(input_ids=ids).logits

    def state():
        return {name: weight.clone() for name, weight in job.model.state_dict().items()}

    def trainable():
        return [weight.requires_grad for weight in job.model.parameters()]

    job.model.requires_grad_(False)
    before, weights, modules = logits(), state(), str(job.model)
    stand_in = make_method(name, learning_rate=RATES[name]).fit(job)
    assert torch.equal(logits(), before) and str(job.model) == modules
    with stand_in.placed(job.model, job.tokenizer) as render:
        assert render(job.splits.test[0]) == ids[0].tolist()
        assert not torch.allclose(logits(), before, atol=1e-4)
        for layer in job.model.modules():
            if isinstance(layer, BaseTunerLayer):
                layer.enable_adapters(False)
        assert torch.equal(logits(), before)
    assert torch.equal(logits(), before) and str(job.model) == modules and not any(trainable())
    assert state().keys() == weights.keys() and all(torch.equal(state()[key], weights[key]) for key in weights)


@pytest.mark.parametrize("name", RATES)
def test_teacher_and_no_prompt_are_scored_without_the_adapter(job, name):
    scorer = scorer_of(job)
    none = run_method("none", {}, job, scorer, job.splits.test)
    run = run_method(name, {"learning_rate": RATES[name]}, job, scorer, job.splits.test)
    assert run["tokens"] == 0 and run["steps"] == 4 and run["kl"] != pytest.approx(none["kl"], rel=1e-3)
    after = scorer_of(job)
    assert after.texts == scorer.texts and all(
        torch.equal(a.hidden, b.hidden) for a, b in zip(after.teacher, scorer.teacher)
    )
    assert run_method("none", {}, job, after, job.splits.test)["query_kl"] == none["query_kl"]
    assert run_method("full", {}, job, after, job.splits.test)["kl"] == pytest.approx(0, abs=1e-6)
    # The curve's line is that of no prompt, and not of what the adapter had learned
    renderer, validation = PromptRenderer(job.tokenizer), scorer_of(job, "validation")
    prompts = [renderer.no_prompt(query) for query in job.splits.validation]
    assert run["curve_no_prompt"] == pytest.approx(validation.kl(prompts), rel=1e-5)


@pytest.mark.parametrize("name", RATES)
def test_what_validated_best_is_what_is_read(job, name):
    job.max_steps = 60
    stand_in = make_method(name, learning_rate={"lora": 5e-3, "unilora": 0.3}[name], eval_steps=20).fit(job)
    best = min(entry["eval_kl"] for entry in stand_in.log)
    assert best < 0.7 * stand_in.log[0]["eval_no_prompt_kl"]
    with stand_in.placed(job.model, job.tokenizer) as render:
        kl = scorer_of(job, "validation").kl([render(query) for query in job.splits.validation])
    # The teacher of this scorer has the adapter, too: a scorer must be made outside
    assert kl != pytest.approx(best, rel=1e-3)
    scorer = scorer_of(job, "validation")
    with stand_in.placed(job.model, job.tokenizer) as render:
        kl = scorer.kl([render(query) for query in job.splits.validation])
    assert kl == pytest.approx(best, rel=1e-4)


def sizes_of(job):
    """Inputs and outputs of the linear layers of the tiny model, without the output layer."""
    layers = job.model.model.layers.named_modules()
    return [(layer.in_features, layer.out_features) for _, layer in layers if isinstance(layer, torch.nn.Linear)]


@pytest.mark.parametrize(
    ("method", "count"),
    [
        (LoRA(r=3), lambda job: sum(3 * (a + b) for a, b in sizes_of(job))),
        (UniLoRA(), lambda job: 32),  # d: a row of [BE]
        (UniLoRA(theta_d_length=128), lambda job: 128),
    ],
)
def test_bytes_are_those_of_pefts_file(job, method, count, tmp_path):
    stand_in = method.fit(job)
    assert stand_in.num_bytes() == 4 * count(job) and stand_in.num_tokens(job.tokenizer) == 0
    config, weights = stand_in.adapter
    model = get_peft_model(job.model, config)
    set_peft_model_state_dict(model, weights)
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert sum(weight.numel() * weight.element_size() for weight in saved.values()) == stand_in.num_bytes()


def test_an_interrupted_training_leaves_the_base_as_it_was(job):
    modules = str(job.model)

    def interrupt(stage, *_):
        if stage == "lora":
            raise KeyboardInterrupt

    job.on_progress = interrupt
    with pytest.raises(KeyboardInterrupt):
        LoRA().fit(job)
    assert str(job.model) == modules


def test_weights_that_do_not_fit_leave_the_base_as_it_was(job):
    config, weights = LoRA(r=2).fit(job).adapter
    modules = str(job.model)
    wrong = StandIn(adapter=(config, {name: weight[:1] for name, weight in weights.items()}))
    with pytest.raises(RuntimeError), wrong.placed(job.model, job.tokenizer):
        pass
    assert str(job.model) == modules


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        (LoRA, {"r": 0}, "r must be"),
        (LoRA, {"lora_alpha": 0}, "lora_alpha must be"),
        (LoRA, {"learning_rate": -1}, "learning_rate must be"),
        (UniLoRA, {"theta_d_length": 0}, "theta_d_length must be"),
    ],
)
def test_numbers_out_of_range(method, arguments, message):
    with pytest.raises(ValueError, match=message):
        method(**arguments)
