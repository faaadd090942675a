"""
A fingerprint of a base model's weights, by which an adapter knows the model that it was trained on.

A hash of the weights would change with their dtype and with every quantisation. A fingerprint is a sketch instead:
numbers that are the same for the same weights, nearly the same for their quantised copies, and others for other
weights.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from ..tuner import BETokenEmbedding
from ..tuner.provenance import Provenance


# How many numbers are kept of matrices and of vectors; the numbers of neighbouring layers are added up
_SIZES = {"matrices": 96, "vectors": 32}
_PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_CHUNK = 2**18  # elements that are rounded together: 1 MB in float32 stays in the processor's cache
# How far apart any number of the same weights may lie (docs/tuner.md says what was measured). Weights are rounded to
# bfloat16 first, so that a float32 and a bfloat16 copy agree up to the order of sums.
_EXACT = 1e-4
# Where this cannot hold, the root mean square over all matrices is compared. A float16 copy of float32 weights is
# rounded twice, and quantised copies lie further apart the fewer bits they have. The numbers of two unrelated models are 1 or
# more apart.
_FLOAT16, _FLOAT16_VECTORS = 2.5e-3, 1.5e-2
_QUANTISED = {8: 0.05, 4: 0.35, 2: 0.6}


def weights_fingerprint(model: PreTrainedModel | PeftModel) -> dict:
    """
    Sketch a model's weights, whatever their dtype, device or quantisation. It takes one pass over them.

    Each matrix is multiplied by a fixed vector of signs, and the product by another one. Vectors, which no quantisation
    touches, are kept apart. Layers that hold their weights in a form of their own are read through their `forward`.
    Adapters are left out: the weights below them count.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): the base model, with or without adapters.

    Returns:
        `dict`: plain JSON. `sketch` holds the numbers in base64, `matrices` and `vectors` tell how many there were in
            the model, `dtype` is the model's, `quantisation` says how the weights are or were quantised, `None` if they
            were not, and `fits_float16` whether all are float16 numbers, as the weights of a float16 file are in any dtype.
    """
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    numbers: dict[str, list[float]] = {"matrices": [], "vectors": []}
    head = model.get_output_embeddings()
    for module in _base_modules(model):
        if module is not head:  # which may share the matrix of the input embedding, or have a copy of it
            _add_module(module, numbers)
    if head is not None:
        _add_module(head, numbers)
    sketch = np.array([number for kind, size in _SIZES.items() for number in _pooled(numbers[kind], size)])
    return {
        "sketch": base64.b64encode(sketch.astype("<f4").tobytes()).decode(),
        **{kind: len(values) for kind, values in numbers.items()},
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantisation": quantisation_of(model),
        "fits_float16": _fits_float16(model),
    }


def same_weights(one: dict, other: dict) -> bool:
    """
    Whether two fingerprints can be of the same weights.

    Args:
        one (`dict`), other (`dict`): as [`weights_fingerprint`] returns them.

    Raises:
        `ValueError`: one of them is damaged.
    """
    ours, theirs = (_numbers(side) for side in (one, other))
    loose = max((_QUANTISED[_bits(side)] for side in (one, other) if side.get("quantisation")), default=0.0)
    if one.get("quantisation") == other.get("quantisation") and "unpacked" in str(one.get("quantisation")):
        loose = 0.0  # the same numbers, unpacked in the same way
    if len(ours[0]) != len(theirs[0]) or one["matrices"] != other["matrices"]:
        if not loose:
            return False
        # Some backends keep the weights of experts in other parts than the original: what is left are the vectors
        ours, theirs = (np.zeros(0), ours[1]), (np.zeros(0), theirs[1])
    if one["vectors"] != other["vectors"]:
        return False
    mixed = one.get("dtype") != other.get("dtype") and "float16" in (one.get("dtype"), other.get("dtype"))
    # A float16 file that was loaded as something else was rounded all the same
    mixed = mixed or {one.get("fits_float16"), other.get("fits_float16")} == {True, False}
    if mixed:
        loose = max(loose, _FLOAT16)
    # What could not be read on one side is NaN
    matrices, vectors = (np.abs(a - b)[~np.isnan(a - b)] for a, b in zip(ours, theirs))
    if vectors.max(initial=0.0) > (_FLOAT16_VECTORS if mixed else _EXACT):
        return False
    if loose and len(matrices):
        return math.sqrt(np.square(matrices).mean()) <= loose
    return matrices.max(initial=0.0) <= _EXACT


def check_weights(
    provenance: Provenance, weights: dict | None, adapter: str, allow_other_weights: bool = False
) -> None:
    """
    Check that an adapter is used with the weights it was trained on.

    Args:
        provenance ([`Provenance`]): of the adapter. One that records no weights is not checked.
        weights (`dict` or `None`): fingerprint of the base model, `None` if it was not taken.
        adapter (`str`): what the adapter is called in the error message.
        allow_other_weights (`bool`, *optional*, defaults to `False`): accept other weights.

    Raises:
        `ValueError`: the weights are others, or what is recorded of them is damaged.
    """
    recorded = provenance.base_weights
    if recorded is None or weights is None or allow_other_weights:
        return
    if not isinstance(recorded, dict):
        raise ValueError(f"{adapter} is damaged (base_weights in its provenance): train or download it again.")
    if not same_weights(recorded, weights):
        raise ValueError(
            f"{adapter} was trained on other weights than this base model's: load the model that it was trained on "
            "(weights that were fine-tuned or merged since need an adapter of their own), or pass "
            "allow_other_weights=True (--allow-other-weights)."
        )


def check_plain(model: PreTrainedModel | PeftModel, rows_allowed: bool = False) -> None:
    """
    Check that a base model carries no adapters: rows that learn on top of an adapter work with that adapter alone.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): the model.
        rows_allowed (`bool`, *optional*, defaults to `False`): whether it may carry rows of this package.

    Raises:
        `ValueError`: it carries an adapter.
    """
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    layers = [layer for layer in layers if not (rows_allowed and isinstance(layer, BETokenEmbedding))]
    if layers or (isinstance(model, PeftModel) and not rows_allowed):
        kind = type(layers[0]).__module__.split(".")[-2] if layers else "PEFT"
        raise ValueError(
            f"The base model carries an adapter already (of {kind}): merge it first (merge_and_unload() of a "
            "PeftModel), or load the base model without it. To go on with rows of this package, load them by "
            "PeftModel.from_pretrained(base, adapter, is_trainable=True)."
        )


def quantisation_of(model: PreTrainedModel) -> str | None:
    """How a model's weights are quantised, or were before they were unpacked; `None` if they never were."""
    source = getattr(model.config, "unpacked_from", None)
    if isinstance(source, dict):
        kind, file = source.get("type"), source.get("file")
        return None if kind in ("F32", "F16", "BF16") else f"{kind}, unpacked from {file}"
    config = getattr(model.config, "quantization_config", None)
    if config is None:
        return None
    config = config if isinstance(config, dict) else config.to_dict()
    method = getattr(config.get("quant_method"), "value", config.get("quant_method"))
    bits = config.get("bits") or config.get("w_bit") or config.get("nbits")
    bits = bits or next((n for n in (8, 4) if config.get(f"load_in_{n}bit") or config.get(f"_load_in_{n}bit")), None)
    return f"{method}" if bits is None else f"{method}, {bits} bits"


def _bits(fingerprint: dict) -> int:
    """The row of `_QUANTISED` for a fingerprint's quantisation."""
    text = str(fingerprint["quantisation"])  # such as "bitsandbytes, 4 bits", or "Q4_1, unpacked from model.gguf"
    found = re.search(r"(\d+) bits", text) or re.match(r"[A-Z]+(\d+)", text)
    bits = int(found[1]) if found else 0
    return 8 if bits >= 8 else 4 if bits >= 4 else 2


def _numbers(fingerprint: dict) -> tuple[np.ndarray, np.ndarray]:
    """What is kept of the matrices and of the vectors."""
    try:
        numbers = np.frombuffer(base64.b64decode(fingerprint["sketch"], validate=True), dtype="<f4").astype(float)
        counts = [min(size, max(0, fingerprint[kind])) for kind, size in _SIZES.items()]
    except (KeyError, TypeError, ValueError):
        numbers, counts = None, [1]
    if numbers is None or len(numbers) != sum(counts):
        raise ValueError(
            "What the adapter records of its base's weights (provenance, base_weights) is damaged: train or download "
            "it again."
        )
    return numbers[: counts[0]], numbers[counts[0] :]


def _base_modules(module: nn.Module) -> Iterator[nn.Module]:
    """All modules of a model in their order, with adapters passed over."""
    if isinstance(module, BaseTunerLayer):
        yield from _base_modules(module.get_base_layer())
        return
    yield module
    for child in module.children():
        yield from _base_modules(child)


@torch.no_grad()
def _add_module(module: nn.Module, numbers: dict[str, list[float]]) -> None:
    parameters = dict(module.named_parameters(recurse=False))
    weight = parameters.get("weight")
    if hasattr(module, "in_features") and hasattr(module, "out_features") and not _is_plain(weight):
        numbers["matrices"].append(_asked(module, len(numbers["matrices"])))
        parameters = {name: p for name, p in parameters.items() if name == "bias"}
    for parameter in parameters.values():
        kind = "vectors" if parameter.ndim < 2 else "matrices"
        values = numbers[kind]
        if not _is_plain(parameter):
            values.append(math.nan)
        elif kind == "vectors":
            values.append(_number(parameter.detach().to(torch.bfloat16), f"vector {len(values)}"))
        else:
            values.append(_multiplied(parameter.detach().flatten(0, -2), len(values)))


def _is_plain(parameter: torch.Tensor | None) -> bool:
    """Whether a parameter holds the weights themselves: not packed, not in a subclass, not left on disk."""
    return (
        parameter is not None
        and type(parameter.data) is torch.Tensor
        and parameter.dtype in _PLAIN
        and not parameter.is_meta
    )


def _fits_float16(model: nn.Module) -> bool:
    """Whether float16 holds all plain weights as they are. If not, one of the first few thousand is too small for it."""
    parameters = (p.detach() for module in _base_modules(model) for p in module.parameters(recurse=False))
    chunks = (chunk for p in parameters if _is_plain(p) for chunk in p.flatten().split(_CHUNK))
    return all(chunk.dtype == torch.float16 or torch.equal(chunk.half().to(chunk.dtype), chunk) for chunk in chunks)


def _multiplied(matrix: torch.Tensor, number: int) -> float:
    signs = _signs(f"in {number}", matrix.shape[1]).to(matrix.device)
    rows = max(1, _CHUNK // matrix.shape[1])
    parts = [chunk.to(torch.bfloat16).float() @ signs for chunk in matrix.split(rows)]
    return _number(torch.cat(parts), f"out {number}")


def _asked(module: Any, number: int) -> float:
    """The number of a matrix that only its layer's own code can read."""
    weight = next((p for p in [*module.parameters(False), *module.buffers(False)] if not p.is_meta), None)
    if weight is None:
        return math.nan
    # 8-bit layers of bitsandbytes compute in float16, and warn at each call with anything else
    dtype = torch.float16 if weight.dtype == torch.int8 else torch.float32
    signs = _signs(f"in {number}", module.in_features).to(weight.device, dtype)
    try:
        answer, zero = module(torch.stack([signs, torch.zeros_like(signs)])).float()  # the bias is not the matrix's
    except (RuntimeError, ValueError, TypeError):  # of a backend that takes no other dtype or shape
        return math.nan
    return _number(answer - zero, f"out {number}")


def _number(vector: torch.Tensor, name: str) -> float:
    """
    A vector in one number, which is about normally distributed and changes as much as the vector does, relative to its
    length. The length counts, too.
    """
    numbers = vector.cpu().double().numpy()
    length = float(np.linalg.norm(numbers))
    if length == 0 or not math.isfinite(length):
        return 0.0 if length == 0 else math.nan
    return float(_signs(name, len(numbers)).double().numpy() @ numbers) / length + math.log(length)


def _signs(name: str, count: int) -> torch.Tensor:
    """`count` times +1 or -1, the same for a name on every machine, and without any generator of random numbers."""
    stream = hashlib.shake_128(name.encode()).digest((count + 7) // 8)
    bits = np.unpackbits(np.frombuffer(stream, dtype=np.uint8))[:count]
    return torch.from_numpy(bits.astype(np.float32) * 2 - 1)


def _pooled(values: list[float], size: int) -> list[float]:
    """`size` sums of neighbouring values, or fewer where there are fewer values, each as spread as one of them."""
    parts = np.array_split(np.array(values), min(size, len(values))) if values else ()
    return [part.sum() / math.sqrt(len(part)) for part in parts]
