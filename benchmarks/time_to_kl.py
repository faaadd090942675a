"""
Wall time to a held-out KL: the plain loop of the paper's authors against this package, on the same queries.

The reference (see `reference.py`) runs `--reference-steps` steps. Its time is the smaller one of the sum of its steps and
of their median times their number, so that a step that other work disturbed does not flatter us. Then
`BEDistillTrainer` with the default recipe runs `--steps` steps, with a learning rate schedule that ends there; its time is
the construction of the trainer, in which its teacher answers all queries, and everything that `train()` does.

The measure is KL(teacher || student) at temperature 1, a mean over the tokens of the teacher's answers to held-out
queries, the same code and the same answers for both sides, and the clock stands still meanwhile. Loading models is on
neither clock. The first time at which ours is at or below the reference's last KL is the answer; the same is printed
for the reference's earlier measurements, among them its best one.

The file of `--json` is written after the reference, too, and `--resume` takes the reference from there if nothing that
concerns it has changed.

Example: `python benchmarks/time_to_kl.py --json time_to_kl.json`
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from common import settings, synchronize, timed, write_report
from datasets import Dataset
from peft import get_peft_model
from reference import DEMO, LEARNING_RATE, Reference, prompt_of_length
from transformers import PrinterCallback, TrainerCallback

from peft_be import BEDistillConfig, BEDistillTrainer
from peft_be.data import load_queries, query_key
from peft_be.evaluation import FidelityScorer
from peft_be.machine.memory import freed_memory_kept
from peft_be.machine.versions import machine
from peft_be.models import load_model
from peft_be.prompting import PromptRenderer
from peft_be.tuner import BETokenConfig


# Settings that the reference's result does not depend on
OURS_ONLY = ("steps", "every", "batch_size")


class HeldOut:
    """The KL of any row on held-out queries, with a model of its own."""

    def __init__(self, model, tokenizer, prompt: str, queries: list[str], answer_length: int):
        config = BETokenConfig.for_tokenizer(tokenizer, model.get_input_embeddings().num_embeddings)
        self.base, self.peft_model = model, get_peft_model(model, config)
        renderer = PromptRenderer.for_adapter(self.peft_model.peft_config["default"], tokenizer, prompt)
        self._scorer = FidelityScorer(model, tokenizer, [renderer.full(query) for query in queries], answer_length)
        self.prompts = [renderer.be(query) for query in queries]
        self.no_prompt_kl = self._scorer.kl([renderer.no_prompt(query) for query in queries])

    def kl(self, row: torch.Tensor) -> float:
        """KL(full prompt || the row of [BE] in its place), nats a token."""
        self.peft_model.base_model.set_rows("default", row.detach().reshape(1, -1))
        return self._scorer.kl(self.prompts)


def run_reference(reference: Reference, held_out: HeldOut, args: argparse.Namespace) -> dict:
    seconds, curve, tokens = [], [], 0
    device = reference.model.device
    for step in range(1, args.reference_steps + 1):
        count, duration = timed(device, reference.step)
        seconds.append(duration)
        tokens += count
        if step % args.reference_every == 0 or step == args.reference_steps:
            at = min(sum(seconds), statistics.median(seconds) * step)
            curve.append({"step": step, "seconds": at, "kl": held_out.kl(reference.be)})
            print(f"reference, step {step}: {at:.1f} s, KL {curve[-1]['kl']:.4f}", flush=True)
        elif step % 10 == 0:
            print(f"reference, step {step}: {sum(seconds):.1f} s", flush=True)
    return {
        "curve": curve,
        "sum_of_steps_s": sum(seconds),
        "median_step_s": statistics.median(seconds),
        "answer_tokens": tokens,
    }


class StoppedClock(TrainerCallback):
    """Measures the held-out KL every so many steps, and leaves that out of the time."""

    def __init__(self, held_out: HeldOut, every: int):
        self.held_out, self.every = held_out, every
        self.curve: list[dict] = []
        self.start = time.perf_counter()
        self.stopped = 0.0

    def seconds(self) -> float:
        synchronize(self.held_out.base.device)
        return time.perf_counter() - self.start - self.stopped

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % self.every and state.global_step != state.max_steps:
            return
        at, begin = self.seconds(), time.perf_counter()
        kl = self.held_out.kl(model.base_model.get_rows(model.active_adapter))
        self.curve.append({"step": state.global_step, "seconds": at, "kl": kl})
        print(f"ours, step {state.global_step}: {at:.1f} s, KL {kl:.4f}", flush=True)
        self.stopped += time.perf_counter() - begin


def run_ours(
    model, tokenizer, prompt: str, queries: list[str], held_out: HeldOut, args: argparse.Namespace, folder: str
) -> dict:
    config = BEDistillConfig(
        folder,
        max_answer_length=args.answer_length,
        max_steps=args.steps,
        per_device_train_batch_size=args.batch_size,
        seed=args.seed,
        # The held-out KL is measured here, and with the clock stopped
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
        disable_tqdm=True,
    )
    # The trainer's own validation is not used: one query, whose answer is on the clock
    datasets = [Dataset.from_dict({"query": rows}) for rows in (queries, queries[:1])]
    clock = StoppedClock(held_out, args.every)
    trainer = BEDistillTrainer(model, config, prompt, *datasets, processing_class=tokenizer, callbacks=[clock])
    trainer.remove_callback(PrinterCallback)
    teacher_seconds = clock.seconds()
    print(f"ours, teacher: {teacher_seconds:.1f} s", flush=True)
    trainer.train()
    tokens = sum(label != -100 for row in trainer.train_dataset["labels"] for label in row)
    return {
        "curve": clock.curve,
        "teacher_s": teacher_seconds,
        "total_s": clock.seconds(),
        "teacher_answer_tokens": tokens,
    }


def compare(reference: list[dict], ours: list[dict]) -> list[dict]:
    """For each measurement of the reference, the first of ours that is as good, and the ratio of the times."""
    rows = []
    for point in reference:
        reached = next((own for own in ours if own["kl"] <= point["kl"]), None)
        row = {"reference": point, "ours": reached}
        row["speedup"] = point["seconds"] / reached["seconds"] if reached else None
        rows.append(row)
    return rows


def earlier_reference(args: argparse.Namespace, device: torch.device) -> dict | None:
    """The reference's result in the file of `--json`, if it was made with the same settings on the same machine."""
    if not (args.resume and args.json and Path(args.json).exists()):
        return None
    report = json.loads(Path(args.json).read_text())

    def relevant(values: dict) -> dict:
        return {name: value for name, value in values.items() if name not in OURS_ONLY}

    same = relevant(report["args"]) == relevant(settings(args)) and report["machine"] == machine(device)
    return report["reference"] if same else None


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--prompt-tokens", type=int, default=300)
    parser.add_argument("--queries", type=int, default=128, help="to train on")
    parser.add_argument("--held-out", type=int, default=24, help="queries to measure the KL on")
    parser.add_argument("--answer-length", type=int, default=32, help="tokens, as in the authors' scripts")
    parser.add_argument("--reference-steps", type=int, default=300)
    parser.add_argument("--reference-lr", type=float, default=LEARNING_RATE)
    parser.add_argument("--reference-every", type=int, default=50, help="steps between measurements of the reference")
    parser.add_argument("--steps", type=int, default=100, help="of ours")
    parser.add_argument("--every", type=int, default=10, help="steps between measurements of ours")
    parser.add_argument("--batch-size", type=int, default=2, help="answers in a step of ours")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--resume", action="store_true", help="take the reference from the file of --json if it fits")
    parser.add_argument("--json", metavar="OUT", help="write the figures to this file")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    test = {query_key(query): query for query in load_queries(DEMO / "test_queries.jsonl")}
    train = {query_key(query): query for query in load_queries(DEMO / "train_queries.jsonl")}
    queries = [query for key, query in train.items() if key not in test][: args.queries]
    model, tokenizer = load_model(args.model)
    device, prompt = model.device, prompt_of_length(tokenizer, args.prompt_tokens)
    held_out = HeldOut(model, tokenizer, prompt, list(test.values())[: args.held_out], args.answer_length)
    report = {
        "num_queries": len(queries),
        "num_held_out": len(held_out.prompts),
        "no_prompt_kl": held_out.no_prompt_kl,
    }
    print(f"no prompt: KL {held_out.no_prompt_kl:.4f}", flush=True)

    report["reference"] = earlier_reference(args, device)
    if report["reference"] is None:
        model, _ = load_model(args.model)
        reference = Reference(model, tokenizer, prompt, queries, args.answer_length, args.seed, args.reference_lr)
        with freed_memory_kept(device):
            report["reference"] = run_reference(reference, held_out, args)
    else:
        print(f"reference: taken from {args.json}", flush=True)
    write_report(args, device, **report)

    with tempfile.TemporaryDirectory() as folder:
        model, _ = load_model(args.model)
        report["ours"] = run_ours(model, tokenizer, prompt, queries, held_out, args, folder)
    report["comparison"] = compare(report["reference"]["curve"], report["ours"]["curve"])
    write_report(args, device, **report)

    for side in ("reference", "ours"):
        print(f"| {side}, step | s | KL |\n|---|---|---|")
        for point in report[side]["curve"]:
            print(f"| {point['step']} | {point['seconds']:.1f} | {point['kl']:.4f} |")
    best = min(point["kl"] for point in report["reference"]["curve"])
    for row in report["comparison"]:
        point, reached = row["reference"], row["ours"]
        what = f"{point['step']} steps of the reference{', its best' if point['kl'] == best else ''}"
        if reached is None:
            print(f"{what}, {point['seconds']:.1f} s to KL {point['kl']:.4f}: not reached by ours")
        else:
            print(
                f"{what}, {point['seconds']:.1f} s to KL {point['kl']:.4f}: ours after {reached['seconds']:.1f} s, "
                f"{row['speedup']:.1f} times faster"
            )


if __name__ == "__main__":
    main()
