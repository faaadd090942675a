import huggingface_hub
import pytest
import torch
import transformers


TINY_SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    # Large enough for the output to depend visibly on a single embedding.
    "initializer_range": 0.5,
}
TINY_CONFIGS = {
    "tiny-llama": transformers.LlamaConfig(**TINY_SIZES),
    "tiny-qwen2": transformers.Qwen2Config(**TINY_SIZES, tie_word_embeddings=True),
    "tiny-gemma3": transformers.Gemma3TextConfig(**TINY_SIZES, head_dim=8),
    "tiny-opt": transformers.OPTConfig(
        vocab_size=64, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2, init_std=0.5
    ),
    "tiny-bert": transformers.BertConfig(**TINY_SIZES),
}


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory):
    """A folder with tiny random models, saved under the names by which the tests load them."""
    folder = tmp_path_factory.mktemp("models")
    for name, config in TINY_CONFIGS.items():
        torch.manual_seed(0)
        auto_class = transformers.AutoModel if name == "tiny-bert" else transformers.AutoModelForCausalLM
        model = auto_class.from_config(config)
        if model.can_generate():
            model.generation_config.pad_token_id = 0
            model.generation_config.eos_token_id = None
            model.generation_config.max_new_tokens = 8
        model.save_pretrained(folder / name)
    return folder


@pytest.fixture(autouse=True)
def in_tiny_models(request, tiny_models, monkeypatch):
    # PEFT's tests take a model id both for the path and for `base_model_name_or_path`: a relative path serves as both.
    monkeypatch.chdir(tiny_models)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for (owner, name), value in getattr(request.function, "patches", {}).items():
        monkeypatch.setattr(owner, name, value)
