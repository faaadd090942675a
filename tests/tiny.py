"""Random Llamas, and a small tokenizer for them: for shapes, gradients and whole runs in seconds."""

from pathlib import Path

import torch


# SmolLM2's special tokens, ids and chat template with 2,048 tokens: see fixtures/make_tokenizer.py
TOKENIZER = Path(__file__).parent / "fixtures" / "tokenizer"


def tiny_llama(tokenizer, width=32, padding=0, tied=True, context=512, gain=1):
    """
    `padding` rows of the embedding follow the tokenizer's. With a `gain` of 3, answers depend on the prompt: a random model says
    nearly the same to everything.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + padding,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=tied,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.mul_(gain)
    return model


def save_tiny_llama(folder, tokenizer, **changes):
    """A folder with the model and the tokenizer, as `--model` takes it."""
    tiny_llama(tokenizer, **changes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def save_tiny_gemma(folder, tokenizer):
    """A folder with a model that multiplies its embeddings, by the square root of 32."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        query_pre_attn_scalar=16,
        pad_token_id=2,
        eos_token_id=2,
        bos_token_id=1,
    )
    Gemma3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def merged_lora(model, steps=3, rank=8):
    """The model after a few steps of LoRA on two sentences, merged: its name is the plain base's."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    ids = torch.randint(5, 500, (2, 24))
    lora = get_peft_model(model, LoraConfig(r=rank, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([p for p in lora.parameters() if p.requires_grad], lr=1e-4)
    for _ in range(steps):
        lora(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return lora.merge_and_unload()


def save_lora(base, folder):
    """A LoRA adapter with its tokenizer next to it."""
    from peft import LoraConfig, get_peft_model

    from peft_be import load_model

    model, tokenizer = load_model(base)
    lora = LoraConfig(r=2, task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(model, lora).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
