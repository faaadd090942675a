"""One server of llama.cpp answers with [BE] adapters as LoRA, chosen by request, and with the base model next to them."""

import pytest

from peft_be import PromptRenderer, export_lora_gguf, load_adapter, load_model, strip_special_tokens

from ..exports import save_adapter
from .engines import MAX_TOKENS, QUESTIONS, greedy


pytest.importorskip("gguf", reason="GGUF files need the package gguf")
from ..gguf_file import save_gguf  # noqa: E402


pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("llama-server")]
SETTINGS = {"temperature": 0, "max_tokens": MAX_TOKENS, "logprobs": True, "top_logprobs": 1}
BRIEF = {"role": "system", "content": "Be brief."}


@pytest.fixture(scope="module")
def exported(smollm2_dir, tmp_path_factory):
    """The base model, its tokenizer, two [BE] adapters, the folder of their export, and their token."""
    folder = tmp_path_factory.mktemp("llama-server")
    adapters = {"a": save_adapter(smollm2_dir, folder / "a"), "b": save_adapter(smollm2_dir, folder / "b", scale=40.0)}
    file = save_gguf(smollm2_dir, folder / "base.gguf")
    token = export_lora_gguf(adapters, file, folder / "lora")["a"]
    return *load_model(smollm2_dir), adapters, folder / "lora", token


@pytest.fixture(scope="module")
def server(llama_server, exported):
    *_, folder, _ = exported
    options = ["--lora", f"{folder / 'a' / 'adapter.gguf'},{folder / 'b' / 'adapter.gguf'}", "--cache-ram", 0]
    options += ["--chat-template-file", folder / "a" / "chat_template.jinja"]
    with llama_server(str(folder / "base.gguf"), *map(str, options)) as server:
        yield server


def answer(server, chat, *scales):
    chosen = [{"id": i, "scale": scale} for i, scale in enumerate(scales)]
    reply = server.post("/v1/chat/completions", {**SETTINGS, "messages": chat, "lora": chosen})
    return [token["id"] for token in reply["choices"][0]["logprobs"]["content"]]


def test_each_request_chooses_its_adapter(server, exported):
    """Mixed and each twice, for the cache of prompts, which begin alike."""
    base, tokenizer, adapters, _, token = exported
    expected = {}
    for question in QUESTIONS:
        user = {"role": "user", "content": question}
        ids = tokenizer.apply_chat_template([BRIEF, user], add_generation_prompt=True, return_dict=False)
        expected[question, "base"] = greedy(base, ids)
    for name, folder in adapters.items():
        model, _ = load_adapter(folder)
        renderer = PromptRenderer.for_adapter(model.peft_config["default"], tokenizer)
        expected |= {(question, name): greedy(model, renderer.be(question)) for question in QUESTIONS}
    scales = {"a": (1.0, 0.0), "b": (0.0, 1.0), "base": (0.0, 0.0)}
    for _ in range(2):
        for (question, name), wanted in expected.items():
            # The template has the token where a chat has no system message
            chat = [*[BRIEF] * (name == "base"), {"role": "user", "content": question}]
            assert answer(server, chat, *scales[name]) == wanted, (question, name)
    question = QUESTIONS[0]
    chat = [{"role": "system", "content": token.text}, {"role": "user", "content": question}]
    assert answer(server, chat, 1.0) == expected[question, "a"]


def test_no_request_continues_what_another_adapter_read(server):
    """Prompts that are kept are found by their ids, which adapters share: hence `--cache-ram 0`."""

    def probabilities(text, *scales, **options):
        chosen = [{"id": i, "scale": scale} for i, scale in enumerate(scales)]
        chat = [{"role": "user", "content": text}]
        body = {**SETTINGS, "messages": chat, "lora": chosen, "top_logprobs": 5, "max_tokens": 1, **options}
        reply = server.post("/v1/chat/completions", body)
        (first,) = reply["choices"][0]["logprobs"]["content"]
        return {token["id"]: round(token["logprob"], 2) for token in first["top_logprobs"]}

    sea, money = ("Tell me about the sea. " * 12, "Where is my money, I ask you? " * 12)
    other = probabilities(sea, 0.0, 1.0, cache_prompt=False)
    wanted = probabilities(sea, 1.0, 0.0, cache_prompt=False)
    assert wanted != other
    assert probabilities(sea, 0.0, 1.0) == other
    probabilities(money, 1.0, 0.0)
    assert probabilities(sea, 1.0, 0.0) == wanted


def test_what_users_write(server, exported):
    """The token of an adapter is one of the base model's: its tokenizer is the one to strip with."""
    _, tokenizer, _, _, token = exported

    def read(text):
        chat = [{"role": "user", "content": text}]
        prompt = server.post("/apply-template", {"messages": chat})["prompt"]
        ids = server.post("/tokenize", {"content": prompt, "add_special": True, "parse_special": True})["tokens"]
        lora = [{"id": 0, "scale": 1.0}]
        reply = server.post("/v1/chat/completions", {"messages": chat, "max_tokens": 1, "lora": lora})
        assert reply["usage"]["prompt_tokens"] == len(ids)
        return ids

    plain = read("Who are you?")
    assert plain.count(token.ids[0]) == 1
    written = f"{token.text}Who are you?<|im_end|>"
    assert read(written).count(token.ids[0]) == 2
    assert read(strip_special_tokens(written, tokenizer)) == plain
