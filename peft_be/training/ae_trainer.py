from __future__ import annotations

from dataclasses import replace

from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, set_seed

from ..adapters.create import add_ae_adapter
from ..adapters.provenance import origin
from ..checks import check_type
from ..data.corpus import check_passages, passages
from ..losses import OutputHead, cross_entropy
from ..prompting.context import check_length
from ..prompting.reconstruction import reconstruction_example
from ..tuner.provenance import Provenance
from .ae_config import AEConfig
from .learning_rows import check_learning_rows
from .row_trainer import (
    RowCollator,
    RowTrainer,
    final_hidden_states,
    has_flash_attention,
    predicting,
    tokenizer_of,
    unwrapped_on_failure,
)


class AETrainer(RowTrainer):
    """
    Trainer of the universal [AE] row, stage 0 of the paper (section 2.1, Eq. 1): `[X][AE] -> X`, once for each backbone.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The frozen causal LM. If it is not wrapped yet, an adapter with an [AE] row alone is put on it.
        args ([`AEConfig`], *optional*):
            Configuration. If `None`, a default one is used.
        train_dataset ([`~datasets.Dataset`]):
            Passages, in a column `text`.
        eval_dataset ([`~datasets.Dataset`], *optional*):
            Held-out passages, in a column `text`.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The model's tokenizer. If `None`, it is loaded by the model's name.
        callbacks (`list[~transformers.TrainerCallback]`, *optional*):
            Callbacks in addition to the default ones.

    Raises:
        `ValueError`: no passage of the corpus is long enough, or the adapter's [AE] row could not learn, or would not be
            the only thing that learns.

    Example:

        ```python
        >>> from peft_be import AEConfig, AETrainer

        >>> trainer = AETrainer(model, AEConfig("smollm2-ae", max_steps=200), dataset, processing_class=tokenizer)
        >>> trainer.train()
        >>> trainer.save_model()
        ```
    """

    _tag_names = ["trl", "peft_be", "ae-token"]
    _name = "AE"
    _learns = "[AE]"

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        args: AEConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ):
        args = AEConfig("ae") if args is None else args
        check_type("args", args, AEConfig)
        for name, dataset in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
            if dataset is not None or name == "train_dataset":
                check_passages(name, dataset)
        processing_class = tokenizer_of(model, processing_class)
        given = model
        if not isinstance(model, PeftModel):
            set_seed(args.seed)  # the row starts at random
            model = add_ae_adapter(model, processing_class)
        with unwrapped_on_failure(model, given):
            super().__init__(
                model=model,
                args=args,
                data_collator=self._prepare(model, processing_class),
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                callbacks=callbacks,
            )

    def _prepare(self, model: PeftModel, tokenizer: PreTrainedTokenizerBase) -> RowCollator:
        """Keep what the loss and the record need, and return what makes the batches."""
        self._ae_token_id = model.peft_config[check_learning_rows(model, self._learns)].ae_token_id
        self._base = model.get_base_model()
        self._head, self._origin = OutputHead(self._base), origin(self._base, tokenizer)
        return RowCollator(tokenizer.pad_token_id or 0, has_flash_attention(self._base))

    def _prepare_dataset(self, dataset, processing_class, args, *_):
        ids = passages(list(dataset["text"]), processing_class, args.min_passage_length, args.max_passage_length)
        rows = [reconstruction_example(processing_class, x, self._ae_token_id, x) for x in ids]
        check_length(self._base, max(len(row[0]) for row in rows), "its reconstruction")
        return Dataset.from_dict(
            {"input_ids": [r[0] for r in rows], "labels": [r[1] for r in rows], "length": [len(r[0]) for r in rows]}
        )

    def provenance(self) -> Provenance:
        return replace(self._origin, stages=["stage 0"], training={"steps": self.state.global_step})

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        hidden, labels = predicting(final_hidden_states(model, inputs), inputs)
        loss = cross_entropy(hidden, labels, self._head).mean()
        return (loss, {}) if return_outputs else loss
