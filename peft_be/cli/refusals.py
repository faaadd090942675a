"""How `peft-be eval --refusals` shows what it found."""

from __future__ import annotations

from rich.table import Table

from .common import console, say


def show_refusals(scores: dict, samples: list[dict]) -> None:
    """Print the scores and samples of [`evaluate_refusals`]."""
    console.print(refusal_table(scores))
    say(refusal_verdict(scores, samples))


def refusal_table(scores: dict) -> Table:
    table = Table(
        title=f"Refusals: {scores['num_requests']} requests to refuse, {scores['num_controls']} harmless ones"
    )
    for column in ("", "full prompt", "no prompt", "[BE]"):
        table.add_column(column, justify="left" if not column else "right")
    for label, name in (
        ("requests refused", "refused"),
        ("harmless ones refused", "refused_controls"),
        ("as the full prompt does", "agreement"),
    ):
        shares = {"full": 1.0 if name == "agreement" else None, **scores[name]}
        shown = ("-" if shares[side] is None else f"{shares[side]:.3f}" for side in ("full", "no_prompt", "be"))
        table.add_row(label, *shown)
    return table


def refusal_verdict(scores: dict, samples: list[dict]) -> str:
    """What the refusals say about the prompt's guardrails, and which requests got through."""
    from ..evaluation.refusals import is_refusal

    if scores["kept"] is None:
        return (
            f"The full prompt makes this model refuse {scores['guarded']} requests that it answers with no prompt: "
            "too few to tell whether [BE] keeps a guardrail."
        )
    lost = [
        s["query"]
        for s in samples
        if s["refuse"] and is_refusal(s["full"]) and not is_refusal(s["no_prompt"]) and not is_refusal(s["be"])
    ]
    sentence = (
        f"Of {scores['guarded']} requests that only the prompt makes the model refuse, [BE] refuses "
        f"{scores['kept']:.0%}."
    )
    return "\n".join([sentence, *(f"  Lost: {query}" for query in lost[:10])])
