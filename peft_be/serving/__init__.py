"""The learned rows where models are served."""

from .merged import MergedToken, export_merged


__all__ = ["MergedToken", "export_merged"]
