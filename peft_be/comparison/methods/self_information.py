"""Pruning by what the backbone itself finds predictable."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from ...losses import OutputHead, cross_entropy
from ...prompting import PromptRenderer
from ...prompting.context import context_length
from .method import Job
from .pruning import Pruner, Word, mean_over_tokens


class SelfInformation(Pruner):
    """
    The words of P that the model would not have guessed, after Selective Context (arXiv 2310.06201) and the token level of
    LLMLingua (arXiv 2310.05736).

    The importance of a token is `-log p(token | all before it)`, that of a word the mean over its tokens. The backbone itself
    computes it on P as it stands in the chat template. Unlike in the papers, words are the units, not noun phrases from a
    parser (Selective Context) or pieces of words (LLMLingua), and there are neither LLMLingua's budgets for parts of a prompt
    nor its rounds, in which later tokens are judged after what was kept of the earlier ones.

    The arguments are those of [`Pruner`].
    """

    def importance(self, job: Job, messages: list[dict[str, str]], words: list[Word]) -> Sequence[float]:
        renderer = PromptRenderer(job.tokenizer, messages)
        spans = renderer.prompt_spans("x")
        end = max(i for i, span in enumerate(spans) if span) + 1
        scores = self_information(job.model, renderer.full("x")[:end])
        return mean_over_tokens(messages, words, spans[:end], scores).tolist()


@torch.no_grad()
def self_information(model: PreTrainedModel, ids: list[int], window: int | None = None) -> torch.Tensor:
    """
    `-log p` of each token after those before it, one forward pass, with logits for a few tokens at a time.

    A text longer than the model's context is read in windows that overlap by half, so that each token but the first ones has
    at least half a context before it.

    Args:
        model ([`~transformers.PreTrainedModel`]): the causal LM, not wrapped by PEFT.
        ids (`list[int]`): at least one token.
        window (`int`, *optional*): most tokens to read at once; `None` takes the model's context.

    Returns:
        `torch.Tensor` of shape `[len(ids)]`, float32, in nats. The first token, which nothing predicts, has `log V`.
    """
    head = OutputHead(model)
    window = min(window or context_length(model) or len(ids), len(ids))
    tokens = torch.tensor(ids, device=model.device)
    scores = torch.full((len(ids),), math.log(head.weight.shape[0]))
    done = 1
    while done < len(ids):
        start = max(0, done - window // 2)
        end = min(start + window, len(ids))
        hidden = model.get_decoder()(input_ids=tokens[None, start:end], use_cache=False)[0][0]
        scores[done:end] = cross_entropy(hidden[done - 1 - start : -1], tokens[done:end], head).cpu()
        done = end
    return scores
