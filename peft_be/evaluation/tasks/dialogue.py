"""Perplexity of a character's next line in a dialogue, as the paper measures it on Harry Potter Dialogue (Table 4)."""

from __future__ import annotations

import math
import statistics

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...losses import OutputHead, cross_entropy
from ...prompting import PromptRenderer
from ...teacher import SharedPrefix, answer_states
from .task import Task


class DialoguePerplexity(Task):
    """
    Items have a `scene`, the lines so far as a list `history`, and the character's next line as `response`. Each character
    has its own prompt, so take the items of one.

    Metric: `perplexity`, exp of the mean negative log-likelihood over all tokens of all lines, the end of the turn not among
    them. Lower is better. The standard error is that of a ratio of two sums over lines, by the delta method. The
    `item_scores` are perplexities of single lines; their mean is another number.
    """

    lower_is_better = True
    template = "Scene: {scene}\nDialogue:\n{history}"
    reference_fields = ("response",)
    reference_types = (str,)

    def query(self, item: dict, number: int) -> str:
        history = item.get("history")
        return super().query({**item, "history": "\n".join(history)} if isinstance(history, list) else item, number)

    def answer_lengths(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        renderer = PromptRenderer(tokenizer)
        return [len(renderer.answer(line)) for line in self.references]

    def run(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: list[list[int]],
        prefix: SharedPrefix | None,
        batch_size: int,
    ) -> dict:
        renderer, head, pad = PromptRenderer(tokenizer), OutputHead(model), tokenizer.pad_token_id or 0
        lines = [renderer.answer(line) for line in self.references]
        states = answer_states(model, prompts, lines, batch_size, pad, prefix=prefix)
        losses = [
            cross_entropy(answer.hidden, torch.tensor(answer.ids, device=answer.hidden.device), head)
            .cpu()
            .double()
            .sum()
            .item()
            for answer in states
        ]
        lengths = [len(line) for line in lines]
        mean = sum(losses) / sum(lengths)
        perplexity, error = math.exp(mean), None
        if len(lines) > 1:
            residuals = [loss - mean * length for loss, length in zip(losses, lengths)]
            error = perplexity * statistics.stdev(residuals, 0) * len(lines) ** 0.5 / sum(lengths)
        metric = {"score": perplexity, "standard_error": error}
        return {
            **metric,
            "num_items": len(self.items),
            "item_scores": [math.exp(loss / length) for loss, length in zip(losses, lengths)],
            "metrics": {"perplexity": metric},
            "answers": [],
        }
