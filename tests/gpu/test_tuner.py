"""The tuner on a GPU: an adapter does what the base model does with the same rows in its embedding table."""

import copy
import warnings

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from peft_be import BETokenConfig, PromptRenderer

from ..tiny import save_tiny_llama


pytestmark = pytest.mark.gpu

IDS = [7, 9]
OTHERS = [8, 11]
GENERATION = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "top_k": 10},
    "static cache": {"do_sample": False, "cache_implementation": "static", "disable_compile": True},
    "beams": {"num_beams": 3, "do_sample": False},
    "no cache": {"do_sample": False, "use_cache": False},
}


def adapted(base, ids=IDS):
    torch.manual_seed(1)
    config = BETokenConfig(task_type="CAUSAL_LM", num_be_tokens=len(ids), be_token_ids=ids)
    return get_peft_model(base, config).eval()


@pytest.fixture
def pair(make_model):
    """A model with an adapter, and the base model with the same rows in its table."""
    model, reference = adapted(make_model(tied=False)), make_model(tied=False)
    with torch.no_grad():
        reference.get_input_embeddings().weight[IDS] = model.get_rows("default").to(reference.dtype)
    return model, reference


@pytest.fixture
def batch(device):
    """Two sequences with [BE] in places, the second one padded on the left."""
    rows = [[20, 21, 7, 9, 22, 23, 24, 22, 23], [2, 2, 2, 2, 20, 9, 31, 32, 7]]
    mask = [[1] * 9, [0] * 4 + [1] * 5]
    return {"input_ids": torch.tensor(rows, device=device), "attention_mask": torch.tensor(mask, device=device)}


def test_forward_and_backward(pair, batch):
    model, reference = pair
    table = reference.get_input_embeddings().weight.requires_grad_(True)
    outputs = [m(**batch).logits for m in pair]
    assert torch.equal(*outputs) and outputs[0].dtype == reference.dtype
    for output in outputs:
        output.float().logsumexp(-1).sum().backward()
    gradient = model.get_input_embeddings().be_token_embedding["default"].weight.grad
    expected = table.grad[IDS].float()
    assert gradient.dtype == torch.float32 and (gradient - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("mode", GENERATION)
def test_generate(pair, batch, mode):
    outputs = []
    for model in pair:
        torch.manual_seed(0)
        outputs.append(model.generate(**batch, max_new_tokens=8, **GENERATION[mode]))
    assert torch.equal(*outputs) and outputs[0].shape[1] > batch["input_ids"].shape[1]


def test_merge_and_unmerge(pair, batch):
    model, _ = pair
    table = model.get_input_embeddings().get_base_layer().weight
    before = table.clone()
    expected = model(**batch).logits
    model.merge_adapter()
    assert torch.equal(model(**batch).logits, expected)
    model.unmerge_adapter()
    assert torch.equal(table, before)
    assert torch.equal(model.merge_and_unload()(**batch).logits, expected)


def test_mixed_batch(make_model, batch, device):
    model = adapted(make_model())
    model.add_adapter("other", BETokenConfig(task_type="CAUSAL_LM", num_be_tokens=2, be_token_ids=OTHERS))
    ids = batch["input_ids"].repeat(2, 1)[:3].clone()
    ids[1] = torch.tensor([20, 8, 22, 11, 23, 24, 22, 23, 24], device=device)
    ids[2] = 20
    mixed = model(input_ids=ids, adapter_names=["default", "other", "__base__"]).logits
    for row, name in enumerate(("default", "other")):
        model.set_adapter(name)
        alone = ids.clone()
        alone[torch.arange(3, device=device) != row] = 20  # ids of the adapter that is not active
        assert torch.equal(model(input_ids=alone).logits[row], mixed[row])
    with model.disable_adapter():
        assert torch.equal(model(input_ids=torch.full_like(ids, 20)).logits[2], mixed[2])
    # Ids of an adapter that does not belong to its row of the batch
    with pytest.raises(ValueError, match="belongs to adapter other"):
        model.generate(input_ids=ids[1:2], adapter_names=["default"], max_new_tokens=2)


def test_ids_of_an_adapter_that_is_not_active_do_not_go_unnoticed(make_model, device):
    model = adapted(make_model())
    model.add_adapter("other", BETokenConfig(task_type="CAUSAL_LM", num_be_tokens=2, be_token_ids=OTHERS))
    ids = torch.tensor([[20, 7, 22, 8]], device=device)
    assert model(input_ids=ids).logits[0, -1].isnan().all()
    with pytest.raises(ValueError, match="belongs to adapter other, which is not active"):
        model.generate(input_ids=ids, max_new_tokens=2)


def test_compiles(pair, batch, device):
    """On a GPU by inductor; elsewhere the graph alone, for compiling takes long there."""
    model, _ = pair
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="inductor" if device.type == "cuda" else "eager")
        output, expected = compiled(**batch).logits.float(), model(**batch).logits.float()
    real = batch["attention_mask"].bool()
    assert (output - expected)[real].norm() < 0.03 * expected[real].norm()


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing(pair, batch, use_reentrant):
    model, _ = pair
    model.train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        model.zero_grad()
        model(**batch).logits.float().logsumexp(-1).sum().backward()
        gradients.append(model.get_input_embeddings().be_token_embedding["default"].weight.grad.clone())
    assert 0 < gradients[0].norm() and (gradients[0] - gradients[1]).norm() < 0.02 * gradients[0].norm()


def test_device_map_auto(tmp_path, tokenizer, device):
    folder = save_tiny_llama(tmp_path / "base", tokenizer, width=64)
    base = AutoModelForCausalLM.from_pretrained(folder, device_map="auto", dtype=torch.bfloat16)
    assert base.device.type == device.type
    model = adapted(base)
    model.save_pretrained(tmp_path / "adapter")
    again = AutoModelForCausalLM.from_pretrained(folder, device_map="auto", dtype=torch.bfloat16)
    again = PeftModel.from_pretrained(again, tmp_path / "adapter").eval()
    assert torch.equal(again.get_rows("default"), model.get_rows("default"))
    renderer = PromptRenderer.for_adapter(model.peft_config["default"], tokenizer)
    ids = torch.tensor([renderer.be("Who are you?")], device=device)
    outputs = [m.generate(input_ids=ids, max_new_tokens=4, do_sample=False) for m in (model, again)]
    assert torch.equal(*outputs)


def test_the_first_input_without_be_is_noticed(make_model, device):
    model = adapted(make_model())
    ids = torch.tensor([[20, 21, 22]], device=device)
    with pytest.warns(UserWarning, match="holds none of the token ids"):
        model(input_ids=ids)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(input_ids=ids)


def test_the_whole_model_moves(pair, batch, device):
    model, _ = pair
    expected = model(**batch).logits
    moved = copy.deepcopy(model).to("cpu").to(device)
    assert all(isinstance(p, nn.Parameter) and p.device.type == device.type for p in moved.parameters())
    assert torch.equal(moved(**batch).logits, expected)
