"""[BE] as a LoRA adapter in a GGUF file, which llama.cpp loads next to a GGUF file of the base model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .gguf_file import ARCHITECTURE, INPUT, OUTPUT, Table, file_templates, read_gguf, special_ids, used_ids, write_copy
from .gguf_weights import check_base
from .lora import LoraToken, lora_tokens, readable_ids, write_record
from .tokens import check_adapter_names, check_kept_texts, check_new_folder, check_shown, load_rows


if TYPE_CHECKING:
    from gguf import GGUFReader


ADAPTER_FILE, BASE_FILE = "adapter.gguf", "base.gguf"


def export_lora_gguf(
    adapters: dict[str, str | os.PathLike],
    base: str | os.PathLike,
    output_dir: str | os.PathLike,
    model: str | None = None,
    allow_other_weights: bool = False,
    device: str | None = None,
) -> dict[str, LoraToken]:
    """
    Write each adapter's [BE] as a LoRA adapter of the input embedding for llama.cpp: `adapter.gguf`, 2 KB
    per row for every 1,000 tokens of the vocabulary.

    It is the adapter of [`export_lora`] with the difference to what the blocks of the GGUF file stand for. llama.cpp unpacks
    the table's row and adds in float32, so that it reads [BE] in full precision next to a base of any quantisation.
    `be_token.json` and `chat_template.jinja` are as in [`export_lora`].

    llama.cpp applies an adapter to a tensor by its name, and a tied output embedding has that of the input table: it stops
    with an error. For such a base, `base.gguf` in `output_dir` is a copy with an output table of its own, all else the same
    byte by byte: serve that, and give it as `base` for further adapters.

    Args:
        adapters (`dict[str, str | os.PathLike]`):
            Adapters of one base model by names, as in [`export_lora`].
        base (`str` or `os.PathLike`):
            GGUF file of the base model, of any quantisation, in one piece.
        output_dir (`str` or `os.PathLike`):
            Folder for the LoRA adapters, each in a folder of its name; new or empty.
        model (`str`, *optional*):
            The base model as in [`load_model`], which knows its tokenizer. `None` is the one that the first adapter was trained
            on.
        allow_other_weights (`bool`, *optional*, defaults to `False`):
            Accept other weights of the base model than those of the training.
        device (`str`, *optional*):
            Where to load the base model, as in [`load_model`].

    Returns:
        `dict[str, LoraToken]`: by adapter.

    Raises:
        `ImportError`: the package gguf is not installed.
        `ValueError`: adapters or names as in [`export_lora`]; `base` is damaged, is of another model, or of an architecture
            that llama.cpp always ties.
        `FileNotFoundError`: there is no such GGUF file, or no adapter in a folder.
        `FileExistsError`: `output_dir` is not empty.
    """
    base, output_dir = Path(base), Path(output_dir)
    check_adapter_names(adapters)
    if BASE_FILE in adapters:
        raise ValueError(f"'{BASE_FILE}' is the name of the base model's copy: rename the adapter's folder.")
    check_new_folder(output_dir)
    reader = read_gguf(base)
    loading: dict[str, Any] = {"model": model, "device": device, "allow_other_weights": allow_other_weights}
    hf_model, tokenizer, found = load_rows(adapters, **loading)
    check_base(base, reader, hf_model, tokenizer, allow_other_weights)
    special = special_ids(reader)
    free = [i for i in readable_ids(tokenizer, hf_model, used_ids(reader)) if i in special]
    tokens = lora_tokens(found, tokenizer, free)
    template = file_templates(reader, tokenizer)["default"]
    check_shown(tokenizer, template, tokens)
    check_kept_texts(found, tokenizer, tokens, tokenizer, template)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if OUTPUT not in tensors:
        table = tensors[INPUT]
        write_copy(reader, output_dir / BASE_FILE, {}, {OUTPUT: Table(table, table.tensor_type, {})})
    for name, token in tokens.items():
        (output_dir / name).mkdir(parents=True)
        rows = found.rows[name].float().cpu().numpy()
        _write_adapter(output_dir / name / ADAPTER_FILE, reader, token, rows)
        write_record(token, template, output_dir / name)
    return tokens


def served_base(base: str | os.PathLike, output_dir: str | os.PathLike) -> Path:
    """The GGUF file to serve next to the adapters of [`export_lora_gguf`]: its copy of a tied base, else the base itself."""
    copy = Path(output_dir) / BASE_FILE
    return copy if copy.exists() else Path(base)


def _write_adapter(path: Path, reader: GGUFReader, token: LoraToken, rows: np.ndarray) -> None:
    """Write the adapter that makes `rows` `[k, d]` of the table's rows at the token's ids."""
    from gguf import GGUFType, GGUFWriter, Keys
    from gguf.quants import dequantize

    k, table = len(token.ids), next(tensor for tensor in reader.tensors if tensor.name == INPUT)
    # The other way round than the factors of all other tensors: llama.cpp looks up rows of it
    chosen = np.zeros((len(table.data), k), np.float16)
    chosen[token.ids, range(k)] = 1
    difference = rows.astype(np.float64) - dequantize(table.data[token.ids], table.tensor_type)
    writer = GGUFWriter(path, reader.fields[ARCHITECTURE].contents())
    writer.add_type(GGUFType.ADAPTER)
    writer.add_string(Keys.Adapter.TYPE, "lora")
    writer.add_float32(Keys.Adapter.LORA_ALPHA, k)
    writer.add_tensor(f"{INPUT}.lora_a", chosen)
    writer.add_tensor(f"{INPUT}.lora_b", np.ascontiguousarray(difference.T, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
