"""A LoRA adapter in a GGUF file says in llama.cpp what the [BE] adapter says in transformers, next to the base model's file."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from peft_be import PromptRenderer, export_gguf, export_lora_gguf, load_adapter, load_model
from peft_be.serving.lora_gguf import served_base

from ..exports import CHAT, logits, save_adapter
from ..tiny import save_tiny_gemma, save_tiny_llama
from .engines import MAX_TOKENS, QUESTIONS, greedy


gguf = pytest.importorskip("gguf", reason="GGUF files need the package gguf")
from gguf import GGMLQuantizationType as Type  # noqa: E402
from gguf.quants import dequantize  # noqa: E402

from ..gguf_file import save_gemma_gguf, save_gguf  # noqa: E402
from .llama import llama_greedy, llama_logits, loaded_lora, open_llama, quantised  # noqa: E402


pytestmark = pytest.mark.filterwarnings("ignore:The output row of")
TEXT = "The <|im_start|> island, at 3:15?"


def read(path):
    """What a GGUF file has: the metadata, and the tensors by name."""
    reader = gguf.GGUFReader(path)
    fields = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    return fields, {tensor.name: tensor for tensor in reader.tensors}


def be_ids(folder, tokenizer, token, query=CHAT[0]["content"]):
    """The model of a [BE] adapter, its ids of a chat, and those of the chat with the token of the LoRA adapter."""
    model, _ = load_adapter(folder)
    config = model.peft_config["default"]
    ids = PromptRenderer.for_adapter(config, tokenizer).be(query)
    moved = dict(zip(config.be_token_ids, token.ids))
    return model, ids, [moved.get(i, i) for i in ids]


@pytest.mark.parametrize("type", [Type.F32, Type.BF16, Type.Q8_0, Type.Q4_0])
@pytest.mark.parametrize("tied", [True, False])
def test_the_file_is_lora_of_the_embedding(tiny_tokenizer, tmp_path, tied, type):
    base = save_tiny_llama(tmp_path / "base", tiny_tokenizer, tied=tied)
    adapters = {f"p{k}": save_adapter(base, tmp_path / f"p{k}", k) for k in (1, 3)}
    file = save_gguf(base, tmp_path / "base.gguf", type)
    tokens = export_lora_gguf(adapters, file, tmp_path / "lora")
    _, base_tensors = read(file)
    table = dequantize(base_tensors["token_embd.weight"].data, type)
    for name, folder in adapters.items():
        token, k = tokens[name], int(name[1:])
        metadata, tensors = read(tmp_path / "lora" / name / "adapter.gguf")
        assert metadata == {
            "general.architecture": "llama",
            "general.type": "adapter",
            "adapter.type": "lora",
            "adapter.lora.alpha": k,
        }
        shapes = {name: tuple(map(int, tensor.shape)) for name, tensor in tensors.items()}
        assert shapes == {
            "token_embd.weight.lora_a": (k, len(tiny_tokenizer)),
            "token_embd.weight.lora_b": (k, table.shape[1]),
        }
        a, b = (tensors[f"token_embd.weight.lora_{factor}"].data.astype(np.float32) for factor in "ab")
        rows = load_adapter(folder)[0].base_model.get_rows("default").numpy()
        changed = table + a @ b.T
        np.testing.assert_allclose(changed[token.ids], rows, rtol=1e-6, atol=1e-7)
        others = np.setdiff1d(np.arange(len(table)), token.ids)
        assert np.array_equal(changed[others], table[others])
        record = json.loads((tmp_path / "lora" / name / "be_token.json").read_text())
        assert record["text"] == token.text and record["ids"] == token.ids
        assert token.text == "".join(tiny_tokenizer.convert_ids_to_tokens(token.ids))
        template = (tmp_path / "lora" / name / "chat_template.jinja").read_text()
        with_token = [{"role": "system", "content": token.text}, *CHAT]
        assert tiny_tokenizer.apply_chat_template(CHAT, chat_template=template, tokenize=False) == (
            tiny_tokenizer.apply_chat_template(with_token, tokenize=False)
        )


def test_a_tied_base_gets_an_output_table_of_its_own(tiny_tokenizer, tmp_path):
    base = save_tiny_llama(tmp_path / "base", tiny_tokenizer)
    adapters = {"a": save_adapter(base, tmp_path / "a")}
    file = save_gguf(base, tmp_path / "base.gguf", Type.Q4_0)
    export_lora_gguf(adapters, file, tmp_path / "lora")
    (old, old_tensors), (new, new_tensors) = read(file), read(tmp_path / "lora" / "base.gguf")
    assert new == old
    output = new_tensors.pop("output.weight")
    assert new_tensors.keys() == old_tensors.keys()
    for name, tensor in [*old_tensors.items(), ("token_embd.weight", old_tensors["token_embd.weight"])]:
        for copy in (new_tensors[name], *([output] if name == "token_embd.weight" else [])):
            assert copy.tensor_type == tensor.tensor_type and np.array_equal(copy.data, tensor.data)
    # It is the base of further adapters, and needs no copy again
    export_lora_gguf(adapters, tmp_path / "lora" / "base.gguf", tmp_path / "more")
    assert [path.name for path in (tmp_path / "more").iterdir()] == ["a"]
    assert (tmp_path / "more" / "a" / "adapter.gguf").read_bytes() == (
        tmp_path / "lora" / "a" / "adapter.gguf"
    ).read_bytes()


def test_what_cannot_be_exported(tiny_tokenizer, tmp_path, cli):
    base = save_tiny_llama(tmp_path / "base", tiny_tokenizer)
    folder, file = save_adapter(base, tmp_path / "a"), save_gguf(base, tmp_path / "base.gguf")
    out = tmp_path / "lora"
    with pytest.raises(ValueError, match="'base.gguf' is the name of the base model's copy"):
        export_lora_gguf({"base.gguf": folder}, file, out)
    with pytest.raises(ValueError, match="rows of 'many' need 15 reserved tokens, and the base model has 14"):
        export_lora_gguf({"many": save_adapter(base, tmp_path / "many", 15)}, file, out)
    wide = save_gguf(save_tiny_llama(tmp_path / "wide", tiny_tokenizer, width=64), tmp_path / "wide.gguf")
    options = ["export", folder, "--format", "lora-gguf", "--output", out]
    for more, words in (
        ([], "give it as --base"),
        (["--base", wide], "2048 x 64 for 2048 tokens, theirs 2048 x 32"),
        (["--base", save_gguf(base, tmp_path / "2.gguf", architecture="gemma2")], "architecture 'gemma2'"),
        (["--base", file, "--dtype", "bfloat16"], "--dtype is not for a GGUF file"),
        (["--base", file, "--token-name", "<|a|>"], "--token-name is not for LoRA adapters"),
    ):
        code, _, err = cli(*options, *more)
        assert code == 1 and words in err and "Traceback" not in err and not out.exists()
    code, printed, err = cli(*options, "--base", file)
    token = json.loads((out / "a" / "be_token.json").read_text())
    assert code == 0 and f"a: {token['text']} as the system message" in printed, err
    code, _, err = cli(*options, "--base", file)
    assert code == 1 and "not an empty folder" in err


def test_tokens_that_the_file_does_not_read_are_not_taken(tiny_tokenizer, tmp_path):
    """A file whose reserved tokens are ordinary words, and one that names one of them as the end of a text."""
    base = save_tiny_llama(tmp_path / "base", tiny_tokenizer)
    adapters, file = {"a": save_adapter(base, tmp_path / "a")}, save_gguf(base, tmp_path / "base.gguf")
    (token,) = export_lora_gguf(adapters, file, tmp_path / "lora").values()
    reader = gguf.GGUFReader(file, "r+")
    reader.fields["tokenizer.ggml.eos_token_id"].parts[-1][0] = token.ids[0]
    reader.data.flush()
    (other,) = export_lora_gguf(adapters, file, tmp_path / "other").values()
    assert other.ids != token.ids
    types = reader.fields["tokenizer.ggml.token_type"]
    for part in types.data:
        types.parts[part][0] = gguf.TokenType.NORMAL
    reader.data.flush()
    with pytest.raises(ValueError, match="the base model has 0"):
        export_lora_gguf(adapters, file, tmp_path / "none")


@pytest.mark.parametrize(
    "file_type",
    [
        pytest.param(None, id="F32"),
        pytest.param(1, id="F16", marks=pytest.mark.slow),
        pytest.param(7, id="Q8_0"),
        pytest.param(2, id="Q4_0", marks=pytest.mark.slow),
        pytest.param(15, id="Q4_K_M"),
    ],
)
@pytest.mark.parametrize("tied", [True, False])
def test_llama_cpp_reads_what_transformers_reads(tiny_tokenizer, tmp_path, file_type, tied):
    base = save_tiny_llama(tmp_path / "base", tiny_tokenizer, width=256 if file_type == 15 else 32, tied=tied)
    adapters = {f"p{k}": save_adapter(base, tmp_path / f"p{k}", k) for k in (1, 8)}
    file = save_gguf(base, tmp_path / "base.gguf")
    if file_type is not None:
        file = quantised(file, tmp_path / "quantised.gguf", file_type)
    tokens = export_lora_gguf(adapters, file, tmp_path / "lora")
    as_tokens = export_gguf(adapters, file, tmp_path / "be.gguf")
    llama, merged = open_llama(served_base(file, tmp_path / "lora")), open_llama(tmp_path / "be.gguf")
    row_type = read(tmp_path / "be.gguf")[1]["token_embd.weight"].tensor_type
    plain = tiny_tokenizer(TEXT)["input_ids"]
    before = llama_logits(llama, plain)
    assert np.array_equal(before, llama_logits(open_llama(file), plain))
    with loaded_lora(llama, *(tmp_path / "lora" / name / "adapter.gguf" for name in adapters)) as apply:
        for i, (name, folder) in enumerate(adapters.items()):
            apply(*(float(i == j) for j in range(len(adapters))))
            model, wanted_ids, ids = be_ids(folder, tiny_tokenizer, tokens[name])
            chat = [{"role": "system", "content": tokens[name].text}, *CHAT]
            text = tiny_tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
            assert llama.tokenize(text.encode(), add_bos=False, special=True) == ids
            theirs = llama_logits(llama, ids)
            # Text without the token is read as ever, and without the adapter so is the token
            assert np.array_equal(llama_logits(llama, plain), before)
            apply(*[0.0] * len(adapters))
            assert np.array_equal(llama_logits(llama, plain), before)
            effect = np.abs(llama_logits(llama, ids) - theirs).max()
            # The output table is the base model's: [BE]'s own ids score as there
            used = {*model.peft_config["default"].be_token_ids, *(j for t in as_tokens.values() for j in t.ids)}
            compared = [j for j in range(len(theirs)) if j not in used]
            if file_type in (None, 1):  # llama.cpp rounds what it multiplies as the weights are
                ours = logits(model, wanted_ids)[-1].numpy()
                assert np.abs(ours - theirs)[compared].max() < {None: 2e-3, 1: 2e-2}[file_type] * effect
            # As a token of the model, in the same engine, where the row may be rounded
            moved = dict(zip(tokens[name].ids, as_tokens[name].ids))
            same = llama_logits(merged, [moved.get(j, j) for j in ids])
            error = np.abs(same - theirs)[compared].max() / effect
            assert error < {Type.F32: 1e-3, Type.F16: 1e-2}.get(row_type, 0.1)


def test_a_model_that_multiplies_its_embeddings(tiny_tokenizer, tmp_path):
    """llama.cpp adds the adapter before it multiplies, as transformers does with the row."""
    base = save_tiny_gemma(tmp_path / "base", tiny_tokenizer)
    adapters, file = {"a": save_adapter(base, tmp_path / "a", 2)}, save_gemma_gguf(base, tmp_path / "base.gguf")
    (token,) = export_lora_gguf(adapters, file, tmp_path / "lora").values()
    model, wanted_ids, ids = be_ids(adapters["a"], tiny_tokenizer, token)
    assert model.peft_config["default"].embed_scale != 1
    ours = logits(model, wanted_ids)[-1].numpy()
    llama = open_llama(tmp_path / "lora" / "base.gguf", exact=True)
    without = llama_logits(llama, ids)
    with loaded_lora(llama, tmp_path / "lora" / "a" / "adapter.gguf") as apply:
        apply(1.0)
        theirs = llama_logits(llama, ids)
    compared = [i for i in range(len(theirs)) if i not in model.peft_config["default"].be_token_ids]
    # llama.cpp looks Gemma's activation up in a table of float16
    assert np.abs(ours - theirs)[compared].max() < 1e-2 * np.abs(without - theirs).max()


def test_a_tied_output_embedding_stops_llama_cpp(tiny_tokenizer, tmp_path):
    """Which is why a tied base is copied: the adapter is applied to whatever has the input table's name."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    base = save_tiny_llama(tmp_path / "base", tiny_tokenizer)
    file = save_gguf(base, tmp_path / "base.gguf")
    export_lora_gguf({"a": save_adapter(base, tmp_path / "a")}, file, tmp_path / "lora")
    code = f"""
import sys
from llama_cpp import Llama
llama = Llama(sys.argv[1], lora_path={str(tmp_path / "lora" / "a" / "adapter.gguf")!r}, n_ctx=64, verbose=False)
llama.eval([1, 2, 3])
print("read")
"""
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    tied, untied = (
        subprocess.run(
            [sys.executable, "-c", code, path], capture_output=True, text=True, timeout=300, env=environment
        )
        for path in (file, tmp_path / "lora" / "base.gguf")
    )
    assert untied.returncode == 0 and untied.stdout == "read\n", untied.stderr
    assert tied.returncode < 0 and "read" not in tied.stdout and "ggml_can_mul_mat" in tied.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "file_type", [pytest.param(None, id="F32"), pytest.param(7, id="Q8_0"), pytest.param(3, id="Q4_1")]
)
def test_smollm2_answers_with_one_row_and_with_eight(smollm2_dir, tmp_path, file_type):
    adapters = {f"p{k}": save_adapter(smollm2_dir, tmp_path / f"p{k}", k) for k in (1, 8)}
    file = save_gguf(smollm2_dir, tmp_path / "base.gguf")
    if file_type is not None:
        file = quantised(file, tmp_path / "quantised.gguf", file_type, pure=True)
    tokens = export_lora_gguf(adapters, file, tmp_path / "lora")
    _, tokenizer = load_model(smollm2_dir)
    llama = open_llama(served_base(file, tmp_path / "lora"), exact=file_type is None)
    with loaded_lora(llama, *(tmp_path / "lora" / name / "adapter.gguf" for name in adapters)) as apply:
        for i, (name, folder) in enumerate(adapters.items()):
            apply(*(float(i == j) for j in range(len(adapters))))
            for question in QUESTIONS:
                model, wanted_ids, ids = be_ids(folder, tokenizer, tokens[name], question)
                ours, theirs = logits(model, wanted_ids)[-1], torch.from_numpy(llama_logits(llama, ids))
                kl = torch.nn.functional.kl_div(
                    theirs.log_softmax(-1), ours.log_softmax(-1), reduction="sum", log_target=True
                )
                assert kl < {None: 1e-5, 7: 0.02, 3: 0.5}[file_type]
                if file_type is None:
                    assert (ours - theirs).abs().max() < 1e-3
                    assert llama_greedy(llama, ids, MAX_TOKENS) == greedy(model, wanted_ids)
