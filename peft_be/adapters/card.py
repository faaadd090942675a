"""The model card of an adapter, made from its configuration alone."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from wrapt import wrap_function_wrapper
from yaml import YAMLError

from ..figures import gap_closed, kl_sentence
from ..tuner.provenance import Provenance


CARD_FILE = "README.md"
TAGS = ["behavior-equivalent-token", "peft_be", "prompt-compression"]
# What stands in the text for the repository's name until it is known
REPOSITORY = "this-repository"

# The names of metrics in a card, by their types there
METRICS = {
    "gap_median": "KL gap closed, median over the queries",
    "gap_behaviour": "KL gap closed, without quotations from the prompt",
    "kl_gap_closed": "KL gap closed, mean over all tokens",
    "kl": "KL to the full prompt, nats a token",
    "kl_no_prompt": "KL of no prompt to the full prompt, nats a token",
    "same_answers": "Share of the answers that are the full prompt's, word for word",
    "top1_agreement": "Top-1 agreement with the full prompt",
    "rouge_l": "ROUGE-L to the full prompt's greedy answers",
    "leak_ngrams": "Share of the prompt's 4-grams read back",
    "leak_ngrams_no_prompt": "Share of the prompt's 4-grams written with no prompt",
    "leak_longest_run": "Longest run of the prompt read back, words",
    "leak_canaries": "Share of the planted canaries read back",
    "leak_reconstruction": "Share of the prompt's tokens predicted after [BE][AE]",
}
# Those of them that say how much of the prompt is kept
_FIDELITY = ("gap_median", "kl_gap_closed", "kl", "kl_no_prompt")

_SIGNATURE = re.compile(r"<!-- peft_be ([0-9a-f]{16}) -->")
_FRAMEWORK = "### Framework versions"


def write_cards_on_save(peft) -> None:
    """
    Have [`~peft.PeftModel.save_pretrained`] write the cards of BE_TOKEN adapters. PEFT itself writes an empty form, and
    has no place where a method could fill it in.

    Args:
        peft (`ModuleType`): the module PEFT.
    """
    wrap_function_wrapper(peft.PeftModel, "save_pretrained", _save_with_cards)


def _save_with_cards(save, model, args, kwargs) -> None:
    save(*args, **kwargs)
    given = inspect.signature(save).bind(*args, **kwargs)
    given.apply_defaults()
    if not given.arguments["is_main_process"]:
        return
    for name in given.arguments["selected_adapters"] or model.peft_config:
        config, folder = model.peft_config[name], Path(given.arguments["save_directory"])
        if config.peft_type == "BE_TOKEN":
            write_card(folder if name == "default" else folder / name, config)


def write_card(directory: Path, config) -> None:
    """
    Write the card of an adapter that was just saved, or bring it up to date.

    Its text is written where there is none, where PEFT's empty form stands, or where this function wrote it and nobody
    has changed it since. A text that somebody edited stays as it is. The metadata is brought up to date in any case;
    what else it says, such as a licence, stays.

    Args:
        directory (`Path`): the adapter's folder.
        config ([`BETokenConfig`]): its configuration, as saved.
    """
    path = Path(directory) / CARD_FILE
    card = ModelCard.load(path, ignore_metadata_errors=True) if path.is_file() else ModelCard("")
    if is_unedited(card.text):
        card.text = signed(_body(config))
    data = cast(ModelCardData, card.data)
    data.library_name, data.pipeline_tag = "peft", "text-generation"
    data.base_model = config.base_model_name_or_path
    # PEFT's tag with the base model's name adds nothing to `base_model`, and may be a folder of this machine
    others = [tag for tag in data.tags or [] if not tag.startswith("base_model:adapter:")]
    data.tags = sorted({*TAGS, *others})
    data.eval_results = None  # they may be those of earlier rows
    set_metrics(card, title(config), "validation queries", _validation_metrics(_training(config)))
    card.save(path)


def add_scores(directory: Path, config, scores: dict) -> None:
    """
    Put the scores of [`evaluate_fidelity`] into the metadata of an adapter's card.

    Args:
        directory (`Path`): the adapter's folder.
        config ([`BETokenConfig`]): its configuration.
        scores (`dict`): the scores, with those of [`check_scores`] under `checks` if there are any.
    """
    metrics = {
        "gap_median": scores["gap"]["median"],
        "gap_behaviour": scores["gap"]["behaviour"],
        "kl_gap_closed": scores["kl_gap_closed"],
        "kl": scores["kl"]["be"],
        "kl_no_prompt": scores["kl"]["no_prompt"],
        "same_answers": scores["same_answers"]["be"],
        "top1_agreement": scores["top1_agreement"]["be"],
        "rouge_l": scores["answer_rouge_l"]["be"],
    }
    _add_metrics(directory, config, f"{scores['num_queries']} held-out queries", metrics, scores.get("checks"))


def add_audit(directory: Path, config, scores: dict) -> None:
    """
    Put the scores of [`audit_leakage`] into the metadata of an adapter's card: figures alone, none of the texts.

    Args:
        directory (`Path`): the adapter's folder.
        config ([`BETokenConfig`]): its configuration.
        scores (`dict`): the scores of an audit that knew the prompt or canaries.
    """
    be = scores["all"]["be"]
    metrics = {
        "leak_ngrams": be["ngram_share"],
        "leak_ngrams_no_prompt": scores["all"]["no_prompt"]["ngram_share"],
        "leak_longest_run": be["longest_run"],
        "leak_canaries": len(be["canaries"]) / scores["num_canaries"] if scores["num_canaries"] else None,
        "leak_reconstruction": scores["reconstruction"] and scores["reconstruction"]["be"]["token_accuracy"],
    }
    _add_metrics(directory, config, f"{scores['attacks']} extraction attacks", metrics)


def _add_metrics(
    directory: Path, config, dataset: str, metrics: dict[str, float | None], checks: dict[str, dict] | None = None
) -> None:
    path = Path(directory) / CARD_FILE
    card = ModelCard.load(path)
    set_metrics(card, title(config), dataset, metrics, checks)
    card.save(path)


def set_metrics(
    card: ModelCard,
    name: str,
    dataset: str,
    metrics: dict[str, float | None],
    checks: dict[str, dict] | None = None,
) -> None:
    """
    Put figures into a card's metadata, as results of the adapter called `name` on `dataset`, instead of earlier ones
    there. Figures that are `None` are left out. The pass rates of `checks`, see [`check_scores`], come first.
    """
    figures = [*_pass_rates(checks or {}), *((metric, METRICS[metric], value) for metric, value in metrics.items())]
    data = cast(ModelCardData, card.data)
    others = [result for result in data.eval_results or [] if result.dataset_name != dataset]
    new = [
        EvalResult(
            task_type="text-generation",
            dataset_type=dataset.replace(" ", "-"),
            dataset_name=dataset,
            metric_type=metric,
            metric_name=metric_name,
            metric_value=round(value, 4),
        )
        for metric, metric_name, value in figures
        if value is not None
    ]
    data.eval_results = [*others, *new] or None
    data.model_name = name if data.eval_results else None


def _pass_rates(checks: dict[str, dict]) -> Iterator[tuple[str, str, float]]:
    for name, score in checks.items():
        yield "check_pass_rate", f"Answers that pass: {name}", score["be"]
        yield "check_pass_rate_full", f"The full prompt's answers that pass: {name}", score["full"]


def fidelity_figures(directory: Path, config) -> dict[str, dict[str, float]]:
    """
    What is known of how closely an adapter follows its prompt.

    Args:
        directory (`Path`): the adapter's folder.
        config ([`BETokenConfig`]): its configuration.

    Returns:
        `dict[str, dict[str, float]]`: by the name of the queries, `gap_median`, `kl_gap_closed`, `kl` and `kl_no_prompt`, each
            only if known: those of the training first, then those that `peft-be eval --card` has written into the card.
    """
    known = _validation_metrics(_training(config))
    figures = {"validation queries": {metric: value for metric, value in known.items() if value is not None}}
    for result in _card_results(Path(directory) / CARD_FILE):
        if result.metric_type in _FIDELITY and isinstance(result.metric_value, (int, float)):
            figures.setdefault(result.dataset_name, {}).setdefault(result.metric_type, result.metric_value)
    return {name: found for name, found in figures.items() if found}


def _card_results(path: Path) -> list[EvalResult]:
    """The results in a card's metadata; none where there is no card, or nobody can read its metadata."""
    try:
        card = ModelCard.load(path, ignore_metadata_errors=True)
    except (OSError, ValueError, YAMLError):
        return []
    return getattr(card.data, "eval_results", None) or []


def is_unedited(text: str) -> bool:
    """Whether a card's text is empty, PEFT's unfilled form, or what [`signed`] made."""
    signature = _SIGNATURE.search(text)
    parts = _SIGNATURE.split(text) if signature else text.partition(_FRAMEWORK)
    if any(line.strip() and line != _FRAMEWORK and not line.startswith("- PEFT ") for line in parts[-1].splitlines()):
        return False
    body = body_of(text)
    if signature:
        return signature[1] == _digest(body)
    return body in ("", body_of(ModelCard.from_template(ModelCardData()).text))


def body_of(text: str) -> str:
    """A card's text without the signature and the versions that PEFT adds."""
    return _SIGNATURE.split(text)[0].split(_FRAMEWORK)[0].strip()


def signed(body: str) -> str:
    """A card's text with a comment by which a later save knows whether it was edited."""
    from peft import __version__

    # PEFT looks for these last lines, and leaves a text that has them alone
    return f"{body.strip()}\n\n<!-- peft_be {_digest(body.strip())} -->\n\n{_FRAMEWORK}\n\n- PEFT {__version__}\n"


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def _training(config) -> dict:
    return Provenance.of(config).training


def _validation_metrics(training: dict) -> dict[str, float | None]:
    kl, kl_no_prompt = training.get("validation_kl"), training.get("validation_kl_no_prompt")
    gap = None if kl is None else gap_closed(kl, kl_no_prompt)
    return {"kl_gap_closed": gap, "kl": kl, "kl_no_prompt": kl_no_prompt}


def title(config) -> str:
    """What a card calls an adapter."""
    if not config.num_be_tokens:
        return f"The [AE] row of {config.base_model_name_or_path}"
    tokens = Provenance.of(config).prompt_tokens
    prompt = "A prompt" if tokens is None else f"A prompt of {tokens:,} tokens"
    rows = "one learned token" if config.num_be_tokens == 1 else f"{config.num_be_tokens} learned tokens"
    kept = Provenance.of(config).kept_tokens
    return f"{prompt} in {rows}" + (f" and {kept:,} tokens of its text" if kept else "")


def _body(config) -> str:
    base = config.base_model_name_or_path
    if not config.num_be_tokens:
        return _AE_BODY.format(title=title(config), base=base)
    return _BE_BODY.format(
        title=title(config),
        base=base,
        ids=config.be_token_ids,
        slot=config.slot,
        kept=_kept_text(config),
        repository=REPOSITORY,
        not_secret=NOT_SECRET,
        training=training_summary(config),
    )


def _kept_text(config) -> str:
    """What the card says of the part of the prompt that stayed text."""
    if config.kept_text is None:
        return ""
    # Longer than any fence in the text itself
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", config.kept_text))])
    text = f"{fence}text\n{config.kept_text}\n{fence}"
    return f"\n\nThis part of the prompt stays text, after [BE] in the system turn:\n\n{text}"


def training_summary(config) -> str:
    """How an adapter was trained and how near it came to its prompt, in sentences."""
    training, sentences = _training(config), []
    if config.provenance:
        sentences.append(", then ".join(Provenance.of(config).stages or ["training"]).capitalize())
        if "steps" in training:
            sentences[-1] += f", {training['steps']} steps"
        if "train_queries" in training:
            sentences[-1] += f" on {training['train_queries']} queries"
        if Provenance.of(config).started_from:
            sentences[-1] += ", from the rows of an earlier adapter"
        sentences[-1] += "."
    if "validation_kl" in training:
        kl, kl_no_prompt = training["validation_kl"], training.get("validation_kl_no_prompt")
        told = kl_sentence(kl, kl_no_prompt, training["validation_queries"], "other")
        sentences.append(f"{told}. The checkpoint was chosen by these queries.")
    return " ".join(sentences) or "Not recorded."


NOT_SECRET = """## Not a secret

The row was made to reproduce what the prompt does, and possibly its text: treat it as if the prompt were published with it.
"""

_BE_BODY = """# {title}

Input embeddings of `{base}`, trained with [PEFT](https://github.com/huggingface/peft) and `peft_be` to stand for a system prompt
(Behavior-Equivalent token, [arXiv 2511.23271](https://arxiv.org/abs/2511.23271)).

## Use

```python
import peft_be  # registers BE_TOKEN with PEFT; without it, loading ends in KeyError: 'BE_TOKEN'
import torch

model, tokenizer = peft_be.load_adapter("{repository}")
renderer = peft_be.PromptRenderer.for_adapter(model.peft_config["default"], tokenizer)
ids = torch.tensor([renderer.be("A question?")], device=model.device)
answer = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=128)
print(tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True))
```

After `import peft_be`, the loaders of PEFT and transformers work, too. `renderer.be` writes the ids with [BE] (ids {ids}, slot
`{slot}`) in place of the prompt.{kept}

## Training

{training}

{not_secret}"""

_AE_BODY = """# {title}

One learned token that makes `{base}` write the preceding text again: stage 0 of the Behavior-Equivalent token
([arXiv 2511.23271](https://arxiv.org/abs/2511.23271)), trained once for the backbone with `peft_be`. It is needed to train
[BE] tokens with reconstruction, and not for inference:

```
peft-be compress --ae this-folder ...
```
"""
