"""Which tokens of an answer are the prompt's own text, word by word."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from ..data.words import Word, placed_words
from ..prompting.messages import check_prompt, check_query


# The fewest that are hardly chance. Of answers written without the demo's prompt, which they cannot quote, runs of 3 words
# that it has too hold 5.7 % of the tokens on SmolLM2 ("I would like"), of 4 words 1.1 %, and of 5 none; on Qwen2.5-Coder-0.5B
# 1.6, 0.7 and 0.7 %. Of answers written with it, 5 words hold 2.3 % on SmolLM2, 6 none; 46 and 40 % on Qwen, which copies
QUOTED_WORDS = 5
# From here on, an answer is a copy
MOSTLY = 0.5


def quoted_tokens(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | list[dict[str, str]],
    queries: list,
    answers: list[list[int]],
) -> list[list[bool]]:
    """
    Which tokens of answers are quoted from P: those of 5 words in a row that also stand in P, and not in the query.

    Words are compared and not ids, without regard to case and punctuation: the same word has other ids at the start of an
    answer than after a space. Each character counts as a word in scripts without spaces.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): the answers' tokenizer.
        prompt (`str` or `list[dict]`): P.
        queries (`list`): the query of each answer, as [`as_queries`] gives them.
        answers (`list[list[int]]`): the answers' ids.

    Returns:
        `list[list[bool]]`: for each token of each answer, whether it is quoted.
    """
    known = _runs_of(check_prompt(prompt))
    return [
        _inside(tokenizer, ids, _quotations(tokenizer, ids, known, _runs_of(check_query(query))))
        for query, ids in zip(queries, answers)
    ]


def copies(quoted: list[list[bool]], queries: list, texts: list[str]) -> list[dict]:
    """
    The answers that are mostly quoted.

    Args:
        quoted (`list[list[bool]]`): what [`quoted_tokens`] gives.
        queries (`list`): the query of each answer.
        texts (`list[str]`): the answers as text.

    Returns:
        `list[dict]`: `query`, `answer` and the `quoted` share of its tokens, where that is more than a half; the largest share
            first.
    """
    shares = [sum(tokens) / len(tokens) if tokens else 0.0 for tokens in quoted]
    found = [
        {"query": check_query(query)[-1]["content"], "answer": text, "quoted": share}
        for query, text, share in zip(queries, texts, shares)
        if share > MOSTLY
    ]
    return sorted(found, key=lambda copy: -copy["quoted"])


def _runs(words: list[Word]) -> list[tuple[str, ...]]:
    texts = [word.text for word in words]
    return [tuple(texts[i : i + QUOTED_WORDS]) for i in range(len(texts) - QUOTED_WORDS + 1)]


def _runs_of(messages: list[dict[str, str]]) -> set[tuple[str, ...]]:
    """The runs of words in messages, none of which goes from one message to the next."""
    return {run for message in messages for run in _runs(placed_words(message["content"]))}


def _quotations(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], known: set[tuple[str, ...]], own: set[tuple[str, ...]]
) -> list[tuple[int, int]]:
    """The characters `[start, end)` of an answer's text that are quoted."""
    words = placed_words(_decode(tokenizer, ids))
    return [
        (words[i].start, words[i + QUOTED_WORDS - 1].end)
        for i, run in enumerate(_runs(words))
        if run in known and run not in own
    ]


def _inside(tokenizer: PreTrainedTokenizerBase, ids: list[int], spans: list[tuple[int, int]]) -> list[bool]:
    """For each token, whether some of its characters are within one of the spans."""
    if not spans:
        return [False] * len(ids)
    so_far = [_decode(tokenizer, ids[:i]) for i in range(len(ids) + 1)]
    # All tokens of a character that takes several stand where it stands: until it is complete, it ends in this sign
    starts = [len(text.rstrip("\ufffd")) for text in so_far[:-1]]
    ends = [len(text) for text in so_far[1:]]
    return [any(start < last and end > first for first, last in spans) for start, end in zip(starts, ends)]


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    # As it was written: nothing is cleaned up, so that the text grows with each token
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
