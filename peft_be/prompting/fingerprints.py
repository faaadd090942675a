"""Which tokenizer, template and prompt an adapter was trained with, and whether given ones are the same."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ..tuner.provenance import Provenance
from .messages import check_prompt


# Text that tells apart normalisers and pre-tokenisers over the same vocabulary: case, accents composed and not,
# compatibility forms, digits, contractions, runs of white space, scripts without spaces, emoji sequences, code.
_PROBE = (
    " Hello  hello   HELLO\n\n\n It's we'LL they\u2019re caf\u00e9 cafe\u0301 \ufb01 \uff21\uff22 \u00bd \u2460 1 12 "
    "123 1234 12345.678\t\tx\r\n\u00a0\u3000\u4f60\u597d\uff0c\u4e16\u754c \u041f\u0440\u0438\u0432\u0435\u0442 "
    "\u0645\u0631\u062d\u0628\u0627 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \ud55c\uad6d\uc5b4 \U0001f469\u200d\U0001f4bb"
    "\U0001f1eb\U0001f1f7 def f(x):\n    return {'a': x ** 2}  # ok_snake camelCase http://a.b/c?d=e\n "
)


def tokenizer_fingerprint(tokenizer) -> str:
    """
    SHA-256 (hex) of what decides the ids of a text: the vocabulary with its ids, the added tokens, and the ids of a
    fixed text that exercises normaliser, pre-tokeniser and merges.

    Behaviour is hashed rather than the tokenizer's file, whose form changes between library versions. Padding,
    truncation and the special tokens added around a text do not count.

    Args:
        tokenizer (`PreTrainedTokenizerFast`): The tokenizer.
    """
    added = [
        [token_id, token.content, token.special, token.lstrip, token.rstrip, token.single_word]
        for token_id, token in sorted(tokenizer.added_tokens_decoder.items())
    ]
    probe = tokenizer(_PROBE, add_special_tokens=False, split_special_tokens=False, verbose=False)["input_ids"]
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    return hashlib.sha256(json.dumps([vocabulary, added, probe]).encode()).hexdigest()


def chat_template_fingerprint(tokenizer) -> str:
    """
    SHA-256 (hex) of the tokenizer's chat template.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): A tokenizer with a chat template.

    Raises:
        `ValueError`: if it has none.
    """
    return hashlib.sha256(tokenizer.get_chat_template().encode()).hexdigest()


def check_tokenizer(config, tokenizer, allow_template_change: bool = False) -> None:
    """
    Check that an adapter is used with the tokenizer and chat template it was trained with.

    Args:
        config (`BETokenConfig`):
            The adapter's configuration. What its `provenance` does not record is not checked.
        tokenizer (`PreTrainedTokenizerFast`):
            The tokenizer it is to be used with.
        allow_template_change (`bool`, *optional*, defaults to `False`):
            Accept another chat template, such as a corrected version of the same one. Another tokenizer is never
            accepted: it gives other ids.

    Raises:
        `ValueError`: if one of them differs.
    """
    recorded = Provenance.of(config)
    expected = recorded.tokenizer_sha256
    if expected is not None and tokenizer_fingerprint(tokenizer) != expected:
        raise ValueError(
            "The adapter was trained with another tokenizer than this one: load the tokenizer of its base model."
        )
    expected = recorded.chat_template_sha256
    if expected is None or allow_template_change:
        return
    if not tokenizer.chat_template or chat_template_fingerprint(tokenizer) != expected:
        raise ValueError(
            "The adapter was trained with another chat template than this tokenizer's: load the original tokenizer, or"
            " pass allow_template_change=True (--allow-template-change) if the difference does not matter."
        )


def prompt_fingerprint(prompt: str | list[dict[str, str]]) -> str:
    """
    SHA-256 (hex) of a prompt. A system text and a list with that system message alone are the same prompt.

    Args:
        prompt (`str` or `list[dict]`): P.

    Raises:
        `ValueError`: if it is no prompt.
    """
    messages = check_prompt(prompt)
    is_text = len(messages) == 1 and messages[0]["role"] == "system"
    return sha256(messages[0]["content"] if is_text else messages)


def is_prompt_of(config, prompt: str | list[dict[str, str]]) -> bool | None:
    """
    Whether an adapter was trained on a prompt; `None` if it does not say on which.

    Args:
        config (`BETokenConfig`): The adapter's configuration.
        prompt (`str` or `list[dict]`): P.
    """
    recorded = Provenance.of(config).prompt_sha256
    if recorded is None:
        return None
    # Earlier versions took the hash of what they were given
    return recorded in (prompt_fingerprint(prompt), sha256(prompt), sha256(check_prompt(prompt)))


def check_adapter_prompt(config, prompt: str | list[dict[str, str]] | None, allow_other_prompt: bool = False) -> None:
    """
    Check that a prompt given with an adapter is the one it stands for.

    Args:
        config (`BETokenConfig`):
            The adapter's configuration. One whose `provenance` records no prompt is not checked.
        prompt (`str` or `list[dict]`, *optional*):
            P. `None` is not checked.
        allow_other_prompt (`bool`, *optional*, defaults to `False`):
            Accept another prompt, such as a corrected one.

    Raises:
        `ValueError`: if it is another prompt.
    """
    if prompt is None or allow_other_prompt:
        return
    if is_prompt_of(config, prompt) is False:
        raise ValueError(
            "The adapter was trained on another prompt than this one: give the prompt that it stands for, unchanged, "
            "or pass allow_other_prompt=True (--allow-other-prompt) to compare it with another."
        )


def sha256(value: Any) -> str:
    """SHA-256 (hex) of a value of JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
