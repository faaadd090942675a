"""User queries: from files, data sets and lists to one form, a text or a dialogue that ends in the user's turn."""

from __future__ import annotations

import io
import itertools
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset

from ..files import capitalised, is_blank, read_lines, shown, well_formed
from ..prompting.messages import check_query
from .table import TABLE_SUFFIXES, read_table


# The fields of a row that may hold the query. Several with content are ambiguous, but for an instruction with its
# input
QUERY_FIELDS = ("query", "prompt", "question", "instruction", "messages")
INPUT_FIELD = "input"
# What data sets keep next to a query and show to the model with it: a passage, the choices of a test, earlier turns, a
# system text. In any letter case
CONTEXT_FIELDS = (
    *("article", "background", "context", "contexts", "document", "documents", "paragraph", "passage", "support"),
    *("choices", "options", "history", "image", "images", "system", "system_message", "system_prompt"),
)
_HOW = "--query-field (in Python: as_queries(..., field=...))"


def load_queries(path: str | os.PathLike, field: str | None = None) -> list:
    """
    Read queries from a file. Its suffix, in upper or lower case, says what it is.

    Args:
        path (`str` or `os.PathLike`):
            `.txt`: one query a line, without the white space around it; empty lines are passed over. `.jsonl` or
            `.ndjson`: one JSON value a line. `.json`: a list of them, or one object a line. `.csv` or `.tsv`: a table whose
            first line names the columns. `.parquet`: a table. What a record may be, see [`as_queries`].
        field (`str`, *optional*):
            The field or column that holds the query.

    Returns:
        `list`: the queries in file order: texts, or lists of chat messages.

    Raises:
        `FileNotFoundError`: there is no such file.
        `ValueError`: the file is of another kind, damaged or empty, or a row has no query, or several; the sentence
            names the line.
    """
    path = Path(path)
    if path.suffix.lower() == ".txt":
        if field is not None:
            raise ValueError(f"'{path}' has one query a line and no field '{field}': leave out --query-field.")
        queries = _text_queries(path)
    elif path.suffix.lower() in TABLE_SUFFIXES:
        queries = [_query_of(row, field, where) for where, row in read_table(path, "query file", kind=None)]
    else:
        raise ValueError(
            f"Cannot read the query file '{path}': its name must end in .txt for one query a line, or in one of "
            f"{', '.join(TABLE_SUFFIXES)}."
        )
    if not queries:
        raise ValueError(f"The query file '{path}' holds no queries: give one query a line.")
    return queries


def as_queries(source: Iterable, field: str | None = None) -> list:
    """
    Queries in the form in which everything in this package takes them.

    Args:
        source (`Iterable`):
            A [`~datasets.Dataset`], a list or any other iterable of queries: texts, lists of chat messages, or rows
            (dicts). A row has its query under `query`, `prompt`, `question`, `instruction` or `messages`, as a text or
            as a dialogue of user and assistant messages that ends in the user's turn; an `input` is appended to its
            `instruction`.
        field (`str`, *optional*):
            The field of the rows that holds the query.

    Returns:
        `list`: the queries in order: texts, or lists of messages with `role` and `content`.

    Raises:
        `ValueError`: the source is no such thing, or a row has no query, or several; the sentence names the row.

    Example:

        ```python
        >>> from datasets import load_dataset
        >>> from peft_be import as_queries

        >>> queries = as_queries(load_dataset("HuggingFaceH4/ultrachat_200k", split="train_sft[:500]"), field="prompt")
        ```
    """
    _check_source(source)
    source = _without_format(source)
    if isinstance(source, Dataset):
        # Other columns may be large
        known = {field} if field else {*QUERY_FIELDS, INPUT_FIELD}
        columns = [name for name in source.column_names if name in known or (not field and _is_context(name))]
        source = source.select_columns(columns) if columns else source
    return [_query_of(row, field, f"row {number} of the queries") for number, row in enumerate(source, start=1)]


def query_dataset(source: Iterable) -> Dataset:
    """
    Queries as a dataset to train on.

    Args:
        source (`Iterable`):
            What [`as_queries`] takes. Rows may also have an `answer` and a `prompt_name`. Where they have a `query`,
            that is the query, whatever other fields there are.

    Returns:
        [`~datasets.Dataset`]: with the columns `query` and, if they were there, `answer` and `prompt_name`.

    Raises:
        `ValueError`: as in [`as_queries`].
    """
    _check_source(source)
    source = _without_format(source)
    rows = source if isinstance(source, Dataset) else list(source)
    names = rows.column_names if isinstance(rows, Dataset) else _keys(rows)
    columns = {"query": query_column(as_queries(rows, "query" if "query" in names else None))}
    for name in ("answer", "prompt_name"):
        if name in names:
            columns[name] = (
                list(rows[name])
                if isinstance(rows, Dataset)
                else [row.get(name) if isinstance(row, Mapping) else None for row in rows]
            )
    if "answer" in columns:
        columns["answer"] = _checked_answers(columns["answer"])
    return Dataset.from_dict(columns)


def _checked_answers(answers: list) -> list[str | list[int] | None]:
    """Given answers: all texts, or all token ids, with `None` where there is none, as tables write it too."""
    answers = [answer.tolist() if hasattr(answer, "tolist") else answer for answer in answers]
    answers = [None if isinstance(answer, float) and answer != answer else answer for answer in answers]
    kind = next((type(answer) for answer in answers if answer is not None), str)
    for number, answer in enumerate(answers, start=1):
        ids = isinstance(answer, list) and answer and all(type(token_id) is int for token_id in answer)
        if answer is not None and not (type(answer) is kind and (isinstance(answer, str) or ids)):
            raise ValueError(
                f"The answer in row {number} of the queries is {shown(answer)}: answers are texts, or lists of token ids, the "
                "same in all rows, or None where the teacher is to answer."
            )
    return answers


def _keys(rows: list) -> set[str]:
    return set().union(*(row for row in rows if isinstance(row, Mapping)))


def _check_source(source: Any) -> None:
    if isinstance(source, (str, bytes, os.PathLike, io.IOBase)):
        raise ValueError("Queries are a list, not a single text; read a file with peft_be.load_queries(path).")
    if isinstance(source, Mapping):
        raise ValueError(
            f"Queries are a list or one split of a data set, not an object with {_names(source)}: choose one of these."
        )
    if type(source).__name__ == "DataFrame":  # of pandas or polars; to iterate over one gives columns
        raise ValueError("Queries are a list or a Dataset: pass a DataFrame as Dataset.from_pandas(frame).")
    if isinstance(source, (set, frozenset)) or not isinstance(source, Iterable):
        raise ValueError(f"Queries are a list or another iterable with an order, and not a {type(source).__name__}.")


def _without_format(source: Iterable) -> Iterable:
    """A data set whose rows are dicts of Python's types, where its format would make them tensors, arrays or tables."""
    return source.with_format(None) if isinstance(source, (Dataset, IterableDataset)) else source


def query_column(queries: list) -> list:
    """Queries for a column of a dataset, whose cells are of one type: where one is a dialogue, texts become dialogues, too."""
    if all(isinstance(query, str) for query in queries):
        return queries
    return [check_query(query) for query in queries]


def _text_queries(path: Path) -> list:
    numbered = enumerate(read_lines(path, "query file"), start=1)
    lines = [(number, stripped) for number, line in numbered if not _is_empty(stripped := line.strip())]
    if lines and (suffix := _structure([line for _, line in lines])):
        raise ValueError(
            f"The query file '{path}' is not plain text but what belongs into a {suffix} file: rename it, or give one "
            "query a line."
        )
    if len(lines) > 1 and (name := lines[0][1].strip("\"'")).casefold() in QUERY_FIELDS:
        raise ValueError(
            f"The first line of the query file '{path}' is '{name}', which looks like the name of a column: delete the "
            "line, or rename the file to .csv."
        )
    return [_query_of(line, None, f"line {number} of '{path}'") for number, line in lines]


def _structure(lines: list[str]) -> str | None:
    """The suffix that a text of these lines should have, if it plainly is JSON or a table."""
    first = lines[0]
    if first in "[{" or (first[0] == "[" and _is_json("\n".join(lines))):
        return ".json"
    if first[0] == "{" and _is_json(first):
        return ".jsonl"
    for separator, suffix in ((",", ".csv"), (";", ".csv"), ("\t", ".tsv")):
        names = [name.strip(" \"'").casefold() for name in first.split(separator)]
        if len(names) > 1 and set(names) & set(QUERY_FIELDS):
            return suffix
    return None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _query_of(item: Any, field: str | None, where: str) -> str | list[dict[str, str]]:
    """The query in an item of a list, or in a row that stands at `where`."""
    if isinstance(item, Mapping):
        item = _value_of(item, field, where)
    elif field is not None:
        raise ValueError(f"{capitalised(where)} is no object with a field '{field}'.")
    name = f"The query in {where}"
    if not isinstance(item, (str, list, tuple)):
        raise ValueError(f"{name} must be a text or a list of chat messages, and is of type {type(item).__name__}.")
    messages = check_query(item, name)
    if _is_empty(messages[-1]["content"]):
        raise ValueError(f"{name} is empty.")
    if isinstance(item, str):
        return well_formed(item)
    return [{**message, "content": well_formed(message["content"])} for message in messages]


def _value_of(row: Mapping, field: str | None, where: str) -> Any:
    """What stands in the field of a row that holds the query."""
    if field is not None:
        if _is_empty(row.get(field)):
            raise ValueError(f"{capitalised(where)} has nothing in the field '{field}'; it has {_names(row)}.")
        return row[field]
    found = [name for name in QUERY_FIELDS if not _is_empty(row.get(name))]
    if not found:
        if {"role", "content"} <= row.keys():
            raise ValueError(f"{capitalised(where)} is a chat message: put the messages of each dialogue into a list.")
        if empty := [name for name in QUERY_FIELDS if name in row]:
            raise ValueError(
                f"{capitalised(where)} has no query: there is nothing in {', '.join(empty)}. Leave the row out, or name "
                f"another field with {_HOW}."
            )
        raise ValueError(
            f"{capitalised(where)} has no query: it needs one of {', '.join(QUERY_FIELDS)}, and has {_names(row)}. "
            f"Name another field with {_HOW}."
        )
    if not _is_empty(row.get(INPUT_FIELD)):
        # In the form of Alpaca: the instruction says what to do, the input what with
        instruction, given = row.get("instruction"), row[INPUT_FIELD]
        if found == ["instruction"] and isinstance(instruction, str) and isinstance(given, str):
            return f"{instruction}\n\n{given}"
        found.append(INPUT_FIELD)
    if len(found) > 1:
        raise ValueError(
            f"{capitalised(where)} has several fields that may hold the query: {', '.join(found)}. Choose one with "
            f"{_HOW}."
        )
    context = next((name for name, value in row.items() if _is_context(name) and not _is_empty(value)), None)
    if context is not None:
        raise ValueError(
            f"{capitalised(where)} has {shown(context)} next to '{found[0]}', and it would be dropped: write it into the query, or "
            f"say that the query is '{found[0]}' alone with {_HOW}."
        )
    return row[found[0]]


def _is_context(name: Any) -> bool:
    return isinstance(name, str) and name.strip().casefold().replace(" ", "_") in CONTEXT_FIELDS


def _is_empty(value: Any) -> bool:
    """Whether a field has no content: tables fill missing cells with `None` or NaN."""
    if isinstance(value, float):
        return value != value
    return value is None or (isinstance(value, str) and is_blank(value)) or (isinstance(value, list) and not value)


def _names(row: Mapping) -> str:
    names = [shown(name).strip("'\"") for name in itertools.islice(row, 12)]
    return ", ".join(names + ["..."] * (len(row) > 12)) or "nothing"
