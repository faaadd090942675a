"""A shared prefix gives the numbers of a full forward pass."""

import pytest
import torch

from peft_be.teacher import SharedPrefix, can_share_prefix

from .models import NOT_SHARED, SHARED, make


@pytest.mark.parametrize("name", SHARED)
def test_hidden_states_equal_a_full_forward(name):
    model = make(SHARED[name]())
    assert can_share_prefix(model)
    prefix_ids, rows = list(range(5, 45)), [[50, 51, 52, 53, 54], [60, 61, 62]]
    prefix = SharedPrefix(model, prefix_ids)
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(r)) + r for r in rows])
    mask = torch.tensor([[1] * 40 + [0] * (width - len(r)) + [1] * len(r) for r in rows])
    with torch.no_grad(), prefix.attached(model):
        cache = prefix.new_cache()
        kwargs = {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1)[:, 40:]}
        first = model(input_ids=ids, past_key_values=cache, **kwargs).logits
        # And one decoding step after it
        mask = torch.cat([mask, torch.ones(2, 1, dtype=mask.dtype)], 1)
        kwargs = {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1)[:, -1:]}
        second = model(input_ids=torch.tensor([[70], [71]]), past_key_values=cache, **kwargs).logits
    for i, row in enumerate(rows):
        full = model(input_ids=torch.tensor([prefix_ids + row + [70 + i]])).logits[0]
        torch.testing.assert_close(first[i, -len(row) :], full[40:-1], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(second[i, -1], full[-1], atol=1e-5, rtol=1e-4)


def test_bfloat16_stays_close():
    model = make(SHARED["llama"](), torch.bfloat16)
    prefix_ids, row = list(range(5, 45)), [50, 51, 52]
    prefix = SharedPrefix(model, prefix_ids)
    with torch.no_grad(), prefix.attached(model):
        shared = model(input_ids=torch.tensor([row]), past_key_values=prefix.new_cache()).logits[0]
    full = model(input_ids=torch.tensor([prefix_ids + row])).logits[0, 40:]
    torch.testing.assert_close(shared, full, atol=0.03, rtol=0.05)


@pytest.mark.parametrize("name", NOT_SHARED)
def test_other_caches_are_not_shared(name):
    assert not can_share_prefix(make(NOT_SHARED[name]()))


def test_the_model_gets_its_own_attention_back():
    model = make(SHARED["llama"]())
    before = model.config._attn_implementation
    prefix = SharedPrefix(model, [5, 6, 7])
    with pytest.raises(RuntimeError, match="inside"), prefix.attached(model):
        raise RuntimeError("inside")
    assert model.config._attn_implementation == before
