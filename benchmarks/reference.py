"""
The baseline of the training benchmarks: the loop of the paper's authors, written anew from the description of their
scripts, and the demo on which both sides are measured.

A step takes one query. The model writes a fresh greedy answer with the full prompt, reads prompt and answer again as the
teacher, and reads `[BE] query answer` as the student; the loss is `0.9 * tau^2 * soft cross-entropy`, over the full
vocabulary with tau = 2, plus `0.1 *` the mean cross-entropy of the whole prompt after `[BE][AE]`. AdamW moves one vector
that starts as normal noise of the embedding's spread. Learning rate, weights, tau and 32 answer tokens are as in the
authors' script for roles. Nothing is slower than there, and two things are better: the vector is kept in float32, and [BE]
stands where the chat template has the prompt.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from peft_be.adapters.ae_row import known_ae_row
from peft_be.prompting import PromptRenderer, load_prompt
from peft_be.tuner import BETokenConfig


DEMO = Path(__file__).parent.parent / "examples" / "demo"
TAU, KD_WEIGHT, LEARNING_RATE = 2.0, 0.9, 1e-1


def text_of_length(tokenizer: PreTrainedTokenizerBase, text: str, length: int) -> str:
    """`text`, cut to `length` tokens, or written again and again until there are as many."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return tokenizer.decode(list(itertools.islice(itertools.cycle(ids), length)))


def prompt_of_length(tokenizer: PreTrainedTokenizerBase, length: int) -> str:
    """The demo's prompt in `length` tokens."""
    return text_of_length(tokenizer, load_prompt(DEMO / "prompt.txt"), length)


class Reference:
    """
    The plain loop. `step()` returns the answer tokens it learned from.

    Args:
        model, tokenizer: the frozen causal LM, and its tokenizer.
        prompt (`str`): P.
        queries (`list[str]`): taken in a new order each time they have all been seen.
        answer_length (`int`): longest answer, in tokens.
        seed (`int`): of the vector's start and the order.
        learning_rate (`float`, *optional*): of AdamW.

    Attributes:
        be (`torch.Tensor` of shape `[d]`): the learned vector, float32.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompt: str,
        queries: list[str],
        answer_length: int,
        seed: int,
        learning_rate: float = LEARNING_RATE,
    ):
        self.model, self.answer_length = model, answer_length
        self.table = model.get_input_embeddings().weight
        config = BETokenConfig.for_tokenizer(tokenizer, len(self.table), 1, True)
        (self.be_id,), self.ae_id = config.be_token_ids, config.ae_token_id
        renderer = PromptRenderer(tokenizer, prompt, be_token_ids=[self.be_id], ae_token_id=self.ae_id)
        self.prompt_ids = renderer.prompt_ids
        self.rows = self._shuffled([(renderer.full(query), renderer.be(query)) for query in queries], seed)
        generator = torch.Generator().manual_seed(seed)
        spread = self.table.float().std().item()
        be, ae = (torch.randn(self.table.shape[1], generator=generator) * spread for _ in range(2))
        trained = known_ae_row(None, model, tokenizer)
        if trained is None:
            print(f"No trained [AE] row is shipped for {model.name_or_path}: the reference uses a random one.")
        self.be = be.to(model.device).requires_grad_()
        self.ae = (ae if trained is None else trained[0]).to(model.device, torch.float32)
        self.optimizer = torch.optim.AdamW([self.be], lr=learning_rate)

    @staticmethod
    def _shuffled(rows: list, seed: int) -> Iterator:
        order = random.Random(seed)
        while True:
            yield from order.sample(rows, len(rows))

    def embed(self, ids: list[int]) -> torch.Tensor:
        ids = torch.tensor([ids], device=self.table.device)
        embeds = F.embedding(ids.clamp(max=len(self.table) - 1), self.table)
        for token_id, row in ((self.be_id, self.be), (self.ae_id, self.ae)):
            embeds = torch.where((ids == token_id).unsqueeze(-1), row.to(embeds.dtype), embeds)
        return embeds

    @torch.no_grad()
    def answer(self, full: list[int]) -> list[int]:
        """The model's greedy answer after the full prompt."""
        ids = torch.tensor([full], device=self.model.device)
        mask = torch.ones_like(ids)
        output = self.model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=self.answer_length, do_sample=False
        )
        return output[0, len(full) :].tolist()

    @torch.no_grad()
    def teach(self, full: list[int], answer: list[int]) -> torch.Tensor:
        """The teacher's softened distributions, `[T, V]`."""
        ids = torch.tensor([full + answer[:-1]], device=self.model.device)
        return F.softmax(self.model(input_ids=ids).logits[0, len(full) - 1 :].float() / TAU, dim=-1)

    def distil(self, student: list[int], answer: list[int], teacher: torch.Tensor) -> torch.Tensor:
        """The soft cross-entropy with the teacher, times tau^2."""
        logits = self.model(inputs_embeds=self.embed(student + answer[:-1])).logits[0, len(student) - 1 :].float()
        return -(TAU**2) * (teacher * F.log_softmax(logits / TAU, dim=-1)).sum(-1).mean()

    def reconstruct(self) -> torch.Tensor:
        """The mean cross-entropy of the prompt's tokens after `[BE][AE]`."""
        embeds = self.embed([self.be_id, self.ae_id, *self.prompt_ids])
        logits = self.model(inputs_embeds=embeds).logits[0, 1:-1].float()
        return F.cross_entropy(logits, torch.tensor(self.prompt_ids, device=logits.device))

    def backward(self, kd: torch.Tensor, reconstruction: torch.Tensor) -> None:
        ((1 - KD_WEIGHT) * reconstruction + KD_WEIGHT * kd).backward()

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def step(self) -> int:
        full, student = next(self.rows)
        answer = self.answer(full)
        teacher = self.teach(full, answer)
        self.backward(self.distil(student, answer, teacher), self.reconstruct())
        self.update()
        return len(answer)
