"""What a task is, and how a stand-in for a prompt is scored on it."""

from __future__ import annotations

import re
import statistics
from abc import ABC, abstractmethod
from string import Formatter
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...checks import COUNT, check_number
from ...prompting.context import check_prompts
from ...teacher import AnswerSettings, SharedPrefix, generate_answers, share_prefix
from ..stand_in import StandIn


class Task(ABC):
    """
    Items with a query and a reference each, and a score. The prompt is not part of a task: it is what a stand-in brings.
    Tasks whose score is one for the model's answers are [`AnswerTask`]s.

    Args:
        items (`list[dict]`): the items.
        template (`str`, *optional*): how a query is made from an item's fields, in the form of `str.format`; write it as
            the prompt's examples are written. `None` is the class's own.

    Attributes:
        lower_is_better (`bool`): whether a lower score is better.
        queries (`list[str]`): one for each item.
        references (`list`): one for each item.

    Raises:
        `ValueError`: there are no items, or one lacks a field or has something else in it.
    """

    lower_is_better = False
    template = "{question}"
    reference_fields: tuple[str, ...] = ("final", "answer")  # the first that an item has is its reference
    reference_types: tuple[type, ...] = (str, int, float)

    def __init__(self, items: list[dict], template: str | None = None):
        if not items:
            raise ValueError("The task has no items.")
        self.items = items
        self.template = template or self.template
        self.queries = [self.query(item, number) for number, item in enumerate(items, start=1)]
        self.references = [self.reference(item, number) for number, item in enumerate(items, start=1)]

    def query(self, item: dict, number: int) -> str:
        """The query of the item, which is the `number`-th."""
        for field in self._template_fields():
            if field not in item:
                raise ValueError(f"Item {number} of the task has no field '{field}'.")
            if isinstance(item[field], bool) or not isinstance(item[field], (str, int, float)):
                raise ValueError(f"The field '{field}' of item {number} of the task must be a text or a number.")
        query = self.template.format(**item)
        if not query.strip():
            raise ValueError(f"The query of item {number} of the task is empty.")
        return query

    def _template_fields(self) -> list[str]:
        try:
            fields = [field for _, field, _, _ in Formatter().parse(self.template) if field is not None]
        except ValueError as error:
            raise ValueError(f"The template {self.template!r} is not one of str.format: {error}.") from None
        if not all(field.isidentifier() for field in fields):
            raise ValueError(f"The template {self.template!r} must name the fields of an item, as in {{question}}.")
        return fields

    def reference(self, item: dict, number: int) -> Any:
        """The reference of the item, which is the `number`-th."""
        field = next((name for name in self.reference_fields if item.get(name) is not None), None)
        if field is None:
            fields = " or ".join(f"'{name}'" for name in self.reference_fields)
            raise ValueError(f"Item {number} of the task has no field {fields}.")
        value = item[field]
        texts = value if isinstance(value, list) else [value]
        usable = isinstance(value, self.reference_types) and not isinstance(value, bool) and texts
        if not usable or not all(isinstance(text, (str, int, float)) and str(text).strip() for text in texts):
            kinds = "a list of texts" if list in self.reference_types else "a text or a number"
            raise ValueError(f"The field '{field}' of item {number} of the task must be {kinds}, and not empty.")
        return value

    def answer_lengths(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """The most tokens that follow each query."""
        return [0] * len(self.queries)

    @abstractmethod
    def run(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: list[list[int]],
        prefix: SharedPrefix | None,
        batch_size: int,
    ) -> dict:
        """
        Score the model after given prompts.

        Args:
            model, tokenizer, batch_size: As in [`evaluate_task`].
            prompts (`list[list[int]]`): the queries after the stand-in, as ids.
            prefix ([`SharedPrefix`], *optional*): keys and values of what all `prompts` start with.

        Returns:
            `dict`: what [`evaluate_task`] returns.
        """


class AnswerTask(Task):
    """
    A task whose model answers the queries greedily, and whose items are scored one by one.

    Args:
        items, template: As in [`Task`].
        max_answer_length (`int`, *optional*): longest answer, in tokens. `None` is the class's own.

    Attributes:
        stop (`tuple[str, ...]`): an answer ends in front of the first of these.
    """

    max_answer_length = 256
    stop: tuple[str, ...] = ()

    def __init__(self, items: list[dict], template: str | None = None, max_answer_length: int | None = None):
        super().__init__(items, template)
        if max_answer_length is not None:
            check_number("max_answer_length", max_answer_length, COUNT, whole=True)
            self.max_answer_length = max_answer_length

    def answer_lengths(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        return [self.max_answer_length] * len(self.queries)

    @abstractmethod
    def item_scores(self, answers: list[str]) -> dict[str, list[float]]:
        """One score for each item by the name of each metric. The first metric is the task's score."""

    def score(self, answers: list[str]) -> dict:
        """
        Score answers.

        Args:
            answers (`list[str]`): one answer an item, as the model wrote it.

        Returns:
            `dict`: `score` and `standard_error` of the first metric, `num_items`, `item_scores` of the first metric, and
            `metrics`: score and standard error by name. The standard error is that of a mean over items; `None` for a
            single item.

        Raises:
            `ValueError`: there are more or fewer answers than items.
        """
        if len(answers) != len(self.items):
            raise ValueError(f"There are {len(answers)} answers to {len(self.items)} items.")
        if self.stop:
            answers = [re.split("|".join(map(re.escape, self.stop)), answer)[0] for answer in answers]
        by_metric = self.item_scores(answers)
        metrics = {name: _mean(scores) for name, scores in by_metric.items()}
        first = next(iter(metrics))
        return {
            **metrics[first],
            "num_items": len(self.items),
            "item_scores": by_metric[first],
            "metrics": metrics,
        }

    def run(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: list[list[int]],
        prefix: SharedPrefix | None,
        batch_size: int,
    ) -> dict:
        settings = AnswerSettings(max_new_tokens=self.max_answer_length, batch_size=batch_size)
        pad, answers, size = tokenizer.pad_token_id or 0, [], 4 * batch_size
        # In parts, because an answer comes with its hidden states, which nobody needs here
        for start in range(0, len(prompts), size):
            part = generate_answers(model, prompts[start : start + size], settings, pad, prefix=prefix)
            answers += [tokenizer.decode(answer.ids, skip_special_tokens=True) for answer in part]
        return {**self.score(answers), "answers": answers}


@torch.no_grad()
def evaluate_task(
    task: Task,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    stand_in: StandIn,
    batch_size: int = 32,
) -> dict:
    """
    Score what stands in for a prompt on a task. Pass `StandIn(prompt=...)` for the full prompt and `StandIn()` for none.

    Args:
        task ([`Task`]): the task.
        model ([`~transformers.PreTrainedModel`]): the causal LM, not wrapped by PEFT.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): its tokenizer.
        stand_in ([`StandIn`]): the stand-in.
        batch_size (`int`, *optional*, defaults to `32`): queries processed together.

    Returns:
        `dict`: what [`AnswerTask.score`] gives, and the `answers`, as the model wrote them; none for a task that scores given
        texts.

    Raises:
        `ValueError`: a query does not fit into the model's context with the stand-in and its answer.
    """
    with stand_in.placed(model, tokenizer) as render:
        prompts = [render(query) for query in task.queries]
        check_prompts(model, prompts, task.answer_lengths(tokenizer), task.queries)
        return task.run(model, tokenizer, prompts, stand_in.prefix or share_prefix(model, prompts), batch_size)


def _mean(scores: list[float]) -> dict[str, float | None]:
    error = statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else None
    return {"score": statistics.fmean(scores), "standard_error": error}
