"""
The cells of the paper's tables, for `research/study.py`: see README.md beside this file.

Example:

    python examples/paper/cells.py --model meta-llama/Llama-3.2-1B-Instruct --ae llama-1b-ae --prompts prompts > cells.jsonl
    python research/study.py cells.jsonl results.jsonl
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path


# Learning rates of the authors' scripts; a folder's name begins with the kind of its prompt
LEARNING_RATES = {"role": 0.1, "dialogue": 0.01, "gsm8k": 0.001}
PAPER_STEPS = 3000
RECONSTRUCTIONS = {"no reconstruction": {}, "w/o [AE]": {"use_ae_token": False}, "with [AE]": {}}


def table_1() -> list[tuple[str, str, dict]]:
    """Variant, method and arguments of all methods: table 1."""
    names = {
        "none": "No System Prompt",
        "full": "Full System Prompt",
        "memory-token": "Memory Token",
        "soft-prompt": "Soft Prompt",
        "soft-prompt:4": "Soft Prompt (4 Tokens)",
        "soft-prompt:16": "Soft Prompt (16 Tokens)",
        "be-paper": "[BE] Token",
        "be": "[BE], default recipe of peft_be",
    }
    return [(name, method, {}) for method, name in names.items()]


def table_2() -> list[tuple[str, str, dict]]:
    """Every pair of reconstruction and alignment but the one with neither: table 2."""
    cells = []
    for reconstruction, alignment in itertools.product(RECONSTRUCTIONS, ("none", "PT", "KD")):
        weight = {"none": 0.0, "PT": 0.9, "KD": 0.9}[alignment]
        if reconstruction == "no reconstruction":
            if alignment == "none":
                continue
            weight = 1.0
        args = {"kd_weight": weight, "hard_labels": alignment == "PT", **RECONSTRUCTIONS[reconstruction]}
        cells.append((f"{reconstruction} + {alignment}", "be-paper", args))
    return cells


def figure_3() -> list[tuple[str, str, dict]]:
    """lambda of Eq. 4: figure 3."""
    return [(f"lambda {weight}", "be-paper", {"kd_weight": weight}) for weight in (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)]


TABLES = {"1": table_1, "2": table_2, "figure3": figure_3}


def cells(args: argparse.Namespace) -> list[dict]:
    found = []
    folders = sorted(path.parent for path in args.prompts.glob("*/prompt.*"))
    if not folders:
        raise SystemExit(f"There is no prompt in '{args.prompts}': it needs folders with prompt.txt or prompt.json.")
    for folder in folders:
        kind = folder.name.partition("-")[0]
        if kind not in LEARNING_RATES:
            raise SystemExit(f"'{folder.name}' must begin with one of {', '.join(LEARNING_RATES)}, and a dash.")
        files = {
            "prompt": next(folder.glob("prompt.*")),
            "queries": folder / "train.jsonl",
            "test_queries": folder / "test.jsonl",
        }
        shared = {name: str(path.resolve()) for name, path in files.items()}
        task = folder / "task.json"
        if task.exists():
            shared["task"] = json.loads(task.read_text())
            shared["task"]["path"] = str((folder / shared["task"]["path"]).resolve())
        for table, seed in itertools.product(args.tables, range(42, 42 + args.seeds)):
            for variant, method, settings in TABLES[table]():
                if method in ("none", "full") and seed > 42:
                    continue
                own = {"model": args.model, "max_answer_length": args.max_answer_length, **settings}
                if method == "be-paper":
                    own["learning_rate"] = LEARNING_RATES[kind]
                    if args.ae and own.get("use_ae_token", True) and own.get("kd_weight", 0.9) < 1:
                        own["ae"] = str(args.ae)
                variant = f"{folder.name}, table {table}: {variant}".replace("table figure3", "figure 3")
                cell = {"variant": variant, "method": method, "seed": seed, "args": own, **shared}
                if method not in ("none", "full"):
                    cell["max_steps"] = args.max_steps
                found.append(cell)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Hub id or a folder")
    parser.add_argument("--ae", help="folder of the backbone's [AE] adapter, from peft-be pretrain-ae")
    parser.add_argument("--prompts", type=Path, required=True, help="folder with a folder for each prompt")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=["1"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--max-steps", type=int, default=PAPER_STEPS)
    parser.add_argument("--max-answer-length", type=int, default=64)
    for cell in cells(parser.parse_args()):
        print(json.dumps(cell))


if __name__ == "__main__":
    main()
