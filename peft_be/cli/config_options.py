"""Options that are the fields of a configuration: one place has their names, types, defaults and help texts."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection
from dataclasses import Field, fields
from typing import Annotated, Any, get_type_hints

import typer


# Shorter names of options, besides that of their field
SHORT = {"from_adapter": "--from", "per_device_train_batch_size": "--batch-size"}
# Settings that the comparisons have as methods of their own, and that nobody serves
ABLATIONS = ("hard_labels", "max_kd_tokens", "scale_by_temperature_squared", "use_ae_token")


def with_options_of(
    config_class: type, without: Collection[str] = (), name: str = "config", panel: str | None = None
) -> Callable[[Callable], Callable]:
    """
    Decorator that gives a command an option for each field of a configuration, and passes the configuration to it.

    Args:
        config_class (`type`): a dataclass whose fields have a `help` in their metadata.
        without (`Collection[str]`, *optional*): fields that the command does not offer.
        name (`str`, *optional*, defaults to `"config"`): the command's parameter for the configuration.
        panel (`str`, *optional*): heading of the options in the help text; fields that the class inherits have their own.
    """
    types = get_type_hints(config_class)
    own = [field for field in fields(config_class) if field.name not in without]
    # Those that the class itself declares come first, and what it inherits in a panel of its own
    first = [field for field in own if field.name in vars(config_class)["__annotations__"]]

    def decorate(command: Callable) -> Callable:
        @functools.wraps(command)
        def run(**given):
            settings = {field.name: given.pop(field.name) for field in own}
            return command(**given, **{name: config_class(**settings)})

        options = [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=Annotated[types[field.name], _option(field, panel if field in first else "Training")],
            )
            for field in sorted(own, key=lambda field: field not in first)
        ]
        hints = get_type_hints(command, include_extras=True)
        parameters = [
            p.replace(annotation=hints[p.name], kind=inspect.Parameter.KEYWORD_ONLY)
            for p in inspect.signature(command).parameters.values()
            if p.name != name
        ]
        # What typer reads: those that must be given first, then the configuration's, then what all runs have
        required = [p for p in parameters if p.default is inspect.Parameter.empty]
        others = [p for p in parameters if p.default is not inspect.Parameter.empty]
        shown = [*required, *options, *others]
        run.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in shown}
        del run.__wrapped__
        return run

    return decorate


def not_given(context: typer.Context, settings: dict) -> dict:
    """Those of some settings that no option of the command line overrides."""
    # By its name, for Typer may have Click's class of its own
    given = {name for name in settings if getattr(context.get_parameter_source(name), "name", None) == "COMMANDLINE"}
    return {name: value for name, value in settings.items() if name not in given}


def _option(field: Field, panel: str | None) -> Any:
    # A given name leaves out the `--no-` form, which a switch that is off by default does not need
    names = [SHORT[field.name]] if field.name in SHORT else []
    names.append(f"--{field.name.replace('_', '-')}")
    return typer.Option(*names, help=field.metadata["help"], rich_help_panel=panel)
