"""Many prompts in one run: their rows learn side by side on one model in memory."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..adapters.create import add_adapter
from ..adapters.folder import WEIGHTS_FILE
from ..adapters.load import name_of
from ..adapters.provenance import best_figures, stage_name
from ..checks import COUNT, check_number
from ..data import QuerySplits, query_column, split_queries
from ..files import read_json, write_json
from ..models import DEFAULT_MODEL
from ..progress import OnProgress
from ..prompting import PromptRenderer
from ..prompting.fingerprints import sha256
from ..recipe import recorded
from ..teacher import teacher_prompts
from ..training import BEDistillConfig
from ..training.many_prompts import EachPromptsBest, ManyPromptsTrainer
from ..tuner.checks import BE_KEY
from .config import CompressConfig, changed
from .folder import RunFolder, failure
from .manifest import PromptJob, check_job_names
from .prepare import confirmed_ae_row, distillation_args, load_confirmed
from .report import training_report, warn_of_few_queries
from .train import PATIENCE, report_to, train


# What a run of one prompt has, and one of many does not
_ALONE = ("max_minutes", "reconstruction_steps", "keep", "keep_tokens", "target", "from_adapter")


@dataclass
class PromptResult:
    """
    What became of a prompt.

    Attributes:
        name (`str`): its name.
        directory (`Path` or `None`): the adapter's folder, `None` if it failed.
        report (`dict` or `None`): as in `training.json`, `None` if it failed.
        error (`str` or `None`): why it failed.
    """

    name: str
    directory: Path | None = None
    report: dict | None = None
    error: str | None = None


def compress_prompts(
    jobs: list[PromptJob],
    output_dir: str | os.PathLike,
    config: CompressConfig | None = None,
    *,
    model: str | PreTrainedModel = DEFAULT_MODEL,
    tokenizer: PreTrainedTokenizerBase | None = None,
    group_size: int = 8,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
    **changes,
) -> list[PromptResult]:
    """
    Compress many prompts in one run.

    Groups of `group_size` prompts learn together: each step takes a batch of each prompt's queries. A prompt's rows become
    what [`compress_prompt`] would have made of them alone, up to the rounding of sums in another order: the same batches,
    gradients, clipping, learning rate, validations and early stop. A prompt that fails does not stop the others: where
    an error ends a group, each of its prompts is trained by itself. `resume=True` tries those that failed again.

    Args:
        jobs (`list[PromptJob]`):
            The prompts, with different names.
        output_dir (`str` or `os.PathLike`):
            Folder in which each prompt gets a folder of its name, with its adapter. `training.json` in it sums up.
        config ([`CompressConfig`], *optional*):
            How to compress each of them, without `max_minutes`, `reconstruction_steps`, `keep`, `keep_tokens`, `target` and
            `from_adapter`.
            Rows are saved where they are validated: `save_steps` is `eval_steps`.
        group_size (`int`, *optional*, defaults to `8`):
            Prompts that learn together. A step holds the activations of `group_size * per_device_train_batch_size` answers.

    The other arguments are those of [`compress_prompt`].

    Returns:
        `list[PromptResult]`: in the order of the jobs.

    Raises:
        `ValueError`: no jobs, unusable or repeated names, settings out of range, an [AE] row of another backbone, or a
            resumed run with other settings. What is wrong with a single prompt is in its result instead.
        `FileExistsError`: `output_dir` is in use, see `resume` and `overwrite`.
        `KeyboardInterrupt`: Ctrl-C; what was done is kept, and `resume=True` goes on with it.
    """
    check_job_names([job.name for job in jobs])
    check_number("group_size", group_size, COUNT, whole=True)
    config = changed(config, CompressConfig, changes)
    for name in _ALONE:
        if getattr(config, name):
            raise ValueError(f"{name} is for a prompt that is compressed alone: leave it out, or use compress_prompt.")
    _group_args(config, output_dir)  # settings that transformers refuses show before the model is loaded
    settings = {
        "prompts": sha256([[job.name, job.prompt, job.queries, job.test_queries] for job in jobs]),
        "model": name_of(model),
        "group_size": group_size,
        **recorded(config),
    }
    with RunFolder(output_dir, settings, resume, overwrite, recorded(CompressConfig())) as run:
        failed = _errors_of(run)
        if run.is_finished and not failed:
            return [_result(run, job.name, {}) for job in jobs]
        # Of a finished run, what failed is tried again
        waiting = [job for job in jobs if not run.is_finished or job.name in failed]
        model, tokenizer = load_confirmed(run, model, tokenizer, config.dtype, config.device)
        ae_row = confirmed_ae_row(run, config, model, tokenizer)
        batch = _Batch(run, config, model, tokenizer, ae_row, on_progress)
        errors = batch.compress_all(waiting, group_size)
        run.work.mkdir(exist_ok=True)
        results = [_result(run, job.name, errors) for job in jobs]
        prompts = [{"name": r.name, "error": r.error, "best": r.report and r.report["best"]} for r in results]
        run.finish({"settings": run.settings, "prompts": prompts})
        return results


def _group_args(config: CompressConfig, output_dir: str | os.PathLike) -> BEDistillConfig:
    # Each prompt's best rows are taken from the checkpoints, so all of these are kept. They hold a few KB per prompt
    kept = {"save_total_limit": None, "load_best_model_at_end": False, "save_steps": config.eval_steps}
    return distillation_args(config, output_dir, **kept)


def _errors_of(run: RunFolder) -> dict[str, str]:
    """What failed in a finished run, by name of the prompt."""
    if not run.is_finished:
        return {}
    record = read_json(run.directory / run.RESULT, "result", dict)
    return {prompt["name"]: prompt["error"] for prompt in record["prompts"] if prompt["error"] is not None}


def _result(run: RunFolder, name: str, errors: dict[str, str]) -> PromptResult:
    if name in errors:
        return PromptResult(name, error=errors[name])
    directory = run.directory / name
    return PromptResult(name, directory, read_json(directory / RunFolder.RESULT, "result", dict))


@dataclass
class _Batch:
    """What the groups of a run share."""

    run: RunFolder
    config: CompressConfig
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    ae_row: torch.Tensor | None
    on_progress: OnProgress | None

    def compress_all(self, jobs: list[PromptJob], group_size: int) -> dict[str, str]:
        """Compress prompts in groups, and write their adapters. Returns the errors by name."""
        errors: dict[str, str] = {}
        prepared: list[tuple[PromptJob, QuerySplits]] = []
        for job in jobs:
            try:
                prepared.append((job, self.prepare(job)))
            except Exception as error:
                errors[job.name] = failure(error)
        if prepared and self.config.kd_weight > 0:
            warn_of_few_queries({job.name: splits for job, splits in prepared})
        for number, start in enumerate(range(0, len(prepared), group_size)):
            group = prepared[start : start + group_size]
            label = f"{start + 1}-{start + len(group)} of {len(prepared)}"
            # Other prompts than before may have failed, so that they need a folder of another name
            again = f"-{sha256([job.name for job, _ in group])[:8]}" if self.run.is_finished else ""
            errors |= self.compress(group, self.run.work / f"group-{number}{again}", label)
        return errors

    def prepare(self, job: PromptJob) -> QuerySplits:
        """Split a job's queries. Raises a `ValueError` if it cannot be compressed, before any work was done on the others."""
        splits = split_queries(job.queries, job.test_queries, seed=self.config.seed)
        renderer = PromptRenderer(self.tokenizer, job.prompt)
        teacher_prompts(self.model, renderer, splits.train + splits.validation, self.config.max_answer_length)
        return splits

    def compress(self, group: list[tuple[PromptJob, QuerySplits]], work: Path, label: str) -> dict[str, str]:
        """
        Train a group, or each prompt by itself where that fails, and write the adapters. Returns the errors by name.
        """
        parted = work / "parted.json"
        if not parted.is_file():
            try:
                return self._train(group, work, label)
            except Exception as error:
                reason = failure(error)
                if len(group) == 1:
                    return {group[0][0].name: reason}
                work.mkdir(parents=True, exist_ok=True)
                write_json(parted, {"error": reason})
        errors: dict[str, str] = {}
        for job, splits in group:
            errors |= self.compress([(job, splits)], work / job.name, f"{label}: {job.name}")
        return errors

    def _train(self, group: list[tuple[PromptJob, QuerySplits]], work: Path, label: str) -> dict[str, str]:
        """Train a group and write its adapters. Returns the errors, by name, of the prompts whose loss was not finite."""
        record = work / "done.json"
        done = self._finished(group, record)
        if done is not None:
            return done
        k, start = self.config.num_be_tokens, time.perf_counter()
        together = add_adapter(self.model, self.tokenizer, k * len(group), self.ae_row, self.config.slot)
        trainer = None
        try:
            trainer = self._trainer(together, group, work, label)
            best = EachPromptsBest(trainer, PATIENCE)
            trainer.add_callback(best)
            stage = stage_name(self.config.kd_weight)
            report_to(self.on_progress, trainer, f"{label}: {stage}")
            train(trainer, stage)
        except FloatingPointError:
            if trainer is None or len(trainer.failed) < len(group):
                raise
        finally:
            self.model = together.unload()
        seconds = None if self.run.resumed else (time.perf_counter() - start) / len(group)

        single = add_adapter(self.model, self.tokenizer, k, self.ae_row, self.config.slot)
        try:
            for number, (job, splits) in enumerate(group):
                if job.name not in trainer.failed:
                    _, step = best.best[job.name]
                    rows = _saved_rows(work / f"checkpoint-{step}")[number * k : (number + 1) * k]
                    single.base_model.set_rows("default", rows)
                    self._write(single, best, job.name, splits, seconds)
        finally:
            self.model = single.unload()
        write_json(record, trainer.failed)
        return trainer.failed

    def _trainer(
        self, model: PeftModel, group: list[tuple[PromptJob, QuerySplits]], work: Path, label: str
    ) -> ManyPromptsTrainer:
        def report(name: str, done: int, total: int) -> None:
            if self.on_progress:
                self.on_progress(f"{label}: teacher, {name} queries", done, total, {})

        queries = {
            split: Dataset.from_dict(
                {
                    "query": query_column([q for _, splits in group for q in getattr(splits, split)]),
                    "prompt_name": [job.name for job, splits in group for _ in getattr(splits, split)],
                }
            )
            for split in ("train", "validation")
        }
        return ManyPromptsTrainer(
            model,
            _group_args(self.config, work),
            {job.name: job.prompt for job, _ in group},
            train_dataset=queries["train"],
            eval_dataset=queries["validation"],
            processing_class=self.tokenizer,
            on_teacher_progress=report,
        )

    def _write(
        self, single: PeftModel, followed: EachPromptsBest, name: str, splits: QuerySplits, seconds: float | None
    ) -> None:
        """Write the adapter of a prompt, whose best rows `single` has."""
        trainer = followed.trainer
        (value, step), steps = followed.best[name], followed.last_step[name]
        metric, stage = trainer.args.metric_for_best_model, stage_name(self.config.kd_weight)
        measured = (f"eval_{metric}", "eval_same_answers")
        log = [
            {"stage": stage, "step": entry["step"]}
            | {figure: entry[f"{figure}_{name}"] for figure in measured if f"{figure}_{name}" in entry}
            for entry in trainer.state.log_history
            if f"eval_{metric}_{name}" in entry and entry["step"] <= steps
        ]
        figures = {
            "steps": steps,
            "train_queries": len(splits.train),
            "validation_queries": len(splits.validation),
            f"validation_{metric}": value,
        }
        if metric == "kl":
            log = [{**entry, "eval_no_prompt_kl": trainer.no_prompt_kl[name]} for entry in log]
            figures["validation_kl_no_prompt"] = trainer.no_prompt_kl[name]
        # Not the others' names: an adapter is published by itself
        settings = {name: value for name, value in self.run.settings.items() if name != "prompts"}
        same = next((entry.get("eval_same_answers") for entry in log if entry["step"] == step), None)
        same_no_prompt = None if same is None else trainer.no_prompt_same_answers[name]
        best = best_figures(metric, value, step, trainer.no_prompt_kl.get(name), same, same_no_prompt)
        single.peft_config["default"].provenance = trainer.provenance_of(name, figures).as_json()
        directory = self.run.directory / name
        single.save_pretrained(directory)
        write_json(directory / RunFolder.RESULT, training_report(settings, splits, steps, best, seconds, log))

    def _finished(self, group: list[tuple[PromptJob, QuerySplits]], record: Path) -> dict[str, str] | None:
        """
        The errors of a group whose adapters are all there; `None` if it is not finished, or its record is damaged.
        """
        try:
            failed = read_json(record, "record of a group", dict)
        except (FileNotFoundError, ValueError):
            return None
        names = [job.name for job, _ in group if job.name not in failed]
        return failed if all((self.run.directory / name / RunFolder.RESULT).is_file() for name in names) else None


def _saved_rows(checkpoint: Path) -> torch.Tensor:
    """The [BE] rows `[n * k, d]` of a checkpoint of `n` prompts."""
    tensors = load_file(checkpoint / WEIGHTS_FILE)
    return next(tensor for name, tensor in tensors.items() if name.endswith(BE_KEY))
