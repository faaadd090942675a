"""Checks of answers: what each kind passes, what a file may say, and which checks are lost."""

import json
import re
import sys
from pathlib import Path

import pytest

from peft_be import AnswerCheck, check_scores, load_checks
from peft_be.data import load_queries, query_key
from peft_be.evaluation.answer_checks import MIN_LOST, check_applies, failed_checks
from peft_be.evaluation.answer_checks.counting import count_sentences, count_words
from peft_be.evaluation.answer_checks.file import SETTINGS
from peft_be.evaluation.answer_checks.kinds import OTHER_KINDS, TEXT_KINDS
from peft_be.evaluation.answer_checks.scores import mcnemar_p
from peft_be.prompting import load_prompt


ROOT = Path(__file__).parents[2]
FERNWAY = ROOT / "examples" / "fernway"
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "born": {"$ref": "#/$defs/day"}},
    "required": ["name"],
    "additionalProperties": False,
    "$defs": {"day": {"type": "string", "format": "date"}},
}


def passes(kinds, answer):
    (check,) = load_checks({"it": kinds})
    return check.passes(answer)


@pytest.mark.parametrize(
    ("kinds", "passing", "failing"),
    [
        ("^Hello", ["Hello.", " \nHello there"], ["Oh, Hello", "hello"]),
        ({"regex": r"\d+ days$"}, ["in 30 days\n"], ["30 days from now"]),
        ({"regex": "days", "ignore_case": True}, ["DAYS"], ["weeks"]),
        ({"never_regex": r"\bAI\b"}, ["I said it", "ai"], ["I am an AI."]),
        ({"contains": "30 days"}, ["within 30 days."], ["30 Days", "thirty days"]),
        ({"contains": "can't"}, ["We can\u2019t", "We can't"], ["We can"]),
        ({"contains_any": ["yes", "no"]}, ["yes", "or no"], ["Yes"]),
        ({"contains_all": ["name", "age"]}, ["age and name"], ["name"]),
        ({"never_says": "language model"}, ["A model of a language"], ["a Language Model", "language models"]),
        ({"never_says": ["an AI", "can't"], "ignore_case": False}, ["AN AI"], ["I can\u2019t", "an AI"]),
        ({"starts_with": "Hello from Fernway!"}, ["  Hello from Fernway! Yes."], ["Well. Hello from Fernway!"]),
        ({"starts_with": ["Arr", "Ahoy"]}, ["Arr, aye", "Ahoy"], ["Aye"]),
        ({"ends_with": "Happy growing!"}, ["Yes. Happy growing! \n"], ["Happy growing! Bye."]),
        ({"ends_with": "?", "ignore_case": True}, ["Why?"], ["Why."]),
        ({"one_of": ["refund", "other"]}, ["refund\n"], ["refund.", "Refund", "a refund"]),
        ({"one_of": ["yes", "no"], "ignore_case": True}, ["YES"], ["yes!"]),
        ({"words": {"min": 2, "max": 3}}, ["one two", "one - two three", "你好"], ["one", "one two three four", "", "你好世界"]),
        ({"never_regex": "^(?!.*days)"}, ["in days"], ["weeks", ""]),
        ({"contains": "30 days\n"}, ["30 days."], ["30"]),  # a block of YAML
        ({"sentences": {"max": 1}}, ["One.", "One!", "no end"], ["One. Two.", "One\nTwo"]),
        ({"characters": {"max": 3}}, [" abc "], ["abcd"]),
        ({"json": True}, ['{"a": 1}', " [1, 2]\n", '"text"'], ["```json\n{}\n```", "{'a': 1}", "NaN", "", "[" * 100_000]),
        (
            {"json_schema": PERSON},
            ['{"name": "Ada"}', '{"name": "Ada", "born": "1815-12-10"}'],
            ['{"name": 1}', '{"name": "Ada", "born": "then"}', '{"name": "Ada", "age": 36}', "[]", "Ada"],
        ),
        (
            {"language": "en"},
            ["The weather is nice today, and we are going to the sea."],
            ["Das Wetter ist heute schön, und wir fahren ans Meer.", "12 + 30", ""],
        ),
        ({"language": "zh"}, ["今天天气很好，我们去海边散步。"], ["The weather is nice today."]),
        # All kinds of a check
        ({"starts_with": "Arr", "sentences": {"max": 1}}, ["Arr, aye."], ["Arr. Aye.", "Aye."]),
    ],
)  # fmt: skip
def test_what_each_kind_passes(kinds, passing, failing):
    assert [answer for answer in passing if not passes(kinds, answer)] == []
    assert [answer for answer in failing if passes(kinds, answer)] == []


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", 0),
        ("\n---\n\U0001f33f", 0),
        ("Yes", 1),
        ('He said "No." Then he left. Why?!', 3),
        ("Take a pot, e.g. a clay one, of 3.5 litres. Ask Dr. Green.", 2),
        ("Do this:\n1. Water it.\n2. Wait... Then look.", 4),
        ("**Bold.** Then plain.", 2),
        ("你好。今天很好！谢谢", 3),
    ],
)
def test_sentences(text, sentences):
    assert count_sentences(text) == sentences


def test_words():
    assert count_words("well-known - it's 3 \u2013 five") == 4
    assert count_words("用 iPhone15 手机, 好吗？") == 6


def test_a_text_language_is_the_same_each_time():
    # Short enough for langdetect to waver
    answers = ["Arr, aye!", "Ja, no, si.", "Hello Fernway"]
    (check,) = load_checks({"it": {"language": "en"}})
    assert len({tuple(map(check.passes, answers)) for _ in range(5)}) == 1


@pytest.mark.parametrize(
    ("checks", "message"),
    [
        ({}, "There are no checks: give names"),
        ({3: "a"}, "The check 3 needs a text as its name: put quotes around it"),
        ({"all checks": "a"}, "The check 'all checks' needs another name"),
        ({"it": ["a"]}, "The check 'it' must say what an answer must be"),
        ({"it": {}}, "The check 'it' checks nothing"),
        ({"it": {"when": "a"}}, "The check 'it' checks nothing"),
        ({"it": {"start_with": "a"}}, "The check 'it' has 'start_with', which is no kind of check: did you mean 'starts_with'"),
        ({"it": {"never says": "a"}}, "did you mean 'never_says'"),
        ({"it": {"xyz": "a"}}, "there are contains, contains_any"),
        ({"it": {"contains": 3}}, "'contains' of the check 'it' must be a text or a list of texts, got 3: put quotes"),
        ({"it": {"contains": ["a", "b"]}}, "must be one text: contains_any and contains_all"),
        ({"it": {"one_of": [True, False]}}, "'one_of' of the check 'it' must be a text or a list of texts, got True"),
        ({"it": {"one_of": []}}, "is an empty list"),
        ({"it": {"never_says": " "}}, "'never_says' of the check 'it' has an empty text"),
        ({"it": ""}, "'regex' of the check 'it' must be a regular expression"),
        ({"it": "(Hello"}, r"'regex' of the check 'it' is not a regular expression: missing \)"),
        ({"it": "refund|send back|"}, "'regex' of the check 'it' is found in every text, for it may match nothing at all"),
        ({"it": {"contains": "a", "when": ".*"}}, r"'when' of the check 'it' is found in every text, .*: '\.\*'"),
        ({"it": {"never_regex": "(?i)(sorry)?"}}, "is found in every text"),
        ({"it": {"never_says": ["an AI", " AI "]}}, "white space at an end of ' AI ', which is not compared"),
        ({"it": {"words": {"min": 0}}}, "'words' of the check 'it' has a min of 0, which every answer has"),
        ({"it": {"never_regex": "\bAI\b"}}, "holds a control character: double the backslashes"),
        ({"it": {"contains": "a", "when": "("}}, "'when' of the check 'it' is not a regular expression"),
        ({"it": {"contains": "a", "ignore_case": "yes"}}, "'ignore_case' of the check 'it' must be true or false"),
        ({"it": {"words": {"max": 3}, "ignore_case": True}}, "'ignore_case' of the check 'it' does nothing"),
        ({"it": {"contains": "a", "min_pass_rate": 95}}, "'min_pass_rate' of the check 'it' must be above 0 and at most 1"),
        ({"it": {"words": 3}}, "'words' of the check 'it' takes min, max or both"),
        ({"it": {"words": {"maximum": 3}}}, "takes min, max or both"),
        ({"it": {"words": {"max": "3"}}}, "must have a whole number as its max, got '3'"),
        ({"it": {"words": {"min": 3, "max": 2}}}, "has a min of 3 above its max of 2"),
        ({"it": {"json": False}}, "'json' of the check 'it' must be true"),
        ({"it": {"json_schema": "person.json"}}, "must be a JSON schema, written out"),
        ({"it": {"json_schema": {"type": "text"}}}, "'json_schema' of the check 'it' is not a JSON schema: 'text'"),
        ({"it": {"json_schema": {"$ref": "#/nowhere"}}}, "refers to '#/nowhere', which is not in the schema"),
        ({"it": {"json_schema": {"items": [{"$ref": "https://example.org/a"}]}}}, "is not a JSON schema"),
        ({"it": {"json_schema": {"items": {"$ref": "https://example.org/a"}}}}, "which is not in the schema"),
        ({"it": {"language": False}}, "'language' of the check 'it' must be the code of a language, got False: put quotes"),
        ({"it": {"language": "english"}}, "must be one of af, ar, .* got 'english'"),
    ],
)  # fmt: skip
def test_checks_that_are_refused(checks, message):
    with pytest.raises(ValueError, match=message):
        load_checks(checks)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("checks.yaml", "", "There are no checks in '.*checks.yaml'"),
        ("checks.yaml", "- a\n- b\n", "There are no checks in"),
        ("checks.yaml", 'it:\n  regex: "\\d+"\n', r"cannot be read as YAML \(line 2\): .*escape.*single quotes"),
        ("checks.yaml", "it: a\nand: b: c\n", r"cannot be read as YAML \(line 2\)"),
        ("checks.yaml", "it: a\nit: b\n", r"\(line 2\): the key 'it' is there twice"),
        ("checks.yaml", "it:\n  one_of: [2024-13-01]\n", "cannot be read as YAML"),
        (
            "checks.yaml",
            "it:\n  json_schema:\n    properties: {on: {type: string}}\n",
            r"\(line 3\): the key 'on' is not read as text: put quotes",
        ),
        ("checks.yaml", "no: a\n", r"\(line 1\): the key 'no' is not read as text"),
        ("checks.yaml", "[a, b]: c\n", "is not read as text"),
        ("checks.yaml", "a: &a\n  when: *a\n", "The check 'a' in '.*' checks nothing"),
        ("checks.yml", "it: {words: 1}", "'words' of the check 'it' in '.*checks.yml' takes"),
        ("checks.json", "[]", "must be an object, and is a list"),
        ("checks.json", '{"it": "a", "it": "b"}', "key 'it' twice"),
        ("checks.json", "{}", "There are no checks in"),
        ("checks.txt", "it: a", "its name must end in .yaml, .yml or .json"),
    ],
)
def test_files_that_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_checks(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="There is no file of checks"):
        load_checks(tmp_path / "missing.yaml")


def test_yaml_json_and_the_short_form_say_the_same(tmp_path):
    (tmp_path / "checks.yaml").write_text("greets: '^Hello'\nis short:\n  words: {max: 2}\n")
    (tmp_path / "checks.json").write_text('\ufeff{"greets": {"regex": "^Hello"}, "is short": {"words": {"max": 2}}}')
    for name in ("checks.yaml", "checks.json"):
        checks = load_checks(tmp_path / name)
        assert [check.name for check in checks] == ["greets", "is short"]
        assert [[check.passes(answer) for check in checks] for answer in ("Hello", "Hello a b", "a b c")] == [
            [True, True], [True, False], [False, False]
        ]  # fmt: skip


def answers_of(*texts, query="Who are you?"):
    return [{"query": query, "full": full, "be": be, "no_prompt": none} for full, be, none in texts]


def test_shares_are_counted_for_each_check_and_for_all_of_them():
    checks = load_checks({"greets": "^Hello", "says goodbye": {"ends_with": "Goodbye!"}})
    answers = answers_of(
        ("Hello. Goodbye!", "Hello. Goodbye! \n", "Hi."),
        ("Hello there. Goodbye!", "Hello.", "Hello."),
        ("Hello. Goodbye!", "Oh. Goodbye!", ""),
        ("Oh. Hello.", "\nHello. Goodbye!", "Goodbye! See you."),
    )
    assert check_scores(checks, answers) == {
        "greets": {
            "full": 0.75, "no_prompt": 0.25, "be": 0.75,
            "num_answers": 4, "only_full": 1, "only_be": 1, "p_value": 1.0, "lost": False,
        },
        "says goodbye": {
            "full": 0.75, "no_prompt": 0.0, "be": 0.75,
            "num_answers": 4, "only_full": 1, "only_be": 1, "p_value": 1.0, "lost": False,
        },
        "all checks": {
            "full": 0.75, "no_prompt": 0.0, "be": 0.5,
            "num_answers": 4, "only_full": 2, "only_be": 1, "p_value": 1.0, "lost": False,
        },
    }  # fmt: skip
    # Of a single one, "all checks" says nothing new
    assert list(check_scores(checks[:1], answers)) == ["greets"]


def test_when_limits_a_check_to_the_queries_that_it_is_for():
    checks = load_checks(
        {"names the limit": {"when": "refund", "contains": "30 days"}, "is polite": {"contains": "please"}}
    )
    dialogue = [
        {"role": "user", "content": "A refund?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "And now?"},
    ]
    answers = [
        *answers_of(("30 days, please", "30 days", "no"), query="REFUND me!"),
        *answers_of(("please", "please", "no"), query="Where are you?"),
        *answers_of(("please", "please", "no"), query=dialogue),
    ]
    scores = check_scores(checks, answers)
    assert [scores[name]["num_answers"] for name in scores] == [1, 3, 3]
    assert scores["names the limit"]["be"] == 1 and scores["is polite"]["be"] == pytest.approx(2 / 3)
    assert scores["all checks"]["be"] == pytest.approx(2 / 3)
    # A query for which there is no check counts for none
    assert check_scores(checks[:1], answers)["names the limit"]["num_answers"] == 1
    with pytest.raises(ValueError, match="No query matches 'when' of the check 'names the limit'"):
        check_applies(checks, ["Where are you?"])
    with pytest.raises(ValueError, match="No query matches"):
        check_scores(checks, answers[1:])


def test_what_would_be_counted_for_another_is_refused():
    checks = load_checks({"greets": "^Hello"})
    with pytest.raises(ValueError, match="2 checks are called 'greets': give each a name of its own"):
        check_scores([*checks, *load_checks({"greets": "^Hi"})], answers_of(("Hello", "Hello", "Hi")))
    with pytest.raises(ValueError, match="There are no answers to check"):
        check_scores(checks, [])
    with pytest.raises(ValueError, match="There are no checks"):
        check_scores([], answers_of(("Hello", "Hello", "Hi")))


def test_a_check_is_lost_only_where_chance_would_hardly_lose_it():
    (check,) = load_checks({"greets": "Hello"})

    def lost(only_full, only_be, both=10):
        pairs = only_full * [("Hello", "")] + only_be * [("", "Hello")] + both * [("Hello", "Hello")]
        score = check_scores([check], answers_of(*((full, be, "") for full, be in pairs)))["greets"]
        assert (score["only_full"], score["only_be"]) == (only_full, only_be)
        return score["lost"]

    assert [lost(count, 0) for count in (0, MIN_LOST - 1, MIN_LOST, 20)] == [False, False, True, True]
    assert [lost(8, 1), lost(8, 2), lost(1, 8), lost(0, 20)] == [True, False, False, False]
    # The figures of a table of the binomial distribution
    assert [mcnemar_p(*pairs) for pairs in ((0, 0), (3, 3), (0, 6), (10, 2))] == pytest.approx(
        [1, 1, 0.03125, 0.03857], rel=1e-3
    )


def test_the_checks_that_fail_a_build():
    checks = load_checks(
        {
            "strict": {"contains": "a", "min_pass_rate": 1},
            "lenient": {"contains": "b", "min_pass_rate": 0.5},
            "plain": {"contains": "c"},
        }
    )
    scores = check_scores(checks, answers_of(("", "abc", ""), ("", "b", ""), ("", "ac", ""), ("", "ac", "")))
    assert failed_checks(checks, scores) == {"strict": 1}
    assert failed_checks(checks, scores, 0.75) == {"strict": 1}
    assert failed_checks(checks, scores, 0.76) == {"strict": 1, "plain": 0.76}


def test_a_check_made_in_python():
    check = AnswerCheck("is even", (lambda answer: int(answer) % 2 == 0,), when=re.compile("number"))
    assert check.passes(" 2\n") and not check.passes("3")
    assert check.applies_to("Which number?") and not check.applies_to("Why?")


@pytest.mark.parametrize(
    ("kind", "value", "package"), [("json_schema", {}, "jsonschema"), ("language", "en", "langdetect")]
)
def test_a_missing_package_is_named(kind, value, package, monkeypatch):
    from peft_be.evaluation.answer_checks import language

    language._detectors.cache_clear()
    for name in (package, f"{package}.detector_factory", f"{package}.validators"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=f"'{kind}' of the check 'it' needs the package {package}: pip install"):
        load_checks({"it": {kind: value}})


def test_the_page_names_every_kind_and_setting():
    page = (ROOT / "docs" / "evaluation.md").read_text().partition("## Checks")[2].partition("\n## ")[0]
    assert {*TEXT_KINDS, *OTHER_KINDS, *SETTINGS} <= set(re.findall(r"`(\w+)(?:`|: )", page))


def test_the_worked_examples_of_the_demo_pass_its_checks():
    prompt, checks = load_prompt(FERNWAY / "prompt.json"), load_checks(FERNWAY / "checks.yaml")
    answers = [message["content"] for message in prompt if message["role"] == "assistant"]
    assert answers and all(check.passes(answer) for check in checks for answer in answers)
    assert not any(check.passes("Water it every two weeks.") for check in checks)


def test_the_demos_queries_are_disjoint():
    train, test = ({query_key(q) for q in load_queries(FERNWAY / f"{name}_queries.txt")} for name in ("train", "test"))
    asked = {query_key(m["content"]) for m in load_prompt(FERNWAY / "prompt.json") if m["role"] == "user"}
    assert not train & test and not (train | test) & asked


def test_scores_are_json():
    checks = load_checks({"greets": "^Hello"})
    assert json.loads(json.dumps(check_scores(checks, answers_of(("Hello", "", "")))))["greets"]["lost"] is False
