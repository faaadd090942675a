"""The parts of the page that tell what was answered, as HTML. All texts are escaped."""

from __future__ import annotations

import html

from ..figures import gap_closed
from .side_by_side import PromptComparison, Turn


TITLES = {"full": "Full prompt", "be": "[BE]", "no_prompt": "No prompt"}
MISSING = "–"


def describe(comparison: PromptComparison, name: str) -> str:
    """What an adapter is, in a sentence."""
    config = comparison.config(name)
    rows = "1 learned token stands" if config.num_be_tokens == 1 else f"{config.num_be_tokens} learned tokens stand"
    known = "full" in comparison.forms
    prompt = f"a prompt of {len(comparison.renderers[name].prompt_ids):,} tokens" if known else "its prompt"
    kept = "" if config.kept_text is None else f" The kept text after it: <i>{html.escape(config.kept_text)}</i>."
    model = html.escape(config.base_model_name_or_path)
    return f"In <b>{html.escape(name)}</b>, {rows} for {prompt}.{kept} Model: {model}."


def status(turn: Turn, forms: tuple[str, ...]) -> str:
    """What is being computed."""
    form = list(turn.answers)[-1] if turn.answers else forms[0]
    place = f"{TITLES[form]}, {len(turn.answers)} of {len(forms)}"
    text = {
        "waits": "Another question is being answered: this one waits.",
        "reads": f"{place}: reading {turn.inputs.get(form, 0):,} tokens …",
        "writes": f"{place}: writing the answer …",
        "compares": "Computing how far each form is from the full prompt (KL) …",
        "stopped": "Stopped.",
        "done": "Done.",
    }[turn.step]
    if forgotten := max(turn.forgotten.values(), default=0):
        text += f" The context is full: the oldest {forgotten} of the earlier questions are not read any more."
    return f'<div class="be-status" role="status">{text}</div>'


def error(problem: Exception) -> str:
    return f'<div class="be-error" role="alert">{html.escape(str(problem))}</div>'


def heading(turn: Turn | None) -> str:
    """The question that the cards answer, and [BE] next to the full prompt at a glance, once both have answered."""
    if turn is None:
        return ""
    question = f'<h3 class="be-question">{html.escape(turn.question)}</h3>'
    full, be = (turn.answers.get(form) for form in ("full", "be"))
    if full is None or be is None:
        return question
    lengths = f"{full.input_tokens:,} → {be.input_tokens:,} tokens"
    parts = [
        (
            _times(full.ttft_ms / be.ttft_ms, "faster", "slower"),
            f"first token: {_ms(full.ttft_ms)} → {_ms(be.ttft_ms)}",
        ),
        (
            _times(full.kv_bytes / be.kv_bytes, "less KV", "more KV"),
            f"{_mb(full.kv_bytes)} → {_mb(be.kv_bytes)}, {lengths}",
        ),
    ]
    if (gap := gap_closed(turn.kl["be"], turn.kl["no_prompt"]) if turn.kl else None) is not None:
        parts.append((f"{gap:.2f} of the gap", "closed on this answer"))
    items = "".join(f"<li><b>{value}</b><span>{text}</span></li>" for value, text in parts)
    return f'{question}<ul class="be-figures" aria-label="[BE] against the full prompt">{items}</ul>'


def card(form: str, turn: Turn | None, forms: tuple[str, ...], running: bool = False) -> str:
    """A form's column: its answer, or what it waits for, and what it cost."""
    answers, kl = (turn.answers, turn.kl) if turn else ({}, {})
    answer = answers.get(form)
    rows = dict.fromkeys(("First token", "Input tokens", "Answer tokens", "KV cache"))
    if turn is not None and answer is not None:
        text = _answer(turn, form)
        rows = {
            "First token": _ms(answer.ttft_ms),
            "Input tokens": f"{answer.input_tokens:,}",
            "Answer tokens": f"{len(answer.ids):,}",
            "KV cache": f'<span title="{answer.kv_bytes:,} bytes">{_mb(answer.kv_bytes)}</span>',
        }
    else:
        waits = {(True, True): "Reading …", (True, False): "Waits for its turn."}
        text = f'<span class="be-waits">{waits.get((running, form in answers), "No answer.")}</span>'
    if "full" in forms:
        rows["KL"] = f"{kl[form]:.3f} nats/token" if form in kl else "…" if running else None
    cells = "".join(f"<tr><th>{name}</th><td>{value or MISSING}</td></tr>" for name, value in rows.items())
    return (
        f'<div class="be-card {form}"><h3>{TITLES[form]}</h3><div class="be-answer">{text}</div>'
        f"<table>{cells}</table></div>"
    )


def history(turns: list[Turn], forms: tuple[str, ...]) -> str:
    """The earlier turns of the conversation, the latest first."""
    if not turns:
        return ""
    parts = []
    for turn in reversed(turns):
        answers = "".join(
            f'<div class="{form}"><b>{TITLES[form]}</b><div class="be-answer">{_answer(turn, form)}</div></div>'
            for form in forms
        )
        parts.append(f'<article class="be-turn"><h4>{html.escape(turn.question)}</h4><div>{answers}</div></article>')
    return f"<h3>Earlier in this conversation</h3>{''.join(parts)}"


def _answer(turn: Turn, form: str) -> str:
    """An answer, with a mark if it is not whole."""
    answer = turn.answers.get(form)
    if answer is None:
        return '<span class="be-waits">No answer.</span>'
    text = html.escape(answer.text)
    if form in turn.cut:
        return f'{text}<span class="be-cut">Cut after {len(answer.ids):,} tokens</span>'
    if turn.step == "stopped" and form == list(turn.answers)[-1]:
        return f'{text}<span class="be-cut">Stopped</span>'
    return text


def _times(ratio: float, less: str, more: str) -> str:
    """A ratio as people say it: 19x faster."""
    ratio, word = (ratio, less) if ratio >= 1 else (1 / ratio, more)
    return f"{ratio:.0f}× {word}" if ratio >= 10 else f"{ratio:.1f}× {word}"


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:,.0f} ms"


def _mb(size: int) -> str:
    return f"{size / 1e6:,.2f} MB" if size < 1e7 else f"{size / 1e6:,.1f} MB"
