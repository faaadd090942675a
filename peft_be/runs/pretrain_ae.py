"""Stage 0 as a function: once for each backbone, the [AE] row."""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..adapters.load import name_of
from ..files import read_json
from ..models import DEFAULT_MODEL
from ..progress import OnProgress
from ..prompting.fingerprints import sha256
from ..recipe import recorded
from ..training import AEConfig, AETrainer
from .config import PretrainAEConfig, changed, shared_fields
from .folder import RunFolder
from .prepare import load_confirmed
from .train import report_to, train


@dataclass
class PretrainedAE:
    """
    A trained [AE] row.

    Attributes:
        directory (`Path`): the adapter's folder.
        report (`dict`): what was done, as in `training.json`: settings, passages, steps, seconds (`None` if it was
            interrupted), log.
    """

    directory: Path
    report: dict


def pretrain_ae(
    texts: list[str],
    output_dir: str | os.PathLike,
    config: PretrainAEConfig | None = None,
    *,
    model: str | PreTrainedModel = DEFAULT_MODEL,
    tokenizer: PreTrainedTokenizerBase | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
    **changes,
) -> PretrainedAE:
    """
    Train the universal [AE] row of a backbone (stage 0, Eq. 1). Once for each backbone.

    Args:
        texts (`list[str]`):
            Running text of many kinds. Duplicates and short texts are left out.
        output_dir (`str` or `os.PathLike`):
            Folder of the adapter.
        config ([`PretrainAEConfig`], *optional*):
            How to train it. If `None`, the default recipe.
        **changes:
            Fields of [`PretrainAEConfig`] that replace those of `config`, for instance `max_steps=1000`.

    The other arguments and the errors raised are those of [`compress_prompt`].

    Returns:
        [`PretrainedAE`]
    """
    config = changed(config, PretrainAEConfig, changes)
    _training_args(config, output_dir)  # settings that transformers refuses show before the model is loaded
    texts = texts if isinstance(texts, str) else list(texts)
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            "The corpus is a list of texts: read a file with peft_be.data.load_corpus(path), or take a column."
        )
    settings = {"corpus": sha256(texts), "model": name_of(model), **recorded(config)}
    texts = sorted(set(texts))
    if len(texts) < 2:
        raise ValueError(
            "The corpus needs at least two different texts, one of them to validate on; thousands are good."
        )
    random.Random(config.seed).shuffle(texts)
    num_validation = min(config.num_validation, len(texts) // 2)
    with RunFolder(output_dir, settings, resume, overwrite, recorded(PretrainAEConfig())) as run:
        if run.is_finished:
            return PretrainedAE(run.directory, read_json(run.directory / run.RESULT, "result", dict))
        model, tokenizer = load_confirmed(run, model, tokenizer, config.dtype, config.device)
        start = time.perf_counter()
        trainer = AETrainer(
            model,
            _training_args(config, run.work / "stage0"),
            train_dataset=Dataset.from_dict({"text": texts[num_validation:]}),
            eval_dataset=Dataset.from_dict({"text": texts[:num_validation]}),
            processing_class=tokenizer,
        )
        try:
            report_to(on_progress, trainer, "stage 0")
            log = train(trainer, "stage 0")
            trainer.model.save_pretrained(run.directory)
        finally:  # a model that was passed in can be used again
            trainer.model.unload()
        report = {
            "model": settings["model"],
            "settings": run.settings,
            "num_passages": {"train": len(trainer.train_dataset), "validation": len(trainer.eval_dataset)},
            "steps": trainer.state.global_step,
            "seconds": None if run.resumed else round(time.perf_counter() - start, 1),
            "log": log,
        }
        run.finish(report)
        return PretrainedAE(run.directory, report)


def _training_args(config: PretrainAEConfig, output_dir: str | os.PathLike) -> AEConfig:
    own = {**shared_fields(config, AEConfig), "use_cpu": config.device == "cpu"}
    return AEConfig(str(output_dir), eval_strategy="steps", save_total_limit=1, **own)
