"""The record of a training: what the rows belong to, the name of the stage, and the figures of the rows that were kept."""

from __future__ import annotations

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..figures import gap_closed
from ..machine.versions import versions
from ..prompting import chat_template_fingerprint, tokenizer_fingerprint
from ..tuner.provenance import Provenance
from .base_weights import check_plain, weights_fingerprint


def origin(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Provenance:
    """
    What rows belong to: the base model's revision, fingerprints of weights, tokenizer and template, and the versions
    used.
    """
    check_plain(model, rows_allowed=True)
    return Provenance(
        base_model_revision=getattr(model.config, "_commit_hash", None),
        base_weights=weights_fingerprint(model),
        tokenizer_sha256=tokenizer_fingerprint(tokenizer),
        chat_template_sha256=chat_template_fingerprint(tokenizer) if tokenizer.chat_template else None,
        versions=versions(),
    )


def stage_name(kd_weight: float) -> str:
    """The paper's name of the training with this weight."""
    return {0.0: "stage 1", 1.0: "stage 2"}.get(kd_weight, "stages 1 and 2")


def best_figures(
    metric: str,
    value: float,
    step: int,
    kl_no_prompt: float | None,
    same_answers: float | None = None,
    same_no_prompt: float | None = None,
) -> dict:
    """
    What a report says of the rows that were kept: the value by which they were chosen, and its step. With a KL come the
    KL without a prompt on the same queries and the gap closed; and with the share of the answers that are the same, where
    it is known, that without a prompt.
    """
    figures: dict[str, float | None] = {metric: value, "step": step}
    if metric == "kl" and kl_no_prompt is not None:
        figures |= {"kl_no_prompt": kl_no_prompt, "kl_gap_closed": gap_closed(value, kl_no_prompt)}
    if same_answers is not None:
        figures |= {"same_answers": same_answers, "same_answers_no_prompt": same_no_prompt}
    return figures
