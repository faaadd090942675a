from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from peft import PeftModel

from ..tuner.provenance import Provenance
from .be_distill_config import BEDistillConfig
from .be_distill_trainer import BEDistillTrainer
from .row_trainer import EpochLengthSampler
from .teaching import Teaching


class GrowingTrainer(BEDistillTrainer):
    """
    Trainer of a prompt's [BE] rows, the first of which were trained before, in an adapter with as many rows or fewer. The
    others start as the rows of a new adapter do.

    The learning rate is in units of a new adapter's start rows, as in any other training: trained rows are longer, and with
    each time that they grow, the steps would become longer, too.

    Args:
        rows (`torch.Tensor` of shape `[j, d]`, *optional*): the trained rows, at most as many as the adapter has.
        started_from (`dict`, *optional*): what the [`Provenance`] of the new rows says of the adapter of another run that they
            come from.
        teaching ([`Teaching`], *optional*):
            The teacher's work for an earlier trainer of the same prompt, queries and settings of the teacher. It is not done
            again.
        order (`int`, *optional*, defaults to `0`):
            The epoch whose order the first epoch has. Short trainings in a row read different queries by it.

    The other arguments are those of [`BEDistillTrainer`].

    Attributes:
        teaching ([`Teaching`]): the teacher's work.
    """

    def __init__(
        self,
        *args,
        rows: torch.Tensor | None = None,
        started_from: dict | None = None,
        teaching: Teaching | None = None,
        order: int = 0,
        **kwargs,
    ):
        self._trained_rows, self._started_from = rows, started_from
        self._earlier_teaching, self._order = teaching, order
        super().__init__(*args, **kwargs)

    @property
    def teaching(self) -> Teaching:
        return self._teaching

    def _make_teaching(self, *args) -> Teaching:
        return self._earlier_teaching or super()._make_teaching(*args)

    def _start(self, model: PeftModel, args: BEDistillConfig) -> float:
        rms = super()._start(model, args)
        if self._trained_rows is not None:
            start = model.base_model.get_rows(self._adapter)
            start[: len(self._trained_rows)] = self._trained_rows
            model.base_model.set_rows(self._adapter, start)
        return rms

    def provenance_of(self, name: str, training: Mapping[str, float | None]) -> Provenance:
        return replace(super().provenance_of(name, training), started_from=self._started_from)

    def _get_train_sampler(self, train_dataset=None):
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, EpochLengthSampler):
            sampler.seed += self._order
            sampler.set_epoch(0)
        return sampler
