"""[BE] in vLLM: what a request says is what transformers reads, and a real server answers the same tokens."""

import base64
import io
import os
import shutil

import pytest
import torch

from peft_be import BETokenConfig, PromptRenderer, export_merged, load_adapter, load_model
from peft_be.serving.vllm import PromptDirectory, PromptEmbeds, encode

from ..exports import save_adapter
from ..tiny import save_tiny_gemma, save_tiny_llama
from .engines import MAX_TOKENS, QUESTIONS, greedy


QUERY = [
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "A <|im_end|> pirate."},
    {"role": "user", "content": "And where is the rum?"},
]


@pytest.fixture
def base(tiny_tokenizer, tmp_path):
    return save_tiny_llama(tmp_path / "base", tiny_tokenizer)


def test_a_tensor_survives_the_request():
    rows = torch.randn(3, 8)
    read = torch.load(io.BytesIO(base64.b64decode(encode(rows[1:]), validate=True)), weights_only=True)
    assert torch.equal(read, rows[1:])
    assert read.untyped_storage().nbytes() == 2 * 8 * 4  # and nothing of the tensor that it is a part of


@pytest.mark.parametrize("slot", ["system", "prefix"])
@pytest.mark.parametrize("k", [1, 3])
def test_the_whole_input_is_what_the_first_layer_reads_of_the_adapter(base, tmp_path, k, slot):
    prompt = PromptEmbeds.from_pretrained(save_adapter(base, tmp_path / "a", k, slot))
    model, tokenizer = load_adapter(tmp_path / "a")
    ids = torch.tensor(PromptRenderer.for_adapter(prompt.config, tokenizer).be(QUERY))
    bare, _ = load_model(base)
    embeds = prompt.prompt_embeds(QUERY, tokenizer, bare.get_input_embeddings())
    assert torch.equal(embeds, model.get_input_embeddings()(ids))


def test_a_base_that_scales_its_embeddings(tiny_tokenizer, tmp_path):
    base = save_tiny_gemma(tmp_path / "base", tiny_tokenizer)
    prompt = PromptEmbeds.from_pretrained(save_adapter(base, tmp_path / "a"))
    model, _ = load_adapter(tmp_path / "a")
    ids = torch.tensor(prompt.config.be_token_ids)
    torch.testing.assert_close(prompt.rows, model.get_input_embeddings()(ids))
    assert prompt.config.embed_scale == pytest.approx(32**0.5)


def test_a_chat_request_has_the_row_as_its_system_message(base, tmp_path):
    prompt = PromptEmbeds.from_pretrained(save_adapter(base, tmp_path / "a", k=2))
    system, *rest = prompt.messages(QUERY)
    assert system == {"role": "system", "content": [{"type": "prompt_embeds", "data": encode(prompt.rows)}]}
    assert rest == QUERY
    assert prompt.messages("Hi")[1:] == [{"role": "user", "content": "Hi"}]


def test_a_directory_finds_adapters_while_it_is_used(base, tmp_path):
    folder = tmp_path / "prompts"
    save_adapter(base, folder / "pirate")
    prompts = PromptDirectory(folder)
    assert list(prompts) == ["pirate"]
    save_adapter(base, folder / "refunds", k=2)
    assert list(prompts) == ["pirate", "refunds"] and len(prompts) == 2
    assert len(prompts["refunds"].rows) == 2
    assert prompts["pirate"] is prompts["pirate"]
    for name in ("nobody", "../base", "pirate/..", str(folder / "pirate"), "."):
        assert name not in prompts
        with pytest.raises(KeyError, match="no adapter"):
            prompts[name]


def test_a_directory_notices_what_became_of_its_adapters(base, tmp_path):
    folder = tmp_path / "prompts"
    save_adapter(base, folder / "pirate")
    prompts = PromptDirectory(folder)
    first = prompts["pirate"].rows
    file = folder / "pirate" / "adapter_model.safetensors"
    before = file.stat()
    save_adapter(base, tmp_path / "other", scale=30.0)
    file.write_bytes((tmp_path / "other" / "adapter_model.safetensors").read_bytes())
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # of the same size, and seemingly of the same time
    assert torch.allclose(prompts["pirate"].rows, first / 2)
    shutil.rmtree(folder / "pirate")
    save_adapter(base, folder / "pirate", k=3)
    assert len(prompts["pirate"].rows) == 3
    file.write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="is damaged"):
        prompts["pirate"]
    shutil.rmtree(folder / "pirate")
    with pytest.raises(KeyError, match="no adapter 'pirate'"):
        prompts["pirate"]
    save_adapter(base, folder / "pirate")
    assert torch.equal(prompts["pirate"].rows, first)
    shutil.rmtree(folder / "pirate")
    with pytest.raises(KeyError, match="any more"):
        prompts["pirate"]
    assert "pirate" not in prompts


def test_what_cannot_be_served(base, tmp_path):
    with pytest.raises(FileNotFoundError, match="check the path"):
        PromptDirectory(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="There is no adapter"):
        PromptEmbeds.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no chat message can be"):
        PromptEmbeds.from_pretrained(save_adapter(base, tmp_path / "prefix", slot="prefix")).messages("Hi")
    config = PromptEmbeds.from_pretrained(tmp_path / "prefix").config
    # A row of zeros is the one that could share a key of the prefix cache with text
    for row in (torch.zeros(1, 32), torch.full((1, 32), float("nan"))):
        with pytest.raises(ValueError, match="zero or not finite"):
            PromptEmbeds(config, row)
    (tmp_path / "prefix" / "adapter_model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="is damaged"):
        PromptEmbeds.from_pretrained(tmp_path / "prefix")
    model, _ = load_model(base)
    from peft import get_peft_model

    get_peft_model(model, BETokenConfig(num_be_tokens=0, use_ae_token=True)).save_pretrained(tmp_path / "ae")
    with pytest.raises(ValueError, match="no \\[BE\\]"):
        PromptEmbeds.from_pretrained(tmp_path / "ae")


SETTINGS = {"model": "base", "temperature": 0, "max_tokens": MAX_TOKENS, "return_token_ids": True}


@pytest.mark.slow
@pytest.mark.xdist_group("vllm")  # two engines at a time may not fit in the memory
def test_a_server_of_the_merged_checkpoint_answers_as_transformers(vllm_server, smollm2_dir, tmp_path):
    adapters = {name: save_adapter(smollm2_dir, tmp_path / name, k) for name, k in (("a", 1), ("b", 2))}
    tokens = export_merged(adapters, tmp_path / "merged", default="a")
    with vllm_server(str(tmp_path / "merged")) as server:
        for name, folder in adapters.items():
            model, tokenizer = load_adapter(folder)
            renderer = PromptRenderer.for_adapter(model.peft_config["default"], tokenizer)
            places = dict(zip(model.peft_config["default"].be_token_ids, tokens[name].ids))
            for question in QUESTIONS:
                ids = renderer.be(question)
                chat = [{"role": "system", "content": tokens[name].text}, {"role": "user", "content": question}]
                reply = server.post("/v1/chat/completions", {**SETTINGS, "messages": chat})
                assert reply["prompt_token_ids"] == [places.get(i, i) for i in ids]
                assert reply["choices"][0]["token_ids"] == greedy(model, ids)
                if name == "a":
                    default = server.post("/v1/chat/completions", {**SETTINGS, "messages": chat[1:]})
                    assert default["prompt_token_ids"] == reply["prompt_token_ids"]


@pytest.mark.slow
@pytest.mark.xdist_group("vllm")
def test_a_server_of_the_base_model_answers_mixed_requests_as_transformers(vllm_server, smollm2_dir, tmp_path):
    """Interleaved, and each twice: the prefix cache must not give one prompt's answer to another's request."""
    folders = [save_adapter(smollm2_dir, tmp_path / "p" / name, k) for name, k in (("a", 1), ("b", 1), ("c", 2))]
    prompts = PromptDirectory(tmp_path / "p")
    # Longer than a block of the cache, and the same in all requests
    questions = [f"{'The sea is wide and the rum is gone. ' * 8}{question}" for question in QUESTIONS]
    expected = {}
    for folder in folders:
        model, tokenizer = load_adapter(folder)
        renderer = PromptRenderer.for_adapter(model.peft_config["default"], tokenizer)
        expected |= {(folder.name, question): greedy(model, renderer.be(question)) for question in questions}
    embedding = load_model(smollm2_dir)[0].get_input_embeddings()
    with vllm_server(smollm2_dir, "--enable-prompt-embeds", "--enable-prefix-caching") as server:
        for _ in range(2):
            for (name, question), answer in expected.items():
                messages = prompts[name].messages(question)
                reply = server.post("/v1/chat/completions", {**SETTINGS, "messages": messages})
                assert reply["choices"][0]["token_ids"] == answer
        for (name, question), answer in expected.items():
            embeds = prompts[name].prompt_embeds(question, tokenizer, embedding)
            reply = server.post("/v1/completions", {**SETTINGS, "prompt_embeds": encode(embeds)})
            assert reply["choices"][0]["token_ids"] == answer
        hits = [
            line for line in server.get("/metrics").splitlines() if line.startswith("vllm:prefix_cache_hits_total")
        ]
        assert float(hits[0].split()[-1]) > 0
