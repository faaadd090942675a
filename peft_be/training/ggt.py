from __future__ import annotations

import torch


class GGT(torch.optim.Optimizer):
    r"""
    Full-matrix adaptive steps (GGT, arXiv 1806.02958), for parameters that are a few rows: Adam with the whole matrix of second
    moments instead of its diagonal, and steps of a given length.

    The gradients of a [BE] row share a few directions: of what 32 answers ask for, 16 directions hold nine tenths. Adam looks
    at each coordinate alone. It brings all `d` of them to the same size, also those in which there is nothing but the
    noise of small batches, and the row walks at random and grows. Here, each row by itself makes the step

    $$-\eta \sqrt{d} \, \frac{u}{\|u\|}, \quad u = (C + \delta I)^{-1/2} m$$

    where m is the running mean of its gradients, C that of their outer products, and the damping delta a share of C's
    mean eigenvalue. C is kept as its last gradients, which cost `history * d` numbers, and its root comes from their small
    Gram matrix.

    Args:
        params (`Iterable`):
            Parameters of shape `[k, d]`, or groups of them.
        lr (`float`, *optional*, defaults to `1e-2`):
            eta, the root mean square of what a step adds to a row's numbers.
        betas (`tuple[float, float]`, *optional*, defaults to `(0.9, 0.99)`):
            Decay of the running means m and C.
        damping (`float`, *optional*, defaults to `0.3`):
            delta, in units of the mean eigenvalue of C. The larger, the nearer is the step to the plain mean gradient.
        history (`int`, *optional*, defaults to `128`):
            How many gradients C is made of.
    """

    def __init__(
        self,
        params,
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.99),
        damping: float = 0.3,
        history: int = 128,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "damping": damping, "history": history})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for rows in group["params"]:
                if rows.grad is not None:
                    self._step(rows, rows.grad.float(), self.state[rows], group)
        return loss

    def _step(self, rows: torch.Tensor, gradient: torch.Tensor, state: dict, group: dict) -> None:
        if not state:
            state["step"] = 0
            state["mean"] = torch.zeros_like(gradient)
            state["gradients"] = gradient.new_zeros(len(rows), group["history"], rows.shape[-1])
        state["gradients"][:, state["step"] % group["history"]] = gradient
        state["step"] += 1
        state["mean"].lerp_(gradient, 1 - group["betas"][0])

        step, history, decay = state["step"], group["history"], group["betas"][1]
        age = (step - 1 - torch.arange(history, device=rows.device)) % history
        weights = decay**age * (age < step)
        kept = (weights / weights.sum()).sqrt()[:, None] * state["gradients"]  # [k, history, d], C = kept^T kept
        tiny = torch.finfo().tiny  # for rows that have had no gradient yet
        damping = (group["damping"] * kept.square().sum((1, 2)) / rows.shape[-1]).clamp_min(tiny)
        values, vectors = torch.linalg.eigh(kept @ kept.mT)
        # (C + delta)^(-1/2) sqrt(delta) = 1 - kept^T vectors diag(f) vectors^T kept, with f free of cancellation
        root = (1 + values.clamp_min(0) / damping[:, None]).sqrt()
        inner = vectors.mT @ (kept @ state["mean"][..., None])
        inner = inner / (damping[:, None] * root * (1 + root))[..., None]
        direction = state["mean"] - (kept.mT @ (vectors @ inner))[..., 0]
        length = direction.norm(dim=-1, keepdim=True).clamp_min(tiny)
        # Steps do not shrink with the gradient: a row that has none now, such as a prompt's that was given up, stays
        learning = gradient.any(-1, keepdim=True)
        rows.sub_((group["lr"] * rows.shape[-1] ** 0.5 * learning * direction / length).to(rows.dtype))
