"""
Studies that grow: each cell of a manifest is one method, trained on one prompt and scored.

A manifest has one cell a line, `{"variant": "...", "seed": 42, "args": {...}}`, and optionally
- `method`, as in `peft-be compare` (`"be"`), whose further arguments are `args`;
- `prompt` and `queries`, files relative to the manifest (the demo's);
- `test_queries`, a file of held-out queries, which are then scored on. Without it, the validation queries are: sweeps of the
  recipe must not look at test queries;
- `max_steps` or `max_minutes`, the budget of the training;
- `task`, the arguments of `load_task`, to score on, too: `{"name": "gsm8k", "path": "gsm8k_test.jsonl", "max_items": 200}`. A
  `judge` is a model's name there.

Finished cells are appended to the results and skipped from then on; an interrupted cell goes on where it stopped, and one that
fails does not keep the others from running. The table is made from the results alone.

Example:

    python research/study.py research/recipe.jsonl research/results/recipe.jsonl
    python research/study.py --table research/results/recipe.jsonl
    python research/study.py --answers research/results/prompts.jsonl
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import statistics
from dataclasses import asdict
from pathlib import Path

import torch
from records import json_lines

from peft_be.comparison.compare import SPLIT_SEED, run_method
from peft_be.comparison.methods import Job
from peft_be.data import load_queries, split_queries
from peft_be.evaluation import FidelityScorer
from peft_be.evaluation.gap import AnswerKL, Gap
from peft_be.evaluation.tasks import LocalJudge, Task, load_task
from peft_be.files import append_record, read_records
from peft_be.machine.versions import machine_of, versions
from peft_be.models import load_model
from peft_be.prompting import PromptRenderer, load_prompt
from peft_be.runs.folder import failure


NUM_SHOWN = 3  # answers kept of each cell
DEMO = Path(__file__).parent.parent / "examples" / "demo"
# What makes two cells the same
IDENTITY = (
    "variant",
    "method",
    "seed",
    "args",
    "prompt",
    "queries",
    "test_queries",
    "max_steps",
    "max_minutes",
    "task",
)


def key(cell: dict) -> str:
    return json.dumps({name: cell.get(name) for name in IDENTITY}, sort_keys=True)


def run(cell: dict, manifest: Path, folder: Path) -> dict:
    files = {name: manifest.parent / cell[name] for name in ("prompt", "queries", "test_queries") if name in cell}
    # The demo's test queries are held out where a cell does not look at them, too
    held_out = files.get("test_queries", None if "prompt" in cell else DEMO / "test_queries.jsonl")
    settings = dict(cell.get("args", {}))
    length = settings.pop("max_answer_length", 64)
    model, tokenizer = load_model(settings.pop("model", "smollm2"))
    prompt = load_prompt(files.get("prompt", DEMO / "prompt.txt"))
    queries = load_queries(files.get("queries", DEMO / "train_queries.jsonl"))
    splits = split_queries(queries, load_queries(held_out) if held_out else None, seed=SPLIT_SEED)
    scored_on = "test" if "test_queries" in cell else "validation"
    scored = getattr(splits, scored_on)

    work = folder / hashlib.sha256(key(cell).encode()).hexdigest()[:16]
    budget = {"max_steps": cell.get("max_steps"), "max_minutes": cell.get("max_minutes"), "max_answer_length": length}
    job = Job(model, tokenizer, prompt, splits, work, seed=cell["seed"], **budget)
    renderer = PromptRenderer(tokenizer, prompt)
    full, without = ([form(query) for query in scored] for form in (renderer.full, renderer.no_prompt))
    scorer = FidelityScorer(model, tokenizer, full, length, quotable=(prompt, scored))
    no_prompt = scorer.answer_kl(without)
    task = cell.get("task") and load_cells_task(cell["task"], manifest)
    result = run_method(cell.get("method", "be"), settings, job, scorer, scored, task)
    gap = Gap.between(AnswerKL.of_run(result), no_prompt)
    shutil.rmtree(work, ignore_errors=True)
    shown = list(zip(scored, result["answers"]))[:NUM_SHOWN]
    return {
        **cell,
        **result,
        "answers": [{"query": query, "answer": answer} for query, answer in shown],
        "task": cell.get("task"),
        "task_score": result["task"],
        "kl": {"no_prompt": no_prompt.mean, "be": result["kl"]},
        "kl_gap_closed": gap.mean,
        "gap": asdict(gap),
        "prompt_tokens": len(renderer.prompt_ids),
        "scored_on": scored_on,
        "machine": machine_of(model),
        "versions": versions(),
    }


def load_cells_task(arguments: dict, manifest: Path) -> Task:
    arguments = {**arguments, "path": manifest.parent / arguments["path"]}
    if "judge" in arguments:
        arguments["judge"] = LocalJudge(*load_model(arguments["judge"]))
    return load_task(**arguments)


def table(results: list[dict]) -> str:
    """
    Markdown: for each variant the gap closed, mean and spread over seeds; where a cell of the method `none` has the KL of each
    query without a prompt, 95 % of what the gap would be on other such queries, and the gap of the middle query; the part
    of P that [BE][AE] restores greedily, where it was trained for; and the score of the task, if there is one.
    """
    lines = [
        "| variant | P, tokens | seeds | steps | KL, no prompt | KL | gap closed | seeds from, to | queries from, to | middle query | P restored | task |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    no_prompt = {same_answers(cell): cell["query_kl"] for cell in results if cell.get("method") == "none"}
    variants: dict[str, list[dict]] = {}
    for result in results:
        variants.setdefault(result["variant"], []).append(result)
    for variant, cells in variants.items():
        gaps = [cell["kl_gap_closed"] for cell in cells]
        steps = mean([cell["steps"] for cell in cells if cell.get("steps")], ".0f")
        kls = [mean([cell["kl"][name] for cell in cells], ".4f") for name in ("no_prompt", "be")]
        spread = f"{min(gaps):.3f} to {max(gaps):.3f}" if len(gaps) > 1 else "one seed"
        queries = [(c["query_kl"], no_prompt[same_answers(c)]) for c in cells if same_answers(c) in no_prompt]
        middle = mean([middle_gap(*seed) for seed in queries], ".3f")
        restored = mean([c["reconstruction"]["greedy_prefix_match"] for c in cells if c.get("reconstruction")], ".3f")
        task = mean([cell["task_score"]["score"] for cell in cells if cell.get("task_score")], ".3f")
        columns = (
            variant,
            cells[0]["prompt_tokens"],
            len(cells),
            steps,
            *kls,
            mean(gaps, ".3f"),
            spread,
            interval(queries),
            middle,
            restored,
            task,
        )
        lines.append(f"| {' | '.join(map(str, columns))} |")
    return "\n".join(lines)


def same_answers(cell: dict) -> tuple:
    """What two cells share that were scored on the same answers of the teacher: machines write different ones."""
    return cell.get("prompt"), cell.get("test_queries"), round(cell["kl"]["no_prompt"], 6)


def middle_gap(query_kl: list[float], no_prompt: list[float]) -> float:
    return statistics.median(1 - kl / zero for kl, zero in zip(query_kl, no_prompt))


def interval(seeds: list[tuple[list[float], list[float]]], draws: int = 2000) -> str:
    """
    95 % of the gap closed over queries drawn anew from these, as many and with replacement (bootstrap), from the KL of each
    query with and without what stands in for P, of each seed. Every query counts alike, however long its answer.
    """
    if not seeds:
        return ""
    generator = torch.Generator().manual_seed(0)
    gaps = []
    for kl, no_prompt in seeds:
        chosen = torch.randint(len(kl), (draws, len(kl)), generator=generator)
        gaps.append(1 - torch.tensor(kl)[chosen].sum(1) / torch.tensor(no_prompt)[chosen].sum(1))
    low, high = torch.cat(gaps).quantile(torch.tensor([0.025, 0.975])).tolist()
    return f"{low:.3f} to {high:.3f}"


def side_by_side(results: list[dict]) -> str:
    """Markdown: for each prompt and query, the answers of all variants that have one, a seed each."""
    lines = []
    answers: dict[tuple[str, str], dict[str, str]] = {}
    for result in results:
        for shown in result.get("answers", []):
            query = shown["query"] if isinstance(shown["query"], str) else shown["query"][-1]["content"]
            answers.setdefault((result.get("prompt", "demo"), query), {})[result["variant"]] = shown["answer"]
    for (_, query), variants in answers.items():
        lines += [f"**{' '.join(query.split())}**", ""]
        lines += [f"- *{variant}*: {' '.join(answer.split())}" for variant, answer in variants.items()] + [""]
    return "\n".join(lines)


def mean(values: list[float], form: str) -> str:
    text = format(statistics.mean(values), form) if values else ""
    return text.removeprefix("-") if text and float(text) == 0 else text  # zero has no sign


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path, nargs="?", help="cells, JSON lines")
    parser.add_argument("results", type=Path, help="finished cells, JSON lines")
    parser.add_argument("--max-cells", type=int, help="stop after so many new cells")
    parser.add_argument(
        "--part", default="0/1", help="i/n: every n-th cell from the i-th, to share the work of a manifest"
    )
    parser.add_argument("--work", type=Path, default=Path("study-work"), help="folder of unfinished cells")
    parser.add_argument("--table", action="store_true", help="print the table only")
    parser.add_argument("--answers", action="store_true", help="print the first answers of all variants, side by side")
    args = parser.parse_args()
    failed = []
    if not (args.table or args.answers):
        done = {key(result) for result in read_records(args.results)}
        part, parts = map(int, args.part.split("/"))
        cells = [cell for cell in json_lines(args.manifest)[part::parts] if key(cell) not in done]
        args.results.parent.mkdir(parents=True, exist_ok=True)
        for cell in cells[: args.max_cells]:
            print(f"{cell['variant']}, seed {cell['seed']}", flush=True)
            try:
                result = run(cell, args.manifest, args.work)
            except Exception as error:  # the others go on
                failed.append(f"{cell['variant']}, seed {cell['seed']}: {failure(error)}")
                continue
            append_record(args.results, result)
    print((side_by_side if args.answers else table)(read_records(args.results)))
    if failed:
        raise SystemExit("Failed cells:\n" + "\n".join(failed))


if __name__ == "__main__":
    main()
