"""Rules that answers follow or break."""

import json
import re
from pathlib import Path

import pytest

from peft_be.data import load_queries, query_key
from peft_be.evaluation.rules import load_rules, rule_scores
from peft_be.prompting import load_prompt


FERNWAY = Path(__file__).parents[2] / "examples" / "fernway"


def test_shares_are_counted_for_each_rule_and_for_all_of_them():
    rules = {"greets": re.compile("^Hello"), "says goodbye": re.compile("Goodbye!$")}
    answers = [
        {"full": "Hello. Goodbye!", "be": "Hello. Goodbye! \n", "no_prompt": "Hi."},
        {"full": "Hello there. Goodbye!", "be": "Hello.", "no_prompt": "Hello."},
        {"full": "Hello. Goodbye!", "be": "Oh. Goodbye!", "no_prompt": ""},
        {"full": "Oh. Hello.", "be": "\nHello. Goodbye!", "no_prompt": "Goodbye! See you."},
    ]
    assert rule_scores(rules, answers) == {
        "greets": {"full": 0.75, "no_prompt": 0.25, "be": 0.75},
        "says goodbye": {"full": 0.75, "no_prompt": 0.0, "be": 0.75},
        "all rules": {"full": 0.75, "no_prompt": 0.0, "be": 0.5},
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "There are no rules in"),
        ([], "must be an object, and is a list"),
        ({"greets": 3}, "The rule 'greets' in .* must be a regular expression, written as a text"),
        ({"greets": ""}, "must be a regular expression"),
        ({"greets": "(Hello"}, r"The rule 'greets' in .* is not a regular expression: missing \)"),
        ({"all rules": "Hello"}, "The rule 'all rules' in .* needs another name"),
    ],
)
def test_files_that_are_refused(tmp_path, content, message):
    (tmp_path / "rules.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        load_rules(tmp_path / "rules.json")
    with pytest.raises(FileNotFoundError, match="There is no file of rules"):
        load_rules(tmp_path / "missing.json")


def test_the_worked_examples_of_the_demo_follow_its_rules():
    prompt, rules = load_prompt(FERNWAY / "prompt.json"), load_rules(FERNWAY / "rules.json")
    answers = [message["content"] for message in prompt if message["role"] == "assistant"]
    assert rule_scores(rules, [dict.fromkeys(("full", "no_prompt", "be"), answer) for answer in answers])["all rules"] == {
        "full": 1.0, "no_prompt": 1.0, "be": 1.0
    }  # fmt: skip


def test_the_demos_queries_are_disjoint():
    train, test = ({query_key(q) for q in load_queries(FERNWAY / f"{name}_queries.txt")} for name in ("train", "test"))
    asked = {query_key(m["content"]) for m in load_prompt(FERNWAY / "prompt.json") if m["role"] == "user"}
    assert not train & test and not (train | test) & asked
