"""The teacher's work for a training, before the first step: answers, their hidden states, and the KL without a prompt."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data import query_key
from ..losses import OutputHead
from ..prompting import PromptRenderer
from ..teacher import (
    Answer,
    AnswerSettings,
    SharedPrefix,
    answer_divergences,
    cached_answers,
    generate_answers,
    share_prefix,
    teacher_prompts,
)
from .be_distill_config import BEDistillConfig


logger = logging.getLogger(__name__)

# Answers shown before the training
PREVIEWS = 3
# A prompt whose absence changes less is hardly there: its own examples or paragraphs in another order changed 0.003 to
# 0.017 nats a token (`reordered`), and its absence 0.08 and more, for every prompt that was measured (research/log.md)
LITTLE_KL = 0.02


@dataclass(frozen=True)
class _Lesson:
    """An answer of the teacher: the number of the prompt, the query, the answer's ids, and the index of its hidden states."""

    prompt: int
    query: str | list[dict]
    answer: list[int]
    teacher: int

    def row(self, renderer: PromptRenderer) -> dict:
        """What the student learns from."""
        student = renderer.be(self.query)
        # The last answer token predicts nothing, but is kept: rows stay what the model will see
        labels = [-100] * len(student) + self.answer
        row = {"input_ids": student + self.answer, "labels": labels, "length": len(labels)}
        return {**row, "prompt": self.prompt, "teacher": self.teacher}


class Teaching:
    """
    Makes the rows `[BE] query answer` that the student learns from, with the teacher's hidden states for each answer.

    Args:
        base ([`~transformers.PreTrainedModel`]): the base model, on the device that computes.
        head ([`OutputHead`]): its output layer.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): its tokenizer.
        args ([`BEDistillConfig`]): the training's configuration.
        on_progress (`Callable[[str, int, int], None]`, *optional*): called with the split (`"train"` or
            `"validation"`), the number of its queries that are answered, and their total.

    Attributes:
        hidden (`list[torch.Tensor]`): the teacher's final hidden states `[N, d]` for each row's answer. The row's column
            `teacher` is the index.
        no_prompt_kl (`dict[str, float]`): for each prompt, the KL without a prompt on its validation queries, in nats a
            token.
        no_prompt_same_answers (`dict[str, float]`): the share of the answers to these that greedy decoding writes word for word
            without a prompt.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        head: OutputHead,
        tokenizer: PreTrainedTokenizerBase,
        args: BEDistillConfig,
        on_progress: Callable[[str, int, int], None] | None = None,
    ):
        self.hidden: list[torch.Tensor] = []
        self.no_prompt_kl: dict[str, float] = {}
        self.no_prompt_same_answers: dict[str, float] = {}
        self._base, self._head, self._tokenizer, self._args = base, head, tokenizer, args
        self._on_progress = on_progress
        self._pad = tokenizer.pad_token_id or 0
        # Queries of the first prompt, and the teacher's answers to them
        self._previews: list[tuple[str | list, list[int]]] = []
        self._lessons: dict[str, list[_Lesson]] | None = None

    def rows(
        self, renderers: dict[str, PromptRenderer], datasets: dict[str, Dataset | None], named: bool
    ) -> dict[str, Dataset]:
        """
        Have the teacher answer all queries. It does so once: a later call makes rows for other renderers of the same prompts,
        such as those of an adapter with more [BE] rows.

        Args:
            renderers (`dict[str, PromptRenderer]`): for each prompt, how its queries are written.
            datasets (`dict[str, Dataset]`): the queries of `"train"` and `"validation"`.
            named (`bool`): whether there may be several prompts, and a column `prompt_name` says whose each query is.

        Returns:
            `dict[str, Dataset]`: for both, rows with `input_ids`, `labels`, their `length`, `prompt`, the number of the
                prompt, and `teacher`.

        Raises:
            `ValueError`: a prompt has no queries, or leaves no room in the context for query and answer.
        """
        if self._lessons is None:
            self._lessons = self._teach(renderers, datasets, named)
        students = list(renderers.values())
        return {
            split: Dataset.from_list([lesson.row(students[lesson.prompt]) for lesson in lessons])
            for split, lessons in self._lessons.items()
        }

    def _teach(
        self, renderers: dict[str, PromptRenderer], datasets: dict[str, Dataset | None], named: bool
    ) -> dict[str, list[_Lesson]]:
        """Have the teacher answer all queries, as in `rows`."""
        if named:
            for split, dataset in datasets.items():
                _check_owners(dataset, renderers, split)
        lessons: dict[str, list[_Lesson]] = {split: [] for split in datasets}
        done = dict.fromkeys(datasets, 0)
        totals = {split: len(dataset or []) for split, dataset in datasets.items()}
        training = self._base.training
        self._base.eval()
        for number, (name, renderer) in enumerate(renderers.items()):
            own = {split: _own_queries(dataset, name, split, named) for split, dataset in datasets.items()}
            _warn_of_seen_queries(own, f" of '{name}'" if named else "")
            prompts = {
                split: teacher_prompts(self._base, renderer, dataset["query"], self._args.max_answer_length)
                for split, dataset in own.items()
            }
            prefix = share_prefix(self._base, prompts["train"] + prompts["validation"])
            for split, dataset in own.items():
                start, queries = time.perf_counter(), dataset["query"]
                report = self._report(split, done[split], totals[split])
                answers = self._answers(dataset, prompts[split], prefix, report)
                if split == "validation":
                    self._measure_no_prompt(name, renderer, queries, answers, named)
                elif number == 0:
                    firsts = {answer.query: answer.ids for answer in reversed(answers) if answer.query < PREVIEWS}
                    self._previews = [(queries[query], ids) for query, ids in sorted(firsts.items())]
                for answer in answers:
                    lessons[split].append(_Lesson(number, queries[answer.query], answer.ids, len(self.hidden)))
                    self.hidden.append(answer.hidden)
                done[split] += len(dataset)
                seconds = time.perf_counter() - start
                logger.info(f"Teacher: {len(dataset)} {split} queries of prompt '{name}' in {seconds:.0f} s.")
        self._base.train(training)
        return lessons

    def preview(self, renderer: PromptRenderer) -> list[dict]:
        """The teacher's answers to the first queries, see [`BEDistillTrainer.preview`]."""
        settings = replace(self.settings, num_answers=1, temperature=0.0, top_p=1.0)
        prompts = [renderer.no_prompt(query) for query, _ in self._previews]
        training = self._base.training
        without = generate_answers(self._base.eval(), prompts, settings, self._pad) if prompts else []
        self._base.train(training)
        return [
            {
                "query": query if isinstance(query, str) else query[-1]["content"],
                "full": self._tokenizer.decode(ids, skip_special_tokens=True),
                "no_prompt": self._tokenizer.decode(answer.ids, skip_special_tokens=True),
            }
            for (query, ids), answer in zip(self._previews, without)
        ]

    @property
    def settings(self) -> AnswerSettings:
        """How the teacher answers."""
        args = self._args
        return AnswerSettings(
            max_new_tokens=args.max_answer_length,
            num_answers=args.num_answers,
            temperature=args.answer_temperature,
            top_p=args.answer_top_p,
            batch_size=args.answer_batch_size,
            seed=args.seed,
        )

    def _report(self, split: str, before: int, total: int) -> Callable[[int], None]:
        def report(done: int) -> None:
            if self._on_progress:
                self._on_progress(split, before + done, total)

        return report

    def _answers(
        self,
        dataset: Dataset,
        prompts: list[list[int]],
        prefix: SharedPrefix | None,
        report: Callable[[int], None],
    ) -> list[Answer]:
        """The teacher's answers to the queries of one prompt, or the given answers with its hidden states."""
        given = list(dataset["answer"]) if "answer" in dataset.column_names else [None] * len(dataset)
        directory = self._args.answer_cache_dir or Path(self._args.output_dir) / "teacher"
        asked = [i for i, answer in enumerate(given) if answer is None]
        read = [i for i, answer in enumerate(given) if answer is not None]
        gold = [self._answer_ids(answer) for answer in given if answer is not None]
        answers: list[Answer] = []
        for indices, ids, earlier in ((asked, None, 0), (read, gold, len(asked))):

            def advance(done: int, _: int, earlier: int = earlier) -> None:
                report(earlier + done)

            if indices:
                own = [prompts[i] for i in indices]
                found = cached_answers(self._base, own, self.settings, self._pad, directory, ids, prefix, advance)
                answers += [replace(answer, query=indices[answer.query]) for answer in found]
        kept = self._args.max_kd_tokens
        return [replace(answer, ids=answer.ids[:kept], hidden=answer.hidden[:kept]) for answer in answers]

    def _answer_ids(self, answer: str | list[int]) -> list[int]:
        """Token ids of a given answer; a text has the end-of-turn token after it."""
        if isinstance(answer, str):
            eos = self._base.generation_config.eos_token_id
            eos = [] if eos is None else [eos[0] if isinstance(eos, list) else eos]
            ids = self._tokenizer(answer, add_special_tokens=False, split_special_tokens=True)["input_ids"] + eos
        else:
            ids = answer
        return ids[: self._args.max_answer_length]

    def _measure_no_prompt(
        self, name: str, renderer: PromptRenderer, queries: list, answers: list[Answer], named: bool
    ) -> None:
        """The KL and the same answers without a prompt on the validation queries: those of the rows say nothing without them."""
        prompts = [renderer.no_prompt(queries[answer.query]) for answer in answers]
        size = self._args.per_device_eval_batch_size
        states, kl = answer_divergences(self._base, self._head, prompts, answers, size, self._pad)
        tops = [self._head.most_probable(state.hidden).tolist() for state in states]
        self.no_prompt_same_answers[name] = sum(top == answer.ids for top, answer in zip(tops, answers)) / len(answers)
        self.no_prompt_kl[name] = value = torch.cat(kl).mean().item()
        if value < LITTLE_KL:
            prompt = f"prompt '{name}'" if named else "prompt"
            warnings.warn(
                f"The {prompt} changes little: without it, the model gives the teacher's answers to the validation "
                f"queries with a KL of {value:.4f} nats a token. Another order of a prompt's parts changes as much "
                f"({LITTLE_KL} at the most, where it was measured), so there is little for [BE] to learn. The model "
                "may be too weak to follow the prompt, or the queries do not touch on what it says.",
                stacklevel=1,
            )


def _check_owners(dataset: Dataset | None, names: Collection[str], split: str) -> None:
    """Refuse queries of prompts that do not learn, which nobody would be told were left out."""
    if dataset is None:
        return
    if "prompt_name" not in dataset.column_names:
        raise ValueError(f"The {split} queries of several prompts need a column prompt_name: the prompt of each.")
    for number, name in enumerate(dataset["prompt_name"], start=1):
        if name not in names:
            raise ValueError(
                f"Row {number} of the {split} queries has the prompt_name {name!r}, and the prompts are "
                f"{', '.join(map(str, names))}."
            )


def _warn_of_seen_queries(own: dict[str, Dataset], of: str) -> None:
    seen, held_out = ([query_key(query) for query in own[split]["query"]] for split in ("train", "validation"))
    if again := len(set(held_out).intersection(seen)):
        warnings.warn(
            f"{again} of the {len(held_out)} validation queries{of} are trained on, too: the KL on them does not say how [BE] "
            "answers others. Hold out queries of their own.",
            stacklevel=1,
        )


def _own_queries(dataset: Dataset | None, name: str, split: str, named: bool) -> Dataset:
    """The queries of one prompt."""
    if dataset is not None and named:
        dataset = dataset.select([i for i, owner in enumerate(dataset["prompt_name"]) if owner == name])
    if dataset is None or len(dataset) == 0:
        whose = f" of prompt '{name}'" if named else ""
        raise ValueError(f"Distillation (kd_weight above 0) needs {split} queries{whose}, and there are none.")
    return dataset
