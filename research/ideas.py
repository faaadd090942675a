"""
Ideas for the recipe that the package does not have, each against the default recipe: validation KL after as many steps.

- `hidden states first`: a quarter of the steps matches the teacher's final hidden states, before the KL is minimised;
- `first tokens`: the first 8 tokens of an answer count three times;
- `larger half`: the half of a batch's tokens with the larger KL counts three times the other (after SFT-GO's group loss);
- `smaller half`: the other way round, so that tokens that the row cannot hold anyway disturb less;
- `second half, teacher's answers` and `second half, student's answers`: the second half of the steps is a training of its own
  that starts from the rows of the first, on the same answers or on those that the student writes by then alone (on-policy);
- `original answers`: the KL along the data's own answers instead of the teacher's (the teacher choice of the paper's
  figure 3), for prompts whose training queries have some.

What is chosen here is measured on validation queries only. Finished runs are skipped.

Example:

    python research/prompts.py shared/data research/prompts
    python research/ideas.py research/results/ideas.jsonl --prompts research/prompts/role-jack-sparrow --seeds 42 43
    python research/ideas.py research/results/ideas.jsonl --table
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from records import json_lines

from peft_be import BEDistillConfig, BEDistillTrainer
from peft_be.adapters.create import add_adapter
from peft_be.comparison.compare import SPLIT_SEED
from peft_be.data import load_queries, split_queries
from peft_be.files import append_record, cache_dir, read_records
from peft_be.machine.versions import machine_of, versions
from peft_be.models import load_model
from peft_be.prompting import load_prompt
from peft_be.teacher import AnswerSettings, generate_answers
from peft_be.training.row_trainer import final_hidden_states, predicting


class HiddenStatesFirst(BEDistillTrainer):
    def _answer_losses(self, model, inputs):
        if self.state.global_step >= self.args.max_steps // 4:
            return super()._answer_losses(model, inputs)
        student, _ = predicting(final_hidden_states(model, inputs), inputs)
        teacher = inputs["teacher_hidden"].float()
        distance = (student.float() - teacher).square().sum(-1) / teacher.square().sum(-1)
        return distance


class FirstTokens(BEDistillTrainer):
    def _answer_losses(self, model, inputs):
        losses = super()._answer_losses(model, inputs)
        is_answer = inputs["labels"][:, 1:] != -100
        weights = torch.where(is_answer.cumsum(1)[is_answer] <= 8, 3.0, 1.0)
        return losses * weights / weights.mean()


class LargerHalf(BEDistillTrainer):
    larger, smaller = 1.5, 0.5

    def _answer_losses(self, model, inputs):
        losses = super()._answer_losses(model, inputs)
        return losses * torch.where(losses > losses.median(), self.larger, self.smaller)


class SmallerHalf(LargerHalf):
    larger, smaller = 0.5, 1.5


ORIGINAL = "original answers"
TRAINERS = {
    "default": BEDistillTrainer,
    "hidden states first": HiddenStatesFirst,
    "first tokens": FirstTokens,
    "larger half": LargerHalf,
    "smaller half": SmallerHalf,
    ORIGINAL: BEDistillTrainer,  # on other data
}
SECOND_HALVES = ("second half, teacher's answers", "second half, student's answers")
IDEAS = (*TRAINERS, *SECOND_HALVES)


def run(idea: str, folder: Path, seed: int, max_steps: int) -> dict:
    model, tokenizer = load_model("smollm2")
    (file,) = folder.glob("prompt.*")
    prompt = load_prompt(file)
    splits = split_queries(load_queries(folder / "train.jsonl"), load_queries(folder / "test.jsonl"), seed=SPLIT_SEED)
    peft_model = add_adapter(model, tokenizer)
    data = {"query": splits.train}, {"query": splits.validation}

    def train(cls: type[BEDistillTrainer], steps: int, **changes) -> BEDistillTrainer:
        with tempfile.TemporaryDirectory() as output:
            settings = {"max_steps": steps, "eval_steps": steps // 4, "save_steps": steps // 4}
            config = BEDistillConfig(
                output, seed=seed, answer_cache_dir=str(cache_dir() / "teacher"), **settings, **changes
            )
            datasets = map(Dataset.from_dict, data)
            trainer = cls(peft_model, config, prompt, *datasets, processing_class=tokenizer)
            trainer.train()
            return trainer

    def curve_of(trainer: BEDistillTrainer) -> list[list[float]]:
        return [[e["step"], e["eval_kl"]] for e in trainer.state.log_history if "eval_kl" in e]

    if idea == ORIGINAL:
        originals = {line["query"]: line.get("answer") for line in json_lines(folder / "train.jsonl")}
        data[0]["answer"] = [originals[query] for query in splits.train]
        if None in data[0]["answer"]:
            raise SystemExit(f"The training queries of '{folder}' have no answers: choose other --ideas or --prompts.")
    if idea in TRAINERS:
        curve = curve_of(train(TRAINERS[idea], max_steps))
    else:
        first = train(BEDistillTrainer, max_steps // 2)
        if idea == SECOND_HALVES[1]:
            prompts = [first.renderers["default"].be(query) for query in splits.train]
            settings = AnswerSettings(max_new_tokens=first.args.max_answer_length)
            answers = generate_answers(peft_model.get_base_model(), prompts, settings, tokenizer.pad_token_id or 0)
            data[0]["answer"] = [answer.ids for answer in answers]
        second = train(BEDistillTrainer, max_steps - max_steps // 2, init=None)
        curve = curve_of(first) + [[max_steps // 2 + step, kl] for step, kl in curve_of(second)]
    return {"curve": curve, "kl": min(kl for _, kl in curve), "machine": machine_of(model), "versions": versions()}


def table(results: list[dict]) -> str:
    groups: dict[tuple[str, str], list[float]] = {}
    for result in results:
        groups.setdefault((result["prompt"], result["idea"]), []).append(result["kl"])
    lines = ["| prompt | idea | seeds | validation KL | range |", "|---|---|---|---|---|"]
    for (prompt, idea), kls in groups.items():
        lines.append(
            f"| {prompt} | {idea} | {len(kls)} | {statistics.mean(kls):.4f} | {min(kls):.4f} to {max(kls):.4f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="finished runs, JSON lines")
    parser.add_argument("--prompts", type=Path, nargs="+", default=[], help="folders that prompts.py wrote")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--max-steps", type=int, default=160)
    parser.add_argument("--ideas", nargs="+", choices=IDEAS, default=IDEAS)
    parser.add_argument("--table", action="store_true", help="print the table only")
    args = parser.parse_args()
    names = ("prompt", "idea", "seed", "max_steps")
    done = {tuple(result[name] for name in names) for result in read_records(args.results)}
    for seed in () if args.table else args.seeds:
        for folder in args.prompts:
            for idea in args.ideas:
                what = (folder.name, idea, seed, args.max_steps)
                if what not in done:
                    print(*what, sep=", ", flush=True)
                    args.results.parent.mkdir(parents=True, exist_ok=True)
                    append_record(args.results, {**dict(zip(names, what)), **run(idea, folder, seed, args.max_steps)})
    print(table(read_records(args.results)))


if __name__ == "__main__":
    main()
