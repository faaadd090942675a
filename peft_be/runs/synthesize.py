"""
Queries from the prompt alone: the model that reads P goes on where a user would write.

A chat model has learned what users write as well as what it answers. So its own template is left open where the user's turn
begins, and the model writes the turn, as Magpie (arXiv 2406.08464) does without a prompt. P stands before it: the model writes
what users of this prompt ask, and after worked examples it writes new inputs of their form.
"""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..adapters.folder import QUERY_FILE
from ..adapters.load import load_base
from ..checks import COUNT, check_number
from ..data import load_queries
from ..data.repeats import nearly_same, passages_of
from ..data.words import words
from ..files import write_json_lines
from ..models import DEFAULT_MODEL
from ..progress import OnProgress
from ..prompting import PromptRenderer
from ..prompting.messages import check_prompt
from ..teacher import AnswerSettings, SharedPrefix, cached_answers, share_prefix, teacher_cache_dir
from ..teacher.answers import common_prefix_length, stop_ids
from .config import CompressConfig
from .folder import RunFolder


NUM_QUERIES = 480
BATCH_SIZE = 64
MAX_LENGTH = 96  # of a query, in tokens
# Samples for each query: a model that repeats itself would never get there
MAX_SAMPLES = 2
# They share no token at their ends, and so show where a query stands. A space before it may belong to its first token
_PROBES = ("Apple", "7 zebras", "Is it?", "what now", "the end.")


@dataclass
class SynthesizedQueries:
    """
    What users of a prompt may ask, as the model writes it.

    Attributes:
        queries (`list[str]`): the queries, in the order in which they were written.
        num_samples (`int`): how many the model wrote, with those of the last batch that were not needed.
        left_out (`dict[str, int]`): how many of these were left out, by reason.
    """

    queries: list[str]
    num_samples: int
    left_out: dict[str, int]

    def reasons(self) -> str:
        """The counts of `left_out`, in words."""
        return ", ".join(f"{count} {reason}" for reason, count in sorted(self.left_out.items())) or "none"

    def save(self, file: Path) -> None:
        """Write the queries as [`load_queries`] reads them."""
        write_json_lines(file, ({"query": query} for query in self.queries))


def synthesize_queries(
    prompt: str | list[dict[str, str]],
    num_queries: int = NUM_QUERIES,
    *,
    model: str | PreTrainedModel = DEFAULT_MODEL,
    tokenizer: PreTrainedTokenizerBase | None = None,
    temperature: float = 1.0,
    top_p: float = 0.95,
    seed: int = 42,
    on_progress: OnProgress | None = None,
) -> SynthesizedQueries:
    """
    Write what users of a prompt may ask.

    Queries are left out if the model does not end them within 96 tokens, if they have no words, stand in the prompt, or nearly
    repeat another. What is written is kept in the teacher's cache: the same call gives the same queries at once.

    Args:
        prompt (`str` or `list[dict]`): P, as in [`compress_prompt`].
        num_queries (`int`, *optional*, defaults to `480`): how many to write.
        model, tokenizer: as in [`compress_prompt`].
        temperature (`float`, *optional*, defaults to `1.0`): of the sampling. Lower it for a model that rambles.
        top_p (`float`, *optional*, defaults to `0.95`): nucleus of the sampling.
        seed (`int`, *optional*, defaults to `42`): of the sampling.
        on_progress (`Callable`, *optional*): called with the stage, the queries so far, `num_queries`, and an
            empty dict.

    Returns:
        [`SynthesizedQueries`]: with fewer queries and a warning if the model begins to repeat itself.

    Raises:
        `ValueError`: the prompt is empty or too long, a number is out of range, or the model writes no query to train with.
    """
    check_number("num_queries", num_queries, COUNT, whole=True)
    if temperature == 0:
        raise ValueError("temperature must be above 0: without sampling, the model writes one query again and again.")
    settings = AnswerSettings(MAX_LENGTH, BATCH_SIZE, temperature, top_p, batch_size=1, seed=seed)
    check_prompt(prompt)
    model, tokenizer = load_base(model, tokenizer)
    turn = UserTurn(model, tokenizer, prompt)
    queries: list[str] = []
    seen: list[list[str]] = []
    left_out: Counter[str] = Counter()
    num_samples = 0
    while len(queries) < num_queries and num_samples < MAX_SAMPLES * max(num_queries, BATCH_SIZE):
        written = turn.write(replace(settings, seed=seed + num_samples))
        readable = [query for query in written if query and words(query)]
        passages = dict(zip(readable, passages_of(prompt, readable)))
        for query in written:
            if query is None:
                left_out["not finished"] += 1
            elif query not in passages:
                left_out["without words"] += 1
            elif passages[query] is not None:
                left_out["in the prompt"] += 1
            elif any(nearly_same(words(query), other) for other in seen):
                left_out["nearly the same as another"] += 1
            elif len(queries) < num_queries:
                queries.append(query)
                seen.append(words(query))
        num_samples += BATCH_SIZE
        if on_progress:
            on_progress("queries", len(queries), num_queries, {})
    result = SynthesizedQueries(queries, num_samples, dict(left_out))
    if not queries:
        raise ValueError(f"The model wrote no query to train with (left out: {result.reasons()}): give your own.")
    if len(queries) < num_queries:
        warnings.warn(
            f"The model wrote {len(queries)} different queries, and not {num_queries} (left out: {result.reasons()}): add "
            "queries of your own, or try another temperature.",
            stacklevel=1,
        )
    return result


class UserTurn:
    """
    The place after a prompt where the user's turn begins.

    Args:
        model ([`~transformers.PreTrainedModel`]): the causal LM.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): its tokenizer.
        prompt (`str` or `list[dict]`): P.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str | list[dict[str, str]]):
        renderer = PromptRenderer(tokenizer, prompt)
        inputs = [renderer.full(probe) for probe in _PROBES]
        self._model, self._tokenizer = model, tokenizer
        self.ids = inputs[0][: common_prefix_length(inputs)]
        after = inputs[0][len(inputs[0]) - common_prefix_length([ids[::-1] for ids in inputs]) :]
        closing = tokenizer.decode(after).strip()
        if not closing:
            raise ValueError(
                "The chat template does not show where a user's turn ends: the model cannot write queries. Give your own."
            )
        self._special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._ends = stop_ids(model) | ({after[0]} & self._special)
        # Where the template ends the user's turn with plain text, such as [/INST] or Assistant:
        self._closing = None if after[0] in self._special else closing.partition("\n")[0]

    @cached_property
    def _prefix(self) -> SharedPrefix | None:
        return share_prefix(self._model, [self.ids])

    def write(self, settings: AnswerSettings) -> list[str | None]:
        """Samples of the turn, `None` for those that were not ended."""
        pad, cache = self._tokenizer.pad_token_id or 0, teacher_cache_dir()
        samples = cached_answers(self._model, [self.ids], settings, pad, cache, prefix=self._prefix)
        return [self.query(sample.ids) for sample in samples]

    def query(self, ids: list[int]) -> str | None:
        """The text of a turn, or `None` if it was not ended or has special tokens."""
        end = next((i for i, token_id in enumerate(ids) if token_id in self._ends), None)
        text, closed = self._tokenizer.decode(ids[:end]), end is not None
        if self._closing is not None:
            text, found, _ = text.partition(self._closing)
            closed = closed or bool(found)
        return text.strip() if closed and not self._special & set(ids[:end]) else None


def synthesized(
    run: RunFolder,
    prompt: str | list[dict[str, str]],
    config: CompressConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    on_progress: OnProgress | None,
) -> list[str]:
    """The queries that a run writes for itself, once. They are kept next to the adapter, for you to read."""
    for folder in (run.directory, run.work):
        if (folder / QUERY_FILE).is_file():
            return load_queries(folder / QUERY_FILE)
    if run.is_finished:
        raise FileNotFoundError(
            f"'{run.directory / QUERY_FILE}' is missing, which the finished run was trained on: put it back, or pass --overwrite."
        )
    written = synthesize_queries(
        prompt, NUM_QUERIES, model=model, tokenizer=tokenizer, seed=config.seed, on_progress=on_progress
    )
    written.save(run.work / QUERY_FILE)
    return written.queries
