from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from peft.config import PeftConfig
from peft.utils import SAFETENSORS_WEIGHTS_NAME, PeftType
from safetensors import safe_open

from .checks import check_fields, foreign_tensors
from .registration import add_enum_member
from .token_ids import find_unused_token_ids


SLOTS = ("system", "prefix")


@dataclass
class BETokenConfig(PeftConfig):
    """
    Configuration of [`BETokenModel`]: learned input embeddings [BE] that stand for a prompt, and the autoencoding
    token [AE] that asks the model to write the prompt out again (arXiv 2511.23271).

    Args:
        num_be_tokens (`int`, *optional*, defaults to `1`):
            Number k of [BE] rows. `0` makes an adapter that holds [AE] only, the product of stage 0.
        be_token_ids (`list[int]`, *optional*):
            The k token ids at which the [BE] rows are read. If `None`, they are chosen when the adapter is created:
            unused ids inside the vocabulary if a tokenizer is found (see `tokenizer_name_or_path`) and has enough of
            them, else the first ids beyond the vocabulary. Ids are addresses and not part of what is learned; see
            [`BETokenModel.assign_token_ids`].
        use_ae_token (`bool`, *optional*, defaults to `False`):
            Whether the adapter holds an [AE] row. It is trainable only if `num_be_tokens=0`.
        ae_token_id (`int`, *optional*):
            The token id at which the [AE] row is read. If `None`, it is chosen like `be_token_ids`.
        save_ae_token (`bool`, *optional*, defaults to `False`):
            Whether the [AE] row is saved along with [BE] rows. Inference does not need it; a checkpoint from which
            training is to resume does. An adapter without [BE] rows always saves it.
        tokenizer_name_or_path (`str`, *optional*):
            The tokenizer in which unused ids are looked up, defaults to the base model's `name_or_path`. Only local
            files and the local cache are read, nothing is downloaded and the tokenizer is not changed.
        slot (`str`, *optional*, defaults to `"system"`):
            Where [BE] stands in the prompt: `"system"` inside the system turn of the chat template, `"prefix"` in
            front of the user's text (the paper's `[BE] q`). Recorded for the code that renders prompts.
        kept_text (`str`, *optional*):
            What of the prompt stays text, because it must be exact: it follows [BE] in the system turn, on a line of its
            own. Only for slot `"system"`. Recorded for the code that renders prompts.
        provenance (`dict`, *optional*):
            What the rows were made from and with (base revision, fingerprints, versions, ...), as plain JSON. Written
            by training.
        hidden_size (`int`, *optional*):
            Width of the base model's input embedding. Recorded when the adapter is created and checked on load.
        vocab_size (`int`, *optional*):
            Number of rows of the base model's input embedding. Recorded when the adapter is created and checked on
            load.
        embed_scale (`float`, *optional*, defaults to `1.0`):
            Factor by which the base model's input embedding multiplies its rows, including the adapter's (Gemma). Recorded
            when the adapter is created, for engines that take embeddings as they are.
        target_modules (`str` or `list[str]`, *optional*):
            Name of the embedding module, only for models without `get_input_embeddings`. Must stay `None` for
            transformers models, whose input embedding is always the target: PEFT would save the full embedding matrix
            of a module that is named here.
    """

    num_be_tokens: int = field(
        default=1,
        metadata={"help": "Number of [BE] rows. 0 makes an adapter that holds the [AE] row only."},
    )
    be_token_ids: list[int] | None = field(
        default=None,
        metadata={
            "help": (
                "Token ids at which the [BE] rows are read. By default unused ids inside the vocabulary if a "
                "tokenizer is found, else ids beyond the vocabulary."
            )
        },
    )
    use_ae_token: bool = field(
        default=False,
        metadata={"help": "Whether the adapter holds an [AE] row. It is trainable only if num_be_tokens=0."},
    )
    ae_token_id: int | None = field(
        default=None,
        metadata={"help": "Token id at which the [AE] row is read. Chosen like be_token_ids by default."},
    )
    save_ae_token: bool = field(
        default=False,
        metadata={
            "help": (
                "Whether the [AE] row is saved along with [BE] rows. Not needed for inference. An adapter without "
                "[BE] rows always saves it."
            )
        },
    )
    tokenizer_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": (
                "Tokenizer in which unused ids are looked up (local files only), by default the base model's "
                "name_or_path."
            )
        },
    )
    slot: str = field(
        default="system",
        metadata={"help": "Where [BE] stands in the prompt: 'system' (in the system turn) or 'prefix'."},
    )
    kept_text: str | None = field(
        default=None,
        metadata={"help": "What of the prompt stays text and follows [BE] in the system turn."},
    )
    provenance: dict | None = field(
        default=None,
        metadata={"help": "What the rows were made from and with, as plain JSON. Written by training."},
    )
    hidden_size: int | None = field(
        default=None,
        metadata={"help": "Width of the base model's input embedding. Recorded at creation, checked on load."},
    )
    vocab_size: int | None = field(
        default=None,
        metadata={"help": "Rows of the base model's input embedding. Recorded at creation, checked on load."},
    )
    embed_scale: float = field(
        default=1.0,
        metadata={
            "help": "Factor by which the base model's input embedding multiplies its rows. Recorded at creation."
        },
    )
    target_modules: list[str] | str | None = field(
        default=None,
        metadata={"help": "Name of the embedding module, only for models without get_input_embeddings."},
    )

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = add_enum_member(PeftType, "BE_TOKEN")

        check_fields(self)
        if self.num_be_tokens == 0 and not self.use_ae_token:
            raise ValueError("num_be_tokens=0 needs use_ae_token=True: the adapter would hold no row.")
        if self.ae_token_id is not None and not self.use_ae_token:
            raise ValueError(f"ae_token_id={self.ae_token_id} needs use_ae_token=True.")
        if self.be_token_ids is not None and len(self.be_token_ids) != self.num_be_tokens:
            raise ValueError(f"{self.num_be_tokens=} but be_token_ids has {len(self.be_token_ids)} ids.")
        token_ids = self.token_ids
        if len(set(token_ids)) < len(token_ids):
            raise ValueError(f"Token ids must differ from each other, got {token_ids} (the [AE] id comes last).")
        if self.slot not in SLOTS:
            raise ValueError(f"slot must be one of {SLOTS}, got {self.slot!r}.")
        if self.kept_text is not None and (self.slot != "system" or not self.num_be_tokens):
            raise ValueError("kept_text follows [BE] in the system turn: it needs [BE] rows and slot='system'.")

    @classmethod
    def for_tokenizer(
        cls, tokenizer, vocab_size: int, num_be_tokens: int = 1, use_ae_token: bool = False, **kwargs
    ) -> BETokenConfig:
        """
        A configuration for a causal LM, with ids that the tokenizer does not use. Ids that it cannot offer stay `None`.

        Args:
            tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The base model's tokenizer. It is not changed.
            vocab_size (`int`): Number of rows of the base model's input embedding.
            num_be_tokens, use_ae_token, **kwargs: As in the constructor.
        """
        ids = find_unused_token_ids(tokenizer, vocab_size, num_be_tokens + use_ae_token)
        be_token_ids, ids = (ids[:num_be_tokens], ids[num_be_tokens:]) if len(ids) >= num_be_tokens else (None, ids)
        return cls(
            task_type="CAUSAL_LM",
            num_be_tokens=num_be_tokens,
            be_token_ids=be_token_ids,
            use_ae_token=use_ae_token,
            ae_token_id=ids[0] if use_ae_token and ids else None,
            **kwargs,
        )

    @property
    def token_ids(self) -> list[int]:
        """The ids that are set: the [BE] ids, then the [AE] id."""
        return [*(self.be_token_ids or []), *([] if self.ae_token_id is None else [self.ae_token_id])]

    @property
    def saves_ae_token(self) -> bool:
        """Whether a saved adapter contains the [AE] row."""
        return self.use_ae_token and (self.save_ae_token or self.num_be_tokens == 0)

    def save_pretrained(self, save_directory: str, **kwargs) -> None:
        """
        Saves the configuration of the rows that [`PeftModel.save_pretrained`] saves: without [AE] if its row is left out.

        Raises:
            `ValueError`: the file of rows holds anything else, such as an embedding table that PEFT was asked to save.
                The file is deleted.
        """
        saved = self if self.saves_ae_token else replace(self, use_ae_token=False, ae_token_id=None)
        file = Path(save_directory) / SAFETENSORS_WEIGHTS_NAME
        if file.is_file():
            with safe_open(file, "pt") as tensors:
                foreign = foreign_tensors(tensors.keys())
            if foreign:
                file.unlink()
                raise ValueError(
                    f"The adapter was not saved: {foreign[0]} is no row of [BE] or [AE]. Leave save_embedding_layers "
                    "at its default, and train on a base model without other adapters."
                )
        super(BETokenConfig, saved).save_pretrained(save_directory, **kwargs)


def active_config(model) -> BETokenConfig:
    """
    The configuration of the [BE] rows that a model answers with.

    Args:
        model ([`~peft.PeftModel`]): the base model with the active BE_TOKEN adapter.

    Raises:
        `ValueError`: it has no such adapter, or the active one is of another method or has no [BE] rows.
    """
    active = getattr(model, "active_adapter", None)
    config = getattr(model, "peft_config", {}).get(active) if isinstance(active, str) else None
    if not isinstance(config, BETokenConfig) or not config.num_be_tokens:
        raise ValueError(
            "The model has no active adapter with [BE] rows: pass the model that peft_be.load_adapter or PeftModel.from_pretrained "
            "returns, with such an adapter active (set_adapter)."
        )
    return config
