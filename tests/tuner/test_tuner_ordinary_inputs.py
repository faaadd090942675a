"""Inputs without [BE] give the bits of the bare base model, whatever adapters are loaded and active."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model

from peft_be.tuner import BETokenConfig

from .tuner_helpers import CONFIGS, VOCAB_SIZE, make_model


DTYPES = [torch.float32, torch.bfloat16, torch.float16]
IDS = [5, 6, 7, VOCAB_SIZE, VOCAB_SIZE + 1]


def bits(model, x, mask=None, **kwargs):
    with torch.no_grad():
        return model(input_ids=x, attention_mask=mask, **kwargs).logits.view(torch.uint8).clone()


@pytest.fixture(scope="module")
def pairs():
    """For each architecture and dtype, the bare model and one with three adapters."""
    made = {}
    for name in CONFIGS:
        for dtype in DTYPES:
            base = make_model(name).to(dtype)
            model = get_peft_model(copy.deepcopy(base), BETokenConfig(num_be_tokens=3, be_token_ids=IDS[:3])).eval()
            model.add_adapter("beyond", BETokenConfig(be_token_ids=IDS[3:4]))
            model.add_adapter("ae", BETokenConfig(num_be_tokens=0, use_ae_token=True, ae_token_id=IDS[4]))
            made[name, dtype] = base, model
    return made


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_logits_are_bit_equal(pairs, data):
    base, model = pairs[data.draw(st.sampled_from(sorted(pairs, key=str)))]
    ordinary = st.integers(0, VOCAB_SIZE - 1).filter(lambda i: i not in IDS)
    width = data.draw(st.integers(1, 40))
    rows = data.draw(st.lists(st.lists(ordinary, min_size=width, max_size=width), min_size=1, max_size=5))
    x, mask = torch.tensor(rows), torch.ones(len(rows), width, dtype=torch.long)
    for row in mask:  # padding on the left
        row[: data.draw(st.integers(0, width - 1))] = 0
    active = data.draw(st.sampled_from([["default"], ["beyond"], ["ae"], ["default", "beyond", "ae"]]))
    model.base_model.set_adapter(active)
    expected = bits(base, x, mask)
    assert torch.equal(bits(model, x, mask), expected)
    with model.disable_adapter():
        assert torch.equal(bits(model, x, mask), expected)
    names = data.draw(st.lists(st.sampled_from([*model.peft_config, "__base__"]), min_size=len(x), max_size=len(x)))
    assert torch.equal(bits(model, x, mask, adapter_names=names), expected)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
def test_with_gradient_checkpointing_and_in_training(name, use_reentrant):
    base = make_model(name)
    x = torch.arange(10, 50).view(2, 20)
    expected = base(input_ids=x).logits.detach()
    model = get_peft_model(base, BETokenConfig(be_token_ids=[7])).train()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    logits = model(input_ids=x).logits
    assert torch.equal(logits, expected)
    if not use_reentrant:
        logits.sum().backward()
        assert not model.base_model.rows_grad("default").any()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_after_loading_merging_and_unloading(name, dtype, tmp_path):
    base = make_model(name).to(dtype)
    x = torch.arange(10, 50).view(2, 20)
    expected = bits(base, x)
    get_peft_model(copy.deepcopy(base), BETokenConfig(be_token_ids=[7])).save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(base, tmp_path)
    assert torch.equal(bits(model, x), expected)
    model.load_adapter(tmp_path, "second")
    model.set_adapter("second")
    assert torch.equal(bits(model, x), expected)
    model.delete_adapter("second")
    model.set_adapter("default")
    model.merge_adapter()
    # All logits but that of the id that now has a row: its output embedding is not tied to it
    assert torch.equal(bits(model, x), expected)
    model.unmerge_adapter()
    assert torch.equal(bits(model, x), expected)
    assert torch.equal(bits(model.unload(), x), expected)


def test_generation_is_the_base_models():
    base = make_model("llama")
    x = torch.tensor([[1, 9, 12, 13, 14]])
    ways = [{"do_sample": False}, {"num_beams": 3}, {"do_sample": True, "top_k": 8}]

    def generate(model):
        outputs = []
        for way in ways:
            torch.manual_seed(0)
            outputs.append(model.generate(input_ids=x, attention_mask=torch.ones_like(x), max_new_tokens=8, **way))
        return outputs

    expected = generate(base)
    model = get_peft_model(base, BETokenConfig(task_type="CAUSAL_LM"))  # beyond the vocabulary: nothing writes it
    assert all(map(torch.equal, generate(model), expected))
