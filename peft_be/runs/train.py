"""The training of a run: from its last checkpoint, to the end or to Ctrl-C."""

from __future__ import annotations

from pathlib import Path

from transformers import PrinterCallback, Trainer, TrainerState
from transformers import ProgressCallback as ProgressBarCallback

from ..progress import OnProgress
from ..training.callbacks import Patience, ProgressCallback, StopOnInterrupt
from .checkpoints import STATE, last_checkpoint


# Validations without improvement after which training stops
PATIENCE = 5


def report_to(on_progress: OnProgress | None, trainer: Trainer, what: str) -> None:
    """Report each step to `on_progress`, if there is one, and turn off what the trainer itself prints."""
    if on_progress:
        trainer.add_callback(ProgressCallback(what, on_progress))
        for printer in (PrinterCallback, ProgressBarCallback):
            trainer.remove_callback(printer)


def train(trainer: Trainer, stage: str) -> list[dict]:
    """Train to the end, from the last complete checkpoint if there is one, and return the log of the stage."""
    stop = StopOnInterrupt()
    trainer.add_callback(stop)
    if trainer.args.load_best_model_at_end:
        trainer.add_callback(Patience(PATIENCE))
    # Where no checkpoint is deleted, the job chooses among all of them at the end
    checkpoint = last_checkpoint(trainer.args.output_dir, needs_all=trainer.args.save_total_limit is None)
    try:
        if checkpoint is None or not _restore_if_over(trainer, checkpoint):
            trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        stop.release()
    if stop.interrupted and trainer.state.global_step < trainer.state.max_steps:
        raise KeyboardInterrupt
    # Without the summary at the end, which counts the steps of this process only
    return [{"stage": stage, **entry} for entry in trainer.state.log_history if "train_loss" not in entry]


def _restore_if_over(trainer: Trainer, checkpoint: str) -> bool:
    """
    Whether training had ended at a checkpoint. If so, the trainer is brought into the state that it had at the end: resumed
    from there, `Trainer.train` would make one more step.
    """
    state = TrainerState.load_from_json(str(Path(checkpoint) / STATE))
    callbacks = [callback for callback in trainer.callback_handler.callbacks if hasattr(callback, "is_over")]
    stopped = [callback.is_over(trainer.args, state) for callback in callbacks]
    if state.global_step < trainer.args.max_steps and not any(stopped):
        return False
    trainer.state = state
    trainer.model.train()
    trainer._load_from_checkpoint(checkpoint)
    if trainer.args.load_best_model_at_end and state.best_model_checkpoint is not None:
        trainer._load_best_model()
    trainer._record_provenance()
    return True
