"""The one interface of all methods that make something stand in for a prompt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...data import QuerySplits
from ...evaluation.stand_in import Prompt, StandIn
from ...progress import OnProgress, counter
from ...prompting import PromptRenderer
from ...teacher import (
    Answer,
    AnswerSettings,
    cached_answers,
    share_prefix,
    teacher_cache_dir,
    teacher_prompts,
)


@dataclass
class Job:
    """
    What every method is given: a prompt to replace, on one model, with the same queries and the same budget.

    Attributes:
        model ([`~transformers.PreTrainedModel`]): the frozen causal LM, not wrapped by PEFT.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): its tokenizer.
        prompt (`str` or `list[dict]`): P.
        splits ([`QuerySplits`]): training and validation queries. Test queries are not a method's business.
        directory (`Path`): the method's own empty or half-filled folder, for work in progress.
        seed (`int`): of everything random.
        max_steps (`int`, *optional*): training steps; `None` is the method's own default.
        max_minutes (`float`, *optional*): time for the training, the teacher's work included.
        max_answer_length (`int`): longest answer of the teacher, in tokens.
        on_progress (`Callable[[str, int, int, dict], None]`, *optional*): called with what is being done, the work done,
            its total, and the latest logged values.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prompt: Prompt
    splits: QuerySplits
    directory: Path
    seed: int = 42
    max_steps: int | None = None
    max_minutes: float | None = None
    max_answer_length: int = 64
    on_progress: OnProgress | None = None

    def teacher_answers(self, split: str) -> list[Answer]:
        """P's greedy answers to the queries of a split, with hidden states: those that [`BEDistillTrainer`] learns from."""
        renderer = PromptRenderer(self.tokenizer, self.prompt)
        prompts = {
            name: teacher_prompts(self.model, renderer, getattr(self.splits, name), self.max_answer_length)
            for name in ("train", "validation")
        }
        return cached_answers(
            self.model,
            prompts[split],
            AnswerSettings(max_new_tokens=self.max_answer_length),
            self.tokenizer.pad_token_id or 0,
            teacher_cache_dir(),
            # As in the trainer: where the shared part ends changes the last bits
            prefix=share_prefix(self.model, prompts["train"] + prompts["validation"]),
            on_progress=counter(self.on_progress, f"teacher, {split} queries"),
        )


class Method(ABC):
    """
    A way to replace a prompt by something shorter.

    Attributes:
        trains (`bool`): whether steps and minutes of the [`Job`] matter to it.
        is_random (`bool`): whether its result depends on the seed.
    """

    trains = False

    @property
    def is_random(self) -> bool:
        return self.trains

    @abstractmethod
    def fit(self, job: Job) -> StandIn:
        """
        Make the stand-in.

        Raises:
            `ValueError`: the job's prompt or queries do not suit the method; the message says why.
            `ImportError`: an optional package is missing; the message says how to install it.
        """
