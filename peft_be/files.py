"""
Text, JSON and JSON lines: the one reader for every file that a user gives or that a run has left.

Files come from editors, spreadsheets and scrapers. What is harmless is taken as it is: a byte-order mark, Windows line
ends, a line separator inside a JSON string. What would change a text without anyone noticing ends in a sentence that
names the file and the line.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


_BYTE_ORDER_MARK = "\ufeff"
# What JSON escapes can spell and no encoding can write: half of a pair of surrogates
_SURROGATE = re.compile("[\ud800-\udfff]")
# What nobody sees, such as a byte-order mark, a zero-width space or a soft hyphen. The joiners U+200C and U+200D are
# not among them: they tell words apart in some scripts
INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]")
# The limits of a text that is read at once and of a line, in bytes: far more than a model takes, and less than memory
MAX_SIZE, MAX_LINE = 2**28, 2**26
_JSON_TYPES = {dict: "an object", list: "a list", str: "a text", int: "a number", float: "a number", bool: "a boolean"}


def read_text(path: str | os.PathLike, what: str) -> str:
    """
    Read a UTF-8 text file. A byte-order mark is not part of the text, and lines end in `\\n`.

    Args:
        path (`str` or `os.PathLike`): the file.
        what (`str`): what the file is, for error messages, such as `"query file"`.

    Raises:
        `FileNotFoundError`: there is no such file.
        `ValueError`: it is a folder, no UTF-8 text, or larger than 256 MB.
    """
    path = check_file(path, what)
    if (size := path.stat().st_size) > MAX_SIZE:
        raise ValueError(f"The {what} '{path}' has {size:,} bytes, and at most {MAX_SIZE:,} can be read: split it.")
    try:
        text = path.read_text(encoding="utf-8").lstrip(_BYTE_ORDER_MARK)
    except UnicodeDecodeError as error:
        raise ValueError(f"The {what} '{path}' is not UTF-8 text (byte {error.start}): save it as UTF-8.") from None
    if "\0" in text:
        raise ValueError(f"The {what} '{path}' holds NUL characters, so it is no text file: save it as UTF-8.")
    return text


def read_lines(path: str | os.PathLike, what: str) -> Iterator[str]:
    """
    Read a UTF-8 text file line by line, so that a large one does not have to fit in memory. Only `\\n`, `\\r\\n` and
    `\\r` end a line: U+2028, U+0085 and form feeds, at which `str.splitlines` would break it, may be a part of the
    text. A byte-order mark is left out, also where joined files have one in the middle.

    The arguments and errors are those of [`read_text`]; errors name the line, which may have up to 64 MB.
    """
    path, number = check_file(path, what), 0
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE + 1):
            where = f"Line {number + 1} of the {what} '{path}'"
            if len(line) > MAX_LINE:
                raise ValueError(f"{where} has more than {MAX_LINE:,} bytes: that is more than can be read.")
            try:
                text = line.decode("utf-8").removesuffix("\n").removesuffix("\r")
            except UnicodeDecodeError:
                raise ValueError(f"{where} is not UTF-8 text: save the file as UTF-8.") from None
            if "\0" in text:
                raise ValueError(f"{where} holds NUL characters, so it is no text file: save it as UTF-8.")
            for part in text.split("\r"):
                number += 1
                yield part.lstrip(_BYTE_ORDER_MARK)


def check_file(path: str | os.PathLike, what: str) -> Path:
    """Raise the errors of [`read_text`] for a path that is no file. Returns the path."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"The {what} '{path}' is a folder: give a file.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no {what} '{path}': check the path.")
    return path


def well_formed(text: str) -> str:
    """The text without lone surrogates, which no tokenizer and no file takes: they become U+FFFD."""
    if not _SURROGATE.search(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def is_blank(text: str) -> bool:
    """Whether there is nothing to see in a text."""
    return not INVISIBLE.sub("", text).replace("\u200c", "").replace("\u200d", "").strip()


def parse_json(text: str, where: str, kind: type | None = None) -> Any:
    """
    Parse JSON. Lone surrogates become U+FFFD, see [`well_formed`].

    Args:
        text (`str`): the JSON.
        where (`str`): where it stands, for error messages, such as `"line 3 of 'queries.jsonl'"`.
        kind (`type`, *optional*): the type that the value must have, such as `dict`.

    Raises:
        `ValueError`: it is not JSON, an object has a key twice, or the value is of another type.
    """
    place = capitalised(where)
    try:
        value = json.loads(text, object_pairs_hook=_distinct)
    except _RepeatedKey as error:
        raise ValueError(f"{place} has the key {error} twice: which value is meant is not clear.") from None
    except RecursionError:
        raise ValueError(f"{place} is nested too deeply to be read.") from None
    except ValueError as error:  # not JSON, or a number of thousands of digits
        raise ValueError(f"{place} is not JSON: {error}.") from None
    check_kind(value, where, kind)
    return _well_formed(value) if "\\u" in text else value


def check_kind(value: Any, where: str, kind: type | None) -> None:
    """Raise a `ValueError` if a value of JSON is not of the type `kind`; `None` takes any."""
    if kind is not None and not isinstance(value, kind):
        found = "null" if value is None else _JSON_TYPES[type(value)]
        raise ValueError(f"{capitalised(where)} must be {_JSON_TYPES[kind]}, and is {found}.")


def read_json(path: str | os.PathLike, what: str, kind: type | None = None) -> Any:
    """Read a JSON file: [`read_text`], then [`parse_json`]; the arguments and errors are theirs."""
    return parse_json(read_text(path, what), f"the {what} '{path}'", kind)


def read_json_lines(path: str | os.PathLike, what: str, kind: type | None = dict) -> Iterator[tuple[str, Any]]:
    """
    Read a file with one JSON value a line. Empty lines are passed over.

    Args:
        path (`str` or `os.PathLike`): the file.
        what (`str`): what the file is, for error messages.
        kind (`type`, *optional*, defaults to `dict`): the type that each value must have; `None` takes any.

    Yields:
        `tuple[str, Any]`: where the value stands (`"line 3 of 'queries.jsonl'"`), and the value.

    Raises:
        `FileNotFoundError`: there is no such file.
        `ValueError`: the file is no UTF-8 text, or a line is no such value.
    """
    for number, line in enumerate(read_lines(path, what), start=1):
        if line.strip():
            where = f"line {number} of '{path}'"
            yield where, parse_json(line, where, kind)


def capitalised(where: str) -> str:
    """A place in a file (`"line 3 of 'queries.jsonl'"`) as the start of a sentence."""
    return where[0].upper() + where[1:]


def shown(value: Any) -> str:
    """
    A value of a file in an error message: control characters are escaped, and a long one is cut after 60 characters.
    """
    try:
        text = repr(value)
    except ValueError:  # more digits than Python writes
        text = "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:60]}..."


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file that appears under its name only when it is complete."""
    _write_whole(path, json.dumps(content, indent=2) + "\n")


def write_json_lines(path: Path, records: Iterable[dict]) -> None:
    """Write one JSON object a line, as [`read_json_lines`] reads them; the file appears under its name when it is complete."""
    _write_whole(path, "".join(json.dumps(record) + "\n" for record in records))


def _write_whole(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def read_records(path: Path) -> list[dict]:
    """The records of [`append_record`]. One that was cut off while it was written is left out."""
    records = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def append_record(path: Path, record: dict) -> None:
    """Add a line of JSON to a file; one that was cut off in front of it is ended first."""
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.write(b"\n")
        file.write(json.dumps(record).encode() + b"\n")


def os_reason(error: Exception) -> str:
    """Why the system could not write a file. safetensors has it in the middle of an error of its own."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).split("I/O error: ")[-1].partition(" (os error")[0]


class _RepeatedKey(Exception):
    pass


def _distinct(pairs: list[tuple[str, Any]]) -> dict:
    """The object of a JSON text, where `json` would take the last of several values of a key without a word."""
    value: dict = {}
    for key, item in pairs:
        if key in value:
            raise _RepeatedKey(shown(key))
        value[key] = item
    return value


def _well_formed(value: Any) -> Any:
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, list):
        return [_well_formed(item) for item in value]
    if isinstance(value, dict):
        return {well_formed(key): _well_formed(item) for key, item in value.items()}
    return value


def cache_dir() -> Path:
    """Folder for converted weights and other reusable work: `$PEFT_BE_CACHE`, or `~/.cache/peft_be`."""
    return Path(os.environ.get("PEFT_BE_CACHE") or Path.home() / ".cache" / "peft_be")
