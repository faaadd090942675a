"""The settings of a run, as its folder records them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import fields

from transformers import TrainingArguments

from ..checks import Range
from ..tuner.checks import MAX_ROWS


# Fields of a configuration that say where things are kept, and change no result
PLACES = ("answer_cache_dir", "output_dir", "report_to")
NUM_BE_TOKENS = Range(low=1, high=MAX_ROWS)


def default_settings(settings: dict, function: Callable, config_class: type | None = None) -> dict:
    """
    The values of a run's settings where the user chose none. A run records them, so that an update with other defaults
    does not change it half-way.

    Args:
        settings (`dict`): the settings of a run.
        function (`Callable`): the job, whose arguments have defaults.
        config_class (`type`, *optional*): its configuration. Only the fields that the class itself
            declares count.
    """
    parameters = inspect.signature(function).parameters.values()
    empty = inspect.Parameter.empty
    defaults = {p.name: p.default for p in parameters if p.name in settings and p.default is not empty}
    if config_class is not None:
        own = [f for f in fields(config_class) if f.name in config_class.__annotations__ and f.name not in PLACES]
        defaults |= {f.name: f.default for f in own}
    return defaults


def config_args(settings: dict, config_class: type) -> dict:
    """The settings of a run that are fields of a configuration."""
    return {f.name: settings[f.name] for f in fields(config_class) if f.name in settings}


def as_json(settings: dict) -> dict:
    """Settings as they come back from a file."""
    return json.loads(json.dumps(settings, default=str))


def check_steps(args: TrainingArguments) -> None:
    """
    Raises a `ValueError` if there is no number of steps. All other settings were checked when `args` was made, before
    anything is loaded.
    """
    if args.max_steps < 1:  # transformers would train for `num_train_epochs`
        raise ValueError(f"max_steps must be at least 1, got {args.max_steps}.")
