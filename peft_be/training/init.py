"""
Where the [BE] rows start. One row starts from a word that changes little. Several start from the beginning of P, and end
much better than several that start alike. The length of the rows matters more: see [`residual_growth`].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..prompting import PromptRenderer
from ..recipe import INITS
from ..teacher.answers import check_finite
from ..tuner.inputs import any_input


if TYPE_CHECKING:
    from .be_distill_config import BEDistillConfig


# The length of hidden states is measured on this. It belongs to the backbone: prompts change it by a few per cent
CALIBRATION_QUERY = "What would you like to talk about today, and why?"
NEUTRAL_TEXT = "You"


def start_rows(
    base: PreTrainedModel, renderers: list[PromptRenderer], num_rows: int, init: str, args: BEDistillConfig
) -> torch.Tensor:
    """
    The [BE] rows that a training starts from, `num_rows` for each prompt, as long as hidden states.

    Args:
        base ([`~transformers.PreTrainedModel`]): the base model, with the adapter's embedding in it.
        renderers (`list[PromptRenderer]`): for each prompt, how it is written.
        num_rows (`int`): rows of each prompt.
        init (`str`): where they start, as in [`initial_rows`].
        args ([`BEDistillConfig`]): the training's configuration.

    Returns:
        `torch.Tensor` of shape `[len(renderers) * num_rows, d]`, float32.
    """
    table = base.get_input_embeddings().get_base_layer().weight
    rows = [
        initial_rows(init, num_rows, table, r.tokenizer, r.prompt_ids, args.init_text, args.seed) for r in renderers
    ]
    scale = args.init_scale or residual_growth(base, renderers[0].no_prompt(CALIBRATION_QUERY))
    return scale * torch.cat(rows)


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
            `"neutral"`: a word that opens many system prompts, and by itself changes little ("You"); `"prompt"`: the first
            tokens of P, one a row; `"auto"`: `"neutral"` for one row and `"prompt"` for several; `"text"`: the first tokens
            of `text`; `"random"`: normal noise with the table's standard deviation, as in the authors' scripts.
        num_rows (`int`): k.
        table (`torch.Tensor` of shape `[V, d]`): the model's input embeddings.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): reads the texts.
        prompt_ids (`list[int]`): token ids of P.
        text (`str`, *optional*): for `init="text"`.
        seed (`int`, *optional*, defaults to `42`): seed of all that is random here.

    Returns:
        `torch.Tensor` of shape `[k, d]`, float32. Rows that start from tokens are as long as the embedding of "You" is, so that one
        learning rate fits all prompts. A text with fewer than k tokens is repeated; where k > 1, a tenth of the table's
        spread sets equal rows apart, which would get similar gradients and stay alike.

    Raises:
        `ValueError`: unknown `init`, or no text for `init="text"`.
    """
    if init not in INITS:
        raise ValueError(f"Unknown init '{init}': choose one of {', '.join(INITS)}.")
    if init == "auto":
        init = "neutral" if num_rows == 1 else "prompt"
    generator = torch.Generator().manual_seed(seed)
    table = table.detach()
    spread = table.float().std().item()
    noise = torch.randn(num_rows, table.shape[1], generator=generator) * spread
    if init == "random":
        return noise

    def embeddings(ids: list[int]) -> torch.Tensor:
        return table[torch.tensor(ids, device=table.device)].float().cpu()

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    neutral = embeddings(encode(NEUTRAL_TEXT)).mean(0, keepdim=True)
    if init == "neutral":
        rows = neutral.repeat(num_rows, 1)
    else:
        ids = prompt_ids if init == "prompt" else encode(text or "")
        if not ids:
            raise ValueError("init='text' needs a text that is not empty.")
        rows = embeddings([ids[i % len(ids)] for i in range(num_rows)])
    if num_rows > 1:
        rows = rows + 0.1 * noise
    return neutral.norm() * F.normalize(rows, dim=-1)


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

    Raises:
        `FloatingPointError`: a hidden state is not a finite number.
    """
    inputs = torch.tensor([ids], device=model.device)
    with any_input(model):
        states = model(inputs, output_hidden_states=True, logits_to_keep=1, use_cache=False).hidden_states
    lengths = torch.stack([state[0, 1:].float().norm(dim=-1) for state in states])
    check_finite([lengths])
    return (lengths[1:].median() / lengths[0].median()).item()
