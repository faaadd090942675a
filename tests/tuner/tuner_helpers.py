"""Tiny random models and tokenizers."""

import copy

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)


VOCAB_SIZE = 64
SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # Large enough for a single embedding to change what is generated.
    "initializer_range": 0.4,
}
CONFIGS = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZES, tie_word_embeddings=False)),
    # Scales its embeddings and ties them to the output.
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig(**SIZES, tie_word_embeddings=True, sliding_window=8)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SIZES, tie_word_embeddings=True)),
}


def make_model(name: str, **changes):
    """A random model, the same at each call. `changes` go into its config."""
    model_class, config = CONFIGS[name]
    config = copy.deepcopy(config)
    for key, value in changes.items():
        setattr(config, key, value)
    torch.manual_seed(0)
    return model_class(config).eval()


def with_table_rows(model, ids, rows):
    """A copy of a base model that has the rows in its embedding table at these ids, and its logits unchanged there."""
    model = copy.deepcopy(model)
    output = model.get_output_embeddings()
    output.weight = nn.Parameter(output.weight.detach().clone())
    with torch.no_grad():
        model.get_input_embeddings().weight[ids] = rows.to(model.dtype)
    return model


WORDS = {"[UNK]": 0, "a": 1, "b": 2, "c": 3}


def make_tokenizer(special=(), added=(), words=WORDS, **kwargs):
    """A word-level tokenizer with special and ordinary added tokens after its words."""
    tokenizer = Tokenizer(models.WordLevel(dict(words), unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.add_tokens([AddedToken(token, special=False) for token in added])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", **kwargs)
