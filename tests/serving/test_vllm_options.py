"""[BE] as LoRA next to what vLLM offers to be faster; and whether [BE] is ever written."""

import pytest
import torch
from engines import divergence
from peft import PeftModel
from transformers import AutoModelForCausalLM

from peft_be import load_model
from peft_be.serving.lora import export_lora

from ..exports import save_adapter
from .engines import MAX_TOKENS, QUESTIONS, TEXTS, greedy


pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("vllm")]

# Copies of the prompt are what n-grams find, and three chunks what a long one is cut into
OPTIONS = {
    "ngram": {
        "speculative_config": {
            "method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 1, "prompt_lookup_max": 3,
        },
    },
    "chunks": {"enable_chunked_prefill": True, "max_num_batched_tokens": 32, "max_num_seqs": 4},
    "bfloat16": {"dtype": "bfloat16"},
}  # fmt: skip
SAMPLES = 1000


@pytest.fixture(scope="module")
def token(smollm2_dir, tmp_path_factory):
    """The folders of a LoRA adapter by dtype, its token, and prompts."""
    folder = tmp_path_factory.mktemp("options")
    adapter = save_adapter(smollm2_dir, folder / "a", 8, text=TEXTS["pirate"])
    for dtype in ("float32", "bfloat16"):
        (token,) = export_lora({"a": adapter}, folder / dtype, dtype=dtype).values()
    _, tokenizer = load_model(smollm2_dir)
    prompts = []
    for question in ("Repeat after me: " + 4 * QUESTIONS[2], *QUESTIONS[:2]):
        chat = [{"role": "system", "content": token.text}, {"role": "user", "content": question}]
        prompts.append(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False))
    return folder, token, prompts


@pytest.fixture(scope="module")
def found(vllm_in_turn, smollm2_dir, token):
    folder, _, prompts = token
    job = {"model": smollm2_dir, "prompts": prompts, "length": MAX_TOKENS, "lora": str(folder / "float32" / "a")}
    jobs = {name: {**job, "options": options} for name, options in OPTIONS.items()}
    jobs["bfloat16"]["lora"] = str(folder / "bfloat16" / "a")
    jobs["samples"] = {**job, "length": 6, "samples": SAMPLES}
    # Last: vLLM for CPU cannot load another model after what n-grams import
    jobs["ngram"] = jobs.pop("ngram")
    return vllm_in_turn(jobs)


def of_transformers(smollm2_dir, token, dtype):
    folder, _, prompts = token
    model = AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=dtype).eval()
    model.generation_config.eos_token_id = None  # answers of one length
    base = [greedy(model, prompt) for prompt in prompts]
    model = PeftModel.from_pretrained(model, folder / str(dtype).removeprefix("torch.") / "a").eval()
    return model, {"base": base, "lora": [greedy(model, prompt) for prompt in prompts], "samples": []}


def test_speculative_decoding_and_chunks_change_nothing(found, smollm2_dir, token):
    _, expected = of_transformers(smollm2_dir, token, torch.float32)
    assert len(token[2][0]) > 64 and expected["base"] != expected["lora"]
    assert found["ngram"] == expected
    assert found["chunks"] == expected


def test_in_bfloat16_answers_differ_where_rounding_decides(found, smollm2_dir, token):
    model, expected = of_transformers(smollm2_dir, token, torch.bfloat16)
    assert found["bfloat16"]["lora"] != found["bfloat16"]["base"]
    for prompt, wanted, answer in zip(token[2], expected["lora"], found["bfloat16"]["lora"]):
        apart = divergence(model, prompt, wanted, answer)
        assert apart is None or apart["margin"] < 0.5


def test_be_is_never_written(found, token):
    """The adapter leaves the output embedding alone: its token is as rare as it is in the base model, which never learned it."""
    samples = found["samples"]["samples"]
    assert len(samples) == SAMPLES and len({tuple(sample) for sample in samples}) > SAMPLES / 4
    assert not {i for sample in samples for i in sample} & set(token[1].ids)
