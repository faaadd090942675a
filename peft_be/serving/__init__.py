"""The learned rows where models are served."""

from .gguf import export_gguf
from .merged import export_merged
from .tokens import MergedToken


__all__ = ["MergedToken", "export_gguf", "export_merged"]
