"""What changed in behaviour from one stand-in to another, such as the adapters of two versions of a prompt."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data import as_queries
from ..machine.versions import versions
from ..progress import OnProgress
from ..prompting import PromptRenderer
from ..prompting.context import check_prompts
from .answer_checks import AnswerCheck, check_scores, is_lost
from .fidelity import FidelityScorer
from .stand_in import StandIn


SIDES = ("a", "b")


@torch.no_grad()
def evaluate_difference(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    a: StandIn,
    b: StandIn,
    queries: Iterable,
    max_answer_length: int = 64,
    batch_size: int = 32,
    on_progress: OnProgress | None = None,
) -> tuple[dict, list[dict]]:
    """
    Compare the answers of a model that reads one stand-in with those that it gives with another one. [`FidelityScorer`] takes `a`
    for the prompt that `b` is to follow: the KL is KL(a || b), on the tokens of the greedy answers that `a` gives.

    Args:
        model ([`~transformers.PreTrainedModel`]): the causal LM, not wrapped by PEFT.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): its tokenizer.
        a ([`StandIn`]), b ([`StandIn`]): rows of adapters or prompts, such as those before a change and after it.
        queries (`Iterable`): queries, in any form that [`as_queries`] takes.
        max_answer_length (`int`, *optional*, defaults to `64`): longest answer, in tokens.
        batch_size (`int`, *optional*, defaults to `32`): queries processed together.
        on_progress (`Callable[[str, int, int, dict], None]`, *optional*): called with what is being done, the queries done, and
            their total.

    Returns:
        `tuple[dict, list[dict]]`: the scores, and of each query the texts `query`, `a` and `b` and the `kl` of its answer; those
            that differ most come first. Of the scores, `same_answers` is the share of queries with the same answer, letter by
            letter; `cut_answers` counts those that `max_answer_length` has cut; `kl` has `median` and `mean`, over queries and over tokens, in nats a token; `kl_no_prompt` has the same for
            no prompt in place of `b`, for scale; `top1_agreement` and `answer_rouge_l` are as in [`Fidelity`].

    Raises:
        `ValueError`: no queries, something that is no query, or one that does not fit into the model's context with `a` or `b` and
            the answer.
    """
    queries = as_queries(queries)
    no_prompt = [PromptRenderer(tokenizer).no_prompt(query) for query in queries]
    with b.placed(model, tokenizer) as render:  # what does not fit shows before the work begins
        check_prompts(model, [render(query) for query in queries], max_answer_length, queries)
    with a.placed(model, tokenizer) as render:
        prompts = [render(query) for query in queries]
        check_prompts(model, prompts, max_answer_length, queries)
        scorer = FidelityScorer(model, tokenizer, prompts, max_answer_length, batch_size, on_progress, label="A")
    with b.placed(model, tokenizer) as render:
        fidelity = scorer.score([render(query) for query in queries], label="B")
    zero = scorer.answer_kl(no_prompt)
    answers = zip(queries, scorer.texts, fidelity.answers, fidelity.query_kl)
    found = [{"query": query, "a": text, "b": other, "kl": kl} for query, text, other, kl in answers]
    scores = {
        "model": model.name_or_path,
        "tokens": {side: stand_in.num_tokens(tokenizer) for side, stand_in in zip(SIDES, (a, b))},
        "num_queries": len(queries),
        "num_answer_tokens": sum(fidelity.query_tokens),
        "cut_answers": {"a": scorer.cut_answers, "b": fidelity.cut_answers},
        "same_answers": fidelity.same_answers,
        "kl": {"median": statistics.median(fidelity.query_kl), "mean": fidelity.kl},
        "kl_no_prompt": {"median": statistics.median(zero.query_kl), "mean": zero.mean},
        "top1_agreement": fidelity.top1_agreement,
        "answer_rouge_l": fidelity.answer_rouge_l,
        "versions": versions(),
    }
    return scores, sorted(found, key=lambda entry: -entry["kl"])


def check_changes(checks: list[AnswerCheck], answers: list[dict]) -> dict[str, dict]:
    """
    Which checks `b` loses and which it gains, from the texts that [`evaluate_difference`] returns: as [`check_scores`], with `a` in
    place of the full prompt and `b` in place of [BE], and `gained`, which is `lost` the other way round.
    """
    scores = check_scores(checks, answers, SIDES)
    for score in scores.values():
        score["gained"] = is_lost(score["only_b"], score["only_a"])
    return scores
