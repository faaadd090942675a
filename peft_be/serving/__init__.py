"""The learned rows where models are served."""

from .gguf import export_gguf
from .lora import export_lora, import_lora
from .lora_gguf import export_lora_gguf
from .merged import export_merged
from .tokens import MergedToken, strip_special_tokens
from .vllm import PromptDirectory, PromptEmbeds


__all__ = [
    "MergedToken",
    "PromptDirectory",
    "PromptEmbeds",
    "export_gguf",
    "export_lora",
    "export_lora_gguf",
    "export_merged",
    "import_lora",
    "strip_special_tokens",
]
