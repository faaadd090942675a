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

from ..adapters.create import add_adapter, find_ae_row
from ..adapters.folder import WEIGHTS_FILE
from ..adapters.load import load_base, name_of
from ..adapters.provenance import best_figures, stage_name
from ..checks import COUNT, check_choice, check_names, check_number
from ..data import QuerySplits, query_column, split_queries
from ..files import read_json, write_json
from ..models import DEFAULT_MODEL
from ..prompting import PromptRenderer
from ..prompting.context import check_length
from ..prompting.fingerprints import sha256
from ..teacher import teacher_cache_dir, teacher_prompts, weights_sha256
from ..training import BEDistillConfig
from ..training.callbacks import OnProgress
from ..training.many_prompts import EachPromptsBest, ManyPromptsTrainer
from ..tuner.config import SLOTS
from .folder import RunFolder, failure
from .manifest import PromptJob, check_job_names
from .report import training_report, warn_of_few_queries
from .settings import NUM_BE_TOKENS, PLACES, check_steps, config_args, default_settings
from .train import PATIENCE, report_to, train


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
    *,
    model: str | PreTrainedModel = DEFAULT_MODEL,
    tokenizer: PreTrainedTokenizerBase | None = None,
    ae: str | os.PathLike | None = None,
    num_be_tokens: int = 1,
    slot: str = "system",
    group_size: int = 8,
    seed: int = 42,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
    **training_args,
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
        group_size (`int`, *optional*, defaults to `8`):
            Prompts that learn together. A step holds the activations of `group_size * per_device_train_batch_size` answers.
        **training_args:
            Fields of [`BEDistillConfig`]. They hold for all prompts.

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
    check_names(training_args, BEDistillConfig)
    check_number("group_size", group_size, COUNT, whole=True)
    check_number("num_be_tokens", num_be_tokens, NUM_BE_TOKENS, whole=True)
    check_choice("slot", slot, SLOTS)
    # Each prompt's best rows are taken from the checkpoints, so all of these are kept. They hold a few KB per prompt
    needed = {"eval_strategy": "steps", "save_total_limit": None, "load_best_model_at_end": False}
    check_steps(BEDistillConfig(str(output_dir), seed=seed, **{"load_best_model_at_end": False, **training_args}))
    training_args = {name: value for name, value in training_args.items() if name not in (*needed, "save_steps")}
    settings = {
        "prompts": sha256([[job.name, job.prompt, job.queries, job.test_queries] for job in jobs]),
        "model": name_of(model),
        "ae": None if ae is None else str(ae),
        "num_be_tokens": num_be_tokens,
        "slot": slot,
        "group_size": group_size,
        "seed": seed,
        **{name: value for name, value in training_args.items() if name not in PLACES},
    }
    defaults = {**default_settings(settings, compress_prompts, BEDistillConfig), **needed}
    with RunFolder(output_dir, settings, resume, overwrite, defaults) as run:
        if run.is_finished:
            record = read_json(run.directory / run.RESULT, "result", dict)
            errors = {prompt["name"]: prompt["error"] for prompt in record["prompts"] if prompt["error"] is not None}
            if not errors:
                return [_result(run, job.name, errors) for job in jobs]
        # Of a finished run, what failed is tried again
        waiting = [job for job in jobs if not run.is_finished or job.name in errors]
        model, tokenizer = load_base(model, tokenizer)
        run.confirm("base_sha256", weights_sha256(model), "base model or dtype")
        check_length(model, num_be_tokens, f"num_be_tokens={num_be_tokens}")
        training_args = {**config_args(run.settings, BEDistillConfig), **training_args, **needed}
        training_args["save_steps"] = training_args["eval_steps"]
        reconstructs = training_args["kd_weight"] < 1 and training_args.get("use_ae_token", True)
        batch = _Batch(
            run=run,
            settings=run.settings,
            model=model,
            tokenizer=tokenizer,
            ae_row=find_ae_row(ae, model, tokenizer, settings["model"], reconstructs),
            on_progress=on_progress,
            training_args=training_args,
        )
        errors: dict[str, str] = {}
        prepared: list[tuple[PromptJob, QuerySplits]] = []
        for job in waiting:
            try:
                prepared.append((job, batch.prepare(job)))
            except Exception as error:
                errors[job.name] = failure(error)
        if prepared and training_args["kd_weight"] > 0:
            warn_of_few_queries({job.name: splits for job, splits in prepared})
        for number, start in enumerate(range(0, len(prepared), group_size)):
            group = prepared[start : start + group_size]
            label = f"{start + 1}-{start + len(group)} of {len(prepared)}"
            # Other prompts than before may have failed, so that they need a folder of another name
            name = f"group-{number}" + (f"-{sha256([job.name for job, _ in group])[:8]}" if run.is_finished else "")
            errors |= batch.compress(group, run.work / name, label)
        run.work.mkdir(exist_ok=True)
        results = [_result(run, job.name, errors) for job in jobs]
        run.finish(
            {
                "settings": run.settings,
                "prompts": [
                    {"name": r.name, "error": r.error, "best": r.report and r.report["best"]} for r in results
                ],
            }
        )
        return results


def _result(run: RunFolder, name: str, errors: dict[str, str]) -> PromptResult:
    if name in errors:
        return PromptResult(name, error=errors[name])
    directory = run.directory / name
    return PromptResult(name, directory, read_json(directory / RunFolder.RESULT, "result", dict))


@dataclass
class _Batch:
    """What the groups of a run share."""

    run: RunFolder
    settings: dict
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    ae_row: torch.Tensor | None
    on_progress: OnProgress | None
    training_args: dict

    def prepare(self, job: PromptJob) -> QuerySplits:
        """Split a job's queries. Raises a `ValueError` if it cannot be compressed, before any work was done on the others."""
        seed = self.settings["seed"]
        splits = split_queries(job.queries, job.test_queries, seed=seed)
        args = BEDistillConfig(str(self.run.work), **self.training_args)
        renderer = PromptRenderer(self.tokenizer, job.prompt)
        teacher_prompts(self.model, renderer, splits.train + splits.validation, args.max_answer_length)
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
        errors = {}
        for job, splits in group:
            errors |= self.compress([(job, splits)], work / job.name, f"{label}: {job.name}")
        return errors

    def _train(self, group: list[tuple[PromptJob, QuerySplits]], work: Path, label: str) -> dict[str, str]:
        """Train a group and write its adapters. Returns the errors, by name, of the prompts whose loss was not finite."""
        record = work / "done.json"
        done = self._finished(group, record)
        if done is not None:
            return done
        k, start = self.settings["num_be_tokens"], time.perf_counter()
        slot = self.settings["slot"]
        peft_model = add_adapter(self.model, self.tokenizer, k * len(group), self.ae_row, slot)
        args = {"answer_cache_dir": str(teacher_cache_dir()), **self.training_args}
        queries = {
            split: Dataset.from_dict(
                {
                    "query": query_column([q for _, splits in group for q in getattr(splits, split)]),
                    "prompt_name": [job.name for job, splits in group for _ in getattr(splits, split)],
                }
            )
            for split in ("train", "validation")
        }
        trainer = None
        try:
            trainer = ManyPromptsTrainer(
                peft_model,
                BEDistillConfig(str(work), **args),
                {job.name: job.prompt for job, _ in group},
                train_dataset=queries["train"],
                eval_dataset=queries["validation"],
                processing_class=self.tokenizer,
                on_teacher_progress=self.on_progress
                and (lambda name, done, total: self.on_progress(f"{label}: teacher, {name} queries", done, total, {})),
            )
            stage = stage_name(trainer.args.kd_weight)
            report_to(self.on_progress, trainer, f"{label}: {stage}")
            best = EachPromptsBest(trainer, PATIENCE)
            trainer.add_callback(best)
            train(trainer, stage)
        except FloatingPointError:
            if trainer is None or len(trainer.failed) < len(group):
                raise
        finally:
            self.model = peft_model.unload()
        seconds = (time.perf_counter() - start) / len(group)

        single = add_adapter(self.model, self.tokenizer, k, self.ae_row, slot)
        try:
            for number, (job, splits) in enumerate(group):
                if job.name not in trainer.failed:
                    rows = slice(number * k, (number + 1) * k)
                    together = [other.name for other, _ in group]
                    self._write(single, trainer, best, job.name, splits, work, rows, together, seconds)
        finally:
            self.model = single.unload()
        write_json(record, trainer.failed)
        return trainer.failed

    def _write(
        self,
        single: PeftModel,
        trainer: ManyPromptsTrainer,
        best: EachPromptsBest,
        name: str,
        splits: QuerySplits,
        work: Path,
        own: slice,
        together: list[str],
        seconds: float,
    ) -> None:
        """Write a prompt's adapter with its best rows, which are a part of one of the group's checkpoints."""
        (value, step), steps = best.best[name], best.last_step[name]
        (rows,) = (
            tensor
            for key, tensor in load_file(work / f"checkpoint-{step}" / WEIGHTS_FILE).items()
            if key.endswith("be_token_embedding.weight")
        )
        single.base_model.set_rows("default", rows[own])
        metric, stage = trainer.args.metric_for_best_model, stage_name(trainer.args.kd_weight)
        log = [
            {"stage": stage, "step": entry["step"], f"eval_{metric}": entry[f"eval_{metric}_{name}"]}
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
        report = training_report(
            self.settings["model"],
            {**self.settings, "prompts": together},
            splits,
            steps,
            best_figures(metric, value, step, trainer.no_prompt_kl.get(name)),
            seconds,
            log,
        )
        directory = self.run.directory / name
        single.peft_config["default"].provenance = trainer.provenance_of(name, figures)
        single.save_pretrained(directory)
        write_json(directory / RunFolder.RESULT, report)

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
