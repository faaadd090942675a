from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from .common import bold, say
from .config_options import with_options_of
from .loading import Loading


if TYPE_CHECKING:
    from ..serving import MergedToken


class Format(str, Enum):
    hf = "hf"
    gguf = "gguf"
    lora = "lora"
    lora_gguf = "lora-gguf"


GGUF = (Format.gguf, Format.lora_gguf)
LORA = (Format.lora, Format.lora_gguf)
ExportDtype = Annotated[
    Optional[str],
    typer.Option(
        help="hf: of the checkpoint, by default the fastest on this machine. lora: the one in which the engine computes, by "
        "default float32.",
        rich_help_panel="Loading",
    ),
]


@with_options_of(
    Loading, without=("dtype", "allow_template_change", "allow_other_prompt"), name="loading", panel="Loading"
)
def export(
    directories: Annotated[
        list[Path], typer.Argument(help="Adapters of one base model: folders, or names on the Hub.")
    ],
    output: Annotated[Path, typer.Option(help="Folder to write to, or the GGUF file.")],
    loading: Loading,
    default: Annotated[
        Optional[str],
        typer.Option(help="Folder name of the adapter that is the system message where a chat has none."),
    ] = None,
    token_name: Annotated[
        Optional[list[str]],
        typer.Option(
            help="What to write for the prompt, such as '<|pirate|>', instead of '<|be_FOLDER|>'; one for each adapter, in "
            "their order."
        ),
    ] = None,
    format: Annotated[
        Format,
        typer.Option(
            help="hf: a transformers checkpoint; gguf: a GGUF file for llama.cpp; lora: LoRA adapters of the unchanged model; "
            "lora-gguf: the same for llama.cpp."
        ),
    ] = Format.hf,
    base: Annotated[
        Optional[Path],
        typer.Option(help="GGUF file of the base model, of any quantisation, for --format gguf and lora-gguf."),
    ] = None,
    dtype: ExportDtype = None,
) -> None:
    """Write what other engines serve: a model in which [BE] is a special token, or LoRA adapters for the base model."""
    from ..serving import export_gguf, export_lora, export_lora_gguf, export_merged
    from ..serving.lora_gguf import served_base

    names = names_of(directories, token_name)
    check_options(format, base, dtype, default, token_name)
    adapters: dict[str, Any] = dict(zip(names, directories))
    how: dict[str, Any] = {
        "model": loading.model,
        "allow_other_weights": loading.allow_other_weights,
        "device": loading.device,
    }
    named: dict[str, Any] = {"default": default, "token_names": dict(zip(names, token_name or []))}
    tokens: Mapping[str, MergedToken]
    if format is Format.hf:
        tokens = export_merged(adapters, output, dtype=dtype, **named, **how)
    elif format is Format.lora:
        tokens = export_lora(adapters, output, dtype=dtype, **how)
    else:
        assert base is not None  # checked above
        if format is Format.gguf:
            tokens = export_gguf(adapters, base, output, **named, **how)
        else:
            tokens = export_lora_gguf(adapters, base, output, **how)
    for name, token in tokens.items():
        say(bold(name), f": {token.told} {token.place} (ids {token.ids})")
    say("Saved to ", bold(output), ".")
    if base is not None and format is Format.lora_gguf:
        say("The model to serve them with: ", bold(served_base(base, output)), ".")


def names_of(directories: list[Path], token_name: list[str] | None) -> list[str]:
    """The adapters' names. Raises a `ValueError` if two are the same, or there are more or fewer names of tokens."""
    names = [directory.resolve().name for directory in directories]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise ValueError(f"Tokens are named like the folders, and more than one is called {', '.join(repeated)}.")
    if token_name and len(token_name) != len(names):
        raise ValueError(
            f"There are {len(names)} adapters and {len(token_name)} token names: give --token-name once for each adapter."
        )
    return names


def check_options(
    format: Format, base: Path | None, dtype: str | None, default: str | None, token_name: list[str] | None
) -> None:
    """Raises a `ValueError` for an option that the format does not have, or lacks."""
    if format in GGUF and base is None:
        raise ValueError(
            f"--format {format.value} needs the GGUF file of the base model: give it as --base. If there is none, convert the "
            "base model, or an export with --format hf, with llama.cpp's convert_hf_to_gguf.py."
        )
    if format not in GGUF and base is not None:
        raise ValueError(
            "--base is the GGUF file that --format gguf and lora-gguf need: give one of these, too, or leave it out."
        )
    if format in GGUF and dtype is not None:
        raise ValueError("--dtype is not for a GGUF file, which keeps its own types: leave it out.")
    if format in LORA and (default or token_name):
        raise ValueError(
            f"--{'default' if default else 'token-name'} is not for LoRA adapters: each has a chat template of its own, and "
            "its token is one of the base model's. Leave it out."
        )
