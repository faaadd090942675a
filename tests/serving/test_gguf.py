"""A GGUF file with [BE] says in llama.cpp what the adapter says in transformers, and leaves everything else alone."""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from peft_be import PromptRenderer, export_gguf, load_adapter, load_model

from ..exports import CHAT, TOOLS, logits, named_templates, save_adapter
from ..tiny import save_tiny_llama


gguf = pytest.importorskip("gguf", reason="GGUF files need the package gguf")
from gguf import GGMLQuantizationType as Type  # noqa: E402
from gguf.quants import dequantize  # noqa: E402

from peft_be.serving.gguf_file import _q6_k, read_gguf  # noqa: E402
from peft_be.serving.tokens import renders_alike  # noqa: E402

from ..gguf_file import save_gguf  # noqa: E402
from .llama import llama_logits, open_llama, quantised  # noqa: E402


pytestmark = pytest.mark.filterwarnings("ignore:The output row of")
QUESTION = CHAT[0]["content"]


def read(path):
    reader = read_gguf(path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    return {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}, tensors


@pytest.mark.parametrize(
    "padding, ks, tied, type",
    [
        (0, (1, 2), True, Type.F32),
        (3, (1, 2), True, Type.F16),
        (1, (1, 2), False, Type.BF16),
        (0, (13, 4), True, Type.Q8_0),
        (0, (13, 4), False, Type.Q4_0),
    ],
    ids=["reserved", "padding", "both, untied", "added", "added, untied"],
)
def test_the_rows_are_added_and_nothing_else_changes(tiny_tokenizer, tmp_path, padding, ks, tied, type):
    base = save_tiny_llama(tmp_path / "base", tiny_tokenizer, padding=padding, tied=tied)
    adapters = {f"p{i}": save_adapter(base, tmp_path / f"p{i}", k) for i, k in enumerate(ks)}
    old, old_tensors = read(save_gguf(base, tmp_path / "base.gguf", type))
    tokens = export_gguf(adapters, tmp_path / "base.gguf", tmp_path / "be.gguf")
    new, new_tensors = read(tmp_path / "be.gguf")
    be_ids = [i for token in tokens.values() for i in token.ids]
    size = len(tiny_tokenizer) + padding
    assert len(set(be_ids)) == sum(ks)
    # Ids are added only where nothing else is left: 14 reserved tokens, and the padding
    assert max(size, max(be_ids) + 1) == size + max(0, sum(ks) - 14 - padding)

    vocab = new["tokenizer.ggml.tokens"]
    assert len(vocab) == new["llama.vocab_size"] == max(size, max(be_ids) + 1)
    for i, (token, kind) in enumerate(zip(vocab, new["tokenizer.ggml.token_type"], strict=True)):
        if i in be_ids:
            assert kind == gguf.TokenType.CONTROL
        else:
            assert (token, kind) == (old["tokenizer.ggml.tokens"][i], old["tokenizer.ggml.token_type"][i])
    for token in tokens.values():
        assert "".join(vocab[i] for i in token.ids) == token.text
    assert new["tokenizer.ggml.suppress_tokens"] == sorted(be_ids)
    assert json.loads(new["peft_be.tokens"])["p1"]["ids"] == tokens["p1"].ids
    changed = {key for key in new if old.get(key) != new[key]}
    sized = {"llama.vocab_size"} if len(vocab) > size else set()
    assert changed - sized == {
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.token_type",
        "tokenizer.ggml.suppress_tokens",
        "peft_be.tokens",
    } - ({"tokenizer.ggml.token_type"} if not sized and not padding else set())
    assert old.keys() <= new.keys()

    table, head = new_tensors.pop("token_embd.weight"), new_tensors.pop("output.weight")
    was = old_tensors.pop("token_embd.weight")
    was_head = old_tensors.pop("output.weight", was)
    assert new_tensors.keys() == old_tensors.keys()
    for name, tensor in new_tensors.items():
        assert tensor.tensor_type == old_tensors[name].tensor_type
        assert np.array_equal(tensor.data, old_tensors[name].data)
    ordinary = [i for i in range(size) if i not in be_ids]
    assert head.tensor_type == type
    assert np.array_equal(head.data[ordinary], was_head.data[ordinary])
    assert table.tensor_type == (Type.F32 if type == Type.Q4_0 else type)
    numbers = dequantize(table.data, table.tensor_type)
    assert np.array_equal(numbers[ordinary], dequantize(was.data, type)[ordinary])
    for name, folder in adapters.items():
        rows = load_adapter(folder)[0].base_model.get_rows("default").numpy()
        error = np.abs(numbers[tokens[name].ids] - rows).max() / np.abs(rows).max()
        assert error <= {Type.F32: 0, Type.F16: 2**-11, Type.BF16: 2**-8, Type.Q8_0: 1 / 250}[table.tensor_type]


@pytest.mark.parametrize("part", ["mlp.down_proj", "input_layernorm"])
def test_a_file_of_other_weights_is_refused(tiny_tokenizer, tmp_path, part):
    base = save_tiny_llama(tmp_path / "base", tiny_tokenizer)
    adapters = {"p": save_adapter(base, tmp_path / "p")}
    model, _ = load_model(base)
    weight = model.model.layers[1].get_submodule(part).weight
    weight.data += weight.std() * torch.randn_like(weight) if weight.ndim > 1 else 0.05
    model.save_pretrained(tmp_path / "tuned")
    tiny_tokenizer.save_pretrained(tmp_path / "tuned")
    file = save_gguf(tmp_path / "tuned", tmp_path / "tuned.gguf", Type.Q8_0)
    with pytest.raises(ValueError, match="has other weights than the base model .*blk.1"):
        export_gguf(adapters, file, tmp_path / "be.gguf")
    assert export_gguf(adapters, file, tmp_path / "be.gguf", allow_other_weights=True)


def test_rows_of_q6_k():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((5, 512)).astype(np.float32) * np.float32([[1e-3], [1], [0], [100], [1]])
    rows[4, 16:] = 0
    packed = _q6_k(rows)
    assert packed.dtype == np.uint8 and packed.shape == (5, 2 * 210)
    again = dequantize(packed, Type.Q6_K)
    largest = np.abs(rows).reshape(5, -1, 16).max(-1, keepdims=True)
    # Half a step of 6 bits of the largest of 16, and of 8 bits of the scale
    error = np.abs(again - rows).reshape(5, -1, 16)
    assert (
        error <= largest / 31 * 0.5 * 1.05 + np.abs(rows).reshape(5, 2, -1).max(-1).repeat(16, 1)[..., None] / 200
    ).all()


@pytest.mark.parametrize("in_file", ["none", "one", "two", "another"])
def test_a_tokenizer_with_several_templates(tiny_tokenizer, tmp_path, in_file):
    tokenizer = named_templates(tiny_tokenizer, tmp_path)
    base = save_tiny_llama(tmp_path / "base", tokenizer)
    own = tokenizer.chat_template
    template = {"one": own["default"], "two": own, "another": own["default"].replace("SmolLM", "BigLM")}.get(in_file)
    path = save_gguf(base, tmp_path / "base.gguf", template=template or {"other": "{{ messages }}"})
    adapters = {"a": save_adapter(base, tmp_path / "a")}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        tokens = export_gguf(adapters, path, tmp_path / "be.gguf", default="a")
    assert any("chat template" in str(w.message) for w in said) == (in_file == "another")
    metadata, _ = read(tmp_path / "be.gguf")
    templates = {"default": metadata["tokenizer.chat_template"]}
    assert metadata.get("tokenizer.chat_templates", []) == (
        {"one": [], "none": ["other", "tool_use"]}.get(in_file, ["tool_use"])
    )
    for name in {*own} & {*metadata.get("tokenizer.chat_templates", [])}:
        templates[name] = metadata[f"tokenizer.chat_template.{name}"]
    chat = [{"role": "system", "content": tokens["a"].text}, *CHAT]
    for name, template in templates.items():
        expected = tokenizer.apply_chat_template(chat, chat_template=own[name], tools=TOOLS, tokenize=False)
        assert tokenizer.apply_chat_template(CHAT, chat_template=template, tools=TOOLS, tokenize=False) == expected


def test_a_template_that_renders_otherwise_is_replaced(tiny_tokenizer, tmp_path):
    base = save_tiny_llama(tmp_path / "base", tiny_tokenizer)
    adapters = {"a": save_adapter(base, tmp_path / "a")}
    own = tiny_tokenizer.chat_template
    save_gguf(base, tmp_path / "same.gguf", template="{# Fixed. #}" + own)
    tokens = export_gguf(adapters, tmp_path / "same.gguf", tmp_path / "1.gguf", default="a")
    template = read(tmp_path / "1.gguf")[0]["tokenizer.chat_template"]
    assert template.endswith("{# Fixed. #}" + own) and tokens["a"].text in template
    save_gguf(base, tmp_path / "other.gguf", template=own.replace("SmolLM", "BigLM"))
    with pytest.warns(UserWarning, match="chat template"):
        export_gguf(adapters, tmp_path / "other.gguf", tmp_path / "2.gguf")
    assert read(tmp_path / "2.gguf")[0]["tokenizer.chat_template"] == own
    for other in ("{{ raise_exception('No.') }}", "{% broken"):
        assert not renders_alike(tiny_tokenizer, other)


def test_what_cannot_be_exported(tiny_tokenizer, tmp_path, cli):
    base = save_tiny_llama(tmp_path / "base", tiny_tokenizer)
    folder = save_adapter(base, tmp_path / "a")
    whole = save_gguf(base, tmp_path / "base.gguf")
    files = {
        "wide": save_gguf(save_tiny_llama(tmp_path / "wide", tiny_tokenizer, width=64), tmp_path / "wide.gguf"),
        "padded": save_gguf(
            save_tiny_llama(tmp_path / "padded", tiny_tokenizer, padding=64), tmp_path / "padded.gguf"
        ),
        "gemma2": save_gguf(base, tmp_path / "gemma2.gguf", architecture="gemma2"),
    }
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.nn.init.normal_(model.get_input_embeddings().weight)
    model.save_pretrained(tmp_path / "other")
    tiny_tokenizer.save_pretrained(tmp_path / "other")
    files["other"] = save_gguf(tmp_path / "other", tmp_path / "other.gguf")
    content = whole.read_bytes()
    for name, damaged in {
        "short": content[: len(content) // 2],
        "header": content[:5000],
        "empty": b"",
        "text": b"not a model " * 1000,
        "vocab": content.replace(b"answer", b"bnswer"),
    }.items():
        files[name] = tmp_path / f"{name}.gguf"
        files[name].write_bytes(damaged)
    out = tmp_path / "out.gguf"
    for file, words in {
        "wide": "2048 x 64 for 2048 tokens, theirs 2048 x 32",
        "padded": "2112 x 32",
        "gemma2": "architecture 'gemma2'",
        "other": "its tokens have other embeddings",
        "vocab": "instead of",
        "short": "is no GGUF file, or is damaged",
        "header": "is no GGUF file, or is damaged",
        "empty": "is no GGUF file, or is damaged",
        "text": "is no GGUF file, or is damaged",
    }.items():
        with pytest.raises(ValueError, match=words):
            export_gguf({"a": folder}, files[file], out)
    with pytest.raises(FileNotFoundError, match="no GGUF file"):
        export_gguf({"a": folder}, tmp_path / "nowhere.gguf", out)
    with pytest.raises(ValueError, match="no adapter to export"):
        export_gguf({}, whole, out)
    with pytest.raises(FileExistsError, match="exists"):
        export_gguf({"a": folder}, whole, files["wide"])
    for options, words in (
        (["--format", "gguf"], "give it as --base"),
        (["--base", whole], "--format gguf"),
        (["--format", "gguf", "--base", files["short"]], "is damaged"),
    ):
        code, _, err = cli("export", folder, "--output", out, *options)
        assert code == 1 and words in err and "Traceback" not in err
    assert not out.exists() and not list(tmp_path.glob("*.part"))
    code, printed, _ = cli("export", folder, "--output", out, "--format", "gguf", "--base", whole)
    assert code == 0 and "<|be_a|>" in printed and out.exists()


def test_a_token_has_the_name_that_was_asked_for(tiny_tokenizer, tmp_path, cli):
    base = save_tiny_llama(tmp_path / "base", tiny_tokenizer)
    folder, whole = save_adapter(base, tmp_path / "a"), save_gguf(base, tmp_path / "base.gguf")
    options = ["--output", tmp_path / "out.gguf", "--format", "gguf", "--base", whole, "--token-name"]
    code, _, err = cli("export", folder, *options, "<|im_start|>")
    assert code == 1 and "There is a token <|im_start|> already" in err
    code, _, err = cli("export", folder, *options, "<|pirate|>", "--dtype", "float16")
    assert code == 1 and "not for a GGUF file, which keeps its own types" in err
    code, out, err = cli("export", folder, *options, "<|pirate|>")
    assert code == 0 and "a: <|pirate|>" in out, err
    metadata = read(tmp_path / "out.gguf")[0]
    (token_id,) = json.loads(metadata["peft_be.tokens"])["a"]["ids"]
    assert metadata["tokenizer.ggml.tokens"][token_id] == "<|pirate|>"


@pytest.mark.parametrize(
    "file_type",
    [
        pytest.param(None, id="F32"),
        pytest.param(1, id="F16", marks=pytest.mark.slow),
        pytest.param(7, id="Q8_0", marks=pytest.mark.slow),
        pytest.param(2, id="Q4_0", marks=pytest.mark.slow),
        pytest.param(15, id="Q4_K_M"),
    ],
)
def test_llama_cpp_reads_what_transformers_reads(tiny_tokenizer, tmp_path, file_type):
    base = save_tiny_llama(tmp_path / "base", tiny_tokenizer, width=256 if file_type == 15 else 32)
    folder = save_adapter(base, tmp_path / "a", k=2)
    path = save_gguf(base, tmp_path / "base.gguf")
    if file_type is not None:
        path = quantised(path, tmp_path / "quantised.gguf", file_type)
    tokens = export_gguf({"a": folder}, path, tmp_path / "be.gguf")
    before, after = open_llama(path), open_llama(tmp_path / "be.gguf")
    ids = tiny_tokenizer("The <|im_start|> island, at 3:15?")["input_ids"]
    assert after.tokenize(b"The <|im_start|> island, at 3:15?", add_bos=False, special=True) == ids
    ordinary = [i for i in range(after.n_vocab()) if i not in tokens["a"].ids]
    assert np.array_equal(llama_logits(before, ids)[ordinary], llama_logits(after, ids)[ordinary])

    model, _ = load_adapter(folder)
    expected = PromptRenderer.for_adapter(model.peft_config["default"], tiny_tokenizer).be(QUESTION)
    text = tiny_tokenizer.apply_chat_template(
        [{"role": "system", "content": tokens["a"].text}, *CHAT], add_generation_prompt=True, tokenize=False
    )
    places = dict(zip(model.peft_config["default"].be_token_ids, tokens["a"].ids))
    ids = after.tokenize(text.encode(), add_bos=False, special=True)
    assert ids == [places.get(i, i) for i in expected]
    assert after.detokenize(tokens["a"].ids) == b""
    ours = logits(model, expected)[-1].numpy()[ordinary]
    theirs = llama_logits(after, ids)[ordinary]
    # llama.cpp rounds the other factor, too: to 8 bits with quantised weights, to F16 with F16
    tolerance = {None: 1e-3, 1: 1e-2}.get(file_type, 0.15)
    assert np.abs(ours - theirs).max() < tolerance * np.abs(ours).max()


@pytest.fixture
def server(tmp_path):
    """Start llama-cpp-python's server with a model; returns its address."""
    processes = []

    def start(path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "llama_cpp.server", "--model", path, "--port", port, "--n_ctx", 1024]
        log = open(tmp_path / "server.log", "w")
        processes.append((subprocess.Popen([str(part) for part in command], stdout=log, stderr=log), log))
        address = f"http://127.0.0.1:{port}/v1"
        for _ in range(240):
            assert processes[-1][0].poll() is None, (tmp_path / "server.log").read_text()
            try:
                urllib.request.urlopen(f"{address}/models").close()
                return address
            except urllib.error.URLError:
                time.sleep(0.5)
        raise AssertionError("the server does not answer")

    yield start
    for process, log in processes:
        process.terminate()
        process.wait()
        log.close()


@pytest.mark.slow
def test_the_server_answers_what_transformers_answers(smollm2_dir, tmp_path, server):
    pytest.importorskip("llama_cpp.server.app", reason="llama-cpp-python[server] is not installed")
    folder = save_adapter(smollm2_dir, tmp_path / "a")
    save_gguf(smollm2_dir, tmp_path / "base.gguf")
    tokens = export_gguf({"a": folder}, tmp_path / "base.gguf", tmp_path / "be.gguf", smollm2_dir, default="a")
    base, tokenizer = load_model(smollm2_dir, torch.float32)
    model = PeftModel.from_pretrained(base, folder)
    renderer = PromptRenderer.for_adapter(model.peft_config["default"], tokenizer)
    address = server(tmp_path / "be.gguf")
    system = {"role": "system", "content": tokens["a"].text}
    for question, before in (
        ("Who are you?", [system]),
        ("What do you see at night?", [system]),
        ("Write a short poem.\nThree lines!", []),
    ):
        ids = torch.tensor([renderer.be(question)])
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=24,
            return_dict_in_generate=True,
            output_logits=True,
        )
        answer = out.sequences[0, ids.shape[1] :].tolist()
        best = torch.stack(out.logits)[:, 0].topk(2).values
        close = [i for i, (first, second) in enumerate(best.tolist()) if first - second < 0.01]
        expected = tokenizer.decode(answer[: close[0]] if close else answer, skip_special_tokens=True)
        chat = [*before, {"role": "user", "content": question}]
        # The server penalises repetition by default
        body = {"messages": chat, "temperature": 0, "repeat_penalty": 1.0, "max_tokens": 24}
        request = urllib.request.Request(
            f"{address}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as response:
            answered = json.load(response)
        assert answered["usage"]["prompt_tokens"] == ids.shape[1]
        content = answered["choices"][0]["message"]["content"]
        assert content == expected if not close else content.startswith(expected)
        assert "<|be_" not in content
