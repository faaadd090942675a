"""
The prompts of the study, as folders with `prompt.txt` or `prompt.json`, `train.jsonl` and `test.jsonl`: four role prompts of
RoleBench with ten worked answers, GSM8K with eight, the retail policy of tau-bench, and two system prompts of lobe-chat agents.
And `words-*`, the first words of a role prompt, for what depends on its length.

Training and validation queries come from `train.jsonl`; no query of `test.jsonl` is among them. Roles: the benchmark's own split, both
its general and its role-specific questions. GSM8K: its own split. Policy: the scenarios of tau-bench, as they are, since it has no
first messages of users. System prompts: instructions of several sources (see the data's `SOURCES.md`), the same for both.

Example:

    python benchmarks/prompts.py shared/data benchmarks/prompts
    python benchmarks/study.py benchmarks/prompts.jsonl docs/results/prompts.jsonl
"""

from __future__ import annotations

import argparse
import json
import random
import re
from pathlib import Path


ROLES = ("Andrew Detmer", "Jack Sparrow", "Tom Ripley", "Walt Kowalski")
NUM_WORDS = (8, 16, 32, 64, 128, 256, 512)
SYSTEM_PROMPTS = {"feynman": "sp-907", "counselor": "sp-978"}
# Sources of single requests. The others have questions about a text that the query does not hold
REQUESTS = (
    "arena-hard-v0.1",
    "self-instruct-user-oriented",
    "oasst-lottery-250",
    "self-instruct-seed",
    "oasst-en-100",
    "vicuna-bench",
)
NUM_TRAIN, NUM_TEST = 192, 24
LONGEST_QUERY = 400  # characters
SEED = 0


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def roles(data: Path):
    profiles = {profile["role"]: profile for profile in records(data / "rolebench_profiles.jsonl")}
    questions = records(data / "rolebench_queries.jsonl")
    for role in ROLES:
        own = {
            s: [q["question"] for q in questions if (q["role"], q["split"]) == (role, s)] for s in ("train", "test")
        }
        yield f"role-{role.lower().replace(' ', '-')}", profiles[role]["system_long"], own["train"], own["test"]


def lengths(data: Path):
    _, prompt, train, test = next(roles(data))
    words = re.findall(r"\s*\S+", prompt)
    for count in NUM_WORDS:
        yield f"words-{count}", "".join(words[:count]), train, test


def gsm8k(data: Path):
    prompt = json.loads((data / "gsm8k_prompt_cot8_llama_messages.json").read_text())
    splits = [
        [
            prompt["query_template"].replace("{question}", item["question"])
            for item in records(data / f"gsm8k_{name}.jsonl")
        ]
        for name in ("train", "test_dev")
    ]
    yield "gsm8k-8shot", prompt["messages"], *splits


def policy(data: Path):
    scenarios = [task["instruction"] for task in records(data / "tau_retail_tasks.jsonl")]
    yield "policy-retail", (data / "tau_policy_retail.md").read_text(), scenarios, None


def system_prompts(data: Path):
    prompts = {prompt["id"]: prompt["prompt"] for prompt in records(data / "system_prompts.jsonl")}
    requests = [query["query"] for query in records(data / "queries.jsonl") if query["source"] in REQUESTS]
    for name, number in SYSTEM_PROMPTS.items():
        yield f"system-{name}", prompts[number], requests, None


def write(folder: Path, prompt: str | list[dict], train: list[str], test: list[str] | None) -> None:
    """Without test queries, those of `train` are split."""
    rng = random.Random(SEED)
    parts = []
    for queries in (train, test or []):
        queries = sorted({query.strip() for query in queries if len(query) <= LONGEST_QUERY})
        rng.shuffle(queries)
        parts.append(queries)
    train, test = parts if test else (parts[0][NUM_TEST:], parts[0])
    test = test[:NUM_TEST]
    train = [query for query in train if query not in test][:NUM_TRAIN]
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(prompt, str):
        (folder / "prompt.txt").write_text(prompt)
    else:
        (folder / "prompt.json").write_text(json.dumps(prompt, indent=1))
    for name, queries in (("train", train), ("test", test)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"query": query}) + "\n" for query in queries))
    print(f"{folder.name}: {len(train)} training and validation queries, {len(test)} test queries")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder of the shared data")
    parser.add_argument("output", type=Path, help="where the folders go")
    args = parser.parse_args()
    for source in (roles, lengths, gsm8k, policy, system_prompts):
        for name, *content in source(args.data):
            write(args.output / name, *content)


if __name__ == "__main__":
    main()
