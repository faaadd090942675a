"""Rules that an answer follows or breaks, such as a greeting that the prompt asks for."""

from __future__ import annotations

import os
import re

from ..files import read_json


ANSWERS = ("full", "no_prompt", "be")
ALL_RULES = "all rules"


def load_rules(path: str | os.PathLike) -> dict[str, re.Pattern]:
    """
    Read rules from a JSON file, an object of names and regular expressions: `{"ends with the farewell": "Goodbye!$"}`. An answer
    follows a rule if the expression is found in it (`re.search`).

    Args:
        path (`str` or `os.PathLike`): the file.

    Returns:
        `dict[str, re.Pattern]`: the compiled expressions by their names.

    Raises:
        `FileNotFoundError`: there is no such file.
        `ValueError`: it is no such object, has no rules, or has an expression that Python cannot compile.
    """
    rules = {}
    for name, pattern in read_json(path, "file of rules", dict).items():
        if not isinstance(pattern, str) or not pattern:
            raise ValueError(f"The rule '{name}' in '{path}' must be a regular expression, written as a text.")
        if name == ALL_RULES:
            raise ValueError(
                f"The rule '{name}' in '{path}' needs another name: the scores of all rules have this one."
            )
        try:
            rules[name] = re.compile(pattern)
        except re.error as error:
            raise ValueError(f"The rule '{name}' in '{path}' is not a regular expression: {error}.") from None
    if not rules:
        raise ValueError(f"There are no rules in '{path}': give an object of names and regular expressions.")
    return rules


def rule_scores(rules: dict[str, re.Pattern], answers: list[dict]) -> dict[str, dict[str, float]]:
    """
    The share of answers that follow each rule.

    Args:
        rules (`dict[str, re.Pattern]`): as from [`load_rules`].
        answers (`list[dict]`): the texts `full`, `no_prompt` and `be` of each query, as from [`evaluate_fidelity`]. White space at
            their ends is not looked at.

    Returns:
        `dict[str, dict[str, float]]`: for each rule, and for `all rules` together, the shares of `full`, `no_prompt` and `be`.
    """
    scores = {name: {} for name in (*rules, ALL_RULES)}
    for which in ANSWERS:
        followed = [[bool(rule.search(answer[which].strip())) for rule in rules.values()] for answer in answers]
        for name, column in zip(rules, zip(*followed)):
            scores[name][which] = sum(column) / len(answers)
        scores[ALL_RULES][which] = sum(map(all, followed)) / len(answers)
    return scores
