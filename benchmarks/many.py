"""
Many prompts together against one after the other: the same prompts, queries, steps and seed, one model in memory.

Each side starts without anything cached and does all of its work: the teacher's answers, the steps, the validations, the
checkpoints. The prompts are the demo's text, starting at different places, so that all have the same length. With
`--alone N`, only the first N are trained one after the other, and stand for the rest. How far the rows of both sides are
apart is printed, too: it should be nothing but rounding.

Example: `python benchmarks/many.py --prompts 3 --json many.json`
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from common import write_report
from reference import DEMO
from safetensors.torch import load_file

from peft_be import PromptJob, compress_prompt, compress_prompts
from peft_be.data import load_queries
from peft_be.models import load_model
from peft_be.prompting import load_prompt


def jobs_of_length(tokenizer, count: int, length: int, queries: list[str]) -> list[PromptJob]:
    """`count` prompts of `length` tokens from different places of the demo's prompt, which is taken as a ring."""
    ids = tokenizer(load_prompt(DEMO / "prompt.txt"), add_special_tokens=False)["input_ids"]
    ids = ids * (2 + length // len(ids))
    starts = [i * (len(ids) // 2) // count for i in range(count)]
    return [PromptJob(f"p{i}", tokenizer.decode(ids[s : s + length]), queries) for i, s in enumerate(starts)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--prompts", type=int, default=3)
    parser.add_argument("--alone", type=int, help="train so many of them one after the other; all by default")
    parser.add_argument("--prompt-tokens", type=int, default=300)
    parser.add_argument("--queries", type=int, default=32, help="of each prompt")
    parser.add_argument("--answer-length", type=int, default=32)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--json", metavar="OUT", help="write the figures to this file")
    args = parser.parse_args()

    model, tokenizer = load_model(args.model)
    queries = load_queries(DEMO / "train_queries.jsonl")[: args.queries]
    jobs = jobs_of_length(tokenizer, args.prompts, args.prompt_tokens, queries)
    common = {
        "tokenizer": tokenizer,
        "seed": args.seed,
        "max_steps": args.steps,
        "eval_steps": args.steps,
        "save_steps": args.steps,
        "max_answer_length": args.answer_length,
        "on_progress": lambda *_: None,
    }
    seconds, rows = {}, {}
    with tempfile.TemporaryDirectory() as folder:

        def adapter(name: str):
            return next(iter(load_file(Path(folder) / name / "adapter_model.safetensors").values()))

        os.environ["PEFT_BE_CACHE"] = f"{folder}/cache-together"
        start = time.perf_counter()
        compress_prompts(jobs, f"{folder}/together", model=model, group_size=len(jobs), **common)
        seconds["together"] = time.perf_counter() - start
        rows["together"] = [adapter(f"together/{job.name}") for job in jobs]

        os.environ["PEFT_BE_CACHE"] = f"{folder}/cache-alone"
        start = time.perf_counter()
        alone = jobs[: args.alone]
        for job in alone:
            result = compress_prompt(job.prompt, job.queries, f"{folder}/{job.name}", model=model, **common)
            model = result.model.unload()
        seconds["one after the other"] = (time.perf_counter() - start) * len(jobs) / len(alone)
        rows["one after the other"] = [adapter(job.name) for job in alone]

    apart = max(((a - b).abs().max() / b.square().mean().sqrt()).item() for a, b in zip(*rows.values()))
    ratio = seconds["one after the other"] / seconds["together"]
    for side, value in seconds.items():
        print(f"{side}: {value:.1f} s for {len(jobs)} prompts")
    print(f"together {ratio:.2f} times as fast; rows at most {apart:.1e} of their RMS apart")
    write_report(args, model.device, seconds=seconds, speedup=ratio, rows_apart=apart)


if __name__ == "__main__":
    main()
