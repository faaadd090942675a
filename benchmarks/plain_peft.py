"""
Greedy answers with a LoRA adapter in plain PEFT, in a process that never imports `peft_be`.

Example:

    python benchmarks/plain_peft.py --lora lora/pirate --model SmolLM2-135M-Instruct --chats chats.json --answers answers.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lora", required=True, metavar="FOLDER")
    parser.add_argument("--model", required=True, help="its base model")
    parser.add_argument("--chats", required=True, metavar="FILE", help="JSON, a list of chats")
    parser.add_argument("--answers", required=True, metavar="FILE", help="where to write the ids of the answers")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    base = AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype))
    model = PeftModel.from_pretrained(base, args.lora).eval()
    answers = []
    for chat in json.loads(Path(args.chats).read_text()):
        inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        written = model.generate(**inputs, do_sample=False, max_new_tokens=args.max_new_tokens)
        answers.append(written[0, inputs["input_ids"].shape[1] :].tolist())
    if "peft_be" in sys.modules:
        raise RuntimeError("Something imported peft_be: the figures would say nothing about plain PEFT.")
    Path(args.answers).write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
