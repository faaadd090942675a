"""What all methods share that learn the parameters of one of PEFT's own methods."""

from __future__ import annotations

import contextlib
import copy
import itertools
import statistics
import time
from abc import abstractmethod
from collections.abc import Callable
from typing import cast

import torch
from peft import PeftModel
from torch.utils.data import DataLoader, Dataset
from transformers import get_cosine_schedule_with_warmup

from ...checks import COUNT, POSITIVE, check_number
from ...evaluation.stand_in import StandIn
from ...losses import OutputHead, divergence
from ...machine.memory import freed_memory_kept
from ...machine.quantised import keep_backward
from ...prompting import PromptRenderer
from ...teacher import answer_divergences
from ...training.budget import Budget, sample_batches, time_batches
from ...training.row_trainer import RowCollator, final_hidden_states, predicting
from .method import Job, Method


WARMUP_STEPS = 10


class LearnedAdapter(Method):
    """
    The parameters of one of PEFT's methods, learned by Eq. 3 at temperature 1 from the same answers of the same teacher as
    [BE]. Subclasses say which method, and what the student reads in front of an answer.

    Args:
        learning_rate (`float`): Adam's highest learning rate, with a cosine schedule.
        batch_size (`int`, *optional*, defaults to `2`): answers a step.
        max_steps (`int`, *optional*, defaults to `600`): used where the job does not set a number.
        eval_steps (`int`, *optional*, defaults to `100`): steps between validations; what validated best is kept.

    Raises:
        `ValueError`: a number is out of range.
    """

    trains = True

    def __init__(self, learning_rate: float, batch_size: int = 2, max_steps: int = 600, eval_steps: int = 100):
        check_number("learning_rate", learning_rate, POSITIVE)
        for name, value in {"batch_size": batch_size, "max_steps": max_steps, "eval_steps": eval_steps}.items():
            check_number(name, value, COUNT, whole=True)
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_steps = max_steps
        self.eval_steps = eval_steps

    @abstractmethod
    def students_turn(self, job: Job) -> Callable[[str | list[dict]], list[int]]:
        """A function from a query to the ids that the student reads."""

    @abstractmethod
    def wrapped(self, job: Job) -> contextlib.AbstractContextManager[PeftModel]:
        """Context with the model wrapped by PEFT. Afterwards, the base model is as it was."""

    @abstractmethod
    def stand_in(self, model: PeftModel) -> StandIn:
        """What was learned, read from the wrapped model."""

    def fit(self, job: Job) -> StandIn:
        budget = Budget(job.max_minutes)
        # Before the model is wrapped: the teacher must not read what is learned
        rows = {split: self._rows(job, split) for split in ("train", "validation")}
        torch.manual_seed(job.seed)
        head, pad = OutputHead(job.model), job.tokenizer.pad_token_id or 0
        renderer = PromptRenderer(job.tokenizer)
        none = [renderer.no_prompt(query) for query in job.splits.validation]
        _, kl = answer_divergences(job.model, head, none, job.teacher_answers("validation"), pad_token_id=pad)
        no_prompt_kl = torch.cat(kl).mean().item()
        with self.wrapped(job) as model, freed_memory_kept(job.model.device):
            log = self._train(model, head, rows, job, budget)
            stand_in = self.stand_in(model.eval())
        stand_in.log = [{**entry, "eval_no_prompt_kl": no_prompt_kl} for entry in log]
        return stand_in

    def _rows(self, job: Job, split: str) -> list[dict]:
        """Rows `q answer`, each with the teacher's hidden states for the answer."""
        students_turn = self.students_turn(job)
        heads = [students_turn(query) for query in getattr(job.splits, split)]
        return [
            {"input_ids": head + a.ids, "labels": [-100] * len(head) + a.ids, "teacher_hidden": a.hidden}
            for head, a in zip(heads, job.teacher_answers(split))
        ]

    def _train(
        self, model: PeftModel, head: OutputHead, rows: dict[str, list[dict]], job: Job, budget: Budget
    ) -> list[dict]:
        keep_backward(job.model)
        collate, stage = RowCollator(job.tokenizer.pad_token_id or 0), type(self).__name__.lower()
        loaders: dict[str, DataLoader] = {
            "train": DataLoader(cast(Dataset, rows["train"]), self.batch_size, shuffle=True, collate_fn=collate),
            "validation": DataLoader(cast(Dataset, rows["validation"]), 16, collate_fn=collate),
        }
        parameters = [p for p in model.parameters() if p.requires_grad]

        def kl(batch: dict) -> torch.Tensor:
            batch = {name: tensor.to(job.model.device) for name, tensor in batch.items()}
            student, _ = predicting(final_hidden_states(model, batch), batch)
            return divergence(student, batch["teacher_hidden"], head)

        @torch.no_grad()
        def validate() -> float:
            return torch.cat([kl(batch) for batch in loaders["validation"]]).cpu().double().mean().item()

        steps = job.max_steps or self.max_steps
        if budget.seconds is not None:
            durations = time_batches(lambda batch: kl(batch).mean(), sample_batches(loaders["train"]), budget.left())
            model.zero_grad()
            begin = time.perf_counter()
            validate()
            validation = (time.perf_counter() - begin) / self.eval_steps
            steps = min(steps, max(1, int(budget.left() / (statistics.mean(durations) + validation))))
        optimizer = torch.optim.Adam(parameters, lr=self.learning_rate)
        schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP_STEPS, steps)
        best, kept, log = float("inf"), None, []
        batches = itertools.chain.from_iterable(itertools.repeat(loaders["train"]))
        for step, batch in enumerate(itertools.islice(batches, steps), start=1):
            kl(batch).mean().backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if step % self.eval_steps == 0 or step == steps:
                log.append({"step": step, "eval_kl": validate()})
                if log[-1]["eval_kl"] < best:
                    best, kept = log[-1]["eval_kl"], copy.deepcopy([p.detach() for p in parameters])
            if job.on_progress:
                job.on_progress(stage, step, steps, log[-1] if log else {})
        if kept is None:
            raise FloatingPointError(f"The KL of {stage} is not a finite number: lower its learning rate.")
        with torch.no_grad():
            for parameter, value in zip(parameters, kept):
                parameter.copy_(value)
        return log
