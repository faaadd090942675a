"""
What padding costs a training step: the same rows padded to one length, and joined into one sequence without padding.

- `padded, sdpa`: rows padded on the right, torch's attention with its causal mask; what trainers do by default.
- `packed, sdpa`: the rows joined into one sequence, and torch's attention with a mask that separates them.
- `packed, flash`: the same with FlashAttention's kernels for sequences of different lengths, which is what trainers do
  where the model attends with them. Only where `flash_attn` is installed and there is a GPU.

A step is the loss, forward and backward; the sides take turns. `kernels` are the attention operators that torch's profiler
saw. `apart` tells how far the side's loss is from the loss of the padded rows, as a share of the latter.

Example: `python benchmarks/attention.py --json attention.json`
"""

from __future__ import annotations

import argparse
import tempfile

import torch
from common import quartiles, timed, write_report
from reference import DEMO, prompt_of_length
from torch.profiler import ProfilerActivity, profile
from training import Ours
from transformers.utils import is_flash_attn_2_available

from peft_be.data import load_queries
from peft_be.machine.memory import freed_memory_kept
from peft_be.models import load_model


def make_sides() -> dict[str, tuple[bool, str]]:
    """Whether rows are joined, and the kernel, by name."""
    sides = {"padded, sdpa": (False, "sdpa"), "packed, sdpa": (True, "sdpa")}
    if torch.cuda.is_available() and is_flash_attn_2_available():
        sides["packed, flash"] = (True, "flash_attention_2")
    return sides


def attention_kernels(step) -> list[str]:
    """The operators of attention that `step()` runs."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    return sorted(e.key for e in profiler.key_averages() if "_attention" in e.key or "flash_attn" in e.key)


def measure(ours: Ours, rounds: int, batch_size: int) -> dict[str, dict]:
    trainer, base = ours.trainer, ours.trainer.model.get_base_model()
    rows = list(trainer.train_dataset)[:batch_size]
    steps, results = {}, {}
    for side, (packed, kernel) in make_sides().items():
        trainer._collator.padding_free = packed
        inputs = trainer._prepare_inputs(trainer._collate(rows))

        def step(inputs=inputs, kernel=kernel) -> float:
            base.set_attn_implementation(kernel)
            loss = ours.loss(inputs)
            ours.backward(loss)
            return loss.item()

        steps[side] = step
        results[side] = {"positions": inputs["input_ids"].numel(), "kernels": attention_kernels(step)}
    seconds: dict[str, list[float]] = {side: [] for side in steps}
    losses = {}
    for _ in range(rounds):
        for side, step in steps.items():
            losses[side], duration = timed(base.device, step)
            seconds[side].append(duration)
    first = next(iter(steps))
    for side, result in results.items():
        result["step_s"] = quartiles(seconds[side])
        result["to_padded"] = result["step_s"]["median"] / results[first]["step_s"]["median"]
        result["apart"] = abs(losses[side] / losses[first] - 1)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--answer-length", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--json", metavar="OUT", help="write the figures to this file")
    args = parser.parse_args()

    model, tokenizer = load_model(args.model)
    data = {"query": load_queries(DEMO / "train_queries.jsonl")[: args.batch_size]}
    prompt = prompt_of_length(tokenizer, 300)  # the student does not read it
    with tempfile.TemporaryDirectory() as folder, freed_memory_kept(model.device):
        ours = Ours(model, tokenizer, prompt, data, args.answer_length, args.batch_size, args.seed, folder)
        sides = measure(ours, args.rounds, args.batch_size)
    for side, result in sides.items():
        print(
            f"{side}: {result['positions']} positions, {1e3 * result['step_s']['median']:.1f} ms, "
            f"{result['to_padded']:.2f} of the padded; loss {result['apart']:.1e} apart; {', '.join(result['kernels'])}"
        )
    write_report(args, model.device, sides=sides)


if __name__ == "__main__":
    main()
