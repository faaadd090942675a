from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.table import Table
from rich.text import Text

from ..figures import stand_in_length
from .answer_checks import AnswerChecks, add_check_rows, show_lost, warn_of_cuts
from .common import console, say
from .config_options import with_options_of
from .figures import Figures
from .loading import Loading
from .options import QUERY_FILES, QueryField
from .progress import progress_bars
from .refusals import show_refusals


@with_options_of(Figures, name="figures")
@with_options_of(AnswerChecks, name="answer_checks", panel="Checks")
@with_options_of(Loading, name="loading", panel="Loading")
def evaluate(
    directory: Annotated[Path, typer.Argument(help="Folder of an adapter, or its name on the Hub.")],
    prompt: Annotated[Path, typer.Option(help="The prompt that was compressed.")],
    queries: Annotated[Path, typer.Option(help=f"Held-out queries: {QUERY_FILES}")],
    figures: Figures,
    answer_checks: AnswerChecks,
    loading: Loading,
    query_field: QueryField = None,
    ae: Annotated[
        Optional[Path], typer.Option(help="Folder of the [AE] adapter, to score the reconstruction.")
    ] = None,
    max_queries: Annotated[Optional[int], typer.Option(min=1, help="Use the first so many queries.")] = None,
    max_answer_length: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
    batch_size: Annotated[int, typer.Option(min=1, help="Queries processed together.")] = 32,
    samples: Annotated[int, typer.Option(min=0, help="Answers to show side by side.")] = 0,
    refusals: Annotated[
        bool, typer.Option("--refusals", help="Also compare which requests are refused, to find a lost guardrail.")
    ] = False,
    refusal_requests: Annotated[
        Optional[Path], typer.Option(help="Requests of your own for --refusals, .jsonl with query and refuse.")
    ] = None,
) -> None:
    """Compare [BE] with the full prompt and with no prompt on held-out queries."""
    from ..adapters.ae_row import known_ae_row
    from ..adapters.card import add_scores
    from ..data import load_queries
    from ..evaluation import evaluate_fidelity, evaluate_reconstruction, evaluate_refusals, held_out_queries
    from ..evaluation.answer_checks import check_scores
    from ..evaluation.refusals import load_requests
    from ..prompting import load_prompt

    text, asked = load_prompt(prompt), load_queries(queries, query_field)
    directory = loading.find(directory, text)
    figures.check_card(directory)
    fresh = held_out_queries(directory, asked)
    if len(fresh) < len(asked):
        say(f"Left out {len(asked) - len(fresh)} queries that were trained on.")
    checks = answer_checks.load(text, fresh[:max_queries])
    requests = load_requests(refusal_requests) if refusals or refusal_requests else None

    peft_model, tokenizer = loading.load(directory)
    ae_row = known_ae_row(ae, peft_model.get_base_model(), tokenizer, loading.allow_other_weights)
    how: dict[str, Any] = {"batch_size": batch_size, "allow_other_prompt": loading.allow_other_prompt}
    with progress_bars() as on_progress:
        how["on_progress"] = on_progress
        scores, texts = evaluate_fidelity(peft_model, tokenizer, text, fresh[:max_queries], max_answer_length, **how)
        if ae_row is not None:
            scores["reconstruction"] = evaluate_reconstruction(peft_model, tokenizer, text, ae_row)
        if checks:
            scores["checks"] = check_scores(checks, texts)
        if requests:
            scores["refusals"], refused = evaluate_refusals(peft_model, tokenizer, text, requests, **how)
    figures.write(scores)
    if figures.card:
        add_scores(directory, peft_model.peft_config["default"], scores)
    show(scores, texts[:samples])
    if checks:
        warn_of_cuts(scores["cut_answers"], len(texts), max_answer_length)
    if requests:
        show_refusals(scores["refusals"], refused)
    answer_checks.end(checks, scores)


def show(scores: dict, samples: list[dict]) -> None:
    """Print the scores, and some answers side by side."""
    console.print(score_table(scores))
    if "checks" in scores:
        show_lost(scores["checks"])
    if scores["copies"]:
        worst = scores["copies"][0]
        say(
            f"Mostly copied from the prompt's text: {len(scores['copies'])} of {scores['num_queries']} answers of the full "
            "prompt. Rows hold no text: look at the median query, and at the gap without quotations. The answer that copies "
            f"most, {worst['quoted']:.0%} of its tokens:"
        )
        say(Text(worst["query"], style="italic"))
        say(worst["answer"])
    for sample in samples:
        console.print(sample_table(sample))


def score_table(scores: dict) -> Table:
    table = Table(
        title=f"{scores['prompt_tokens']} prompt tokens in {stand_in_length(scores)} "
        f"({scores['compression_ratio']:.0f}x), {scores['num_queries']} held-out queries, "
        f"{scores['num_answer_tokens']} answer tokens"
    )
    for column in ("", "full prompt", "no prompt", "[BE]"):
        table.add_column(column, justify="left" if not column else "right")
    if "checks" in scores:
        add_check_rows(table, scores["checks"])
        table.add_section()
    for label, cell in gap_cells(scores["gap"]):
        table.add_row(label, "1", "0", cell)
    if unchanged := scores["gap"]["unchanged_queries"]:
        of = f"{unchanged} of {scores['num_queries']} queries"
        table.caption = f"Left out of the median: {of}, on which the prompt changes next to nothing."
    same = (f"{round(scores['num_queries'] * scores['same_answers'][which])}" for which in ("no_prompt", "be"))
    table.add_row("the same answers, word for word", str(scores["num_queries"]), *same)
    table.add_section()
    for label, name, digits, full in (
        ("KL to the full prompt, nats a token", "kl", 4, "0"),
        ("same top token", "top1_agreement", 3, "1"),
        ("ROUGE-L of greedy answers", "answer_rouge_l", 3, "1"),
    ):
        table.add_row(label, full, *(f"{scores[name][which]:.{digits}f}" for which in ("no_prompt", "be")))
    table.add_row("time to first token, ms", *(f"{scores['ttft_ms'][w]:.1f}" for w in ("full", "no_prompt", "be")))
    table.add_section()
    for label, name in (
        ("P reconstructed, tokens", "token_accuracy"),
        ("P reconstructed, greedy prefix", "greedy_prefix_match"),
    ):
        value = scores.get("reconstruction", {}).get(name)
        table.add_row(label, "", "", "-" if value is None else f"{value:.3f}")
    return table


def gap_cells(gap: dict) -> Iterator[tuple[str, str]]:
    """The shares of the gap that [BE] closes, with their names: those that say most first."""
    parts = [("gap closed, median query", "median")]
    if gap["quoted_share"]:
        parts += [
            ("gap without quotations", "behaviour"),
            (f"gap of quotations ({gap['quoted_share']:.1%})", "quoted"),
        ]
    for label, name in (*parts, ("gap, mean over tokens", "mean")):
        value, interval = gap[name], gap.get(f"{name}_interval")
        told = "-" if value is None else f"{value:.3f}"
        yield label, told if interval is None else f"{told} ({interval[0]:.2f} to {interval[1]:.2f})"


def sample_table(sample: dict) -> Table:
    query = sample["query"] if isinstance(sample["query"], str) else sample["query"][-1]["content"]
    table = Table(title=query, show_lines=True)
    for column in ("full prompt", "[BE]", "no prompt"):
        table.add_column(column, ratio=1, overflow="fold")
    table.add_row(*(sample[name] for name in ("full", "be", "no_prompt")))
    return table
