"""Stage 0 as a function: once for each backbone, the [AE] row."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..adapters.load import load_base, name_of
from ..checks import COUNT, check_names, check_number
from ..models import DEFAULT_MODEL
from ..prompting.fingerprints import sha256
from ..teacher import weights_sha256
from ..training import AEConfig, AETrainer
from ..training.callbacks import OnProgress
from .folder import RunFolder
from .settings import PLACES, check_steps, config_args, default_settings
from .train import report_to, train


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
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            "The corpus is a list of texts: read a file with peft_be.data.load_corpus(path), or take a column."
        )
    texts = list(texts)
    settings = {
        "corpus": sha256(texts),
        "model": name_of(model),
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
