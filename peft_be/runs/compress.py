"""The main job as a function: a prompt and queries in, an adapter out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..adapters.create import add_adapter, find_ae_row
from ..adapters.load import load_base, name_of
from ..adapters.provenance import best_figures, stage_name
from ..checks import NOT_NEGATIVE, POSITIVE, check_choice, check_names, check_number
from ..data import QuerySplits, query_column, split_queries
from ..files import read_json
from ..models import DEFAULT_MODEL
from ..prompting.context import check_length
from ..prompting.fingerprints import sha256
from ..prompting.messages import check_prompt
from ..teacher import teacher_cache_dir, weights_sha256
from ..training import BEDistillConfig, BEDistillTrainer
from ..training.budget import Budget, steps_in_time
from ..training.callbacks import OnPreview, OnProgress
from ..tuner import BETokenConfig
from ..tuner.config import SLOTS
from .folder import RunFolder
from .report import training_report, warn_of_few_queries
from .settings import NUM_BE_TOKENS, PLACES, check_steps, config_args, default_settings
from .train import report_to, train


@dataclass
class Compression:
    """
    A compressed prompt.

    Attributes:
        directory (`Path`): the adapter's folder.
        model (`PeftModel`): the base model with the adapter.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer.
        report (`dict`): what was done, as in `training.json`: settings, steps, seconds, validation KL, log.
    """

    directory: Path
    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    report: dict


def compress_prompt(
    prompt: str | list[dict[str, str]],
    queries: Iterable | QuerySplits,
    output_dir: str | os.PathLike,
    *,
    model: str | PreTrainedModel = DEFAULT_MODEL,
    tokenizer: PreTrainedTokenizerBase | None = None,
    test_queries: Iterable | None = None,
    ae: str | os.PathLike | None = None,
    num_be_tokens: int = 1,
    slot: str = "system",
    reconstruction_steps: int = 0,
    max_minutes: float | None = None,
    seed: int = 42,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
    on_preview: OnPreview | None = None,
    **training_args,
) -> Compression:
    """
    Compress a prompt into `num_be_tokens` learned rows.

    Args:
        prompt (`str` or `list[dict]`):
            P: a system text, or the chat messages in front of the user's turn.
        queries (`Iterable` or [`QuerySplits`]):
            What users may ask, in any form that [`as_queries`] takes; no answers needed. A tenth, 48 at most, is held
            out to choose the checkpoint by.
        output_dir (`str` or `os.PathLike`):
            Folder of the adapter. An unfinished run keeps its work there.
        model (`str` or [`~transformers.PreTrainedModel`], *optional*, defaults to `"smollm2"`):
            `smollm2`, a folder, a Hub id, or a loaded model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Needed with a loaded model.
        test_queries (`Iterable`, *optional*):
            Queries for a later evaluation; their duplicates are taken out of the training queries.
        ae (`str` or `os.PathLike`, *optional*):
            Folder of an adapter with the [AE] row, for `kd_weight` below 1 and `reconstruction_steps`. `None` takes the one
            that the package ships for this backbone, if there is one.
        num_be_tokens (`int`, *optional*, defaults to `1`):
            k, the number of [BE] rows.
        slot (`str`, *optional*, defaults to `"system"`):
            Where [BE] stands: `"system"` in the template's system turn, `"prefix"` in front of the user's turn.
        reconstruction_steps (`int`, *optional*, defaults to `0`):
            Steps of stage 1 alone (Eq. 2) before the main training.
        max_minutes (`float`, *optional*):
            Time for the whole job, model loading excluded. The steps that fit are measured once the teacher has worked;
            `max_steps` stays the upper bound.
        seed (`int`, *optional*, defaults to `42`):
            Seed of everything that is random.
        resume (`bool`, *optional*, defaults to `False`):
            Go on with the interrupted run in `output_dir`. If there is none, one is begun, with a warning; a finished
            one is returned as it is.
        overwrite (`bool`, *optional*, defaults to `False`):
            Replace an earlier run in `output_dir`; it is deleted when the new one is finished.
        on_progress (`Callable[[str, int, int, dict], None]`, *optional*):
            Called with the stage, the work done, its total, and the latest logged values.
        on_preview (`Callable[[list[dict]], None]`, *optional*):
            Called before the first step with what [BE] is to imitate, see [`BEDistillTrainer.preview`].
        **training_args:
            Fields of [`BEDistillConfig`], for instance `max_steps` or `learning_rate`.

    Returns:
        [`Compression`]

    Raises:
        `ValueError`: an empty prompt, too few queries, a prompt longer than the context, settings out of range, an [AE]
            row of another backbone, or a resumed run with other settings.
        `FileExistsError`: `output_dir` is in use, see `resume` and `overwrite`.
        `FloatingPointError`: the loss is not a finite number.
        `KeyboardInterrupt`: Ctrl-C; what was done is kept, and `resume=True` goes on with it.
    """
    check_prompt(prompt)
    splits = queries if isinstance(queries, QuerySplits) else split_queries(queries, test_queries, seed=seed)
    check_names(training_args, BEDistillConfig)
    checked = BEDistillConfig(str(output_dir), seed=seed, **training_args)
    check_steps(checked)
    _check_options(num_be_tokens, slot, reconstruction_steps, max_minutes)
    if checked.kd_weight > 0:
        warn_of_few_queries({"prompt": splits})
    settings = {
        "prompt": sha256(prompt),
        "queries": sha256([splits.train, splits.validation]),
        "model": name_of(model),
        "ae": None if ae is None else str(ae),
        "num_be_tokens": num_be_tokens,
        "slot": slot,
        "reconstruction_steps": reconstruction_steps,
        "max_minutes": max_minutes,
        "seed": seed,
        **{name: value for name, value in training_args.items() if name not in PLACES},
    }
    defaults = default_settings(settings, compress_prompt, BEDistillConfig)
    with RunFolder(output_dir, settings, resume, overwrite, defaults) as run, ExitStack() as on_failure:
        model_name = settings["model"]
        model, tokenizer = load_base(model, tokenizer)
        run.confirm("base_sha256", weights_sha256(model), "base model or dtype")
        budget = Budget(max_minutes)
        check_length(model, num_be_tokens, f"num_be_tokens={num_be_tokens}")
        training_args = {**config_args(run.settings, BEDistillConfig), **training_args}
        checked = BEDistillConfig(str(run.work), **training_args)  # what an unfinished run has recorded, too
        reconstructs = (checked.kd_weight < 1 or reconstruction_steps > 0) and checked.use_ae_token
        ae_row = find_ae_row(ae, model, tokenizer, model_name, reconstructs)
        if ae_row is not None:
            run.confirm("ae_sha256", sha256(ae_row.tolist()), "[AE] row")
        peft_model = add_adapter(model, tokenizer, num_be_tokens, ae_row, slot)
        on_failure.callback(peft_model.unload)  # a model that was passed in can be used again
        if run.is_finished:
            return _finished(run, peft_model, tokenizer, on_failure)

        logs = []
        if reconstruction_steps:
            args = {**training_args, "kd_weight": 0.0, "max_steps": reconstruction_steps}
            args = BEDistillConfig(str(run.work / "stage1"), **args)
            trainer = BEDistillTrainer(peft_model, args, prompt, processing_class=tokenizer)
            report_to(on_progress, trainer, "stage 1")
            logs += train(trainer, "stage 1")
            training_args["init"] = None  # go on from there
        args = {"answer_cache_dir": str(teacher_cache_dir()), **training_args}
        args = BEDistillConfig(str(run.work / "stage2"), **args)
        stage = stage_name(args.kd_weight)
        measured = run.settings.get("fitting_steps", {}).get(stage)
        # A resumed run keeps the number of steps that it measured, however long its teacher takes now
        on_answers = None if measured else budget.left
        trainer = _distiller(peft_model, tokenizer, prompt, splits, args, on_progress, on_answers)
        report_to(on_progress, trainer, stage)
        if on_preview:
            on_preview(trainer.preview())
        if budget.seconds is not None:
            if measured is None:
                measured = steps_in_time(trainer, budget.left())
                run.remember("fitting_steps", {stage: measured})
            trainer.args.max_steps = min(trainer.args.max_steps, measured)
        logs += train(trainer, stage)
        state, no_prompt_kl = trainer.state, trainer.no_prompt_kl.get("default")
        best = best_figures(
            trainer.args.metric_for_best_model, state.best_metric, state.best_global_step, no_prompt_kl
        )
        report = training_report(model_name, run.settings, splits, state.global_step, best, budget.used, logs)
        peft_model.save_pretrained(run.directory)
        run.finish(report)
        on_failure.pop_all()
        return Compression(run.directory, peft_model, tokenizer, report)


def _check_options(num_be_tokens: int, slot: str, reconstruction_steps: int, max_minutes: float | None) -> None:
    check_number("num_be_tokens", num_be_tokens, NUM_BE_TOKENS, whole=True)
    check_choice("slot", slot, SLOTS)
    check_number("reconstruction_steps", reconstruction_steps, NOT_NEGATIVE, whole=True)
    if max_minutes is not None:
        check_number("max_minutes", max_minutes, POSITIVE)


def _distiller(
    peft_model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | list[dict[str, str]],
    splits: QuerySplits,
    args: BEDistillConfig,
    on_progress: OnProgress | None,
    on_answers: Callable[[], object] | None,
) -> BEDistillTrainer:
    """The trainer of the main training. While its teacher works, `on_answers` may raise to end it."""

    def report(name: str, done: int, total: int) -> None:
        if on_progress:
            on_progress(f"teacher, {name} queries", done, total, {})
        if on_answers:
            on_answers()

    return BEDistillTrainer(
        peft_model,
        args,
        prompt,
        train_dataset=Dataset.from_dict({"query": query_column(splits.train)}),
        eval_dataset=Dataset.from_dict({"query": query_column(splits.validation)}),
        processing_class=tokenizer,
        on_teacher_progress=report,
    )


def _finished(
    run: RunFolder, peft_model: PeftModel, tokenizer: PreTrainedTokenizerBase, on_failure: ExitStack
) -> Compression:
    """What a finished run made; `peft_model` has an adapter like the run's, and gets its rows."""
    peft_model.load_adapter(run.directory, "default", is_trainable=True)
    peft_model.peft_config["default"].provenance = BETokenConfig.from_pretrained(run.directory).provenance
    report = read_json(run.directory / run.RESULT, "result", dict)
    on_failure.pop_all()
    return Compression(run.directory, peft_model, tokenizer, report)
