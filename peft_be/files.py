"""
Text, JSON and JSON lines: the one reader for every file that a user gives or that a run left behind.

Files come from editors, spreadsheets and scrapers. What is harmless is taken as it is: a byte-order mark, Windows line ends, a
line separator inside a JSON string. What would change a text without anyone noticing ends in a sentence that names the file
and the line.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any


# What JSON escapes can spell and no encoding can write: half of a pair of surrogates
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_JSON_TYPES = {dict: "an object", list: "a list", str: "a text", int: "a number", float: "a number", bool: "a boolean"}


def read_text(path: str | os.PathLike, what: str) -> str:
    """
    Read a UTF-8 text file. A byte-order mark is not part of the text, and lines end in `\\n`.

    Args:
        path (`str` or `os.PathLike`): the file.
        what (`str`): what the file is, for error messages, such as `"query file"`.

    Raises:
        `FileNotFoundError`: there is no such file.
        `ValueError`: it is a folder, or no UTF-8 text.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"The {what} '{path}' is a folder: give a file.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no {what} '{path}': check the path.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"The {what} '{path}' is not UTF-8 text (byte {error.start}): save it as UTF-8.") from None
    if "\0" in text:
        raise ValueError(f"The {what} '{path}' holds NUL characters, so it is no text file: save it as UTF-8.")
    return text


def parse_json(text: str, where: str, kind: type | None = None) -> Any:
    """
    Parse JSON. Lone surrogates, which no tokenizer and no file takes, become U+FFFD.

    Args:
        text (`str`): the JSON.
        where (`str`): where it stands, for error messages, such as `"line 3 of 'queries.jsonl'"`.
        kind (`type`, *optional*): the type that the value must have, such as `dict`.

    Raises:
        `ValueError`: it is not JSON, or of another type.
    """
    where = where[0].upper() + where[1:]
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply to be read.") from None
    except ValueError as error:  # not JSON, or a number of thousands of digits
        raise ValueError(f"{where} is not JSON: {error}.") from None
    if kind is not None and not isinstance(value, kind):
        found = "null" if value is None else _JSON_TYPES[type(value)]
        raise ValueError(f"{where} must be {_JSON_TYPES[kind]}, and is {found}.")
    return _well_formed(value) if "\\u" in text else value


def read_json(path: str | os.PathLike, what: str, kind: type | None = None) -> Any:
    """Read a JSON file: [`read_text`], then [`parse_json`]; the arguments and errors are theirs."""
    return parse_json(read_text(path, what), f"the {what} '{path}'", kind)


def read_json_lines(path: str | os.PathLike, what: str) -> Iterator[tuple[str, dict]]:
    """
    Read a file with one JSON object a line. Empty lines are passed over.

    Args:
        path (`str` or `os.PathLike`): the file.
        what (`str`): what the file is, for error messages.

    Yields:
        `tuple[str, dict]`: where the object stands (`"line 3 of 'queries.jsonl'"`), and the object.

    Raises:
        `FileNotFoundError`: there is no such file.
        `ValueError`: the file is no UTF-8 text, or a line is no JSON object.
    """
    # `splitlines` would break at U+2028, U+0085 or a form feed, which may stand inside a JSON string
    for number, line in enumerate(read_text(path, what).split("\n"), start=1):
        if line.strip():
            where = f"line {number} of '{path}'"
            yield where, parse_json(line, where, dict)


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file that appears under its name only when it is complete."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(part, path)


def _well_formed(value: Any) -> Any:
    if isinstance(value, str):
        return _LONE_SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_well_formed(item) for item in value]
    if isinstance(value, dict):
        return {_well_formed(key): _well_formed(item) for key, item in value.items()}
    return value
