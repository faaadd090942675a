"""What happens beside the steps: progress, a clean stop on Ctrl-C, and a time budget."""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from transformers import TrainerCallback


if TYPE_CHECKING:
    from .be_distill_trainer import BEDistillTrainer


class ProgressCallback(TrainerCallback):
    """Reports each step, with the latest logged values, to `on_progress(stage, done, total, values)`."""

    def __init__(self, stage: str, on_progress: Callable[[str, int, int, dict], None]):
        self.stage = stage
        self.on_progress = on_progress
        self.values: dict[str, float] = {}

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.values.update(logs or {})

    def on_step_end(self, args, state, control, **kwargs):
        self.on_progress(self.stage, state.global_step, state.max_steps, self.values)


class StopOnInterrupt(TrainerCallback):
    """
    Ends training behind the current step on Ctrl-C, with a checkpoint. A second Ctrl-C ends it at once.

    Attributes:
        interrupted (`bool`): whether it happened.
    """

    def __init__(self):
        self.interrupted = False
        self._before = None

    def on_train_begin(self, args, state, control, **kwargs):
        def handle(signum, frame):
            self.interrupted = True
            signal.signal(signal.SIGINT, self._before)

        try:
            self._before = signal.signal(signal.SIGINT, handle)
        except ValueError:  # not in the main thread: Ctrl-C does not arrive here
            self._before = None

    def on_step_end(self, args, state, control, **kwargs):
        if self.interrupted:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)


class EachPromptsBest(TrainerCallback):
    """
    Follows the validations of several prompts that are trained together: which step was the best of each, and when it has
    stopped to improve. Training ends when all have.

    Args:
        trainer ([`BEDistillTrainer`]): the trainer; prompts are added to its `stopped`.
        patience (`int`): validations without improvement after which a prompt stops.

    Attributes:
        best (`dict[str, tuple[float, int]]`): the best value so far and its step.
        last_step (`dict[str, int]`): the step of the last validation that counted.
    """

    def __init__(self, trainer: BEDistillTrainer, patience: int):
        self.trainer = trainer
        self.patience = patience
        self.best: dict[str, tuple[float, int]] = {}
        self.last_step: dict[str, int] = {}
        self._waited: dict[str, int] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        for entry in state.log_history:  # of the run that is resumed
            self._see(entry, entry["step"])

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        self._see(metrics, state.global_step)
        if self.trainer.stopped >= self.trainer.renderers.keys():
            control.should_training_stop = True

    def _see(self, metrics: dict[str, float], step: int) -> None:
        for name in self.trainer.renderers:
            value = metrics.get(f"eval_{self.trainer.args.metric_for_best_model}_{name}")
            if value is None or name in self.trainer.stopped:
                continue
            self.last_step[name] = step
            if name not in self.best or value < self.best[name][0]:
                self.best[name], self._waited[name] = (value, step), 0
            else:
                self._waited[name] += 1
                if self._waited[name] >= self.patience:
                    self.trainer.stopped.add(name)


def steps_in_time(trainer: BEDistillTrainer, seconds: float, samples: int = 8) -> int:
    """
    How many steps of `trainer` fit into `seconds`, from timing `samples` of them, or as many as a tenth of the time holds; the
    validations and reconstructions that go with them are counted.

    A budget is turned into steps before training starts, so that the learning rate schedule reaches its end.
    """
    args, start = trainer.args, time.perf_counter()

    def timed(loss: Callable[[], torch.Tensor]) -> float:
        begin = time.perf_counter()
        loss().backward()
        trainer.model.zero_grad()
        return time.perf_counter() - begin

    def step(inputs: dict[str, torch.Tensor]) -> float:
        return timed(lambda: trainer.compute_loss(trainer.model, inputs))

    with torch.random.fork_rng():  # a resumed run does not measure again, and must draw the same numbers
        batches = itertools.chain.from_iterable(itertools.repeat(trainer.get_train_dataloader()))
        batches = [trainer._prepare_inputs(inputs) for inputs in itertools.islice(batches, samples)]
        trainer.state.global_step = 1  # a step without reconstruction, if there are such
        step(batches[-1])  # warms up
        durations = []
        while len(durations) < len(batches) and sum(durations) <= seconds / 10:
            durations.append(step(batches[len(durations)]))
        trainer.state.global_step = 0
        reconstruction = 0.0
        if args.kd_weight < 1:
            reconstruction = timed(
                lambda: sum(trainer._reconstruction_loss(trainer.model, name) for name in trainer.renderers)
            )
        interval = args.reconstruction_interval if args.kd_weight > 0 else 1
        if interval == 1:  # it was a part of each step
            durations = [max(0.0, duration - reconstruction) for duration in durations]
        begin = time.perf_counter()
        trainer.evaluate()
        validation = (time.perf_counter() - begin) / args.eval_steps
    trainer._metrics["train"].clear()
    trainer.state.log_history.clear()
    # The first batches of an epoch are its longest rows
    tokens = sum(inputs["input_ids"].numel() for inputs in batches[: len(durations)])
    average = sum(trainer.train_dataset["length"]) / len(trainer.train_dataset) * args.train_batch_size
    per_step = (
        args.gradient_accumulation_steps * sum(durations) / tokens * average + reconstruction / interval + validation
    )
    return max(1, int((seconds - (time.perf_counter() - start)) / per_step))
