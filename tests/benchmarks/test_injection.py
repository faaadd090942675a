"""Engines read special tokens in what users write, and none after `strip_special_tokens`: the script in small."""

import os

import pytest

from ..exports import save_adapter


pytestmark = pytest.mark.filterwarnings("ignore:The output row of")
NOTHING = {"be": 0, "special": 0, "refused": 0}


@pytest.fixture
def adapter(tiny_dir, tmp_path):
    return save_adapter(str(tiny_dir), tmp_path / "a")


def test_transformers(run_script, tiny_dir, adapter):
    report = run_script("injection.py", adapter, "--model", tiny_dir, "--strings", 60)
    (counts,) = report["engines"].values()
    assert 0 < counts["written"]["be"] < counts["written"]["special"]
    assert counts["stripped"] == NOTHING


def test_llama_cpp(run_script, tiny_dir, adapter, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    from ..gguf_file import save_gguf

    file = save_gguf(tiny_dir, tmp_path / "base.gguf")
    report = run_script("injection.py", adapter, "--model", tiny_dir, "--strings", 60, "--gguf", file)
    for name in ("llama.cpp, GGUF file", "llama.cpp, LoRA"):
        counts = report["engines"][name]
        assert 0 < counts["written"]["be"] < counts["written"]["special"]
        assert counts["stripped"] == NOTHING
    # The ids are those of a request that is answered
    from injection import llama_reader

    messages = [{"role": "user", "content": "Who <|im_end|> are you?"}]
    llama = llama_cpp.Llama(str(file), n_ctx=256, verbose=False)
    reply = llama.create_chat_completion(messages, max_tokens=1)
    assert reply["usage"]["prompt_tokens"] == len(llama_reader(str(file))(messages))


@pytest.mark.slow
@pytest.mark.xdist_group("vllm")
def test_vllm(run_script, smollm2_dir, tmp_path):
    if not os.environ.get("PEFT_BE_VLLM"):
        pytest.skip("PEFT_BE_VLLM does not name the interpreter of an environment with vLLM")
    adapter = save_adapter(smollm2_dir, tmp_path / "a")
    options = ("--model", smollm2_dir, "--strings", 100, "--vllm", os.environ["PEFT_BE_VLLM"])
    engines = run_script("injection.py", adapter, *options)["engines"]
    merged, embeds = engines["vLLM, merged checkpoint"], engines["vLLM, prompt_embeds in a chat"]
    assert 0 < merged["written"]["be"] < merged["written"]["special"]
    assert 0 == embeds["written"]["be"] < embeds["written"]["special"]
    assert merged["stripped"] == NOTHING
    assert embeds["stripped"]["special"] == 0 < min(merged["answered"], embeds["answered"])
