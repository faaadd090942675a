"""What a trainer can learn: the rows of one active adapter, and nothing else."""

from __future__ import annotations

import torch
from peft import PeftModel
from transformers import TrainerCallback

from ..tuner import BETokenModel


def check_learning_rows(model: PeftModel, kind: str) -> str:
    """
    Check that the rows of the active adapter learn, and nothing else does.

    Args:
        model ([`~peft.PeftModel`]): the model.
        kind (`str`): what is to learn, `"[BE]"` or `"[AE]"`.

    Returns:
        `str`: the active adapter.

    Raises:
        `ValueError`: there is no such adapter, or it is frozen, disabled, merged, or not the only thing that learns.
    """
    tuner = model.base_model
    if not isinstance(tuner, BETokenModel):
        method = getattr(model.peft_type, "value", model.peft_type)
        raise ValueError(
            f"The PeftModel holds an adapter of {method}, and rows are trained on plain weights: merge it first, by "
            "merge_and_unload, and pass the merged model, or pass the base model."
        )
    if len(tuner.active_adapters) != 1:
        raise ValueError(
            f"One adapter learns at a time, and active are {', '.join(tuner.active_adapters) or 'none'}: choose it by "
            "model.set_adapter(name)."
        )
    (name,) = tuner.active_adapters
    config, layer = model.peft_config[name], model.get_input_embeddings()
    if kind == "[BE]" and not config.num_be_tokens:
        raise ValueError(
            f"Adapter '{name}' holds an [AE] row only, and [BE] is to be trained: put a [BE] adapter on the base "
            "model, and give it this row by set_ae_row."
        )
    if kind == "[AE]" and not config.use_ae_token:
        raise ValueError(
            f"Adapter '{name}' has no [AE] row: create it with BETokenConfig(num_be_tokens=0, use_ae_token=True)."
        )
    if kind == "[AE]" and config.num_be_tokens:
        raise ValueError(
            f"The [AE] row of adapter '{name}' does not learn next to [BE] rows: train it in an adapter of its own, "
            "with BETokenConfig(num_be_tokens=0, use_ae_token=True)."
        )
    if layer.merged:
        raise ValueError(f"Adapter {', '.join(layer.merged_adapters)} is merged: call model.unmerge_adapter() first.")
    if layer.disable_adapters:
        raise ValueError(
            "The adapters are disabled, so that no row would learn: train outside of model.disable_adapter()."
        )
    rows = rows_of(model, name, kind)
    if not rows.requires_grad:
        raise ValueError(
            f"Adapter '{name}' is frozen, so that no row would learn: load it with PeftModel.from_pretrained(base, "
            "adapter, is_trainable=True), or call model.set_adapter for it."
        )
    others = [n for n, parameter in model.named_parameters() if parameter.requires_grad and parameter is not rows]
    if others:
        raise ValueError(
            f"The base stays as it is while rows learn, and {len(others)} other weights would learn too, such as "
            f"{others[0]}: call requires_grad_(False) on them."
        )
    return name


def rows_of(model: PeftModel, adapter: str, kind: str) -> torch.nn.Parameter:
    """The parameter with the `"[BE]"` or the `"[AE]"` rows of an adapter."""
    layer = model.get_input_embeddings()
    return (layer.be_token_embedding if kind == "[BE]" else layer.be_token_ae_embedding)[adapter].weight


class RowsMove(TrainerCallback):
    """
    Notes whether a training moves the rows at all.

    Args:
        rows (`torch.Tensor`): the parameter that is to learn.

    Attributes:
        moved (`bool`, *optional*): whether they moved in the last call of `train`; `None` before its first step.
    """

    def __init__(self, rows: torch.Tensor):
        self._rows = rows
        self._start: torch.Tensor | None = None
        self.moved: bool | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        self._start, self.moved = None, None

    def on_step_begin(self, args, state, control, **kwargs):
        if self._start is None:  # only now are the rows of a checkpoint there
            self._start = self._rows.detach().clone()

    def on_step_end(self, args, state, control, **kwargs):
        if not self.moved and self._start is not None:
            self.moved = not torch.equal(self._rows.detach(), self._start)
