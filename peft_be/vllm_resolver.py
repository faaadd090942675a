"""
A plugin for vLLM: LoRA adapters that `peft-be export --format lora` wrote, found in a folder when a request names one.

It imports nothing of the package, and neither torch nor PEFT: an environment of vLLM needs `pip install --no-deps peft_be`
and no more. vLLM's own resolver for folders differs in three ways: it takes an adapter only where the base model's name is
spelled the same, which a folder or an offline Hub never is; it does not look at the sizes; and it gives a changed adapter the
path of the old one, whose keys and values vLLM then takes from its prefix cache.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest


FOLDER_VARIABLE = "PEFT_BE_LORA_DIR"
TOKEN_FILE, WEIGHTS_FILE = "be_token.json", "adapter_model.safetensors"
_FILES = (TOKEN_FILE, WEIGHTS_FILE, "adapter_config.json")
# Those whose class in vLLM 0.32 was seen to refuse it (tests/serving/test_vllm_architectures.py). Ministral 3 has Mistral's
NO_LORA_ON_EMBEDDING = frozenset({"mistral", "ministral3", "qwen2"})

# vLLM configures only loggers below its own
logger = logging.getLogger("vllm.peft_be")


class FolderResolver:
    """
    Finds the adapter of an unknown model's name in a folder.

    Each version of an adapter, told apart by its bytes, gets a name and a copy of its own: an adapter that was replaced and
    unloaded is read anew, and running requests finish with the old one.

    Args:
        folder (`str`): the folder in which each adapter has a folder of its name.
    """

    def __init__(self, folder: str):
        self.folder = Path(folder)
        # Made by the server alone: vLLM loads plugins in each of its processes
        self._copies: tempfile.TemporaryDirectory | None = None

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """What vLLM calls: where the adapter of a name is, or `None`."""
        from vllm.lora.request import LoRARequest

        self._copies = self._copies or tempfile.TemporaryDirectory(prefix="peft-be-lora-")
        path = await asyncio.to_thread(self.find, base_model_name, lora_name, Path(self._copies.name))
        # vLLM puts its own id instead of this one
        return path and LoRARequest(lora_name=path.name, lora_int_id=1, lora_path=str(path))

    def find(self, served: str, name: str, copies: Path) -> Path | None:
        """
        Copy an adapter that fits.

        Args:
            served (`str`): the base model that vLLM serves, a folder or a name on the Hub.
            name (`str`): the adapter's name.
            copies (`Path`): the folder for copies.

        Returns:
            `Path` or `None`: the copy's folder, called after the adapter and its version. `None` for an unknown name and, with
                a reason in the log, for an adapter that does not fit.
        """
        # The name is a client's: it may not lead out of the folder
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name) or not (self.folder / name / TOKEN_FILE).is_file():
            return None
        copy = Path(tempfile.mkdtemp(dir=copies))
        try:
            for file in _FILES:
                shutil.copyfile(self.folder / name / file, copy / file)
            check_fits(copy, served)
        except (OSError, ValueError) as error:
            logger.warning("The adapter '%s' in '%s' is not served: %s", name, self.folder, error)
            shutil.rmtree(copy)
            return None
        digest = hashlib.sha256(b"".join((copy / file).read_bytes() for file in _FILES)).hexdigest()
        path = copies / f"{name}@{digest[:12]}"
        if path.exists():
            shutil.rmtree(copy)
        else:
            copy.rename(path)
        return path


def check_fits(directory: Path, served: str) -> None:
    """
    Check that an adapter is one of the base model that is served.

    Args:
        directory (`Path`): the adapter's folder.
        served (`str`): the base model, a folder or a name on the Hub.

    Raises:
        `ValueError`: it is another model's, or damaged.
        `OSError`: the base model's configuration cannot be read.
    """
    from transformers import PretrainedConfig

    try:
        base = json.loads((directory / TOKEN_FILE).read_text(encoding="utf-8"))["base_model"]
        ours, sizes = hub_name(base), embedding_sizes(directory / WEIGHTS_FILE)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError("it is not one that peft-be export wrote, or is damaged: copy it again.") from error
    theirs = hub_name(served)
    if ours is not None and theirs is not None and ours != theirs:
        raise ValueError(f"it belongs to '{ours}', and the base model is '{theirs}'.")
    # A folder may hold any model: sizes are all that is known of it
    config, _ = PretrainedConfig.get_config_dict(served)
    config = config.get("text_config") or config
    expected = (config.get("vocab_size"), config.get("hidden_size"))
    if None in expected:
        raise ValueError("the base model's configuration does not give the sizes of its embedding.")
    if sizes != expected:
        raise ValueError(
            f"it is for an embedding of {sizes[0]} x {sizes[1]}, and the base model's has {expected[0]} x {expected[1]}."
        )
    if config.get("model_type") in NO_LORA_ON_EMBEDDING:
        logger.warning(refusal_warning(config["model_type"]))


def refusal_warning(model_type: str) -> str:
    """What to say of a model type of [`NO_LORA_ON_EMBEDDING`]."""
    return (
        f"vLLM 0.32 applies LoRA to the embedding of this model ({model_type}) only with `vllm serve --model-impl transformers`; "
        "without that it refuses the adapter. Or export a checkpoint (--format hf)."
    )


def hub_name(model: str) -> str | None:
    """A model's name on the Hub, also of its folder in the Hub's cache; `None` for other folders."""
    cached = re.search(r"models--([^/\\]+?)--([^/\\]+)", model)
    if cached:
        return f"{cached[1]}/{cached[2]}"
    return None if os.path.exists(model) or not re.fullmatch(r"[^/\\]+/[^/\\]+", model) else model


def embedding_sizes(weights: Path) -> tuple[int, int]:
    """Rows and columns of the embedding that a LoRA adapter is for, by the head of its file."""
    with open(weights, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > os.path.getsize(weights):  # as in a pointer of Git LFS
            raise ValueError("The head is longer than the file.")
        head: dict[str, Any] = json.loads(file.read(size))
    shapes = {name.rpartition("_")[2]: entry["shape"] for name, entry in head.items() if "lora_embedding_" in name}
    return shapes["A"][1], shapes["B"][0]


def register() -> None:
    """What vLLM calls when it starts, for the entry point `vllm.general_plugins`."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder:
        return
    if not os.path.isdir(folder):
        raise ValueError(f"{FOLDER_VARIABLE} is '{folder}', which is not a folder.")
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

    LoRAResolver.register(FolderResolver)
    LoRAResolverRegistry.register_resolver("peft_be", FolderResolver(folder))
