"""The same prompt in another order: nothing lost, nothing cut in two, and the beginning where it was."""

import re
from dataclasses import replace

import pytest

from peft_be.comparison.methods import Reordered


def messages_of(job, prompt, seed=42):
    made = Reordered().fit(replace(job, prompt=prompt, seed=seed)).prompt
    return made if isinstance(prompt, list) else made[0]["content"]


def test_paragraphs(job):
    prompt = "\n\n".join(f"Part {i}.\nIts second line." for i in range(8))
    mixed = messages_of(job, prompt)
    assert mixed != prompt and mixed.startswith("\n\n".join(prompt.split("\n\n")[:4]) + "\n\n")
    assert sorted(mixed.split("\n\n")) == sorted(prompt.split("\n\n"))
    assert messages_of(job, prompt) == mixed != messages_of(job, prompt, seed=43)


def test_lines_where_there_are_few_paragraphs(job):
    prompt = "A heading\n\n" + "\n".join(f"{i}. A rule." for i in range(7))
    mixed = messages_of(job, prompt)
    assert mixed != prompt and sorted(mixed.split()) == sorted(prompt.split())
    assert re.findall(r"\n+", mixed) == re.findall(r"\n+", prompt)


@pytest.mark.parametrize("system", [True, False])
def test_examples_keep_their_answers(job, system):
    exchanges = [[("user", f"Question {i}?"), ("assistant", f"Answer {i}.")] for i in range(6)]
    turns = [{"role": role, "content": text} for exchange in exchanges for role, text in exchange]
    prompt = [{"role": "system", "content": "Be brief."}] * system + turns
    mixed = messages_of(job, prompt)
    assert mixed[: system + 6] == prompt[: system + 6] and mixed != prompt
    assert all(a["content"][-2] == q["content"][-2] for q, a in zip(mixed[system::2], mixed[system + 1 :: 2]))
    assert sorted(turn["content"] for turn in mixed) == sorted(turn["content"] for turn in prompt)


def test_a_prompt_of_one_part_is_refused(job):
    with pytest.raises(ValueError, match="at least 4 examples, paragraphs or lines"):
        messages_of(job, "One line only.")
