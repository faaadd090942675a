"""The main training and, after it, rounds on answers that the student wrote itself."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path

from datasets import Dataset
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from ..data import QuerySplits, query_column
from ..files import read_json, write_json
from .be_distill_config import BEDistillConfig
from .be_distill_trainer import BEDistillTrainer
from .budget import Budget, steps_in_time
from .callbacks import OnPreview, OnProgress
from .provenance import best_figures, stage_name
from .run import RunFolder, report_to, train


# Steps of a round, as a share of the main training's
ROUND_SHARE = 0.5


@dataclass
class Rounds:
    """
    The main training and its rounds on the student's own answers, as far as they are finished.

    Attributes:
        rounds (`int`): trainings that are finished, the main one counted.
        max_steps (`int`): of the main training, or what fits of it.
        steps (`int`): all that were made.
        best (`dict`): see [`best_figures`].
        log (`list[dict]`): steps go on from one round to the next.
        written (`list[tuple[int, list[int]]]`): what the student wrote after the last one: indices of training
            queries, and ids.
        provenance (`dict`): of the rows, see [`BETokenConfig`].
    """

    rounds: int = 0
    max_steps: int = 0
    steps: int = 0
    best: dict = field(default_factory=dict)
    log: list[dict] = field(default_factory=list)
    written: list[tuple[int, list[int]]] = field(default_factory=list)
    provenance: dict = field(default_factory=dict)

    RECORD = "rounds.json"

    @classmethod
    def resume(cls, folder: Path, peft_model: PeftModel) -> Rounds:
        """
        What `folder` has of an interrupted run; the model gets its rows. A damaged record counts as none: the
        trainings before it are taken from their last checkpoints.
        """
        try:
            done = cls(**read_json(folder / cls.RECORD, "record of the rounds", dict))
            rows = load_file(done._rows(folder))["rows"]
            peft_model.base_model.set_rows("default", rows)
        except FileNotFoundError:
            return cls()
        except (ValueError, TypeError, KeyError, RuntimeError, SafetensorError):
            warnings.warn(
                f"The record '{folder / cls.RECORD}' is damaged: the run goes on from its checkpoints.", stacklevel=1
            )
            return cls()
        peft_model.peft_config["default"].provenance = done.provenance
        return done

    def save(self, folder: Path, peft_model: PeftModel) -> None:
        self.provenance = peft_model.peft_config["default"].provenance
        # First the rows, which the record names
        save_file({"rows": peft_model.base_model.get_rows("default")}, self._rows(folder))
        write_json(folder / self.RECORD, asdict(self))

    def _rows(self, folder: Path) -> Path:
        return folder / f"rows{self.rounds}.safetensors"


def train_rounds(
    peft_model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | list[dict[str, str]],
    splits: QuerySplits,
    run: RunFolder,
    training_args: dict,
    on_policy_rounds: int,
    budget: Budget,
    on_progress: OnProgress | None,
    on_preview: OnPreview | None = None,
) -> Rounds:
    """Stage 2, or stages 1 and 2 together, within the budget; goes on with what `run` holds of it."""
    done = Rounds.resume(run.work, peft_model)
    for number in range(done.rounds, 1 + on_policy_rounds):
        args = training_args
        if number:
            args = {**args, "init": None, "max_steps": max(1, int(ROUND_SHARE * done.max_steps))}
        stage = stage_name(args["kd_weight"]) + (f", on-policy round {number}" if number else "")
        fitting = run.settings.get("fitting_steps", {})
        is_measured = budget.seconds is None or stage in fitting
        if number and not is_measured and budget.is_over:
            warnings.warn(f"No time is left for on-policy round {number}: the training ends without it.", stacklevel=1)
            break

        def report_teacher(name: str, count: int, total: int, is_measured: bool = is_measured) -> None:
            if on_progress:
                on_progress(f"teacher, {name} queries", count, total, {})
            if not is_measured:
                budget.left()

        trainer = BEDistillTrainer(
            peft_model,
            BEDistillConfig(str(run.work / (f"round{number}" if number else "stage2")), **args),
            prompt,
            train_dataset=Dataset.from_dict(
                {
                    "query": query_column(splits.train + [splits.train[query] for query, _ in done.written]),
                    "answer": [None] * len(splits.train) + [ids for _, ids in done.written],
                }
            ),
            eval_dataset=Dataset.from_dict({"query": query_column(splits.validation)}),
            processing_class=tokenizer,
            on_teacher_progress=report_teacher,
        )
        report_to(on_progress, trainer, stage)
        if on_preview and not number:
            on_preview(trainer.preview())
        if budget.seconds is not None:
            if not is_measured:
                # What is left is for the rounds after this training, too
                share = ROUND_SHARE if number else 1.0
                share /= share + ROUND_SHARE * (on_policy_rounds - number)
                fitting = {**fitting, stage: steps_in_time(trainer, share * budget.left())}
                run.remember("fitting_steps", fitting)
            trainer.args.max_steps = min(trainer.args.max_steps, fitting[stage])
        log = train(trainer, stage)
        done.log += [{**entry, "step": done.steps + entry["step"]} for entry in log]
        best_step = done.steps + trainer.state.best_global_step
        metric = trainer.args.metric_for_best_model
        done.best = best_figures(metric, trainer.state.best_metric, best_step, trainer.no_prompt_kl.get("default"))
        done.max_steps = done.max_steps or trainer.args.max_steps
        done.steps += trainer.state.global_step
        done.rounds += 1
        if number < on_policy_rounds:
            report = on_progress and (lambda count, total: on_progress("student, train queries", count, total, {}))
            done.written = [(a.query, a.ids) for a in trainer.student_answers(splits.train, on_progress=report)]
        elif number:
            provenance = peft_model.peft_config["default"].provenance
            provenance["stages"].append("on-policy rounds")
            provenance["training"] |= {"steps": done.steps, "train_queries": len(splits.train)}
        done.save(run.work, peft_model)
    return done
