"""
The same requests to one adapter in every engine: are the greedy answers the same tokens?

The reference is transformers with the adapter on the base model. Where an engine writes another token, its first one is
reported with the reference's margin there: how much more its own token scores than the engine's, in nats. Engines add up the
same numbers in another order, so margins of about 1e-4 in float32 may go either way; larger ones would be mistakes.

Example:

    python benchmarks/engines.py demo-output --vllm vllm-env/bin/python --gguf model.gguf --json engines.json
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable

import torch
from common import write_report
from reference import DEMO
from servers import Server, vllm_server
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from peft_be import PromptRenderer, export_gguf, export_merged, load_adapter, load_queries
from peft_be.models import resolve_model
from peft_be.prompting.messages import check_query
from peft_be.serving.vllm import PromptEmbeds, encode


@torch.no_grad()
def greedy(model: PreTrainedModel, prompts: list[list[int]], length: int) -> list[list[int]]:
    """One at a time: padding would change the order of additions."""
    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt], device=model.device)
        written = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=length
        )
        answers.append(written[0, ids.shape[1] :].tolist())
    return answers


def of_vllm(server: Server, path: str, requests: Iterable[dict], args: argparse.Namespace) -> list[list[int]]:
    settings = {"model": "base", "temperature": 0, "max_tokens": args.max_new_tokens, "return_token_ids": True}
    return [server.post(path, {**settings, **request})["choices"][0]["token_ids"] for request in requests]


def of_llama(path: str, chats: list[list[dict]], tokenizer, length: int) -> list[list[int]]:
    from llama_cpp import Llama

    llama = Llama(path, n_ctx=2048, verbose=False)
    answers = []
    for chat in chats:
        text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        answer = []
        # The most probable token, and no penalty for repetition, which is on by default
        for token in llama.generate(llama.tokenize(text.encode(), False, True), top_k=1, repeat_penalty=1.0):
            answer.append(token)
            if len(answer) == length or token == llama.token_eos():
                break
        answers.append(answer)
    return answers


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


def transformers_answers(folder: str, chats: list[list[dict]], args: argparse.Namespace) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, args.dtype)).eval()
    prompts = [tokenizer.apply_chat_template(c, add_generation_prompt=True, return_dict=False) for c in chats]
    return greedy(model, prompts, args.max_new_tokens)


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
    parser.add_argument("--json", metavar="OUT", help="write the figures to this file")
    args = parser.parse_args()

    model, tokenizer = load_adapter(args.adapter, args.model)
    model = model.to(getattr(torch, args.dtype))
    queries = [check_query(query) for file in args.queries for query in load_queries(file)][: args.requests]
    renderer = PromptRenderer.for_adapter(model.peft_config["default"], tokenizer)
    prompts = [renderer.be(query) for query in queries]
    expected = greedy(model, prompts, args.max_new_tokens)
    answers: dict[str, list[list[int]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        token = export_merged({"a": args.adapter}, f"{folder}/merged", model=args.model)["a"]
        chats = [[{"role": "system", "content": token.text}, *query] for query in queries]
        answers["transformers, merged checkpoint"] = transformers_answers(f"{folder}/merged", chats, args)
        if args.vllm:
            options = ("--dtype", args.dtype, "--enforce-eager", "--max-model-len", "2048")
            with vllm_server(args.vllm, f"{folder}/merged", *options) as server:
                requests = ({"messages": chat} for chat in chats)
                answers["vLLM, merged checkpoint"] = of_vllm(server, "/v1/chat/completions", requests, args)
            with vllm_server(args.vllm, resolve_model(args.model), *options, "--enable-prompt-embeds") as server:
                rows = PromptEmbeds.from_pretrained(args.adapter)
                requests = ({"messages": rows.messages(query)} for query in queries)
                answers["vLLM, prompt_embeds in a chat"] = of_vllm(server, "/v1/chat/completions", requests, args)
                embedding = model.get_input_embeddings()
                whole = (rows.prompt_embeds(query, tokenizer, embedding) for query in queries)
                requests = ({"prompt_embeds": encode(embeds)} for embeds in whole)
                answers["vLLM, all embeddings"] = of_vllm(server, "/v1/completions", requests, args)
        if args.gguf:
            token = export_gguf({"a": args.adapter}, args.gguf, f"{folder}/be.gguf", model=args.model)["a"]
            chats = [[{"role": "system", "content": token.text}, *query] for query in queries]
            answers["llama.cpp"] = of_llama(f"{folder}/be.gguf", chats, tokenizer, args.max_new_tokens)

    report = {}
    for name, own in answers.items():
        found = [divergence(model, *case) for case in zip(prompts, expected, own)]
        apart = [{"request": i, **case} for i, case in enumerate(found) if case]
        report[name] = {"identical": len(own) - len(apart), "of": len(own), "apart": apart}
        print(f"{name}: {len(own) - len(apart)} of {len(own)} answers identical")
        for case in apart:
            print(f"  request {case['request']}: from token {case['position']} on, margin {case['margin']:.2g} nats")
    write_report(args, model.device, engines=report)


if __name__ == "__main__":
    main()
