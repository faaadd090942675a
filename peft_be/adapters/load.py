"""Adapters on their base model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..checks import check_type
from ..models import load_model
from ..prompting import check_tokenizer
from ..tuner import BETokenConfig, check_adapter_name
from ..tuner.provenance import Provenance
from .base_weights import check_plain, check_weights, weights_fingerprint
from .folder import read_config, read_report
from .hub import find_adapter


def read_adapter(directory: str | os.PathLike) -> tuple[Path, BETokenConfig]:
    """
    The folder of an adapter, named as in [`load_adapter`], and its configuration.

    Raises:
        `FileNotFoundError`: there is no adapter in the folder.
        `ValueError`: it is an adapter of another method, or is damaged.
        `OSError`: the Hub cannot be reached.
    """
    directory = find_adapter(directory)
    return directory, read_config(directory)


def read_be_adapter(directory: str | os.PathLike) -> tuple[Path, BETokenConfig]:
    """As [`read_adapter`], and refuses an adapter without [BE] rows with a `ValueError`."""
    folder, config = read_adapter(directory)
    if not config.num_be_tokens:
        raise ValueError(f"'{directory}' holds an [AE] row, which is for training only, and no [BE].")
    return folder, config


def load_adapter(
    directory: str | os.PathLike,
    model: str | None = None,
    allow_template_change: bool = False,
    dtype: torch.dtype | str | None = None,
    device: str | None = None,
    allow_other_weights: bool = False,
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """
    Load a base model with an adapter of this package on it, and the base model's tokenizer.

    Args:
        directory (`str` or `os.PathLike`):
            The adapter's folder, or its name on the Hub: `user/repo`, or `user/repo/folder`.
        model (`str`, *optional*):
            The base model, as in [`load_model`]. `None` is the one that the adapter was trained on.
        allow_template_change (`bool`, *optional*, defaults to `False`):
            Accept another chat template than that of the training.
        dtype (`torch.dtype` or `str`, *optional*), device (`str`, *optional*):
            As in [`load_model`].
        allow_other_weights (`bool`, *optional*, defaults to `False`):
            Accept other weights of the base model than those of the training, such as fine-tuned ones.

    Raises:
        `FileNotFoundError`: there is no adapter in the folder.
        `ValueError`: the adapter is damaged, of another method, or belongs to another backbone, other weights, another
            tokenizer or chat template.
        `OSError`: the base model cannot be loaded, or the Hub cannot be reached.
    """
    return load_adapters({"default": directory}, model, allow_template_change, dtype, device, allow_other_weights)


def load_adapters(
    directories: Mapping[str, str | os.PathLike],
    model: str | None = None,
    allow_template_change: bool = False,
    dtype: torch.dtype | str | None = None,
    device: str | None = None,
    allow_other_weights: bool = False,
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """
    Load a base model with several adapters on it, and the base model's tokenizer. The first adapter is active.

    Args:
        directories (`Mapping[str, str | os.PathLike]`):
            The adapters by the names that they get in the model, each named as in [`load_adapter`].
        model (`str`, *optional*):
            The base model, as in [`load_model`]. `None` is the one that the first adapter was trained on.
        allow_template_change (`bool`, *optional*, defaults to `False`):
            Accept another chat template than that of the training.
        dtype (`torch.dtype` or `str`, *optional*), device (`str`, *optional*):
            As in [`load_model`].
        allow_other_weights (`bool`, *optional*, defaults to `False`):
            Accept other weights of the base model than those of the training, such as fine-tuned ones.

    The errors raised are those of [`load_adapter`], and a `ValueError` where the adapters belong to different base models.
    """
    if not isinstance(directories, Mapping) or not directories:
        raise ValueError("Adapters are loaded by name: give one folder or more as {name: folder}.")
    for name in directories:
        check_adapter_name(name)
    adapters = {name: read_adapter(directory) for name, directory in directories.items()}
    first, config = next(iter(adapters.values()))
    for directory, other in adapters.values():
        if other.base_model_name_or_path != config.base_model_name_or_path:
            raise ValueError(
                f"'{directory}' belongs to {other.base_model_name_or_path}, and '{first}' to "
                f"{config.base_model_name_or_path}: use them apart."
            )
    base, tokenizer = (
        _load_recorded(first, config, dtype, device) if model is None else load_model(model, dtype, device)
    )
    records = any(Provenance.of(config).base_weights for _, config in adapters.values())
    weights = weights_fingerprint(base) if records and not allow_other_weights else None
    shape = tuple(base.get_input_embeddings().weight.shape)
    peft_model: PeftModel = None
    checked = set()
    for name, (directory, config) in adapters.items():
        # Hundreds of adapters may have the same fingerprints, and to compute a tokenizer's takes half a second
        recorded = Provenance.of(config)
        fingerprints = (recorded.tokenizer_sha256, recorded.chat_template_sha256)
        if fingerprints not in checked:
            check_tokenizer(config, tokenizer, allow_template_change)
            checked.add(fingerprints)
        # For another shape, PEFT raises a clearer error below
        if (config.vocab_size or shape[0], config.hidden_size or shape[1]) == shape:
            check_weights(recorded, weights, f"The adapter in '{directory}'")
        if peft_model is None:
            peft_model = PeftModel.from_pretrained(base, directory, adapter_name=name)
        else:
            peft_model.load_adapter(directory, adapter_name=name)
    return peft_model.eval(), tokenizer


def _load_recorded(
    directory: Path, config: BETokenConfig, dtype: torch.dtype | str | None, device: str | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model that an adapter records, which may have moved since."""
    name = read_report(directory).get("model") or config.base_model_name_or_path
    ask = "pass its base model (--model; model= in Python, pretrained= for lm-eval)"
    if not name:
        raise ValueError(f"The adapter in '{directory}' does not say which base model it was trained on: {ask}.")
    try:
        return load_model(str(name), dtype, device)
    except OSError as error:
        if Path(name).exists():
            raise  # it exists, but is incomplete
        raise FileNotFoundError(
            f"The adapter in '{directory}' was trained on '{name}', and that cannot be loaded: if it has moved, {ask}."
        ) from error


def name_of(model: str | os.PathLike | PreTrainedModel) -> str:
    """
    What a run records as its base model.

    Raises:
        `ValueError`: it is neither a name nor a loaded model.
    """
    if isinstance(model, (str, os.PathLike)):
        return os.fspath(model)
    if not isinstance(model, PreTrainedModel | PeftModel):
        raise ValueError(
            f"model must be smollm2, a folder, a Hub id or a loaded causal LM, and is of type {type(model).__name__}."
        )
    return model.name_or_path


def load_base(
    model: str | os.PathLike | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    dtype: torch.dtype | str | None = None,
    device: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    The base model and the tokenizer of a job, which takes a name or a loaded model. `dtype` and `device` are those of
    [`load_model`].

    Raises:
        `ValueError`: a loaded model comes without its tokenizer, with a dtype or device to load it in, or carries
            adapters.
        `OSError`: the model cannot be loaded.
    """
    if isinstance(model, (str, os.PathLike)):
        return load_model(os.fspath(model), dtype, device)
    if dtype is not None:
        raise ValueError("A loaded model has a dtype already: leave out dtype.")
    if tokenizer is None:
        raise ValueError("A loaded model needs its tokenizer: pass `tokenizer`.")
    check_type("tokenizer", tokenizer, PreTrainedTokenizerBase)
    check_plain(model)
    return model, tokenizer
