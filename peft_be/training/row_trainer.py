from __future__ import annotations

from dataclasses import dataclass

import torch
from datasets import Dataset
from torch.utils.data import Sampler
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
    Pads `input_ids` and `labels` on the right, and joins `teacher_hidden` in the order of the labelled tokens. `prompt`, the
    number of the prompt that a row belongs to, becomes one tensor.

    Padding needs no attention mask: behind the last real token, causal attention hides it from every token that counts.
    Leaving the mask out keeps the fast causal kernels.
    """

    pad_token_id: int

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in rows)
        batch = {
            name: torch.tensor([list(row[name]) + [fill] * (width - len(row[name])) for row in rows])
            for name, fill in (("input_ids", self.pad_token_id), ("labels", -100))
        }
        if "prompt" in rows[0]:
            batch["prompt"] = torch.tensor([row["prompt"] for row in rows])
        if "teacher_hidden" in rows[0]:
            batch["teacher_hidden"] = torch.cat([row["teacher_hidden"] for row in rows])
        return batch


def final_hidden_states(model: torch.nn.Module, input_ids: torch.Tensor) -> torch.Tensor:
    """
    Final hidden states `[B, S, d]`, behind the last norm, of a causal LM.

    Goes through the model's own `forward`, which DDP and FSDP need, and asks it for the logits of one position only.
    """
    outputs = model(input_ids=input_ids, output_hidden_states=True, logits_to_keep=1, use_cache=False)
    return outputs.hidden_states[-1]


def predicting(hidden: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The hidden states `[N, d]` that predict a label, and those labels `[N]`, in row order."""
    mask = labels[:, 1:] != -100
    return hidden[:, :-1][mask], labels[:, 1:][mask]
