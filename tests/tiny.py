"""Random Llamas that speak the real tokenizer: for shapes, gradients and whole runs in seconds."""

import torch


def tiny_llama(tokenizer, width=32, padding=0, tied=True):
    """`padding` rows stand in the embedding behind those of the tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + padding,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def save_tiny_llama(folder, tokenizer, **changes):
    """A folder with the model and the tokenizer, as `--model` takes it."""
    tiny_llama(tokenizer, **changes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
