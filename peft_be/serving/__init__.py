"""The learned rows where models are served."""

from .merged import MergedToken, export_merged
from .vllm import PromptDirectory, PromptEmbeds


__all__ = ["MergedToken", "PromptDirectory", "PromptEmbeds", "export_merged"]
