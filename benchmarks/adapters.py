"""
Generation with one adapter for the whole batch, and with another one for each row, by turns in one run.

All rows ask the same query and decode the same number of tokens, so that both sides do the same work; `adapter_names`
chooses the row of each request.

Example: `python benchmarks/adapters.py --adapters 64 --json adapters.json`
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from peft import get_peft_model

from peft_be.machine.versions import machine, versions
from peft_be.models import load_model
from peft_be.prompting import PromptRenderer
from peft_be.tuner import BETokenConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--adapters", type=int, default=64, help="adapters, and requests in a batch")
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--json", metavar="OUT", help="write the figures to this file")
    args = parser.parse_args()

    model, tokenizer = load_model(args.model)
    config = BETokenConfig.for_tokenizer(tokenizer, model.get_input_embeddings().num_embeddings)
    names = [f"prompt-{i}" for i in range(args.adapters)]
    model = get_peft_model(model, config, adapter_name=names[0])
    torch.manual_seed(args.seed)
    for name in names:
        if name != names[0]:
            model.add_adapter(name, config)
        rows = model.base_model.get_rows(name)
        model.base_model.set_rows(name, torch.randn_like(rows))
    model.set_adapter(names[0])
    model.eval()

    query = "What would you like to talk about today, and why?"
    prompt = PromptRenderer.for_adapter(model.peft_config[names[0]], tokenizer).be(query)
    ids = torch.tensor([prompt] * args.adapters, device=model.device)
    sides = {"one adapter": {}, "an adapter for each row": {"adapter_names": names}}
    speed: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(args.rounds + 1):
        for side, extra in sides.items():
            start = time.perf_counter()
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=args.new_tokens,
                min_new_tokens=args.new_tokens,
                do_sample=False,
                **extra,
            )
            if number:  # the first round warms up
                speed[side].append(ids.shape[0] * args.new_tokens / (time.perf_counter() - start))
    one, mixed = speed.values()
    ratio = statistics.median(b / a for a, b in zip(one, mixed))
    for side, values in speed.items():
        print(f"{side}: {statistics.median(values):.0f} tokens/s ({min(values):.0f} to {max(values):.0f})")
    print(f"median ratio over {args.rounds} rounds: {ratio:.3f}")
    if args.json:
        report = {
            "args": {key: value for key, value in vars(args).items() if key != "json"},
            "tokens_per_s": speed,
            "ratio": ratio,
            "machine": machine(model.device),
            "versions": versions(),
        }
        Path(args.json).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
