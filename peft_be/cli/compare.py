from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from ..comparison.config import CompareConfig
from .answer_checks import warn_of_cuts
from .common import bold, console, resumable, say
from .config_options import with_options_of
from .options import QUERY_FILES, Model, Overwrite, PromptFile, QueryField, Resume
from .progress import progress_bars


SMALL_SET = "be,soft-prompt,distillation,memory-token,truncation:64,self-information:64"


@with_options_of(CompareConfig, without=("seeds",))
def compare(
    prompt: PromptFile,
    queries: Annotated[Path, typer.Option(help=f"What users may ask: {QUERY_FILES}")],
    output: Annotated[Path, typer.Option(help="Folder for results.json, report.html and table.md.")],
    config: CompareConfig,
    methods: Annotated[
        str,
        typer.Option(help="Names with commas between them; name:8 for 8 tokens. Full and no prompt are always there."),
    ] = SMALL_SET,
    model: Model = "smollm2",
    test_queries: Annotated[
        Optional[Path], typer.Option(help="Held-out queries to score on; by default 24 of the queries.")
    ] = None,
    query_field: QueryField = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each method that has something random in it.")] = 1,
    task: Annotated[
        Optional[str], typer.Option(help="A task to score on, too, such as gsm8k: see docs/evaluation.md.")
    ] = None,
    task_items: Annotated[Optional[Path], typer.Option(help="Its items: .jsonl, .json, .csv or .parquet.")] = None,
    checks: Annotated[
        Optional[Path],
        typer.Option(help="Checks of the answers, a .yaml, .yml or .json file: see docs/evaluation.md."),
    ] = None,
    seed: Annotated[int, typer.Option(help="The first of the seeds; the others follow it.")] = 42,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Compare ways to replace a prompt: trained, scored and reported under one budget."""
    from ..comparison.compare import compare_methods
    from ..data import load_queries
    from ..evaluation.answer_checks import load_checks
    from ..evaluation.tasks import load_task
    from ..prompting import load_prompt

    text, asked = load_prompt(prompt), load_queries(queries, query_field)
    held_out = load_queries(test_queries, query_field) if test_queries else None
    if (task is None) != (task_items is None):
        raise ValueError("A task needs its items: give --task and --task-items, or neither.")
    if task == "rolebench-judge":
        raise ValueError("rolebench-judge needs a judge: pass load_task(..., judge=...) to compare_methods in Python.")
    scored = load_task(task, task_items) if task and task_items else None
    counted = load_checks(checks) if checks else None
    with resumable(output), progress_bars() as on_progress:
        results = compare_methods(
            text,
            asked,
            output,
            [spec.strip() for spec in methods.split(",") if spec.strip()],
            config,
            model=model,
            test_queries=held_out,
            seeds=tuple(range(seed, seed + seeds)),
            task=scored,
            checks=counted,
            name=prompt.stem,
            resume=resume,
            overwrite=overwrite,
            on_progress=on_progress,
        )
    console.print((output / "table.md").read_text(encoding="utf-8"), soft_wrap=True)
    if counted:
        warn_of_cuts(results["cut_answers"], results["num_queries"]["test"], config.max_answer_length)
    say("Report: ", bold(output / "report.html"))
    failed = [method["name"] for method in results["methods"] if method["error"]]
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(results['methods'])} methods failed: {', '.join(failed)}. Why is said below the "
            "table, and the results of the others are there. The same command with --resume tries the failed ones "
            "again."
        )
