"""Options that several commands have, with one meaning and one help text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer


PromptFile = Annotated[
    Path,
    typer.Option(help="The prompt: .txt or .md is a system prompt, .json a list of chat messages, a folder a skill."),
]
Model = Annotated[str, typer.Option(help="smollm2, a folder, a GGUF file, or a Hub id.")]
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
