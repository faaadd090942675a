"""The prompts of a run that compresses many: as objects, and from a manifest."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..data import as_queries, load_queries, read_table
from ..files import capitalised, shown
from ..prompting import load_prompt


MAX_NAME_LENGTH = 128
# What Windows takes for a device, whatever the ending
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10))}
# Keys of a row in a manifest
_NEEDED, _OPTIONAL = ("name", "prompt", "queries"), ("test_queries", "query_field")


@dataclass
class PromptJob:
    """
    A prompt to compress.

    Args:
        name (`str`): its name, and that of its adapter's folder: letters, digits, `.`, `_` and `-`, and nothing that a
            run folder or an operating system keeps for itself.
        prompt (`str` or `list[dict]`): P: a system text, or the chat messages in front of the user's turn.
        queries (`list`): what users may ask; no answers needed. Any form that [`as_queries`] takes; kept as a list.
        test_queries (`list`, *optional*): queries for a later evaluation; their duplicates are not trained on.

    Raises:
        `ValueError`: something that is no query.
    """

    name: str
    prompt: str | list[dict[str, str]]
    queries: list
    test_queries: list | None = None

    def __post_init__(self):
        self.queries = as_queries(self.queries)
        if self.test_queries is not None:
            self.test_queries = as_queries(self.test_queries)


def load_manifest(path: str | os.PathLike) -> tuple[list[PromptJob], dict[str, str]]:
    """
    Read the prompts of a run from a manifest.

    Args:
        path (`str` or `os.PathLike`):
            JSON lines, or rows in another of the formats of [`read_table`]:
            `{"name": ..., "prompt": ..., "queries": ...}`, and optionally `"test_queries"` and `"query_field"`, the
            field of the queries' rows. All are texts; the prompt and the queries are paths, relative to the manifest's
            folder.

    Returns:
        `tuple[list[PromptJob], dict[str, str]]`: the jobs, and by name what is wrong with those whose files cannot be
            used.

    Raises:
        `FileNotFoundError`: there is no manifest.
        `ValueError`: a row is not such an object, a name is unusable or repeated, or there is no row.
    """
    path, rows = Path(path), []
    for where, row in read_table(path, "manifest"):
        row = {key: value for key, value in row.items() if value not in (None, "")}  # cells of a table may be empty
        _check_row(row, capitalised(where))
        rows.append(row)
    try:
        check_job_names([row["name"] for row in rows])
    except ValueError as error:
        raise ValueError(f"In the manifest '{path}': {error}") from None
    jobs, errors = [], {}
    for row in rows:
        try:
            field, folder = row.get("query_field"), path.parent
            files = {key: load_queries(folder / row[key], field) for key in ("queries", "test_queries") if key in row}
            jobs.append(PromptJob(row["name"], load_prompt(folder / row["prompt"]), **files))
        except (ValueError, OSError) as error:
            errors[row["name"]] = str(error)
    return jobs, errors


def _check_row(row: dict, where: str) -> None:
    """Raises a `ValueError` for a row of a manifest with a key too many or too few, or a value that is no text."""
    unknown = [key for key in row if key not in _NEEDED + _OPTIONAL]
    missing = [key for key in _NEEDED if key not in row]
    no_text = [key for key, value in row.items() if not isinstance(value, str)]
    if unknown:
        fault = f"has the unknown {'keys' if len(unknown) > 1 else 'key'} {', '.join(map(shown, unknown))}"
    elif missing:
        fault = f"lacks {', '.join(missing)}"
    elif no_text:
        fault = f"has no text as {', '.join(no_text)}"
    else:
        return
    raise ValueError(
        f"{where} {fault}: a prompt is an object with {', '.join(_NEEDED)} and optionally {' and '.join(_OPTIONAL)}, all "
        "of them texts. Settings hold for all prompts: give them as options of the command."
    )


def check_job_names(names: list[str]) -> None:
    """Raises a `ValueError` if there are no names, or one is repeated or cannot be that of a folder in a run's."""
    if not names:
        raise ValueError("There are no prompts to compress.")
    for name in names:
        reason = _unusable(name)
        if reason:
            raise ValueError(f"{shown(name)} cannot name a prompt's folder: {reason}.")
    # On many file systems, names that differ in letter case only are one folder
    spellings: dict[str, list[str]] = {}
    for name in names:
        spellings.setdefault(name.casefold(), []).append(name)
    repeated = sorted({name for same in spellings.values() if len(same) > 1 for name in same})
    if repeated:
        raise ValueError(
            f"Each prompt needs a name of its own, and another letter case does not make one; more than one is called "
            f"{', '.join(map(shown, repeated))}."
        )


def _unusable(name: str) -> str | None:
    """Why a name cannot be a folder in a run's, next to what the run keeps there, on every file system; `None` if it can."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        return "use letters, digits, '.', '_' and '-', and begin with a letter or a digit"
    stem, _, rest = name.casefold().partition(".")
    if stem == "training" and rest in ("", "json", "part"):
        return "the run keeps its own files under it"
    if name.endswith("."):
        return "it ends in a dot, which some file systems leave out"
    if stem in _RESERVED:
        return "it is reserved on some systems"
    if len(name) > MAX_NAME_LENGTH:
        return f"it has {len(name)} characters, and {MAX_NAME_LENGTH} are the most"
    return None
