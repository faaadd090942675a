from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from peft import PeftModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import Sampler
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import HubStrategy
from trl import SFTTrainer

from ..adapters.card import CARD_FILE
from ..adapters.hub import push_adapters
from ..machine.memory import freed_memory_kept
from ..machine.quantised import keep_backward
from ..tuner.provenance import Provenance
from .learning_rows import RowsMove, check_learning_rows, rows_of


# Most attention scores of a batch, per head and layer, that are kept for the backward pass
MAX_PLAIN_SCORES = 2**17
# What trainers write into the configurations of a model
_WRITTEN = ("bos_token_id", "eos_token_id", "pad_token_id", "use_cache")


@contextlib.contextmanager
def base_configs_kept(model: PeftModel) -> Iterator[None]:
    """
    Context after which the configurations of the base model are as they were. transformers and TRL write the
    tokenizer's special ids and `use_cache` into them. The base is not theirs: with other stop ids, the next training
    on it in the same process would have another teacher than one in a process of its own.
    """
    base = model.get_base_model()
    owners = [base.config, base.config.get_text_config(), base.generation_config]
    before = [(owner, name, getattr(owner, name)) for owner in owners for name in _WRITTEN if hasattr(owner, name)]
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def tokenizer_of(
    model: PreTrainedModel | PeftModel, processing_class: PreTrainedTokenizerBase | None
) -> PreTrainedTokenizerBase:
    """
    The tokenizer that a trainer was given, or that of the model's name, as in TRL.

    Raises:
        `ValueError`: it is no tokenizer, or none was given and none can be loaded.
    """
    if isinstance(processing_class, PreTrainedTokenizerBase):
        return processing_class
    if processing_class is not None:
        raise ValueError(
            f"processing_class must be the model's tokenizer, such as AutoTokenizer.from_pretrained(...) returns, and is of type "
            f"{type(processing_class).__name__}."
        )
    name = getattr(model, "name_or_path", None)
    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception as error:  # transformers raises many types where a folder or a name has no tokenizer
        raise ValueError(f"No tokenizer can be loaded for the model '{name}': pass it as processing_class.") from error


@contextlib.contextmanager
def unwrapped_on_failure(model: PeftModel, given: PreTrainedModel | PeftModel) -> Iterator[None]:
    """
    Context after which an error leaves a base model as it was given: without the adapter that the trainer has put on it.
    The trainer can then be made again, with other arguments.
    """
    try:
        yield
    except BaseException:
        if model is not given:
            model.unload()
        raise


class EpochLengthSampler(LengthGroupedSampler):
    """Batches of similar length in an order that depends on seed and epoch alone: a resumed run sees the same one."""

    def __init__(self, batch_size: int, lengths: list[int], seed: int):
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.generator.manual_seed(self.seed + epoch)


class RowTrainer(SFTTrainer):
    """
    What the trainers of all three stages share: a loss that is a mean over the labelled tokens of a micro-batch,
    checkpoints that hold the learned rows and nothing else, and uploads that hold the adapter and nothing else.
    """

    _paper = {
        "title": "Behavior-Equivalent Token: Single-Token Replacement for Long Prompts in LLMs",
        "id": "2511.23271",
    }
    loss_is_scaled_for_ga = False  # type: ignore[assignment]  # TRL's default has no type but that of None
    processing_class: PreTrainedTokenizerBase | None
    _learns: str  # "[BE]" or "[AE]"

    def __init__(self, model: PeftModel, **kwargs):
        adapter = check_learning_rows(model, self._learns)
        args, base = kwargs["args"], model.get_base_model().name_or_path
        if args.push_to_hub and Path(base).is_dir():
            raise ValueError(
                f"push_to_hub=True uploads while training, and the base model is the folder '{base}', which nobody else has: load "
                "it by its Hub id, or call push_to_hub(base_model=...) after the training."
            )
        keep_backward(model)
        rows = {name: p.data for name, p in model.named_parameters() if p.requires_grad}
        with base_configs_kept(model):
            super().__init__(model=model, **kwargs)
        self._rows_move = RowsMove(rows_of(model, adapter, self._learns))
        self.add_callback(self._rows_move)
        # On a quantised base TRL rounds what learns to bfloat16, in which small updates are lost. Rows are read in the base's dtype
        for name, parameter in model.named_parameters():
            if name in rows and parameter.dtype != rows[name].dtype:
                parameter.data = rows[name].to(parameter.device)

    def _send_telemetry(self) -> None:
        """Does nothing. TRL would report every training to huggingface.co, and nobody asked for that."""

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(dataset)
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return EpochLengthSampler(size, list(dataset["length"]), self.args.seed)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        if num_training_steps == 1:  # a warm-up starts from 0, so that this step would learn nothing
            self.args.warmup_steps = 0
        return super().create_scheduler(num_training_steps, optimizer)

    def provenance(self) -> Provenance | None:
        """What the adapter's configuration records about its rows; `None` where they are the rows of several prompts."""
        raise NotImplementedError

    def _record_provenance(self) -> None:
        moved = self._rows_move.moved
        # Where this process made no step, the rows may still be those of a checkpoint
        if moved or (moved is None and self.state.global_step > 0):
            model = self.accelerator.unwrap_model(self.model)
            provenance = self.provenance()
            model.peft_config[model.active_adapter].provenance = provenance and provenance.as_json()

    def train(self, *args, **kwargs):
        """
        Train, as the base class does.

        Raises:
            `ValueError`: no row can learn, or none has moved by the end.
        """
        model = self.accelerator.unwrap_model(self.model)
        check_learning_rows(model, self._learns)
        with base_configs_kept(model), freed_memory_kept(self.args.device):
            output = super().train(*args, **kwargs)
        if self._rows_move.moved is False:
            raise ValueError(
                f"Nothing was learned: in {self.state.global_step} steps with learning rate "
                f"{self.args.learning_rate:g}, the rows have not moved. Raise the learning rate, or use a wider dtype "
                "for the base model."
            )
        self._record_provenance()
        return output

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        self._record_provenance()
        # Not the tokenizer: it is the base model's, unchanged and a thousand times larger than the rows
        tokenizer, self.processing_class = self.processing_class, None
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.processing_class = tokenizer

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
        license: str | None = None,
    ) -> None:
        """
        Add to the metadata of the card that was written with the rows. The text stays as `save_pretrained` wrote it: TRL's
        describes a whole fine-tuned model.

        Args:
            model_name (`str`, *optional*): not used; the base class passes it.
            dataset_name (`str`, *optional*): Hub id of the queries.
            tags (`str` or `list[str]`, *optional*): further tags.
            license (`str`, *optional*): as in the Hub's list of licences.
        """
        path = Path(self.args.output_dir) / CARD_FILE
        if not self.is_world_process_zero() or not path.is_file():
            return
        card = ModelCard.load(path)
        card.data.tags = sorted({*(card.data.tags or []), *([tags] if isinstance(tags, str) else tags or [])})
        card.data.license = license or card.data.license
        card.data.datasets = [dataset_name] if dataset_name else card.data.datasets
        card.save(path)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        base_model: str | None = None,
        **kwargs,
    ) -> str | None:
        """
        Upload the adapter to `args.hub_model_id`: rows, configuration and card, as [`push_adapters`] does. What else is in
        the output folder stays there: the teacher's answers, logs, arguments.

        Args:
            commit_message (`str`, *optional*, defaults to `"End of training"`): of the upload.
            blocking (`bool`, *optional*, defaults to `True`): accepted and not used: only a few KB are uploaded.
            token (`str`, *optional*): the access token, defaults to `args.hub_token`.
            revision (`str`, *optional*): the branch, defaults to `args.hub_revision`.
            private (`bool`, *optional*): whether a new repository is private.
            base_model (`str`, *optional*): the base model's Hub id, as in [`push_adapters`].
            kwargs: `tags`, `license` and `dataset_name` for the card's metadata.

        Returns:
            `str`: the address of the upload; `None` in processes other than the first.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token or self.args.hub_token, private=private)
        self.save_model(_internal_call=True)
        self.create_model_card(**kwargs)
        return self._push(self.args.output_dir, commit_message, token, revision, base_model)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self.args.hub_strategy != HubStrategy.END:
            self.callback_handler.on_push_begin(self.args, self.state, self.control)
            self._push(checkpoint_folder, f"Training in progress, step {self.state.global_step}")

    def _push(self, folder: str, message: str | None, token=None, revision=None, base_model=None) -> str | None:
        if not self.is_world_process_zero():
            return None
        return push_adapters(
            folder,
            self.hub_model_id,
            base_model=base_model,
            token=token or self.args.hub_token,
            revision=revision or self.args.hub_revision,
            commit_message=message,
        )


@dataclass
class RowCollator:
    """
    Makes a batch of rows with `input_ids` and `labels`. For each of its N labelled tokens, in row order, there is
    `predicting`, the position that predicts it, counted through the whole batch, and, if the rows have them,
    `teacher_hidden` and `prompt`, the number of the prompt that it belongs to. `tokens_of` says the same the other way
    round: for each prompt, which of the N tokens are its own. Both are computed here, on the CPU: on a GPU, each step would have to wait
    for them. `answer_lengths` says how many of the N tokens each row has.

    Rows are padded on the right. That needs no attention mask: after the last real token, causal attention hides the
    padding from every token that counts. Leaving the mask out keeps the fast causal kernels.

    Args:
        pad_token_id (`int`): what padding is made of.
        padding_free (`bool`, *optional*, defaults to `False`):
            Join the rows into one sequence instead, with `position_ids` that start anew in each row. For FlashAttention,
            whose kernels then attend within each row.
    """

    pad_token_id: int
    padding_free: bool = False

    def __call__(self, rows: list[dict]) -> dict[str, Any]:
        # Nothing predicts a row's first token: in a joined sequence, the row in front of it must not
        labels = [[-100, *row["labels"][1:]] for row in rows]
        ids = [list(row["input_ids"]) for row in rows]
        width = max(map(len, ids))
        starts = [0, *itertools.accumulate(map(len, ids))] if self.padding_free else range(0, width * len(ids), width)
        predicting = [
            start + i - 1 for start, row in zip(starts, labels) for i, label in enumerate(row) if label != -100
        ]
        batch: dict[str, Any]
        if self.padding_free:
            batch = {
                "input_ids": torch.tensor([sum(ids, [])]),
                "labels": torch.tensor([sum(labels, [])]),
                "position_ids": torch.cat([torch.arange(len(row)) for row in ids])[None],
            }
        else:
            batch = {
                "input_ids": torch.tensor([row + [self.pad_token_id] * (width - len(row)) for row in ids]),
                "labels": torch.tensor([row + [-100] * (width - len(row)) for row in labels]),
            }
        batch["predicting"] = torch.tensor(predicting, dtype=torch.long)
        if "prompt" in rows[0]:
            batch["answer_lengths"] = counts = torch.tensor([sum(label != -100 for label in row) for row in labels])
            batch["prompt"] = numbers = torch.tensor([row["prompt"] for row in rows]).repeat_interleave(counts)
            batch["tokens_of"] = {n: (numbers == n).nonzero().flatten() for n in numbers.unique().tolist()}
        if "teacher_hidden" in rows[0]:
            batch["teacher_hidden"] = torch.cat([row["teacher_hidden"] for row in rows])
        return batch


def has_flash_attention(model: PreTrainedModel) -> bool:
    """Whether a model attends with a FlashAttention kernel, which takes rows of any length without padding."""
    return "flash" in (model.config._attn_implementation or "")


def final_hidden_states(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """
    Final hidden states `[B, S, d]`, after the last norm, of a causal LM for a batch of [`RowCollator`].

    Goes through the model's own `forward`, which DDP and FSDP need, and asks it for the logits of one position only.
    """
    ids = {name: inputs[name] for name in ("input_ids", "position_ids") if name in inputs}
    # The position as an index: for a slice, torch on CPU copies lm_head (see `copy_head_input`)
    kept = torch.zeros(1, dtype=torch.long, device=ids["input_ids"].device)
    with _attention_kernel(model, ids["input_ids"]):
        outputs = model(**ids, output_hidden_states=True, logits_to_keep=kept, use_cache=False)
    return outputs.hidden_states[-1]


def _attention_kernel(model: torch.nn.Module, ids: torch.Tensor) -> contextlib.AbstractContextManager:
    """
    On CPU, the backward pass of torch's fused attention has a quarter of its float32 speed in 16 bits. For rows so short that
    keeping the attention scores costs little, plain attention is faster.
    """
    slow = ids.device.type == "cpu" and next(model.parameters()).dtype in (torch.bfloat16, torch.float16)
    short = ids.numel() * ids.shape[-1] <= MAX_PLAIN_SCORES
    # Checkpointed layers run again in the backward pass, outside of the context, and must find the same kernel
    if slow and short and not any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        return sdpa_kernel(SDPBackend.MATH)
    return contextlib.nullcontext()


def predicting(hidden: torch.Tensor, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a batch of [`RowCollator`], the hidden states `[N, d]` that predict a label, and those labels `[N]`, in row order."""
    positions = inputs["predicting"]
    return hidden.flatten(0, 1)[positions], inputs["labels"].flatten()[positions + 1]
