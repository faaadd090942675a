"""A LoRA adapter says what the [BE] adapter says, in PEFT and transformers that have never heard of [BE]."""

import json
import subprocess
import sys

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from peft_be import PromptRenderer, load_adapter
from peft_be.serving.lora import differences, export_lora, import_lora

from ..exports import CHAT, logits, save_adapter
from ..tiny import save_tiny_gemma, save_tiny_llama


def chat_ids(tokenizer, token, query="What do you see?", template=None):
    chat = [{"role": "user", "content": query}]
    if template is None:
        chat = [{"role": "system", "content": token.text}, *chat]
    return tokenizer.apply_chat_template(chat, chat_template=template, add_generation_prompt=True, return_dict=False)


def expected_logits(folder, tokenizer, at):
    """The logits of the [BE] adapter, but those of the ids at which it and the LoRA adapter stand."""
    model, _ = load_adapter(folder)
    config = model.peft_config["default"]
    ids = PromptRenderer.for_adapter(config, tokenizer).be(CHAT[0]["content"])
    return logits(model, ids), ids, config.be_token_ids


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("ks", [(1, 2), (14,)])
def test_plain_peft_says_the_same(tiny_tokenizer, tmp_path, tied, ks):
    base = save_tiny_llama(tmp_path / "base", tiny_tokenizer, tied=tied)
    adapters = {f"p{k}": save_adapter(base, tmp_path / f"p{k}", k) for k in ks}
    tokens = export_lora(adapters, tmp_path / "lora")
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    query = tiny_tokenizer("The island?")["input_ids"]
    before = logits(plain, query)
    for name, folder in adapters.items():
        wanted, be_ids, places = expected_logits(folder, tiny_tokenizer, tokens[name])
        ids = chat_ids(tiny_tokenizer, tokens[name])
        moved = dict(zip(places, tokens[name].ids))
        assert ids == [moved.get(i, i) for i in be_ids]
        for loaded in (
            PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "lora" / name),
            AutoPeftModelForCausalLM.from_pretrained(tmp_path / "lora" / name),
        ):
            torch.testing.assert_close(logits(loaded.eval(), ids), wanted, atol=5e-5, rtol=1e-5)
            assert torch.equal(logits(loaded, query), before)  # a text without the token is read as ever
        transformers_model = AutoModelForCausalLM.from_pretrained(base).eval()
        transformers_model.load_adapter(str(tmp_path / "lora" / name))
        torch.testing.assert_close(logits(transformers_model, ids), wanted, atol=5e-5, rtol=1e-5)


def test_the_file_is_lora_of_the_embedding_and_nothing_else(tiny_tokenizer, tmp_path):
    base = save_tiny_llama(tmp_path / "base", tiny_tokenizer)
    export_lora({"a": save_adapter(base, tmp_path / "a", 2)}, tmp_path / "lora")
    tensors = load_file(tmp_path / "lora" / "a" / "adapter_model.safetensors")
    name = "base_model.model.model.embed_tokens.lora_embedding_"
    assert {key: tuple(value.shape) for key, value in tensors.items()} == {
        f"{name}A": (2, len(tiny_tokenizer)),
        f"{name}B": (32, 2),
    }
    config = json.loads((tmp_path / "lora" / "a" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"], config["target_modules"]) == (
        "LORA", 2, 2, ["embed_tokens"],
    )  # fmt: skip
    # What earlier releases of PEFT do not know would stop them, or make them warn: nothing of it is set
    assert config["base_model_name_or_path"] == base


@pytest.fixture
def old_peft(tmp_path):
    """A folder with PEFT 0.15.2."""
    folder = tmp_path / "peft-0.15.2"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, "peft==0.15.2"]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"PEFT 0.15.2 cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    return folder


@pytest.mark.parametrize("earlier", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_without_this_package(request, tiny_tokenizer, tmp_path, earlier):
    """In a process of its own, which does not import it; also with the first PEFT that the file is for."""
    folder = request.getfixturevalue("old_peft") if earlier else None
    base = save_tiny_llama(tmp_path / "base", tiny_tokenizer)
    adapter = save_adapter(base, tmp_path / "a", 2)
    (token,) = export_lora({"a": adapter}, tmp_path / "lora").values()
    wanted, _, _ = expected_logits(adapter, tiny_tokenizer, token)
    code = f"""
import sys, torch
if {earlier}:
    sys.path.insert(0, {str(folder)!r})
import peft
from transformers import AutoModelForCausalLM, AutoTokenizer
assert (peft.__version__ == "0.15.2") == {earlier}
tokenizer = AutoTokenizer.from_pretrained({base!r})
base_model = AutoModelForCausalLM.from_pretrained({base!r})
model = peft.PeftModel.from_pretrained(base_model, {str(tmp_path / "lora" / "a")!r}).eval()
chat = [{{"role": "system", "content": {token.text!r}}}, {{"role": "user", "content": "What do you see?"}}]
ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=False)
assert "peft_be" not in sys.modules
torch.save(model(input_ids=ids).logits[0], {str(tmp_path / "logits.pt")!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), wanted, atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_sum_is_the_row_in_sixteen_bits(dtype):
    """Rows as long as hidden states, on a table of embeddings."""
    torch.manual_seed(0)
    table, rows = (0.05 * torch.randn(64, 512)).to(dtype), 5.0 * torch.randn(64, 512)
    wanted, added = rows.to(dtype), differences(rows, table)
    # As PEFT adds: in float32, rounded once
    assert torch.equal((table.float() + added).to(dtype), wanted)
    # As vLLM does: the difference is rounded before
    before = (table + added.to(dtype)).double() - wanted.double()
    assert (before.abs() <= torch.finfo(dtype).eps * wanted.abs().maximum(table.abs()).double()).all()
    missed, plainly = ((table + x.to(dtype) != wanted).float().mean() for x in (added, rows - table.float()))
    assert missed < 0.03 and plainly > 0.2


def test_the_sum_is_the_row_in_float32():
    torch.manual_seed(0)
    table, rows = 0.05 * torch.randn(64, 512), 5.0 * torch.randn(64, 512)
    torch.testing.assert_close(table + differences(rows, table), rows, rtol=1e-6, atol=1e-8)


def test_back_again(tiny_tokenizer, tmp_path):
    base = save_tiny_llama(tmp_path / "base", tiny_tokenizer)
    folder = save_adapter(base, tmp_path / "a", 3)
    export_lora({"a": folder}, tmp_path / "lora")
    config = import_lora(tmp_path / "lora" / "a", tmp_path / "again")
    first, again = (load_adapter(f)[0].base_model for f in (folder, tmp_path / "again"))
    assert config.provenance == first.peft_config["default"].provenance
    torch.testing.assert_close(again.get_rows("default"), first.get_rows("default"), rtol=1e-6, atol=1e-7)


def test_the_template_writes_the_token_where_there_is_no_system_message(tiny_tokenizer, tmp_path):
    base = save_tiny_llama(tmp_path / "base", tiny_tokenizer)
    (token,) = export_lora({"a": save_adapter(base, tmp_path / "a", 2)}, tmp_path / "lora").values()
    template = (tmp_path / "lora" / "a" / "chat_template.jinja").read_text()
    assert chat_ids(tiny_tokenizer, token, template=template) == chat_ids(tiny_tokenizer, token)
    own = [{"role": "system", "content": "Be brief."}, *CHAT]
    assert tiny_tokenizer.apply_chat_template(own, chat_template=template, tokenize=False) == (
        tiny_tokenizer.apply_chat_template(own, tokenize=False)
    )


def test_a_prefix_stands_in_front_of_the_users_turn(tiny_tokenizer, tmp_path):
    """Where no chat message can be: it needs a prompt that is put together by hand."""
    base = save_tiny_llama(tmp_path / "base", tiny_tokenizer)
    folder = save_adapter(base, tmp_path / "a", slot="prefix")
    (token,) = export_lora({"a": folder}, tmp_path / "lora").values()
    model, _ = load_adapter(folder)
    config = model.peft_config["default"]
    expected = PromptRenderer.for_adapter(config, tiny_tokenizer).be("What do you see?")
    assert token.slot == "prefix" and not (tmp_path / "lora" / "a" / "chat_template.jinja").exists()
    wanted = [token.ids[0] if i in config.be_token_ids else i for i in expected]
    text = tiny_tokenizer.decode(wanted)
    assert text.count(token.text) == 1 and tiny_tokenizer(text)["input_ids"] == wanted


def test_what_cannot_be_exported(tiny_tokenizer, tmp_path):
    base = save_tiny_llama(tmp_path / "base", tiny_tokenizer)
    many = save_adapter(base, tmp_path / "many", 15)
    with pytest.raises(ValueError, match="rows of 'many' need 15 reserved tokens, and the base model has 14"):
        export_lora({"many": many}, tmp_path / "lora")
    one = save_adapter(base, tmp_path / "one")
    with pytest.raises(ValueError, match="multiplies its embeddings by 5.65"):
        export_lora(
            {"one": save_adapter(save_tiny_gemma(tmp_path / "gemma", tiny_tokenizer), tmp_path / "g")},
            tmp_path / "lora",
        )
    with pytest.raises(ValueError, match="no adapter to export"):
        export_lora({}, tmp_path / "lora")
    assert not (tmp_path / "lora").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(FileExistsError, match="not an empty folder"):
        export_lora({"one": one}, tmp_path / "full")
    with pytest.raises(FileNotFoundError, match="no record of"):
        import_lora(many, tmp_path / "again")
    (many / "be_token.json").write_text("{}")
    with pytest.raises(ValueError, match="not a LoRA adapter that peft-be export wrote"):
        import_lora(many, tmp_path / "again")


def test_damaged_lora_adapters_are_refused(tiny_tokenizer, tmp_path):
    base = save_tiny_llama(tmp_path / "base", tiny_tokenizer)
    export_lora({"a": save_adapter(base, tmp_path / "a", 2)}, tmp_path / "lora")
    folder = tmp_path / "lora" / "a"
    record, weights = (folder / "be_token.json").read_text(), (folder / "adapter_model.safetensors").read_bytes()
    for ids in ([1], [1, "2"], [1, 10**6]):
        (folder / "be_token.json").write_text(json.dumps({**json.loads(record), "ids": ids}))
        with pytest.raises(ValueError, match="is damaged|does not fit"):
            import_lora(folder, tmp_path / "again")
    (folder / "be_token.json").write_text(record)
    (folder / "adapter_model.safetensors").write_bytes(weights[:100])
    with pytest.raises(ValueError, match="is damaged"):
        import_lora(folder, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_the_command(tiny_tokenizer, tmp_path, cli):
    base = save_tiny_llama(tmp_path / "base", tiny_tokenizer)
    folders = [save_adapter(base, tmp_path / "one"), save_adapter(base, tmp_path / "two", 2)]
    options = ["export", *folders, "--format", "lora", "--output", tmp_path / "lora"]
    for option, value in (("--default", "one"), ("--token-name", "<|a|>"), ("--base", "model.gguf")):
        values = [option, value] * (2 if option == "--token-name" else 1)
        code, _, err = cli(*options, *values)
        assert code == 1 and option in err and "leave it out" in err.lower() and not (tmp_path / "lora").exists()
    code, out, err = cli(*options, "--dtype", "bfloat16")
    assert code == 0, err
    for name in ("one", "two"):
        token = json.loads((tmp_path / "lora" / name / "be_token.json").read_text())
        assert f"{name}: {token['text']} as the system message" in out
    code, _, err = cli(*options)
    assert code == 1 and "not an empty folder" in err


def test_a_relative_folder_gives_its_own_name(tiny_tokenizer, tmp_path, cli, monkeypatch):
    base = save_tiny_llama(tmp_path / "base", tiny_tokenizer)
    folder = save_adapter(base, tmp_path / "one")
    (folder / "inside").mkdir()
    monkeypatch.chdir(folder / "inside")
    code, out, err = cli("export", "..", "--format", "lora", "--output", tmp_path / "lora")
    assert code == 0 and "one: " in out, err
    assert [path.name for path in (tmp_path / "lora").iterdir()] == ["one"]
    with pytest.raises(ValueError, match="'..' cannot be an adapter's name"):
        export_lora({"..": folder}, tmp_path / "out" / "lora")
    assert not (tmp_path / "out").exists()
