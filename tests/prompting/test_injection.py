"""Hostile strings on every template that TRL ships: none reaches a learned row or a special token of any kind."""

import pytest
from hostile import forbidden_ids, more_hostile_strings, of, spellings_of

from peft_be.prompting import PromptRenderer

from .trl_templates import ONLY_PARTS, TEMPLATES, tokenizer_for


NAMES = sorted(name for name in TEMPLATES if name.removesuffix("_training") not in ONLY_PARTS)
# What a template spells, though it is no special token of its tokenizer
KWARGS = {"date_string": "26 Jul 2024"}


def user(text):
    return [{"role": "user", "content": text}]


def dialogue(first, second, third):
    return [*user(first), {"role": "assistant", "content": second}, *user(third)]


def through(name, count, seed=0):
    """How many hostile strings changed the special tokens of a rendering, and how many were refused."""
    tokenizer = tokenizer_for(TEMPLATES[name])
    be = tokenizer.convert_tokens_to_ids(["<repo_name>", "<reponame>"])
    ae = tokenizer.convert_tokens_to_ids("<file_sep>")
    forbidden = forbidden_ids(tokenizer, [*be, ae])
    strings = more_hostile_strings(count, spellings_of(tokenizer, [*be, ae]), TEMPLATES[name], seed)

    def renderer(prompt):
        return PromptRenderer(tokenizer, prompt, be_token_ids=be, ae_token_id=ae, chat_template_kwargs=KWARGS)

    plain = renderer("y")
    forms = [plain.be, plain.full, plain.no_prompt]
    shapes = [lambda a, b: user(a), lambda a, b: dialogue(a, b, "y"), lambda a, b: dialogue("y", a, b)]
    expected = [[of(form(shape("y", "y")), forbidden) for form in forms] for shape in shapes]
    assert of(expected[0][0], set(be)) == be
    passed, refused = [], []
    for number, (text, other) in enumerate(zip(strings, strings[1:] + strings[:1])):
        # Every string takes its turn in one place and one form; a spelling may be split over two messages
        kind, shape = number % 3, number // 3 % 3
        half = len(text) // 2
        first, second = (text[:half], text[half:]) if number % 7 == 0 else (text, other)
        form = forms[kind]
        if number % 20 == 0 and text.strip():
            form, first, second, kind = renderer(text).full, "y", "y", 1
        try:
            ids = form(shapes[shape](first, second))
        except ValueError as error:
            assert str(error).startswith("The chat template"), error
            refused.append(text)
            continue
        if of(ids, forbidden) != expected[shape][kind]:
            passed.append(text)
    return passed, refused


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith("_training")])
def test_a_sample_on_every_template_of_trl(name):
    passed, refused = through(name, 30)
    assert not passed and len(refused) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_1000_strings_on_every_template_of_trl(name):
    passed, refused = through(name, 1000, seed=1)
    assert not passed and len(refused) <= 20
