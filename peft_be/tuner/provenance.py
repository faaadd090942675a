"""What the configuration of an adapter records of its making."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields


_KINDS = {
    "base_model_revision": str,
    "base_weights": dict,
    "tokenizer_sha256": str,
    "chat_template_sha256": str,
    "versions": dict,
    "prompt_sha256": str,
    "prompt_tokens": int,
    "kept_tokens": int,
    "started_from": dict,
}


@dataclass
class Provenance:
    """
    What an adapter's rows were made from and with. [`BETokenConfig`] keeps it as plain JSON in its field `provenance`; what is
    not recorded is `None` or empty.

    Attributes:
        base_model_revision (`str`, *optional*): the commit of the base model on the Hub.
        base_weights (`dict`, *optional*): fingerprint of the base model's weights.
        tokenizer_sha256 (`str`, *optional*): fingerprint of the tokenizer.
        chat_template_sha256 (`str`, *optional*): fingerprint of its chat template.
        versions (`dict[str, str]`): the packages used.
        prompt_sha256 (`str`, *optional*): fingerprint of P.
        prompt_tokens (`int`, *optional*): the length of P.
        kept_tokens (`int`, *optional*): the length of the kept text, if there is one.
        started_from (`dict`, *optional*): the adapter whose rows the training started from: `adapter`, its folder or name on the
            Hub, `revision` on the Hub, and `rows_sha256`.
        stages (`list[str]`): the paper's names of the trainings, in their order.
        training (`dict[str, float]`): figures for the model card: `steps`, `train_queries`, `validation_queries`, and with
            distillation `validation_kl` and `validation_kl_no_prompt`, in nats a token.
    """

    base_model_revision: str | None = None
    base_weights: dict | None = None
    tokenizer_sha256: str | None = None
    chat_template_sha256: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    prompt_sha256: str | None = None
    prompt_tokens: int | None = None
    kept_tokens: int | None = None
    started_from: dict | None = None
    stages: list[str] = field(default_factory=list)
    training: dict[str, float | None] = field(default_factory=dict)

    @classmethod
    def of(cls, config) -> Provenance:
        """
        The record of a [`BETokenConfig`], empty if there is none. What a later version may have added is left out.

        Raises:
            `ValueError`: the record is damaged.
        """
        recorded = {} if config.provenance is None else config.provenance
        if not isinstance(recorded, dict):
            raise ValueError(f"provenance must be an object, got {recorded!r:.60}.")
        known = {f.name for f in fields(cls)}
        found = cls(**{name: value for name, value in recorded.items() if name in known and value is not None})
        for name, kind in _KINDS.items():
            value = getattr(found, name)
            if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
                raise ValueError(f"provenance has no {kind.__name__} as its {name}, but {value!r:.60}.")
        if not isinstance(found.stages, list) or not all(isinstance(stage, str) for stage in found.stages):
            raise ValueError(f"provenance must have a list of names as its stages, got {found.stages!r:.60}.")
        training = found.training
        if not isinstance(training, dict) or not all(
            isinstance(value, (int, float, type(None))) for value in training.values()
        ):
            raise ValueError(f"provenance must have an object of numbers as its training, got {training!r:.60}.")
        return found

    def as_json(self) -> dict:
        """What the configuration keeps: all that is recorded."""
        return {
            name: value for name, value in asdict(self).items() if value is not None and value != {} and value != []
        }
