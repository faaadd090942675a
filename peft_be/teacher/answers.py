"""What the teacher says: answers to queries, and the final hidden states that predict their tokens.

The teacher and the student share a frozen `lm_head`, so the `d` numbers of a final hidden state stand for the `V` logits
of a token exactly. Keeping them makes the full-vocabulary KL of Eq. 3 possible at every later step without running the
teacher again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from ..checks import COUNT, NOT_NEGATIVE, Range, check_number
from ..machine.memory import copy_head_input
from ..prompting import PromptRenderer
from ..prompting.context import check_prompts
from ..tuner.inputs import any_input
from .cache import Answer, AnswerCache, cache_limit, teacher_cache_dir
from .prefix import SharedPrefix, can_share_prefix


# A prefix shorter than this is not worth a cache of its own
MIN_SHARED_PREFIX = 32
# Of a model's configuration: where it came from, what wrote it, and what TRL's trainers switch off
_NOT_THE_MODEL = ("_name_or_path", "transformers_version", "use_cache")


@dataclass(frozen=True)
class AnswerSettings:
    """
    How answers are written.

    Args:
        max_new_tokens (`int`, *optional*, defaults to `128`): longest answer, in tokens.
        num_answers (`int`, *optional*, defaults to `1`): answers a query; more than one needs `temperature > 0`.
        temperature (`float`, *optional*, defaults to `0.0`): `0.0` is greedy decoding, anything else samples.
        top_p (`float`, *optional*, defaults to `1.0`): nucleus of the sampling.
        batch_size (`int`, *optional*, defaults to `64`): queries answered together.
        seed (`int`, *optional*, defaults to `42`): seed of the sampling.
    """

    max_new_tokens: int = 128
    num_answers: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    batch_size: int = 64
    seed: int = 42

    def __post_init__(self):
        for name in ("max_new_tokens", "num_answers", "batch_size"):
            check_number(name, getattr(self, name), COUNT, whole=True)
        check_number("temperature", self.temperature, NOT_NEGATIVE)
        check_number("top_p", self.top_p, Range(above=0, high=1))
        if self.num_answers > 1 and self.temperature == 0.0:
            raise ValueError("Several answers a query need sampling: set the answers' temperature above 0.")

    @property
    def sampling(self) -> dict:
        """What `generate` is told of the sampling."""
        if self.temperature == 0:
            return {"do_sample": False}
        return {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}


def common_prefix_length(sequences: list[list[int]]) -> int:
    """Number of leading ids that all sequences share, at least one id of each left over."""
    # The smallest and the largest sequence differ first where any two do
    low, high = min(sequences), max(sequences)
    shared = next((i for i, (a, b) in enumerate(zip(low, high)) if a != b), min(len(low), len(high)))
    return min(shared, min(map(len, sequences)) - 1)


def share_prefix(model: PreTrainedModel, prompts: list[list[int]]) -> SharedPrefix | None:
    """
    The [`SharedPrefix`] of `prompts`, or `None` where they share too little or the model's cache cannot share it.

    Raises:
        `ValueError`: a prompt is longer than the model's context.
    """
    check_prompts(model, prompts)
    length = common_prefix_length(prompts)
    if length < MIN_SHARED_PREFIX or not can_share_prefix(model):
        return None
    return SharedPrefix(model, prompts[0][:length])


@torch.no_grad()
def generate_answers(
    model: PreTrainedModel,
    prompts: list[list[int]],
    settings: AnswerSettings,
    pad_token_id: int,
    prefix: SharedPrefix | None = None,
    cache: AnswerCache | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Answer]:
    """
    Write answers to prompts, in batches of similar length.

    Args:
        model ([`~transformers.PreTrainedModel`]): the causal LM, not wrapped by PEFT.
        prompts (`list[list[int]]`): rendered prompts, each ending with the generation prompt.
        settings ([`AnswerSettings`]): how to answer.
        pad_token_id (`int`): fills the batches; its value changes nothing.
        prefix ([`SharedPrefix`], *optional*): what all prompts start with.
        cache ([`AnswerCache`], *optional*): finished batches are read from it and new ones written to it.
        on_progress (`Callable[[int, int], None]`, *optional*): called with the prompts done and their total.

    Returns:
        `list[Answer]`: `settings.num_answers` answers a prompt, in the order of the prompts.

    Raises:
        `ValueError`: a prompt and its answer are longer than the model's context.
    """
    check_prompts(model, prompts, settings.max_new_tokens)
    ends, own = stop_ids(model), model.generation_config
    config = GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        num_return_sequences=settings.num_answers,
        eos_token_id=sorted(ends),
        pad_token_id=pad_token_id,
        suppress_tokens=own.suppress_tokens,
        **settings.sampling,
    )
    shared = prefix.length if prefix else 0

    def answer(number: int, batch: list[int]) -> list[Answer]:
        width = max(len(prompts[i]) for i in batch)
        ids, mask = [], []
        for i in batch:
            # The padding stands between the shared prefix and the rest, so that all rows end together
            gap = width - len(prompts[i])
            ids.append(prompts[i][:shared] + [pad_token_id] * gap + prompts[i][shared:])
            mask.append([1] * shared + [0] * gap + [1] * (len(prompts[i]) - shared))
        inputs = {
            "input_ids": torch.tensor(ids, device=model.device),
            "attention_mask": torch.tensor(mask, device=model.device),
        }
        if prefix:
            inputs["past_key_values"] = prefix.new_cache()
        steps: list[torch.Tensor] = []
        with ExitStack() as stack:
            stack.enter_context(any_input(model))
            stack.enter_context(prefix.attached(model) if prefix else nullcontext())
            stack.enter_context(
                model.get_decoder().register_forward_hook(lambda _, __, out: steps.append(out[0][:, -1]))
            )
            stack.enter_context(copy_head_input(model))
            # Each batch has its own seed, so that a resumed run writes the same answers
            stack.enter_context(torch.random.fork_rng())
            torch.manual_seed(settings.seed + number)
            # `generate` fills in what is left open. A repetition penalty, for instance, would punish the words of P where P
            # is read, and nothing where [BE] is
            stack.callback(setattr, model, "generation_config", own)
            model.generation_config = GenerationConfig()
            sequences = model.generate(**inputs, generation_config=config)
        hidden = torch.stack(steps, dim=1)
        answers: list[Answer] = []
        for row, new_ids in enumerate(sequences[:, width:].tolist()):
            end = next((t + 1 for t, token in enumerate(new_ids) if token in ends), len(new_ids))
            answers.append(Answer(batch[row // settings.num_answers], new_ids[:end], hidden[row, :end].clone()))
        check_finite(answer.hidden for answer in answers)
        return answers

    return _run(answer, _batches(prompts, settings.batch_size), cache, on_progress)


@torch.no_grad()
def answer_states(
    model: PreTrainedModel,
    prompts: list[list[int]],
    answers: list[list[int]],
    batch_size: int = 32,
    pad_token_id: int = 0,
    prefix: SharedPrefix | None = None,
    cache: AnswerCache | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Answer]:
    """
    The final hidden states that predict given answers (teacher forcing).

    The arguments are those of [`generate_answers`], and `answers`: one list of token ids for each prompt.

    Returns:
        `list[Answer]`: in the order of the prompts.

    Raises:
        `ValueError`: a prompt and its answer are longer than the model's context.
    """
    check_prompts(model, prompts, [len(answer) for answer in answers])
    shared = prefix.length if prefix else 0

    def states(number: int, batch: list[int]) -> list[Answer]:
        rows = [prompts[i][shared:] + answers[i] for i in batch]
        width = max(map(len, rows))
        # Causal attention hides the padding on the right from all other tokens: no mask is needed
        ids = torch.tensor([row + [pad_token_id] * (width - len(row)) for row in rows], device=model.device)
        with prefix.attached(model) if prefix else nullcontext():
            past = {"past_key_values": prefix.new_cache()} if prefix else {"use_cache": False}
            hidden = model.get_decoder()(input_ids=ids, **past)[0]
        result = []
        for row, i in enumerate(batch):
            start = len(prompts[i]) - shared - 1
            result.append(Answer(i, answers[i], hidden[row, start : start + len(answers[i])].clone()))
        check_finite(answer.hidden for answer in result)
        return result

    return _run(states, _batches([p + a for p, a in zip(prompts, answers)], batch_size), cache, on_progress)


def check_finite(states: Iterable[torch.Tensor]) -> None:
    """Raises a `FloatingPointError` where a hidden state is not a finite number: nothing could be learned from it."""
    if not all(state.isfinite().all() for state in states):
        raise FloatingPointError(
            "The model's hidden states are not finite numbers: its weights are damaged, or their dtype is too narrow. "
            "Load it in float32 or bfloat16, or use another copy."
        )


def weights_sha256(model: PreTrainedModel) -> str:
    """
    SHA-256 of the names, shapes and dtypes of all weights, of a sample of each, and of the sum of its bits. A sample
    alone would miss a change elsewhere. Learned rows are not counted.
    """
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        if "be_token_" in name:  # the learned rows are not part of the teacher
            continue
        sample = weight.detach().flatten()[:: max(1, weight.numel() // 16)][:16]
        digest.update(f"{name.replace('.base_layer', '')}{tuple(weight.shape)}{weight.dtype}".encode())
        digest.update(sample.float().cpu().numpy().tobytes())
        if type(weight.data) is torch.Tensor and sample.element_size() * weight.numel() % 8 == 0:
            # Whole numbers have the same sum in any order
            bits = (
                weight.detach().contiguous().flatten().clone()
                if weight.storage_offset()
                else weight.detach().flatten()
            )
            digest.update(str(bits.view(torch.int64).sum().item()).encode())
    return digest.hexdigest()


def model_fingerprint(model: PreTrainedModel) -> str:
    """SHA-256 of the model's configuration, stop ids and weights: what a teacher's answers depend on."""
    config = {name: value for name, value in model.config.to_dict().items() if name not in _NOT_THE_MODEL}
    parts = [config, sorted(stop_ids(model)), weights_sha256(model)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def cached_answers(
    model: PreTrainedModel,
    prompts: list[list[int]],
    settings: AnswerSettings,
    pad_token_id: int,
    directory: str | os.PathLike,
    gold: list[list[int]] | None = None,
    prefix: SharedPrefix | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Answer]:
    """
    The teacher's answers to `prompts`, or its hidden states for `gold` answers, kept in `directory` for whoever asks the
    same of the same model again.

    Args:
        directory (`str` or `os.PathLike`): folder of the [`AnswerCache`]s. The one of [`teacher_cache_dir`] has a size
            limit.
        gold (`list[list[int]]`, *optional*): token ids of given answers, instead of the model's own.

    The other arguments are those of [`generate_answers`].
    """
    asked = vars(settings) if gold is None else {"batch_size": settings.batch_size}
    if settings.temperature == 0:  # greedy answers are the same for every seed
        asked = {name: value for name, value in asked.items() if name != "seed"}
    key: dict = {"model": model_fingerprint(model), "prompts": prompts, "gold": gold, "settings": asked}
    key["prefix"] = prefix.length if prefix else 0  # what is computed apart is rounded apart
    about = f"{Path(model.name_or_path).name}, {len(prompts)} prompts of up to {max(map(len, prompts))} tokens"
    # What a trainer keeps in its own folder is not shared, and has no limit
    cache = AnswerCache(directory, key, about, cache_limit() if Path(directory) == teacher_cache_dir() else None)
    common: dict[str, Any] = {"prefix": prefix, "cache": cache, "on_progress": on_progress}
    with cache.in_use():
        if gold is None:
            return generate_answers(model, prompts, settings, pad_token_id, **common)
        return answer_states(model, prompts, gold, settings.batch_size, pad_token_id, **common)


def _run(
    compute: Callable[[int, list[int]], list[Answer]],
    batches: list[list[int]],
    cache: AnswerCache | None,
    on_progress: Callable[[int, int], None] | None,
) -> list[Answer]:
    results: list[Answer] = []
    done, total = 0, sum(map(len, batches))
    for number, batch in enumerate(batches):
        answers = cache.load(number) if cache else None
        if answers is None:
            answers = compute(number, batch)
            if cache:
                cache.save(number, answers)
                # Read again: what is mapped from the file does not count as memory of the process
                answers = cache.load(number) or answers
        results += answers
        done += len(batch)
        if on_progress:
            on_progress(done, total)
    return sorted(results, key=lambda answer: answer.query)


def _batches(sequences: list[list[int]], batch_size: int) -> list[list[int]]:
    """Indices of `sequences` in batches of similar length, longest first: a run that needs too much memory fails at once."""
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def stop_ids(model: PreTrainedModel) -> set[int]:
    """The tokens that end an answer."""
    eos = model.generation_config.eos_token_id
    eos = model.config.get_text_config().eos_token_id if eos is None else eos
    return set() if eos is None else set(eos if isinstance(eos, list) else [eos])


def teacher_prompts(
    base: PreTrainedModel, renderer: PromptRenderer, queries: list, max_answer_length: int
) -> list[list[int]]:
    """
    What the teacher reads: each query after the full prompt. Raises a `ValueError` where the context is too short.
    """
    prompts = [renderer.full(query) for query in queries]
    check_prompts(base, prompts, max_answer_length, queries)
    return prompts
