from __future__ import annotations

from dataclasses import dataclass

import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import PreTrainedModel
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl import SFTTrainer


class EpochLengthSampler(LengthGroupedSampler):
    """Batches of similar length in an order that depends on seed and epoch alone: a resumed run meets the same one."""

    def __init__(self, batch_size: int, lengths: list[int], seed: int):
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.generator.manual_seed(self.seed + epoch)


class RowTrainer(SFTTrainer):
    """
    What the trainers of all three stages share: a loss that is a mean over the labelled tokens of a micro-batch, and
    checkpoints that hold the learned rows and nothing else.
    """

    _paper = {
        "title": "Behavior-Equivalent Token: Single-Token Replacement for Long Prompts in LLMs",
        "id": "2511.23271",
    }
    loss_is_scaled_for_ga = False

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(dataset)
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return EpochLengthSampler(size, list(dataset["length"]), self.args.seed)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # Not the tokenizer: it is the base model's, unchanged and a thousand times larger than the rows
        tokenizer, self.processing_class = self.processing_class, None
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.processing_class = tokenizer

    def create_model_card(self, *args, **kwargs) -> None:
        """PEFT's card, which `save_pretrained` writes, is the right one: TRL's describes a whole fine-tuned model."""


@dataclass
class RowCollator:
    """
    Makes a batch of rows with `input_ids` and `labels`. For each labelled token in row order there is `teacher_hidden`, and
    `prompt`, the number of the prompt that it belongs to, if the rows have them.

    Rows are padded on the right. That needs no attention mask: behind the last real token, causal attention hides the
    padding from every token that counts. Leaving the mask out keeps the fast causal kernels.

    Args:
        pad_token_id (`int`): what padding is made of.
        padding_free (`bool`, *optional*, defaults to `False`):
            Join the rows to one sequence instead, with `position_ids` that start anew at each. For FlashAttention, whose
            kernels then attend within each row.
    """

    pad_token_id: int
    padding_free: bool = False

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        # No token is predicted by the row in front of its own
        labels = [[-100, *row["labels"][1:]] for row in rows]
        ids = [list(row["input_ids"]) for row in rows]
        if self.padding_free:
            batch = {
                "input_ids": torch.tensor([sum(ids, [])]),
                "labels": torch.tensor([sum(labels, [])]),
                "position_ids": torch.cat([torch.arange(len(row)) for row in ids])[None],
            }
        else:
            width = max(map(len, ids))
            batch = {
                "input_ids": torch.tensor([row + [self.pad_token_id] * (width - len(row)) for row in ids]),
                "labels": torch.tensor([row + [-100] * (width - len(row)) for row in labels]),
            }
        if "prompt" in rows[0]:
            counts = torch.tensor([sum(label != -100 for label in row) for row in labels])
            batch["prompt"] = torch.tensor([row["prompt"] for row in rows]).repeat_interleave(counts)
        if "teacher_hidden" in rows[0]:
            batch["teacher_hidden"] = torch.cat([row["teacher_hidden"] for row in rows])
        return batch


def has_flash_attention(model: PreTrainedModel) -> bool:
    """Whether a model attends with a FlashAttention kernel, which takes rows of any length without padding."""
    return "flash" in (model.config._attn_implementation or "")


def final_hidden_states(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """
    Final hidden states `[B, S, d]`, behind the last norm, of a causal LM for a batch of [`RowCollator`].

    Goes through the model's own `forward`, which DDP and FSDP need, and asks it for the logits of one position only.
    """
    ids = {name: inputs[name] for name in ("input_ids", "position_ids") if name in inputs}
    outputs = model(**ids, output_hidden_states=True, logits_to_keep=1, use_cache=False)
    return outputs.hidden_states[-1]


def predicting(hidden: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The hidden states `[N, d]` that predict a label, and those labels `[N]`, in row order."""
    mask = labels[:, 1:] != -100
    return hidden[:, :-1][mask], labels[:, 1:][mask]
