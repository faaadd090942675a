"""Batches that mix the queries of several prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch.utils.data import Sampler

from .row_trainer import EpochLengthSampler


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
