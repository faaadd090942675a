"""What is scored is an active adapter with [BE] rows; any other model is refused in a sentence."""

import pytest
from peft import LoraConfig, get_peft_model

from peft_be import BETokenConfig, audit_leakage, bench_inference, evaluate_fidelity, evaluate_refusals


CONFIGS = {
    "plain": None,
    "lora": LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]),
    "ae": BETokenConfig(task_type="CAUSAL_LM", num_be_tokens=0, use_ae_token=True),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_model_without_active_be_rows_is_refused(tiny_model, tiny_tokenizer, kind):
    model = tiny_model if CONFIGS[kind] is None else get_peft_model(tiny_model, CONFIGS[kind])
    prompt, queries = "You are a lighthouse keeper.", ["Who are you?", "Is it cold?"]
    for score in (
        lambda: evaluate_fidelity(model, tiny_tokenizer, prompt, queries),
        lambda: bench_inference(model, tiny_tokenizer, prompt, queries),
        lambda: audit_leakage(model, tiny_tokenizer, prompt),
        lambda: evaluate_refusals(model, tiny_tokenizer, prompt),
    ):
        with pytest.raises(ValueError, match="no active adapter with .BE. rows"):
            score()
