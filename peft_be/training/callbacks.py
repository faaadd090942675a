"""What happens beside the steps: progress, a clean stop on Ctrl-C, and a time budget."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import torch
from transformers import Trainer, TrainerCallback


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


def steps_in_time(trainer: Trainer, seconds: float) -> int:
    """
    How many steps of `trainer` fit into `seconds`, from timing two of them; the validations that go with them are counted.

    A budget is turned into steps before training starts, so that the learning rate schedule reaches its end.
    """
    model, durations = trainer.model, []
    with torch.random.fork_rng():  # a resumed run does not measure again, and must draw the same numbers
        batches = iter(trainer.get_train_dataloader())
        for _ in range(3):  # the first one warms up
            inputs = next(batches, None) or next(batches := iter(trainer.get_train_dataloader()))
            inputs = trainer._prepare_inputs(inputs)
            start = time.perf_counter()
            trainer.compute_loss(model, inputs).backward()
            durations.append(time.perf_counter() - start)
            model.zero_grad()
        start = time.perf_counter()
        trainer.evaluate()
        validation = (time.perf_counter() - start) / trainer.args.eval_steps
    trainer._metrics["train"].clear()
    trainer.state.log_history.clear()
    left = seconds - sum(durations) - validation * trainer.args.eval_steps
    return max(1, int(left / (sum(durations[1:]) / 2 + validation)))
