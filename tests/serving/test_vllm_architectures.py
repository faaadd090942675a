"""Which models vLLM applies [BE] to as LoRA, and what it does with the others: tiny random ones, in one process of vLLM."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
import transformers
from peft import PeftModel
from transformers import AutoModelForCausalLM

from peft_be.serving.lora import export_lora

from ..exports import save_adapter
from .engines import greedy


# vLLM's attention on CPU knows heads of 32 and 64 numbers and more. Its experts want widths of 32
SHAPE = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 32, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
    "tie_word_embeddings": False, "initializer_range": 0.2,
}  # fmt: skip
EXPERTS = {"moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2, "decoder_sparse_step": 1}
MODELS = {
    "Llama": {},
    "Mistral": {"sliding_window": None},
    "Mixtral": {"num_local_experts": 4},
    "Qwen2": {},
    "Qwen3": {},
    "Qwen3Moe": EXPERTS,
    "Phi3": {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default", "partial_rotary_factor": 1.0}},
    "Phimoe": {"num_local_experts": 4},
    "Granite": {"embedding_multiplier": 3.0, "attention_multiplier": 0.2},
    "Olmo2": {},
    "SmolLM3": {},
    "Lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
}
