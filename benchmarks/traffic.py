"""
Mixed traffic to one vLLM server: many prompts, each in full or as [BE].

A number of clients send requests one after the other, each for a prompt and a question that are drawn at random: the same
ones, in the same order, on every side. Answers have the same length. Each side has a server of its own, and starts with an
empty prefix cache, so that what the first request of each prompt costs is counted, but for `full-warm`.

- full: the prompt as system message, prefix caching on, with memory for the KV of all prompts and with less;
- full, warm: the same after one request for each prompt, which is not counted: the best that a cache can do;
- full, no caching: the same, prefix caching off;
- [BE], merged: a token of a merged checkpoint as the system message;
- [BE], prompt_embeds: the row as the system message, on the unmodified base model;
- [BE], LoRA: an adapter of the input embedding, which the request names, on the unmodified base model. All adapters are in
  memory (`--max-cpu-loras`), and as many in one batch (`--max-loras`) as there are clients, so that no request waits for
  another one's adapter. `be-lora` allows LoRA for the embedding alone (`--lora-target-modules embed_tokens`), `be-lora-all`
  for all modules, as a server with other adapters needs it;
- base: the questions alone, to the base model; `base-lora` and `base-lora-all` ask the same of the base model in the servers
  of `be-lora` and `be-lora-all`: what it costs the base model's own requests that LoRA is on.

The rows are not trained: what is written does not change what it costs.

Example:

    python benchmarks/traffic.py --vllm vllm-env/bin/python --json traffic.json
    python benchmarks/traffic.py --vllm vllm-env/bin/python --prompts 1000 --only full be-merged be-embeds be-lora
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import re
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from common import write_report
from peft import get_peft_model
from reference import DEMO, prompt_of_length
from servers import Server, vllm_server

from peft_be import BETokenConfig, export_lora, export_merged, load_model, load_queries
from peft_be.models import resolve_model
from peft_be.prompting import chat_template_fingerprint, tokenizer_fingerprint
from peft_be.serving.vllm import PromptDirectory


SIDES = ("full", "full-warm", "full-small", "full-uncached", "be-merged", "be-embeds", "be-lora", "be-lora-all")
SIDES += ("base", "base-lora", "base-lora-all")


@dataclass
class Request:
    prompt: int
    question: str


@dataclass
class Side:
    """A server, and what a request sends to it: `body(request)` has its `messages`, and its `model` if not the base."""

    model: str | Path
    options: tuple[str, ...]
    kv_gib: int
    body: Callable[[Request], dict]
    warm: bool = False


def save_adapters(folder: Path, count: int, model_name: str) -> None:
    """`count` adapters with different untrained rows of the usual length."""
    model, tokenizer = load_model(model_name)
    table = model.get_input_embeddings()
    config = BETokenConfig.for_tokenizer(tokenizer, table.num_embeddings)
    config.provenance = {
        "tokenizer_sha256": tokenizer_fingerprint(tokenizer),
        "chat_template_sha256": chat_template_fingerprint(tokenizer),
    }
    model = get_peft_model(model, config)
    rows = 60 * table.weight.std() * torch.randn(count, table.embedding_dim)
    for number, row in enumerate(rows):
        model.base_model.set_rows("default", row.unsqueeze(0))
        model.save_pretrained(folder / f"p{number}")


def answer(server: Server, body: dict, length: int) -> tuple[float, float]:
    """Seconds to the first token and to the last one of a streamed answer of `length` tokens."""
    body = {"model": "base", **body, "temperature": 0, "max_tokens": length, "stream": True}
    start = time.perf_counter()
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
    # One event a token, with its id: special tokens have no text
    body |= {"ignore_eos": True, "return_token_ids": True}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise RuntimeError(f"{response.status}: {response.read()[:500]}")
    first, count = None, 0
    for line in response:
        if line.startswith(b"data: {"):
            choices = json.loads(line[6:])["choices"]
            new = len(choices[0].get("token_ids") or []) if choices else 0
            if new and first is None:
                first = time.perf_counter() - start
            count += new
    connection.close()
    if count != length:
        raise RuntimeError(f"The server wrote {count} tokens, not {length}.")
    return first, time.perf_counter() - start


def metric(server: Server, name: str) -> float:
    values = re.findall(rf"^vllm:{name}{{.*}} (\S+)$", server.get("/metrics"), re.MULTILINE)
    return sum(map(float, values))


def measure(server: Server, requests: list[Request], side: Side, args: argparse.Namespace) -> dict:
    """Send all requests from `--clients` clients, and say what they took; if `side.warm`, with all prompts in the cache."""
    config = re.search(r"^vllm:cache_config_info{(.*)} ", server.get("/metrics"), re.MULTILINE)[1]
    blocks, block_size = (int(re.search(rf'\b{name}="(\d+)"', config)[1]) for name in ("num_gpu_blocks", "block_size"))
    answer(server, {"messages": [{"role": "user", "content": "Hello"}]}, 2)  # what only the first request costs
    for prompt in {request.prompt for request in requests} if side.warm else ():
        answer(server, side.body(Request(prompt, "Hello")), 1)
    hits, queries = metric(server, "prefix_cache_hits_total"), metric(server, "prefix_cache_queries_total")
    waiting, times, usage = list(reversed(requests)), [], []
    lock, errors = threading.Lock(), []

    def client() -> None:
        while not errors:
            with lock:
                if not waiting:
                    return
                request = waiting.pop()
            try:
                times.append(answer(server, side.body(request), args.max_new_tokens))
            except Exception as error:  # a thread's own errors are not seen
                errors.append(error)

    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.25):
            usage.append(metric(server, "kv_cache_usage_perc"))

    threads = [threading.Thread(target=client) for _ in range(args.clients)]
    watcher = threading.Thread(target=watch)
    start = time.perf_counter()
    watcher.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    if errors:
        raise errors[0]
    ttft = sorted(first for first, _ in times)
    queries = metric(server, "prefix_cache_queries_total") - queries
    return {
        "seconds": seconds,
        "requests_per_second": len(requests) / seconds,
        "tokens_per_second": len(requests) * args.max_new_tokens / seconds,
        "ttft_ms": {f"p{p}": 1000 * statistics.quantiles(ttft, n=100, method="inclusive")[p - 1] for p in (50, 95)},
        "kv_tokens": {
            "peak_of_running": round(max(usage, default=0) * blocks) * block_size,
            "all": blocks * block_size,
        },
        "cache_hit_rate": (metric(server, "prefix_cache_hits_total") - hits) / queries if queries else 0.0,
        "memory_gib": server.memory() / 2**30,
    }


def chat(request: Request, system: str | None = None) -> list[dict]:
    user = {"role": "user", "content": request.question}
    return [user] if system is None else [{"role": "system", "content": system}, user]


def make_sides(args: argparse.Namespace, prompts: list[str], folder: Path) -> dict[str, Side]:
    """The sides of `--only`, with what is exported for them in `folder`."""
    base, adapters = resolve_model(args.model), folder / "adapters"
    save_adapters(adapters, args.prompts, args.model)
    names = {path.name: path for path in adapters.iterdir()}
    directory = PromptDirectory(adapters)
    merged, loras, lora = {}, {}, ()
    if "be-merged" in args.only:
        merged = export_merged(names, folder / "merged", model=args.model)
    if any("lora" in side for side in args.only):
        loras = export_lora(names, folder / "lora", model=args.model, dtype=args.dtype)
        most = (str(min(args.clients, args.prompts)), "--max-cpu-loras", str(args.prompts), "--max-lora-rank", "1")
        lora = ("--enable-lora", "--max-loras", *most, "--lora-modules", *(f"{n}={folder}/lora/{n}" for n in names))
    cached, embedding = ("--enable-prefix-caching",), ("--lora-target-modules", "embed_tokens")

    def full(request: Request) -> dict:
        return {"messages": chat(request, prompts[request.prompt])}

    def be_merged(request: Request) -> dict:
        return {"messages": chat(request, merged[f"p{request.prompt}"].text)}

    def be_embeds(request: Request) -> dict:
        return {"messages": directory[f"p{request.prompt}"].messages(request.question)}

    def be_lora(request: Request) -> dict:
        name = f"p{request.prompt}"
        return {"model": name, "messages": chat(request, loras[name].text)}

    def plain(request: Request) -> dict:
        return {"messages": chat(request)}

    return {
        "full": Side(base, cached, args.kv_gib, full),
        "full-warm": Side(base, cached, args.kv_gib, full, warm=True),
        "full-small": Side(base, cached, args.small_kv_gib, full),
        "full-uncached": Side(base, ("--no-enable-prefix-caching",), args.kv_gib, full),
        "be-merged": Side(folder / "merged", cached, args.kv_gib, be_merged),
        "be-embeds": Side(base, (*cached, "--enable-prompt-embeds"), args.kv_gib, be_embeds),
        "be-lora": Side(base, (*cached, *embedding, *lora), args.kv_gib, be_lora),
        "be-lora-all": Side(base, (*cached, *lora), args.kv_gib, be_lora),
        "base": Side(base, cached, args.kv_gib, plain),
        "base-lora": Side(base, (*cached, *embedding, *lora), args.kv_gib, plain),
        "base-lora-all": Side(base, (*cached, *lora), args.kv_gib, plain),
    }


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", metavar="PYTHON", required=True, help="interpreter of an environment with vLLM")
    parser.add_argument("--model", default="smollm2", help="the base model")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=1100)
    parser.add_argument("--requests", type=int, default=192)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--kv-gib", type=int, default=5, help="memory for KV, in GiB: all prompts fit")
    parser.add_argument("--small-kv-gib", type=int, default=1, help="memory for KV, in GiB: they do not fit")
    parser.add_argument("--only", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--json", metavar="OUT", help="write the figures to this file")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    draw = random.Random(args.seed)
    questions = load_queries(DEMO / "train_queries.jsonl")
    requests = [Request(draw.randrange(args.prompts), draw.choice(questions)) for _ in range(args.requests)]
    model, tokenizer = load_model(args.model)
    text, device = prompt_of_length(tokenizer, args.prompt_tokens - 5), model.device
    del model
    # They differ from the first token on: no prompt finds a part of another one in the cache
    prompts = [f"{number}. {text}" for number in range(args.prompts)]
    options = ("--dtype", args.dtype, "--enforce-eager", "--max-model-len", str(args.prompt_tokens + 512))
    options += ("--block-size", "32")
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        sides = make_sides(args, prompts, Path(folder))
        for name in args.only:
            side = sides[name]
            with vllm_server(args.vllm, str(side.model), *options, *side.options, kv_gib=side.kv_gib) as server:
                figures = results[name] = measure(server, requests, side, args)
            print(
                f"{name:14} {figures['requests_per_second']:.2f} requests/s, {figures['tokens_per_second']:.0f} tokens/s, TTFT p50 "
                f"{figures['ttft_ms']['p50']:.0f} ms, p95 {figures['ttft_ms']['p95']:.0f} ms, KV of running requests at most "
                f"{figures['kv_tokens']['peak_of_running']} of {figures['kv_tokens']['all']} tokens, cache hits "
                f"{figures['cache_hit_rate']:.0%}, memory {figures['memory_gib']:.1f} GiB",
                flush=True,
            )
            write_report(args, device, sides=results)


if __name__ == "__main__":
    main()
