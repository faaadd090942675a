"""Options that several commands have, with one meaning and one help text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer


Model = Annotated[str, typer.Option(help="smollm2, a folder, a GGUF file, or a Hub id.")]
BaseModel = Annotated[Optional[str], typer.Option(help="Base model; by default the one of the training.")]
Dtype = Annotated[
    Optional[str],
    typer.Option(
        help="Of the base model: float32, bfloat16, float16, or auto, that of its files. By default the fastest on this "
        "machine."
    ),
]
Device = Annotated[
    Optional[str], typer.Option(help="For instance cpu or cuda:1. By default a GPU where there is one.")
]
AllowTemplateChange = Annotated[
    bool, typer.Option("--allow-template-change", help="Accept another chat template than that of the training.")
]
AllowOtherWeights = Annotated[
    bool, typer.Option("--allow-other-weights", help="Accept other weights of the base than those of the training.")
]
AllowOtherPrompt = Annotated[
    bool, typer.Option("--allow-other-prompt", help="Accept another prompt than that of the training.")
]
QUERY_FILES = ".txt with one a line, .jsonl, .json, .csv or .parquet."
QueryField = Annotated[
    Optional[str],
    typer.Option(help="Field of the queries' rows; by default query, prompt, question, instruction or messages."),
]
AE = Annotated[Optional[Path], typer.Option(help="Folder of the [AE] adapter; the package ships some.")]
Slot = Annotated[str, typer.Option(help="system: inside the system turn; prefix: in front of the user's turn.")]
KDWeight = Annotated[
    Optional[float], typer.Option(help="lambda of Eq. 4, 0 to 1; the paper has 0.9.", show_default="1.0")
]
Temperature = Annotated[Optional[float], typer.Option(help="tau of Eq. 3; the paper has 2.", show_default="1.0")]
LearningRate = Annotated[Optional[float], typer.Option(help="In units of the start rows' RMS.", show_default="0.05")]
Init = Annotated[
    Optional[str],
    typer.Option(
        help="Where the rows start: neutral (You), prompt (P's first tokens, which can be read from the adapter), "
        "text, random, or auto: neutral for one row, prompt for several.",
        show_default="auto",
    ),
]
InitText = Annotated[Optional[str], typer.Option(help="The text of --init text.")]
MaxSteps = Annotated[Optional[int], typer.Option(min=1, help="Number of steps.", show_default="600")]
MaxAnswerLength = Annotated[
    Optional[int], typer.Option(min=1, help="Longest answer of the teacher, in tokens.", show_default="64")
]
Seed = Annotated[int, typer.Option(help="Of everything that is random.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run; begin where there is none.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in the folder.")]
