"""Which checks a prompt's own sentences ask for."""

import json
from pathlib import Path

import pytest

from peft_be import load_checks
from peft_be.evaluation.answer_checks.proposals import as_yaml, propose_checks
from peft_be.prompting import load_prompt


EXAMPLES = Path(__file__).parents[2] / "examples"


def kinds_of(prompt):
    return [proposal.kinds for proposal in propose_checks(prompt)]


@pytest.mark.parametrize(
    ("sentence", "kinds"),
    [
        ('Begin every answer with "Hello! I am Fern."', {"starts_with": "Hello! I am Fern."}),
        ("Every answer begins with 'Arr' and speaks of the sea.", {"starts_with": "Arr"}),
        ("Be kind. - Your replies must always end with: \u201cDon't worry.\u201d", {"ends_with": "Don't worry."}),
        ('Be brief, and sign every answer with "Your kettle people".', {"ends_with": "Your kettle people"}),
        ('Never say "as an AI" or "language model".', {"never_says": ["as an AI", "language model"]}),
        ("Do not use the words 'cheap', 'free' and 'new'.", {"never_says": ["cheap", "free", "new"]}),
        ("Answer in one or two short sentences.", {"sentences": {"min": 1, "max": 2}}),
        ("Reply with a single sentence.", {"sentences": {"min": 1, "max": 1}}),
        ("Keep your answers under 100 words.", {"words": {"max": 99}}),
        ("Respond in at most 280 characters.", {"characters": {"max": 280}}),
        ("Every reply must be at least three sentences long.", {"sentences": {"min": 3}}),
        ("Respond with valid JSON.", {"json": True}),
        ("Return only JSON, no other text.", {"json": True}),
        ("Always answer in German.", {"language": "de"}),
        ("Answer with exactly one of: billing, returns, or other.", {"one_of": ["billing", "returns", "other"]}),
        ('Reply with one of "yes", "no" or "unsure".', {"one_of": ["yes", "no", "unsure"]}),
    ],
)
def test_sentences_that_ask_for_a_form(sentence, kinds):
    assert kinds_of(f"You are the assistant of a shop. {sentence}\n- Be kind.") == [kinds]


@pytest.mark.parametrize(
    "sentence",
    [
        # Not always, or for some answers only
        'If the customer is angry, begin every answer with "I am sorry".',
        "Answer everything else in one sentence.",
        "You may answer in German.",
        "Do not answer in German.",
        # Not all of an answer, or none of ours
        'Start the conversation with "Hello".',
        "Keep paragraphs short (2-4 sentences).",
        "I will speak to you in English.",
        "Return minimal JSON per `output_format`.",
        "Avoid using 'use client'.",
        # A place to fill in
        'End every answer with "[your name]".',
        'Say "yes" or "no", and never "maybe".',
    ],
)
def test_sentences_that_are_left_to_the_reader(sentence):
    assert kinds_of(f"You are the assistant of a shop. {sentence}\n- Be kind.") == []


def test_worked_answers_say_what_they_share_and_refute_what_they_break():
    fernway = load_prompt(EXAMPLES / "fernway" / "prompt.json")
    asked = [{"starts_with": "Hello from Fernway!"}, {"ends_with": "Happy growing!"}]
    # "Then answer the question in one or two short sentences" stands between the greeting and the farewell
    assert kinds_of(fernway) == asked
    # Of the worked answers alone
    assert kinds_of(fernway[1:]) == asked
    assert kinds_of(fernway[1:7]) == []  # three may be alike by chance
    broken = [{"role": "system", "content": "Answer in one sentence."}, fernway[1], fernway[2]]
    assert kinds_of(broken) == [] and kinds_of(broken[:1]) == [{"sentences": {"min": 1, "max": 1}}]


def test_what_is_proposed_can_be_read(tmp_path):
    prompt = 'Answer in Norwegian.\n* Never say "yes: #1" or "no".\nAnswer in Norwegian!'
    proposals = propose_checks(prompt)
    text = as_yaml(proposals)
    (tmp_path / "checks.yaml").write_text(text)
    checks = load_checks(tmp_path / "checks.yaml")
    assert [check.name for check in checks] == [proposal.name for proposal in proposals] and len(checks) == 2
    assert "\n# Answer in Norwegian\nis in Norwegian:\n" in text and '# Never say "yes: #1" or "no"\n' in text
    assert not checks[0].passes("Yes: #1")


def test_the_command(cli, tmp_path):
    prompt, output = EXAMPLES / "fernway" / "prompt.json", tmp_path / "checks.yaml"
    code, out, err = cli("propose-checks", prompt)
    assert code == 0 and "starts_with: Hello from Fernway!" in out, err
    code, out, err = cli("propose-checks", prompt, "--output", output)
    assert code == 0 and "Proposed 2 checks" in out, err
    assert len(load_checks(output)) == 2
    for path, message in ((output, "is there already"), (tmp_path / "checks.json", "must end in .yaml")):
        code, _, err = cli("propose-checks", prompt, "--output", path)
        assert code == 1 and message in err
    (tmp_path / "plain.json").write_text(json.dumps([{"role": "system", "content": "Be kind."}]))
    code, _, err = cli("propose-checks", tmp_path / "plain.json")
    assert code == 1 and "reads as a rule of form" in err
