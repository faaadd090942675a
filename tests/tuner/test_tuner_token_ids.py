import pytest

from peft_be.tuner import find_unused_token_ids

from .tuner_helpers import WORDS, make_tokenizer


CHATML = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


def tokens(tokenizer, *args, **kwargs):
    return tokenizer.convert_ids_to_tokens(find_unused_token_ids(tokenizer, *args, **kwargs))


def test_padding_rows_come_first():
    tokenizer = make_tokenizer(["<|reserved_special_token_0|>"])
    assert len(tokenizer) == 5
    assert find_unused_token_ids(tokenizer, vocab_size=8, count=2) == [5, 6]
    assert find_unused_token_ids(tokenizer, vocab_size=8, count=3, exclude=[6]) == [5, 7, 4]


def test_ids_without_a_token_are_padding_too():
    tokenizer = make_tokenizer(words={"[UNK]": 0, "a": 1, "b": 5})
    assert find_unused_token_ids(tokenizer, vocab_size=7, count=9) == [6, 2, 3, 4]


@pytest.mark.parametrize(
    "token",
    [
        "<|reserved_special_token_17|>",
        "<unused42>",
        "[unused1]",
        "<extra_id_0>",
        "<SPECIAL_20>",
        "[control_8]",
        "<|dummy_85|>",
        "<|placeholder1|>",
        "<|extra_0|>",
    ],
)
def test_reserved_spellings(token):
    tokenizer = make_tokenizer(["<tool>", token])
    assert tokens(tokenizer, len(tokenizer), 1) == [token]


def test_smollm2_like_special_tokens():
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<jupyter_script>"]
    tokenizer = make_tokenizer(
        special, ["<think>"], chat_template=CHATML, bos_token="<|im_start|>", eos_token="<|endoftext|>"
    )
    assert tokens(tokenizer, len(tokenizer), 9) == ["<repo_name>", "<jupyter_script>"]


def test_tokens_in_use_are_never_taken():
    special = [
        "<|reserved_special_token_0|>",
        "<|reserved_special_token_1|>",
        "<|reserved_special_token_2|>",
        "<tool>",
    ]
    tokenizer = make_tokenizer(
        special,
        pad_token="<|reserved_special_token_0|>",
        chat_template="<|reserved_special_token_1|>{{ messages }}",
        additional_special_tokens=["<tool>"],
    )
    assert tokens(tokenizer, len(tokenizer), 9) == ["<|reserved_special_token_2|>"]


def test_tokens_that_plain_text_produces_are_never_taken():
    # Words, and added tokens that are not special, are found in text even if special tokens in it are not parsed.
    tokenizer = make_tokenizer(["<unused2>"], added=["<unused1>"], words={**WORDS, "<unused0>": 4})
    assert tokens(tokenizer, len(tokenizer), 9) == ["<unused2>"]


def test_several_named_templates():
    tokenizer = make_tokenizer(["<tool>", "<other>"])
    tokenizer.chat_template = {"default": CHATML, "tools": "<tool>"}
    assert tokens(tokenizer, len(tokenizer), 9) == ["<other>"]


def test_tokenizer_is_left_alone():
    tokenizer = make_tokenizer(["<tool>"], chat_template=CHATML)
    before = tokenizer.backend_tokenizer.to_str(), tokenizer.special_tokens_map
    find_unused_token_ids(tokenizer, len(tokenizer) + 3, 5)
    assert (tokenizer.backend_tokenizer.to_str(), tokenizer.special_tokens_map) == before
    assert tokenizer("a <tool>")["input_ids"] == [1, 4]


def test_tokenizer_of_another_model_says_nothing():
    tokenizer = make_tokenizer(["<tool>"])
    assert find_unused_token_ids(tokenizer, vocab_size=12, count=1) == []
