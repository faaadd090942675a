from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.table import Table
from rich.text import Text

from .common import console, say
from .config_options import with_options_of
from .figures import Figures
from .loading import Loading
from .options import Seed
from .progress import progress_bars


@with_options_of(Figures, name="figures")
@with_options_of(Loading, name="loading", panel="Loading")
def audit(
    directory: Annotated[Path, typer.Argument(help="Folder of an adapter, or its name on the Hub.")],
    figures: Figures,
    loading: Loading,
    prompt: Annotated[
        Optional[Path], typer.Option(help="The prompt that was compressed. Without it, what comes out is shown.")
    ] = None,
    canary: Annotated[
        Optional[list[str]], typer.Option(help="A secret in the prompt to look for. May be given several times.")
    ] = None,
    ae: Annotated[
        Optional[Path], typer.Option(help="Folder of the [AE] adapter, to reconstruct with; the package ships some.")
    ] = None,
    sampled: Annotated[int, typer.Option(min=0, help="Sampled answers to each attack, besides the greedy one.")] = 4,
    temperature: Annotated[float, typer.Option(help="Of the sampled answers.")] = 1.0,
    max_answer_length: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 128,
    batch_size: Annotated[int, typer.Option(min=1, help="Answers written together.")] = 32,
    samples: Annotated[int, typer.Option(min=0, help="Answers to show, those that tell the most first.")] = 3,
    seed: Seed = 42,
) -> None:
    """Try to read the prompt back from an adapter."""
    from ..adapters.ae_row import known_ae_row
    from ..adapters.card import add_audit
    from ..evaluation import AuditConfig, audit_leakage
    from ..evaluation.audit import check_canaries, text_of
    from ..prompting import load_prompt

    text = load_prompt(prompt) if prompt else None
    if figures.card and text is None and not canary:
        raise ValueError(
            "Without --prompt or --canary there are no figures for the card: give one, or leave out --card."
        )
    check_canaries(text_of(text), canary or ())
    settings = AuditConfig(
        num_samples=sampled,
        temperature=temperature,
        max_answer_length=max_answer_length,
        batch_size=batch_size,
        seed=seed,
    )
    directory = loading.find(directory, text)
    figures.check_card(directory)
    peft_model, tokenizer = loading.load(directory)
    ae_row = known_ae_row(ae, peft_model.get_base_model(), tokenizer, loading.allow_other_weights)
    with progress_bars() as on_progress:
        scores, outputs = audit_leakage(
            peft_model,
            tokenizer,
            text,
            canaries=canary or (),
            ae_row=ae_row,
            config=settings,
            on_progress=on_progress,
            allow_other_prompt=loading.allow_other_prompt,
        )
    figures.write({**scores, "outputs": [output.to_dict() for output in outputs]})
    if figures.card:
        add_audit(directory, peft_model.peft_config[peft_model.active_adapter], scores)
    show(scores, outputs, samples)


def show(scores: dict, outputs: list, samples: int) -> None:
    """Print the figures, and the answers that tell the most."""
    console.print(leak_table(scores))
    if scores["num_ngrams"]:
        console.print(family_table(scores))
    if scores["recurring"]:
        say("What comes up in answers to several attacks with [BE], and never with no prompt:")
        for text, count in scores["recurring"]:
            say(f"  {text} ({count} attacks)")
    say("Words nearest to the rows:")
    for row in scores["nearest_tokens"][:8]:
        say("  " + ", ".join(word.strip() for word in row))
    for output in [output for output in outputs if output.side == "be"][:samples]:
        how = ", sampled" if output.sampled else ""
        say(Text(f"\n[{output.attack.family}{how}] {output.attack.label}", style="bold"))
        say(output.text.strip())
    say(verdict(scores))


def leak_table(scores: dict) -> Table:
    from ..evaluation.audit.forms import SIDES

    sides = list(scores["all"])
    tokens = f"{scores['be_tokens']} token{'s' if scores['be_tokens'] > 1 else ''}"
    tokens += f" and {scores['kept_tokens']} of kept text" if scores["kept_tokens"] else ""
    known = f"{scores['prompt_tokens']} prompt tokens in {tokens}" if scores["prompt_tokens"] else f"[BE] of {tokens}"
    title = f"{known}: {scores['attacks']} attacks, 1 greedy and {scores['sampled_answers']} sampled answers"
    table = Table(title=title)
    table.add_column("")
    for side in sides:
        table.add_column(SIDES[side], justify="right")
    for way, label in (("greedy", "greedy"), ("all", "all answers")):
        figures = scores[way]
        if way == "all" and not scores["sampled_answers"]:
            continue
        if scores["num_ngrams"]:
            for name, what, digits in (
                ("ngram_share", f"share of P's {scores['ngram']}-grams", 3),
                ("best_share", "the same, best single answer", 3),
                ("longest_run", "longest run of P, words", 0),
            ):
                table.add_row(f"{label}: {what}", *(f"{figures[side][name]:.{digits}f}" for side in sides))
        if scores["num_canaries"]:
            found = (f"{len(figures[side]['canaries'])} of {scores['num_canaries']}" for side in sides)
            table.add_row(f"{label}: canaries", *found)
        table.add_section()
    if scores["num_ngrams"]:
        beyond = f"{scores['be_beyond_no_prompt']:.3f}"
        table.add_row(f"P's {scores['ngram']}-grams that came out with [BE] alone", *[""] * (len(sides) - 1), beyond)
    if scores["reconstruction"]:
        for name, what in (("token_accuracy", "tokens predicted"), ("greedy_prefix_match", "greedy prefix")):
            figures = (f"{scores['reconstruction'][side][name]:.3f}" for side in sides)
            table.add_row(f"P from [AE], {what}", *figures)
    return table


def family_table(scores: dict) -> Table:
    from ..evaluation.audit.forms import SIDES

    table = Table(title=f"Share of P's {scores['ngram']}-grams by kind of attack, all answers")
    table.add_column("")
    for side in scores["all"]:
        table.add_column(SIDES[side], justify="right")
    for family, shares in scores["families"].items():
        table.add_row(family, *("-" if share is None else f"{share:.3f}" for share in shares.values()))
    return table


def verdict(scores: dict) -> str:
    """What the figures mean, in a sentence or two."""
    be, none = scores["all"]["be"], scores["all"]["no_prompt"]
    lines = []
    if scores["num_ngrams"]:
        lines.append(
            f"With [BE], {be['ngram_share']:.1%} of P's {scores['ngram']}-grams came out, and "
            f"{none['ngram_share']:.1%} with no prompt."
        )
    lost = [canary for canary in be["canaries"] if canary not in none["canaries"]]
    if scores["num_canaries"]:
        lines.append(f"Canaries that only [BE] told: {', '.join(lost) or 'none'}.")
    lines.append("What did not come out here may come out under another attack: a row is not a secret.")
    return "\n" + " ".join(lines)
