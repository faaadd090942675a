"""The main job as functions: a prompt and queries in, an adapter out; and, once a backbone, the [AE] row."""

from __future__ import annotations

import os
import random
import time
import warnings
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from .base_weights import check_plain
from .checks import COUNT, NOT_NEGATIVE, POSITIVE, Range, check_choice, check_names, check_number
from .context import check_length
from .data import QuerySplits, query_key, split_queries
from .files import read_json
from .models import DEFAULT_MODEL, load_model
from .prompting.fingerprints import sha256
from .teacher import teacher_cache_dir, weights_sha256
from .training import AEConfig, AETrainer, BEDistillConfig, BEDistillTrainer
from .training.adapter import add_adapter, find_ae_row
from .training.budget import Budget
from .training.callbacks import OnPreview, OnProgress
from .training.rounds import train_rounds
from .training.run import RunFolder, report_to, train
from .training.settings import PLACES, config_args, default_settings
from .tuner import BETokenConfig
from .tuner.checks import MAX_ROWS
from .tuner.config import SLOTS


# What differs from `BEDistillConfig`, whose defaults are the paper's: distillation alone at temperature 1 comes nearer to the
# full prompt in the same time (docs/results.md). P is longer than a batch of answers, so that reconstructing it at each
# step would multiply the time of a step.
RECIPE = {"kd_weight": 1.0, "temperature": 1.0, "reconstruction_interval": 32}
# Fewer training or validation queries get a warning: fewer than these, and less than was ever measured
FEW_QUERIES, FEW_VALIDATION = 50, 12
NUM_BE_TOKENS = Range(low=1, high=MAX_ROWS)


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
    on_policy_rounds: int = 0,
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
        on_policy_rounds (`int`, *optional*, defaults to `0`):
            Rounds of half of `max_steps` each after the main training: in each, the student answers the training
            queries, and learns from the teacher's distributions on these answers beside the teacher's own. What was
            measured of it in docs/study.md does not pay.
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
            Fields of [`BEDistillConfig`], for instance `max_steps` or `learning_rate`. Its defaults hold but for three:
            `kd_weight=1.0` and `temperature=1.0`, where the paper has 0.9 and 2, and `reconstruction_interval=32`.

    Returns:
        [`Compression`]

    Raises:
        `ValueError`: an empty prompt, too few queries, a prompt longer than the context, settings out of range, an [AE]
            row of another backbone, or a resumed run with other settings.
        `FileExistsError`: `output_dir` is in use, see `resume` and `overwrite`.
        `FloatingPointError`: the loss is not a finite number.
        `KeyboardInterrupt`: Ctrl-C; what was done is kept, and `resume=True` goes on with it.
    """
    splits = queries if isinstance(queries, QuerySplits) else split_queries(queries, test_queries, seed=seed)
    check_names(training_args, BEDistillConfig)
    checked = BEDistillConfig(str(output_dir), seed=seed, **{**RECIPE, **training_args})
    check_steps(checked)
    check_number("num_be_tokens", num_be_tokens, NUM_BE_TOKENS, whole=True)
    check_choice("slot", slot, SLOTS)
    check_number("reconstruction_steps", reconstruction_steps, NOT_NEGATIVE, whole=True)
    check_number("on_policy_rounds", on_policy_rounds, NOT_NEGATIVE, whole=True)
    if on_policy_rounds and checked.kd_weight == 0:
        raise ValueError("on_policy_rounds needs distillation: set kd_weight above 0, or leave the rounds out.")
    if max_minutes is not None:
        check_number("max_minutes", max_minutes, POSITIVE)
    if checked.kd_weight > 0:
        warn_of_few_queries({"prompt": splits})
    settings = {
        "prompt": sha256(prompt),
        "queries": sha256([splits.train, splits.validation]),
        "model": model if isinstance(model, str) else model.name_or_path,
        "ae": None if ae is None else str(ae),
        "num_be_tokens": num_be_tokens,
        "slot": slot,
        "reconstruction_steps": reconstruction_steps,
        "on_policy_rounds": on_policy_rounds,
        "max_minutes": max_minutes,
        "seed": seed,
        **{name: value for name, value in training_args.items() if name not in PLACES},
    }
    defaults = {**default_settings(settings, compress_prompt, BEDistillConfig), **RECIPE}
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
            return finished_compression(run, peft_model, tokenizer, on_failure)

        logs = []
        if reconstruction_steps:
            args = {**training_args, "kd_weight": 0.0, "max_steps": reconstruction_steps}
            args = BEDistillConfig(str(run.work / "stage1"), **args)
            trainer = BEDistillTrainer(peft_model, args, prompt, processing_class=tokenizer)
            report_to(on_progress, trainer, "stage 1")
            logs += train(trainer, "stage 1")
            training_args["init"] = None  # go on from there
        args = {"answer_cache_dir": str(teacher_cache_dir()), **training_args}
        done = train_rounds(
            peft_model, tokenizer, prompt, splits, run, args, on_policy_rounds, budget, on_progress, on_preview
        )
        report = training_report(
            model_name,
            run.settings,
            splits,
            done.steps,
            done.best,
            budget.used,
            logs + done.log,
        )
        peft_model.save_pretrained(run.directory)
        run.finish(report)
        on_failure.pop_all()
        return Compression(run.directory, peft_model, tokenizer, report)


def finished_compression(
    run: RunFolder, peft_model: PeftModel, tokenizer: PreTrainedTokenizerBase, on_failure: ExitStack
) -> Compression:
    """What a finished run made; `peft_model` has an adapter like the run's, and gets its rows."""
    peft_model.load_adapter(run.directory, "default", is_trainable=True)
    peft_model.peft_config["default"].provenance = BETokenConfig.from_pretrained(run.directory).provenance
    report = read_json(run.directory / run.RESULT, "result", dict)
    on_failure.pop_all()
    return Compression(run.directory, peft_model, tokenizer, report)


def pretrain_ae(
    texts: list[str],
    output_dir: str | os.PathLike,
    *,
    model: str | PreTrainedModel = DEFAULT_MODEL,
    tokenizer: PreTrainedTokenizerBase | None = None,
    num_validation: int = 32,
    seed: int = 42,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
    **training_args,
) -> Path:
    """
    Train the universal [AE] row of a backbone (stage 0, Eq. 1). Once for each backbone.

    Args:
        texts (`list[str]`):
            Running text of many kinds. Duplicates and short texts are left out.
        output_dir (`str` or `os.PathLike`):
            Folder of the adapter.
        num_validation (`int`, *optional*, defaults to `32`):
            Passages held out to measure the reconstruction on.
        **training_args:
            Fields of [`AEConfig`], for instance `max_steps`, `learning_rate`, `max_passage_length`.

    The other arguments and the errors raised are those of [`compress_prompt`].

    Returns:
        `Path`: the adapter's folder.
    """
    check_names(training_args, AEConfig)
    check_number("num_validation", num_validation, COUNT, whole=True)
    defaults = {"max_steps": 200, "eval_strategy": "steps", "eval_steps": 25, "save_steps": 25}
    check_steps(AEConfig(str(output_dir), seed=seed, **{**defaults, **training_args}))
    settings = {
        "corpus": sha256(texts),
        "model": model if isinstance(model, str) else model.name_or_path,
        "num_validation": num_validation,
        "seed": seed,
        **{name: value for name, value in training_args.items() if name not in PLACES},
    }
    defaults = {**default_settings(settings, pretrain_ae, AEConfig), **defaults}
    texts = sorted(set(texts))
    if len(texts) < 2:
        raise ValueError(
            "The corpus needs at least two different texts, one of them to validate on; thousands are good."
        )
    random.Random(seed).shuffle(texts)
    num_validation = min(num_validation, len(texts) // 2)
    with RunFolder(output_dir, settings, resume, overwrite, defaults) as run:
        if run.is_finished:
            return run.directory
        model, tokenizer = load_base(model, tokenizer)
        run.confirm("base_sha256", weights_sha256(model), "base model or dtype")
        start = time.perf_counter()
        training_args = {"save_total_limit": 1, **config_args(run.settings, AEConfig), **training_args}
        trainer = AETrainer(
            model,
            AEConfig(str(run.work / "stage0"), **training_args),
            train_dataset=Dataset.from_dict({"text": texts[num_validation:]}),
            eval_dataset=Dataset.from_dict({"text": texts[:num_validation]}),
            processing_class=tokenizer,
        )
        report_to(on_progress, trainer, "stage 0")
        logs = train(trainer, "stage 0")
        report = {
            "model": settings["model"],
            "settings": run.settings,
            "num_passages": {"train": len(trainer.train_dataset), "validation": len(trainer.eval_dataset)},
            "steps": trainer.state.global_step,
            "seconds": round(time.perf_counter() - start, 1),
            "log": logs,
        }
        trainer.model.save_pretrained(run.directory)
        run.finish(report)
        return run.directory


def check_steps(args: TrainingArguments) -> None:
    """
    Raises a `ValueError` without a number of steps. To make `args` has checked all other settings, before anything is
    loaded.
    """
    if args.max_steps < 1:  # what transformers reads as: train for epochs
        raise ValueError(f"max_steps must be at least 1, got {args.max_steps}.")


def warn_of_few_queries(splits: dict[str, QuerySplits]) -> None:
    """Warn of fewer queries than a result can be trusted with, those of a single prompt or of several by name."""

    def fewest(counts: dict[str, int], limit: int) -> tuple[int, str]:
        """The least count, and whose it is."""
        name, count = min(counts.items(), key=lambda item: item[1])
        others = sum(other < limit for other in counts.values()) - 1
        of = f" of '{name}'" if len(counts) > 1 else ""
        return count, of + (f" (and fewer than {limit} of {others} other prompts)" if others > 0 else "")

    train, of = fewest({name: len(own.train) for name, own in splits.items()}, FEW_QUERIES)
    if train < FEW_QUERIES:
        warnings.warn(
            f"There {'is' if train == 1 else 'are'} only {train} training quer{'y' if train == 1 else 'ies'}{of}: "
            "expect an adapter that follows the prompt on what these ask, and less on anything else. The fewest that "
            "were measured are 173, from which a task kept 68 % of its score, and 91 % from 432 (docs/study.md). Give "
            "a few hundred.",
            stacklevel=1,
        )
    validation, of = fewest({name: len(own.validation) for name, own in splits.items()}, FEW_VALIDATION)
    if validation < FEW_VALIDATION:
        warnings.warn(
            f"Only {validation} quer{'y is' if validation == 1 else 'ies are'} held out for validation{of}: a KL on "
            "so few depends on single answers. Even on 19, eight rows seemed to close up to 0.37 more of the gap than "
            "they did on other queries (docs/study.md). Trust peft-be eval with held-out queries instead.",
            stacklevel=1,
        )


def training_report(
    model_name: str, settings: dict, splits: QuerySplits, steps: int, best: dict, seconds: float, log: list[dict]
) -> dict:
    """What `training.json` says of an adapter."""
    return {
        "model": model_name,
        "settings": settings,
        "num_queries": {"train": len(splits.train), "validation": len(splits.validation)},
        # Hashes, so that an evaluation can leave out what was seen without the queries being published
        "seen_queries": sorted(query_key(query) for query in splits.train + splits.validation),
        "steps": steps,
        "best": best,
        "seconds": round(seconds, 1),
        "log": log,
    }


def load_base(model, tokenizer) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if isinstance(model, str):
        return load_model(model)
    if tokenizer is None:
        raise ValueError("A loaded model needs its tokenizer: pass `tokenizer`.")
    check_plain(model)
    return model, tokenizer
