"""
Studies of the recipe that grow: each cell of a manifest is one compression, scored on its validation queries.

A manifest has one cell a line: `{"variant": "...", "seed": 42, "args": {...}}`, where `args` go to `compress_prompt`, and
optionally `"prompt"` and `"queries"`, files relative to the manifest (by default the demo's). Finished cells are appended
to the results and skipped from then on; an interrupted cell goes on where it stopped. The table is made from the results
alone. Test queries are not looked at.

Example:

    python benchmarks/study.py benchmarks/recipe.jsonl docs/results/recipe.jsonl
    python benchmarks/study.py --table docs/results/recipe.jsonl
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import statistics
import time
from pathlib import Path

import torch

from peft_be import compress_prompt
from peft_be.data import load_queries, split_queries
from peft_be.losses import OutputHead, divergence
from peft_be.prompting import PromptRenderer, load_prompt
from peft_be.teacher import Answer, AnswerSettings, answer_states, generate_answers, share_prefix
from peft_be.versions import machine, versions


DEMO = Path(__file__).parent.parent / "examples" / "demo"


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()] if path.exists() else []


def key(cell: dict) -> str:
    """What makes two cells the same."""
    return json.dumps(
        {name: cell.get(name) for name in ("variant", "seed", "args", "prompt", "queries")}, sort_keys=True
    )


def teacher_answers(model, tokenizer, renderer: PromptRenderer, queries: list, answer_length: int) -> list[Answer]:
    """The full prompt's greedy answers to `queries`."""
    prompts = [renderer.full(query) for query in queries]
    settings = AnswerSettings(max_new_tokens=answer_length)
    return generate_answers(model, prompts, settings, tokenizer.pad_token_id or 0, share_prefix(model, prompts))


@torch.no_grad()
def answers_kl(model, prompts: list[list[int]], teacher: list[Answer]) -> float:
    """KL(teacher || the model behind `prompts`), nats a token, over the teacher's answers."""
    head = OutputHead(model)
    states = answer_states(model, prompts, [answer.ids for answer in teacher], batch_size=16)
    return torch.cat([divergence(s.hidden, t.hidden, head) for s, t in zip(states, teacher)]).double().mean().item()


def no_prompt_kl(model, tokenizer, prompt, queries: list, answer_length: int) -> float:
    """KL(full prompt || no prompt), nats a token, over the greedy answers to `queries`."""
    renderer = PromptRenderer(tokenizer, prompt)
    teacher = teacher_answers(model, tokenizer, renderer, queries, answer_length)
    return answers_kl(model, [renderer.no_prompt(query) for query in queries], teacher)


def run(cell: dict, manifest: Path, folder: Path) -> dict:
    prompt, queries, test = DEMO / "prompt.txt", DEMO / "train_queries.jsonl", DEMO / "test_queries.jsonl"
    if "prompt" in cell:
        prompt, queries, test = manifest.parent / cell["prompt"], manifest.parent / cell["queries"], None
    prompt, queries = load_prompt(prompt), load_queries(queries)
    test = load_queries(test) if test else None
    work = folder / hashlib.sha256(key(cell).encode()).hexdigest()[:16]
    start = time.perf_counter()
    result = compress_prompt(
        prompt,
        queries,
        work,
        test_queries=test,
        seed=cell["seed"],
        resume=(work / "training" / "settings.json").exists(),
        **cell["args"],
    )
    seconds = time.perf_counter() - start
    validation = split_queries(queries, test, seed=cell["seed"]).validation
    model, tokenizer = result.model.get_base_model(), result.tokenizer
    no_prompt = no_prompt_kl(model, tokenizer, prompt, validation, cell["args"].get("max_answer_length", 64))
    curve = [(entry["step"], entry["eval_kl"]) for entry in result.report["log"] if "eval_kl" in entry]
    best = min(kl for _, kl in curve)
    shutil.rmtree(work)
    return {
        **cell,
        "kl": {"no_prompt": no_prompt, "be": best},
        "kl_gap_closed": 1 - best / no_prompt,
        "curve": curve,
        "seconds": seconds,
        "machine": machine(model.device),
        "versions": versions(),
    }


def table(results: list[dict]) -> str:
    """Markdown: for each variant the gap closed on validation queries, mean and spread over seeds."""
    lines = ["| variant | seeds | KL, no prompt | KL, [BE] | gap closed | spread |", "|---|---|---|---|---|---|"]
    variants: dict[str, list[dict]] = {}
    for result in results:
        variants.setdefault(result["variant"], []).append(result)
    for variant, cells in variants.items():
        gaps = [cell["kl_gap_closed"] for cell in cells]
        kls = [statistics.mean(cell["kl"][name] for cell in cells) for name in ("no_prompt", "be")]
        spread = f"{min(gaps):.3f} to {max(gaps):.3f}" if len(gaps) > 1 else "one seed"
        lines.append(
            f"| {variant} | {len(cells)} | {kls[0]:.4f} | {kls[1]:.4f} | {statistics.mean(gaps):.3f} | {spread} |"
        )
    return "\n".join(lines)


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
    args = parser.parse_args()
    if not args.table:
        done = {key(result) for result in read_lines(args.results)}
        part, parts = map(int, args.part.split("/"))
        cells = [cell for cell in read_lines(args.manifest)[part::parts] if key(cell) not in done]
        args.results.parent.mkdir(parents=True, exist_ok=True)
        for cell in cells[: args.max_cells]:
            print(f"{cell['variant']}, seed {cell['seed']}", flush=True)
            result = run(cell, args.manifest, args.work)
            with args.results.open("a") as file:
                file.write(json.dumps(result) + "\n")
    print(table(read_lines(args.results)))


if __name__ == "__main__":
    main()
