"""The configuration of a run: what it takes, what it refuses, and what a run records of it."""

import json
from dataclasses import asdict, fields, replace

import pytest
import torch
from safetensors.torch import load_file

from peft_be import (
    AEConfig,
    BEDistillConfig,
    CompressConfig,
    PretrainAEConfig,
    PromptJob,
    compress_prompt,
    compress_prompts,
    pretrain_ae,
)
from peft_be.checks import UNUSED
from peft_be.recipe import recorded
from peft_be.runs.config import PAPER, changed
from peft_be.training.be_distill_config import ADAM_ONLY

from ..stages import FAST, PROMPT, QUERIES
from ..tiny import save_tiny_llama


def test_keywords_replace_fields_of_a_configuration():
    config = CompressConfig(num_be_tokens=8, max_steps=20)
    assert changed(config, CompressConfig, {"max_steps": 5}) == CompressConfig(num_be_tokens=8, max_steps=5)
    assert config.max_steps == 20
    assert changed(None, CompressConfig, {}) == CompressConfig()


@pytest.mark.parametrize("config", [BEDistillConfig("out"), PretrainAEConfig(), {"num_be_tokens": 8}, "out"])
def test_another_configuration_is_refused(config, tmp_path):
    with pytest.raises(ValueError, match="config must be a CompressConfig"):
        compress_prompt(PROMPT, QUERIES, tmp_path / "out", config, model="/no/such/folder")
    assert not (tmp_path / "out").exists()


def test_the_papers_preset():
    paper, ours = CompressConfig.paper(num_be_tokens=2), CompressConfig(num_be_tokens=2)
    different = {f.name for f in fields(ours) if getattr(paper, f.name) != getattr(ours, f.name)}
    assert different == PAPER.keys()
    assert (paper.kd_weight, paper.temperature, paper.slot) == (0.9, 2.0, "prefix")  # Eq. 4, Eq. 3, `[BE] q`


def test_a_run_records_its_configuration(tiny_model, tiny_tokenizer, tmp_path):
    config = CompressConfig(**{**FAST, "answer_cache_dir": str(tmp_path / "cache")})
    compress_prompt(PROMPT, QUERIES, tmp_path / "out", config, model=tiny_model, tokenizer=tiny_tokenizer)
    settings = json.loads((tmp_path / "out" / "training.json").read_text())["settings"]
    record = recorded(config)
    assert {name: settings[name] for name in record} == record
    # These change no result
    assert asdict(config).keys() - record.keys() == {"answer_cache_dir", "device", "report_to"}
    assert record["learning_rate"] == 0.05  # the optimizer's own, should a later version have another


def test_settings_that_need_a_prompt_alone(tmp_path):
    for name, value in (("max_minutes", 3), ("reconstruction_steps", 3), ("target", 0.5), ("from_adapter", "a")):
        with pytest.raises(ValueError, match=f"{name} is for a prompt that is compressed alone"):
            compress_prompts([PromptJob("a", PROMPT, QUERIES)], tmp_path / "out", CompressConfig(**{name: value}))


# Of the fields whose default does not tell the type
VALUES = {"completion_only_loss": True, "dataset_num_proc": 2, "eval_packing": True, "router_aux_loss_coef": 0.5}
BY_TYPE = {int: 7, float: 0.5, str: "other", type(None): "other"}


@pytest.mark.parametrize("config_class", [BEDistillConfig, AEConfig])
@pytest.mark.parametrize("name", UNUSED)
def test_fields_that_do_nothing_are_refused(config_class, name, tmp_path):
    default = getattr(config_class(str(tmp_path)), name)
    value = (not default) if isinstance(default, bool) else VALUES.get(name) or BY_TYPE[type(default)]
    with pytest.raises(ValueError, match=f"{name} does nothing in {config_class.__name__}"):
        config_class(str(tmp_path), **{name: value})


@pytest.mark.parametrize("name", ADAM_ONLY)
def test_fields_of_other_optimizers(name, tmp_path):
    value = {"optim_args": "a=1", "optim_target_modules": ["x"]}.get(name, 0.5)
    with pytest.raises(ValueError, match=f"{name} does nothing with optim='ggt'"):
        BEDistillConfig(str(tmp_path), **{name: value})
    assert getattr(BEDistillConfig(str(tmp_path), optim="adamw_torch", **{name: value}), name) == value


def test_a_configuration_of_a_trainer_can_be_copied(tmp_path):
    config = BEDistillConfig(str(tmp_path), max_steps=3)
    assert replace(config, max_steps=5).max_steps == 5


def test_where_and_how_a_run_loads_its_base(tiny_tokenizer, tmp_path):
    base = save_tiny_llama(tmp_path / "base", tiny_tokenizer)
    config = CompressConfig(**FAST, dtype="bfloat16", device="cpu")
    result = compress_prompt(PROMPT, QUERIES, tmp_path / "out", config, model=base)
    assert result.model.dtype == torch.bfloat16 and result.model.device.type == "cpu"
    assert result.report["settings"]["dtype"] == "bfloat16"
    with pytest.raises(ValueError, match="device must be one of cpu, cuda"):
        CompressConfig(device="cuda:1")
    with pytest.raises(ValueError, match="leave out dtype"):
        compress_prompt(PROMPT, QUERIES, tmp_path / "b", config, model=result.model.unload(), tokenizer=tiny_tokenizer)


def test_what_a_run_cannot_start_from():
    with pytest.raises(ValueError, match="init=None goes on from earlier ones"):
        CompressConfig(init=None)
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16, auto"):
        CompressConfig(dtype="int8")


def test_an_ae_row_leaves_the_model_as_it_was(tiny_model, tiny_tokenizer, tmp_path):
    config = PretrainAEConfig(max_steps=2, min_passage_length=4, max_passage_length=16, eval_steps=1, save_steps=1)
    texts = [f"On day {i} the sea was calm, and the keeper wrote it down." for i in range(8)]
    for name in ("one", "two"):
        result = pretrain_ae(iter(texts), tmp_path / name, config, model=tiny_model, tokenizer=tiny_tokenizer)
        assert result.report["steps"] == 2
    rows = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two")]
    assert all(torch.equal(value, rows[1][name]) for name, value in rows[0].items())
