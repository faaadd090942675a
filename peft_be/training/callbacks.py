"""What happens between the steps: progress, a clean stop on Ctrl-C, early stopping."""

from __future__ import annotations

import signal
from collections.abc import Callable

from transformers import EarlyStoppingCallback, TrainerCallback, TrainerState, TrainingArguments

from ..progress import OnProgress


# The teacher's answers to some queries, see `BEDistillTrainer.preview`
OnPreview = Callable[[list[dict]], None]


class ProgressCallback(TrainerCallback):
    """Reports each step."""

    def __init__(self, stage: str, on_progress: OnProgress):
        self.stage = stage
        self.on_progress = on_progress
        self.values: dict[str, float] = {}

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.values.update(logs or {})

    def on_step_end(self, args, state, control, **kwargs):
        self.on_progress(self.stage, state.global_step, state.max_steps, self.values)


class StopOnInterrupt(TrainerCallback):
    """
    Ends training after the current step on Ctrl-C, with a checkpoint. A second Ctrl-C ends it at once.

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

    def release(self) -> None:
        """After training, however it ended: Ctrl-C does again what it did before."""
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)


class Patience(EarlyStoppingCallback):
    """Early stopping that a resumed run takes up where it was: it counts the earlier validations anew."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        self.is_over(args, state)

    def is_over(self, args: TrainingArguments, state: TrainerState) -> bool:
        """Whether a run had stopped in this state."""
        name = f"eval_{args.metric_for_best_model}"
        values = [entry[name] for entry in state.log_history if name in entry]
        if values:
            self.early_stopping_patience_counter = len(values) - 1 - values.index(min(values))
        return self.early_stopping_patience_counter >= self.early_stopping_patience
