"""Many prompts in one run: their rows learn side by side on one model in memory."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .checks import COUNT, check_choice, check_names, check_number
from .compress import RECIPE, check_steps, load_base, training_report, warn_of_few_queries
from .context import check_length
from .data import QuerySplits, as_queries, load_queries, query_column, read_rows, split_queries
from .files import capitalised, read_json, shown, write_json
from .models import DEFAULT_MODEL
from .prompting import PromptRenderer, load_prompt
from .prompting.fingerprints import sha256
from .teacher import teacher_cache_dir, weights_sha256
from .training import BEDistillConfig, BEDistillTrainer
from .training.adapter import add_adapter, find_ae_row
from .training.be_distill_trainer import teacher_prompts
from .training.callbacks import EachPromptsBest, OnProgress
from .training.provenance import best_figures, stage_name
from .training.run import PATIENCE, RunFolder, failure, report_to, train
from .training.settings import PLACES, config_args, default_settings
from .tuner.config import SLOTS


MAX_NAME_LENGTH = 128
# What Windows takes for a device, with any ending
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10))}


# Keys of a row in a manifest
_NEEDED, _OPTIONAL = {"name", "prompt", "queries"}, {"test_queries", "query_field"}


@dataclass
class PromptJob:
    """
    A prompt to compress.

    Args:
        name (`str`): its name, and that of its adapter's folder: letters, digits, `.`, `_` and `-`, and nothing that a run
            folder or an operating system keeps for itself.
        prompt (`str` or `list[dict]`): P: a system text, or the chat messages in front of the user's turn.
        queries (`list`): what users may ask; no answers needed. Any form that [`as_queries`] takes; kept as a list.
        test_queries (`list`, *optional*): queries for a later evaluation; their duplicates are not trained on.

    Raises:
        `ValueError`: something that is no query.
    """

    name: str
    prompt: str | list[dict[str, str]]
    queries: list
    test_queries: list | None = None

    def __post_init__(self):
        self.queries = as_queries(self.queries)
        if self.test_queries is not None:
            self.test_queries = as_queries(self.test_queries)


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
    gradients, clipping, learning rate, validations and early stop. A prompt that fails does not stop the others: where an
    error ends a group, each of its prompts is trained by itself. `resume=True` tries those again that failed.

    Args:
        jobs (`list[PromptJob]`):
            The prompts, with different names.
        output_dir (`str` or `os.PathLike`):
            Folder in which each prompt gets a folder of its name, with its adapter. `training.json` in it sums up.
        group_size (`int`, *optional*, defaults to `8`):
            Prompts that learn together. A step holds the activations of `group_size * per_device_train_batch_size` answers.
        **training_args:
            Fields of [`BEDistillConfig`], with the same defaults as in [`compress_prompt`]. They hold for all prompts.

    The other arguments are those of [`compress_prompt`].

    Returns:
        `list[PromptResult]`: in the order of the jobs.

    Raises:
        `ValueError`: no jobs, unusable or repeated names, settings out of range, an [AE] row of another backbone, or a
            resumed run with other settings. What is wrong with a single prompt is in its result instead.
        `FileExistsError`: `output_dir` is in use, see `resume` and `overwrite`.
        `KeyboardInterrupt`: Ctrl-C; what was done is kept, and `resume=True` goes on with it.
    """
    _check_names([job.name for job in jobs])
    check_names(training_args, BEDistillConfig)
    for name, value in {"group_size": group_size, "num_be_tokens": num_be_tokens}.items():
        check_number(name, value, COUNT, whole=True)
    check_choice("slot", slot, SLOTS)
    # Each prompt's best rows are taken from the checkpoints, so that all of these are kept. They hold some KB a prompt
    needed = {"eval_strategy": "steps", "save_total_limit": None, "load_best_model_at_end": False}
    check_steps(
        BEDistillConfig(str(output_dir), seed=seed, **{**RECIPE, "load_best_model_at_end": False, **training_args})
    )
    training_args = {name: value for name, value in training_args.items() if name not in (*needed, "save_steps")}
    settings = {
        "prompts": sha256([[job.name, job.prompt, job.queries, job.test_queries] for job in jobs]),
        "model": model if isinstance(model, str) else model.name_or_path,
        "ae": None if ae is None else str(ae),
        "num_be_tokens": num_be_tokens,
        "slot": slot,
        "group_size": group_size,
        "seed": seed,
        **{name: value for name, value in training_args.items() if name not in PLACES},
    }
    defaults = {**default_settings(settings, compress_prompts, BEDistillConfig), **RECIPE, **needed}
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
            # Other prompts than before may have failed: their group is another one
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
        """The split queries of a job; a `ValueError` if it cannot be compressed, before the others have cost any work."""
        seed = self.settings["seed"]
        splits = split_queries(job.queries, job.test_queries, seed=seed)
        args = BEDistillConfig(str(self.run.work), **self.training_args)
        renderer = PromptRenderer(self.tokenizer, job.prompt)
        teacher_prompts(self.model, renderer, splits.train + splits.validation, args.max_answer_length)
        return splits

    def compress(self, group: list[tuple[PromptJob, QuerySplits]], work: Path, label: str) -> dict[str, str]:
        """Train a group, or each prompt by itself where that fails, and write the adapters. Returns the errors by name."""
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
        """Train a group and write its adapters. Returns the errors of those whose loss was not finite."""
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
            trainer = BEDistillTrainer(
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
        trainer: BEDistillTrainer,
        best: EachPromptsBest,
        name: str,
        splits: QuerySplits,
        work: Path,
        own: slice,
        together: list[str],
        seconds: float,
    ) -> None:
        """Write a prompt's adapter with its best rows, which are some of those of a group's checkpoint."""
        (value, step), steps = best.best[name], best.last_step[name]
        (rows,) = (
            tensor
            for key, tensor in load_file(work / f"checkpoint-{step}" / "adapter_model.safetensors").items()
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
        """The errors of a group whose adapters are all there; `None` if it is not finished, or its record is damaged."""
        try:
            failed = read_json(record, "record of a group", dict)
        except (FileNotFoundError, ValueError):
            return None
        names = [job.name for job, _ in group if job.name not in failed]
        return failed if all((self.run.directory / name / RunFolder.RESULT).is_file() for name in names) else None


def load_manifest(path: str | os.PathLike) -> tuple[list[PromptJob], dict[str, str]]:
    """
    Read the prompts of a run from a manifest.

    Args:
        path (`str` or `os.PathLike`):
            JSON lines, or rows in another of the formats of [`read_rows`]: `{"name": ..., "prompt": ..., "queries": ...}`, and
            optionally `"test_queries"` and `"query_field"`, the field of the queries' rows. All are texts; the prompt and
            the queries are paths, relative to the manifest's folder.

    Returns:
        `tuple[list[PromptJob], dict[str, str]]`: the jobs, and by name what is wrong with those whose files cannot be used.

    Raises:
        `FileNotFoundError`: there is no manifest.
        `ValueError`: a row is not such an object, a name is unusable or repeated, or there is no row.
    """
    path, rows = Path(path), []
    for where, row in read_rows(path, "manifest"):
        row = {key: value for key, value in row.items() if value not in (None, "")}  # cells of a table may be empty
        if not _NEEDED <= row.keys() <= _NEEDED | _OPTIONAL or not all(
            isinstance(value, str) for value in row.values()
        ):
            raise ValueError(
                f"{capitalised(where)} must be an object with name, prompt, queries and optionally test_queries and "
                "query_field, all of them texts."
            )
        rows.append(row)
    try:
        _check_names([row["name"] for row in rows])
    except ValueError as error:
        raise ValueError(f"In the manifest '{path}': {error}") from None
    jobs, errors = [], {}
    for row in rows:
        try:
            field, folder = row.get("query_field"), path.parent
            files = {key: load_queries(folder / row[key], field) for key in ("queries", "test_queries") if key in row}
            jobs.append(PromptJob(row["name"], load_prompt(folder / row["prompt"]), **files))
        except (ValueError, OSError) as error:
            errors[row["name"]] = str(error)
    return jobs, errors


def _check_names(names: list[str]) -> None:
    if not names:
        raise ValueError("There are no prompts to compress.")
    for name in names:
        reason = _unusable(name)
        if reason:
            raise ValueError(f"{shown(name)} cannot name a prompt's folder: {reason}.")
    # On many file systems, names that differ in letter case only are one folder
    spellings: dict[str, list[str]] = {}
    for name in names:
        spellings.setdefault(name.casefold(), []).append(name)
    repeated = sorted({name for same in spellings.values() if len(same) > 1 for name in same})
    if repeated:
        raise ValueError(
            f"Each prompt needs a name of its own, not only in another letter case; more than one is called "
            f"{', '.join(map(shown, repeated))}."
        )


def _unusable(name: str) -> str | None:
    """Why a name cannot be a folder beside what a run keeps in its own, on every file system."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        return "use letters, digits, '.', '_' and '-', and begin with a letter or a digit"
    stem, _, rest = name.casefold().partition(".")
    if stem == "training" and rest in ("", "json", "part"):
        return "the run keeps its own files under it"
    if name.endswith("."):
        return "it ends in a dot, which some file systems leave out"
    if stem in _RESERVED:
        return "it is reserved on some systems"
    if len(name) > MAX_NAME_LENGTH:
        return f"it has {len(name)} characters, and {MAX_NAME_LENGTH} are the most"
    return None
