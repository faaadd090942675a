"""A file of checks: what it may say, and what is refused with a sentence that names the check."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from ...checks import Range, check_number
from ...files import capitalised, read_json, read_text, shown
from .check import AnswerCheck
from .kinds import IGNORE_CASE, OTHER_KINDS, TEXT_KINDS, compiled
from .scores import ALL_CHECKS


WHAT = "file of checks"
# What a check may have besides its kinds
SETTINGS = ("when", "ignore_case", "min_pass_rate")
PASS_RATES = Range(above=0, high=1)


def load_checks(source: str | os.PathLike | dict[str, Any]) -> list[AnswerCheck]:
    """
    Read checks of answers. Each has a name, and one kind of check or several, all of which an answer must pass; a plain text is
    a regular expression. docs/evaluation.md has the kinds.

    Args:
        source (`str`, `os.PathLike` or `dict`):
            a `.yaml`, `.yml` or `.json` file, or what it would hold. Besides kinds, a check may have `when`, a regular expression that
            limits it to the queries in which it is found, upper and lower case alike; `ignore_case`, whether they are alike in
            the check (by default only in `never_says`); and `min_pass_rate`, see [`AnswerCheck`].

    Returns:
        `list[AnswerCheck]`: the checks in their order.

    Raises:
        `FileNotFoundError`: there is no such file.
        `ImportError`: a check needs a package that is not installed: `json_schema` jsonschema, `language` langdetect.
        `ValueError`: the file is of another kind or damaged, has no checks, or has one that is not as described.

    Example:

        ```python
        >>> from peft_be import load_checks

        >>> checks = load_checks({"says goodbye": {"ends_with": "Happy growing!"}, "short": {"sentences": {"max": 4}}})
        ```
    """
    if isinstance(source, dict):
        content, of = source, ""
    else:
        content, of = _read(Path(source)), f" in '{source}'"
    if not isinstance(content, dict) or not content:
        raise ValueError(f"There are no checks{of}: give names, each with what an answer must be.")
    return [_check(name, rules, of) for name, rules in content.items()]


def _read(path: Path) -> Any:
    if path.suffix.lower() == ".json":
        return read_json(path, WHAT, dict)
    if path.suffix.lower() not in (".yaml", ".yml"):
        raise ValueError(f"Cannot read the {WHAT} '{path}': its name must end in .yaml, .yml or .json.")
    text = read_text(path, WHAT)
    try:
        return yaml.load(text, _TextKeyLoader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that there is not
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
        line = f" (line {mark.line + 1})" if mark else ""
        # In double quotes a backslash begins an escape
        hint = " Write regular expressions in single quotes." if "escape" in problem else ""
        raise ValueError(f"The {WHAT} '{path}' cannot be read as YAML{line}: {problem}.{hint}") from None
    except RecursionError:
        raise ValueError(f"The {WHAT} '{path}' is nested too deeply to be read.") from None


def _check(name: Any, rules: Any, of: str) -> AnswerCheck:
    where = f"the check {shown(name)}{of}"
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{capitalised(where)} needs a text as its name: put quotes around it.")
    if name == ALL_CHECKS:
        raise ValueError(f"{capitalised(where)} needs another name: the figures of all checks have this one.")
    rules = {"regex": rules} if isinstance(rules, str) else rules
    if not isinstance(rules, dict):
        raise ValueError(f"{capitalised(where)} must say what an answer must be, as in {{contains: 30 days}}.")
    kinds = [key for key in rules if key not in SETTINGS]
    for key in kinds:
        if key not in TEXT_KINDS and key not in OTHER_KINDS:
            raise ValueError(f"{capitalised(where)} has {shown(key)}, which is no kind of check: {_meant(key)}")
    if not kinds:
        raise ValueError(f"{capitalised(where)} checks nothing: give it a kind of check, such as contains.")
    ignore_case = rules.get("ignore_case")
    if not isinstance(ignore_case, (bool, type(None))):
        raise ValueError(f"'ignore_case' of {where} must be true or false, got {shown(ignore_case)}.")
    if ignore_case is not None and not set(kinds) & set(TEXT_KINDS):
        raise ValueError(f"'ignore_case' of {where} does nothing: {', '.join(kinds)} reads no case. Leave it out.")
    if (min_pass_rate := rules.get("min_pass_rate")) is not None:
        check_number(f"'min_pass_rate' of {where}", min_pass_rate, PASS_RATES)
    when = None
    if "when" in rules:
        when = _make("when", where, compiled, rules["when"], True)
    tests = []
    for key in kinds:
        if key in TEXT_KINDS:
            alike = key in IGNORE_CASE if ignore_case is None else ignore_case
            tests.append(_make(key, where, TEXT_KINDS[key], rules[key], alike))
        else:
            tests.append(_make(key, where, OTHER_KINDS[key], rules[key]))
    return AnswerCheck(name, tuple(tests), when, min_pass_rate, json.dumps(rules, sort_keys=True, default=str))


def _make(key: str, where: str, make: Callable, *given) -> Any:
    try:
        return make(*given)
    except (ValueError, ImportError) as error:
        raise type(error)(f"'{key}' of {where} {error}") from None


def _meant(key: Any) -> str:
    known = [*TEXT_KINDS, *OTHER_KINDS, *SETTINGS]
    close = difflib.get_close_matches(str(key).strip().lower(), known, n=1)
    return f"did you mean '{close[0]}'?" if close else f"there are {', '.join(known)}."


class _TextKeyLoader(yaml.SafeLoader):
    """
    Refuses the keys that YAML changes without a word: of one that is there twice it takes the last, and `on` it reads as true.
    """

    def construct_mapping(self, node, deep=False):
        seen, problem = set(), None
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.tag != "tag:yaml.org,2002:str":
                problem = f"the key {shown(key.value)} is not read as text: put quotes around it"
            elif key.value in seen:
                problem = f"the key {shown(key.value)} is there twice"
            if problem:
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)
