"""A checkpoint as a GGUF file."""

import json

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import quantize
from transformers import AutoModelForCausalLM, AutoTokenizer


NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


# Of Gemma 3, besides the above
GEMMA_NAMES = {
    **NAMES,
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
}


def save_gguf(folder, path, type=Type.F32, architecture="llama", template=None):
    """A Llama checkpoint as llama.cpp's converter writes it; all matrices in `type`."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    config = model.config
    writer = _writer(path, architecture, config, tokenizer, template or tokenizer.chat_template)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])

    def add(name, weight, heads=None):
        weight = weight.detach().numpy()
        if heads:  # llama.cpp turns neighbouring pairs
            weight = weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
        own = Type.F32 if weight.ndim == 1 else type
        writer.add_tensor(name, quantize(np.ascontiguousarray(weight), own), raw_dtype=own)

    add("token_embd.weight", model.get_input_embeddings().weight)
    add("output_norm.weight", model.model.norm.weight)
    if not config.tie_word_embeddings:
        add("output.weight", model.get_output_embeddings().weight)
    for i, layer in enumerate(model.model.layers):
        for name, weight in layer.state_dict().items():
            heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}
            name = name.removesuffix(".weight")
            add(f"blk.{i}.{NAMES[name]}.weight", weight, heads.get(name))
    return _write(writer, path)


def save_gemma_gguf(folder, path):
    """The same for a Gemma 3, in F32."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    config = model.config
    writer = _writer(path, "gemma3", config, tokenizer, tokenizer.chat_template)
    writer.add_rope_freq_base(config.rope_parameters["full_attention"]["rope_theta"])
    writer.add_sliding_window(config.sliding_window)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_tensor("token_embd.weight", model.get_input_embeddings().weight.detach().numpy())
    # The converter adds what Gemma's norms add
    writer.add_tensor("output_norm.weight", 1 + model.model.norm.weight.detach().numpy())
    for i, layer in enumerate(model.model.layers):
        for name, weight in layer.state_dict().items():
            weight = weight.numpy() + (weight.ndim == 1)
            writer.add_tensor(f"blk.{i}.{GEMMA_NAMES[name.removesuffix('.weight')]}.weight", weight)
    return _write(writer, path)


def _writer(path, architecture, config, tokenizer, template):
    """A writer that has all but rotations and tensors."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    tokens = [f"[PAD{i}]" for i in range(config.vocab_size)]
    types = [gguf.TokenType.UNUSED] * len(tokens)
    for token, i in tokenizer.get_vocab().items():
        tokens[i] = token
        types[i] = gguf.TokenType.CONTROL if i in tokenizer.added_tokens_decoder else gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(
        "gpt-2"
    )  # SmolLM2 has no token of two digits, which "smollm" never makes; the small one has
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_add_bos_token(False)
    named = (
        [{"name": name, "template": text} for name, text in template.items()] if isinstance(template, dict) else None
    )
    writer.add_chat_template(named or template)
    return writer


def _write(writer, path):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
