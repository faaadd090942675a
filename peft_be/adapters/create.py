"""Puts a new adapter on a base model, and finds the [AE] row that it needs where P is to be reconstructed."""

from __future__ import annotations

import os

import torch
from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..checks import check_type
from ..tuner import BETokenConfig
from .ae_row import known_ae_row
from .base_weights import check_plain


def find_ae_row(
    ae: str | os.PathLike | None,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    model_name: str,
    reconstructs: bool,
) -> torch.Tensor | None:
    """The [AE] row `[1, d]` of a backbone, from the folder `ae` or as shipped; `None` where nothing is reconstructed."""
    if not reconstructs:
        if ae is not None:
            raise ValueError(
                "An [AE] row was given, and nothing uses it: set kd_weight below 1, or reconstruction_steps."
            )
        return None
    row = known_ae_row(ae, model, tokenizer)
    if row is None:
        raise ValueError(
            f"Reconstruction needs an [AE] row for '{model_name}', and none is shipped: train one with peft-be "
            "pretrain-ae and pass it as ae (to a trainer: in an adapter, by set_ae_row), or distil only (kd_weight=1)."
        )
    return row


def add_adapter(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    num_be_tokens: int = 1,
    ae_row: torch.Tensor | None = None,
    slot: str = "system",
    kept_text: str | None = None,
) -> PeftModel:
    """Put a new adapter of `num_be_tokens` rows on a model, with an [AE] row if one is given."""
    check_base_model(model)
    vocab_size = model.get_input_embeddings().num_embeddings
    own = {"slot": slot, "kept_text": kept_text}
    config = BETokenConfig.for_tokenizer(tokenizer, vocab_size, num_be_tokens, ae_row is not None, **own)
    peft_model = get_peft_model(model, config)
    if ae_row is not None:
        peft_model.base_model.set_ae_row("default", ae_row)
    return peft_model


def add_ae_adapter(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PeftModel:
    """Put a new adapter with an [AE] row alone on a model."""
    check_base_model(model)
    vocab_size = model.get_input_embeddings().num_embeddings
    return get_peft_model(model, BETokenConfig.for_tokenizer(tokenizer, vocab_size, 0, True))


def with_adapter(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    reconstructs: bool,
    peft_config: BETokenConfig | None = None,
) -> PeftModel:
    """
    The model that a trainer trains: a PeftModel as it is, and a base model with the adapter of `peft_config`, or with one of a
    single [BE] row. If `reconstructs`, the new adapter has the [AE] row that the package ships for this backbone.
    """
    if peft_config is not None:
        check_type("peft_config", peft_config, BETokenConfig)
    if isinstance(model, PeftModel):
        if peft_config is not None:
            raise ValueError(
                "The model has an adapter already: pass the base model with `peft_config`, or leave it out."
            )
        return model
    check_base_model(model)
    ae_row = find_ae_row(None, model, tokenizer, model.name_or_path, reconstructs)
    if peft_config is None:
        return add_adapter(model, tokenizer, ae_row=ae_row)
    model = get_peft_model(model, peft_config)
    if ae_row is not None and peft_config.use_ae_token:
        model.base_model.set_ae_row("default", ae_row)
    return model


def check_base_model(model: PreTrainedModel) -> None:
    """Raises a `ValueError` for anything but a plain causal LM of transformers: no adapter can be put on it."""
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"A trainer of rows needs a loaded causal LM of transformers, or a PeftModel with a BE_TOKEN adapter, not "
            f"{type(model).__name__}."
        )
    check_plain(model)
