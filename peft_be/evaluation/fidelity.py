"""How closely the model with [BE] behaves like the model with the full prompt, on held-out queries."""

from __future__ import annotations

from collections.abc import Callable

import torch
from peft import PeftModel
from rouge_score.rouge_scorer import RougeScorer
from transformers import PreTrainedTokenizerBase

from ..losses import OutputHead, divergence
from ..prompting import PromptRenderer
from ..prompting.reconstruction import reconstruction_example
from ..teacher import Answer, AnswerSettings, answer_states, generate_answers, share_prefix
from ..versions import versions
from .latency import time_to_first_token


@torch.no_grad()
def evaluate_fidelity(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | list[dict[str, str]],
    queries: list,
    ae_row: torch.Tensor | None = None,
    max_answer_length: int = 64,
    batch_size: int = 32,
    seed: int = 42,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> tuple[dict, list[dict]]:
    """
    Compare no prompt and [BE] with the full prompt.

    The teacher, the same model with the full prompt, writes greedy answers. KL is at temperature 1 over the full
    vocabulary, KL(teacher || student), as a mean over all tokens of these answers; `kl_gap_closed` is
    `1 - kl.be / kl.no_prompt`, where no prompt means the template with no system message from the user.

    Args:
        model ([`~peft.PeftModel`]):
            The base model with the active BE_TOKEN adapter.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        prompt (`str` or `list[dict]`):
            P, the prompt that [BE] stands for.
        queries (`list`):
            Held-out queries: none of them may have been trained on.
        ae_row (`torch.Tensor` of shape `[1, d]`, *optional*):
            The [AE] row, for the reconstruction of P from `[BE][AE]`. Without one it is not scored (`None`).
        max_answer_length (`int`, *optional*, defaults to `64`):
            Longest answer, in tokens.
        batch_size (`int`, *optional*, defaults to `32`):
            Queries processed together.
        seed (`int`, *optional*, defaults to `42`):
            Recorded in the result; the evaluation itself draws nothing at random.
        on_progress (`Callable[[str, int, int], None]`, *optional*):
            Called with what is being done, the queries done, and their total.

    Returns:
        `tuple[dict, list[dict]]`: the scores, and for each query the texts `query`, `full`, `be` and `no_prompt`.

    Raises:
        `ValueError`: no queries.
    """
    if not queries:
        raise ValueError("There are no queries to evaluate on.")
    config = model.peft_config[model.active_adapter]
    base = model.get_base_model()
    was_training = model.training
    model.eval()
    head, pad = OutputHead(base), tokenizer.pad_token_id or 0
    renderer = PromptRenderer.for_adapter(config, tokenizer, prompt)
    prompts = {
        "full": [renderer.full(query) for query in queries],
        "no_prompt": [renderer.no_prompt(query) for query in queries],
        "be": [renderer.be(query) for query in queries],
    }
    settings = AnswerSettings(max_new_tokens=max_answer_length, batch_size=batch_size)

    def progress(what: str):
        return None if on_progress is None else lambda done, total: on_progress(what, done, total)

    answers = {}
    for name, label in (("full", "full prompt"), ("be", "[BE]"), ("no_prompt", "no prompt")):
        prefix = share_prefix(base, prompts[name])
        answers[name] = generate_answers(
            base, prompts[name], settings, pad, prefix=prefix, on_progress=progress(f"answers, {label}")
        )
    teacher = answers["full"]
    teacher_ids = [answer.ids for answer in teacher]
    teacher_top = top_tokens(teacher, head)
    texts = {name: [tokenizer.decode(a.ids, skip_special_tokens=True) for a in answers[name]] for name in answers}
    rouge = RougeScorer(["rougeL"])

    kl, agreement, rouge_l = {}, {}, {}
    for name in ("no_prompt", "be"):
        states = answer_states(base, prompts[name], teacher_ids, batch_size, pad, on_progress=progress(f"KL, {name}"))
        per_token = [divergence(s.hidden, t.hidden, head) for s, t in zip(states, teacher)]
        kl[name] = torch.cat(per_token).double().mean().item()
        agreement[name] = (top_tokens(states, head) == teacher_top).double().mean().item()
        scores = [rouge.score(full, text)["rougeL"].fmeasure for full, text in zip(texts["full"], texts[name])]
        rouge_l[name] = sum(scores) / len(scores)

    result = {
        "model": config.base_model_name_or_path,
        "prompt_tokens": len(renderer.prompt_ids),
        "be_tokens": config.num_be_tokens,
        "compression_ratio": len(renderer.prompt_ids) / config.num_be_tokens,
        "num_queries": len(queries),
        "num_answer_tokens": sum(map(len, teacher_ids)),
        "kl": kl,
        "kl_gap_closed": 1 - kl["be"] / kl["no_prompt"],
        "top1_agreement": agreement,
        "answer_rouge_l": rouge_l,
        "reconstruction": reconstruction_scores(model, tokenizer, renderer.prompt_ids, ae_row, head),
        "ttft_ms": {name: time_to_first_token(base, prompts[name][:3]) for name in ("full", "no_prompt", "be")},
        "seed": seed,
        "versions": versions(),
    }
    model.train(was_training)
    samples = [
        {"query": query, **{name: texts[name][i] for name in ("full", "be", "no_prompt")}}
        for i, query in enumerate(queries)
    ]
    return result, samples


def top_tokens(answers: list[Answer], head: OutputHead) -> torch.Tensor:
    """The most probable token `[N]` at each of the answers' N positions."""
    hidden = torch.cat([answer.hidden for answer in answers])
    return torch.cat([head.logits(chunk).argmax(-1) for chunk in hidden.split(head.chunk_size)])


@torch.no_grad()
def reconstruction_scores(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: list[int],
    ae_row: torch.Tensor | None,
    head: OutputHead,
) -> dict[str, float | None]:
    """
    How much of P `[BE][AE]` brings back (Eq. 2).

    `token_accuracy` is the share of P's tokens that are the most probable one when all before them are given;
    `greedy_prefix_match` is the share of P that greedy decoding writes before its first mistake, which is where the first
    token is wrong: up to there both see the same text.
    """
    if ae_row is None:
        return {"token_accuracy": None, "greedy_prefix_match": None}
    base = model.get_base_model()
    rows = model.base_model.get_rows(model.active_adapter)
    table = base.get_input_embeddings().get_base_layer()
    # Ids that stand in for the rows, whose embeddings are then put in by hand: the adapter need not hold an [AE] row
    ids, labels = reconstruction_example(tokenizer, [-1] * len(rows), -1, prompt_ids)
    ids = torch.tensor([ids], device=base.device)
    special = torch.cat([rows, ae_row.to(rows)])
    scale = getattr(table, "embed_scale", None)
    embeds = table(ids.clamp(min=0))
    embeds[ids == -1] = (special if scale is None else special * scale).to(embeds.dtype)
    hidden = base.get_decoder()(inputs_embeds=embeds, use_cache=False)[0][0, -len(prompt_ids) - 1 : -1]
    predicted = top_tokens([Answer(0, prompt_ids, hidden)], head)
    right = (predicted == torch.tensor(prompt_ids, device=predicted.device)).tolist()
    first_mistake = right.index(False) if False in right else len(right)
    return {"token_accuracy": sum(right) / len(right), "greedy_prefix_match": first_mistake / len(right)}
