"""vLLM's plugin: which adapters of a folder it gives to a server, and which it does not."""

import json
import shutil
import subprocess
import sys

import pytest

from peft_be.serving.lora import export_lora
from peft_be.vllm_resolver import FOLDER_VARIABLE, FolderResolver, hub_name, register

from ..exports import save_adapter
from ..tiny import save_tiny_llama


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tiny_tokenizer):
    """A base model, and a folder with the LoRA adapters `a` and `b`."""
    folder = tmp_path_factory.mktemp("exported")
    base = save_tiny_llama(folder / "base", tiny_tokenizer)
    export_lora(
        {name: save_adapter(base, folder / name, scale=scale) for name, scale in (("a", 60.0), ("b", 30.0))},
        folder / "lora",
    )
    return base, folder / "lora"


@pytest.fixture
def resolver(exported, tmp_path):
    """A resolver of a copy of the folder, which a test may change; and how to ask it for a name."""
    shutil.copytree(exported[1], tmp_path / "lora")
    (tmp_path / "copies").mkdir()
    resolver = FolderResolver(str(tmp_path / "lora"))

    def find(name, served=exported[0]):
        return resolver.find(served, name, tmp_path / "copies")

    return resolver.folder, find


def test_each_version_has_a_name_and_a_copy_of_its_own(resolver):
    folder, find = resolver
    first = find("a")
    assert first.name.startswith("a@") and find("a") == first and find("b").name != first.name.replace("a@", "b@")
    weights = (first / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(folder / "a")
    assert find("a") is None
    shutil.copytree(folder / "b", folder / "a")
    second = find("a")
    assert second != first and (first / "adapter_model.safetensors").read_bytes() == weights
    assert (second / "adapter_model.safetensors").read_bytes() != weights
    assert len(list(first.parent.iterdir())) == 3  # nothing half made


@pytest.mark.parametrize(
    "file, content",
    [
        ("adapter_model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 199192\n"),
        ("adapter_model.safetensors", b""),
        ("adapter_model.safetensors", (2).to_bytes(8, "little") + b"[]"),
        ("be_token.json", b"[]"),
        ("be_token.json", b"{}"),
        ("be_token.json", b"\xff"),
    ],
)
def test_a_damaged_adapter_is_not_served(resolver, file, content, caplog):
    folder, find = resolver
    (folder / "a" / file).write_bytes(content)
    assert find("a") is None and "damaged: copy it again" in caplog.text
    assert not list((folder.parent / "copies").iterdir())


def test_a_client_cannot_leave_the_folder(resolver):
    folder, find = resolver
    shutil.copytree(folder / "a", folder.parent / "secret")
    shutil.copytree(folder / "a", folder / ".hidden")
    for name in (
        "../secret",
        "a/../../secret",
        str(folder.parent / "secret"),
        ".hidden",
        "..",
        ".",
        "",
        "a\n",
        "nobody",
    ):
        assert find(name) is None


def test_what_does_not_fit_is_not_served(resolver, tiny_tokenizer, tmp_path, caplog):
    folder, find = resolver
    token = json.loads((folder / "a" / "be_token.json").read_text())
    (folder / "a" / "be_token.json").write_text(json.dumps({**token, "base_model": "one/model"}))
    cached = tmp_path / "models--other--model" / "snapshots" / "1"
    for served in ("other/model", str(cached)):
        assert find("a", served) is None
        assert (
            "'a' in" in caplog.text
            and "it belongs to 'one/model', and the base model is 'other/model'." in caplog.text
        )
        caplog.clear()
    wider = save_tiny_llama(tmp_path / "wider", tiny_tokenizer, width=64)
    assert find("a", wider) is None and "an embedding of 2048 x 32, and the base model's has 2048 x 64" in caplog.text
    for damage in ("{}", "[]", "{"):
        caplog.clear()
        (folder / "a" / "be_token.json").write_text(damage)
        assert find("a") is None and "is not served" in caplog.text
    (folder / "b" / "adapter_model.safetensors").unlink()
    assert find("b") is None
    assert not list((tmp_path / "copies").iterdir())


def test_models_without_lora_on_their_embedding_are_named(resolver, exported, tmp_path, caplog):
    _, find = resolver
    served = tmp_path / "served"
    shutil.copytree(exported[0], served)
    config = json.loads((served / "config.json").read_text())
    (served / "config.json").write_text(json.dumps({**config, "model_type": "qwen2"}))
    assert find("a", str(served)) is not None
    assert "(qwen2) only with `vllm serve --model-impl transformers`" in caplog.text


def test_names_on_the_hub(tmp_path):
    assert hub_name("org/model") == "org/model"
    assert hub_name("/home/me/.cache/hub/models--org--my--model/snapshots/abc") == "org/my--model"
    assert hub_name(str(tmp_path)) is None and hub_name("/models/a") is None and hub_name("gpt2") is None


def test_it_needs_a_folder(monkeypatch, tmp_path):
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    register()
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="which is not a folder"):
        register()


def test_it_imports_neither_torch_nor_peft():
    code = "import sys, peft_be.vllm_resolver as r; assert not {'torch', 'peft', 'transformers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
