"""Where a trained [AE] row comes from."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..prompting import tokenizer_fingerprint
from ..tuner import BETokenConfig
from ..tuner.checks import read_rows
from ..tuner.provenance import Provenance
from .base_weights import check_weights, same_weights, weights_fingerprint
from .folder import CONFIG_FILE, WEIGHTS_FILE, read_config


SHIPPED = Path(__file__).parent.parent / "assets" / "ae"


def load_ae_row(
    directory: str | os.PathLike,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    allow_other_weights: bool = False,
) -> torch.Tensor:
    """
    The [AE] row `[1, d]` of an adapter folder, for a base model.

    Args:
        directory (`str` or `os.PathLike`): the adapter's folder.
        model ([`~transformers.PreTrainedModel`]): the base model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): its tokenizer.
        allow_other_weights (`bool`, *optional*, defaults to `False`): accept other weights than those of the training.

    Raises:
        `FileNotFoundError`: the folder holds no adapter.
        `ValueError`: the adapter has no [AE] row, is damaged, or belongs to another backbone, other weights or another
            tokenizer.
    """
    directory = Path(directory)
    if not (directory / WEIGHTS_FILE).is_file() or not (directory / CONFIG_FILE).is_file():
        raise FileNotFoundError(f"There is no [AE] adapter in '{directory}': train one with peft-be pretrain-ae.")
    config = read_config(directory)
    row = read_rows(directory / WEIGHTS_FILE, config).get("ae")
    if row is None:
        raise ValueError(f"The adapter in '{directory}' has no [AE] row: it is a [BE] adapter.")
    width = model.get_input_embeddings().weight.shape[1]
    if row.shape[1] != width:
        raise ValueError(
            f"The [AE] row in '{directory}' is {row.shape[1]} wide and belongs to another backbone than this one, which "
            f"needs {width}: train one for it with peft-be pretrain-ae."
        )
    recorded = Provenance.of(config)
    if recorded.tokenizer_sha256 not in (None, tokenizer_fingerprint(tokenizer)):
        raise ValueError(
            f"The [AE] row in '{directory}' was trained with another tokenizer: train one for this model."
        )
    if recorded.base_weights is not None and not allow_other_weights:
        check_weights(recorded, weights_fingerprint(model), f"The [AE] row in '{directory}'")
    return row


def known_ae_row(
    ae: str | os.PathLike | None,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    allow_other_weights: bool = False,
) -> torch.Tensor | None:
    """The [AE] row `[1, d]` of a base model, from the folder `ae` or as shipped, or `None`. Raises as [`load_ae_row`]."""
    directory = ae or shipped_ae(model)
    return None if directory is None else load_ae_row(directory, model, tokenizer, allow_other_weights)


def shipped_ae(model: PreTrainedModel) -> Path | None:
    """The [AE] adapter that the package ships for a base model, or `None`: a fine-tuned copy needs an adapter of its own."""
    for folder in sorted(path.parent for path in SHIPPED.glob(f"*/{CONFIG_FILE}")):
        config = BETokenConfig.from_pretrained(folder)
        shape = (config.vocab_size, config.hidden_size)
        if config.base_model_name_or_path != model.name_or_path:
            continue
        if shape == tuple(model.get_input_embeddings().weight.shape) and same_weights(
            Provenance.of(config).base_weights, weights_fingerprint(model)
        ):
            return folder
    return None
