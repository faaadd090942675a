"""What runs do before they train: the base model, confirmed as that of the run, and what the rows need from it."""

from __future__ import annotations

import os

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..adapters.create import find_ae_row
from ..adapters.load import load_base
from ..prompting.context import check_length
from ..prompting.fingerprints import sha256
from ..teacher import teacher_cache_dir, weights_sha256
from ..training import BEDistillConfig
from ..tuner import BETokenConfig
from .config import CompressConfig, shared_fields
from .folder import RunFolder


def distillation_args(config: CompressConfig, output_dir: str | os.PathLike, **changes) -> BEDistillConfig:
    """
    The trainer's configuration for a run. Where `answer_cache_dir` is not set, the teacher's answers are kept where all
    runs find them.
    """
    own = {**shared_fields(config, BEDistillConfig), "use_cpu": config.device == "cpu", **changes}
    own["answer_cache_dir"] = own["answer_cache_dir"] or str(teacher_cache_dir())
    return BEDistillConfig(str(output_dir), **own)


def load_confirmed(
    run: RunFolder,
    model: str | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dtype: str | None = None,
    device: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    The base model of a run and its tokenizer.

    Raises:
        `ValueError`: the run was started with another base model or dtype, or as in [`load_base`].
    """
    # A model that is loaded already is moved by the trainer
    device = None if isinstance(model, PreTrainedModel) else device
    model, tokenizer = load_base(model, tokenizer, dtype, device)
    run.confirm("base_sha256", weights_sha256(model), "base model or dtype")
    return model, tokenizer


def confirmed_ae_row(
    run: RunFolder, config: CompressConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> torch.Tensor | None:
    """
    The [AE] row `[1, d]` of a run, or `None` if nothing is reconstructed.

    Raises:
        `ValueError`: the model's context has no room for the [BE] rows, there is no [AE] row for it, or the run was
            started with another one.
    """
    check_length(model, config.num_be_tokens, f"num_be_tokens={config.num_be_tokens}")
    row = find_ae_row(config.ae, model, tokenizer, run.settings["model"], config.reconstructs)
    if row is not None:
        run.confirm("ae_sha256", sha256(row.tolist()), "[AE] row")
    return row


def load_rows(peft_model: PeftModel, directory: str | os.PathLike) -> None:
    """Give a new adapter the rows of a saved one of the same size, and the record of where they come from."""
    peft_model.load_adapter(directory, "default", is_trainable=True)
    peft_model.peft_config["default"].provenance = BETokenConfig.from_pretrained(directory).provenance
