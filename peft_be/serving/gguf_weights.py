"""Whether a GGUF file is that of a model of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .gguf_file import ARCHITECTURE, INPUT, TOKENS


if TYPE_CHECKING:
    from gguf import GGUFReader
    from gguf.gguf_reader import ReaderTensor


def check_base(
    path: Path,
    reader: GGUFReader,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    allow_other_weights: bool = False,
) -> None:
    """
    Check that a GGUF file is of the adapters' base: the table's shape and what is in it, the vocabulary, and the weights.

    Args:
        path (`Path`): the file, for the error message.
        reader (`GGUFReader`): the file, opened.
        model ([`~transformers.PreTrainedModel`]): the base model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): its tokenizer.
        allow_other_weights (`bool`, *optional*, defaults to `False`): do not look at the weights of its layers.

    Raises:
        `ValueError`: it is of another model, or has other weights.
    """
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    _check_vocabulary(path, tensors[INPUT], reader.fields[TOKENS].contents(), model, tokenizer)
    if not allow_other_weights:
        _check_layers(path, reader.fields[ARCHITECTURE].contents(), tensors, model)


def _check_layers(path: Path, architecture: str, tensors: dict[str, ReaderTensor], model: PreTrainedModel) -> None:
    """Check the norms, which are not quantised, and a part of each matrix."""
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


def _check_vocabulary(
    path: Path,
    tensor: ReaderTensor,
    vocab: list[str],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Check the table's shape and what is in it, and the vocabulary."""
    from gguf.quants import dequantize

    table = model.get_input_embeddings().weight
    found = tuple(int(size) for size in reversed(tensor.shape))
    other = f"'{path}' is not the base model of the adapters"
    if found != tuple(table.shape) or len(vocab) != len(table):
        raise ValueError(
            f"{other}: its table is {found[0]} x {found[1]} for {len(vocab)} tokens, theirs {len(table)} x {table.shape[1]}."
        )
    added = {}
    for i, token in tokenizer.added_tokens_decoder.items():
        # llama.cpp's converter writes what is left of a token when it is read and spelled out again
        again = tokenizer.decode(tokenizer.encode(token.content, add_special_tokens=False))
        added[i] = {token.content, again}
    for token, i in tokenizer.get_vocab().items():
        if i < len(vocab) and vocab[i] not in added.get(i, {token}):
            raise ValueError(f"{other}: its token {i} is {vocab[i]!r} instead of {token!r}.")
    some = np.linspace(0, len(vocab) - 1, 256, dtype=int)
    mine = dequantize(tensor.data[some], tensor.tensor_type)
    theirs = table[some.tolist()].float().cpu().numpy()
    # 2-bit types are off by a third
    if np.linalg.norm(mine - theirs) > 0.7 * np.linalg.norm(theirs):
        raise ValueError(f"{other}: its tokens have other embeddings.")
