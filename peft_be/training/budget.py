"""A time budget, turned into steps before the first one, so that the learning rate schedule reaches its end."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch

from ..machine.clock import synchronize


if TYPE_CHECKING:
    from .be_distill_trainer import BEDistillTrainer


# How many batches are timed, or fewer if they take more than this share of the budget
SAMPLES = 8
SHARE = 0.1


def sample_batches(loader: Iterable) -> list:
    """The batches to time. Training draws the same numbers afterwards as if nothing had been timed."""
    with torch.random.fork_rng():
        return list(itertools.islice(itertools.chain.from_iterable(itertools.repeat(loader)), SAMPLES))


def seconds_of(loss: Callable[[], torch.Tensor]) -> float:
    """The seconds that a loss and its gradients take."""
    start = time.perf_counter()
    value = loss()
    value.backward()
    synchronize(value.device)
    return time.perf_counter() - start


def time_batches(loss: Callable[[dict], torch.Tensor], batches: list[dict], seconds: float) -> list[float]:
    """The seconds that the loss of each batch takes, for as many of the first batches as fit a share of the budget `seconds`."""
    seconds_of(lambda: loss(batches[-1]))  # warms up
    durations: list[float] = []
    while len(durations) < len(batches) and sum(durations) <= SHARE * seconds:
        durations.append(seconds_of(lambda: loss(batches[len(durations)])))
    return durations


def steps_in_time(trainer: BEDistillTrainer, seconds: float) -> int:
    """
    How many steps of `trainer` fit into `seconds`, at least one. Their validations and reconstructions count, and so does the
    measuring itself.
    """
    args, start = trainer.args, time.perf_counter()
    batches = [trainer._prepare_inputs(inputs) for inputs in sample_batches(trainer.get_train_dataloader())]
    with torch.random.fork_rng():  # a resumed run does not measure again, and must draw the same numbers
        trainer.state.global_step = 1  # a step without reconstruction, if there are such
        durations = time_batches(lambda inputs: trainer.compute_loss(trainer.model, inputs), batches, seconds)
        trainer.state.global_step = 0
        reconstruction = 0.0
        if args.kd_weight < 1:
            reconstruction = seconds_of(
                lambda: torch.stack(
                    [trainer._reconstruction_loss(trainer.model, name) for name in trainer.renderers]
                ).sum()
            )
        interval = args.reconstruction_interval if args.kd_weight > 0 else 1
        if interval == 1:  # it was a part of each step
            durations = [max(0.0, duration - reconstruction) for duration in durations]
        begin = time.perf_counter()
        trainer.evaluate()
        # A fraction is a share of all steps
        every = args.eval_steps if args.eval_steps >= 1 else math.ceil(args.eval_steps * args.max_steps)
        validation = (time.perf_counter() - begin) / every
    trainer.model.zero_grad()
    trainer._metrics["train"].clear()
    trainer.state.log_history.clear()
    # The first batches of an epoch are its longest rows
    tokens = sum(inputs["input_ids"].numel() for inputs in batches[: len(durations)])
    average = sum(trainer.train_dataset["length"]) / len(trainer.train_dataset) * args.train_batch_size
    per_step = (
        args.gradient_accumulation_steps * sum(durations) / tokens * average + reconstruction / interval + validation
    )
    return max(1, int((seconds - (time.perf_counter() - start)) / per_step))


class Budget:
    """
    The time for a job. The teacher's work comes first, so that it may be over before the first step.

    Args:
        max_minutes (`float`, *optional*): the time; `None` sets no limit.

    Attributes:
        seconds (`float` or `None`): the same in seconds.
    """

    def __init__(self, max_minutes: float | None):
        self.seconds = None if max_minutes is None else 60 * max_minutes
        self._start = time.perf_counter()

    @property
    def used(self) -> float:
        return time.perf_counter() - self._start

    @property
    def is_over(self) -> bool:
        return self.seconds is not None and self.used >= self.seconds

    def left(self) -> float:
        """
        The seconds that are left. Called while the teacher works, too.

        Raises:
            `ValueError`: there are none.
        """
        if self.seconds is None:
            return math.inf
        left = self.seconds - self.used
        if left <= 0:
            raise ValueError(
                f"max_minutes={self.seconds / 60:g} is over before the first step: what the model writes first, the "
                "teacher's answers and, where you gave none, the queries, takes longer. It is kept in the cache: start again "
                "with more minutes, and it goes on from there."
            )
        return left
