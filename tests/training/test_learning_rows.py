"""A trainer refuses what could not learn, or not alone, before it works; and what did not learn is no stage done."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftMixedModel, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, TrainerCallback

from peft_be import AEConfig, AETrainer, BEDistillConfig, BEDistillTrainer, BETokenConfig, compress_prompt

from ..tiny import tiny_llama


PROMPT = "You are a lighthouse keeper. You answer in short sentences."
QUERIES = ["Who are you?", "What do you see?", "Is it cold?", "Tell me about the storm."]
TEXTS = ["The ship sails over the calm sea in the morning light, and nobody speaks. " * 2 + str(i) for i in range(6)]
FAST = {"max_steps": 3, "save_strategy": "no", "eval_strategy": "no", "load_best_model_at_end": False}


def be_config(**kwargs):
    return BETokenConfig(task_type="CAUSAL_LM", **{"be_token_ids": [3], **kwargs})


def ae_config():
    return BETokenConfig(task_type="CAUSAL_LM", num_be_tokens=0, use_ae_token=True, ae_token_id=15)


@pytest.fixture
def distil(tiny_tokenizer, tmp_path):
    queries = Dataset.from_dict({"query": QUERIES})

    def make(model, **kwargs):
        args = {"max_answer_length": 6, "kd_weight": 1.0, **FAST, **kwargs}
        return BEDistillTrainer(
            model,
            BEDistillConfig(str(tmp_path / "be"), **args),
            PROMPT,
            train_dataset=queries,
            eval_dataset=queries.select([0]),
            processing_class=tiny_tokenizer,
        )

    return make


@pytest.fixture
def pretrain(tiny_tokenizer, tmp_path):
    def make(model, **kwargs):
        args = AEConfig(str(tmp_path / "ae"), min_passage_length=8, max_passage_length=16, **{**FAST, **kwargs})
        return AETrainer(model, args, Dataset.from_dict({"text": TEXTS}), processing_class=tiny_tokenizer)

    return make


@pytest.fixture(params=["[BE]", "[AE]"])
def case(request, distil, pretrain):
    """A trainer, and the configuration of what it trains."""
    return (distil, be_config()) if request.param == "[BE]" else (pretrain, ae_config())


@pytest.fixture
def nothing_works(monkeypatch):
    """No model computes anything: what is refused is refused before the teacher works."""

    def forward(*args, **kwargs):
        raise AssertionError("the model worked")

    monkeypatch.setattr("transformers.LlamaForCausalLM.forward", forward)


def refused(make, model, message):
    with pytest.raises(ValueError, match=message):
        make(model)


def test_a_frozen_adapter(case, tiny_model, tiny_tokenizer, tmp_path, nothing_works):
    make, config = case
    get_peft_model(tiny_model, config).save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(tiny_llama(tiny_tokenizer), tmp_path / "adapter")
    refused(make, loaded, "Adapter 'default' is frozen.*is_trainable=True")


def test_an_adapter_loaded_to_learn_moves_and_says_so(case, tiny_model, tiny_tokenizer, tmp_path):
    make, config = case
    get_peft_model(tiny_model, config).save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(tiny_llama(tiny_tokenizer), tmp_path / "adapter", is_trainable=True)
    run = make(loaded)
    before = loaded.get_input_embeddings().all_rows("default").detach().clone()
    run.train()
    assert not torch.equal(loaded.get_input_embeddings().all_rows("default"), before)
    assert loaded.peft_config["default"].provenance["training"]["steps"] == 3


@pytest.mark.parametrize("config", [LoraConfig, PromptTuningConfig])
def test_an_adapter_of_another_method(case, tiny_model, config, nothing_works):
    arguments = {"target_modules": ["q_proj"]} if config is LoraConfig else {"num_virtual_tokens": 2}
    model = get_peft_model(tiny_model, config(task_type="CAUSAL_LM", **arguments))
    refused(case[0], model, f"adapter of {config(**arguments).peft_type.value}.*merge")


def test_a_base_model_with_adapter_layers(case, tiny_model, tmp_path, nothing_works):
    make, config = case
    lora = get_peft_model(tiny_model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    refused(make, lora.get_base_model(), r"carries an adapter already \(of lora\).*merge")
    lora.save_pretrained(tmp_path)
    plain = lora.unload()
    plain.load_adapter(str(tmp_path))  # as transformers loads them
    refused(make, plain, "carries an adapter already.*merge")


def test_an_adapter_that_transformers_loaded(case, tiny_model, tmp_path, nothing_works):
    make, config = case
    get_peft_model(tiny_model, config).save_pretrained(tmp_path / "adapter")
    tiny_model.save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model.load_adapter(str(tmp_path / "adapter"))
    refused(make, model, "carries an adapter already .*is_trainable=True")


def test_what_is_no_model(case, tiny_model, nothing_works):
    refused(case[0], "smollm2", "needs a loaded causal LM .*not str")
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])
    refused(case[0], PeftMixedModel(tiny_model, lora), "needs a loaded causal LM .*not PeftMixedModel")


def test_several_active_adapters(distil, tiny_model, nothing_works):
    model = get_peft_model(tiny_model, be_config())
    model.add_adapter("second", be_config(be_token_ids=[4]))
    model.base_model.set_adapter(["default", "second"])
    refused(distil, model, "active are default, second: choose it by model.set_adapter")


def test_disabled_and_merged_adapters(case, tiny_model, nothing_works):
    make, config = case
    model = get_peft_model(tiny_model, config)
    with model.disable_adapter():
        refused(make, model, "adapters are disabled")
    model.merge_adapter()
    refused(make, model, "Adapter default is merged: call model.unmerge_adapter")


def test_each_trainer_gets_its_own_kind(distil, pretrain, tiny_model, nothing_works):
    model = get_peft_model(tiny_model, ae_config())
    refused(distil, model, "holds an .AE. row only")
    model = get_peft_model(model.unload(), be_config(use_ae_token=True, ae_token_id=15))
    refused(pretrain, model, "does not learn next to .BE. rows")
    refused(pretrain, get_peft_model(model.unload(), be_config()), "has no .AE. row")


@pytest.mark.parametrize("name", ["model.norm", "layers.1.mlp.up_proj", "embed_tokens.base_layer"])
def test_what_else_would_learn(case, tiny_model, name, nothing_works):
    make, config = case
    model = get_peft_model(tiny_model, config)
    module = next(module for key, module in model.named_modules() if key.endswith(name))
    module.requires_grad_(True)
    refused(make, model, f"1 other weights would learn too, such as .*{name}.weight: call requires_grad_")


def test_what_is_frozen_after_the_trainer_was_made(case, tiny_model):
    make, config = case
    model = get_peft_model(tiny_model, config)
    run = make(model)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="is frozen"):
        run.train()
    assert model.peft_config["default"].provenance is None


class Freeze(TrainerCallback):
    def on_step_begin(self, args, state, control, model=None, **kwargs):
        model.requires_grad_(False)
        model.zero_grad()

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        for parameter in model.parameters():
            parameter.grad = None


def test_rows_that_do_not_move_are_no_stage_done(case, tiny_model, tmp_path):
    make, config = case
    model = get_peft_model(tiny_model, config)
    run = make(model, save_strategy="steps", save_steps=1)
    run.add_callback(Freeze())
    with pytest.raises((ValueError, RuntimeError)):
        run.train()
    assert model.peft_config["default"].provenance is None


def test_a_learning_rate_of_zero_learns_nothing(distil, tiny_model):
    model = get_peft_model(tiny_model, be_config())
    run = distil(model, optim="adamw_torch")
    run.args.learning_rate = 0.0
    with pytest.raises(
        ValueError, match="Nothing was learned: in 3 steps with learning rate 0, the rows have not moved"
    ):
        run.train()
    assert model.peft_config["default"].provenance is None


def test_a_single_step_learns(case, tiny_model):
    make, config = case
    model = get_peft_model(tiny_model, config)
    run = make(model, max_steps=1)
    before = model.get_input_embeddings().all_rows("default").detach().clone()
    run.train()
    assert not torch.equal(model.get_input_embeddings().all_rows("default"), before)


def test_what_was_not_trained_is_saved_without_a_stage(case, tiny_model, tmp_path):
    make, config = case
    config.provenance = {"stages": ["stage 2"], "prompt_sha256": "of other rows"}
    model = get_peft_model(tiny_model, config)
    run = make(model)
    run.save_model(str(tmp_path / "saved"))
    saved = BETokenConfig.from_pretrained(tmp_path / "saved")
    if config.num_be_tokens:  # its rows were set anew
        assert saved.provenance is None
    else:
        assert saved.provenance == config.provenance


def test_a_resumed_run_is_recorded(distil, tiny_model, tmp_path):
    model = get_peft_model(tiny_model, be_config())
    saves = {"save_strategy": "steps", "save_steps": 1}
    distil(model, **saves).train()
    rows = model.get_rows("default")
    again = get_peft_model(model.unload(), be_config())
    distil(again, **saves).train(resume_from_checkpoint=str(tmp_path / "be" / "checkpoint-2"))
    assert torch.equal(again.get_rows("default"), rows)
    assert again.peft_config["default"].provenance["training"]["steps"] == 3


def test_compress_prompt_refuses_a_model_with_an_adapter(tiny_model, tiny_tokenizer, tmp_path, nothing_works):
    lora = get_peft_model(tiny_model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    for model in (lora, lora.get_base_model()):
        with pytest.raises(ValueError, match="carries an adapter already"):
            compress_prompt(PROMPT, QUERIES, tmp_path / "out", model=model, tokenizer=tiny_tokenizer, overwrite=True)
