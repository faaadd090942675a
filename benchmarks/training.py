"""
Cost of a distillation step: a plain loop, this package, and the bare student, by turns in one run.

- `reference`: the loop that the paper's authors describe, written anew: one query a step, a fresh greedy answer with the
  full prompt at every step, a teacher forward over prompt and answer, a student forward, the logits of all positions,
  the soft cross-entropy with tau = 2, and the reconstruction of the whole prompt from `[BE][AE]`; AdamW on one vector.
- `ours`: a step of `BEDistillTrainer` on the same queries and answers of the same length, its loss, backward and
  optimizer. The time in which its teacher answered all queries is added, spread over `--epochs` epochs.
- `bare`: the student's forward and backward on the batches of `ours`, with the cross-entropy of the answers' tokens in the
  place of the divergence: what no distillation can go below.

`--memory` also runs `reference` and `ours` in processes of their own and reports by how much the peak of resident memory
rises above the loaded model.

Example: `python benchmarks/training.py --prompt-tokens 300 1100 4000 --json training.json`
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from datasets import Dataset

from peft_be import BEDistillConfig, BEDistillTrainer
from peft_be.data import load_queries
from peft_be.losses import cross_entropy
from peft_be.models import load_model
from peft_be.prompting import PromptRenderer, load_prompt
from peft_be.training.row_trainer import final_hidden_states, predicting
from peft_be.tuner import BETokenConfig
from peft_be.versions import machine, versions


DEMO = Path(__file__).parent.parent / "examples" / "demo"
TAU, KD_WEIGHT = 2.0, 0.9


def prompt_of_length(tokenizer, length: int) -> str:
    """The demo's prompt, cut to `length` tokens, or written again and again until there are as many."""
    ids = tokenizer(load_prompt(DEMO / "prompt.txt"), add_special_tokens=False)["input_ids"]
    return tokenizer.decode(list(itertools.islice(itertools.cycle(ids), length)))


class Reference:
    """The plain loop. `step()` returns the answer tokens it learned from."""

    def __init__(self, model, tokenizer, prompt: str, queries: list[str], answer_length: int, seed: int):
        self.model, self.answer_length = model, answer_length
        config = BETokenConfig.for_tokenizer(tokenizer, model.get_input_embeddings().num_embeddings, 1, True)
        (self.be_id,), self.ae_id = config.be_token_ids, config.ae_token_id
        renderer = PromptRenderer(tokenizer, prompt, be_token_ids=[self.be_id], ae_token_id=self.ae_id)
        self.prompt_ids = renderer.prompt_ids
        self.rows = itertools.cycle([(renderer.full(query), renderer.be(query)) for query in queries])
        self.table = model.get_input_embeddings().weight
        torch.manual_seed(seed)
        spread = self.table.std()
        self.be = (torch.randn(self.table.shape[1]) * spread).requires_grad_()
        self.ae = torch.randn(self.table.shape[1]) * spread
        self.optimizer = torch.optim.AdamW([self.be], lr=1e-2)

    def embed(self, ids: list[int]) -> torch.Tensor:
        rows = [self.be if i == self.be_id else self.ae if i == self.ae_id else self.table[i] for i in ids]
        return torch.stack(rows)[None]

    def step(self) -> int:
        full, student = next(self.rows)
        with torch.no_grad():
            ids = torch.tensor([full])
            answer = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=self.answer_length,
                min_new_tokens=self.answer_length,
                do_sample=False,
            )[0, len(full) :].tolist()
            logits = self.model(input_ids=torch.tensor([full + answer])).logits[0, len(full) - 1 : -1]
            teacher = F.softmax(logits / TAU, dim=-1)
        logits = self.model(inputs_embeds=self.embed(student + answer)).logits[0, len(student) - 1 : -1]
        kd = -(TAU**2) * (teacher * F.log_softmax(logits / TAU, dim=-1)).sum(-1).mean()
        target = self.prompt_ids
        logits = self.model(inputs_embeds=self.embed([self.be_id, self.ae_id, *target])).logits[0, 1:-1]
        reconstruction = F.cross_entropy(logits, torch.tensor(target))
        ((1 - KD_WEIGHT) * reconstruction + KD_WEIGHT * kd).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return len(answer)


class Ours:
    """A step of the trainer, without logging and checkpoints."""

    def __init__(self, model, tokenizer, prompt, queries, answer_length: int, batch_size: int, seed: int, folder: str):
        args = BEDistillConfig(
            folder, kd_weight=1.0, max_answer_length=answer_length, per_device_train_batch_size=batch_size, seed=seed
        )
        datasets = [Dataset.from_dict({"query": q}) for q in (queries, queries[:1])]
        start = time.perf_counter()
        self.trainer = BEDistillTrainer(model, args, prompt, *datasets, processing_class=tokenizer)
        self.teacher_seconds = time.perf_counter() - start
        self.teacher_tokens = sum(label != -100 for row in self.trainer.train_dataset["labels"] for label in row)
        self.trainer.create_optimizer()
        self.trainer.model.train()
        batches = itertools.chain.from_iterable(itertools.repeat(self.trainer.get_train_dataloader()))
        self.batches = (self.trainer._prepare_inputs(batch) for batch in batches)

    def step(self, inputs: dict) -> None:
        self.trainer.compute_loss(self.trainer.model, inputs).backward()
        self.trainer.optimizer.step()
        self.trainer.optimizer.zero_grad()

    def bare_step(self, inputs: dict) -> None:
        hidden = final_hidden_states(self.trainer.model, inputs["input_ids"])
        cross_entropy(*predicting(hidden, inputs["labels"]), self.trainer._head).mean().backward()
        self.trainer.optimizer.zero_grad()


def seconds(work, *args) -> float:
    start = time.perf_counter()
    work(*args)
    return time.perf_counter() - start


def build(side: str, model, tokenizer, length: int, args: argparse.Namespace, folder: str) -> Reference | Ours:
    queries = load_queries(DEMO / "train_queries.jsonl")[: args.queries]
    common = (model, tokenizer, prompt_of_length(tokenizer, length), queries, args.answer_length)
    if side == "reference":
        return Reference(*common, args.seed)
    return Ours(*common, args.batch_size, args.seed, folder)


def measure(length: int, args: argparse.Namespace) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        # A model for each: the trainer puts an adapter on its own
        reference, ours = (
            build(side, *load_model(args.model), length, args, folder) for side in ("reference", "ours")
        )
        tokens = {"reference": 0, "ours": 0}
        times: dict[str, list[float]] = {"reference": [], "ours": [], "bare": []}
        reference.step(), ours.step(next(ours.batches))  # warm up
        for _ in range(args.rounds):
            start = time.perf_counter()
            tokens["reference"] += reference.step()
            times["reference"].append(time.perf_counter() - start)
            for inputs in itertools.islice(ours.batches, args.steps_per_round):
                tokens["ours"] += len(inputs["teacher_hidden"])
                times["bare"].append(seconds(ours.bare_step, inputs))
                times["ours"].append(seconds(ours.step, inputs))
    teacher = ours.teacher_seconds / ours.teacher_tokens / args.epochs
    rates = {
        "reference": tokens["reference"] / sum(times["reference"]),
        "ours, teacher included": 1 / (teacher + sum(times["ours"]) / tokens["ours"]),
        "ours, steps alone": tokens["ours"] / sum(times["ours"]),
        "bare": tokens["ours"] / sum(times["bare"]),
    }
    return {
        "prompt_tokens": length,
        "answer_tokens_per_s": rates,
        "speedup": rates["ours, teacher included"] / rates["reference"],
        "ours_to_bare": sum(times["ours"]) / sum(times["bare"]),
        "median_step_s": {name: statistics.median(values) for name, values in times.items()},
        "teacher_s": ours.teacher_seconds,
        "teacher_answer_tokens": ours.teacher_tokens,
    }


def peak_memory(side: str, length: int, args: argparse.Namespace) -> int:
    """Bytes of resident memory above the loaded model, in a process of its own."""
    command = [sys.executable, __file__, "--only", side, "--prompt-tokens", str(length), "--queries", "8"]
    for name in ("model", "answer_length", "batch_size", "seed"):
        command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def resident_peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--prompt-tokens", type=int, nargs="+", default=[300, 1100, 4000])
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--answer-length", type=int, default=32, help="tokens, as in the authors' scripts")
    parser.add_argument("--batch-size", type=int, default=8, help="answers in a step of ours")
    parser.add_argument("--epochs", type=int, default=3, help="over which the teacher's time is spread")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps-per-round", type=int, default=2, help="steps of ours for each one of the reference")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--only", choices=("reference", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--json", metavar="OUT", help="write the figures to this file")
    args = parser.parse_args()

    if args.only:
        model, tokenizer = load_model(args.model)
        before = resident_peak()
        with tempfile.TemporaryDirectory() as folder:
            job = build(args.only, model, tokenizer, args.prompt_tokens[0], args, folder)
            for _ in range(2):
                job.step() if args.only == "reference" else job.step(next(job.batches))
        print(resident_peak() - before)
        return

    results = []
    for length in args.prompt_tokens:
        result = measure(length, args)
        if args.memory:
            result["peak_bytes"] = {side: peak_memory(side, length, args) for side in ("reference", "ours")}
        results.append(result)
        rates = ", ".join(f"{name} {rate:.1f}" for name, rate in result["answer_tokens_per_s"].items())
        print(f"P of {length} tokens, answer tokens/s: {rates}")
        print(
            f"  ours {result['speedup']:.1f} times the reference; a step of ours {result['ours_to_bare']:.3f} bare ones"
        )
        if args.memory:
            peaks = ", ".join(f"{side} {size / 1e6:.0f}" for side, size in result["peak_bytes"].items())
            print(f"  peak memory above the model, MB: {peaks}", flush=True)
    if args.json:
        report = {
            "args": {key: value for key, value in vars(args).items() if key not in ("json", "only")},
            "machine": machine(torch.device("cpu")),
            "versions": versions(),
            "results": results,
        }
        Path(args.json).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
