"""
The corpus of broken inputs, made from real files. An input is a folder with files of ours, one of them broken, and the
function of the package that reads it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import peft_be
from peft_be import BETokenConfig
from peft_be.adapters.ae_row import load_ae_row
from peft_be.cli.info import info
from peft_be.data import load_corpus
from peft_be.evaluation.tasks import load_task
from peft_be.runs.manifest import load_manifest
from peft_be.teacher import AnswerSettings, cached_answers

from ..gguf_file import save_gguf
from ..prompting.chat_tokenizers import build_tokenizer
from . import mutations as m


PROMPT = "You are a lighthouse keeper. You answer in short sentences."
MESSAGES = [
    {"role": "system", "content": PROMPT},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Aye"},
]
QUERIES = [f"What did you see on day {i}?" for i in range(12)]


@dataclass
class Group:
    """
    Inputs of one kind.

    Args:
        name (`str`): what is read.
        file (`str`): the file that is broken, in the folder that `make` fills; a glob pattern where its name is a hash.
        make (`Callable[[Path], None]`): writes an intact input into an empty folder.
        read (`Callable[[Path], Any]`): reads it the way the package does; equal inputs give equal results.
        breaks (`Callable[[Path, random.Random], Iterator[m.Mutation]]`): the ways to break the file.
    """

    name: str
    file: str
    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    breaks: Callable[[Path, random.Random], Iterator[m.Mutation]]


def save_base(folder: Path) -> Path:
    """A random Llama with a small tokenizer, as `--model` takes it."""
    tokenizer = build_tokenizer("smollm2")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def groups(base: Path) -> list[Group]:
    """All kinds of inputs, for the base model in the folder `base`."""
    return [
        *_adapters(base),
        *_texts(),
        *_models(base),
        *_runs(base),
    ]


def broken_inputs(group: Group, folder: Path, seed: int = 0) -> Iterator[tuple[str, Path | None]]:
    """
    Write each broken input of a group, one after the other, into a folder of its own that is deleted afterwards.

    Yields:
        `tuple[str, Path]`: what is broken, and the input's folder. The first one is intact.
    """
    intact = folder / "intact"
    intact.mkdir(parents=True)
    group.make(intact)
    rng = random.Random(f"{seed} {group.name}")
    file = next(intact.glob(group.file)).relative_to(intact)
    breaks = [("intact", lambda path: None), *group.breaks(intact / file, rng)]
    for number, (label, break_it) in enumerate(breaks):
        copy = folder / f"{number}"
        shutil.copytree(intact, copy)
        break_it(copy / file)
        yield label, copy
        shutil.rmtree(copy)


def _any(path: Path, rng: random.Random) -> Iterator[m.Mutation]:
    yield from m.of_any_file(path.read_bytes(), rng)


def _json(path: Path, rng: random.Random) -> Iterator[m.Mutation]:
    yield from _any(path, rng)
    yield from m.of_json(json.loads(path.read_text()), rng)


def _model_json(path: Path, rng: random.Random) -> Iterator[m.Mutation]:
    yield from _any(path, rng)
    # A model of 10^12 layers is a model to transformers, and takes as long to build
    yield from m.of_json(json.loads(path.read_text()), rng, huge=7)


def _safetensors(path: Path, rng: random.Random) -> Iterator[m.Mutation]:
    content = path.read_bytes()
    yield from _any(path, rng)
    yield from m.of_safetensors(content, rng)
    yield from m.of_bytes(8, 8 + int.from_bytes(content[:8], "little"), content, rng, 20)


def _gguf(path: Path, rng: random.Random) -> Iterator[m.Mutation]:
    content = path.read_bytes()
    yield from m.of_any_file(content, rng, cuts=0)
    yield from m.of_gguf(content, rng)


def _lines(path: Path, rng: random.Random, harmless: Collection[str] = ()) -> Iterator[m.Mutation]:
    """The ways to break a file of JSON lines, without those in `harmless`, which leave a file that means what it says."""
    # No cuts: between two lines, they leave a whole file
    yield from m.of_any_file(path.read_bytes(), rng, cuts=0)
    yield from (way for way in m.of_lines(path.read_text().splitlines(), rng) if way[0] not in harmless)


def _csv(path: Path, rng: random.Random) -> Iterator[m.Mutation]:
    yield from m.of_any_file(path.read_bytes(), rng, cuts=0)
    yield from m.of_csv(path.read_bytes(), rng)


def _write_lines(file: str, objects: list[dict]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / file).write_text("".join(json.dumps(item) + "\n" for item in objects))

    return make


def _adapters(base: Path) -> Iterator[Group]:
    def save(folder: Path, **changes) -> None:
        model, tokenizer = peft_be.load_model(str(base), dtype=torch.float32, device="cpu")
        config = BETokenConfig.for_tokenizer(tokenizer, model.config.vocab_size, **changes)
        torch.manual_seed(0)
        get_peft_model(model, config).save_pretrained(folder)
        report = {"model": str(base), "steps": 3, "seconds": 1.5, "seen_queries": ["0" * 24], "best": {"kl": 0.5}}
        curve = [{"k": 1, "full": False, "steps": 3, "kl_gap_closed": 0.25}]
        report["search"] = {"target": 0.5, "metric": "kl_gap_closed", "k": 1, "reached": False, "curve": curve}
        (folder / "training.json").write_text(json.dumps(report))

    def rows(folder: Path) -> list:
        model, _ = peft_be.load_adapter(folder, model=str(base), dtype=torch.float32, device="cpu")
        config = model.peft_config["default"]
        return [model.base_model.get_rows("default").tolist(), config.be_token_ids, config.slot]

    def ae_row(folder: Path) -> list:
        model, tokenizer = peft_be.load_model(str(base), dtype=torch.float32, device="cpu")
        return load_ae_row(folder, model, tokenizer).tolist()

    def shown(folder: Path) -> None:
        info(folder)
        peft_be.load_adapter(folder, dtype=torch.float32, device="cpu")

    weights, config = "adapter_model.safetensors", "adapter_config.json"
    yield Group("adapter's rows", weights, save, rows, _safetensors)
    yield Group("adapter's configuration", config, save, rows, _json)
    yield Group("adapter's report", "training.json", save, shown, _json)
    yield Group("[AE] row", weights, partial(save, num_be_tokens=0, use_ae_token=True), ae_row, _safetensors)


def _texts() -> Iterator[Group]:
    def read(function: Callable[[Path], Any], file: str) -> Callable[[Path], Any]:
        return lambda folder: function(folder / file)

    def write_prompt(folder: Path) -> None:
        (folder / "prompt.json").write_text(json.dumps(MESSAGES))

    def write_manifest(folder: Path) -> None:
        (folder / "prompt.txt").write_text(PROMPT)
        (folder / "queries.txt").write_text("\n".join(QUERIES))
        jobs = [{"name": name, "prompt": "prompt.txt", "queries": "queries.txt"} for name in ("a", "b")]
        _write_lines("jobs.jsonl", jobs)(folder)

    def write_table(folder: Path) -> None:
        table = Dataset.from_dict({"query": QUERIES, "topic": ["sea"] * len(QUERIES)})
        table.to_csv(folder / "queries.csv", index=False)
        table.to_parquet(folder / "queries.parquet")

    rows, queries = [{"query": query} for query in QUERIES], peft_be.load_queries
    items = [{"question": "1 + 1?", "answer": "It is 2.\n#### 2"}] * 2
    passages = [{"text": f"{i} It was a dark and stormy night, and the sea was high."} for i in range(4)]
    yield Group("prompt", "prompt.json", write_prompt, read(peft_be.load_prompt, "prompt.json"), _json)
    # A line that is a JSON text is a query, and texts of a corpus that are empty are left out like all that are short
    breaks = partial(_lines, harmless=("line: a text",))
    yield Group(
        "queries", "queries.jsonl", _write_lines("queries.jsonl", rows), read(queries, "queries.jsonl"), breaks
    )
    yield Group("queries as CSV", "queries.csv", write_table, read(queries, "queries.csv"), _csv)
    yield Group("queries as parquet", "queries.parquet", write_table, read(queries, "queries.parquet"), _any)
    yield Group("manifest", "jobs.jsonl", write_manifest, read(load_jobs, "jobs.jsonl"), _lines)
    breaks = partial(_lines, harmless=("line: text = ''", "line: text = ' '"))
    yield Group(
        "corpus", "corpus.jsonl", _write_lines("corpus.jsonl", passages), read(load_corpus, "corpus.jsonl"), breaks
    )
    yield Group("task", "items.jsonl", _write_lines("items.jsonl", items), read(load_gsm8k, "items.jsonl"), _lines)


def load_jobs(path: Path) -> list:
    """The manifest's jobs. What is wrong with one job's files must not pass as a manifest without that job."""
    jobs, errors = load_manifest(path)
    if errors:
        raise ValueError("; ".join(errors.values()))
    return jobs


def load_gsm8k(path: Path) -> list:
    return load_task("gsm8k", path).items


def _models(base: Path) -> Iterator[Group]:
    def copy(folder: Path) -> None:
        shutil.copytree(base, folder, dirs_exist_ok=True)

    def load(folder: Path) -> None:
        # Of the files' own content only loaders know what is right: what is asked is that they end in a sentence
        peft_be.load_model(str(folder), dtype=torch.float32, device="cpu")

    for file in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        breaks = _model_json if file in ("config.json", "tokenizer_config.json") else _any
        yield Group(f"base model's {file}", file, copy, load, breaks)

    def write_gguf(folder: Path) -> None:
        copy(folder)
        save_gguf(folder, folder / "base.gguf")
        for adapters in _adapters(base):
            adapters.make(folder / "adapter")
            break

    def export(folder: Path) -> bytes:
        peft_be.export_gguf({"a": folder / "adapter"}, folder / "base.gguf", folder / "out.gguf", model=str(base))
        return (folder / "out.gguf").read_bytes()

    yield Group("GGUF file", "base.gguf", write_gguf, export, _gguf)


def _runs(base: Path) -> Iterator[Group]:
    arguments = {"model": str(base), "max_answer_length": 6, "max_steps": 4, "eval_steps": 2, "save_steps": 2}

    def interrupt(stage: str, done: int, total: int, values: dict) -> None:
        if stage == "stage 2" and done == 3:
            raise KeyboardInterrupt

    def begin(folder: Path) -> None:
        os.environ["PEFT_BE_CACHE"] = str(folder / "cache")
        with suppress(KeyboardInterrupt):
            peft_be.compress_prompt(PROMPT, QUERIES, folder / "run", on_progress=interrupt, **arguments)

    def go_on(folder: Path) -> list:
        os.environ["PEFT_BE_CACHE"] = str(folder / "cache")
        result = peft_be.compress_prompt(
            PROMPT, QUERIES, folder / "run", resume=True, on_progress=lambda *_: None, **arguments
        )
        return result.model.base_model.get_rows("default").tolist()

    def ends(folder: Path) -> None:
        # A run keeps the settings that it recorded: one that could have been given rightly gives other rows
        go_on(folder)

    yield Group("interrupted run's settings", "run/training/settings.json", begin, ends, _json)
    for file in ("trainer_state.json", "adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        yield Group(f"checkpoint's {file}", f"run/training/stage2/checkpoint-2/{file}", begin, go_on, _any)

    def answer(folder: Path) -> list:
        model, _ = peft_be.load_model(str(base), dtype=torch.float32, device="cpu")
        prompts, settings = [[5, 6, 7], [8, 9]], AnswerSettings(max_new_tokens=4)
        answers = cached_answers(model, prompts, settings, 0, folder)
        return [[answer.ids, answer.hidden.tolist()] for answer in answers]

    yield Group("teacher's cache", "*/*.safetensors", answer, answer, _safetensors)
