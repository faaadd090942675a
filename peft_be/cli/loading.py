"""How commands load the adapters that they are given: one set of options, with one meaning."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..recipe import setting


if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase


@dataclass
class Loading:
    """
    The options of commands that load an adapter, see [`load_adapter`], and compare it with its prompt.
    """

    model: str | None = setting(None, "Base model; by default the one of the training.")
    dtype: str | None = setting(
        None,
        "Of the base model: float32, bfloat16, float16, or auto, that of its files. By default the fastest on this machine.",
    )
    device: str | None = setting(None, "For instance cpu or cuda:1. By default a GPU where there is one.")
    allow_template_change: bool = setting(False, "Accept a chat template other than the one of the training.")
    allow_other_weights: bool = setting(False, "Accept weights of the base other than those of the training.")
    allow_other_prompt: bool = setting(False, "Accept a prompt other than the one of the training.")

    def find(self, directory: Path, prompt: str | list[dict] | None) -> Path:
        """The adapter's folder. If the adapter was trained on another prompt, it is refused before the model is loaded."""
        from ..adapters.load import read_adapter
        from ..prompting import check_adapter_prompt

        directory, config = read_adapter(directory)
        check_adapter_prompt(config, prompt, self.allow_other_prompt)
        return directory

    def load(self, directory: Path) -> tuple[PeftModel, PreTrainedTokenizerBase]:
        """The base model with the adapter of a folder, and the tokenizer."""
        return self.load_several({"default": directory})

    def load_several(self, directories: dict[str, Path]) -> tuple[PeftModel, PreTrainedTokenizerBase]:
        """The base model with the adapters of some folders, by the names that they get, and the tokenizer."""
        from ..adapters.load import load_adapters

        return load_adapters(
            directories,
            self.model,
            allow_template_change=self.allow_template_change,
            dtype=self.dtype,
            device=self.device,
            allow_other_weights=self.allow_other_weights,
        )
