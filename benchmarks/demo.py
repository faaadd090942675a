"""
The main job from end to end: the demo's prompt is compressed and evaluated on its test queries, and a step is compared with
the bare student's.

- `seconds`: of loading the model, of the compression, and of the evaluation. Nothing is cached beforehand.
- `scores`: as from `peft-be eval`, with the gap closed among them.
- `peak_bytes`: the memory that the compression needed above the loaded model.
- `steps`: for each batch size, quartiles of a step of `BEDistillTrainer`, of the bare student's forward and backward on the
  same batches, and of the optimizer alone; and the ratio of the first two medians.

Example: `python benchmarks/demo.py demo-output --json demo.json`
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from unittest import mock

from common import peak, quartiles, start_of_peak, timed, write_report
from reference import DEMO
from training import Ours

from peft_be import compress_prompt
from peft_be.data import load_queries
from peft_be.evaluation import evaluate_fidelity
from peft_be.machine.clock import synchronize
from peft_be.machine.memory import freed_memory_kept
from peft_be.models import load_model
from peft_be.prompting import load_prompt
from peft_be.runs.compress import Compression


def run_demo(args: argparse.Namespace, prompt: str, train: list[str], test: list[str]) -> tuple[Compression, dict]:
    """Load the model, compress into `args.output`, and evaluate."""
    start = time.perf_counter()
    model, tokenizer = load_model(args.model)
    synchronize(model.device)
    seconds = {"load": time.perf_counter() - start}
    before = start_of_peak(model)
    settings = {"max_steps": args.max_steps, "max_answer_length": args.answer_length, "seed": args.seed}
    # In an empty cache: the user's may hold the teacher's answers already. The unpacked model has been read by now
    with tempfile.TemporaryDirectory() as cache, mock.patch.dict(os.environ, PEFT_BE_CACHE=cache):
        done, seconds["compress"] = timed(
            model.device,
            lambda: compress_prompt(
                prompt,
                train,
                args.output,
                model=model,
                tokenizer=tokenizer,
                test_queries=test,
                overwrite=True,
                **settings,
            ),
        )
        peak_bytes = peak(model.device) - before
        (scores, _), seconds["evaluate"] = timed(
            model.device,
            lambda: evaluate_fidelity(done.model, tokenizer, prompt, test, max_answer_length=args.answer_length),
        )
    return done, {
        "seconds": seconds,
        "training_steps": done.report["steps"],
        "kl_gap_closed": scores["kl_gap_closed"],
        "scores": scores,
        "peak_bytes": peak_bytes,
    }


def time_steps(model, tokenizer, prompt: str, queries: list[str], size: int, args: argparse.Namespace) -> dict:
    """Quartiles of the seconds of our step, of the bare student's and of the optimizer's, measured by turns."""
    seconds: dict[str, list[float]] = {"bare": [], "step": [], "optimizer": []}
    with tempfile.TemporaryDirectory() as folder, freed_memory_kept(model.device):
        ours = Ours(model, tokenizer, prompt, {"query": queries}, args.answer_length, size, args.seed, folder)
        ours.step()  # warms up
        for inputs in itertools.islice(ours.batches, args.rounds):
            seconds["bare"].append(timed(model.device, ours.bare_step, inputs)[1])
            seconds["step"].append(timed(model.device, ours.step, inputs)[1])
            ours.backward(ours.loss(inputs))
            seconds["optimizer"].append(timed(model.device, ours.update)[1])
        ours.trainer.model.unload()
    result = {f"{name}_s": quartiles(values) for name, values in seconds.items()}
    return {"batch_size": size, **result, "ratio": result["step_s"]["median"] / result["bare_s"]["median"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="folder of the adapter; an earlier one is replaced")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--max-steps", type=int, default=540)
    parser.add_argument("--max-queries", type=int, help="take the first queries only")
    parser.add_argument("--answer-length", type=int, default=64)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[2, 8, 32], help="answers in a timed step")
    parser.add_argument("--rounds", type=int, default=20, help="timed steps for each batch size")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--json", metavar="OUT", help="write the figures to this file")
    args = parser.parse_args()

    prompt = load_prompt(DEMO / "prompt.txt")
    train, test = (load_queries(DEMO / f"{name}_queries.jsonl")[: args.max_queries] for name in ("train", "test"))
    done, results = run_demo(args, prompt, train, test)
    gap, seconds = results["kl_gap_closed"], results["seconds"]
    print(", ".join(f"{name} {value:.1f} s" for name, value in seconds.items()), end="; ")
    print(f"gap closed {gap and round(gap, 3)}, peak {results['peak_bytes'] / 1e6:.0f} MB above the model", flush=True)
    base, tokenizer = done.model.unload(), done.tokenizer
    results["steps"] = []
    write_report(args, base.device, **results)
    for size in args.batch_sizes:
        result = time_steps(base, tokenizer, prompt, train[: 4 * size], size, args)
        results["steps"].append(result)
        parts = (f"{name} {1e3 * result[f'{name}_s']['median']:.1f} ms" for name in ("step", "bare", "optimizer"))
        print(f"batch of {size}: {', '.join(parts)}; {result['ratio']:.3f} bare steps", flush=True)
        write_report(args, base.device, **results)


if __name__ == "__main__":
    main()
