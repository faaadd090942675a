from __future__ import annotations

from peft import LoraConfig

from ...checks import COUNT, POSITIVE, check_number
from .learned_weights import LearnedWeights
from .method import Job


class LoRA(LearnedWeights):
    """
    Prompt distillation into a LoRA adapter, PEFT's `LORA`, on all linear layers but the output layer.

    Args:
        r (`int`, *optional*, defaults to `8`): the rank, as in `LoraConfig`.
        lora_alpha (`float`, *optional*, defaults to `16`): as in `LoraConfig`.
        learning_rate (`float`, *optional*, defaults to `1e-3`): as in [`LearnedAdapter`].
        **settings: further arguments of [`LearnedAdapter`].

    Raises:
        `ValueError`: a number is out of range.
    """

    def __init__(self, r: int = 8, lora_alpha: float = 16, learning_rate: float = 1e-3, **settings):
        check_number("r", r, COUNT, whole=True)
        check_number("lora_alpha", lora_alpha, POSITIVE)
        super().__init__(learning_rate, **settings)
        self.r = r
        self.lora_alpha = lora_alpha

    def config(self, job: Job) -> LoraConfig:
        own = {"r": self.r, "lora_alpha": self.lora_alpha}
        return LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", **own)
