from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.table import Table
from rich.text import Text

from .answer_checks import add_check_rows, chance, show_few, warn_of_cuts
from .common import bold, console, say
from .config_options import with_options_of
from .figures import Figures
from .loading import Loading
from .options import QUERY_FILES, QueryField
from .progress import progress_bars


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..evaluation.stand_in import StandIn


SIDE = "An adapter's folder or its name on the Hub, or a prompt: a .txt, .md or .json file, or a skill's folder."


@with_options_of(Figures, without=("card",), name="figures")
@with_options_of(Loading, without=("allow_other_prompt",), name="loading", panel="Loading")
def diff(
    a: Annotated[Path, typer.Argument(help=SIDE)],
    b: Annotated[Path, typer.Argument(help="What it is compared with: the same kinds.")],
    queries: Annotated[Path, typer.Option(help=f"Held-out queries: {QUERY_FILES}")],
    figures: Figures,
    loading: Loading,
    query_field: QueryField = None,
    checks: Annotated[Optional[Path], typer.Option(help="Checks of the answers, a .yaml, .yml or .json file.")] = None,
    max_queries: Annotated[Optional[int], typer.Option(min=1, help="Use the first so many queries.")] = None,
    max_answer_length: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
    batch_size: Annotated[int, typer.Option(min=1, help="Queries processed together.")] = 32,
    samples: Annotated[int, typer.Option(min=0, help="Queries to show, those that differ most first.")] = 3,
) -> None:
    """Show what changes in the answers from one adapter or prompt, A, to another, B."""
    from ..data import load_queries
    from ..evaluation import check_changes, evaluate_difference, held_out_queries, load_checks
    from ..evaluation.answer_checks import check_applies

    asked = load_queries(queries, query_field)
    sides = Sides.find(a, b)
    fresh = asked
    for directory in sides.adapters.values():
        fresh = held_out_queries(directory, fresh)
    if len(fresh) < len(asked):
        say(f"Left out {len(asked) - len(fresh)} queries that were trained on.")
    fresh = fresh[:max_queries]
    loaded = load_checks(checks) if checks else []
    check_applies(loaded, fresh)

    model, tokenizer, stand_ins = sides.load(loading)
    with progress_bars() as on_progress:
        scores, found = evaluate_difference(
            model, tokenizer, stand_ins["a"], stand_ins["b"], fresh, max_answer_length, batch_size, on_progress
        )
    if loaded:
        scores["checks"] = check_changes(loaded, found)
    figures.write({"a": str(a), "b": str(b), **scores, "queries": found})
    console.print(score_table(scores, a, b))
    if loaded:
        show_changes(scores["checks"])
        for side, cut in scores["cut_answers"].items():
            warn_of_cuts(cut, len(found), max_answer_length, side.upper())
    for sample in found[:samples]:
        show_sample(sample)


@dataclass
class Sides:
    """
    What is compared.

    Attributes:
        adapters (`dict[str, Path]`): folders of adapters, by side: `a` or `b`.
        prompts (`dict[str, str | list[dict]]`): prompts, by side.
    """

    adapters: dict[str, Path]
    prompts: dict[str, str | list[dict]]

    @classmethod
    def find(cls, a: Path, b: Path) -> Sides:
        """Find the adapters and read the prompts, before any model is loaded."""
        from ..adapters.load import read_be_adapter
        from ..prompting.prompt_files import PROMPT_FILES, SKILL_FILE, load_prompt

        sides = cls({}, {})
        for name, side in (("a", a), ("b", b)):
            if (side / SKILL_FILE).is_file() or side.suffix.lower() in PROMPT_FILES and not side.is_dir():
                sides.prompts[name] = load_prompt(side)
            else:
                sides.adapters[name], _ = read_be_adapter(side)
        return sides

    def load(self, loading: Loading) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, StandIn]]:
        """The plain base model, its tokenizer, and what is read on each side."""
        from ..evaluation.stand_in import StandIn
        from ..models import DEFAULT_MODEL, load_model

        stand_ins = {name: StandIn(prompt) for name, prompt in self.prompts.items()}
        if not self.adapters:
            return *load_model(loading.model or DEFAULT_MODEL, loading.dtype, loading.device), stand_ins
        peft_model, tokenizer = loading.load_several(self.adapters)
        for name in self.adapters:
            config = peft_model.peft_config[name]
            rows = peft_model.base_model.get_rows(name)
            stand_ins[name] = StandIn(rows=rows, slot=config.slot, kept_text=config.kept_text)
        return peft_model.unload(), tokenizer, stand_ins


def score_table(scores: dict, a: Path, b: Path) -> Table:
    count = scores["num_queries"]
    table = Table(
        title=f"{count} held-out queries, {scores['num_answer_tokens']} tokens of A's answers",
        caption=Text(f"A: {a}\nB: {b}"),
    )
    for column in ("", "A", "B", "no prompt"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row("tokens in place of a prompt", *(str(scores["tokens"][side]) for side in ("a", "b")), "0")
    table.add_section()
    if "checks" in scores:
        add_check_rows(table, scores["checks"], ("a", "b"))
        table.add_section()
    table.add_row("the same answer as A", "", f"{round(count * scores['same_answers'])} of {count}")
    for label, name in (("median query", "median"), ("mean over tokens", "mean")):
        figures = [f"{scores[of][name]:.4f}" for of in ("kl", "kl_no_prompt")]
        table.add_row(f"KL to A, nats a token, {label}", "0", *figures)
    table.add_row("same top token", "1", f"{scores['top1_agreement']:.3f}")
    table.add_row("ROUGE-L of greedy answers", "1", f"{scores['answer_rouge_l']:.3f}")
    return table


def show_changes(scores: dict) -> None:
    """Say which checks B loses or gains, and for which there are too few answers to tell."""
    changed = {name: score for name, score in scores.items() if score["lost"] or score["gained"]}
    for name, score in changed.items():
        told = f"{score['only_a']} answers pass with A alone, {score['only_b']} with B alone {chance(score)}"
        say(f"{'Lost' if score['lost'] else 'Gained'} by B: '{name}'. {told}.")
    if not changed:
        say("No check is clearly lost or gained (McNemar's exact test, p < 0.05).")
    show_few(scores)


def show_sample(sample: dict) -> None:
    """Print the answers to a query side by side."""
    query = sample["query"] if isinstance(sample["query"], str) else sample["query"][-1]["content"]
    say(bold(query), f" (KL {sample['kl']:.4f})")
    table = Table(show_lines=True)
    for column in ("A", "B"):
        table.add_column(column, ratio=1, overflow="fold")
    table.add_row(sample["a"], sample["b"])
    console.print(table)
