"""What a prompt costs at inference: in full, in full with its keys and values cached, not at all, and as [BE]."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from peft import PeftModel
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from ..checks import check_number
from ..data import as_queries
from ..machine.versions import machine_of, versions
from ..progress import OnProgress
from ..prompting import PromptRenderer
from ..prompting.context import check_prompts
from ..teacher import common_prefix_length
from ..tuner import active_config
from ..tuner.inputs import any_input
from .latency import RequestTiming, time_requests


QUERIES = (
    "Who are you?",
    "What can you do for me?",
    "Please explain to me in a few words how all of this works.",
    "I have a question about something that happened yesterday, and I am not sure that I understood it.",
)
MODES = ("full", "full_cached", "no_prompt", "be")
Jobs = dict[str, Callable[[], RequestTiming]]
# Shares of the full prompt at which TTFT is measured to fit Eq. 6
FIT_SHARES = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class BenchConfig:
    """
    What [`bench_inference`] measures.

    Args:
        batch_sizes (`tuple[int, ...]`, *optional*, defaults to `(1, 4)`):
            Requests answered together.
        new_tokens (`int`, *optional*, defaults to `32`):
            Length of an answer, in tokens, after the first one.
        repeats (`int`, *optional*, defaults to `5`):
            Measurements of each figure, after one warm-up; at least 2.

    Raises:
        `ValueError`: fewer than two repeats, no decoded token, or a batch size below 1.
    """

    batch_sizes: tuple[int, ...] = (1, 4)
    new_tokens: int = 32
    repeats: int = 5

    def __post_init__(self):
        sizes = [("a batch size", size) for size in self.batch_sizes]
        for name, value in [("repeats", self.repeats), ("new_tokens", self.new_tokens), *sizes]:
            check_number(name, value, whole=True)
        if self.repeats < 2 or self.new_tokens < 1 or min(self.batch_sizes, default=0) < 1:
            raise ValueError("A measurement needs at least 2 repeats, 1 new token, and batch sizes of 1 or more.")

    @classmethod
    def quick(cls) -> BenchConfig:
        """For a first look: one request at a time, short answers, and as few repeats as have a spread."""
        return cls(batch_sizes=(1,), new_tokens=8, repeats=2)


@torch.no_grad()
def bench_inference(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | list[dict[str, str]],
    queries: Iterable | None = None,
    config: BenchConfig | None = None,
    training_seconds: float | None = None,
    on_progress: OnProgress | None = None,
    allow_other_prompt: bool = False,
) -> dict:
    """
    Measure latency, decoding speed and cache size of four ways to serve a prompt, alternating between them in one run.

    `full_cached` is prefix caching as transformers documents it: P's keys and values are there before the clock starts,
    each row attends to its copy with the model's own kernel, and the memory counts P once, as servers that share pages do.

    Args:
        model ([`~peft.PeftModel`]):
            The base model with the active BE_TOKEN adapter.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        prompt (`str` or `list[dict]`):
            P, the prompt that [BE] stands for.
        queries (`Iterable`, *optional*):
            Users' turns, in any form that [`as_queries`] takes. They are used in order, and again from the first one where
            there are too few. `None` takes four general ones.
        config ([`BenchConfig`], *optional*):
            Batch sizes, the length of answers, and how often to measure.
        training_seconds (`float`, *optional*):
            What the compression took, for the break-even.
        on_progress (`Callable[[str, int, int, dict], None]`, *optional*):
            Called with what is being done, the rounds done, their total, and an empty dict.
        allow_other_prompt (`bool`, *optional*, defaults to `False`):
            Accept another prompt than the one that the adapter was trained on.

    Returns:
        `dict`: JSON-serialisable. `batches` holds, for each batch size and mode, the quartiles of `ttft_ms` and
            `decode_tokens_per_s`, and `kv_bytes`; `norm_flops` is Eq. 5; `ttft_fit` has alpha, beta and rho of Eq. 6, fitted
            without the [BE] measurement, and `ttft_ratio` has the predicted and the measured value; `break_even_requests`
            is the number of requests, at the first batch size, after which the compression has saved the time it took,
            against `full` and against `full_cached`, and `None` where it saves none.

    Raises:
        `ValueError`: no queries, another prompt than the adapter's, or a query that does not fit into the model's
            context with P and its answer.
    """
    config = config or BenchConfig()
    asked = list(QUERIES) if queries is None else as_queries(queries)
    if not asked:
        raise ValueError("There are no queries to measure with.")
    adapter, base = active_config(model), model.get_base_model()
    renderer = PromptRenderer.for_adapter(adapter, tokenizer, prompt, allow_other_prompt=allow_other_prompt)
    asked = list(itertools.islice(itertools.cycle(asked), max(config.batch_sizes)))
    prompts = {form: [getattr(renderer, form)(query) for query in asked] for form in ("full", "no_prompt", "be")}
    check_prompts(base, sum(prompts.values(), []), config.new_tokens, 3 * asked)
    was_training = model.training
    model.eval()
    prefix = _cached_prefix(base, [*prompts["full"], renderer.full("A"), renderer.full("B")])

    rounds = _Rounds(config.repeats, len(config.batch_sizes) + 1, on_progress)
    batches = []
    for size in config.batch_sizes:
        first = {form: ids[:size] for form, ids in prompts.items()}
        jobs: Jobs = {form: partial(time_requests, base, ids, config.new_tokens) for form, ids in first.items()}
        jobs["full_cached"] = partial(time_requests, base, first["full"], config.new_tokens, prefix)
        timings = rounds.measured(jobs)
        batches.append({"batch_size": size, **{mode: _figures(timings[mode]) for mode in MODES}})
    ttft = _ttft_model(base, rounds, prompts["full"][0], prompts["no_prompt"][0], prompts["be"][0])
    model.train(was_training)
    return {
        "model": adapter.base_model_name_or_path,
        "prompt_tokens": len(renderer.prompt_ids),
        "be_tokens": adapter.num_be_tokens,
        "kept_tokens": len(renderer.kept_ids),
        "new_tokens": config.new_tokens,
        "repeats": config.repeats,
        "batches": batches,
        **ttft,
        "training_seconds": training_seconds,
        "break_even_requests": break_even(batches[0], config.new_tokens, training_seconds),
        "machine": machine_of(base),
        "versions": versions(),
    }


class _Rounds:
    """
    Measures jobs in rounds that alternate between them.

    Args:
        repeats (`int`): timings of each job, after a round that warms up.
        parts (`int`): how many times [`measured`] will be called.
        on_progress (`Callable`, *optional*): as in [`bench_inference`].
    """

    def __init__(self, repeats: int, parts: int, on_progress: OnProgress | None):
        self._repeats, self._on_progress = repeats, on_progress
        self._done, self._total = 0, (repeats + 1) * parts

    def measured(self, jobs: Jobs) -> dict[str, list[RequestTiming]]:
        """The timings of each job."""
        timings: dict[str, list[RequestTiming]] = {name: [] for name in jobs}
        for _ in range(self._repeats + 1):
            for name, job in jobs.items():
                timings[name].append(job())
            self._done += 1
            if self._on_progress:
                self._on_progress("requests", self._done, self._total, {})
        return {name: values[1:] for name, values in timings.items()}


def _cached_prefix(base: PreTrainedModel, prompts: list[list[int]]) -> DynamicCache:
    """The keys and values of what all prompts share. The user's turn is not a part of what a server has cached."""
    shared, prefix = common_prefix_length(prompts), DynamicCache(config=base.config)
    ids = torch.tensor([prompts[0][:shared]], device=base.device)
    with any_input(base):
        base(input_ids=ids, past_key_values=prefix, logits_to_keep=1)
    return prefix


def _figures(timings: list[RequestTiming]) -> dict:
    return {
        "ttft_ms": quartiles([timing.ttft_ms for timing in timings]),
        "decode_tokens_per_s": quartiles([timing.decode_tokens_per_s or 0.0 for timing in timings]),
        "kv_bytes": timings[0].kv_bytes,
    }


def _ttft_model(base: PreTrainedModel, rounds: _Rounds, full: list[int], no_prompt: list[int], be: list[int]) -> dict:
    """
    Eq. 5 and 6 of the paper, for one request rendered in three ways. The times of no prompt and of parts of the full
    prompt are fitted, and that of [BE] is predicted.
    """
    points = [no_prompt, *(full[: round(share * len(full))] for share in FIT_SHARES)]
    jobs: Jobs = {str(i): partial(time_requests, base, [ids]) for i, ids in enumerate([*points, be])}
    *ttft, be_ttft = (statistics.median(t.ttft_ms for t in values) for values in rounds.measured(jobs).values())
    design = torch.tensor([[1.0, len(ids)] for ids in points])
    alpha, beta = torch.linalg.lstsq(design, torch.tensor([ttft]).T).solution.flatten().tolist()
    norm_flops = len(be) / len(full)
    rho = alpha / (alpha + beta * len(full))
    return {
        "norm_flops": norm_flops,
        "ttft_fit": {"alpha_ms": alpha, "beta_ms_per_token": beta, "rho": rho},
        "ttft_ratio": {"predicted": rho + (1 - rho) * norm_flops, "measured": be_ttft / ttft[-1]},
    }


def quartiles(values: list[float]) -> dict[str, float]:
    """Median and quartiles of at least two values."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"q1": low, "median": median, "q3": high}


def break_even(batch: dict, new_tokens: int, training_seconds: float | None) -> dict[str, int | None]:
    """The number of requests after which the compression has saved `training_seconds`, for both ways to keep the prompt."""

    def seconds(mode: str) -> float:
        per_request = batch[mode]["ttft_ms"]["median"] / 1000
        per_token = batch["batch_size"] / batch[mode]["decode_tokens_per_s"]["median"]
        return (per_request + new_tokens * per_token) / batch["batch_size"]

    result: dict[str, int | None] = {}
    for mode in ("full", "full_cached"):
        saved = seconds(mode) - seconds("be")
        result[mode] = math.ceil(training_seconds / saved) if training_seconds is not None and saved > 0 else None
    return result
