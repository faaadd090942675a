"""
Cost of the input embedding, forward and backward, with a learned row for one token id.

Compares, in one run and by turns:

- `trainable`: a bare `nn.Embedding` that learns, with its dense gradient of shape (V, d);
- `frozen`: a bare frozen `nn.Embedding` whose output takes the gradient, which is the least that any method can do;
- `be_token`: `BETokenEmbedding` of this package;
- `trainable_tokens`: `TrainableTokensLayer` of PEFT.

Example: `python benchmarks/layer.py --vocab 8192 131072 --dim 2048 --json layer.json`

With glibc, set `MALLOC_TRIM_THRESHOLD_=4000000000 MALLOC_MMAP_THRESHOLD_=64000000`, or page faults of fresh outputs
dominate the small figures. The largest size needs 8 GB of memory.
"""

import argparse
import gc
import statistics

import torch
from common import default_device, timed, write_report
from peft import TrainableTokensConfig
from peft.tuners.trainable_tokens import TrainableTokensLayer
from torch import nn

from peft_be.tuner import BETokenConfig, BETokenEmbedding


def make_modules(vocab_size: int, dim: int, token_id: int, device: str) -> dict[str, nn.Module]:
    """The competitors, around one frozen table (the trainable one learns it only while it is timed)."""
    table = nn.Embedding(vocab_size, dim, device=device).requires_grad_(False)
    be_token = BETokenEmbedding(table, "default")
    be_token.update_layer("default", BETokenConfig(be_token_ids=[token_id]))
    trainable_tokens = TrainableTokensLayer(table, "default")
    trainable_tokens.update_layer("default", TrainableTokensConfig(token_indices=[token_id]))
    return {"trainable": table, "frozen": table, "be_token": be_token, "trainable_tokens": trainable_tokens}


def time_step(name: str, module: nn.Module, x: torch.Tensor, gradient: torch.Tensor) -> float:
    """Seconds of one forward and backward."""

    def step() -> None:
        output = module(x)
        if name == "frozen":
            # Takes the gradient without the copy that `backward` makes for a leaf.
            torch.autograd.grad(output.requires_grad_(True), output, gradient)
        else:
            output.backward(gradient)

    if name == "trainable":
        module.weight.requires_grad_(True)
    _, seconds = timed(x.device, step)
    module.zero_grad(set_to_none=True)
    if name == "trainable":
        module.weight.requires_grad_(False)
    return seconds


def measure(vocab_size: int, dim: int, args: argparse.Namespace) -> dict:
    """Median and quartiles, in milliseconds, of each competitor at one size."""
    torch.manual_seed(0)
    token_id = vocab_size // 2
    x = torch.randint(0, vocab_size, (args.batch, args.length), device=args.device)
    x[:, args.length // 4] = token_id  # [BE] once in each sequence
    gradient = torch.randn(args.batch, args.length, dim, device=args.device)
    modules = make_modules(vocab_size, dim, token_id, args.device)

    seconds = {name: [] for name in modules}
    for _ in range(args.rounds + args.warmup):
        for name, module in modules.items():
            seconds[name].append(time_step(name, module, x, gradient))
    milliseconds = {}
    for name, values in seconds.items():
        low, median, high = statistics.quantiles([1e3 * value for value in values[args.warmup :]], n=4)
        milliseconds[name] = {"q1": low, "median": median, "q3": high}
    return {"vocab_size": vocab_size, "dim": dim, "ms": milliseconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, nargs="+", default=[8192, 32768, 131072, 262144])
    parser.add_argument("--dim", type=int, nargs="+", default=[576, 2048])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=512, help="tokens in a sequence")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--device", default=str(default_device()))
    parser.add_argument("--threads", type=int, help="threads on the CPU, by default what torch chooses")
    parser.add_argument("--json", metavar="OUT", help="write the figures to this file")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)

    names = ("trainable", "frozen", "be_token", "trainable_tokens")
    print(f"median [quartiles] ms of forward + backward, {args.batch} x {args.length} tokens, fp32, {args.device}")
    print(f"{'V':>7} {'d':>5}" + "".join(f"{name:>30}" for name in names) + "   be_token / trainable, frozen")
    results = []
    for vocab_size in args.vocab:
        for dim in args.dim:
            result = measure(vocab_size, dim, args)
            results.append(result)
            ms = result["ms"]
            ratios = [ms["be_token"]["median"] / ms[other]["median"] for other in ("trainable", "frozen")]
            result["be_to_trainable"], result["be_to_frozen"] = ratios
            cells = (f"{ms[n]['median']:.2f} [{ms[n]['q1']:.2f}, {ms[n]['q3']:.2f}]" for n in names)
            line = f"{vocab_size:>7} {dim:>5}" + "".join(f"{cell:>30}" for cell in cells)
            print(f"{line}   {ratios[0]:.3f}, {ratios[1]:.2f}", flush=True)
            gc.collect()

            write_report(args, torch.device(args.device), results=results)


if __name__ == "__main__":
    main()
