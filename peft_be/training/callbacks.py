"""What happens beside the steps: progress, a clean stop on Ctrl-C, and each prompt's best rows."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

from transformers import EarlyStoppingCallback, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState


if TYPE_CHECKING:
    from .be_distill_trainer import BEDistillTrainer


# The stage, the work done, its total, and the latest logged values
OnProgress = Callable[[str, int, int, dict], None]
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
    """Early stopping that a resumed run takes up where it was: it counts the validations so far again."""

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


class EachPromptsBest(TrainerCallback, ExportableState):
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

    def state(self) -> dict:
        """What a checkpoint keeps: the prompts that were given up. The rest is in the log."""
        return {"args": {}, "attributes": {"failed": self.trainer.failed}}

    def on_train_begin(self, args, state, control, **kwargs):
        self.is_over(args, state)
        state.stateful_callbacks[type(self).__name__] = self.state()  # older checkpoints have none

    def is_over(self, args: TrainingArguments, state: TrainerState) -> bool:
        """Take up where a run was in this state. Whether it had stopped."""
        kept = state.stateful_callbacks.get(type(self).__name__, {}).get("attributes", {})
        self.trainer.failed |= kept.get("failed", {})
        # Asked twice, it must not take those that it stopped itself for prompts that never learned
        self.trainer.stopped.clear()
        self.trainer.stopped.update(self.trainer.failed)
        self.best, self.last_step, self._waited = {}, {}, {}
        for entry in state.log_history:
            self._see(entry, entry["step"])
        return self.trainer.stopped >= self.trainer.renderers.keys()

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
