"""Where a trained [AE] row comes from."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftConfig
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..prompting import tokenizer_fingerprint
from ..tuner import BETokenConfig


SHIPPED = Path(__file__).parent.parent / "assets" / "ae"
KEY = "be_token_ae_embedding.weight"


def load_ae_row(directory: str | Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """
    The [AE] row `[1, d]` of an adapter folder, for a base model.

    Raises:
        `FileNotFoundError`: the folder holds no adapter.
        `ValueError`: the adapter has no [AE] row, is damaged, or belongs to another backbone or tokenizer.
    """
    directory = Path(directory)
    weights = directory / "adapter_model.safetensors"
    if not weights.is_file() or not (directory / "adapter_config.json").is_file():
        raise FileNotFoundError(f"There is no [AE] adapter in '{directory}': train one with peft-be pretrain-ae.")
    try:
        row = next((tensor for key, tensor in load_file(weights).items() if key.endswith(KEY)), None)
    except SafetensorError as error:
        raise ValueError(f"The [AE] adapter '{weights}' is damaged ({error}): train or download it again.") from error
    if row is None:
        raise ValueError(f"The adapter in '{directory}' has no [AE] row: it is a [BE] adapter.")
    width = model.get_input_embeddings().weight.shape[1]
    if row.shape[1] != width:
        raise ValueError(
            f"The [AE] row in '{directory}' is {row.shape[1]} wide and belongs to another backbone than this one, which "
            f"needs {width}: train one for it with peft-be pretrain-ae."
        )
    expected = (PeftConfig.from_pretrained(directory).provenance or {}).get("tokenizer_sha256")
    if expected not in (None, tokenizer_fingerprint(tokenizer)):
        raise ValueError(
            f"The [AE] row in '{directory}' was trained with another tokenizer: train one for this model."
        )
    return row


def shipped_ae(model: PreTrainedModel) -> Path | None:
    """The [AE] adapter that the package ships for a base model, if there is one."""
    for folder in sorted(SHIPPED.glob("*/adapter_config.json")):
        config = BETokenConfig.from_pretrained(folder.parent)
        shape = (config.vocab_size, config.hidden_size)
        if config.base_model_name_or_path == model.name_or_path and shape == tuple(
            model.get_input_embeddings().weight.shape
        ):
            return folder.parent
    return None
