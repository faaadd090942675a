"""What holds for every pruner, and the cutting of words itself."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_be.comparison.methods import AttentionSampling, Pruner, SelfInformation, Truncation
from peft_be.comparison.methods.pruning import keep_words, mean_over_tokens, num_tokens, split_words
from peft_be.evaluation.stand_in import StandIn
from peft_be.prompting import PromptRenderer

from .conftest import PROMPTS, SYSTEM


class Backwards(Pruner):
    """Ranks the words from the last to the first."""

    def importance(self, job, messages, words):
        return range(len(words))


class Alternating(Pruner):
    """Ranks every third word above the others."""

    def importance(self, job, messages, words):
        return [i % 3 == 0 for i in range(len(words))]


PRUNERS = [Truncation, SelfInformation, AttentionSampling, Backwards, Alternating]
BUDGETS = [5, 23, 60]

all_pruners = pytest.mark.parametrize("pruner", PRUNERS)
all_prompts = pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)


def messages_of(prompt):
    return [{"role": "system", "content": prompt}] if isinstance(prompt, str) else prompt


def is_subsequence(short, long):
    characters = iter(long)
    return all(character in characters for character in short)


def is_cut_of(short, long):
    """Whether `short` is made of words of `long`, in their order; words are cut within only where none are written apart."""
    cut = [run for run in short.split() if run not in long.split()]
    return bool(short) and is_subsequence(short, long) and all(re.search("[灯台守です。🌊]", run) for run in cut)


@all_pruners
@all_prompts
@pytest.mark.parametrize("budget", BUDGETS)
def test_is_a_shorter_prompt_of_the_same_kind(make_job, tiny_tokenizer, pruner, prompt, budget):
    job = make_job(prompt)
    try:
        stand_in = pruner(budget).fit(job)
    except ValueError as error:  # no two words of an exchange fit so little
        assert prompt == PROMPTS["examples only"] and budget == BUDGETS[0] and "raise num_tokens" in str(error)
        return
    assert 0 < stand_in.num_tokens(tiny_tokenizer) <= budget
    assert type(stand_in.prompt) is type(prompt)
    PromptRenderer(tiny_tokenizer, stand_in.prompt).full("Who are you?")  # a valid conversation
    # Whole messages go in pairs, and what stays are P's words in their order
    left = iter(messages_of(prompt))
    for message in messages_of(stand_in.prompt):
        assert any(m["role"] == message["role"] and is_cut_of(message["content"], m["content"]) for m in left)
    assert len([m for m in messages_of(stand_in.prompt) if m["role"] != "system"]) % 2 == 0


@all_pruners
@all_prompts
def test_budget_is_used(make_job, tiny_tokenizer, pruner, prompt):
    job, budget = make_job(prompt), 60
    # A word of these prompts has at most 7 tokens; a further exchange comes with what the template writes around it
    room = 7 if isinstance(prompt, str) else 24
    assert pruner(budget).fit(job).num_tokens(tiny_tokenizer) > budget - room


@all_pruners
@all_prompts
def test_what_fits_is_left_alone(make_job, tiny_tokenizer, pruner, prompt):
    length = StandIn(prompt=prompt).num_tokens(tiny_tokenizer)
    assert pruner(length).fit(make_job(prompt)).prompt is prompt
    assert pruner(length - 1).fit(make_job(prompt)).prompt != prompt


@all_pruners
def test_is_determined_by_the_seed(make_job, pruner):
    prompts = [pruner(40).fit(make_job(seed=seed)).prompt for seed in (1, 1, 2)]
    assert prompts[0] == prompts[1]
    assert (prompts[0] == prompts[2]) == (pruner is not AttentionSampling)


@all_pruners
def test_leaves_the_model_alone(make_job, tiny_model, pruner):
    attention, rng = tiny_model.config._attn_implementation, torch.get_rng_state()
    pruner(40).fit(make_job())
    assert tiny_model.config._attn_implementation == attention
    assert torch.equal(torch.get_rng_state(), rng)


@pytest.mark.parametrize("budget", [0, -1, 2.5, "8", None, True])
@all_pruners
def test_budget_is_checked(pruner, budget):
    with pytest.raises(ValueError, match="num_tokens must be a positive integer"):
        pruner(budget)


def test_truncation_keeps_the_start(make_job):
    kept = Truncation(30).fit(make_job()).prompt
    assert SYSTEM.startswith(kept) and kept.startswith("You are the keeper")
    kept = Truncation(30).fit(make_job(PROMPTS["examples"])).prompt
    assert len(kept) == 1 and SYSTEM.startswith(kept[0]["content"])


def test_a_first_word_that_is_too_long_is_passed_over(make_job):
    prompt = "Floccinaucinihilipilification! Answer in one word."
    assert Truncation(3).fit(make_job(prompt)).prompt == "Answer"


def test_nothing_fits(make_job):
    job = make_job(PROMPTS["examples only"])
    with pytest.raises(ValueError, match="holds nothing of the prompt"):
        Truncation(1).fit(job)


def test_empty_prompt(make_job):
    with pytest.raises(ValueError, match="The prompt is empty"):
        Truncation(5).fit(make_job("  "))


def test_words():
    text = " Say “hi”,\n\tthen 你好 or x" + "y" * 50
    words = split_words([{"role": "system", "content": text}])
    assert [text[w.start : w.end] for w in words] == [
        "Say", "“hi”,", "then", "你", "好", "or", "x" + "y" * 39, "y" * 11,
    ]  # fmt: skip
    assert [w.space for w in words] == [" ", " ", "\n\t", " ", "", " ", " ", ""]


@given(st.text(alphabet="ab 你好\n.,é\u3000\t", max_size=40), st.data())
@settings(max_examples=300, deadline=None)
def test_words_never_grow_together(text, data):
    messages = [{"role": "system", "content": text}]
    words = split_words(messages)
    assert "".join(w.space + text[w.start : w.end] for w in words) == text.rstrip()
    kept = data.draw(st.sets(st.sampled_from(range(len(words))))) if words else set()
    pruned = keep_words(messages, words, kept)
    content = pruned[0]["content"] if pruned else ""
    assert is_subsequence(content, text)
    assert content.split() == "".join(
        (" " if w.space or not i else "") + (text[w.start : w.end] if i in kept else "") for i, w in enumerate(words)
    ).split() or any(not w.space for w in words[1:])


def turn(role, content):
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("roles", "lost", "left"),
    [
        ("sua", "", "sua"),
        ("sua", "s", "ua"),
        ("sua", "u", "s"),
        ("sua", "a", "s"),
        ("suaua", "03", "ua"),  # the system message and the second question
        ("uaua", "1", "ua"),
        ("auaua", "0", "uaua"),
        ("suuaua", "1", "sua"),  # two users' turns and their answer belong together
        ("suaaua", "3", "sua"),
        ("sua", "012", ""),
    ],
)
def test_which_messages_go(roles, lost, left):
    names = {"s": "system", "u": "user", "a": "assistant"}
    lost = {roles.index(c) if c in names else int(c) for c in lost}
    messages = [turn(names[c], f"word{i} more{i}") for i, c in enumerate(roles)]
    words = split_words(messages)
    pruned = keep_words(messages, words, [i for i, w in enumerate(words) if w.message not in lost])
    assert [m["role"] for m in pruned] == [names[c] for c in left]


def test_a_message_that_was_empty_before_does_not_count():
    messages = [turn("system", ""), turn("user", "one two"), turn("assistant", " ")]
    assert keep_words(messages, split_words(messages), [1]) == [
        turn("system", ""), turn("user", "two"), turn("assistant", ""),
    ]  # fmt: skip


def test_length_counts_what_the_template_writes_between(make_job, tiny_tokenizer):
    job = make_job()
    assert num_tokens([], job) == 0
    pair = [turn("user", "one"), turn("assistant", "two")]
    assert num_tokens(pair, job) == len(PromptRenderer(tiny_tokenizer, pair).prompt_ids) > 2


@all_prompts
def test_scores_of_words(tiny_tokenizer, prompt):
    messages = messages_of(prompt)
    words = split_words(messages)
    renderer = PromptRenderer(tiny_tokenizer, prompt)
    ids, spans = renderer.full("Hello?"), renderer.prompt_spans("Hello?")
    ones = mean_over_tokens(messages, words, spans, torch.ones(len(ids)))
    assert torch.equal(
        ones, torch.ones(len(words), dtype=torch.float64)
    )  # each word has tokens, and the mean of ones is one
    # Each token with its number: the means of a word lie between its first and last token, and grow from word to word
    numbers = mean_over_tokens(messages, words, spans, torch.arange(len(ids)).float())
    assert (numbers.diff() > 0).all()
    # And the tokens are the right ones
    first = spans.index(next(span for span in spans if span))
    assert tiny_tokenizer.decode(ids[first]) in messages[0]["content"][: words[0].end]
