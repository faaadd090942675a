"""Tables: JSON lines, a JSON list, CSV or Parquet, row by row, each with the place where it stands."""

from __future__ import annotations

import codecs
import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow.parquet import ParquetFile

from ..files import MAX_LINE, capitalised, check_file, check_kind, read_json, read_json_lines, read_lines, shown


TABLE_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")


def read_table(path: str | os.PathLike, what: str, kind: type | None = dict) -> Iterator[tuple[str, Any]]:
    """
    Read a table. The suffix of the file, in upper or lower case, says what it is.

    Args:
        path (`str` or `os.PathLike`):
            `.jsonl` or `.ndjson`: one JSON value a line. `.json`: a list of them, or one object a line. `.csv` or
            `.tsv`: a table whose first line has the names of the columns. `.parquet`: a table.
        what (`str`):
            What the file is, for error messages, such as `"query file"`.
        kind (`type`, *optional*, defaults to `dict`):
            The type that each row of JSON must have; `None` takes any. Rows of tables are dicts.

    Yields:
        `tuple[str, Any]`: where the row stands (`"line 3 of 'queries.jsonl'"`), and the row. Cells of CSV are texts.

    Raises:
        `FileNotFoundError`: there is no such file.
        `ValueError`: the file is of another kind, damaged, no UTF-8 text, or a row is of another type.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in TABLE_SUFFIXES:
        raise ValueError(f"Cannot read the {what} '{path}': its name must end in one of {', '.join(TABLE_SUFFIXES)}.")
    if suffix in (".csv", ".tsv"):
        return _csv_rows(path, what, "\t" if suffix == ".tsv" else ",")
    if suffix == ".parquet":
        return _parquet_rows(path, what)
    if suffix == ".json" and not _has_json_lines(path, what):
        return _json_rows(path, what, kind)
    return read_json_lines(path, what, kind)


def _has_json_lines(path: Path, what: str) -> bool:
    """Whether the first line is an object: many a `.json` file holds JSON lines."""
    with check_file(path, what).open("rb") as file:
        # A list may be a line that is too long to be read as one
        if not file.read(1024).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{"):
            return False
    try:
        json.loads(next(line for line in read_lines(path, what) if line.strip()))
    except (ValueError, RecursionError):
        return False
    return True


def _json_rows(path: Path, what: str, kind: type | None) -> Iterator[tuple[str, Any]]:
    for number, row in enumerate(read_json(path, what, list), start=1):
        where = f"item {number} of '{path}'"
        check_kind(row, where, kind)
        yield where, row


def _csv_rows(path: Path, what: str, delimiter: str) -> Iterator[tuple[str, dict]]:
    # Python's own reader, for pandas and thus `datasets` guess types ("NA" is no text), and shift the cells of rows
    # that are longer than the header
    reader = csv.reader((line + "\n" for line in read_lines(path, what)), delimiter=delimiter, strict=True)
    names, start, limit = None, 1, csv.field_size_limit(MAX_LINE)
    try:
        for cells in reader:
            where, start = f"line {start} of '{path}'", reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue  # spreadsheets write such rows below a table
            if names is None:
                names = [name.strip() for name in cells]
                repeated = next((name for name in names if names.count(name) > 1), None)
                if repeated is not None:
                    raise ValueError(f"The {what} '{path}' has more than one column {shown(repeated)}: rename one.")
                _check_separator(names, delimiter, f"the {what} '{path}'")
                continue
            if len(cells) > len(names):
                raise ValueError(
                    f"{capitalised(where)} has {len(cells)} cells, and the first line names {len(names)} columns: "
                    "put quotes around a text that holds the separator."
                )
            yield where, dict(zip(names, cells))
    except csv.Error as error:
        raise ValueError(f"Line {start} of '{path}' is no row of a table: {error}.") from None
    finally:
        csv.field_size_limit(limit)


def _check_separator(names: list[str], delimiter: str, where: str) -> None:
    """Refuse a table with another separator, whose first line would be the name of one column."""
    for_excel = names[0].casefold().startswith("sep=")
    if for_excel or (len(names) == 1 and any(other in names[0] for other in ";\t|," if other != delimiter)):
        raise ValueError(
            f"The first line of {where} is {shown(delimiter.join(names))} and names no columns: cells of .csv are "
            "separated by commas and those of .tsv by tabs, save it like that."
        )


def _parquet_rows(path: Path, what: str) -> Iterator[tuple[str, dict]]:
    check_file(path, what)
    number = 0
    try:
        with ParquetFile(path) as file:
            names = file.schema_arrow.names
            repeated = next((name for name in names if names.count(name) > 1), None)
            if repeated is not None:
                raise ValueError(f"it has more than one column {shown(repeated)}, rename one")
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number} of '{path}'", row
    except (pyarrow.ArrowException, OSError, ValueError, LookupError, OverflowError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"The {what} '{path}' cannot be read as Parquet: {reason}.") from None
