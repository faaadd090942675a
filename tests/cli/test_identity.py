"""The commands compare what an adapter records with what it is given: prompt, weights, method."""

import json
import shutil

import pytest

from ..tiny import save_lora, save_tiny_llama, tiny_llama
from .conftest import PROMPT
from .outcomes import fails


@pytest.fixture
def adapter(cli, job):
    assert cli(*job.with_(kd_weight=1))[0] == 0
    return job.folder / "out"


def test_prompts_that_are_not_the_adapters(cli, job, adapter, monkeypatch):
    other = job.folder / "other.txt"
    other.write_text("You are a pirate, and you sail the seven seas with your crew.")
    queries = ["--queries", job.folder / "held_out.txt", "--max-answer-length", "4"]
    words = ["trained on another prompt", "--allow-other-prompt"]
    fails(cli("eval", adapter, "--prompt", other, *queries), *words)
    fails(cli("bench", adapter, "--prompt", other), *words)
    fails(cli("chat", adapter, "--compare", other), *words)
    # The same text as a list with one message is the same prompt
    same = job.folder / "same.json"
    same.write_text(json.dumps([{"role": "system", "content": PROMPT}]))
    assert cli("eval", adapter, "--prompt", same, *queries)[0] == 0
    assert cli("eval", adapter, "--prompt", other, *queries, "--allow-other-prompt")[0] == 0
    pytest.importorskip("gradio", reason="the page needs gradio")
    fails(cli("demo", adapter, "--prompt", other), *words)


def test_weights_that_are_not_the_bases(cli, job, adapter, tiny_tokenizer):
    model = tiny_llama(tiny_tokenizer)
    model.model.layers[1].mlp.down_proj.weight.data *= 1.02
    model.save_pretrained(job.folder / "tuned")
    tiny_tokenizer.save_pretrained(job.folder / "tuned")
    tuned = ["--model", job.folder / "tuned"]
    words = ["was trained on other weights", "--allow-other-weights"]
    evaluation = ["eval", adapter, "--prompt", job.folder / "prompt.txt", "--queries", job.folder / "held_out.txt"]
    evaluation += ["--max-answer-length", "4", *tuned]
    fails(cli(*evaluation), *words)
    fails(cli("bench", adapter, "--prompt", job.folder / "prompt.txt", *tuned), *words)
    fails(cli("chat", adapter, *tuned), *words)
    fails(cli("export", adapter, "--output", job.folder / "merged", *tuned), *words)
    assert cli(*evaluation, "--allow-other-weights")[0] == 0


def test_adapters_of_another_method_and_bases_that_moved(cli, job, adapter, tiny_tokenizer):
    base = save_tiny_llama(job.folder / "base", tiny_tokenizer)
    lora = save_lora(base, job.folder / "lora")
    queries = ["--prompt", job.folder / "prompt.txt", "--queries", job.folder / "held_out.txt"]
    for arguments in (["info", lora], ["eval", lora, *queries], ["chat", lora], ["push", lora, "me/lora"]):
        fails(cli(*arguments), "is a LORA adapter", "not one of this package")
    fails(cli(*job.with_(model=lora, kd_weight=1, overwrite=True)), "is a LORA adapter of", "merge it first")
    fails(cli("chat", adapter, "--model", lora), "merge it first")
    config = adapter / "adapter_config.json"
    values = json.loads(config.read_text())
    (adapter / "training.json").unlink()
    config.write_text(json.dumps({**values, "base_model_name_or_path": str(job.folder / "gone")}))
    fails(cli("chat", adapter), str(adapter), str(job.folder / "gone"), "--model")
    for content in ("", "[]", '{"steps": "x"}'):
        (adapter / "training.json").write_text(content)
        for arguments in (["info", adapter], ["eval", adapter, *queries], ["chat", adapter]):
            fails(cli(*arguments), "training.json")
    shutil.rmtree(adapter)
    fails(cli("info", job.folder), "no adapter in")


def test_info_tells_of_the_weights(cli, job, adapter):
    code, out, _ = cli("info", adapter)
    assert code == 0 and "base weights" in out and "float32, fingerprint" in out and "sketch" not in out
    config = adapter / "adapter_config.json"
    values = json.loads(config.read_text())
    values["provenance"]["base_weights"]["quantisation"] = "Q4_1, unpacked from a [/b] file.gguf"
    values["provenance"] |= {"[red]note[/]": ["[/INST]", {"a": None}]}
    config.write_text(json.dumps(values))
    code, out, _ = cli("info", adapter)
    assert code == 0 and "Q4_1, unpacked from a [/b] file.gguf, fingerprint" in out and "[/INST]" in out
