"""Compress a prompt from Python and compare it with the original on held-out queries.

python examples/compress_prompt.py          about 15 minutes on two CPU cores
"""

from pathlib import Path

import peft_be


demo = Path(__file__).parent / "demo"
prompt = peft_be.load_prompt(demo / "prompt.txt")
held_out = peft_be.load_queries(demo / "test_queries.jsonl")

result = peft_be.compress_prompt(
    prompt,
    peft_be.load_queries(demo / "train_queries.jsonl"),
    "lestat",
    test_queries=held_out,
    max_minutes=12,
)
scores, answers = peft_be.evaluate_fidelity(result.model, result.tokenizer, prompt, held_out)
print(f"KL gap closed: {scores['kl_gap_closed']:.3f}, {scores['compression_ratio']:.0f} tokens in one")
for name in ("query", "full", "be", "no_prompt"):
    print(f"{name:>10}: {answers[0][name]}")
