"""Many prompts in one training: each one's rows become what they would have become alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler
from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from ..prompting import PromptRenderer
from ..tuner import BETokenConfig
from .be_distill_trainer import BEDistillTrainer
from .row_trainer import EpochLengthSampler


class ManyPromptsTrainer(BEDistillTrainer):
    """
    Trainer of several prompts' [BE] rows together. Every step takes a batch of each prompt's queries, and each prompt's rows
    become what [`BEDistillTrainer`] would have made of them alone; see [`compress_prompts`], which also chooses each
    prompt's checkpoint.

    Args:
        prompt (`dict[str, str | list[dict]]`):
            The prompts by name. The adapter's [BE] rows are dealt out to them in this order, the same number to each.
        train_dataset, eval_dataset ([`~datasets.Dataset`]):
            As in [`BEDistillTrainer`], with a column `prompt_name` that says whose query it is.

    The other arguments are those of [`BEDistillTrainer`].

    Attributes:
        failed (`dict[str, str]`): the prompts that were given up because their loss was not finite, and why.
        stopped (`set[str]`): the prompts that take no further part in the training. Callbacks may add to it.

    Raises:
        `ValueError`: the prompts cannot share the adapter's rows, or as in [`BEDistillTrainer`].
        `FloatingPointError`: the loss of every prompt is not finite.
    """

    _named = True

    def _prepare(self, *args) -> dict[str, Dataset]:
        self.failed: dict[str, str] = {}
        self.stopped: set[str] = set()
        return super()._prepare(*args)

    def _make_renderers(self, config: BETokenConfig) -> dict[str, PromptRenderer]:
        if config.kept_text is not None:
            raise ValueError("kept_text belongs to one prompt, and several learn here: compress each prompt alone.")
        return super()._make_renderers(config)

    @property
    def learning(self) -> list[str]:
        return [name for name in self.renderers if name not in self.failed]

    def _give_up(self, name: str, reason: str) -> None:
        self.stopped.add(name)
        self.failed[name] = reason
        if not self.learning:
            super()._give_up(name, reason)

    def provenance(self) -> None:
        """Nothing: one adapter holds the rows of several prompts. See [`BEDistillTrainer.provenance_of`]."""

    def get_train_dataloader(self) -> DataLoader:
        if self.args.kd_weight == 0:
            return super().get_train_dataloader()
        sampler = PromptBatchSampler(
            owners=self.train_dataset["prompt"],
            lengths=self.train_dataset["length"],
            batch_size=self.args.train_batch_size,
            num_batches=self.args.max_steps * self.args.gradient_accumulation_steps,
            seed=self.args.seed,
            is_learning=lambda number: list(self.renderers)[number] not in self.stopped,
        )
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return self.accelerator.prepare(loader)

    def _clip_grad_norm(self, model):
        # Each prompt's rows by themselves: a common norm would let one prompt shrink the steps of the others
        grad = self.accelerator.unwrap_model(model).base_model.rows_grad(self._adapter)
        parts = grad.split(self._rows_per_prompt)
        norms = torch.stack([part.norm() for part in parts])
        for part, norm in zip(parts, norms):
            part.mul_((self.args.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        return norms.norm()

    def _metrics_of(self, metric: str, values: dict[str, float]) -> dict[str, float]:
        return {**super()._metrics_of(metric, values), **{f"{metric}_{name}": value for name, value in values.items()}}


class EachPromptsBest(TrainerCallback, ExportableState):
    """
    Follows the validations of several prompts that are trained together: which step was the best of each, and when it
    stopped improving. Training ends when all have stopped.

    Args:
        trainer ([`ManyPromptsTrainer`]): the trainer; prompts are added to its `stopped`.
        patience (`int`): validations without improvement after which a prompt stops.

    Attributes:
        best (`dict[str, tuple[float, int]]`): the best value so far and its step.
        last_step (`dict[str, int]`): the step of the last validation that counted.
    """

    def __init__(self, trainer: ManyPromptsTrainer, patience: int):
        self.trainer = trainer
        self.patience = patience
        self.best: dict[str, tuple[float, int]] = {}
        self.last_step: dict[str, int] = {}
        self._waited: dict[str, int] = {}

    def state(self) -> dict:
        """What a checkpoint records: the prompts that were given up. The rest is in the log."""
        return {"args": {}, "attributes": {"failed": self.trainer.failed}}

    def on_train_begin(self, args, state, control, **kwargs):
        self.is_over(args, state)
        state.stateful_callbacks[type(self).__name__] = self.state()  # older checkpoints have none

    def is_over(self, args: TrainingArguments, state: TrainerState) -> bool:
        """Take up where a run was in this state, and say whether it had stopped."""
        kept = state.stateful_callbacks.get(type(self).__name__, {}).get("attributes", {})
        self.trainer.failed |= kept.get("failed", {})
        # Where this is called twice, the log must be followed anew for the prompts that stopped in it the first time
        self.trainer.stopped.clear()
        self.trainer.stopped.update(self.trainer.failed)
        self.best, self.last_step, self._waited = {}, {}, {}
        for entry in state.log_history:
            self._see(entry, entry["step"])
        return self.trainer.stopped >= self.trainer.renderers.keys()

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        self._see(metrics, state.global_step)
        if self.trainer.stopped >= self.trainer.renderers.keys():
            control.should_training_stop = True

    def _see(self, metrics: dict[str, float], step: int) -> None:
        for name in self.trainer.renderers:
            value = metrics.get(f"eval_{self.trainer.args.metric_for_best_model}_{name}")
            if value is None or name in self.trainer.stopped:
                continue
            self.last_step[name] = step
            if name not in self.best or value < self.best[name][0]:
                self.best[name], self._waited[name] = (value, step), 0
            else:
                self._waited[name] += 1
                if self._waited[name] >= self.patience:
                    self.trainer.stopped.add(name)


class PromptBatchSampler(Sampler[list[int]]):
    """
    Batches with `batch_size` rows of each prompt: the rows that the prompt would see in that step if it were trained alone.

    Args:
        owners (`Sequence[int]`): the number of each row's prompt, 0 to N - 1.
        lengths (`Sequence[int]`): the length of each row, in tokens.
        batch_size (`int`): rows of a prompt in a batch; fewer at the end of its queries.
        num_batches (`int`): batches in all. A prompt whose queries are used up starts again with them.
        seed (`int`): seed of the order.
        is_learning (`Callable[[int], bool]`): whether a prompt still takes part; asked before each batch.
    """

    def __init__(
        self,
        owners: Sequence[int],
        lengths: Sequence[int],
        batch_size: int,
        num_batches: int,
        seed: int,
        is_learning: Callable[[int], bool],
    ):
        self.batch_size, self.num_batches, self.seed, self.is_learning = batch_size, num_batches, seed, is_learning
        self.drop_last = False  # accelerate asks
        self.lengths = list(lengths)
        self.rows: dict[int, list[int]] = {}
        for row, owner in enumerate(owners):
            self.rows.setdefault(owner, []).append(row)

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        streams = {owner: self._stream(rows) for owner, rows in self.rows.items()}
        for _ in range(self.num_batches):
            # All streams move on, so that what a prompt sees in a step depends on no other prompt
            parts = {owner: next(stream) for owner, stream in streams.items()}
            batch = [row for owner, part in parts.items() if self.is_learning(owner) for row in part]
            if not batch:
                return
            yield batch

    def _stream(self, rows: list[int]) -> Iterator[list[int]]:
        sampler = EpochLengthSampler(self.batch_size, [self.lengths[row] for row in rows], self.seed)
        epoch = 0
        while True:
            sampler.set_epoch(epoch)
            order = [rows[i] for i in sampler]
            yield from (order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size))
            epoch += 1
