"""
The same requests to one adapter in every engine: are the greedy answers the same tokens?

The reference is transformers with the adapter on the base model. Where an engine writes another token, its first one is
reported with the reference's margin there: how much more its own token scores than the engine's, in nats. Engines add up the
same numbers in another order, so margins of about 1e-4 in float32 may go either way; larger ones would be mistakes.

An engine that refuses the adapter is reported with what it says.

Example:

    python benchmarks/engines.py demo-output --vllm vllm-env/bin/python --gguf model.gguf --llama-server llama-server \\
        --json engines.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from common import write_report
from reference import DEMO
from servers import Server, llama_server, vllm_server
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from peft_be import (
    PromptRenderer,
    export_gguf,
    export_lora,
    export_lora_gguf,
    export_merged,
    load_adapter,
    load_queries,
)
from peft_be.models import resolve_model
from peft_be.prompting.messages import check_query
from peft_be.serving import MergedToken
from peft_be.serving.lora_gguf import served_base
from peft_be.serving.vllm import PromptEmbeds, encode


Answers = list[list[int]]


@dataclass
class Requests:
    """What each engine is asked, and a folder for what it loads."""

    args: argparse.Namespace
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    queries: list[list[dict]]
    folder: Path

    @property
    def adapters(self) -> dict[str, str]:
        return {"a": self.args.adapter}

    @cached_property
    def merged(self) -> MergedToken:
        """The token in the checkpoint that is written to the folder `merged`."""
        return export_merged(self.adapters, self.folder / "merged", self.args.model, dtype=self.args.dtype)["a"]

    @cached_property
    def lora(self) -> MergedToken:
        """The token of the LoRA adapter that is written to the folder `lora/a`."""
        return export_lora(self.adapters, self.folder / "lora", model=self.args.model, dtype=self.args.dtype)["a"]

    def chats(self, token: MergedToken) -> list[list[dict]]:
        return [[{"role": "system", "content": token.system_text}, *query] for query in self.queries]


@torch.no_grad()
def greedy(model: PreTrainedModel, prompts: list[list[int]], length: int) -> Answers:
    """One at a time: padding would change the order of additions."""
    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt], device=model.device)
        written = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=length
        )
        answers.append(written[0, ids.shape[1] :].tolist())
    return answers


def of_transformers(asked: Requests) -> Iterator[tuple[str, Answers]]:
    chats = asked.chats(asked.merged)
    tokenizer = AutoTokenizer.from_pretrained(asked.folder / "merged")
    model = AutoModelForCausalLM.from_pretrained(asked.folder / "merged", dtype=getattr(torch, asked.args.dtype))
    prompts = [tokenizer.apply_chat_template(c, add_generation_prompt=True, return_dict=False) for c in chats]
    yield "transformers, merged checkpoint", greedy(model.eval(), prompts, asked.args.max_new_tokens)


def of_plain_peft(asked: Requests) -> Iterator[tuple[str, Answers]]:
    args, script = asked.args, Path(__file__).with_name("plain_peft.py")
    chats, answers = asked.folder / "chats.json", asked.folder / "answers.json"
    chats.write_text(json.dumps(asked.chats(asked.lora)))
    command = [sys.executable, script, "--lora", asked.folder / "lora" / "a", "--model", resolve_model(args.model)]
    command += ["--chats", chats, "--answers", answers, "--dtype", args.dtype]
    command += ["--max-new-tokens", args.max_new_tokens]
    subprocess.run([str(part) for part in command], check=True)
    yield "PEFT LoRA without peft_be", json.loads(answers.read_text())


def of_vllm(asked: Requests) -> Iterator[tuple[str, Answers | str]]:
    args, base = asked.args, resolve_model(asked.args.model)
    options = ("--dtype", args.dtype, "--enforce-eager", "--max-model-len", "2048")
    chats = asked.chats(asked.merged)
    with vllm_server(args.vllm, str(asked.folder / "merged"), *options) as server:
        requests = ({"messages": chat} for chat in chats)
        yield "vLLM, merged checkpoint", _vllm_answers(server, "/v1/chat/completions", requests, args)
    chats = asked.chats(asked.lora)
    lora = ("--enable-lora", "--max-lora-rank", "16", "--lora-modules", f"a={asked.folder / 'lora' / 'a'}")
    # vLLM's own code refuses LoRA of the embedding of some models, for which transformers' code takes it
    for name, more in (("vLLM, LoRA", ()), ("vLLM, LoRA, transformers' code", ("--model-impl", "transformers"))):
        with ExitStack() as running:
            try:
                server = running.enter_context(vllm_server(args.vllm, base, *options, *lora, *more))
            except RuntimeError as error:
                yield name, _what_it_says(error)
                continue
            requests = ({"model": "a", "messages": chat} for chat in chats)
            yield name, _vllm_answers(server, "/v1/chat/completions", requests, args)
            break
    with vllm_server(args.vllm, base, *options, "--enable-prompt-embeds") as server:
        rows = PromptEmbeds.from_pretrained(args.adapter)
        requests = ({"messages": rows.messages(query)} for query in asked.queries)
        yield "vLLM, prompt_embeds in a chat", _vllm_answers(server, "/v1/chat/completions", requests, args)
        embedding = asked.model.get_input_embeddings()
        whole = (rows.prompt_embeds(query, asked.tokenizer, embedding) for query in asked.queries)
        requests = ({"prompt_embeds": encode(embeds)} for embeds in whole)
        yield "vLLM, all embeddings", _vllm_answers(server, "/v1/completions", requests, args)


def _vllm_answers(server: Server, path: str, requests: Iterable[dict], args: argparse.Namespace) -> Answers:
    settings = {"model": "base", "temperature": 0, "max_tokens": args.max_new_tokens, "return_token_ids": True}
    return [server.post(path, {**settings, **request})["choices"][0]["token_ids"] for request in requests]


def _what_it_says(error: RuntimeError) -> str:
    """The last line of a server's log that names an error."""
    lines = [line.strip() for line in str(error).splitlines() if "Error" in line]
    return lines[-1] if lines else str(error)[-300:]


def of_llama(asked: Requests) -> Iterator[tuple[str, Answers]]:
    args, folder = asked.args, asked.folder
    token = export_gguf(asked.adapters, args.gguf, folder / "be.gguf", model=args.model)["a"]
    yield "llama.cpp", _llama_answers(asked, token, folder / "be.gguf")
    token = export_lora_gguf(asked.adapters, args.gguf, folder / "lora-gguf", model=args.model)["a"]
    lora, base = folder / "lora-gguf" / "a" / "adapter.gguf", served_base(args.gguf, folder / "lora-gguf")
    yield "llama.cpp, LoRA", _llama_answers(asked, token, base, lora_path=str(lora))
    if args.llama_server:
        options = ("--lora", str(lora), "--cache-ram", "0", "--ctx-size", "2048", "--parallel", "1")
        if args.dtype == "float32":
            # With its flash attention, chosen by default, scores differ by more than float32 explains
            options = (*options, "--flash-attn", "off", "--cache-type-k", "f32", "--cache-type-v", "f32")
        with llama_server(args.llama_server, str(base), *options) as server:
            yield "llama-server, LoRA", [_llama_server_answer(server, chat, args) for chat in asked.chats(token)]


def _llama_answers(asked: Requests, token: MergedToken, path: Path, **options) -> Answers:
    from llama_cpp import GGML_TYPE_F32, Llama

    # Keys and values are float16 by default
    types = {"type_k": GGML_TYPE_F32, "type_v": GGML_TYPE_F32} if asked.args.dtype == "float32" else {}
    llama, answers = Llama(str(path), n_ctx=2048, verbose=False, **types, **options), []
    for chat in asked.chats(token):
        text = asked.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        answer = []
        # The most probable token, and no penalty for repetition, which is on by default
        for token_id in llama.generate(llama.tokenize(text.encode(), False, True), top_k=1, repeat_penalty=1.0):
            answer.append(token_id)
            if len(answer) == asked.args.max_new_tokens or token_id == llama.token_eos():
                break
        answers.append(answer)
    return answers


def _llama_server_answer(server: Server, chat: list[dict], args: argparse.Namespace) -> list[int]:
    # The ids of the answer come with the probabilities alone
    body = {"messages": chat, "temperature": 0, "max_tokens": args.max_new_tokens, "logprobs": True, "top_logprobs": 1}
    reply = server.post("/v1/chat/completions", {**body, "lora": [{"id": 0, "scale": 1.0}]})
    return [token["id"] for token in reply["choices"][0]["logprobs"]["content"]]


ENGINES = {"transformers": of_transformers, "peft": of_plain_peft, "vllm": of_vllm, "llama": of_llama}


@torch.no_grad()
def divergence(model: PreTrainedModel, prompt: list[int], expected: list[int], answer: list[int]) -> dict | None:
    """Where an answer leaves the expected one, and the reference's margin there; `None` where it does not."""
    if expected == answer:
        return None
    # Answers end in the token that ends them, so that neither is the beginning of the other
    position = next(i for i, (a, b) in enumerate(zip(expected, answer)) if a != b)
    ids = torch.tensor([prompt + expected[:position]], device=model.device)
    scores = model(input_ids=ids).logits[0, -1].float()
    return {"position": position, "margin": (scores[expected[position]] - scores[answer[position]]).item()}


def compare(model: PreTrainedModel, prompts: Answers, expected: Answers, own: Answers | str) -> dict:
    """How many answers are the expected ones, and where the others leave them; or why there are none."""
    if isinstance(own, str):
        return {"refused": own}
    found = [divergence(model, *case) for case in zip(prompts, expected, own, strict=True)]
    apart = [{"request": i, **case} for i, case in enumerate(found) if case]
    return {"identical": len(own) - len(apart), "of": len(own), "apart": apart}


def told(result: dict) -> str:
    if "refused" in result:
        return f"refused: {result['refused']}"
    lines = [f"{result['identical']} of {result['of']} answers identical"]
    for case in result["apart"]:
        lines.append(
            f"  request {case['request']}: from token {case['position']} on, margin {case['margin']:.2g} nats"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", help="folder of an adapter of slot 'system'")
    parser.add_argument("--model", default="smollm2", help="its base model")
    files = [str(DEMO / f"{name}_queries.jsonl") for name in ("test", "train")]
    parser.add_argument("--queries", nargs="+", default=files, metavar="FILE")
    parser.add_argument("--requests", type=int, default=50)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--vllm", metavar="PYTHON", help="interpreter of an environment with vLLM")
    parser.add_argument("--gguf", metavar="FILE", help="GGUF file of the base model, for llama.cpp")
    parser.add_argument("--llama-server", metavar="PROGRAM", help="llama-server, for the GGUF file")
    parser.add_argument("--only", nargs="+", choices=ENGINES, default=[], help="engines to ask (default: all)")
    parser.add_argument("--json", metavar="OUT", help="write the figures to this file")
    args = parser.parse_args()
    if args.llama_server and not args.gguf:
        parser.error("--llama-server needs the base model's file: give it as --gguf.")
    absent = {name for name, needs in {"vllm": args.vllm, "llama": args.gguf}.items() if not needs}
    if absent.intersection(args.only):
        parser.error("--only vllm needs --vllm, and --only llama needs --gguf.")

    model, tokenizer = load_adapter(args.adapter, args.model, dtype=args.dtype)
    queries = [check_query(query) for file in args.queries for query in load_queries(file)][: args.requests]
    renderer = PromptRenderer.for_adapter(model.peft_config["default"], tokenizer)
    prompts = [renderer.be(query) for query in queries]
    expected = greedy(model, prompts, args.max_new_tokens)
    engines = [ENGINES[name] for name in args.only or ENGINES if name not in absent]
    report = {}
    with tempfile.TemporaryDirectory() as folder:
        asked = Requests(args, model, tokenizer, queries, Path(folder))
        for name, own in (answer for engine in engines for answer in engine(asked)):
            report[name] = compare(model, prompts, expected, own)
            print(f"{name}: {told(report[name])}")
    write_report(args, model.device, engines=report)


if __name__ == "__main__":
    main()
