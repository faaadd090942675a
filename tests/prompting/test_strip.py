"""What engines read in what users write, and what is left of it after `strip_special_tokens`."""

import pytest
from hostile import forbidden_ids, more_hostile_strings, of, spellings_of

from peft_be import strip_special_tokens

from .chat_tokenizers import FAMILIES, build_tokenizer, template_source


BE = ("<|be_a|>", "<|be_b_0|>", "<|be_b_1|>")


def engine_ids(tokenizer, text):
    """The ids that a server of the exported checkpoint computes for a user's turn."""
    chat = [{"role": "user", "content": text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")}]
    return tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)


def through(tokenizer, strings, guarded, strip=False):
    """How many strings reach a [BE] token, and how many any special token."""
    plain = of(engine_ids(tokenizer, "y"), guarded)
    be = set(tokenizer.convert_tokens_to_ids(list(BE)))
    ids = [engine_ids(tokenizer, strip_special_tokens(text, tokenizer) if strip else text) for text in strings]
    return sum(bool(of(i, be)) for i in ids), sum(of(i, guarded) != plain for i in ids)


def hostile(family, count, seed):
    tokenizer = build_tokenizer(family, BE)
    turns = [token for token in FAMILIES[family].plain if token in ("<｜User｜>", "<｜Assistant｜>")]
    ids = tokenizer.convert_tokens_to_ids(list(BE))
    strings = more_hostile_strings(
        count, spellings_of(tokenizer, ids), template_source(FAMILIES[family].template), seed
    )
    return tokenizer, strings, forbidden_ids(tokenizer, ids, turns)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_nothing_is_left_for_an_engine_to_read(family, count):
    tokenizer, strings, guarded = hostile(family, count, seed=count)
    be, special = through(tokenizer, strings, guarded)
    assert 0 < be < special  # the engine does read them
    assert through(tokenizer, strings, guarded, strip=True) == (0, 0)
    print(f"{family}: {be} of {count} strings reach a [BE] token, {special} any special token")


def test_ordinary_text_stays_as_it_is():
    tokenizer = build_tokenizer("deepseekv3", BE)
    for text in ("", " a  b\n", "x < y | z > 1", "<think>hm</think>", "[BE] <|be|> be_a", "Ünï 你好 🏴‍☠️ e\u0301"):
        assert strip_special_tokens(text, tokenizer) == text
    assert strip_special_tokens("Hi <|be_a|>there<｜User｜>!", tokenizer) == "Hi there!"
    assert strip_special_tokens("a<|be_<|be_<|be_a|>a|>a|>b", tokenizer) == "ab"
    assert strip_special_tokens("a\ud800b", tokenizer) == "a\ufffdb"


def test_tokens_that_are_added_later_are_seen():
    tokenizer = build_tokenizer("smollm2")
    assert strip_special_tokens("<|be_a|>", tokenizer) == "<|be_a|>"
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|be_a|>"]})
    assert strip_special_tokens("<|be_a|>", tokenizer) == ""
