from __future__ import annotations

import torch
from accelerate import Accelerator


class ValidationSums:
    """
    What a validation adds up over batches of [`RowCollator`], for each prompt.

    Args:
        num_prompts (`int`): the number of prompts.
        device (`torch.device`): where the sums are kept.
    """

    def __init__(self, num_prompts: int, device: torch.device):
        # Apple's GPUs have no doubles
        self._dtype = torch.float if device.type == "mps" else torch.double
        # Rows: the sum, and how many it is of
        self._kl, self._same = (torch.zeros(2, num_prompts, dtype=self._dtype, device=device) for _ in range(2))

    def add(self, inputs: dict[str, torch.Tensor], kl: torch.Tensor, right: torch.Tensor) -> None:
        """
        Add a batch of B answers with N tokens in all.

        Args:
            inputs (`dict`): the batch, with `answer_lengths` `[B]` and `prompt` `[N]`.
            kl (`torch.Tensor` of shape `[N]`): the KL of each answer token, in nats.
            right (`torch.Tensor` of shape `[N]`, bool): whether the most probable token is the answer's.
        """
        lengths = inputs["answer_lengths"]
        lengths = lengths[lengths > 0]
        same = torch.tensor([bool(answer.all()) for answer in right.split(lengths.tolist())], device=right.device)
        self._count(self._kl, inputs["prompt"], kl)
        self._count(self._same, inputs["prompt"][lengths.cumsum(0) - 1], same)

    def _count(self, sums: torch.Tensor, prompts: torch.Tensor, values: torch.Tensor) -> None:
        values = values.to(self._dtype)
        sums.index_add_(1, prompts, torch.stack([values, torch.ones_like(values)]))

    def means(self, accelerator: Accelerator, with_answers: bool) -> dict[str, list[float]]:
        """
        Over all processes and for each prompt: `kl`, the mean KL of a token in nats, and, `with_answers`, `same_answers`, the
        share of the answers of which every token is the most probable one. A model that decodes greedily writes just these.
        """
        means = {}
        for name, sums in {"kl": self._kl, **({"same_answers": self._same} if with_answers else {})}.items():
            total, count = accelerator.reduce(sums, reduction="sum")
            means[name] = (total / count).tolist()
        return means
