"""A base model is known by its weights, in whatever dtype or quantisation they are, and no other passes for it."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from peft_be import BETokenConfig, load_adapter, load_adapters, load_model
from peft_be.adapters.ae_row import load_ae_row, shipped_ae
from peft_be.adapters.base_weights import same_weights, weights_fingerprint

from ..exports import save_adapter
from ..tiny import merged_lora, save_tiny_llama, tiny_llama


@pytest.fixture(scope="module")
def real(smollm2_dir):
    from transformers import AutoModelForCausalLM

    def load(**options):
        return AutoModelForCausalLM.from_pretrained(smollm2_dir, **{"dtype": torch.float32, **options})

    model = load()
    # As a model whose weights were never quantised, which is held against others as closely as can be
    del model.config.unpacked_from
    return load, weights_fingerprint(model)


def plain(fingerprint):
    return {**fingerprint, "quantisation": None}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_another_dtype_is_the_same_model(real, dtype):
    load, expected = real
    assert same_weights(expected, plain(weights_fingerprint(load(dtype=dtype))))


@pytest.mark.parametrize(
    "options", [{"load_in_8bit": True}, {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}], ids=["int8", "nf4"]
)
def test_a_quantised_copy_is_the_same_model(real, smollm2_dir, options):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    load, expected = real
    model = load(quantization_config=BitsAndBytesConfig(**options))
    del model.config.unpacked_from
    found = weights_fingerprint(model)
    assert found["quantisation"] == f"bitsandbytes, {8 if 'load_in_8bit' in options else 4} bits"
    assert same_weights(expected, found) and same_weights(found, expected)
    other = copy.deepcopy(load())
    torch.manual_seed(1)
    other.apply(other._init_weights)
    assert not same_weights(found, weights_fingerprint(other))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_float16_file_is_the_same_model_in_any_dtype(dtype, tiny_tokenizer):
    model = tiny_llama(tiny_tokenizer)
    expected = weights_fingerprint(copy.deepcopy(model).to(dtype))
    found = weights_fingerprint(copy.deepcopy(model).half().to(dtype))
    assert (expected["fits_float16"], found["fits_float16"]) == (False, True)
    assert same_weights(expected, found) and same_weights(found, expected)
    # Two copies that were rounded alike are held against each other as closely as can be
    model.model.layers[0].mlp.up_proj.weight.data *= 1.001
    assert not same_weights(found, weights_fingerprint(model.half().to(dtype)))


def test_what_was_trained_since_is_another_model(real):
    load, expected = real
    model = load()
    assert same_weights(expected, plain(weights_fingerprint(get_peft_model(model, BETokenConfig()))))
    assert not same_weights(expected, plain(weights_fingerprint(merged_lora(load()))))
    model = load()
    model.model.layers[3].input_layernorm.weight.data[7] += 0.05
    assert not same_weights(expected, plain(weights_fingerprint(model)))
    model = load()
    model.model.layers[12].mlp.up_proj.weight.data[5, 5] *= -1
    assert not same_weights(expected, plain(weights_fingerprint(model)))


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_of_its_own_counts(tiny_tokenizer, tied):
    expected = weights_fingerprint(tiny_llama(tiny_tokenizer))
    model = tiny_llama(tiny_tokenizer)
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    assert same_weights(expected, weights_fingerprint(model))
    model.lm_head.weight.data[100] *= 2
    assert not same_weights(expected, weights_fingerprint(model))


def test_nothing_else_takes_part_in_it(tiny_model):
    state = torch.get_rng_state()
    one = weights_fingerprint(tiny_model)
    assert torch.equal(state, torch.get_rng_state())
    with_lora = get_peft_model(tiny_model, LoraConfig(r=2, task_type="CAUSAL_LM", init_lora_weights=False))
    assert weights_fingerprint(with_lora) == one  # an adapter next to the weights is none of them
    assert len(one["sketch"]) < 700
    deeper = copy.deepcopy(with_lora.unload())
    deeper.model.layers.append(copy.deepcopy(deeper.model.layers[0]))
    assert not same_weights(one, weights_fingerprint(deeper))
    assert not same_weights({**one, "quantisation": "Q4_0, unpacked from a"}, weights_fingerprint(deeper))


def recorded(base, folder):
    """An adapter that records its base's weights."""
    from peft_be.tuner import BETokenConfig

    save_adapter(base, folder)
    config = BETokenConfig.from_pretrained(folder)
    config.provenance["base_weights"] = weights_fingerprint(load_model(base)[0])
    config.save_pretrained(folder)
    return folder


def test_adapters_are_refused_on_other_weights(tiny_tokenizer, tmp_path):
    base = save_tiny_llama(tmp_path / "base", tiny_tokenizer)
    folder = recorded(base, tmp_path / "adapter")
    assert load_adapter(folder, dtype=torch.bfloat16)[0].active_adapter == "default"
    model, tokenizer = load_model(base)
    merged_lora(model).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    other = str(tmp_path / "other")
    with pytest.raises(ValueError, match="adapter' was trained on other weights .*--allow-other-weights"):
        load_adapter(folder, other)
    with pytest.raises(ValueError, match="was trained on other weights"):
        load_adapters({"old": save_adapter(base, tmp_path / "old"), "new": folder}, other)
    load_adapter(folder, other, allow_other_weights=True)
    load_adapter(tmp_path / "old", other)  # of before weights were recorded


def test_the_shipped_row_is_for_the_model_alone(smollm2_dir):
    model, tokenizer = load_model("smollm2", torch.float32)
    folder = shipped_ae(model)
    assert folder is not None and load_ae_row(folder, model, tokenizer).shape == (1, 576)
    other = merged_lora(model)
    assert other.name_or_path == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert shipped_ae(other) is None
    with pytest.raises(ValueError, match="was trained on other weights"):
        load_ae_row(folder, other, tokenizer)
    assert load_ae_row(folder, other, tokenizer, allow_other_weights=True).shape == (1, 576)
