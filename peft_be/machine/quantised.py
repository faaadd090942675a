"""
4-bit layers of bitsandbytes on CPUs with AVX512-BF16, where their first forward without gradients packs the weights for a kernel
that has no backward: everything that is trained afterwards would silently get only a part of its gradient.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


def unpack(layer: Any) -> None:
    """Bring packed weights of a layer back into their usual order; other layers stay as they are."""
    state: Any = getattr(getattr(layer, "weight", None), "quant_state", None)
    if getattr(state, "packing_format_for_cpu", False):
        from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse

        layer.weight.data, layer.weight.quant_state = _convert_weight_packed_for_cpu_inverse(layer.weight.data, state)


def keep_backward(model: torch.nn.Module) -> None:
    """Keep the 4-bit layers of `model` from packing their weights, so that gradients flow through them."""
    layers: Iterable[Any] = model.modules()
    for layer in layers:
        if getattr(layer, "support_avx512bf16_for_cpu", False):
            layer.support_avx512bf16_for_cpu = False
            unpack(layer)
