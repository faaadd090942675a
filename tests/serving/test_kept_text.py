"""Kept text in every export: what an engine reads of a chat is what the renderer writes, and what it was trained on."""

import ast
import json
import re

import jinja2
import pytest
import torch
from transformers import AutoTokenizer

from peft_be import (
    BETokenConfig,
    PromptRenderer,
    export_gguf,
    export_lora,
    export_lora_gguf,
    export_merged,
    load_adapter,
    load_model,
)
from peft_be.prompting.chat_inputs import jinja_string
from peft_be.serving.cards import describe
from peft_be.serving.lora import import_lora
from peft_be.serving.lora_hub import plan_lora_push
from peft_be.serving.side_by_side import PromptComparison
from peft_be.serving.vllm import PromptEmbeds

from ..exports import CHAT, logits, save_adapter
from ..tiny import save_tiny_llama


pytestmark = pytest.mark.filterwarnings("ignore:The output row of")
KEPT = 'You are the "keeper" of Lestat\'s \\ island.\n{{ x }} {% y %} 你好'


@pytest.fixture
def base(tiny_tokenizer, tmp_path):
    return save_tiny_llama(tmp_path / "base", tiny_tokenizer)


def renderer_of(folder):
    model, tokenizer = load_adapter(folder)
    return model, PromptRenderer.for_adapter(model.peft_config["default"], tokenizer)


def moved(renderer, token, ids):
    """Ids of the adapter as the export has them."""
    places = dict(zip(renderer.be_token_ids, token.ids, strict=True))
    return [places.get(i, i) for i in ids]


def ids_of(tokenizer, chat, template=None):
    return tokenizer.apply_chat_template(chat, chat_template=template, add_generation_prompt=True, return_dict=False)


@pytest.mark.parametrize("k", [1, 3])
def test_a_checkpoint(base, tmp_path, k):
    adapters = {"a": save_adapter(base, tmp_path / "a", k, kept_text=KEPT), "b": save_adapter(base, tmp_path / "b")}
    tokens = export_merged(adapters, tmp_path / "merged", default="a")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    model, renderer = renderer_of(adapters["a"])
    expected = moved(renderer, tokens["a"], renderer.be(CHAT))
    assert ids_of(tokenizer, [{"role": "system", "content": tokens["a"].system_text}, *CHAT]) == expected
    assert ids_of(tokenizer, CHAT) == expected  # the default
    merged, _ = load_model(str(tmp_path / "merged"))
    usual = torch.tensor([i for i in range(500) if i not in sum((token.ids for token in tokens.values()), [])])
    torch.testing.assert_close(logits(merged, expected)[:, usual], logits(model, renderer.be(CHAT))[:, usual])
    record = json.loads((tmp_path / "merged" / "be_tokens.json").read_text())
    assert record["a"]["system_text"] == f"{tokens['a'].text}\n{KEPT}" and record["a"]["kept_text"] == KEPT
    assert record["b"]["system_text"] == tokens["b"].text and record["b"]["kept_text"] is None


@pytest.mark.parametrize("k", [1, 3])
def test_lora_there_and_back(base, tiny_tokenizer, tmp_path, k):
    folder = save_adapter(base, tmp_path / "a", k, kept_text=KEPT)
    (token,) = export_lora({"a": folder}, tmp_path / "lora").values()
    _, renderer = renderer_of(folder)
    expected = moved(renderer, token, renderer.be(CHAT))
    record = json.loads((tmp_path / "lora" / "a" / "be_token.json").read_text())
    assert ids_of(tiny_tokenizer, [{"role": "system", "content": record["system_text"]}, *CHAT]) == expected
    template = (tmp_path / "lora" / "a" / "chat_template.jinja").read_text(encoding="utf-8")
    assert ids_of(tiny_tokenizer, CHAT, template) == expected

    import_lora(tmp_path / "lora" / "a", tmp_path / "again")
    again = BETokenConfig.from_pretrained(tmp_path / "again")
    assert again.kept_text == KEPT
    # An export of an earlier version has no such fields
    del record["kept_text"], record["system_text"]
    (tmp_path / "lora" / "a" / "be_token.json").write_text(json.dumps(record))
    assert import_lora(tmp_path / "lora" / "a", tmp_path / "earlier").kept_text is None


def test_gguf_files(base, tiny_tokenizer, tmp_path):
    pytest.importorskip("gguf", reason="GGUF files need the package gguf")
    from peft_be.serving.gguf_file import read_gguf

    from ..gguf_file import save_gguf

    folder = save_adapter(base, tmp_path / "a", 2, kept_text=KEPT)
    file = save_gguf(base, tmp_path / "base.gguf")
    _, renderer = renderer_of(folder)
    (token,) = export_lora_gguf({"a": folder}, file, tmp_path / "lora").values()
    template = (tmp_path / "lora" / "a" / "chat_template.jinja").read_text(encoding="utf-8")
    assert ids_of(tiny_tokenizer, CHAT, template) == moved(renderer, token, renderer.be(CHAT))

    (token,) = export_gguf({"a": folder}, file, tmp_path / "be.gguf", default="a").values()
    fields = read_gguf(tmp_path / "be.gguf").fields
    record = json.loads(fields["peft_be.tokens"].contents())["a"]
    assert record["system_text"] == token.system_text == f"{token.text}\n{KEPT}"
    shown = tiny_tokenizer.apply_chat_template(
        CHAT, chat_template=fields["tokenizer.chat_template"].contents(), tokenize=False
    )
    assert f"<|im_start|>system\n{token.system_text}<|im_end|>" in shown


def test_llama_cpp_reads_it(base, tiny_tokenizer, tmp_path):
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
    from ..gguf_file import save_gguf
    from .llama import open_llama

    folder = save_adapter(base, tmp_path / "a", 2, kept_text=KEPT)
    (token,) = export_gguf({"a": folder}, save_gguf(base, tmp_path / "base.gguf"), tmp_path / "be.gguf").values()
    _, renderer = renderer_of(folder)
    chat = [{"role": "system", "content": token.system_text}, *CHAT]
    text = tiny_tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    llama = open_llama(tmp_path / "be.gguf")
    assert llama.tokenize(text.encode(), add_bos=False, special=True) == moved(renderer, token, renderer.be(CHAT))


@pytest.mark.parametrize("k", [1, 3])
def test_embeddings_for_vllm(base, tmp_path, k):
    folder = save_adapter(base, tmp_path / "a", k, kept_text=KEPT)
    prompt = PromptEmbeds.from_pretrained(folder)
    model, renderer = renderer_of(folder)
    bare, _ = load_model(base)
    embeds = prompt.prompt_embeds(CHAT, renderer.tokenizer, bare.get_input_embeddings())
    assert torch.equal(embeds, model.get_input_embeddings()(torch.tensor(renderer.be(CHAT))))

    system, *rest = prompt.messages(CHAT)
    assert rest == CHAT and [part["type"] for part in system["content"]] == ["prompt_embeds", "text"]
    # As vLLM makes a text of the parts: one special token for the embeddings, and a line break between parts
    stand_in = renderer.tokenizer.convert_ids_to_tokens(renderer.be_token_ids)
    content = "\n".join(["".join(stand_in), system["content"][1]["text"]])
    assert ids_of(renderer.tokenizer, [{"role": "system", "content": content}, *CHAT]) == renderer.be(CHAT)


def test_what_engines_would_read_otherwise_is_refused(base, tiny_tokenizer, tmp_path):
    """A kept text that spells the token of an adapter next to it."""
    adapters = {
        "a": save_adapter(base, tmp_path / "a", kept_text="Speak of <|be_b|> often."),
        "b": save_adapter(base, tmp_path / "b"),
    }
    with pytest.raises(ValueError, match=r"The kept text spells|Engines would read the kept text of 'a'"):
        export_merged(adapters, tmp_path / "merged")
    assert not list((tmp_path / "merged").glob("*.safetensors"))
    export_merged({"a": adapters["a"]}, tmp_path / "alone")


def test_a_template_that_changes_kept_text_is_refused(tiny_tokenizer, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer.name_or_path)
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "message['content']", "message['content'].replace('island', 'ISLAND')"
    )
    base = save_tiny_llama(tmp_path / "upper", tokenizer)
    folder = save_adapter(base, tmp_path / "a", kept_text="Keep the island.")
    with pytest.raises(ValueError, match="does not show .*Keep the island.* as it is written"):
        export_lora({"a": folder}, tmp_path / "lora")


def test_a_text_in_a_template():
    for text in ("'", '"', "\\", "\\n", "\n\r\t", KEPT, "%}", "}}", "'}] -%}", "{# x #}"):
        template = jinja2.Environment().from_string(f"{{%- set x = {jinja_string(text)} -%}}{{{{ x }}}}")
        assert template.render() == text and "\n" not in jinja_string(text)


def test_what_users_are_told(cli, base, tmp_path):
    folder = save_adapter(base, tmp_path / "a", kept_text="Keep <b>the</b> light\non.")
    code, out, err = cli("export", folder, "--format", "lora", "--output", tmp_path / "lora")
    text = json.loads((tmp_path / "lora" / "a" / "be_token.json").read_text())["system_text"]
    assert code == 0 and f"a: {json.dumps(text)} as the system message" in out, err
    code, out, err = cli("info", folder)
    assert code == 0 and "kept text" in out and "Keep <b>the</b> light" in out, err
    assert "```text\nKeep <b>the</b> light\non.\n```" in (folder / "README.md").read_text()
    comparison = PromptComparison([folder])
    assert "Keep &lt;b&gt;the&lt;/b&gt; light\non." in describe(comparison, "a")
    card = plan_lora_push(folder, "me/keeper", base_model="org/tiny").card
    told = re.search(r"^chat = .*$", card, re.MULTILINE)[0]
    (chat,) = (ast.literal_eval(node.value) for node in ast.parse(told).body)
    assert chat[0] == {"role": "system", "content": text}
    assert "`<repo_name>` as the system message, followed by a part of the prompt, stands for the prompt." in card
