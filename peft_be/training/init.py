"""
Where the [BE] rows start. Their direction matters: the mean of a long prompt's embeddings begins much worse than no prompt.
Their length matters more: see [`residual_growth`].
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


INITS = ("neutral", "prompt", "text", "random")
NEUTRAL_TEXT = "You"


def initial_rows(
    init: str,
    num_rows: int,
    table: torch.Tensor,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: list[int],
    text: str | None = None,
    seed: int = 42,
) -> torch.Tensor:
    """
    First values of the [BE] rows.

    Args:
        init (`str`):
            `"neutral"`: the embedding of a word that opens many system prompts, and by itself changes little;
            `"prompt"`: the mean of P's token embeddings; `"text"`: the mean of the token embeddings of `text`;
            `"random"`: normal noise with the table's standard deviation, as in the authors' scripts.
        num_rows (`int`): k.
        table (`torch.Tensor` of shape `[V, d]`): the model's input embeddings.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): reads the texts.
        prompt_ids (`list[int]`): token ids of P.
        text (`str`, *optional*): for `init="text"`.
        seed (`int`, *optional*, defaults to `42`): seed of all that is random here.

    Returns:
        `torch.Tensor` of shape `[k, d]`, float32. Where k > 1, a tenth of the table's spread sets the rows apart: equal rows
        would get similar gradients and stay alike.

    Raises:
        `ValueError`: unknown `init`, or no text for `init="text"`.
    """
    if init not in INITS:
        raise ValueError(f"Unknown init '{init}': choose one of {', '.join(INITS)}.")
    generator = torch.Generator().manual_seed(seed)
    table = table.detach()
    spread = table.float().std().item()
    noise = torch.randn(num_rows, table.shape[1], generator=generator) * spread
    if init == "random":
        return noise
    if init == "prompt":
        ids = prompt_ids
    else:
        text = NEUTRAL_TEXT if init == "neutral" else text
        ids = tokenizer(text or "", add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if not ids:
            raise ValueError("init='text' needs a text that is not empty.")
    mean = table[torch.tensor(ids, device=table.device)].float().mean(0, keepdim=True).cpu()
    return mean.repeat(num_rows, 1) + (0.1 * noise if num_rows > 1 else 0.0)


@torch.no_grad()
def residual_growth(model: PreTrainedModel, ids: list[int]) -> float:
    """
    How many times longer a token's hidden state is than its embedding, as a median over layers and tokens.

    A row as long as an embedding reaches the first layer alone: what that layer adds is tens of times longer, and all later
    layers see little else. A row as long as the hidden states between the layers is read by every layer, which makes it
    easier to train. One that is much longer drowns what the layers add.

    Args:
        model ([`~transformers.PreTrainedModel`]): the causal LM, not wrapped by PEFT.
        ids (`list[int]`): any text; its first token is left out, since many models park outliers of size 10^4 there.

    Returns:
        `float`: the factor, 59 for SmolLM2-135M-Instruct.
    """
    inputs = torch.tensor([ids], device=model.device)
    states = model(inputs, output_hidden_states=True, logits_to_keep=1, use_cache=False).hidden_states
    lengths = torch.stack([state[0, 1:].float().norm(dim=-1) for state in states])
    return (lengths[1:].median() / lengths[0].median()).item()
