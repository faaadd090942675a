"""The losses of the paper (Eq. 1-4), computed from hidden states so that logits never exist for a whole batch.

Teacher, student and the reconstruction share one frozen `lm_head`. Because it is frozen, the gradient with respect to a
token's hidden state is known as soon as its logits are: it is formed in the forward pass, chunk by chunk, and each logit
is computed once, where a recomputing backward would need it twice.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from peft.utils.integrations import dequantize_module_weight
from transformers import PreTrainedModel

from .machine.quantised import unpack


CHUNK_LOGITS = 2**23


class OutputHead:
    """
    The frozen output layer of a causal LM: hidden states to logits, in float32.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The causal LM, not wrapped by PEFT. Logit scaling (Granite, Cohere) and final soft-capping (Gemma 2) are read
            from its config.
        chunk_size (`int`, *optional*):
            Tokens whose logits exist at the same time. The loss needs about `5 * 4 * chunk_size * V` bytes. `None` takes as
            many as make 2^23 logits, but at least 16, so that its buffers do not grow with V.
    """

    def __init__(self, model: PreTrainedModel, chunk_size: int | None = None):
        head = model.get_output_embeddings()
        config = model.config.get_text_config()
        unpack(head)
        # A quantised layer's weights in full: V x d numbers once, instead of unpacking them for each chunk
        self.weight, self.bias = dequantize_module_weight(head).detach(), getattr(head, "bias", None)
        self.softcap = getattr(config, "final_logit_softcapping", None)
        self.scale = _logit_scale(config)
        self.chunk_size = chunk_size or max(16, CHUNK_LOGITS // self.weight.shape[0])

    def project(self, hidden: torch.Tensor) -> torch.Tensor:
        """Raw logits `[N, V]` of `hidden` `[N, d]`, before scaling and soft-capping."""
        return F.linear(hidden.to(self.weight.dtype), self.weight, self.bias).float()

    def finish(self, raw: torch.Tensor) -> torch.Tensor:
        """Scale and soft-cap raw logits, as the model's own forward does."""
        logits = raw * self.scale if self.scale != 1.0 else raw
        return self.softcap * torch.tanh(logits / self.softcap) if self.softcap else logits

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits `[N, V]` in float32 of hidden states `[N, d]`."""
        return self.finish(self.project(hidden))

    @torch.no_grad()
    def most_probable(self, hidden: torch.Tensor) -> torch.Tensor:
        """The token ids `[N]` with the largest logits, of hidden states `[N, d]`."""
        return torch.cat([self.logits(chunk).argmax(-1) for chunk in hidden.split(self.chunk_size)])

    def hidden_grad(self, logits: torch.Tensor, logits_grad: torch.Tensor) -> torch.Tensor:
        """Gradient `[N, d]` of the hidden states, from the logits and the gradient of the logits, both `[N, V]`."""
        if self.softcap:
            logits_grad = logits_grad * (1 - (logits / self.softcap) ** 2)
        if self.scale != 1.0:
            logits_grad = logits_grad * self.scale
        return (logits_grad.to(self.weight.dtype) @ self.weight).float()


def _logit_scale(config) -> float:
    if getattr(config, "logits_scaling", None):  # Granite divides by it
        return 1 / config.logits_scaling
    return getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1.0


class _PerTokenLoss(torch.autograd.Function):
    """Runs `loss_and_grad(logits, target) -> (loss [n], dloss/dlogits [n, V])` over chunks of tokens."""

    @staticmethod
    def forward(ctx, hidden, target, head, loss_and_grad):
        losses = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, hidden.shape[0], head.chunk_size):
            chunk = slice(start, start + head.chunk_size)
            logits = head.logits(hidden[chunk])
            losses[chunk], logits_grad = loss_and_grad(logits, target[chunk])
            if grad is not None:
                grad[chunk] = head.hidden_grad(logits, logits_grad).to(grad.dtype)
        ctx.save_for_backward(grad)
        return losses

    @staticmethod
    def backward(ctx, losses_grad):
        (grad,) = ctx.saved_tensors
        return grad * losses_grad.unsqueeze(-1).to(grad.dtype), None, None, None


def cross_entropy(hidden: torch.Tensor, labels: torch.Tensor, head: OutputHead) -> torch.Tensor:
    """
    Token-wise cross-entropy, the summands of Eq. 1 and Eq. 2.

    Args:
        hidden (`torch.Tensor` of shape `[N, d]`): final hidden states that predict the labels.
        labels (`torch.Tensor` of shape `[N]`): token ids.
        head ([`OutputHead`]): the frozen output layer.

    Returns:
        `torch.Tensor` of shape `[N]`, float32, in nats.
    """

    def loss_and_grad(logits, target):
        log_p = torch.log_softmax(logits, dim=-1)
        loss = -log_p.gather(-1, target.unsqueeze(-1)).squeeze(-1)
        grad = log_p.exp_()
        grad.scatter_add_(-1, target.unsqueeze(-1), torch.full_like(loss, -1.0).unsqueeze(-1))
        return loss, grad

    return _PerTokenLoss.apply(hidden, labels, head, loss_and_grad)


def divergence(
    student_hidden: torch.Tensor,
    teacher_hidden: torch.Tensor,
    head: OutputHead,
    temperature: float = 1.0,
    beta: float = 0.0,
) -> torch.Tensor:
    """
    Token-wise divergence between teacher and student over the full vocabulary, the summands of Eq. 3.

    Args:
        student_hidden, teacher_hidden (`torch.Tensor` of shape `[N, d]`):
            Final hidden states that predict the same N tokens. The gradient flows to the student only.
        head ([`OutputHead`]):
            The frozen output layer that both share.
        temperature (`float`, *optional*, defaults to `1.0`):
            tau of Eq. 3, divides both logits.
        beta (`float`, *optional*, defaults to `0.0`):
            As in TRL: `0.0` is the forward KL(teacher || student) of Eq. 3, `1.0` the reverse KL, and values in between
            the generalised JSD with the mixture `(1 - beta) * student + beta * teacher`.

    Returns:
        `torch.Tensor` of shape `[N]`, float32, in nats.
    """

    def loss_and_grad(logits, teacher):
        log_s = torch.log_softmax(logits / temperature, dim=-1)
        log_t = torch.log_softmax(head.logits(teacher) / temperature, dim=-1)
        s, t = log_s.exp(), log_t.exp()
        if beta == 0.0:
            return (t * log_t.sub_(log_s)).sum(-1), s.sub_(t).div_(temperature)
        if beta == 1.0:
            gap = log_s.sub_(log_t)
            loss = (s * gap).sum(-1)
            return loss, s.mul_(gap.sub_(loss.unsqueeze(-1))).div_(temperature)
        log_m = torch.logaddexp(log_s + math.log(1 - beta), log_t + math.log(beta))
        gap = log_s - log_m
        student_kl = (s * gap).sum(-1)
        loss = beta * (t * (log_t - log_m)).sum(-1) + (1 - beta) * student_kl
        return loss, s.mul_(gap.sub_(student_kl.unsqueeze(-1))).mul_((1 - beta) / temperature)

    return _PerTokenLoss.apply(student_hidden, teacher_hidden, head, loss_and_grad)
