"""
How much of a prompt can be read back from its [BE] rows, compared with what the prompt itself and no prompt give away.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ...checks import NOT_NEGATIVE, POSITIVE, TRAINING_RANGES, check_number
from ...losses import OutputHead
from ...machine.versions import machine_of, versions
from ...progress import OnProgress
from ...prompting.context import check_length
from ...teacher import AnswerSettings, generate_answers, share_prefix
from ...tuner import active_config
from ..fidelity import reconstruction_embeddings, reconstruction_scores
from .attacks import ATTACKS, BE, Attack
from .forms import SIDES, Forms
from .metrics import NGRAM, LeakMeter, Output, recurring, telling_first


# The row that was trained to bring back what stands in front of it
RECONSTRUCTION = Attack("reconstruction", f"{BE}[AE]", raw=True)
# The words of the vocabulary whose embeddings point where the rows point
NEAREST = Attack("nearest words", BE, raw=True)
NUM_NEAREST = 5


@dataclass(frozen=True)
class AuditConfig:
    """
    What [`audit_leakage`] asks, and how the answers are written.

    Args:
        attacks (`Sequence[Attack]`, *optional*):
            What to ask; the package's own attacks by default.
        num_samples (`int`, *optional*, defaults to `4`):
            Sampled answers to each attack, in addition to the greedy one.
        temperature (`float`, *optional*, defaults to `1.0`):
            Sampling temperature of these answers.
        max_answer_length (`int`, *optional*, defaults to `128`):
            Longest answer, in tokens. What the reconstruction writes may be twice as long.
        batch_size (`int`, *optional*, defaults to `32`):
            Answers written together.
        seed (`int`, *optional*, defaults to `42`):
            Seed of the sampling.

    Raises:
        `ValueError`: no attacks, or a setting out of range.
    """

    attacks: Sequence[Attack] = ATTACKS
    num_samples: int = 4
    temperature: float = 1.0
    max_answer_length: int = 128
    batch_size: int = 32
    seed: int = 42

    def __post_init__(self):
        check_number("num_samples", self.num_samples, NOT_NEGATIVE, whole=True)
        if self.num_samples:
            check_number("temperature", self.temperature, POSITIVE)
        check_number("seed", self.seed, TRAINING_RANGES["seed"], whole=True)
        if not self.attacks:
            raise ValueError("There are no attacks to audit with.")
        self.ways()

    def ways(self, max_answer_length: int | None = None) -> dict[str, AnswerSettings]:
        """How answers are written: greedy ones, and sampled ones if there are any."""
        length = self.max_answer_length if max_answer_length is None else max_answer_length
        greedy = AnswerSettings(max_new_tokens=length, batch_size=self.batch_size, seed=self.seed)
        if not self.num_samples:
            return {"greedy": greedy}
        together = max(1, self.batch_size // self.num_samples)
        sampled = replace(greedy, num_answers=self.num_samples, temperature=self.temperature, batch_size=together)
        return {"greedy": greedy, "sampled": sampled}


@torch.no_grad()
def audit_leakage(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | list[dict[str, str]] | None = None,
    *,
    canaries: Sequence[str] = (),
    ae_row: torch.Tensor | None = None,
    config: AuditConfig | None = None,
    on_progress: OnProgress | None = None,
    allow_other_prompt: bool = False,
) -> tuple[dict, list[Output]]:
    """
    Try to read P back from an adapter.

    The same attacks go to the model with [BE], with the full prompt, which shows what could come out at best, and with
    no prompt, which shows what the model says to them anyway. See [`LeakMeter`] for what is counted.

    Args:
        model ([`~peft.PeftModel`]):
            The base model with the active BE_TOKEN adapter.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        prompt (`str` or `list[dict]`, *optional*):
            P. Without it there is no full prompt to compare with, and the audit shows what [BE] makes the model say
            that it does not say without a prompt.
        canaries (`Sequence[str]`, *optional*, defaults to `()`):
            Secrets that P holds, to look for in the answers in any case, spacing and punctuation.
        ae_row (`torch.Tensor` of shape `[1, d]`, *optional*):
            The [AE] row, for the reconstruction of P from `[BE][AE]`. Without one it is not tried.
        config ([`AuditConfig`], *optional*):
            What to ask, and how many answers to take.
        on_progress (`Callable[[str, int, int, dict], None]`, *optional*):
            Called with what is being done, the attacks done, and their total.
        allow_other_prompt (`bool`, *optional*, defaults to `False`):
            Accept another prompt than the one that the adapter was trained on.

    Returns:
        `tuple[dict, list[Output]]`: the scores, and all that was written, what tells the most first. In the scores,
            `greedy` and `all` (greedy and sampled answers together) hold the figures of [`LeakMeter.measure`] for each
            side; `families` has each family's `ngram_share`; `be_beyond_no_prompt` is the share of P's 4-grams that
            came out with [BE] and not without a prompt; `reconstruction` has two of the [`reconstruction_scores`] of
            each side; `nearest_tokens` the words nearest to each row; `recurring` what [BE] makes the model repeat.

    Raises:
        `ValueError`: a prompt that is not the adapter's, a canary that P does not contain or that is too short, or
            attacks that do not fit into the context.
    """
    config = config or AuditConfig()
    adapter = active_config(model)
    base, was_training = model.get_base_model(), model.training
    forms = Forms(model, tokenizer, prompt, allow_other_prompt)
    meter = LeakMeter(forms.text, forms.template, canaries)
    model.eval()
    outputs = _attacked(base, tokenizer, forms, config, on_progress)
    reconstruction = None
    if ae_row is not None:
        length = min(len(forms.prompt_ids) or config.max_answer_length, 2 * config.max_answer_length)
        check_length(base, max(map(len, forms.rows.values())) + 2 + length, "its reconstruction")
        outputs += _reconstructed(base, tokenizer, forms, ae_row, config.ways(length))
        if prompt is not None:
            reconstruction = _teacher_forced(base, tokenizer, forms, ae_row)
    nearest = nearest_tokens(forms.rows["be"], forms.table, tokenizer)
    outputs.append(Output(NEAREST, "be", False, "".join(tokens[0] for tokens in nearest)))
    model.train(was_training)
    scores = {
        "model": adapter.base_model_name_or_path,
        "prompt_tokens": len(forms.prompt_ids) or None,
        "be_tokens": len(forms.rows["be"]),
        "kept_tokens": len(forms.renderer.kept_ids),
        "attacks": len(config.attacks),
        "sampled_answers": config.num_samples,
        "temperature": config.temperature,
        "max_answer_length": config.max_answer_length,
        "seed": config.seed,
        **_figures(outputs, meter, forms.sides),
        "reconstruction": reconstruction,
        "nearest_tokens": nearest,
        "machine": machine_of(base),
        "versions": versions(),
    }
    return scores, telling_first(outputs, meter)


def nearest_tokens(rows: torch.Tensor, table: torch.Tensor, tokenizer: PreTrainedTokenizerBase) -> list[list[str]]:
    """For each row, the texts of the tokens whose embeddings have the highest cosine to it, best first."""
    directions = F.normalize(table.float(), dim=-1)[: len(tokenizer)]
    best = (F.normalize(rows.float().to(table.device), dim=-1) @ directions.T).topk(NUM_NEAREST).indices
    return [[tokenizer.decode([token_id]) for token_id in ids] for ids in best.tolist()]


def _attacked(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    forms: Forms,
    config: AuditConfig,
    on_progress: OnProgress | None,
) -> list[Output]:
    """The answers to the attacks on all sides, greedy and sampled."""
    attacks, ways = config.attacks, config.ways()
    rendered = {side: [forms.render(attack, side) for attack in attacks] for side in forms.sides}
    longest = max(len(ids) for prompts in rendered.values() for ids in prompts)
    check_length(base, longest + config.max_answer_length, "the longest attack and its answer")
    outputs = []
    for side, prompts in rendered.items():
        # Attacks with [BE] in their text begin in another way than those after a system turn
        groups = [[i for i, a in enumerate(attacks) if (BE in a.text) == inside] for inside in (False, True)]
        for way, how in ways.items():
            done = 0
            for group in filter(None, groups):
                own = [prompts[i] for i in group]
                report = on_progress and partial(_report, on_progress, f"{SIDES[side]}, {way}", done, len(attacks))
                answers = generate_answers(
                    base, own, how, tokenizer.pad_token_id or 0, share_prefix(base, own), on_progress=report
                )
                outputs += [
                    Output(
                        attacks[group[answer.query]],
                        side,
                        way == "sampled",
                        tokenizer.decode(answer.ids, skip_special_tokens=True),
                    )
                    for answer in answers
                ]
                done += len(group)
    return outputs


def _report(on_progress: OnProgress, what: str, before: int, total: int, done: int, _: int) -> None:
    on_progress(what, before + done, total, {})


def _reconstructed(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    forms: Forms,
    ae_row: torch.Tensor,
    ways: dict[str, AnswerSettings],
) -> list[Output]:
    """How the model continues `[BE][AE]`, P's own words with [AE], and [AE] alone."""
    outputs = []
    for side in forms.sides:
        embeds = reconstruction_embeddings(base, tokenizer, forms.rows[side], ae_row, [])
        mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
        for way, how in ways.items():
            config = GenerationConfig(
                max_new_tokens=how.max_new_tokens,
                num_return_sequences=how.num_answers,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id or 0,
                **how.sampling,
            )
            with torch.random.fork_rng(), ExitStack() as stack:
                torch.manual_seed(how.seed)
                # `generate` would fill in from it what is left open, such as a repetition penalty
                stack.callback(setattr, base, "generation_config", base.generation_config)
                base.generation_config = GenerationConfig()
                written = base.generate(inputs_embeds=embeds, attention_mask=mask, generation_config=config)
            outputs += [
                Output(RECONSTRUCTION, side, way == "sampled", tokenizer.decode(ids, skip_special_tokens=True))
                for ids in written
            ]
    return outputs


def _teacher_forced(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, forms: Forms, ae_row: torch.Tensor
) -> dict[str, dict[str, float]]:
    """How many of P's tokens are the most probable one after what stands for P, [AE], and all tokens before them."""
    head, result = OutputHead(base), {}
    for side in forms.sides:
        scores = reconstruction_scores(base, tokenizer, forms.rows[side], ae_row, forms.prompt_ids, head)
        result[side] = {name: scores[name] for name in ("token_accuracy", "greedy_prefix_match")}
    return result


def _figures(outputs: list[Output], meter: LeakMeter, sides: list[str]) -> dict:
    of = {side: [output for output in outputs if output.side == side] for side in sides}
    greedy = {side: [output for output in of[side] if not output.sampled] for side in sides}
    families = {}
    for family in dict.fromkeys(output.attack.family for output in outputs):
        own = {side: [output for output in of[side] if output.attack.family == family] for side in sides}
        families[family] = {side: meter.measure(own[side])["ngram_share"] if own[side] else None for side in sides}
    beyond = None
    if meter.num_ngrams:
        found = {side: set().union(*map(meter.found, of[side])) for side in ("be", "no_prompt")}
        beyond = len(found["be"] - found["no_prompt"]) / meter.num_ngrams
    return {
        "ngram": NGRAM,
        "num_ngrams": meter.num_ngrams,
        "num_canaries": len(meter.canaries),
        "greedy": {side: meter.measure(greedy[side]) for side in sides},
        "all": {side: meter.measure(of[side]) for side in sides},
        "be_beyond_no_prompt": beyond,
        "families": families,
        "recurring": recurring(outputs),
    }
