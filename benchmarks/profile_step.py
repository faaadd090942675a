"""
Where the time of a training step goes: the plain loop of the paper's authors and this package, side by side.

Two tables, each in shares of the side's own time, from separate steps:

- parts, by the clock and without a profiler: what the teacher, the student's forwards, the losses, the backward pass and the
  optimizer take. The reference's student and teacher make their logits inside the model, ours outside, in the loss head,
  which also forms the gradient of the hidden states;
- groups of operators, by torch.profiler: matrix products, attention kernels, everything else over the vocabulary (softmax,
  exponentials, sums), other element-wise work, copies, the rest, and what runs outside of operators: Python, and the
  profiler's own work.

Settings are those of `training.py`: batches of 8 for ours, one query a step for the reference.

Example: `python benchmarks/profile_step.py --prompt-tokens 300 --json profile.json`
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections import defaultdict
from functools import wraps

import torch
from common import synchronize, write_report
from reference import Reference
from torch.profiler import ProfilerActivity, profile
from training import Ours, build

from peft_be.machine.memory import freed_memory_kept
from peft_be.models import load_model


GROUPS = ("matrix products", "attention", "over the vocabulary", "other element-wise", "copies", "the rest", "outside")
# Without `aten::` and the underscore of in-place operators
_MATRIX = re.compile(r"(add|b|badd)?mm|addmv|mv|dot|mkldnn_linear|_?linear|_scaled_mm|_addmm_activation")
_ATTENTION = re.compile(r".*attention.*")
_COPIES = re.compile(r"copy|cat|stack|clone|contiguous|_to_copy|index_select|gather|index|index_put|embedding")
_ELEMENT_WISE = re.compile(
    r"(add|sub|rsub|mul|div|neg|pow|r?sqrt|exp|log|sin|cos|tanh|sigmoid|silu|gelu|relu|abs|maximum|minimum|max|min|amax"
    r"|clamp|where|masked_fill|eq|ne|lt|le|gt|ge|logical_\w+|bitwise_\w+|sum|mean|norm|linalg_vector_norm|\w*softmax"
    r"|fill|zero|lerp|addcmul|addcdiv|logaddexp|foreach_\w+|fused_\w+|_fused_rms_norm|rms_norm)(_backward\w*)?(_data)?"
)


def group_of(name: str, shapes: list, vocab_size: int) -> str:
    """The group of an operator, by its name and the shapes of its inputs."""
    name = name.removeprefix("aten::").rstrip("_")
    if _MATRIX.fullmatch(name):
        return "matrix products"
    if _ATTENTION.fullmatch(name):
        return "attention"
    if _COPIES.fullmatch(name):
        return "copies"
    if any(isinstance(shape, (list, tuple)) and shape and shape[-1] == vocab_size for shape in shapes):
        return "over the vocabulary"
    return "other element-wise" if _ELEMENT_WISE.fullmatch(name.lstrip("_")) else "the rest"


def profile_groups(step, steps: int, vocab_size: int, device: torch.device) -> dict:
    """Seconds of each group of operators in a step, a mean over `steps`."""
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])
    with profile(activities=activities, record_shapes=True) as profiler:
        start = time.perf_counter()
        for _ in range(steps):
            step()
        synchronize(device)
        wall = time.perf_counter() - start
    seconds, rest = dict.fromkeys(GROUPS, 0.0), defaultdict(float)
    for event in profiler.key_averages(group_by_input_shape=True):
        own = (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e6 / steps
        group = group_of(event.key, event.input_shapes or [], vocab_size)
        seconds[group] += own
        if group == "the rest":
            rest[event.key] += own
    seconds["outside"] = max(0.0, wall / steps - sum(seconds.values()))
    largest = dict(sorted(rest.items(), key=lambda item: -item[1])[:5])
    return {"step_s": wall / steps, "seconds": seconds, "largest_of_the_rest_s": largest}


class Parts:
    """A clock for methods: the time in each, without that in others that it calls."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, float] = {}
        self._inner: list[float] = []

    def watch(self, owner, method: str, part: str) -> None:
        """Count the time in `owner.method(...)` as `part`."""
        inner = getattr(owner, method)
        self.seconds.setdefault(part, 0.0)

        @wraps(inner)
        def outer(*args, **kwargs):
            synchronize(self.device)
            start = time.perf_counter()
            self._inner.append(0.0)
            try:
                return inner(*args, **kwargs)
            finally:
                synchronize(self.device)
                duration = time.perf_counter() - start
                self.seconds[part] += duration - self._inner.pop()
                if self._inner:
                    self._inner[-1] += duration

        setattr(owner, method, outer)


def watch(job: Reference | Ours, device: torch.device) -> Parts:
    parts = Parts(device)
    if isinstance(job, Reference):
        parts.watch(job, "answer", "teacher writes")
        parts.watch(job, "teach", "teacher reads")
        parts.watch(job, "distil", "student, with logits and loss")
        parts.watch(job, "reconstruct", "reconstruction, with logits and loss")
    else:
        parts.watch(job, "loss", "loss head")
        # What compute_loss calls: the rest of its time is the loss head's
        parts.watch(job.trainer.model, "forward", "student")
    parts.watch(job, "backward", "backward")
    parts.watch(job, "update", "optimizer")
    return parts


def measure(job: Reference | Ours, steps: int, device: torch.device, vocab_size: int) -> dict:
    job.step()  # warm up
    groups = profile_groups(job.step, steps, vocab_size, device)
    parts = watch(job, device)
    start = time.perf_counter()
    tokens = sum(job.step() for _ in range(steps))
    synchronize(device)
    wall = (time.perf_counter() - start) / steps
    seconds = {part: value / steps for part, value in parts.seconds.items()}
    seconds["other"] = wall - sum(seconds.values())
    return {"answer_tokens_per_step": tokens / steps, "step_s": wall, "parts_s": seconds, "profiled": groups}


def table(results: dict[str, dict]) -> str:
    """Markdown: the operators' groups of both sides, and the parts of each."""
    lines = ["| group | " + " | ".join(results) + " |", "|---" * (len(results) + 1) + "|"]
    for group in GROUPS:
        cells = []
        for result in results.values():
            seconds = result["profiled"]["seconds"]
            cells.append(f"{seconds[group]:.3f} s, {100 * seconds[group] / sum(seconds.values()):.1f} %")
        lines.append(f"| {group} | {' | '.join(cells)} |")
    steps = [f"{result['profiled']['step_s']:.3f} s ({result['step_s']:.3f} s without)" for result in results.values()]
    lines.append(f"| a step under the profiler | {' | '.join(steps)} |")
    for side, result in results.items():
        lines += ["", f"| part of {side} | s | share |", "|---|---|---|"]
        for part, seconds in result["parts_s"].items():
            lines.append(f"| {part} | {seconds:.3f} | {100 * seconds / result['step_s']:.1f} % |")
        lines.append(f"| a step, {result['answer_tokens_per_step']:.0f} answer tokens | {result['step_s']:.3f} | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--prompt-tokens", type=int, default=1100)
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--answer-length", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8, help="answers in a step of ours")
    parser.add_argument("--sides", nargs="+", choices=("reference", "ours"), default=["reference", "ours"])
    parser.add_argument("--steps", type=int, default=3, help="of each side, under the profiler and once more without")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--json", metavar="OUT", help="write the figures to this file")
    args = parser.parse_args()

    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for side in args.sides:
            model, tokenizer = load_model(args.model)
            vocab_size = model.get_input_embeddings().num_embeddings
            job = build(side, model, tokenizer, args.prompt_tokens, args, folder)
            with freed_memory_kept(model.device):
                results[side] = measure(job, args.steps, model.device, vocab_size)
    print(table(results))
    write_report(args, model.device, results=results)


if __name__ == "__main__":
    main()
