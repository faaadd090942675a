"""The search for the smallest k that reaches a target, as a part of a run: its trainings, one after the other."""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from ..adapters.create import add_adapter
from ..adapters.folder import WEIGHTS_FILE, read_config
from ..adapters.provenance import stage_name
from ..figures import TARGET_METRICS, gap_closed, rows_in_words
from ..files import append_record, read_records
from ..prompting import PromptRenderer
from ..prompting.context import check_length
from ..training import BEDistillConfig, BEDistillTrainer
from ..training.budget import steps_in_time
from ..training.callbacks import OnPreview
from ..training.teaching import Teaching
from ..tuner.checks import read_rows
from .prepare import distillation_args, load_rows
from .report import kept_figures
from .target import (
    FEWEST_STEPS,
    MAX_SHARE,
    NOISE,
    PROBE_SHARE,
    Trained,
    candidates,
    chosen,
    is_too_late,
    next_training,
    starts_from,
)
from .train import report_to, train


if TYPE_CHECKING:
    from .compress import _Training


# In the folder of a training, the adapter with its rows
ROWS = "rows"


class Search:
    """
    The trainings of a search for the smallest k that reaches the target. Each has a folder of its own in the run's, and a line
    in `search.jsonl` when it is over: a resumed run goes on with the one that was interrupted.

    Args:
        training ([`_Training`]): what is trained; its model changes with k.
    """

    def __init__(self, training: _Training):
        self._training = training
        self._run, self._config, self._budget = training.run, training.config, training.budget
        # The teacher's work, once it is done
        self._teaching: Teaching | None = None
        # The seconds of the budget after which no further probe begins
        self._probes_end = math.inf

    def run_stages(self, on_preview: OnPreview | None) -> dict:
        """Train rows until as many as the target needs are found, and return the report."""
        target, done, late = cast(float, self._config.target), self._done(), False
        kept_text = self._training.model.peft_config["default"].kept_text
        renderer = PromptRenderer(self._training.tokenizer, self._training.prompt, kept_text=kept_text)
        ks = candidates(self._config.num_be_tokens, len(renderer.prompt_ids) - len(renderer.kept_ids))
        while (training := self._next(done, ks, target)) is not None:
            late = is_too_late(done, self._seconds_left)
            if late:
                break
            if done and done[-1].full:
                warnings.warn(
                    f"After all steps, {self._reached(done[-1])}, and the target is {target:g}: the search goes on.",
                    stacklevel=1,
                )
            done.append(self._train(*training, done, ks.index(training[0]), on_preview))
        best = chosen(done, target)
        if best.share < target:
            advice = "max_minutes left no time for more" if late else "give more queries or steps, or a lower target"
            warnings.warn(
                f"The target of {target:g} is not reached. What came nearest: {self._reached(best)}; {advice}.",
                stacklevel=1,
            )
        self._resize(best.k)
        load_rows(self._training.model, self._folder(best.k, True) / ROWS)
        log = [entry for trained in done for entry in trained.log]
        return {**self._training.report(best.steps, best.best, log), "search": self._report(done, best)}

    def _next(self, done: list[Trained], ks: list[int], target: float) -> tuple[int, bool] | None:
        steps = min(self._config.max_steps, self._run.settings.get("fitting_steps", {}).get("probes", math.inf))
        answers = self._config.target_metric == "same_answers"
        noise = max(NOISE, 1 / len(self._training.splits.validation)) if answers else NOISE
        return next_training(done, ks, target, steps, self._budget.used < self._probes_end, not answers, noise)

    def _train(self, k: int, full: bool, done: list[Trained], number: int, on_preview: OnPreview | None) -> Trained:
        """Train k rows, the candidate of this number, in full or for a probe."""
        begin, earlier, start = time.perf_counter(), starts_from(done, k), self._training.start
        rows, taught = (start.rows, start.steps) if start else (None, 0)
        if earlier is not None:
            rows, taught = self._rows(earlier), earlier.taught
        self._resize(k)
        trainer = self._training.distiller(
            distillation_args(self._config, self._folder(k, full)),
            rows,
            teaching=self._teaching,
            order=0 if full else number,
        )
        if self._teaching is None:
            self._teaching = trainer.teaching
            self._check_gap(trainer)
            if on_preview:
                on_preview(trainer.preview())
        what = f"{stage_name(self._config.kd_weight) if full else 'probe'}, {rows_in_words(k)}"
        report_to(self._training.on_progress, trainer, what)
        self._fit_training(trainer, k, full)
        log, best = train(trainer, what), kept_figures(trainer)
        self._training.model.save_pretrained(self._folder(k, full) / ROWS)
        seconds = round(time.perf_counter() - begin, 1)
        steps = trainer.state.global_step
        share, gap = best[self._config.target_metric], best["kl_gap_closed"]
        trained = Trained(k, share, gap, full, steps, taught + steps, best, log, seconds)
        append_record(self._run.work / "search.jsonl", asdict(trained))
        return trained

    def _fit_training(self, trainer: BEDistillTrainer, k: int, full: bool) -> None:
        """Lower the number of steps to what fits into the time. A probe gets a share of that."""
        steps = trainer.args.max_steps
        if self._budget.seconds is not None:
            fitting, name = self._run.settings.get("fitting_steps", {}), str(k) if full else "probes"
            if name not in fitting:
                left = self._seconds_left
                fits = steps_in_time(trainer, left)
                if not full:
                    fits = int(fits / (1 + MAX_SHARE))
                    self._probes_end = self._budget.seconds - left / (1 + MAX_SHARE)
                fitting = {**fitting, name: max(1, fits)}
                self._run.remember("fitting_steps", fitting)
            steps = min(steps, fitting[name])
        if full:
            trainer.args.max_steps = steps
        else:
            _shorten(trainer.args, min(steps, max(FEWEST_STEPS, round(PROBE_SHARE * steps))))

    @property
    def _seconds_left(self) -> float:
        return math.inf if self._budget.seconds is None else max(0.0, self._budget.seconds - self._budget.used)

    def _check_gap(self, trainer: BEDistillTrainer) -> None:
        """Refuse a target that the model reaches without the prompt."""
        same = trainer.no_prompt_same_answers["default"] if self._config.target_metric == "same_answers" else 0.0
        if gap_closed(0.0, trainer.no_prompt_kl["default"]) is None or same >= cast(float, self._config.target):
            raise ValueError(
                "The prompt changes nothing in the answers to the validation queries, or so few that the target is reached "
                "without it: leave out target, or give queries that touch on what the prompt says."
            )

    def _reached(self, trained: Trained) -> str:
        """What a training reached, in words."""
        what = TARGET_METRICS[self._config.target_metric].lower()
        return f"{rows_in_words(trained.k)}, {what} {trained.share:.3f} on the validation queries"

    def _report(self, done: list[Trained], best: Trained) -> dict:
        """What `training.json` says of the search."""
        target, metric = cast(float, self._config.target), self._config.target_metric
        curve = [
            {
                "k": t.k,
                "full": t.full,
                "steps": t.steps,
                **{name: t.best[name] for name in TARGET_METRICS if name in t.best},
            }
            for t in done
        ]
        return {"target": target, "metric": metric, "k": best.k, "reached": best.share >= target, "curve": curve}

    def _resize(self, k: int) -> None:
        """Put an adapter of k rows on the base model, in place of one that has another number of them."""
        model, tokenizer = self._training.model, self._training.tokenizer
        config = model.peft_config["default"]
        if config.num_be_tokens != k:
            check_length(model.get_base_model(), k, f"{rows_in_words(k)} of [BE]")
            ae_row = model.base_model.get_ae_row("default") if config.use_ae_token else None
            self._training.model = add_adapter(model.unload(), tokenizer, k, ae_row, config.slot, config.kept_text)

    def _folder(self, k: int, full: bool) -> Path:
        return self._run.work / (f"k{k}" if full else f"k{k}-probe")

    def _rows(self, trained: Trained) -> torch.Tensor:
        """The rows `[k, d]` of an earlier training."""
        folder = self._folder(trained.k, trained.full) / ROWS
        return read_rows(folder / WEIGHTS_FILE, read_config(folder))["be"]

    def _done(self) -> list[Trained]:
        """The finished trainings of an interrupted run, up to the first whose record or rows are damaged."""
        done: dict[tuple[int, bool], Trained] = {}
        for record in read_records(self._run.work / "search.jsonl"):
            try:
                trained = Trained(**record)
                self._rows(trained)
            except (TypeError, ValueError, FileNotFoundError):  # TypeError: of another version, with other fields
                break
            done[trained.k, trained.full] = trained
        return list(done.values())


def _shorten(args: BEDistillConfig, steps: int) -> None:
    """Make a probe of a training: a whole schedule of fewer steps, with one validation at its end."""
    if args.warmup_steps >= 1:
        args.warmup_steps = max(1, round(args.warmup_steps * steps / args.max_steps))
    args.max_steps = args.eval_steps = args.save_steps = steps
