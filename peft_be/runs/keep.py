"""Which of a prompt's sentences stay text: those that alone bring the model nearest to the full prompt's answers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data import QuerySplits
from ..losses import OutputHead
from ..progress import OnProgress, counter
from ..prompting import PromptRenderer
from ..prompting.kept_text import find_kept_text
from ..prompting.messages import check_prompt
from ..teacher import answer_divergences, cached_answers, share_prefix, teacher_prompts
from ..training.teaching import Teaching
from .config import CompressConfig
from .folder import RunFolder
from .prepare import distillation_args


# Enough to rank sentences by, and a third of the work of all
MAX_QUERIES = 16
# A sentence has to save this share of the KL that is left before any is chosen, or it is not worth its tokens
LEAST_SAVING = 0.01
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")


def kept_text_of(
    run: RunFolder,
    config: CompressConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | list[dict[str, str]],
    splits: QuerySplits,
    on_progress: OnProgress | None,
) -> str | None:
    """
    The kept text of a run: what `keep` names, and the sentences that `keep_tokens` has room for. A run chooses once.

    Raises:
        `ValueError`: the whole prompt would be kept.
    """
    given = find_kept_text(prompt, config.keep)
    if given is not None or config.keep_tokens is not None:
        _check_room(tokenizer, prompt, given, config.keep_tokens or 0)
    if config.keep_tokens is None:
        return given
    if "kept_text" not in run.settings:
        training, meter = model.training, _Meter(run, config, model.eval(), tokenizer, prompt, splits, on_progress)
        run.remember("kept_text", choose(prompt, config.keep or [], config.keep_tokens, meter.length, meter.kl))
        model.train(training)
    return run.settings["kept_text"]


def _check_room(
    tokenizer: PreTrainedTokenizerBase, prompt: str | list[dict[str, str]], given: str | None, budget: int
) -> None:
    """Refuse to keep as many tokens as the prompt has: it would be longer with [BE] than without."""
    renderer = PromptRenderer(tokenizer, prompt, kept_text=given)
    kept, whole = len(renderer.kept_ids), len(renderer.prompt_ids)
    if kept + budget >= whole:
        parts = [f"keep has {kept} tokens"] * (given is not None) + [f"keep_tokens is {budget}"] * (budget > 0)
        raise ValueError(
            f"Nothing would be saved: {' and '.join(parts)}, and the whole prompt has {whole} tokens. Keep less of it."
        )


def sentences(prompt: str | list[dict[str, str]]) -> list[str]:
    """The sentences of a prompt and its lines without a full stop, in order, each once."""
    pieces = (piece.strip() for message in check_prompt(prompt) for piece in _SENTENCE_END.split(message["content"]))
    return list(dict.fromkeys(filter(None, pieces)))


def choose(
    prompt: str | list[dict[str, str]],
    keep: list[str],
    budget: int,
    length: Callable[[str | None], int],
    kl: Callable[[str | None], float],
) -> str | None:
    """
    Choose sentences greedily, by the KL that each saves for each of its tokens next to those that are kept already.

    What a sentence saves mostly falls with each one that is kept before it. So one is measured again only as long as it
    may still be the best.

    Args:
        prompt (`str` or `list[dict]`): P.
        keep (`list[str]`): parts that are kept in any case.
        budget (`int`): most tokens of the sentences, without those of `keep`.
        length (`Callable`): the tokens of a kept text. Raises a `ValueError` for one that cannot be kept.
        kl (`Callable`): the KL of a kept text to the full prompt, in nats a token.

    Returns:
        `str` or `None`: the kept text.
    """
    kept, chosen = find_kept_text(prompt, keep), list(keep)
    given = used = length(kept)
    left = kl(kept)
    least = LEAST_SAVING * left
    savings = dict.fromkeys(sentences(prompt), math.inf)  # of each, by token, when it was last measured
    while True:
        best: tuple[float, str, str | None, int, float] | None = None
        for sentence, saving in sorted(savings.items(), key=lambda item: -item[1]):
            if best is not None and saving <= best[0]:
                break
            try:
                text = find_kept_text(prompt, [*chosen, sentence])
                tokens = length(text)
            except ValueError:  # nothing to see in it, a part of what is kept, or a special token
                tokens = None
            if tokens is None or tokens - given > budget:
                del savings[sentence]
                continue
            now = kl(text)
            savings[sentence] = (left - now) / (tokens - used)
            if left - now > least and (best is None or savings[sentence] > best[0]):
                best = savings[sentence], sentence, text, tokens, now
        if best is None:
            return kept
        _, sentence, kept, used, left = best
        chosen.append(sentence)
        del savings[sentence]


class _Meter:
    """
    Measures texts in place of the prompt on the first validation queries. The teacher's answers are those that the
    training finds in the cache.
    """

    def __init__(
        self,
        run: RunFolder,
        config: CompressConfig,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompt: str | list[dict[str, str]],
        splits: QuerySplits,
        on_progress: OnProgress | None,
    ):
        args = distillation_args(config, run.work / "stage2")
        self._model, self._tokenizer = model.to(args.device), tokenizer
        self._head, self._pad, self._on_progress = OutputHead(model), tokenizer.pad_token_id or 0, on_progress
        self._batch_size, self._measured, self._total = args.per_device_eval_batch_size, 0, len(sentences(prompt))
        renderer = PromptRenderer(tokenizer, prompt)
        prompts = {
            split: teacher_prompts(model, renderer, getattr(splits, split), config.max_answer_length)
            for split in ("train", "validation")
        }
        answers = cached_answers(
            model,
            prompts["validation"],
            Teaching(model, self._head, tokenizer, args).settings,
            self._pad,
            str(args.answer_cache_dir),  # where the training looks, see distillation_args
            prefix=share_prefix(model, prompts["train"] + prompts["validation"]),
            on_progress=counter(on_progress, "teacher, validation queries"),
        )
        self._answers = [answer for answer in answers if answer.query < MAX_QUERIES]
        self._queries = [splits.validation[answer.query] for answer in self._answers]

    def length(self, text: str | None) -> int:
        return len(PromptRenderer(self._tokenizer, kept_text=text).kept_ids)

    @torch.no_grad()
    def kl(self, text: str | None) -> float:
        renderer = PromptRenderer(self._tokenizer, text)
        render = renderer.no_prompt if text is None else renderer.full
        prompts = [render(query) for query in self._queries]
        _, kl = answer_divergences(self._model, self._head, prompts, self._answers, self._batch_size, self._pad)
        self._measured += 1
        if self._on_progress:
            self._on_progress("sentences measured", min(self._measured, self._total), self._total, {})
        return torch.cat(kl).mean().item()
