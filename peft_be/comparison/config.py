"""The budget of a comparison. Imports no torch: the command makes its options from it."""

from __future__ import annotations

from dataclasses import dataclass

from ..checks import COUNT, POSITIVE, TRAINING_RANGES, check_choice, check_number
from ..recipe import Recipe, setting
from ..runs.config import DEVICE, DEVICES, DTYPE, DTYPES


@dataclass
class CompareConfig:
    """
    Configuration class for [`compare_methods`]: what every method may spend.

    Args:
        max_steps (`int`, *optional*):
            Training steps of each run; `None` is each method's own default.
        max_minutes (`float`, *optional*):
            Minutes of training of each run; `None` sets no limit.
        max_answer_length (`int`, *optional*, defaults to `64`):
            Longest answer, in tokens, in training and scoring.
        seeds (`tuple[int, ...]`, *optional*, defaults to `(42,)`):
            One run of each method for each; one in all for methods without anything random.
        dtype (`str`, *optional*), device (`str`, *optional*):
            As in [`CompressConfig`].

    Raises:
        `ValueError`: a setting is out of range, or there is no seed.
    """

    max_steps: int | None = setting(None, "Training steps of each run; by default each method's own.")
    max_minutes: float | None = setting(None, "Minutes of training of each run.")
    max_answer_length: int = setting(Recipe.max_answer_length, "Longest answer, in tokens, in training and scoring.")
    seeds: tuple[int, ...] = setting((42,), "One run of each method for each.")
    dtype: str | None = DTYPE
    device: str | None = DEVICE

    def __post_init__(self):
        if not self.seeds:
            raise ValueError("A comparison needs at least one seed.")
        for seed in self.seeds:
            check_number("seed", seed, TRAINING_RANGES["seed"], whole=True)
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("device", self.device, DEVICES)
        check_number("max_answer_length", self.max_answer_length, COUNT, whole=True)
        if self.max_steps is not None:
            check_number("max_steps", self.max_steps, COUNT, whole=True)
        if self.max_minutes is not None:
            check_number("max_minutes", self.max_minutes, POSITIVE)
