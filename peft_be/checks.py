"""Settings are checked before anything is loaded: names, types, and ranges."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from numbers import Integral, Real


@dataclass(frozen=True)
class Range:
    """
    What a number may be. NaN and infinity are in no range.

    Args:
        low (`float`, *optional*): the least value.
        high (`float`, *optional*): the largest value.
        above (`float`, *optional*): a value that has to be exceeded.
        below (`float`, *optional*): a value that must not be reached.
    """

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        parts = {"at least": self.low, "above": self.above, "at most": self.high, "below": self.below}
        return " and ".join(f"{text} {value}" for text, value in parts.items() if value is not None)


COUNT = Range(low=1)
NOT_NEGATIVE = Range(low=0)
POSITIVE = Range(above=0)
# What transformers reads from its arguments, and does not check. The seed is numpy's, too
TRAINING_RANGES = {
    "adam_beta1": Range(low=0, below=1),
    "adam_beta2": Range(low=0, below=1),
    "adam_epsilon": POSITIVE,
    "data_seed": Range(low=0, high=2**32 - 1),
    "dataloader_num_workers": NOT_NEGATIVE,
    "eval_delay": NOT_NEGATIVE,
    "eval_steps": POSITIVE,
    "gradient_accumulation_steps": COUNT,
    "learning_rate": POSITIVE,
    "logging_steps": POSITIVE,
    "max_grad_norm": NOT_NEGATIVE,
    "num_train_epochs": POSITIVE,
    "per_device_eval_batch_size": COUNT,
    "per_device_train_batch_size": COUNT,
    "save_steps": POSITIVE,
    "save_total_limit": COUNT,
    "seed": Range(low=0, high=2**32 - 1),
    "warmup_steps": NOT_NEGATIVE,
    "weight_decay": NOT_NEGATIVE,
}
# Fields that trainers inherit and do not read: they make their rows themselves, and have losses of their own
UNUSED = (
    "assistant_only_loss",
    "chat_template_path",
    "completion_only_loss",
    "dataset_kwargs",
    "dataset_num_proc",
    "dataset_text_field",
    "eos_token",
    "eval_packing",
    "label_smoothing_factor",
    "loss_type",
    "max_length",
    "model_init_kwargs",
    "packing",
    "packing_strategy",
    "pad_token",
    "padding_free",
    "router_aux_loss_coef",
    "shuffle_dataset",
    "truncation_mode",
    "use_liger_kernel",
)
SAMPLING_STRATEGIES = ("random", "sequential", "group_by_length", "batch_rebalance")


def check_number(name: str, value, allowed: Range = Range(), whole: bool = False) -> None:
    """
    Check a number.

    Args:
        name (`str`): of the setting, for the message.
        value: what was given.
        allowed ([`Range`], *optional*): its range.
        whole (`bool`, *optional*, defaults to `False`): whether it must be an `int`.

    Raises:
        `ValueError`: it is no such number, not finite, or out of range.
    """
    if not isinstance(value, Integral if whole else Real) or isinstance(value, bool):
        raise ValueError(f"{name} must be a {'whole ' if whole else ''}number, got {value!r}.")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value}.")
    if float(value) not in allowed:
        raise ValueError(f"{name} must be {allowed}, got {value}.")


def check_fields(config, ranges: dict[str, Range]) -> None:
    """
    Check all numbers and switches of a dataclass, and the strings among the package's own fields. Fields of transformers, such as
    `report_to` and `output_dir`, also take lists and paths, whatever their annotations say.

    Args:
        config: the dataclass, with the values that were given.
        ranges (`dict[str, Range]`): by field; the others may be any finite number.

    Raises:
        `ValueError`: a value is of another type than its field, not finite, or out of range.
    """
    inherited = {
        name
        for base in type(config).__mro__
        if not base.__module__.startswith("peft_be.")
        for name in vars(base).get("__annotations__", ())
    }
    for field in fields(config):
        kind, value = _kind(field.type), getattr(config, field.name)
        if kind.endswith(" | None"):
            kind = kind.removesuffix(" | None")
            if value is None:
                continue
        if kind in ("int", "float"):
            check_number(field.name, value, ranges.get(field.name, Range()), whole=kind == "int")
        elif kind == "bool" and not isinstance(value, bool):
            raise ValueError(f"{field.name} must be True or False, got {value!r}.")
        elif kind == "str" and field.name not in inherited and not isinstance(value, (str, os.PathLike)):
            raise ValueError(f"{field.name} must be a string, got {value!r}.")


def check_unused(args, names: Iterable[str], where: str) -> None:
    """Raises a `ValueError` for a field that was set and that nothing reads. `where` says where it is not read."""
    defaults = {field.name: field.default for field in fields(args)}
    for name in names:
        if getattr(args, name) != defaults[name]:
            raise ValueError(f"{name} does nothing {where}: leave it out.")


def check_training_args(args) -> None:
    """Check what only the configuration of a trainer has: that no field is set that does nothing, and what else transformers
    misreads."""
    check_unused(args, UNUSED, f"in {type(args).__name__}")
    # Whatever it does not know, transformers takes for the first one
    check_choice("train_sampling_strategy", args.train_sampling_strategy, SAMPLING_STRATEGIES)
    if args.max_steps < 1 and args.max_steps != -1:
        raise ValueError(f"max_steps must be at least 1 (or -1 for num_train_epochs), got {args.max_steps}.")


def check_names(given: Iterable[str], config_class: type) -> None:
    """
    Raises a `ValueError` for a setting that the dataclass `config_class` lacks, and names the one that was likely
    meant.
    """
    known = [field.name for field in fields(config_class) if field.init]
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"see the fields of {config_class.__name__}."
            raise ValueError(f"There is no setting '{name}': {hint}")


def check_type(name: str, value: object, kind: type) -> None:
    """Raises a `ValueError` if an argument is of another type than `kind`."""
    if not isinstance(value, kind):
        raise ValueError(f"{name} must be a {kind.__name__}, and is of type {type(value).__name__}.")


def check_choice(name: str, value, choices: Iterable) -> None:
    """Raises a `ValueError` if `value` is none of `choices`."""
    if value not in choices:
        named = ", ".join(str(choice) for choice in choices if choice is not None)
        raise ValueError(f"{name} must be one of {named}, got {value!r}.")


def _kind(annotation) -> str:
    """`"int | None"` for the annotation of a field, which may be a string."""
    if isinstance(annotation, str):
        return annotation
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)
