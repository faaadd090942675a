"""
What an adapter's configuration and its file of rows must look like. All that is saved or loaded is checked.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

import torch
from safetensors import SafetensorError, safe_open

from .provenance import Provenance


BE_KEY, AE_KEY = "be_token_embedding.weight", "be_token_ae_embedding.weight"
# No prompt has more tokens, and no vocabulary larger ids: a number beyond these is damaged
MAX_ROWS, MAX_SIZE = 2**16, 2**31
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_fields(config) -> None:
    """
    Check the types and ranges of a [`BETokenConfig`]'s fields: a file may hold anything.

    Raises:
        `ValueError`: a field is of another type, or out of range; the sentence names it.
    """

    def number(value, low: int, high: int) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and low <= value < high

    k, ids = config.num_be_tokens, config.be_token_ids
    if not number(k, 0, MAX_ROWS + 1):
        raise ValueError(f"num_be_tokens must be a whole number from 0 to {MAX_ROWS}, got {k!r:.60}.")
    if ids is not None and not isinstance(ids, (list, tuple)):
        raise ValueError(f"be_token_ids must be a list of token ids, got {ids!r:.60}.")
    for token_id in [*(ids or []), *([] if config.ae_token_id is None else [config.ae_token_id])]:
        if not number(token_id, 0, MAX_SIZE):
            raise ValueError(f"Token ids must be non-negative integers below {MAX_SIZE}, got {token_id!r:.60}.")
    for name in ("hidden_size", "vocab_size"):
        value = getattr(config, name)
        if value is not None and not number(value, 1, MAX_SIZE):
            raise ValueError(f"{name} must be a positive whole number, got {value!r:.60}.")
    scale = config.embed_scale
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < abs(scale) < math.inf:
        raise ValueError(f"embed_scale must be a finite number other than 0, got {scale!r:.60}.")
    for name in ("use_ae_token", "save_ae_token"):
        if not isinstance(getattr(config, name), bool):
            raise ValueError(f"{name} must be true or false, got {getattr(config, name)!r:.60}.")
    for name in ("base_model_name_or_path", "tokenizer_name_or_path"):
        value = getattr(config, name)
        if value is not None and not isinstance(value, (str, os.PathLike)):
            raise ValueError(f"{name} must be a string, got {value!r:.60}.")
    kept = config.kept_text
    if kept is not None and (not isinstance(kept, str) or not kept.strip()):
        raise ValueError(f"kept_text must be text that is not empty, got {kept!r:.60}.")
    targets = config.target_modules
    names = targets if isinstance(targets, (list, tuple, set)) else [targets]
    if targets is not None and not all(isinstance(name, str) for name in names):
        raise ValueError(f"target_modules must be a string or a list of strings, got {targets!r:.60}.")
    Provenance.of(config)


def check_rows(tensors: Mapping[str, torch.Tensor], config, where: str) -> None:
    """
    Check that tensors are the rows of an adapter, and nothing else.

    Args:
        tensors (`Mapping[str, torch.Tensor]`): what a file holds, by the names there.
        config ([`BETokenConfig`]): the adapter's configuration.
        where (`str`): what the error message calls the file.

    Raises:
        `ValueError`: a row is missing, has another shape or dtype or is not finite, or there is a tensor that is no
            row.
    """
    expected = expected_shapes(config)
    shapes = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    _check_shapes(shapes, expected, where)
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(
                f"The adapter {where} holds numbers that are not finite in {name}: train or download it again."
            )


def read_rows(path: str | os.PathLike, config) -> dict[str, torch.Tensor]:
    """
    Read an adapter's rows from its safetensors file. No tensor is loaded before the file's header has passed
    the check.

    Args:
        path (`str` or `os.PathLike`): the file.
        config ([`BETokenConfig`]): the adapter's configuration.

    Returns:
        `dict[str, torch.Tensor]`: `be` of shape `[k, d]`, `ae` of shape `[1, d]`, or one of them.

    Raises:
        `ValueError`: the file is damaged, or is not as [`check_rows`] wants it.
    """
    where = f"'{path}'"
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            shapes = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
            _check_shapes(shapes, expected_shapes(config), where)
            tensors = {name: file.get_tensor(name) for name in shapes}
    except (SafetensorError, OSError, RuntimeError, OverflowError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"The adapter {where} is damaged ({reason}): train or download the adapter again.") from error
    check_rows(tensors, config, where)
    return {"be" if name.endswith(BE_KEY) else "ae": tensor for name, tensor in tensors.items()}


def foreign_tensors(names) -> list[str]:
    """The names in an adapter's file that belong to no row."""
    return [name for name in names if not f".{name}".endswith((f".{BE_KEY}", f".{AE_KEY}"))]


def expected_shapes(config) -> dict[str, tuple[int, int | None]]:
    """The rows that a saved adapter has, by the ends of their names; the width is `None` where it is not known."""
    shapes = {BE_KEY: (config.num_be_tokens, config.hidden_size)} if config.num_be_tokens else {}
    return {**shapes, AE_KEY: (1, config.hidden_size)} if config.saves_ae_token else shapes


def _check_shapes(found: dict[str, tuple], expected: dict[str, tuple[int, int | None]], where: str) -> None:
    for key, (count, width) in expected.items():
        own = [(name, *found[name]) for name in found if f".{name}".endswith(f".{key}")]
        if len(own) != 1 or not _fits(own[0][1], count, width):
            shape = own[0][1] if own else "none"
            raise ValueError(
                f"The rows in {where} do not fit its configuration: expected {key} of shape {(count, width or 'd')}, "
                f"found {shape}."
            )
        if own[0][2] not in FLOATS and own[0][2] not in ("F64", "F32", "BF16", "F16"):
            raise ValueError(
                f"The adapter {where} holds {own[0][0]} as {own[0][2]}, and rows are floating-point numbers."
            )
    foreign = foreign_tensors(found)
    if foreign:
        raise ValueError(
            f"The adapter {where} holds {foreign[0]}, which is no row of [BE] or [AE]: an adapter with weights of "
            "another method, or a damaged one. Train it on a base model without adapters."
        )
    extra = [name for name in found if not any(f".{name}".endswith(f".{key}") for key in expected)]
    if extra:
        raise ValueError(f"The adapter {where} holds {extra[0]}, which its configuration does not mention.")


def _fits(shape: tuple[int, ...], count: int, width: int | None) -> bool:
    return len(shape) == 2 and shape[0] == count and shape[1] == (width or shape[1]) and shape[1] > 0
