"""
What a run is asked to do: the configurations of [`compress_prompt`], [`compress_prompts`] and [`pretrain_ae`]. Imports no
torch: the commands make their options from them.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, TypeVar

from ..checks import COUNT, NOT_NEGATIVE, POSITIVE, Range, check_choice, check_names, check_number
from ..figures import TARGET_METRICS
from ..recipe import AERecipe, Recipe, setting
from .target import MOST_ROWS


if TYPE_CHECKING:
    from _typeshed import DataclassInstance


# Where the authors' published scripts differ from the defaults. Their learning rate is absolute: see [`PaperBE`]
PAPER = {
    "kd_weight": 0.9,
    "temperature": 2.0,
    "scale_by_temperature_squared": True,
    "reconstruction_interval": 1,
    "max_kd_tokens": 32,
    "init": "random",
    "init_scale": 1.0,
    "slot": "prefix",
    "per_device_train_batch_size": 1,
    "optim": "adamw_torch",
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
}
DTYPE = setting(
    None, "Of the base model: float32, bfloat16, float16, or auto, that of its files; by default the fastest."
)
DTYPES = (None, "float32", "bfloat16", "float16", "auto")
DEVICES = (None, "cpu", "cuda")
DEVICE = setting(
    None, "cpu or cuda (which GPU: CUDA_VISIBLE_DEVICES); by default a GPU where there is one.", recorded=False
)


@dataclass
class CompressConfig(Recipe):
    """
    Configuration class for [`compress_prompt`] and [`compress_prompts`]: how a prompt becomes [BE] rows. A run records all
    of it but `answer_cache_dir`, `report_to` and `device`, and is resumed with the same.

    Describes the parameters of the run; all others are those of [`BEDistillConfig`]. `answer_cache_dir=None` is another folder
    here: the user's cache, `~/.cache/peft_be` or `$PEFT_BE_CACHE`, which all runs share.

    Args:
        num_be_tokens (`int`, *optional*, defaults to `1`):
            k, the number of [BE] rows; with a `target`, the k that the search starts with.
        target (`float`, *optional*):
            The value of `target_metric` that is to be reached on the validation queries. The run then looks for the smallest k,
            of `num_be_tokens` doubled up to 64, that reaches it. For [`compress_prompt`] alone.
        target_metric (`str`, *optional*, defaults to `"kl_gap_closed"`):
            `"kl_gap_closed"`, the share of the KL gap that is closed, or `"same_answers"`, the share of the full prompt's answers
            that are the same, word for word: for labels, JSON, code, commands. Each training keeps the rows with the lowest KL
            in either case.
        from_adapter (`str` or `os.PathLike`, *optional*):
            An adapter to start from, such as the one for the prompt's previous version: a folder, or a name on the Hub. It belongs to the same
            base model and slot, and has `num_be_tokens` rows or fewer; `init` is for those that are added. For
            [`compress_prompt`] alone.
        slot (`str`, *optional*, defaults to `"system"`):
            Where [BE] stands: `"system"` in the template's system turn, `"prefix"` in front of the user's turn.
        keep (`list[str]`, *optional*):
            Parts of the prompt that must be exact, as they stand there: they stay text, after [BE] in the system turn.
            The teacher reads the whole prompt. For one prompt alone, and slot `"system"`.
        keep_tokens (`int`, *optional*):
            Keep sentences of the prompt, too, of so many tokens at the most: those that alone bring the model nearest to
            the full prompt's answers to the first validation queries.
        ae (`str` or `os.PathLike`, *optional*):
            Folder of an adapter with the [AE] row, for `kd_weight` below 1 and `reconstruction_steps`. `None` takes the
            one that the package ships for this backbone, if there is one.
        reconstruction_steps (`int`, *optional*, defaults to `0`):
            Steps of stage 1 alone (Eq. 2) before the main training.
        max_minutes (`float`, *optional*):
            Time for the whole job, model loading excluded. The steps that fit are measured once the teacher has worked;
            `max_steps` stays the upper bound.
        dtype (`str`, *optional*):
            Of the base model where it is loaded by its name: `"float32"`, `"bfloat16"`, `"float16"`, or `"auto"`, that of its
            files. `None` is the fastest on this machine.
        device (`str`, *optional*):
            `"cpu"` or `"cuda"`. `None` is a GPU where there is one; which one, `CUDA_VISIBLE_DEVICES` says.

    Raises:
        `ValueError`: a setting is of another type, or out of range.
    """

    num_be_tokens: int = setting(1, "k, the number of [BE] rows.")
    target: float | None = setting(
        None, "Find the smallest k, from --num-be-tokens to 64, that reaches this value of --target-metric."
    )
    target_metric: str = setting(
        "kl_gap_closed",
        "kl_gap_closed: the share of the KL gap that is closed; same_answers: the share of answers that match the full prompt's "
        "word for word.",
    )
    from_adapter: str | None = setting(
        None, "Start from the rows of this adapter, such as the one for the prompt's previous version."
    )
    slot: str = setting("system", "system: inside the system turn; prefix: in front of the user's turn.")
    keep: list[str] | None = setting(
        None, "A part of the prompt that must be exact: it stays text after [BE]. Repeatable."
    )
    keep_tokens: int | None = setting(
        None, "Keep so many tokens of sentences, chosen by the validation KL that they save."
    )
    ae: str | None = setting(None, "Folder of the [AE] adapter; the package ships some.")
    reconstruction_steps: int = setting(0, "Steps of stage 1 alone before the rest.")
    max_minutes: float | None = setting(None, "Time for all of it, model loading excluded.")
    dtype: str | None = DTYPE
    device: str | None = DEVICE

    def __post_init__(self):
        from ..tuner.checks import MAX_ROWS  # here, since it imports torch
        from ..tuner.config import SLOTS

        super().__post_init__()
        if self.init is None:
            raise ValueError(
                "A run makes new rows, and init=None goes on from earlier ones: leave it out, or use BEDistillTrainer."
            )
        check_number("num_be_tokens", self.num_be_tokens, Range(low=1, high=MAX_ROWS), whole=True)
        check_choice("slot", self.slot, SLOTS)
        if self.keep is not None:
            if not isinstance(self.keep, list) or not all(isinstance(part, str) for part in self.keep):
                raise ValueError(f"keep must be a list of texts, got {self.keep!r}.")
            self.keep = self.keep or None
        if self.keep_tokens is not None:
            check_number("keep_tokens", self.keep_tokens, COUNT, whole=True)
            if self.kd_weight == 0:
                raise ValueError("keep_tokens measures answers to validation queries: it needs kd_weight above 0.")
        if (self.keep or self.keep_tokens) and self.slot != "system":
            raise ValueError("keep and keep_tokens put text after [BE] into the system turn: they need slot 'system'.")
        check_number("reconstruction_steps", self.reconstruction_steps, NOT_NEGATIVE, whole=True)
        check_number("max_steps", self.max_steps, COUNT, whole=True)
        if self.max_minutes is not None:
            check_number("max_minutes", self.max_minutes, POSITIVE)
        self._check_target()
        if self.from_adapter is not None:
            self.from_adapter = os.fspath(self.from_adapter)
            if self.reconstruction_steps:
                raise ValueError(
                    "reconstruction_steps prepare new rows, and those of from_adapter are trained: leave out one of the two."
                )
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("device", self.device, DEVICES)
        if self.ae is not None:
            self.ae = os.fspath(self.ae)

    def _check_target(self) -> None:
        check_choice("target_metric", self.target_metric, TARGET_METRICS)
        if self.target is None:
            if self.target_metric != "kl_gap_closed":
                raise ValueError("target_metric says what target is a share of: give a target, too.")
            return
        check_number("target", self.target, Range(above=0, below=1))
        if self.target_metric == "same_answers" and not self.answers_are_whole_and_greedy:
            raise ValueError(
                "same_answers are the full prompt's greedy answers: set answer_temperature to 0, and leave out max_kd_tokens."
            )
        if self.num_be_tokens > MOST_ROWS:
            raise ValueError(
                f"With a target, the search starts with num_be_tokens rows and ends with {MOST_ROWS}, got "
                f"num_be_tokens={self.num_be_tokens}: lower it, or leave out target."
            )
        if self.kd_weight == 0 or self.reconstruction_steps:
            raise ValueError(
                "A target is a share of what the distillation brings: leave it out, or set kd_weight above 0 and "
                "reconstruction_steps to 0."
            )

    @classmethod
    def paper(cls, **changes) -> CompressConfig:
        """
        What the authors' published scripts do: tau^2, 32 tokens of each answer, slot `prefix`, AdamW at a constant rate. Only the
        rate itself is left at our default, since theirs is absolute and ours is in units of the start rows' RMS;
        [`~peft_be.comparison.methods.PaperBE`] (`peft-be compare --methods be-paper`) converts it.
        """
        return cls(**{**PAPER, **changes})

    @property
    def reconstructs(self) -> bool:
        """Whether the training needs an [AE] row."""
        return (self.kd_weight < 1 or self.reconstruction_steps > 0) and self.use_ae_token


@dataclass
class PretrainAEConfig(AERecipe):
    """
    Configuration class for [`pretrain_ae`].

    Describes the parameters of the run; all others are those of [`AEConfig`].

    Args:
        num_validation (`int`, *optional*, defaults to `32`):
            Passages held out to measure the reconstruction on; half of all if there are fewer than twice as many.
        dtype (`str`, *optional*), device (`str`, *optional*):
            As in [`CompressConfig`].

    Raises:
        `ValueError`: a setting is of another type, or out of range.
    """

    num_validation: int = setting(32, "Passages held out to measure the reconstruction on.")
    dtype: str | None = DTYPE
    device: str | None = DEVICE

    def __post_init__(self):
        super().__post_init__()
        check_number("num_validation", self.num_validation, COUNT, whole=True)
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("device", self.device, DEVICES)
        check_number("max_steps", self.max_steps, COUNT, whole=True)


Config = TypeVar("Config", bound="DataclassInstance")


def changed(config: Config | None, config_class: type[Config], changes: dict) -> Config:
    """
    A configuration with some fields replaced, as in `generate` of transformers; `None` is the default one.

    Raises:
        `ValueError`: there is no such field, the value is of another type or out of range, or `config` is of another
            type.
    """
    check_names(changes, config_class)
    if config is None:
        return config_class(**changes)
    if not isinstance(config, config_class):
        raise ValueError(f"config must be a {config_class.__name__}, and is of type {type(config).__name__}.")
    return replace(config, **changes)


def shared_fields(config: Recipe | AERecipe, config_class: type) -> dict:
    """The settings that a run has in common with the configuration of its trainer, to make one from the other."""
    names = {f.name for f in fields(config_class)}
    return {f.name: getattr(config, f.name) for f in fields(config) if f.name in names}


def as_json(settings: dict) -> dict:
    """Settings as they come back from a file."""
    return json.loads(json.dumps(settings, default=str))
