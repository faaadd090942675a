"""
What engines read in what users write: hostile strings, each as the user's turn of a chat with an exported adapter.

Every engine says by its own code which ids it reads: a vLLM server by `/tokenize`, and for the first strings by requests that it
answers, which must hold the same ids; llama.cpp by `Llama.create_chat_completion`, which the server of llama-cpp-python
calls, up to where it would start to answer. Counted are the strings that change the [BE] tokens in these ids, those that
change any special tokens, and those that the engine refuses; all again after `strip_special_tokens`.

Example:

    python benchmarks/injection.py demo-output --vllm vllm-env/bin/python --gguf model.gguf --json injection.json
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from common import write_report
from hostile import forbidden_ids, more_hostile_strings, of, spellings_of
from servers import vllm_server
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from peft_be import export_gguf, export_lora_gguf, export_merged, strip_special_tokens
from peft_be.models import resolve_model
from peft_be.serving.vllm import PromptEmbeds


# The token by which vLLM marks the places of embeddings in a chat
PLACEHOLDER = "<prompt_embeds>"
# Strings that vLLM is to answer, too: so many of those with fewer characters
ANSWERED, SHORT = 20, 200
# What transformers and llama.cpp raise where they do not take a text, and `Server.post` where a server does not
REFUSALS = (RuntimeError, TypeError, ValueError)
# The adapter is exported under several names, since an attacker may spell the token of another prompt than the chat's
NAMES = ("a", "b", "c")

Reader = Callable[[list[dict]], list[int]]


@dataclass
class Engine:
    """
    An engine and what it serves.

    Attributes:
        read (`Callable[[list[dict]], list[int]]`): messages to the ids that it reads.
        tokenizer (`PreTrainedTokenizerBase`): of the model.
        before (`list[dict]`): the messages in front of the user's turn.
    """

    read: Reader
    tokenizer: PreTrainedTokenizerBase
    before: list[dict]

    def ids(self, text: str) -> list[int]:
        return self.read([*self.before, {"role": "user", "content": text}])

    def compare(self, strings: list[str], be: set[int]) -> dict[str, dict[str, int]]:
        """The counts for the strings as they are written, and for what `strip_special_tokens` leaves of them."""
        stripped = [strip_special_tokens(text, self.tokenizer) for text in strings]
        return {"written": self._through(strings, be), "stripped": self._through(stripped, be)}

    def _through(self, strings: list[str], be: set[int]) -> dict[str, int]:
        special = forbidden_ids(self.tokenizer, be)
        plain = self.ids("y")
        assert of(plain, be), "the system message holds no [BE]"
        counts = {"be": 0, "special": 0, "refused": 0}
        for text in strings:
            try:
                ids = self.ids(text)
            except REFUSALS:
                counts["refused"] += 1
                continue
            counts["be"] += of(ids, be) != of(plain, be)
            counts["special"] += of(ids, special) != of(plain, special)
        return counts


@contextmanager
def vllm_reader(python: str, model: str, *options: str) -> Iterator[tuple[Reader, Reader]]:
    """How a vLLM server reads a chat by its route that answers nothing, and in a request that it answers."""

    def tokenized(messages: list[dict]) -> list[int]:
        return server.post("/tokenize", {"model": "base", "messages": messages})["tokens"]

    def answered(messages: list[dict]) -> list[int]:
        request = {"model": "base", "messages": messages, "max_tokens": 1, "return_token_ids": True}
        return server.post("/v1/chat/completions", request)["prompt_token_ids"]

    with vllm_server(python, model, "--enforce-eager", "--max-model-len", "2048", *options) as server:
        yield tokenized, answered


def check_answered(engine: Engine, answered: Reader, strings: list[str]) -> int:
    """The number of strings that were answered. Raises where the ids of such a request are others."""
    asked = [text for text in strings if len(text) < SHORT][:ANSWERED]
    count = 0
    for text in asked:
        try:
            ids = engine.ids(text)
        except REFUSALS:
            continue
        if answered([*engine.before, {"role": "user", "content": text}]) != ids:
            raise RuntimeError(f"vLLM reads other ids where it answers: {text!r}")
        count += 1
    return count


def llama_reader(path: str) -> Reader:
    """How the server of llama-cpp-python reads a chat."""
    from llama_cpp import Llama

    class Unanswered(Llama):
        """Keeps the ids that it is to continue, and continues nothing."""

        def create_completion(self, prompt, **options):
            self.prompt_ids = prompt
            return iter(())

    llama = Unanswered(path, n_ctx=512, verbose=False)

    def read(messages: list[dict]) -> list[int]:
        llama.create_chat_completion(messages, stream=True)
        return llama.prompt_ids

    return read


def of_llama_lora(args: argparse.Namespace, folder: Path, tokenizer, strings: list[str]) -> dict[str, dict[str, int]]:
    """The counts for LoRA, whose tokens are the base model's own, reserved ones."""
    token = export_lora_gguf({NAMES[0]: args.adapter}, args.gguf, folder / "lora", model=args.model)[NAMES[0]]
    before = [{"role": "system", "content": token.system_text}]
    return Engine(llama_reader(args.gguf), tokenizer, before).compare(strings, set(token.ids))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", help="folder of an adapter of slot 'system'")
    parser.add_argument("--model", default="smollm2", help="its base model")
    parser.add_argument("--strings", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--vllm", metavar="PYTHON", help="interpreter of an environment with vLLM")
    parser.add_argument("--gguf", metavar="FILE", help="GGUF file of the base model, for llama.cpp")
    parser.add_argument("--json", metavar="OUT", help="write the figures to this file")
    args = parser.parse_args()

    report = {}
    with tempfile.TemporaryDirectory() as folder:
        adapters = dict.fromkeys(NAMES, args.adapter)
        tokens = export_merged(adapters, f"{folder}/merged", model=args.model)
        tokenizer = AutoTokenizer.from_pretrained(f"{folder}/merged")
        base_tokenizer = AutoTokenizer.from_pretrained(resolve_model(args.model))
        be = [token_id for token in tokens.values() for token_id in token.ids]
        spellings = [*spellings_of(tokenizer, be), *spellings_of(base_tokenizer, be), PLACEHOLDER]
        spellings, template = list(dict.fromkeys(spellings)), tokenizer.get_chat_template()
        strings = more_hostile_strings(args.strings, spellings, template, args.seed)
        before = [{"role": "system", "content": tokens[NAMES[0]].system_text}]

        def of_transformers(messages: list[dict]) -> list[int]:
            return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)

        engine = Engine(of_transformers, tokenizer, before)
        report["transformers, merged checkpoint"] = engine.compare(strings, set(be))
        if args.vllm:
            with vllm_reader(args.vllm, f"{folder}/merged") as (tokenized, answered):
                engine = Engine(tokenized, tokenizer, before)
                count = check_answered(engine, answered, strings)
                report["vLLM, merged checkpoint"] = {**engine.compare(strings, set(be)), "answered": count}
            rows = PromptEmbeds.from_pretrained(args.adapter)
            with vllm_reader(args.vllm, resolve_model(args.model), "--enable-prompt-embeds") as (tokenized, answered):
                engine = Engine(tokenized, base_tokenizer, rows.messages("y")[:1])
                count = check_answered(engine, answered, strings)
                place = len(base_tokenizer)  # vLLM adds the placeholder to the tokenizer
                report["vLLM, prompt_embeds in a chat"] = {**engine.compare(strings, {place}), "answered": count}
        if args.gguf:
            export_gguf(adapters, args.gguf, f"{folder}/be.gguf", model=args.model)
            engine = Engine(llama_reader(f"{folder}/be.gguf"), tokenizer, before)
            report["llama.cpp, GGUF file"] = engine.compare(strings, set(be))
            report["llama.cpp, LoRA"] = of_llama_lora(args, Path(folder), base_tokenizer, strings)

    for name, counts in report.items():
        for which in ("written", "stripped"):
            told = ", ".join(f"{what} {count}" for what, count in counts[which].items())
            print(f"{name}, {which}: {told} of {len(strings)}")
    write_report(args, torch.device("cpu"), engines=report)


if __name__ == "__main__":
    main()
