"""
What moving a [BE] row to another precision of its base model costs.

For each precision of the base, the teacher is that same model with the full prompt, which is what its users would compare
with: KL(full prompt || [BE]) and KL(full prompt || no prompt) over the same answers, those that the float32 model gives
greedily with the full prompt. "drift" is what the precision does by itself: KL of the full prompt's float32 distributions
to the full prompt's in this precision.

`q8_0` and `q4_0` are the values of a GGUF file: the weights are rounded to its blocks and unpacked again (the embedding to
Q8_0 in both). `int8` and `nf4` are bitsandbytes: LLM.int8, which rounds activations too, and 4-bit with float32 arithmetic.
With `--train-steps`, two further rows are trained with the same settings, on float32 and on nf4, whose weights are unpacked
for the training, and each is measured on every base.

Example: `python benchmarks/precision.py my-adapter --prompt prompt.txt --queries held_out.jsonl --json precision.json`
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from pathlib import Path

import torch
from common import write_report
from peft import PeftModel
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

from peft_be import PromptRenderer, compress_prompt, load_model, load_prompt, load_queries
from peft_be.adapters.load import read_adapter
from peft_be.losses import OutputHead, divergence
from peft_be.teacher import AnswerSettings, answer_states, generate_answers, share_prefix


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
QUANTISED = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32},
    "int8": {"load_in_8bit": True},
}
BLOCKS = {"q8_0": "Q8_0", "q4_0": "Q4_0"}
# CPUs without bfloat16 units need minutes for the 16-bit ones: the others come first
PRECISIONS = ("float32", *QUANTISED, *BLOCKS, "bfloat16", "float16")


def load(model: str, precision: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model in a precision, and its tokenizer."""
    config = BitsAndBytesConfig(**QUANTISED[precision]) if precision in QUANTISED else None
    base, tokenizer = load_model(model, dtype=DTYPES.get(precision, torch.float32), quantization_config=config)
    if precision in BLOCKS:
        round_to_blocks(base, BLOCKS[precision])
    return base, tokenizer


@torch.no_grad()
def round_to_blocks(model: PreTrainedModel, kind: str) -> None:
    """Give the weights the values that they have in a GGUF file of that kind."""
    from gguf import GGMLQuantizationType, quants

    table = model.get_input_embeddings().weight
    for weight in model.parameters():
        if weight.ndim == 2:
            block = GGMLQuantizationType["Q8_0" if weight is table else kind]
            rounded = quants.dequantize(quants.quantize(weight.cpu().numpy(), block), block)
            weight.copy_(torch.from_numpy(rounded))


def log_probabilities(hidden: torch.Tensor, head: OutputHead) -> torch.Tensor:
    return torch.cat([head.logits(chunk).log_softmax(-1) for chunk in hidden.split(head.chunk_size)])


@torch.no_grad()
def measure(
    base: PreTrainedModel, renderer: PromptRenderer, queries: list, answers: list, rows: dict, adapter: Path
) -> tuple[dict, torch.Tensor]:
    """The KLs of one base, and the log-probabilities `[N, V]` of its answers with the full prompt."""
    model = PeftModel.from_pretrained(base, adapter).eval()
    head = OutputHead(base)

    def hidden(render) -> torch.Tensor:
        prompts = [render(query) for query in queries]
        states = answer_states(base, prompts, answers, prefix=share_prefix(base, prompts))
        return torch.cat([state.hidden for state in states])

    full = hidden(renderer.full)

    def kl(render) -> float:
        return divergence(hidden(render), full, head).double().mean().item()

    no_prompt, result = kl(renderer.no_prompt), {}
    for name, row in rows.items():
        model.base_model.set_rows("default", row)
        value = kl(renderer.be)
        result[name] = {"kl": value, "kl_gap_closed": 1 - value / no_prompt}
    return {"kl_no_prompt": no_prompt, "rows": result}, log_probabilities(full, head)


def train(model: str, precision: str, prompt, queries: list, steps: int, length: int, seed: int) -> torch.Tensor:
    base, tokenizer = load(model, precision)
    if precision in QUANTISED:
        base = base.dequantize()
    with tempfile.TemporaryDirectory() as folder:
        result = compress_prompt(
            prompt, queries, Path(folder) / "adapter", model=base.requires_grad_(False), tokenizer=tokenizer, seed=seed,
            max_steps=steps, eval_steps=steps, save_steps=steps, max_answer_length=length,
        )  # fmt: skip
        return result.model.base_model.get_rows("default").float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--queries", required=True, help="held-out queries")
    parser.add_argument("--model", help="base model, by default that of the adapter")
    parser.add_argument("--max-queries", type=int, default=24)
    parser.add_argument("--answer-length", type=int, default=32)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--train-steps", type=int, default=0, help="length of the two further trainings")
    parser.add_argument("--train-queries", help="their queries")
    parser.add_argument("--max-train-queries", type=int, default=96)
    parser.add_argument("--seed", type=int, default=42, help="of the trainings")
    parser.add_argument("--json", metavar="OUT", help="write the figures to this file")
    args = parser.parse_args()

    adapter, config = read_adapter(args.adapter)
    name = args.model or config.base_model_name_or_path
    prompt, queries = load_prompt(args.prompt), load_queries(args.queries)[: args.max_queries]
    base, tokenizer = load(name, "float32")
    renderer = PromptRenderer.for_adapter(config, tokenizer, prompt)
    prompts = [renderer.full(query) for query in queries]
    settings = AnswerSettings(max_new_tokens=args.answer_length)
    found = generate_answers(base, prompts, settings, tokenizer.pad_token_id or 0, prefix=share_prefix(base, prompts))
    answers = [answer.ids for answer in found]

    model = PeftModel.from_pretrained(base, adapter)
    rows = {"the adapter": model.base_model.get_rows("default").float()}
    rounded = {
        f"the adapter, stored in {dtype}": rows["the adapter"].to(DTYPES[dtype]).float()
        for dtype in ("bfloat16", "float16")
    }
    del base, model
    if args.train_steps:
        asked = load_queries(args.train_queries)[: args.max_train_queries]
        for precision in ("float32", "nf4"):
            label = f"{args.train_steps} steps on {precision}"
            rows[label] = train(name, precision, prompt, asked, args.train_steps, args.answer_length, args.seed)
            print(f"{label}: done", flush=True)

    results, reference = {}, None
    for precision in dict.fromkeys(["float32", *args.precisions]):
        base, _ = load(name, precision)
        measured = rows | rounded if precision == "float32" else rows
        results[precision], log_p = measure(base, renderer, queries, answers, measured, adapter)
        reference = log_p if reference is None else reference
        drift = (reference.exp() * (reference - log_p)).sum(-1).double().mean().item()
        results[precision]["drift"] = drift
        row = results[precision]["rows"]
        print(
            f"{precision:<10} drift {drift:.4f}  no prompt {results[precision]['kl_no_prompt']:.4f}  "
            + "  ".join(f"{label}: {value['kl']:.4f} ({value['kl_gap_closed']:.3f})" for label, value in row.items()),
            flush=True,
        )
        write_report(args, base.device, num_answer_tokens=sum(map(len, answers)), results=results)
        del base, log_p
        gc.collect()


if __name__ == "__main__":
    main()
