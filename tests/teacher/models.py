"""Tiny models that can share a prefix and that cannot, what they are asked, and how their answers are compared."""

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from peft_be.teacher import AnswerSettings


SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SHARED = {
    "llama": lambda: LlamaConfig(**SIZES),
    "llama-mha": lambda: LlamaConfig(**{**SIZES, "num_key_value_heads": 4}),
    "qwen2": lambda: Qwen2Config(**SIZES),
    "qwen3": lambda: Qwen3Config(**SIZES),
}
NOT_SHARED = {
    "gemma2": lambda: Gemma2Config(**SIZES, sliding_window=16),
    "gemma3": lambda: Gemma3TextConfig(**SIZES, sliding_window=16),
    "mistral-sliding": lambda: MistralConfig(**SIZES, sliding_window=16),
}


def make(config, dtype=torch.float32):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).to(dtype).eval().requires_grad_(False)


PROMPTS = [[*range(5, 45), *tail] for tail in ([50], [60, 61, 62], [70, 71], [80, 81, 82, 83, 84], [90])]
SETTINGS = AnswerSettings(max_new_tokens=6, batch_size=2)


def assert_same(left, right, exact=False):
    assert [(a.query, a.ids) for a in left] == [(a.query, a.ids) for a in right]
    for a, b in zip(left, right):
        torch.testing.assert_close(
            a.hidden, b.hidden, **({"atol": 0, "rtol": 0} if exact else {"atol": 1e-5, "rtol": 1e-4})
        )
