"""How closely the model with [BE], or with anything else in the prompt's place, behaves like the model with the full prompt."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
from peft import PeftModel
from rouge_score.rouge_scorer import RougeScorer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data import as_queries
from ..losses import OutputHead
from ..machine.versions import versions
from ..progress import OnProgress, counter
from ..prompting import PromptRenderer
from ..prompting.context import check_prompts
from ..prompting.reconstruction import reconstruction_example
from ..teacher import (
    Answer,
    AnswerSettings,
    SharedPrefix,
    answer_divergences,
    generate_answers,
    share_prefix,
    stop_ids,
)
from ..tuner import active_config
from ..tuner.layer import BETokenEmbedding
from .gap import AnswerKL, Gap
from .held_out import outside_the_prompt
from .latency import time_to_first_token
from .quoting import copies, quoted_tokens
from .stand_in import Prompt


@dataclass
class Fidelity(AnswerKL):
    """
    How closely one stand-in follows the full prompt: the KL of each answer, see [`AnswerKL`], and what is said of all.

    Attributes:
        kl (`float`): KL(full prompt || stand-in) at temperature 1 over the full vocabulary, in nats, averaged over all
            tokens of the full prompt's answers.
        top1_agreement (`float`): share of these tokens at which both have the same most probable token.
        answer_rouge_l (`float`): ROUGE-L (F-measure) of the stand-in's own greedy answers against the full prompt's, averaged over
            the queries.
        same_answers (`float`): share of these greedy answers that are the full prompt's, word for word (exact match).
        answers (`list[str]`): these greedy answers.
        cut_answers (`int`): those of them that are as long as they may be and have no end.
    """

    kl: float
    top1_agreement: float
    answer_rouge_l: float
    same_answers: float
    answers: list[str]
    cut_answers: int


class FidelityScorer:
    """
    Scores what stands in for a prompt P on held-out queries. The teacher, the model with P itself, answers them once,
    greedily; every stand-in is scored on these same answers.

    Args:
        model ([`~transformers.PreTrainedModel`]): the causal LM, not wrapped by PEFT (`PeftModel.get_base_model()` gives it).
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): its tokenizer.
        prompts (`list[list[int]]`): the queries after P, as ids.
        max_answer_length (`int`, *optional*, defaults to `64`): longest answer, in tokens.
        batch_size (`int`, *optional*, defaults to `32`): queries processed together.
        on_progress (`Callable[[str, int, int, dict], None]`, *optional*): called with what is being done, the queries done, and
            their total.
        quotable (`tuple[Prompt, list]`, *optional*): P and the queries as texts or messages, to tell which tokens of the
            answers are quoted from P. `None` says nothing of quotations.
        label (`str`, *optional*, defaults to `"full prompt"`): what to call P in the progress.

    Attributes:
        teacher (`list[Answer]`): P's answers.
        texts (`list[str]`): the same as text.
        quoted (`list[list[bool]]`, *optional*): which of their tokens are quoted, see [`quoted_tokens`].
        cut_answers (`int`): answers of P that are as long as they may be and have no end.

    Raises:
        `ValueError`: no queries, or one that does not fit into the model's context with P and its answer.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: list[list[int]],
        max_answer_length: int = 64,
        batch_size: int = 32,
        on_progress: OnProgress | None = None,
        quotable: tuple[Prompt, list] | None = None,
        label: str = "full prompt",
    ):
        if not prompts:
            raise ValueError("There are no queries to evaluate on.")
        check_prompts(model, prompts, max_answer_length)
        self._model, self._tokenizer, self._on_progress = model, tokenizer, on_progress
        self._settings = AnswerSettings(max_new_tokens=max_answer_length, batch_size=batch_size)
        self.head = OutputHead(model)
        self.teacher = self._generate(prompts, share_prefix(model, prompts), label)
        self.texts = self._decode(self.teacher)
        ids = [answer.ids for answer in self.teacher]
        self.cut_answers = self._cut(self.teacher)
        self.quoted = None if quotable is None else quoted_tokens(tokenizer, *quotable, ids)
        self._top = self._most_probable(self.teacher)

    @torch.no_grad()
    def score(self, prompts: list[list[int]], prefix: SharedPrefix | None = None, label: str = "stand-in") -> Fidelity:
        """
        Score a stand-in.

        Args:
            prompts (`list[list[int]]`): the same queries after the stand-in, as ids.
            prefix ([`SharedPrefix`], *optional*): keys and values of what all `prompts` start with.
            label (`str`, *optional*): what to call it in the progress.
        """
        prefix = prefix or share_prefix(self._model, prompts)
        answers = self._generate(prompts, prefix, label)
        states, per_token = self._follow(prompts, prefix, label)
        texts, rouge = self._decode(answers), RougeScorer(["rougeL"])
        rouge_l = [rouge.score(full, text)["rougeL"].fmeasure for full, text in zip(self.texts, texts)]
        answer_kl = self._of_answers(per_token)
        return Fidelity(
            **vars(answer_kl),
            kl=answer_kl.mean,
            top1_agreement=(self._most_probable(states) == self._top).cpu().double().mean().item(),
            answer_rouge_l=sum(rouge_l) / len(rouge_l),
            same_answers=sum(full == text for full, text in zip(self.texts, texts)) / len(texts),
            answers=texts,
            cut_answers=self._cut(answers),
        )

    def kl(self, prompts: list[list[int]]) -> float:
        """The `kl` of [`Fidelity`] alone, for the same queries after a stand-in. It needs no answers of the stand-in."""
        return self.answer_kl(prompts).mean

    @torch.no_grad()
    def answer_kl(self, prompts: list[list[int]]) -> AnswerKL:
        """The KL of each answer, from which a [`Gap`] is computed. It needs no answers of the stand-in."""
        return self._of_answers(self._follow(prompts, None, "stand-in")[1])

    def _most_probable(self, answers: list[Answer]) -> torch.Tensor:
        """The most probable token at each of the answers' N positions, `[N]`."""
        return self.head.most_probable(torch.cat([answer.hidden for answer in answers]))

    def _of_answers(self, per_token: list[torch.Tensor]) -> AnswerKL:
        quoted_kl, quoted_tokens = None, None
        if self.quoted is not None:
            quoted_kl = [mean_of(kl, which) for kl, which in zip(per_token, self.quoted)]
            quoted_tokens = [sum(which) for which in self.quoted]
        means, counts = [kl.mean().item() for kl in per_token], [len(kl) for kl in per_token]
        return AnswerKL(means, counts, quoted_kl, quoted_tokens)

    def _follow(
        self, prompts: list[list[int]], prefix: SharedPrefix | None, label: str
    ) -> tuple[list[Answer], list[torch.Tensor]]:
        """The teacher's answers after other prompts: their hidden states, and the KL of each token."""
        batch, pad = self._settings.batch_size, self._tokenizer.pad_token_id or 0
        report = counter(self._on_progress, f"KL, {label}")
        return answer_divergences(self._model, self.head, prompts, self.teacher, batch, pad, prefix, report)

    def _generate(self, prompts: list[list[int]], prefix: SharedPrefix | None, label: str) -> list[Answer]:
        pad, report = self._tokenizer.pad_token_id or 0, counter(self._on_progress, f"answers, {label}")
        return generate_answers(self._model, prompts, self._settings, pad, prefix=prefix, on_progress=report)

    def _cut(self, answers: list[Answer]) -> int:
        longest, ends = self._settings.max_new_tokens, stop_ids(self._model)
        return sum(len(answer.ids) >= longest and answer.ids[-1] not in ends for answer in answers)

    def _decode(self, answers: list[Answer]) -> list[str]:
        return [self._tokenizer.decode(answer.ids, skip_special_tokens=True) for answer in answers]


@torch.no_grad()
def evaluate_fidelity(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    queries: Iterable,
    max_answer_length: int = 64,
    batch_size: int = 32,
    on_progress: OnProgress | None = None,
    allow_other_prompt: bool = False,
) -> tuple[dict, list[dict]]:
    """
    Compare no prompt and [BE] with the full prompt, see [`FidelityScorer`]. No prompt means the template with no system
    message from the user.

    Queries that stand in P, or nearly do, are left out with a warning, see [`outside_the_prompt`].

    Args:
        model ([`~peft.PeftModel`]):
            The base model with the active BE_TOKEN adapter.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        prompt (`str` or `list[dict]`):
            P, the prompt that [BE] stands for.
        queries (`Iterable`):
            Held-out queries, in any form that [`as_queries`] takes: none of them may have been trained on.
        max_answer_length (`int`, *optional*, defaults to `64`):
            Longest answer, in tokens.
        batch_size (`int`, *optional*, defaults to `32`):
            Queries processed together.
        on_progress (`Callable[[str, int, int, dict], None]`, *optional*):
            Called with what is being done, the queries done, and their total.
        allow_other_prompt (`bool`, *optional*, defaults to `False`):
            Accept another prompt than the one that the adapter was trained on.

    Returns:
        `tuple[dict, list[dict]]`: the scores, and for each query that was scored the texts `query`, `full`, `be` and
            `no_prompt`. Of the scores, `gap` has the fields of [`Gap`], and `kl_gap_closed` is its `mean`; `copies` are
            the full prompt's answers that are mostly quoted from P, see [`copies`]; `cut_answers` counts those that
            `max_answer_length` has cut; `left_out` are the queries that stand in P.

    Raises:
        `ValueError`: no queries, none but such that stand in P, something that is no query, another prompt than the
            adapter's, or a query that does not fit into the model's context with P and its answer.
    """
    queries = as_queries(queries)
    config, base = active_config(model), model.get_base_model()
    was_training = model.training
    model.eval()
    renderer = PromptRenderer.for_adapter(config, tokenizer, prompt, allow_other_prompt=allow_other_prompt)
    queries, left_out = outside_the_prompt(prompt, queries)
    full = [renderer.full(query) for query in queries]
    prompts = {
        "no_prompt": [renderer.no_prompt(query) for query in queries],
        "be": [renderer.be(query) for query in queries],
    }
    check_prompts(base, full + prompts["no_prompt"] + prompts["be"], max_answer_length, 3 * queries)
    scorer = FidelityScorer(base, tokenizer, full, max_answer_length, batch_size, on_progress, (prompt, queries))
    labels = {"no_prompt": "no prompt", "be": "[BE]"}
    scores = {name: scorer.score(prompts[name], label=labels[name]) for name in prompts}
    gap = Gap.between(scores["be"], scores["no_prompt"])
    result = {
        "model": config.base_model_name_or_path,
        "prompt_tokens": len(renderer.prompt_ids),
        "be_tokens": config.num_be_tokens,
        "kept_tokens": len(renderer.kept_ids),
        "compression_ratio": len(renderer.prompt_ids) / (config.num_be_tokens + len(renderer.kept_ids)),
        "num_queries": len(queries),
        "num_answer_tokens": sum(len(answer.ids) for answer in scorer.teacher),
        "cut_answers": scorer.cut_answers,
        "gap": asdict(gap),
        "kl": {name: score.kl for name, score in scores.items()},
        "kl_gap_closed": gap.mean,
        "top1_agreement": {name: score.top1_agreement for name, score in scores.items()},
        "answer_rouge_l": {name: score.answer_rouge_l for name, score in scores.items()},
        "same_answers": {name: score.same_answers for name, score in scores.items()},
        "copies": copies(scorer.quoted or [], queries, scorer.texts),
        "left_out": left_out,
        "ttft_ms": {name: time_to_first_token(base, ids[:3]) for name, ids in {"full": full, **prompts}.items()},
        "versions": versions(),
    }
    model.train(was_training)
    texts = {"full": scorer.texts, **{name: scores[name].answers for name in ("be", "no_prompt")}}
    samples = [{"query": query, **{name: texts[name][i] for name in texts}} for i, query in enumerate(queries)]
    return result, samples


@torch.no_grad()
def evaluate_reconstruction(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, prompt: Prompt, ae_row: torch.Tensor
) -> dict:
    """
    How much of a prompt's text comes back from `[BE][AE]`: the [`reconstruction_scores`] of an adapter.

    Args:
        model ([`~peft.PeftModel`]): the base model with the active BE_TOKEN adapter.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): its tokenizer.
        prompt (`str` or `list[dict]`): the prompt, usually the P that [BE] stands for.
        ae_row (`torch.Tensor` of shape `[1, d]`): [AE].
    """
    renderer = PromptRenderer.for_adapter(active_config(model), tokenizer, prompt, allow_other_prompt=True)
    base, rows = model.get_base_model(), model.base_model.get_rows(model.active_adapter)
    return reconstruction_scores(base, tokenizer, rows, ae_row, renderer.prompt_ids, OutputHead(base))


def mean_of(kl: torch.Tensor, which: list[bool]) -> float:
    """The mean of some tokens' KL `[T]`, 0 where there are none."""
    chosen = kl[torch.tensor(which, dtype=torch.bool)]
    return chosen.mean().item() if len(chosen) else 0.0


@torch.no_grad()
def reconstruction_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: torch.Tensor,
    ae_row: torch.Tensor | None,
    prompt_ids: list[int],
    head: OutputHead,
) -> dict:
    """
    How much of P the rows bring back (Eq. 2).

    Args:
        model ([`~transformers.PreTrainedModel`]): the causal LM, not wrapped by PEFT.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): its tokenizer.
        rows (`torch.Tensor` of shape `[k, d]`): [BE].
        ae_row (`torch.Tensor` of shape `[1, d]`, *optional*): [AE]. `None` reads `[BE] -> P`, as a memory token does.
        prompt_ids (`list[int]`): P.
        head ([`OutputHead`]): of the model.

    Returns:
        `dict`: `token_accuracy` is the share of P's tokens that are the most probable one, given all tokens before them;
            `greedy_prefix_match` is the share of P that greedy decoding writes before its first wrong token (up to there,
            both see the same text); `curve` has, for up to 100 lengths, `[n, share of P's
            first n tokens that are the most probable one]`.
    """
    embeds = reconstruction_embeddings(model, tokenizer, rows, ae_row, prompt_ids)
    hidden = model.get_decoder()(inputs_embeds=embeds, use_cache=False)[0][0, -len(prompt_ids) - 1 : -1]
    predicted = head.most_probable(hidden)
    right = (predicted == torch.tensor(prompt_ids, device=predicted.device)).cpu().double()
    so_far = right.cumsum(0) / torch.arange(1, len(right) + 1)
    wrong = (right == 0).nonzero()
    lengths = sorted({round(n) for n in torch.linspace(1, len(right), min(100, len(right))).tolist()})
    return {
        "token_accuracy": so_far[-1].item(),
        "greedy_prefix_match": (wrong[0].item() if len(wrong) else len(right)) / len(right),
        "curve": [[n, so_far[n - 1].item()] for n in lengths],
    }


def reconstruction_embeddings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: torch.Tensor,
    ae_row: torch.Tensor | None,
    prompt_ids: list[int],
) -> torch.Tensor:
    """The input `[BE][AE] -> P` as embeddings `[1, T, d]`, so that no adapter needs to hold the rows."""
    table = model.get_input_embeddings()
    table = table.get_base_layer() if isinstance(table, BETokenEmbedding) else table
    # -1 stands for the rows, whose embeddings are put in below
    example, _ = reconstruction_example(tokenizer, [-1] * len(rows), None if ae_row is None else -1, prompt_ids)
    ids = torch.tensor([example], device=model.device)
    rows = rows.to(model.device)
    special = rows if ae_row is None else torch.cat([rows, ae_row.to(rows)])
    scale = getattr(table, "embed_scale", None)
    embeds = table(ids.clamp(min=0))
    embeds[ids == -1] = (special if scale is None else special * scale).to(embeds.dtype)
    return embeds
