"""
Cost of a distillation step: a plain loop, PEFT's CARTRIDGE example, this package, and the bare student, by turns in one
run.

- `reference`: the loop of the paper's authors, one query a step (see `reference.py`).
- `cartridge`: a step of PEFT's self-study example, one query a step: a forward of prompt, question and answer with the
  adapter off, a forward of question and answer after the trained key-value cache, and the cross-entropy on the
  teacher's 20 likeliest tokens. Its answers are written one by one beforehand, as there; that time is added, spread over
  `--epochs` epochs.
- `ours`: a step of `BEDistillTrainer` on the same queries and answers of the same length, its loss, backward and
  optimizer. The time in which its teacher answered all queries is added, spread over `--epochs` epochs.
- `bare`: the student's forward and backward on the batches of `ours`, with the cross-entropy of the answers' tokens
  instead of the divergence: no distillation can cost less.

Rates count the tokens of answers, also where a loss covers the question's too. `--memory` also runs each side but the bare
one in a process of its own and reports by how much the peak of memory rises above the loaded model.

A step of the reference after 4,000 tokens takes more than a minute on two CPU cores: `--rounds 1` takes two of them.

Example: `python benchmarks/training.py --prompt-tokens 300 1100 4000 --json training.json`
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import tempfile
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from common import default_device, in_own_process, peak, start_of_peak, timed, write_report
from datasets import Dataset
from peft import CartridgeConfig, get_peft_model, initialize_kv_prefix_from_text
from reference import DEMO, Reference, prompt_of_length

from peft_be import BEDistillConfig, BEDistillTrainer
from peft_be.data import load_queries
from peft_be.losses import cross_entropy
from peft_be.machine.memory import freed_memory_kept
from peft_be.models import load_model
from peft_be.prompting import PromptRenderer
from peft_be.training.row_trainer import final_hidden_states, predicting
from peft_be.tuner import BETokenConfig


TOP_K = 20


class Ours:
    """
    A step of the trainer with the default recipe, without logging and checkpoints.

    Args:
        queries (`dict[str, list]`): the trainer's data set; the first row is the validation's, too.
        num_be_tokens (`int`, *optional*, defaults to `1`): k.
    """

    def __init__(
        self,
        model,
        tokenizer,
        prompt: str,
        queries: dict[str, list],
        answer_length: int,
        batch_size: int,
        seed: int,
        folder: str,
        num_be_tokens: int = 1,
    ):
        self.queries = queries["query"]
        vocab_size = model.get_input_embeddings().num_embeddings
        peft_model = get_peft_model(model, BETokenConfig.for_tokenizer(tokenizer, vocab_size, num_be_tokens))
        args = BEDistillConfig(
            folder, max_answer_length=answer_length, per_device_train_batch_size=batch_size, seed=seed
        )
        datasets = [Dataset.from_dict(rows) for rows in (queries, {name: rows[:1] for name, rows in queries.items()})]
        self.trainer, self.teacher_seconds = timed(
            model.device,
            lambda: BEDistillTrainer(peft_model, args, prompt, *datasets, processing_class=tokenizer),
        )
        self.teacher_tokens = sum(label != -100 for row in self.trainer.train_dataset["labels"] for label in row)
        self.trainer.create_optimizer()
        self.trainer.model.train()
        self.batches = self._shuffled(seed)

    def _shuffled(self, seed: int) -> Iterator[dict]:
        """The batches of an epoch in any order, again and again: the sampler begins with the longest rows."""
        order, batches = random.Random(seed), list(self.trainer.get_train_dataloader())
        while True:
            for batch in order.sample(batches, len(batches)):
                yield self.trainer._prepare_inputs(batch)

    def loss(self, inputs: dict) -> torch.Tensor:
        return self.trainer.compute_loss(self.trainer.model, inputs)

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def update(self) -> None:
        self.trainer.optimizer.step()
        self.trainer.optimizer.zero_grad()

    def step(self, inputs: dict | None = None) -> int:
        """Returns the number of answer tokens that it learned from."""
        inputs = next(self.batches) if inputs is None else inputs
        self.backward(self.loss(inputs))
        self.update()
        return len(inputs["teacher_hidden"])

    def bare_step(self, inputs: dict) -> None:
        hidden = final_hidden_states(self.trainer.model, inputs)
        cross_entropy(*predicting(hidden, inputs), self.trainer._head).mean().backward()
        self.trainer.optimizer.zero_grad()


class Cartridge:
    """
    A step of PEFT's example `cartridge_self_study`, with its defaults: AdamW at 1e-3, gradients clipped at 1, the first
    token of the cache frozen, the cache started with that of the prompt's first tokens, all positions in the loss.

    The cache stands for the system turn, so that the student's tokens are the last ones of the teacher's.
    """

    def __init__(self, model, tokenizer, prompt: str, queries: list[str], answer_length: int, num_tokens: int):
        self.answer_length = answer_length
        config = CartridgeConfig(task_type="CAUSAL_LM", num_virtual_tokens=num_tokens, num_frozen_tokens=1)
        self.model = get_peft_model(model, config)
        initialize_kv_prefix_from_text(self.model, tokenizer, text=prompt, use_chat_template=False, max_length=2048)
        (stand_in,) = BETokenConfig.for_tokenizer(tokenizer, model.get_input_embeddings().num_embeddings).be_token_ids
        renderer = PromptRenderer(tokenizer, prompt, be_token_ids=[stand_in], slot="prefix")
        self.queries = itertools.cycle(
            [(renderer.full(q), [token for token in renderer.be(q) if token != stand_in]) for q in queries]
        )
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-3)

    def write_answer(self) -> tuple[list[int], list[int], int]:
        """Teacher's and student's ids with an answer to the next query, and the answer's length."""
        full, student = next(self.queries)
        ids = torch.tensor([full], device=self.model.device)
        with self.model.disable_adapter(), torch.no_grad():
            output = self.model.get_base_model().generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=self.answer_length, do_sample=False
            )
        answer = output[0, len(full) :].tolist()
        return full + answer, student + answer, len(answer)

    def loss(self, teacher: list[int], student: list[int]) -> torch.Tensor:
        def logits(ids: list[int]) -> torch.Tensor:
            ids = torch.tensor([ids], device=self.model.device)
            return self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]

        with torch.no_grad(), self.model.disable_adapter():
            targets = logits(teacher)[len(teacher) - len(student) : -1]
        log_s = F.log_softmax(logits(student)[:-1], dim=-1)
        top = torch.topk(targets, TOP_K, dim=-1).indices
        log_t = F.log_softmax(targets, dim=-1).gather(-1, top)
        return -(log_t.exp() * log_s.gather(-1, top)).sum(-1).mean()

    def step(self, example: tuple[list[int], list[int], int] | None = None) -> int:
        """Returns the number of answer tokens that it learned from."""
        teacher, student, answer_tokens = example or self.write_answer()
        self.loss(teacher, student).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return answer_tokens


def build(
    side: str, model, tokenizer, length: int, args: argparse.Namespace, folder: str
) -> Reference | Cartridge | Ours:
    queries = load_queries(DEMO / "train_queries.jsonl")[: args.queries]
    prompt = prompt_of_length(tokenizer, length)
    if side == "reference":
        return Reference(model, tokenizer, prompt, queries, args.answer_length, args.seed)
    if side == "cartridge":
        return Cartridge(model, tokenizer, prompt, queries, args.answer_length, args.cartridge_tokens)
    data = {"query": queries}
    return Ours(model, tokenizer, prompt, data, args.answer_length, args.batch_size, args.seed, folder)


def measure(length: int, args: argparse.Namespace) -> dict:
    sides = ("reference", "cartridge", "ours")
    tokens = dict.fromkeys(sides, 0)
    times: dict[str, list[float]] = {side: [] for side in (*sides, "bare")}
    with tempfile.TemporaryDirectory() as folder:
        # A model for each: trainer and cartridge put an adapter on their own
        reference, cartridge, ours = (build(side, *load_model(args.model), length, args, folder) for side in sides)
        device = reference.model.device
        with freed_memory_kept(device):
            reference.step(), cartridge.step(), ours.step()  # warm up
            examples, example_seconds = zip(*(timed(device, cartridge.write_answer) for _ in range(args.rounds)))
            for example in examples:
                for side, job in (("reference", [reference.step]), ("cartridge", [cartridge.step, example])):
                    count, seconds = timed(device, *job)
                    tokens[side] += count
                    times[side].append(seconds)
                for inputs in itertools.islice(ours.batches, args.steps_per_round):
                    times["bare"].append(timed(device, ours.bare_step, inputs)[1])
                    count, seconds = timed(device, ours.step, inputs)
                    tokens["ours"] += count
                    times["ours"].append(seconds)
    answers = {
        "cartridge": sum(example_seconds) / sum(count for *_, count in examples) / args.epochs,
        "ours": ours.teacher_seconds / ours.teacher_tokens / args.epochs,
    }
    steps = {side: sum(times[side]) / tokens[side] for side in sides}
    rates = {
        "reference": 1 / steps["reference"],
        "cartridge, answers included": 1 / (steps["cartridge"] + answers["cartridge"]),
        "cartridge, steps alone": 1 / steps["cartridge"],
        "ours, teacher included": 1 / (steps["ours"] + answers["ours"]),
        "ours, steps alone": 1 / steps["ours"],
        "bare": tokens["ours"] / sum(times["bare"]),
    }
    return {
        "prompt_tokens": length,
        "answer_tokens_per_s": rates,
        "speedup": rates["ours, teacher included"] / rates["reference"],
        "speedup_over_cartridge": rates["ours, teacher included"] / rates["cartridge, answers included"],
        "speedup_over_cartridge_steps_alone": rates["ours, steps alone"] / rates["cartridge, steps alone"],
        "ours_to_bare": sum(times["ours"]) / sum(times["bare"]),
        "median_step_s": {name: statistics.median(values) for name, values in times.items()},
        "teacher_s": ours.teacher_seconds,
        "teacher_answer_tokens": ours.teacher_tokens,
    }


MEASURED_MEMORY = ("reference", "cartridge", "ours")


def peak_memory(side: str, length: int, args: argparse.Namespace) -> int:
    """Bytes above the loaded model, in a process of its own."""
    names = ("model", "answer_length", "batch_size", "cartridge_tokens", "seed")
    options = {"only": side, "prompt_tokens": length, "queries": min(args.queries, 8)}
    return in_own_process(__file__, {**options, **{name: getattr(args, name) for name in names}})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--prompt-tokens", type=int, nargs="+", default=[300, 1100, 4000])
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--answer-length", type=int, default=32, help="tokens, as in the authors' scripts")
    parser.add_argument("--batch-size", type=int, default=8, help="answers in a step of ours")
    parser.add_argument("--cartridge-tokens", type=int, default=8, help="key-value pairs that the cartridge learns")
    parser.add_argument("--epochs", type=int, default=3, help="over which the time of writing answers is spread")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps-per-round", type=int, default=2, help="steps of ours for each one of the others")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--only", choices=MEASURED_MEMORY, help=argparse.SUPPRESS)
    parser.add_argument("--json", metavar="OUT", help="write the figures to this file")
    args = parser.parse_args()

    if args.only:
        model, tokenizer = load_model(args.model)
        before = start_of_peak(model)
        with tempfile.TemporaryDirectory() as folder, freed_memory_kept(model.device):
            job = build(args.only, model, tokenizer, args.prompt_tokens[0], args, folder)
            for _ in range(2):
                job.step()
            print(peak(model.device) - before)
        return

    device = default_device()
    results = []
    for length in args.prompt_tokens:
        result = measure(length, args)
        if args.memory:
            result["peak_bytes"] = {side: peak_memory(side, length, args) for side in MEASURED_MEMORY}
        results.append(result)
        rates = ", ".join(f"{name} {rate:.1f}" for name, rate in result["answer_tokens_per_s"].items())
        print(f"P of {length} tokens, answer tokens/s: {rates}")
        print(
            f"  ours {result['speedup']:.1f} times the reference and {result['speedup_over_cartridge']:.1f} times the "
            f"cartridge ({result['speedup_over_cartridge_steps_alone']:.1f} times, steps alone); a step of ours "
            f"{result['ours_to_bare']:.3f} bare ones",
            flush=True,
        )
        if args.memory:
            peaks = ", ".join(f"{side} {size / 1e6:.0f}" for side, size in result["peak_bytes"].items())
            print(f"  peak memory above the model, MB: {peaks}", flush=True)
        write_report(args, device, results=results)


if __name__ == "__main__":
    main()
