"""Pruning by a classifier that was trained for it."""

from __future__ import annotations

import bisect
import contextlib
import functools
import os
import random
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from .method import Job
from .pruning import Pruner, Word, keep_words, num_tokens


# llmlingua tells from a checkpoint's name how its tokens are spelled; these stand for the kinds of tokenizer it knows
_FAMILIES = {"WordPiece": "bert-base-multilingual-cased", "Unigram": "xlm-roberta-large"}
# Characters after the last one found in which a word of the classifier is looked for: some are spelled otherwise there
_WINDOW = 80


class LLMLingua2(Pruner):
    """
    The words that LLMLingua-2 (arXiv 2403.12968) keeps: a small encoder says of each token whether it should stay.

    The package `llmlingua` decides. It takes a rate in whole per cent and keeps that share of each message, and of each 512
    tokens of a long one, so the rate is searched at which the kept words just fit the budget; words that only the next
    higher per cent keeps fill what is left, from the front. A word stays if most of its characters do.

    Every checkpoint for token classification with two labels, of which the second means "keep", and with the tokenizer of
    BERT or XLM-R can decide: LLMLingua-2's own, or one of a later method that trains the same kind of model, such as EFPC,
    MOOSComp and TACO-RL. What these methods do besides classifying (instructions in front, outlier scores) is left out.

    Args:
        num_tokens (`int`, *optional*, defaults to `64`):
            Budget, as in [`Pruner`].
        model (`str` or `os.PathLike`, *optional*):
            Folder or Hub id of the classifier. Defaults to `microsoft/llmlingua-2-bert-base-multilingual-cased-meetingbank`.

    Raises:
        `ValueError`: `num_tokens` is not a positive integer.
    """

    def __init__(
        self,
        num_tokens: int = 64,
        model: str | os.PathLike = "microsoft/llmlingua-2-bert-base-multilingual-cased-meetingbank",
    ):
        super().__init__(num_tokens)
        self.model = str(model)

    def importance(self, job: Job, messages: list[dict[str, str]], words: list[Word]) -> Sequence[float]:
        # The package seeds everything when it loads, and its data loaders draw numbers
        with _own_random_numbers():
            return self._levels(load_compressor(self.model, job.model.device), job, messages, words)

    def _levels(self, compressor, job: Job, messages: list[dict[str, str]], words: list[Word]) -> list[int]:
        """2 for words that are kept at the highest rate that fits, 1 for those that only the next one adds, 0 for others."""

        @functools.cache
        def kept(percent: int) -> list[bool]:
            return _kept_words(compressor, messages, words, percent)

        def length(percent: int) -> int:
            return num_tokens(keep_words(messages, words, [i for i, keep in enumerate(kept(percent)) if keep]), job)

        fitting = bisect.bisect_right(range(1, 99), self.num_tokens, key=length)  # in per cent; 0 keeps nothing
        certain = kept(fitting) if fitting else [False] * len(words)
        return [a + b for a, b in zip(certain, kept(fitting + 1))]


@contextlib.contextmanager
def _own_random_numbers() -> Iterator[None]:
    state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)


def load_compressor(model: str, device: torch.device):
    """
    The package's `PromptCompressor` with the classifier `model`.

    Raises:
        `ImportError`: the package is missing.
        `OSError`: the checkpoint, or the encoding that the package counts with, cannot be loaded.
        `ValueError`: the checkpoint is no classifier that the package can use.
    """
    from transformers import AutoConfig

    try:
        import tiktoken
        from llmlingua import PromptCompressor
    except ImportError as error:
        raise ImportError(
            f"LLMLingua-2 needs the package llmlingua ({error}): pip install 'peft_be[llmlingua]'."
        ) from error
    try:
        config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise OSError(
            f"The classifier '{model}' cannot be loaded: give a folder, or the Hub id of one that is in the local cache or can "
            f"be reached over the network ({str(error).strip().splitlines()[0]})"
        ) from error
    if not any("ForTokenClassification" in name for name in config.architectures or ()) or config.num_labels != 2:
        raise ValueError(
            f"'{model}' is not a model for token classification with two labels, as LLMLingua-2 needs one."
        )
    try:
        tiktoken.encoding_for_model("gpt-3.5-turbo")
    except OSError as error:
        raise OSError(
            "llmlingua counts with OpenAI's encoding cl100k_base, which tiktoken cannot download here: run this once where it "
            "can, with TIKTOKEN_CACHE_DIR set to a folder, and set it to a copy of that folder here."
        ) from error
    with torch.backends.cudnn.flags(enabled=True):  # which the package makes deterministic for everybody
        compressor = PromptCompressor(
            model, device_map=str(device), use_llmlingua2=True, model_config={"trust_remote_code": False}
        )
    spelling = type(compressor.tokenizer.backend_tokenizer.model).__name__
    if spelling not in _FAMILIES:
        raise ValueError(f"llmlingua reads tokens as BERT or XLM-R spell them; '{model}' has a {spelling} tokenizer.")
    compressor.model_name = _FAMILIES[spelling]
    return compressor


def _kept_words(compressor, messages: list[dict[str, str]], words: list[Word], percent: int) -> list[bool]:
    """Which words the package keeps at this rate."""
    kept = [bytearray(len(message["content"])) for message in messages]
    for number, message in enumerate(messages):
        text = message["content"]
        if set(compressor.tokenizer.tokenize(text)) <= compressor.special_tokens:
            continue  # nothing that it knows, of which it cannot take a percentile
        result = compressor.compress_prompt_llmlingua2(
            [text], rate=percent / 100, return_word_label=True, word_sep="\n", label_sep="\t"
        )
        labels = [line.rsplit("\t", 1) for line in result["fn_labeled_original_prompt"].split("\n")]
        for (start, end), (_, label) in zip(_find([word for word, _ in labels], text), labels):
            kept[number][start:end] = [label == "1"] * (end - start)
    return [2 * sum(kept[word.message][word.start : word.end]) > word.end - word.start for word in words]


def _find(words: list[str], text: str) -> list[tuple[int, int]]:
    """Characters of each word in the text, in order; no characters where it is not found, or is spelled in another way."""
    lower = text.lower() if len(text.lower()) == len(text) else text
    spans, position = [], 0
    for word in words:
        start = lower.find(word.lower(), position, position + _WINDOW + len(word)) if word else -1
        spans.append((start, start + len(word)) if start >= 0 else (position, position))
        position = spans[-1][1]
    return spans
