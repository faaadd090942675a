"""One learned token in place of a long system prompt: the Behavior-Equivalent token (arXiv 2511.23271) for PEFT."""

from .tuner import BETokenConfig, BETokenModel


__version__ = "0.1.0"

# Loaded when they are first used: registering BE_TOKEN with PEFT must not cost the import of TRL
_LAZY = {
    "AEConfig": "training",
    "AETrainer": "training",
    "BEDistillConfig": "training",
    "BEDistillTrainer": "training",
    "PromptDirectory": "serving",
    "PromptEmbeds": "serving",
    "PromptJob": "compress_many",
    "PromptRenderer": "prompting",
    "as_queries": "data",
    "bench_inference": "evaluation",
    "compress_prompt": "compress",
    "compress_prompts": "compress_many",
    "evaluate_fidelity": "evaluation",
    "export_gguf": "serving",
    "export_merged": "serving",
    "load_adapter": "models",
    "load_adapters": "models",
    "load_model": "models",
    "load_prompt": "prompting",
    "load_queries": "data",
    "pretrain_ae": "compress",
    "push_adapters": "hub",
}

__all__ = ["BETokenConfig", "BETokenModel", *_LAZY]


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from importlib import import_module

    value = getattr(import_module(f".{_LAZY[name]}", __name__), name)
    globals()[name] = value
    return value
