"""The main job as a function: a prompt and queries in, an adapter out."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..adapters.create import add_adapter
from ..adapters.folder import QUERY_FILE
from ..adapters.load import name_of
from ..adapters.provenance import stage_name
from ..data import QuerySplits, as_queries, query_column, split_queries, validation_without
from ..files import read_json
from ..models import DEFAULT_MODEL
from ..progress import OnProgress
from ..prompting.fingerprints import sha256
from ..prompting.kept_text import find_kept_text
from ..prompting.messages import check_prompt
from ..recipe import recorded
from ..training import BEDistillConfig, BEDistillTrainer
from ..training.budget import Budget, steps_in_time
from ..training.callbacks import OnPreview
from ..training.growing_trainer import GrowingTrainer
from ..tuner import BETokenConfig
from .config import CompressConfig, changed
from .earlier import EarlierAdapter, earlier_adapter
from .folder import RunFolder
from .keep import kept_text_of
from .prepare import confirmed_ae_row, distillation_args, load_confirmed, load_rows
from .report import kept_figures, training_report, warn_of_few_queries
from .search import Search
from .synthesize import synthesized
from .train import report_to, train


@dataclass
class Compression:
    """
    A compressed prompt.

    Attributes:
        directory (`Path`): the adapter's folder.
        model (`PeftModel`): the base model with the adapter.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer.
        report (`dict`): what was done, as in `training.json`: settings, steps, seconds (`None` if it was interrupted), validation
            KL, log, and with a `target` the `search`: the gap that each k closed.
    """

    directory: Path
    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    report: dict


def compress_prompt(
    prompt: str | list[dict[str, str]],
    queries: Iterable | QuerySplits | None,
    output_dir: str | os.PathLike,
    config: CompressConfig | None = None,
    *,
    model: str | PreTrainedModel = DEFAULT_MODEL,
    tokenizer: PreTrainedTokenizerBase | None = None,
    test_queries: Iterable | None = None,
    validation_queries: Iterable | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
    on_preview: OnPreview | None = None,
    **changes,
) -> Compression:
    """
    Compress a prompt into `num_be_tokens` learned rows, or into as many as it takes to reach a `target`.

    Args:
        prompt (`str` or `list[dict]`):
            P: a system text, or the chat messages in front of the user's turn.
        queries (`Iterable`, [`QuerySplits`] or `None`):
            What users may ask, in any form that [`as_queries`] takes; no answers needed. A tenth, 48 at most, is held
            out to choose the checkpoint by. `None` if you have none: the model writes them, as [`synthesize_queries`] does,
            into `queries.jsonl` of the folder.
        output_dir (`str` or `os.PathLike`):
            Folder of the adapter. An unfinished run keeps its work there.
        config ([`CompressConfig`], *optional*):
            How to compress it. If `None`, the default recipe.
        model (`str` or [`~transformers.PreTrainedModel`], *optional*, defaults to `"smollm2"`):
            `smollm2`, a folder, a Hub id, or a loaded model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Needed with a loaded model.
        test_queries (`Iterable`, *optional*):
            Queries for a later evaluation; their duplicates are taken out of the training queries.
        validation_queries (`Iterable`, *optional*):
            Queries to choose the checkpoint by, instead of a tenth of `queries`: a few real ones, where the model writes the
            others. None of them is trained on.
        resume (`bool`, *optional*, defaults to `False`):
            Go on with the interrupted run in `output_dir`. If there is none, one is begun, with a warning; a finished
            one is returned as it is.
        overwrite (`bool`, *optional*, defaults to `False`):
            Replace an earlier run in `output_dir`; it is deleted when the new one is finished.
        on_progress (`Callable[[str, int, int, dict], None]`, *optional*):
            Called with the stage, the work done, its total, and the latest logged values.
        on_preview (`Callable[[list[dict]], None]`, *optional*):
            Called before the first step with what [BE] is to imitate, see [`BEDistillTrainer.preview`].
        **changes:
            Fields of [`CompressConfig`] that replace those of `config`, for instance `num_be_tokens=8`.

    Returns:
        [`Compression`]

    Raises:
        `ValueError`: an empty prompt, too few queries, a prompt longer than the context, settings out of range, text to
            keep that is not the prompt's own, an [AE] row of another backbone, an adapter to start from that does not fit, a
            target though the prompt changes nothing, or a resumed run with other settings.
        `FileExistsError`: `output_dir` is in use, see `resume` and `overwrite`.
        `FloatingPointError`: the loss is not a finite number.
        `KeyboardInterrupt`: Ctrl-C; what was done is kept, and `resume=True` goes on with it.
    """
    check_prompt(prompt)
    config = changed(config, CompressConfig, changes)
    find_kept_text(prompt, config.keep)  # what is not the prompt's own shows before the model is loaded
    test = None if test_queries is None else as_queries(test_queries)
    validation = None if validation_queries is None else validation_without(test, validation_queries)
    splits = None if queries is None else _split(queries, test, validation, config)
    distillation_args(config, output_dir)  # settings that transformers refuses show before the model is loaded
    start = earlier_adapter(config, output_dir)
    settings = {
        "prompt": sha256(prompt),
        "queries": "the model's own" if splits is None else sha256([splits.train, splits.validation]),
        "model": name_of(model),
        **recorded(config),
    }
    defaults = recorded(CompressConfig())
    with RunFolder(output_dir, settings, resume, overwrite, defaults) as run, ExitStack() as on_failure:
        model, tokenizer = load_confirmed(run, model, tokenizer, config.dtype, config.device)
        if start is not None:
            start.confirm(run, model, tokenizer)
        budget = Budget(config.max_minutes)
        if splits is None:

            def in_time(*progress) -> None:
                budget.left()
                if on_progress:
                    on_progress(*progress)

            splits = _split(synthesized(run, prompt, config, model, tokenizer, in_time), test, validation, config)
            run.confirm("queries_sha256", sha256([splits.train, splits.validation]), "list of queries")
        ae_row = confirmed_ae_row(run, config, model, tokenizer)
        kept_text = kept_text_of(run, config, model, tokenizer, prompt, splits, on_progress)
        k = BETokenConfig.from_pretrained(run.directory).num_be_tokens if run.is_finished else config.num_be_tokens
        peft_model = add_adapter(model, tokenizer, k, ae_row, config.slot, kept_text)
        training = _Training(run, config, start, peft_model, tokenizer, prompt, splits, budget, on_progress)
        on_failure.callback(lambda: training.model.unload())  # a model that was passed in can be used again
        if run.is_finished:
            compression = _finished(run, peft_model, tokenizer)
        else:
            work = training if config.target is None else Search(training)
            report = work.run_stages(on_preview)
            training.model.save_pretrained(run.directory)
            if (run.work / QUERY_FILE).is_file():
                (run.work / QUERY_FILE).replace(run.directory / QUERY_FILE)
            run.finish(report)
            compression = Compression(run.directory, training.model, tokenizer, report)
        on_failure.pop_all()
        return compression


def _split(
    queries: Iterable | QuerySplits, test: list | None, validation: list | None, config: CompressConfig
) -> QuerySplits:
    """The splits of a run's queries, with a warning if there are too few."""
    if isinstance(queries, QuerySplits):
        if validation is not None:
            raise ValueError("QuerySplits have their own validation queries: leave out validation_queries.")
        splits = queries
    else:
        splits = split_queries(queries, test, seed=config.seed, validation_queries=validation)
    if config.kd_weight > 0:
        warn_of_few_queries({"prompt": splits})
    return splits


@dataclass
class _Training:
    """The two stages of a run, on its model with a new adapter."""

    run: RunFolder
    config: CompressConfig
    start: EarlierAdapter | None
    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    prompt: str | list[dict[str, str]]
    splits: QuerySplits
    budget: Budget
    on_progress: OnProgress | None

    def run_stages(self, on_preview: OnPreview | None) -> dict:
        """Train the rows, and return the report."""
        log, changes = [], {}
        if self.config.reconstruction_steps:
            log += self._reconstruct()
            changes = {"init": None, "init_text": None}  # go on from there
        rows = None if self.start is None else self.start.rows
        trainer = self.distiller(distillation_args(self.config, self.run.work / "stage2", **changes), rows)
        stage = stage_name(self.config.kd_weight)
        report_to(self.on_progress, trainer, stage)
        if on_preview:
            on_preview(trainer.preview())
        self._fit_steps(trainer)
        log += train(trainer, stage)
        return self.report(trainer.state.global_step, kept_figures(trainer), log)

    def report(self, steps: int, best: dict, log: list[dict]) -> dict:
        seconds = None if self.run.resumed else self.budget.used
        seen_before = [] if self.start is None else self.start.seen_queries
        return training_report(self.run.settings, self.splits, steps, best, seconds, log, seen_before)

    def _reconstruct(self) -> list[dict]:
        """Stage 1 alone."""
        steps = self.config.reconstruction_steps
        args = distillation_args(self.config, self.run.work / "stage1", kd_weight=0.0, max_steps=steps)
        trainer = BEDistillTrainer(self.model, args, self.prompt, processing_class=self.tokenizer)
        report_to(self.on_progress, trainer, "stage 1")
        return train(trainer, "stage 1")

    def distiller(self, args: BEDistillConfig, rows: torch.Tensor | None, **more) -> GrowingTrainer:
        """A trainer of the main training, from trained rows if there are some, whose teacher stops when the time is over."""

        def report(name: str, done: int, total: int) -> None:
            if self.on_progress:
                self.on_progress(f"teacher, {name} queries", done, total, {})
            # A resumed run keeps the number of steps that it measured, however long its teacher takes now
            if self._measured_steps is None:
                self.budget.left()

        return GrowingTrainer(
            self.model,
            args,
            self.prompt,
            train_dataset=Dataset.from_dict({"query": query_column(self.splits.train)}),
            eval_dataset=Dataset.from_dict({"query": query_column(self.splits.validation)}),
            processing_class=self.tokenizer,
            on_teacher_progress=report,
            rows=rows,
            started_from=None if self.start is None else self.start.record,
            **more,
        )

    def _fit_steps(self, trainer: BEDistillTrainer) -> None:
        """Lower the number of steps to what fits into the time."""
        if self.budget.seconds is None:
            return
        if self._measured_steps is None:
            self.run.remember("fitting_steps", steps_in_time(trainer, self.budget.left()))
        trainer.args.max_steps = min(trainer.args.max_steps, self._measured_steps)

    @property
    def _measured_steps(self) -> int | None:
        return self.run.settings.get("fitting_steps")


def _finished(run: RunFolder, peft_model: PeftModel, tokenizer: PreTrainedTokenizerBase) -> Compression:
    """What a finished run made; `peft_model` has an adapter like the run's, and gets its rows."""
    load_rows(peft_model, run.directory)
    report = read_json(run.directory / run.RESULT, "result", dict)
    return Compression(run.directory, peft_model, tokenizer, report)
