"""The methods by name."""

from __future__ import annotations

import inspect

from .attention import AttentionSampling
from .be import BE
from .bounds import FullPrompt, NoPrompt
from .cartridge import Cartridge
from .distillation import Distillation
from .llmlingua import LLMLingua2
from .lora import LoRA
from .method import Method
from .paper import PaperBE
from .prune_then_be import PruneThenBE
from .reconstruction import MemoryToken, Reconstruction
from .reordered import Reordered
from .self_information import SelfInformation
from .soft_prompt import SoftPrompt
from .truncation import Truncation
from .unilora import UniLoRA


METHODS: dict[str, type[Method]] = {
    "full": FullPrompt,
    "none": NoPrompt,
    "reordered": Reordered,
    "be": BE,
    "be-paper": PaperBE,
    "distillation": Distillation,
    "reconstruction": Reconstruction,
    "memory-token": MemoryToken,
    "soft-prompt": SoftPrompt,
    "cartridge": Cartridge,
    "lora": LoRA,
    "unilora": UniLoRA,
    "truncation": Truncation,
    "self-information": SelfInformation,
    "attention": AttentionSampling,
    "llmlingua-2": LLMLingua2,
    "prune-then-be": PruneThenBE,
}


def make_method(spec: str, **settings) -> Method:
    """
    A method by its name.

    Args:
        spec (`str`): a name in `METHODS`, or `name:n` for n tokens instead of the method's default.
        **settings: further arguments of the method.

    Raises:
        `ValueError`: unknown name, a number that is none, or a number for a method without tokens to count.
    """
    name, _, number = spec.partition(":")
    if name not in METHODS:
        raise ValueError(f"Unknown method '{name}': choose one of {', '.join(METHODS)}.")
    if number:
        if not number.isdecimal() or "num_tokens" not in inspect.signature(METHODS[name]).parameters:
            raise ValueError(
                f"'{spec}' is no method: a number after the name, as in 'be:8', is one of tokens, for methods that have them."
            )
        settings["num_tokens"] = int(number)
    return METHODS[name](**settings)
