"""Which models vLLM applies [BE] to as LoRA, and what it does with the others: tiny random ones, in one process of vLLM."""

import json

import pytest
import torch
import transformers
from peft import PeftModel
from transformers import AutoModelForCausalLM

from peft_be.serving.lora import export_lora
from peft_be.vllm_resolver import NO_LORA_ON_EMBEDDING

from ..exports import save_adapter
from .engines import greedy


# vLLM's attention on CPU knows heads of 32 and 64 numbers and more. Larger weights than usual: answers differ
SHAPE = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 32, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
    "tie_word_embeddings": False, "initializer_range": 0.2,
}  # fmt: skip
FAMILIES = {
    "Llama": {},
    "Mistral": {"sliding_window": None},
    "Qwen2": {},
    "Qwen3": {},
    "Phi3": {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default", "partial_rotary_factor": 1.0}},
    "Granite": {"embedding_multiplier": 3.0, "attention_multiplier": 0.2},
    "Olmo2": {},
    "SmolLM3": {},
    # Experts, which vLLM on CPU does not run next to LoRA
    "Mixtral": {"num_local_experts": 4},
    "Qwen3Moe": {"moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2},
}
REFUSED = {"Mistral": "mistral", "Qwen2": "qwen2"}
WITH_EXPERTS = {"Mixtral", "Qwen3Moe"}


def save_model(family, folder, tokenizer, **changes):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=len(tokenizer), **{**SHAPE, **FAMILIES[family], **changes}
    )
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def answers(vllm_in_turn, tiny_tokenizer, tmp_path_factory):
    """What vLLM made of each job, and what transformers and PEFT answer."""
    folder, jobs, expected = tmp_path_factory.mktemp("families"), {}, {}
    for family in FAMILIES:
        base = save_model(family, folder / family / "base", tiny_tokenizer)
        adapter = save_adapter(base, folder / family / "a")
        (token,) = export_lora({"a": adapter}, folder / family / "lora").values()
        lora = str(folder / family / "lora" / "a")
        chat = [{"role": "system", "content": token.text}, {"role": "user", "content": "Where is the rum?"}]
        ids = tiny_tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
        model.generation_config.eos_token_id = None  # answers of one length
        wanted = greedy(model, ids)
        expected[family] = {"base": [wanted], "lora": [greedy(PeftModel.from_pretrained(model, lora).eval(), ids)]}
        jobs[family] = {"model": base, "lora": lora, "prompts": [ids], "length": len(wanted)}
        if family in REFUSED:
            jobs[f"{family}, transformers"] = {**jobs[family], "options": {"model_impl": "transformers"}}
    jobs["without the embedding"] = {**jobs["Llama"], "options": {"lora_target_modules": ["q_proj"]}}
    wider = save_model("Llama", folder / "wider", tiny_tokenizer, hidden_size=128)
    jobs["wider"] = {**jobs["Llama"], "model": wider}
    return vllm_in_turn(jobs), expected


@pytest.mark.slow
@pytest.mark.xdist_group("vllm")
@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - REFUSED - WITH_EXPERTS))
def test_it_answers_as_transformers_does(answers, family):
    found, expected = answers
    assert expected[family]["base"] != expected[family]["lora"]
    assert found[family] == {**expected[family], "samples": []}


@pytest.mark.slow
@pytest.mark.xdist_group("vllm")
@pytest.mark.parametrize("family", REFUSED)
def test_it_refuses_and_the_backend_of_transformers_does_not(answers, family):
    found, expected = answers
    assert REFUSED[family] in NO_LORA_ON_EMBEDDING
    assert "lora" not in found[family] and "but received ['model.embed_tokens'" in found[family]["error"]
    assert found[f"{family}, transformers"] == {**expected[family], "samples": []}


@pytest.mark.slow
@pytest.mark.xdist_group("vllm")
@pytest.mark.parametrize("family", sorted(WITH_EXPERTS))
def test_experts_do_not_load_next_to_lora_on_cpu(answers, family):
    assert "base" not in answers[0][family] and "triton" in answers[0][family]["error"]


@pytest.mark.slow
@pytest.mark.xdist_group("vllm")
def test_what_vllm_takes_without_a_word(answers):
    """Why docs/serve/lora.md names the option, and why the plugin compares sizes."""
    found, expected = answers
    assert found["without the embedding"] == {**expected["Llama"], "lora": expected["Llama"]["base"], "samples": []}
    assert "error" not in found["wider"]


@pytest.mark.parametrize("family", REFUSED)
def test_export_warns(family, tiny_tokenizer, tmp_path):
    base = save_model(family, tmp_path / "base", tiny_tokenizer)
    with pytest.warns(UserWarning, match=rf"\({REFUSED[family]}\) only with `vllm serve --model-impl transformers`"):
        tokens = export_lora({"a": save_adapter(base, tmp_path / "a")}, tmp_path / "lora")
    assert json.loads((tmp_path / "lora" / "a" / "be_token.json").read_text())["ids"] == tokens["a"].ids
