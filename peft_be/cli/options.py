"""Options that several commands have, with one meaning and one help text."""

from __future__ import annotations

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
QUERY_FILES = ".txt with one a line, .jsonl, .ndjson, .json, .csv, .tsv or .parquet."
QueryField = Annotated[
    Optional[str],
    typer.Option(
        help="Field of a record that holds the query; by default query, prompt, question, instruction or messages."
    ),
]
Seed = Annotated[int, typer.Option(help="Of everything that is random.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run; begin where there is none.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in the folder.")]
