"""Whether a GGUF file holds the weights of a model of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from transformers import PreTrainedModel


if TYPE_CHECKING:
    from gguf.gguf_reader import ReaderTensor


def check_layers(path: Path, architecture: str, tensors: dict[str, ReaderTensor], model: PreTrainedModel) -> None:
    """
    Check that a GGUF file has the weights of the adapters' base: its norms, which are not quantised, and a part of
    each matrix.

    Args:
        path (`Path`): the file, for the error message.
        architecture (`str`): as the file names it.
        tensors (`dict[str, ReaderTensor]`): the file's tensors, by name.
        model ([`~transformers.PreTrainedModel`]): the base model.

    Raises:
        `ValueError`: it has other weights.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map
    from gguf.quants import dequantize

    arch = next((key for key, name in MODEL_ARCH_NAMES.items() if name == architecture), None)
    if arch is None:
        return
    names = get_tensor_name_map(arch, model.config.get_text_config().num_hidden_layers)
    for name, parameter in model.named_parameters():
        own = names.get_name(name, try_suffixes=(".weight", ".bias"))
        # Converters reorder the rows of queries and keys, and rename or join other tensors
        if own not in tensors or own.startswith(("token_embd", "output.")) or "attn_q" in own or "attn_k" in own:
            continue
        tensor, theirs = tensors[own], parameter.detach()[:64].float().cpu().numpy()
        if tuple(reversed(tensor.shape)) != tuple(parameter.shape):
            continue
        mine = dequantize(tensor.data[:64], tensor.tensor_type)
        # 2-bit types are off by a third. Some converters add 1 to the weights of norms
        limit = 0.7 if parameter.ndim > 1 else 5e-3
        offsets = (0,) if parameter.ndim > 1 else (0, 1)
        if min(np.linalg.norm(mine - theirs - offset) for offset in offsets) > limit * np.linalg.norm(theirs):
            raise ValueError(
                f"'{path}' has other weights than the base model of the adapters ({own}): give the GGUF file of that "
                "model, or pass allow_other_weights=True (--allow-other-weights)."
            )
