"""An output embedding of its own, for models with and without an adapter."""

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModel

from peft_be.tuner import BETokenConfig, untie_output_embedding

from .tuner_helpers import make_model


IDS = torch.tensor([[1, 7, 3]])


@pytest.mark.filterwarnings("ignore:The input holds none of the token ids")
@pytest.mark.parametrize("with_adapter", [False, True])
@pytest.mark.parametrize("name", ["qwen2", "gemma3"])
def test_a_tied_model(name, with_adapter, tmp_path):
    base = make_model(name)
    before = base(IDS).logits
    model = get_peft_model(base, BETokenConfig(task_type="CAUSAL_LM")) if with_adapter else base
    assert untie_output_embedding(model) is True
    assert torch.equal(base(IDS).logits, before)
    with torch.no_grad():
        base.get_input_embeddings().weight[5] += 1
    assert torch.equal(base(IDS).logits, before)

    base = model.unload() if with_adapter else base
    base.save_pretrained(tmp_path)
    loaded = type(base).from_pretrained(tmp_path)
    assert loaded.get_output_embeddings().weight is not loaded.get_input_embeddings().weight
    assert torch.equal(loaded(IDS).logits, before)
    assert untie_output_embedding(loaded) is False


def test_nothing_to_untie():
    assert untie_output_embedding(make_model("llama")) is False
    assert untie_output_embedding(AutoModel.from_config(make_model("qwen2").config)) is False
