"""Shorter prompts made of P's own words: what all methods share that choose which words to keep."""

from __future__ import annotations

import bisect
import re
from abc import abstractmethod
from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch

from ...evaluation.stand_in import StandIn
from ...prompting.messages import check_prompt
from .method import Job, Method


# Chinese and Japanese have no spaces between words: there, a character is a word. Elsewhere what stands between spaces is
# one, with its punctuation, so that two words never grow together when one between them goes. A longer run of
# characters, such as minified JSON, is cut, for else it could only be kept or lost as a whole
_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"(\s*)([{_IDEOGRAPHS}]|[^\s{_IDEOGRAPHS}]{{1,40}})")


class Word(NamedTuple):
    """
    A word of P, which is kept or lost as a whole.

    Attributes:
        message (`int`): number of its message.
        space (`str`): the white space in front of it.
        start, end (`int`): its characters in the message's content.
    """

    message: int
    space: str
    start: int
    end: int


class Pruner(Method):
    """
    A prompt made of the most important words of P, in their order.

    Words are ranked across all messages, and as many are kept from the top of the ranking as the budget holds. They are cut
    out of the original text, each with the white space in front of it.

    An exchange, a user's turn with the answer to it, goes as a whole as soon as one of the two has lost all its words: roles
    still alternate then, and no example is without its question. A system message without words goes, too.

    Args:
        num_tokens (`int`, *optional*, defaults to `64`):
            Budget: most tokens of the prompt as [`StandIn.num_tokens`] counts them, with what the chat template writes
            between messages. A prompt that fits already is returned as it is.

    Raises:
        `ValueError`: `num_tokens` is not a positive integer.
    """

    def __init__(self, num_tokens: int = 64):
        if isinstance(num_tokens, bool) or not isinstance(num_tokens, int) or num_tokens < 1:
            raise ValueError(f"num_tokens must be a positive integer, not {num_tokens!r}.")
        self.num_tokens = num_tokens

    @abstractmethod
    def importance(self, job: Job, messages: list[dict[str, str]], words: list[Word]) -> Sequence[float]:
        """How important each word is; of equal words, the earlier counts more. `messages` are the messages of `job.prompt`."""

    def fit(self, job: Job) -> StandIn:
        messages = check_prompt(job.prompt)
        if StandIn(prompt=job.prompt).num_tokens(job.tokenizer) <= self.num_tokens:
            return StandIn(prompt=job.prompt)
        words = split_words(messages)
        ranking = rank(self.importance(job, messages, words), messages, words)

        def length(count: int) -> int:
            return num_tokens(keep_words(messages, words, ranking[:count]), job)

        count = bisect.bisect_right(range(1, len(words) + 1), self.num_tokens, key=length)
        kept = keep_words(messages, words, ranking[:count])
        if not kept:  # the first word alone is too long
            alone = (keep_words(messages, words, [i]) for i in ranking)
            kept = next((kept for kept in alone if kept and num_tokens(kept, job) <= self.num_tokens), [])
        if not kept:
            raise ValueError(
                f"A budget of {self.num_tokens} token(s) holds nothing of the prompt, not even a word of each message that "
                "belongs together: raise num_tokens."
            )
        return StandIn(prompt=kept[0]["content"] if isinstance(job.prompt, str) else kept)


def num_tokens(messages: list[dict[str, str]], job: Job) -> int:
    """Tokens of a pruned prompt, 0 if nothing is left of it."""
    return StandIn(prompt=messages or None).num_tokens(job.tokenizer)


def split_words(messages: list[dict[str, str]]) -> list[Word]:
    """The words of all messages, in order."""
    return [
        Word(number, found[1], found.start(2), found.end(2))
        for number, message in enumerate(messages)
        for found in _WORD.finditer(message["content"])
    ]


def rank(importance: Sequence[float], messages: list[dict[str, str]], words: list[Word]) -> list[int]:
    """
    Indices of the words, the most important first. An exchange enters when each of its messages has come to a word, with
    the best word of each first: one that does not count before it is complete would then come in all at once.
    """
    order = sorted(range(len(words)), key=lambda i: -importance[i])
    place = {i: number for number, i in enumerate(order)}
    best: dict[int, int] = {}  # of each message, the place of its first word
    for number, i in enumerate(order):
        best.setdefault(words[i].message, number)
    entry = {}
    for exchange in exchanges_of(messages):
        enters = max((best[message] for message in exchange if message in best), default=0)
        entry.update(dict.fromkeys(exchange, enters))
    return sorted(
        order, key=lambda i: (max(place[i], entry[words[i].message]), place[i] != best[words[i].message], place[i])
    )


def keep_words(messages: list[dict[str, str]], words: list[Word], kept: Collection[int]) -> list[dict[str, str]]:
    """
    The messages with some of their words only, without the exchanges of which a message has none left.

    Args:
        messages (`list[dict]`): P.
        words (`list[Word]`): what [`split_words`] makes of them.
        kept (`Collection[int]`): indices of the words to keep, in any order.

    Returns:
        `list[dict]`: a conversation with the same order of roles, or an empty list.
    """
    kept = set(kept)
    texts, passed = [""] * len(messages), [""] * len(messages)  # passed: the space since the last kept word
    for i, (number, space, start, end) in enumerate(words):
        passed[number] = space or passed[number]
        if i in kept:
            texts[number] += (passed[number] if texts[number] else "") + messages[number]["content"][start:end]
            passed[number] = ""
    pruned = []
    for exchange in exchanges_of(messages):
        if all(texts[number] or not messages[number]["content"].strip() for number in exchange):
            pruned += [{"role": messages[number]["role"], "content": texts[number]} for number in exchange]
    return pruned


def exchanges_of(messages: list[dict[str, str]]) -> list[list[int]]:
    """Numbers of the messages that stay or go together: a system message, and users' turns with the answers to them."""
    exchanges: list[list[int]] = []
    previous = None
    for number, message in enumerate(messages):
        if previous in (None, "system") or (message["role"] == "user" and previous != "user"):
            exchanges.append([])
        exchanges[-1].append(number)
        previous = message["role"]
    return exchanges


def mean_over_tokens(
    messages: list[dict[str, str]],
    words: list[Word],
    spans: list[tuple[int, int, int] | None],
    scores: torch.Tensor,
) -> torch.Tensor:
    """
    Scores of words from scores of tokens: the mean over a word's tokens, so that a long word is not important for being
    long. White space belongs to no word.

    Args:
        messages (`list[dict]`), words (`list[Word]`): P and its words.
        spans (`list`): what each token stands for, see [`PromptRenderer.prompt_spans`].
        scores (`torch.Tensor` of shape `[len(spans)]`): at least 0.

    Returns:
        `torch.Tensor` of shape `[len(words)]`, float64; 0 for a word without tokens.
    """
    owners = [[-1] * len(message["content"]) for message in messages]  # of each character
    for i, (number, _, start, end) in enumerate(words):
        owners[number][start:end] = [i] * (end - start)
    of_word, of_token = [], []
    for token, span in enumerate(spans):
        for i in set(owners[span[0]][span[1] : span[2]]) - {-1} if span else ():
            of_word.append(i)
            of_token.append(token)
    owner = torch.tensor(of_word, dtype=torch.long)
    values = scores.detach().double().cpu()[of_token]
    totals = torch.zeros(len(words), dtype=torch.float64).index_add_(0, owner, values)
    return totals / torch.bincount(owner, minlength=len(words)).clamp_(min=1)
