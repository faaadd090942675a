from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer

from .common import bold, say
from .options import AllowOtherWeights, BaseModel, Device, Dtype


class Format(str, Enum):
    hf = "hf"
    gguf = "gguf"


def export(
    directories: Annotated[list[Path], typer.Argument(help="Folders of adapters of one base model.")],
    output: Annotated[Path, typer.Option(help="Folder for the checkpoint, or the GGUF file to write.")],
    model: BaseModel = None,
    dtype: Dtype = None,
    device: Device = None,
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
        Format, typer.Option(help="hf: a transformers checkpoint; gguf: a GGUF file for llama.cpp.")
    ] = Format.hf,
    base: Annotated[
        Optional[Path], typer.Option(help="GGUF file of the base model, of any quantisation, for --format gguf.")
    ] = None,
    allow_other_weights: AllowOtherWeights = False,
) -> None:
    """Write a model in which [BE] is an ordinary special token: a transformers checkpoint or a GGUF file."""
    from ..serving import export_gguf, export_merged

    names = [directory.absolute().name for directory in directories]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise ValueError(f"Tokens are named like the folders, and more than one is called {', '.join(repeated)}.")
    if token_name and len(token_name) != len(names):
        raise ValueError(
            f"There are {len(names)} adapters and {len(token_name)} token names: give --token-name once for each adapter."
        )
    adapters = dict(zip(names, directories))
    shared = {"model": model, "default": default, "allow_other_weights": allow_other_weights, "device": device}
    shared["token_names"] = dict(zip(names, token_name or []))
    if format is Format.hf:
        if base is not None:
            raise ValueError("--base is the GGUF file that --format gguf adds to: give that, too, or leave it out.")
        tokens = export_merged(adapters, output, dtype=dtype, **shared)
    elif dtype is not None:
        raise ValueError("--dtype is that of a checkpoint; a GGUF file keeps its own types: leave it out.")
    elif base is None:
        raise ValueError(
            "--format gguf adds to a GGUF file: give it as --base. If there is none, export with --format hf and convert "
            "that with llama.cpp's convert_hf_to_gguf.py."
        )
    else:
        tokens = export_gguf(adapters, base, output, **shared)
    for name, token in tokens.items():
        where = "as the system message" if token.slot == "system" else "in front of the user's turn"
        say(bold(name), f": {token.text} {where} (ids {token.ids})")
    say("Saved to ", bold(output), ".")
