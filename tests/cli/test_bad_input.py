"""Bad input ends in one clear sentence and a non-zero exit code, before work is lost."""

import json
import shutil
import socket
import sys

import pytest
import torch

from ..tiny import save_tiny_llama
from .conftest import QUERIES
from .outcomes import fails


def write(path, text, mode="w"):
    with open(path, mode) as file:
        file.write(text)
    return path


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("missing.txt", None, ["no prompt file", "check the path"]),
        ("empty.txt", " \n", ["is empty"]),
        ("latin.txt", "caf\xe9".encode("latin-1"), ["not UTF-8"]),
        ("prompt.pdf", "x", ["pass a .txt"]),
        ("broken.json", '[{"role": "user"', ["not JSON"]),
        ("role.json", '[{"role": "pirate", "content": "x"}]', ["'pirate'"]),
        ("user.json", '[{"role": "user", "content": "x"}]', ["ends in a user message"]),
        ("long.txt", "sea " * 800, ["context is 512"]),
    ],
)
def test_prompts(cli, job, name, content, words):
    path = job.folder / name
    if content is not None:
        write(path, content, "wb" if isinstance(content, bytes) else "w")
    fails(cli(*job.with_(prompt=path, kd_weight=1)), *words)


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("missing.txt", None, ["no query file"]),
        ("empty.jsonl", "\n\n", ["holds no queries"]),
        ("same.txt", "Who?\nwho?\n WHO? \n", ["1 distinct training query"]),
        ("broken.jsonl", '{"query": "a"}\n{"query"\n', ["line 2", "not JSON"]),
        ("fields.jsonl", '{"text": "a"}\n', ["has no query", "instruction"]),
    ],
)
def test_queries(cli, job, name, content, words):
    path = job.folder / name
    if content is not None:
        write(path, content)
    code, out, err = cli(*job.with_(queries=path, kd_weight=1))
    fails((code, out, err.replace("Line", "line")), *words)
    assert not (job.folder / "out").exists()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model": "nobody/has-this-model"}, ["cannot be loaded", "Hub id"]),
        ({"model": "/no/such/folder"}, ["no model folder"]),
        ({"kd_weight": 1.5}, ["between 0 and 1"]),
        ({"kd_weight": 0.9}, ["needs an [AE] row", "pretrain-ae"]),
        ({"kd_weight": 0.9, "ae": "/no/such/folder"}, ["no [AE] adapter"]),
        ({"ae": "some-folder"}, ["nothing uses it", "kd_weight below 1"]),
        ({"slot": "suffix"}, ["slot must be one of"]),
        ({"init": "word"}, ["Unknown init 'word'", "auto, neutral, prompt, text, random"]),
        ({"init": "text"}, ["init='text' needs a text"]),
        ({"init": "text", "init_text": " "}, ["init='text' needs a text"]),
        ({"init": "text", "init_text": "\u200b"}, ["init='text' needs a text"]),
        ({"init_text": "You are"}, ["init_text is for init='text'"]),
    ],
)
def test_settings(cli, job, changes, words):
    fails(cli(*job.with_(**{"kd_weight": 1, **changes})), *words)


def test_output_that_cannot_be_written(cli, job):
    write(job.folder / "file", "x")
    fails(cli(*job.with_(output=job.folder / "file" / "out", kd_weight=1)), "cannot be written")
    fails(cli(*job.with_(output=job.folder / "file", kd_weight=1)), "not an empty folder")
    assert (job.folder / "file").read_text() == "x"


def test_a_finished_run_is_not_overwritten(cli, job):
    arguments = job.with_(kd_weight=1)
    assert cli(*arguments)[0] == 0
    before = (job.folder / "out" / "adapter_model.safetensors").read_bytes()
    fails(cli(*arguments), "holds a finished run", "--overwrite")
    assert (job.folder / "out" / "adapter_model.safetensors").read_bytes() == before
    assert cli(*job.with_(kd_weight=1, seed=7, overwrite=True))[0] == 0
    assert json.loads((job.folder / "out" / "training.json").read_text())["settings"]["seed"] == 7


def test_unfinished_runs(cli, job, monkeypatch):
    from peft_be.training import BEDistillTrainer

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(BEDistillTrainer, "compute_loss", interrupt)
        code, out, _ = cli(*job.with_(kd_weight=1))
    assert code == 130 and "--resume" in out
    fails(cli(*job.with_(kd_weight=1)), "unfinished run", "--resume")
    fails(cli(*job.with_(kd_weight=1, resume=True, max_steps=5)), "another max steps")
    fails(
        cli(
            "eval", job.folder / "out", "--prompt", job.folder / "prompt.txt", "--queries", job.folder / "held_out.txt"
        ),
        "not finished",
    )
    assert cli(*job.with_(kd_weight=1, resume=True))[0] == 0


def test_a_nan_in_the_weights(cli, job, tiny_dir):
    from transformers import AutoModelForCausalLM

    broken = job.folder / "broken"
    shutil.copytree(tiny_dir, broken)
    model = AutoModelForCausalLM.from_pretrained(broken)
    model.model.layers[0].mlp.up_proj.weight.data.fill_(float("nan"))
    model.save_pretrained(broken)
    fails(cli(*job.with_(model=broken, kd_weight=1)), "not finite numbers", "damaged")


@pytest.fixture
def adapter(cli, job):
    assert cli(*job.with_(kd_weight=1))[0] == 0
    return job.folder / "out"


def evaluation(job, **options):
    arguments = [
        "eval",
        job.folder / "out",
        "--prompt",
        job.folder / "prompt.txt",
        "--queries",
        job.folder / "held_out.txt",
    ]
    arguments += ["--max-answer-length", "4"]
    return arguments + [part for name, value in options.items() for part in ("--" + name, value)]


def test_damaged_adapters(cli, job, adapter):
    weights = adapter / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    fails(cli(*evaluation(job)), "damaged")
    weights.unlink()
    fails(cli(*evaluation(job)), "adapter_model.safetensors is missing")
    weights.write_bytes(whole)
    write(adapter / "adapter_config.json", "{")
    fails(cli(*evaluation(job)), "damaged")
    fails(cli("eval", job.folder / "nowhere", *evaluation(job)[2:]), "check the path")
    fails(cli("chat", job.folder / "nowhere"), "check the path")
    fails(cli("info", job.folder / "nowhere"), "check the path")


def test_adapters_of_something_else(cli, job, adapter, tiny_tokenizer):
    wide = save_tiny_llama(job.folder / "wide", tiny_tokenizer, width=64)
    fails(cli(*evaluation(job, model=wide)), "hidden size 32", "hidden size 64")

    from transformers import AutoTokenizer

    other = AutoTokenizer.from_pretrained(job.folder / "wide")
    other.chat_template = other.chat_template.replace("SmolLM", "BigLM")
    template = save_tiny_llama(job.folder / "template", other)
    fails(cli(*evaluation(job, model=template)), "another chat template")
    assert cli(*evaluation(job, model=template), "--allow-template-change")[0] == 0
    other.add_tokens(["<new>"])
    other = save_tiny_llama(job.folder / "tokenizer", other)
    fails(cli(*evaluation(job, model=other), "--allow-template-change"), "another tokenizer")


def test_ae_rows_of_something_else(cli, job, adapter, tiny_tokenizer):
    fails(cli(*evaluation(job, ae=adapter)), "has no [AE] row")
    wide = save_tiny_llama(job.folder / "wide", tiny_tokenizer, width=64)
    corpus = write(
        job.folder / "corpus.jsonl", "".join(json.dumps({"text": f"{q} " * 30}) + "\n" for q in QUERIES * 4)
    )
    pretrain = ["pretrain-ae", "--corpus", corpus, "--output", job.folder / "ae", "--model", wide, "--max-steps", "1"]
    assert cli(*pretrain, "--batch-size", "1", "--max-passage-length", "64")[0] == 0
    fails(cli(*evaluation(job, ae=job.folder / "ae")), "another backbone")


def test_evaluations(cli, job, adapter):
    write(job.folder / "seen.txt", "\n".join(QUERIES))
    fails(cli(*evaluation(job, queries=job.folder / "seen.txt")), "trained on")
    fails(cli(*evaluation(job, json=job.folder / "no" / "scores.json")), "does not exist")


@pytest.mark.parametrize(
    "content, words",
    [
        (None, ["no corpus file"]),
        ('{"x": 1}\n', ["no JSON object with a 'text'"]),
        ('{"text": "a"}\n', ["two different texts"]),
        ('{"text": "a"}\n{"text": "b"}\n', ["64 tokens"]),
    ],
)
def test_corpora(cli, job, tiny_dir, content, words):
    path = job.folder / "corpus.jsonl"
    if content is not None:
        write(path, content)
    fails(cli("pretrain-ae", "--corpus", path, "--output", job.folder / "ae", "--model", tiny_dir), *words)


@pytest.mark.parametrize(
    "fill",
    [
        lambda: torch.empty(2**60, dtype=torch.uint8),
        lambda: bytearray(2**62),
        lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate ...")),
    ],
    ids=["machine", "python", "gpu"],
)
def test_out_of_memory(cli, job, monkeypatch, fill):
    from peft_be.training import BEDistillTrainer

    def explode(*args, **kwargs):
        fill()

    monkeypatch.setattr(BEDistillTrainer, "compute_loss", explode)
    fails(cli(*job.with_(kd_weight=1)), "Out of memory", "--batch-size")


def test_a_page_that_cannot_be_served(cli, job, adapter, monkeypatch):
    pytest.importorskip("gradio", reason="the page needs gradio")
    fails(cli("demo", job.folder / "nowhere"), "no adapter", "check the path")
    fails(cli("demo", adapter, "--prompt", job.folder / "missing.txt"), "no prompt file")
    two = ["--prompt", job.folder / "prompt.txt"] * 2
    fails(cli("demo", adapter, *two), "1 adapters and 2 prompts")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        fails(cli("demo", adapter, "--port", port), f"127.0.0.1:{port}", "choose another --port")
    monkeypatch.setitem(sys.modules, "gradio", None)
    fails(cli("demo", adapter), "needs Gradio", "pip install")
