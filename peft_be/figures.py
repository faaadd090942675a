"""How figures are told: a KL says little without the KL of no prompt on the same queries."""

from __future__ import annotations


def gap_closed(kl: float, kl_no_prompt: float | None) -> float | None:
    """
    The share of the way from no prompt to the full prompt: 1 is the full prompt's behaviour, 0 that of no prompt. `None` where
    the prompt changes nothing, or its KL is not known.
    """
    return 1 - kl / kl_no_prompt if kl_no_prompt else None


def kl_sentence(kl: float, kl_no_prompt: float | None, num_queries: int, which: str = "validation") -> str:
    """A KL, the one of no prompt on the same queries, and the gap that is closed, without a full stop."""
    text = f"KL to the full prompt on {num_queries} {which} quer{'y' if num_queries == 1 else 'ies'}: {kl:.4f} nats a token"
    gap = gap_closed(kl, kl_no_prompt)
    return text if gap is None else f"{text}, {kl_no_prompt:.4f} without a prompt: gap closed {gap:.3f}"
