"""
What time and memory of a distillation step depend on: one axis at a time around a default point.

Axes: P's length (`prompt`), answer length (`answer`), number of training queries (`queries`), vocabulary (`vocab`) and the
number k of [BE] rows (`rows`). The step is the one of `BEDistillTrainer` with the default recipe: loss, backward, optimizer.
Queries are cut or repeated to one length and have gold answers of exactly `--answer-length` tokens, so that all steps of an
axis compute batches of one shape and the teacher need not write.

The trainers of an axis are built first, each on a model of its own, and step by turns: medians and quartiles. Vocabularies
other than the model's belong to random models of the same architecture. Peak memory is what comes on
top of the loaded model, with the teacher's work. On the CPU, a process of its own measures it. The vocabulary's axis also has
the peak of three other steps on the same batches:

- `ours, checkpointing`: with `gradient_checkpointing=True`;
- `plain`: the step as it is mostly written: the teacher's forward over prompt, query and answer, its logits for the answer's
  tokens, the student's logits at all positions, softmax, KL and gradients by autograd;
- `plain, answers`: the same with the student's logits for the answer's tokens only.

Example: `python benchmarks/scaling.py --axes vocab rows --json scaling.json`
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from common import default_device, in_own_process, peak, quartiles, start_of_peak, timed, write_report
from reference import DEMO, prompt_of_length, text_of_length
from training import Ours
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from peft_be.data import load_queries
from peft_be.machine.memory import freed_memory_kept
from peft_be.models import fastest_dtype, load_model, resolve_model
from peft_be.prompting import PromptRenderer, load_prompt


# Axis: the option that it moves, and its values
AXES = {
    "prompt": ("prompt_tokens", [300, 1100, 4000]),
    "answer": ("answer_length", [16, 32, 64, 128]),
    "queries": ("queries", [32, 64, 128]),
    "vocab": ("vocab_size", [49152, 98304, 151936, 262144]),
    "rows": ("num_be_tokens", [1, 4, 16]),
}
QUERY_TOKENS = 24
SIDES = ("ours", "ours, checkpointing", "plain", "plain, answers")


def make_model(args: argparse.Namespace):
    """The model, or a random one of its architecture with `args.vocab_size` tokens; and the tokenizer."""
    path = resolve_model(args.model)
    config = AutoConfig.from_pretrained(path)
    if args.vocab_size in (None, config.vocab_size):
        return load_model(args.model)
    device = str(default_device())
    config.vocab_size = args.vocab_size
    torch.manual_seed(args.seed)
    with torch.device(device):  # where random numbers are quickest made
        model = AutoModelForCausalLM.from_config(config, dtype=fastest_dtype(device))
    return model.eval().requires_grad_(False), AutoTokenizer.from_pretrained(path)


def make_data(tokenizer, args: argparse.Namespace) -> dict[str, list[str]]:
    """`--queries` queries of one length, and gold answers that are longer than all that is kept of them."""
    queries = load_queries(DEMO / "train_queries.jsonl")[: args.queries]
    prompt = load_prompt(DEMO / "prompt.txt")
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    answers = [tokenizer.decode(ids[i % len(ids) :]) + prompt for i in range(len(queries))]
    return {"query": [text_of_length(tokenizer, query, QUERY_TOKENS) for query in queries], "answer": answers}


def make_ours(model, tokenizer, args: argparse.Namespace, folder: str) -> Ours:
    prompt, data = prompt_of_length(tokenizer, args.prompt_tokens), make_data(tokenizer, args)
    return Ours(
        model, tokenizer, prompt, data, args.answer_length, args.batch_size, args.seed, folder, args.num_be_tokens
    )


class Plain:
    """
    The same step, written plainly: full logits, and autograd through softmax and KL. `step()` is the trainer's otherwise.

    Args:
        all_positions (`bool`): whether the student's logits are made at all positions, or for the answers' tokens only.
    """

    def __init__(self, ours: Ours, tokenizer, prompt: str, all_positions: bool):
        self.ours, self.all_positions = ours, all_positions
        self.model = ours.trainer.model
        self.pad = tokenizer.pad_token_id or 0
        adapter = self.model.peft_config[self.model.active_adapter]
        renderer = PromptRenderer.for_adapter(adapter, tokenizer, prompt)
        self.full = {tuple(renderer.be(query)): renderer.full(query) for query in ours.queries}

    def teacher_batch(self, inputs: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids with the full prompt instead of [BE], padded on the right, and which positions predict the answers."""
        rows, starts, lengths = [], [], []
        for ids, labels in zip(inputs["input_ids"].tolist(), inputs["labels"].tolist()):
            start = next(i for i, label in enumerate(labels) if label != -100)
            answer = [label for label in labels if label != -100]
            full = self.full[tuple(ids[:start])]
            rows.append(full + answer)
            starts.append(len(full))
            lengths.append(len(answer))
        width = max(map(len, rows))
        ids = torch.tensor([row + [self.pad] * (width - len(row)) for row in rows])
        predicting = torch.zeros(ids.shape, dtype=torch.bool)
        for i, (start, length) in enumerate(zip(starts, lengths)):
            predicting[i, start - 1 : start - 1 + length] = True
        return ids.to(inputs["input_ids"].device), predicting.to(inputs["input_ids"].device)

    def loss(self, inputs: dict) -> torch.Tensor:
        decoder, temperature = self.model.get_base_model().get_decoder(), self.ours.trainer.args.temperature
        with torch.no_grad():
            ids, predicting = self.teacher_batch(inputs)
            teacher = self.ours.trainer._head.logits(decoder(input_ids=ids, use_cache=False)[0][predicting])
            teacher = F.log_softmax(teacher / temperature, dim=-1)
        predicting = inputs["labels"].roll(-1, dims=1) != -100
        if self.all_positions:
            student = self.model(input_ids=inputs["input_ids"], use_cache=False).logits[predicting]
        else:
            hidden = decoder(input_ids=inputs["input_ids"], use_cache=False)[0]
            student = self.ours.trainer._head.logits(hidden[predicting])
        student = F.log_softmax(student.float() / temperature, dim=-1)
        return F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1).mean()

    def step(self) -> int:
        inputs = next(self.ours.batches)
        self.ours.backward(self.loss(inputs))
        self.ours.update()
        return len(inputs["teacher_hidden"])


def make_side(side: str, model, tokenizer, args: argparse.Namespace, folder: str) -> Ours | Plain:
    ours = make_ours(model, tokenizer, args, folder)
    if side == "ours, checkpointing":
        ours.trainer.model.gradient_checkpointing_enable()
    if side.startswith("ours"):
        return ours
    return Plain(ours, tokenizer, prompt_of_length(tokenizer, args.prompt_tokens), side == "plain")


def at(args: argparse.Namespace, name: str, value: int) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(args), name: value})


def time_axis(name: str, values: list[int], args: argparse.Namespace) -> list[dict]:
    """Seconds of a step of ours for each value, by turns."""
    with tempfile.TemporaryDirectory() as folder:
        jobs = {}
        for value in values:
            point = at(args, name, value)
            jobs[value] = make_ours(*make_model(point), point, str(Path(folder) / str(value)))
            device = jobs[value].trainer.model.device
        seconds: dict[int, list[float]] = {value: [] for value in values}
        with freed_memory_kept(device):
            for number in range(args.rounds + 1):
                for value, job in jobs.items():
                    duration = timed(device, job.step)[1]
                    if number:  # the first round warms up
                        seconds[value].append(duration)
        return [
            {
                name: value,
                "positions": next(job.batches)["input_ids"].numel(),
                "teacher_s": job.teacher_seconds,
                "step_s": quartiles(seconds[value]),
            }
            for value, job in jobs.items()
        ]


def measured_peak(side: str, point: argparse.Namespace) -> int:
    """Bytes above the loaded model that two steps need, the teacher's work included."""
    model, tokenizer = make_model(point)
    before = start_of_peak(model)
    with tempfile.TemporaryDirectory() as folder, freed_memory_kept(model.device):
        job = make_side(side, model, tokenizer, point, folder)
        for _ in range(2):
            job.step()
        return peak(model.device) - before


def peak_memory(side: str, point: argparse.Namespace) -> int:
    """
    Bytes above the loaded model. On the CPU in a process of its own, for a process keeps freed memory; a GPU's memory is
    counted by torch, tensor by tensor.
    """
    if default_device().type == "cuda":
        gc.collect()
        return measured_peak(side, point)
    names = ("model", "prompt_tokens", "answer_length", "num_be_tokens", "batch_size", "queries", "seed")
    options = {name: getattr(point, name) for name in names}
    if point.vocab_size is not None:
        options["vocab_size"] = point.vocab_size
    return in_own_process(__file__, {"only": side, **options})


def show(axis: str, name: str, results: list[dict]) -> None:
    print(f"{axis}:")
    first = results[0]
    for result in results:
        parts = []
        if "step_s" in result:
            q1, median, q3 = (1e3 * result["step_s"][key] for key in ("q1", "median", "q3"))
            ratio = result["step_s"]["median"] / first["step_s"]["median"]
            parts.append(f"{result['positions']} positions, {median:.0f} ms [{q1:.0f}, {q3:.0f}], {ratio:.2f} x")
        if "peak_bytes" in result:
            peaks = result["peak_bytes"]
            ratio = peaks["ours"] / first["peak_bytes"]["ours"]
            parts.append(f"peak {peaks['ours'] / 1e6:.0f} MB, {ratio:.2f} x")
            parts += [f"{side} {peaks[side] / 1e6:.0f} MB" for side in SIDES[1:] if side in peaks]
            if "plain" in peaks:
                ratios = (f"{peaks[side] / peaks['plain']:.2f}" for side in SIDES[:2])
                parts.append(f"of the plain one: {', with checkpointing '.join(ratios)}")
        print(f"  {name} {result[name]}: {'; '.join(parts)}", flush=True)
    if name == "vocab_size" and "peak_bytes" in first and len(results) > 1:
        peaks = {side: [result["peak_bytes"][side] for result in results] for side in first["peak_bytes"]}
        growth = ", ".join(f"{side} {(values[-1] - values[0]) / 1e6:.0f}" for side, values in peaks.items())
        print(f"  growth of the peak from the smallest V to the largest, MB: {growth}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    for axis, (_, values) in AXES.items():
        parser.add_argument(f"--{axis}-values", type=int, nargs="+", default=values, metavar="N")
    parser.add_argument("--prompt-tokens", type=int, default=300, help="at the default point, as the next three")
    parser.add_argument("--answer-length", type=int, default=32)
    parser.add_argument("--queries", type=int, default=32)
    parser.add_argument("--num-be-tokens", type=int, default=1)
    parser.add_argument("--vocab-size", type=int, help="of a random model; the model's own by default")
    parser.add_argument("--batch-size", type=int, default=8, help="answers in a step")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--no-memory", action="store_true", help="step times only")
    parser.add_argument("--no-times", action="store_true", help="peak memory only")
    parser.add_argument("--only", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--json", metavar="OUT", help="write the figures to this file")
    args = parser.parse_args()

    if args.only:
        print(measured_peak(args.only, args))
        return

    device = default_device()
    report: dict[str, list[dict]] = {}
    for axis in args.axes:
        name, values = AXES[axis][0], getattr(args, f"{axis}_values")
        sides = SIDES if axis == "vocab" else ("ours",)
        results = [{name: value} for value in values] if args.no_times else time_axis(name, values, args)
        gc.collect()
        if not args.no_memory:
            for result in results:
                point = at(args, name, result[name])
                result["peak_bytes"] = {side: peak_memory(side, point) for side in sides}
        report[axis] = results
        show(axis, name, results)
        write_report(args, device, axes=report)


if __name__ == "__main__":
    main()
