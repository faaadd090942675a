"""GGUF files: read, and written again with other tables and other metadata."""

from __future__ import annotations

import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from transformers import PreTrainedTokenizerBase

from .tokens import chat_templates, renders_alike


if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFReader
    from gguf.gguf_reader import ReaderTensor


ARCHITECTURE = "general.architecture"
TEMPLATE = "tokenizer.chat_template"
TOKENS, TOKEN_TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
INPUT, OUTPUT = "token_embd.weight", "output.weight"
# Architectures for which llama.cpp reads no output.weight: their rows of the table score, too
ALWAYS_TIED = ("bitnet", "cohere2", "command-r", "gemma", "gemma2", "openelm")
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # llama.cpp's token types
ROWS_AT_ONCE = 8192


def read_gguf(path: str | os.PathLike) -> GGUFReader:
    """
    Open a GGUF file that [BE] can be added to; tensors stay on the disk.

    Raises:
        `ImportError`: the package gguf is not installed.
        `FileNotFoundError`: there is no such file.
        `ValueError`: it is no GGUF file, is damaged, holds no whole language model, or one that llama.cpp always ties.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ImportError("GGUF files need the package gguf: pip install 'peft_be[gguf]'.") from error

    class Reader(GGUFReader):
        # Plain views of the mapped file: a vocabulary needs hundreds of thousands, and views of a subclass are slow to make
        data = property(lambda self: self._data, lambda self, data: setattr(self, "_data", data.view(np.ndarray)))

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no GGUF file '{path}': check the path.")
    try:
        reader = Reader(path)
    except (ValueError, IndexError, KeyError) as error:
        raise ValueError(
            f"'{path}' is no GGUF file, or is damaged ({error}): download or convert the model again."
        ) from error
    if "split.count" in reader.fields:
        raise ValueError(f"'{path}' is one of several parts: join them with `llama-gguf-split --merge` first.")
    arch = reader.fields[ARCHITECTURE].contents() if ARCHITECTURE in reader.fields else None
    names = {tensor.name for tensor in reader.tensors}
    if arch is None or INPUT not in names or TOKENS not in reader.fields:
        raise ValueError(f"'{path}' holds no language model with its tokenizer.")
    if arch in ALWAYS_TIED:
        raise ValueError(
            f"For models of architecture '{arch}' llama.cpp scores tokens by the rows of its input table, which [BE] changes: "
            "serve a transformers checkpoint instead (--format hf)."
        )
    return reader


def used_ids(reader: GGUFReader) -> set[int]:
    """The ids that a file names, as the one that ends a text."""
    named = re.compile(r"tokenizer\.ggml\.\w+_token_id")
    return {field.contents() for key, field in reader.fields.items() if named.fullmatch(key)}


def special_ids(reader: GGUFReader) -> set[int]:
    """The ids that llama.cpp reads where a chat template spells them: of types control and user-defined."""
    types = reader.fields[TOKEN_TYPES].contents() if TOKEN_TYPES in reader.fields else []
    return {i for i, type in enumerate(types) if type in (CONTROL, USER_DEFINED)}


def file_templates(reader: GGUFReader, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The chat templates by name: the file's own if they render chats as the tokenizer's do."""
    templates = {
        key.removeprefix(TEMPLATE).removeprefix(".") or "default": field.contents()
        for key, field in reader.fields.items()
        if key == TEMPLATE or key.startswith(f"{TEMPLATE}.")
    }
    if "default" in templates and renders_alike(tokenizer, templates["default"]):
        return templates
    if "default" in templates:
        warnings.warn(
            "The chat template of the GGUF file renders chats differently from that of the training: the latter is "
            "written.",
            stacklevel=3,
        )
    # As the package gguf names them
    named = {re.sub("[^A-Za-z0-9]", "_", name): template for name, template in chat_templates(tokenizer).items()}
    return templates | named


def quantized(rows: np.ndarray, type: GGMLQuantizationType) -> np.ndarray:
    """Rows `[n, d]`, float32, in another type, as they stand in a file."""
    from gguf import GGMLQuantizationType as Type
    from gguf.quants import quantize

    return _q6_k(rows) if type == Type.Q6_K else quantize(rows, type)


def _q6_k(rows: np.ndarray) -> np.ndarray:
    """
    Rows `[n, d]` in Q6_K, in which most output tables are and which the package gguf only reads: 256 values as 6-bit
    integers, a scale for each 16 of them as an 8-bit integer, and the scale of these.
    """
    blocks = rows.reshape(-1, 16, 16)
    scales = np.abs(blocks).max(-1) / 31
    scale = (scales.max(-1, keepdims=True) / 127).astype(np.float16)
    scales = np.rint(scales / np.maximum(scale.astype(np.float32), 1e-30)).clip(1, 127)
    steps = (scales * scale.astype(np.float32))[..., None]
    values = np.rint(np.divide(blocks, steps, out=np.zeros_like(blocks), where=steps > 0)).clip(-32, 31) + 32
    values = values.astype(np.uint8).reshape(-1, 2, 4, 32)
    low, high = values & 15, values >> 4
    low = low.reshape(-1, 2, 2, 64)
    parts = (
        low[:, :, 0] | low[:, :, 1] << 4,
        high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6,
        scales.astype(np.int8).view(np.uint8),
        scale.view(np.uint8),
    )
    return np.concatenate([part.reshape(len(values), -1) for part in parts], axis=1).reshape(len(rows), -1)


@dataclass
class Table:
    """
    A tensor with a row for each token, some of them new, that is made chunk by chunk while `GGUFWriter` writes it.

    Attributes:
        tensor (`ReaderTensor`): what it is a copy of.
        type (`GGMLQuantizationType`): in which type.
        rows (`dict[int, np.ndarray]`): the new rows, float32, by their ids: of old tokens, or right after the last
            one.
    """

    tensor: ReaderTensor
    type: GGMLQuantizationType
    rows: dict[int, np.ndarray]

    def __post_init__(self) -> None:
        one = self._old(0, 1)
        self.dtype = one.dtype
        self.shape = (max(len(self.tensor.data), max(self.rows, default=-1) + 1), *one.shape[1:])
        self.nbytes = one.nbytes * self.shape[0]

    def tofile(self, file: BinaryIO) -> None:
        new = {i: quantized(row[None], self.type) for i, row in self.rows.items()}
        for start in range(0, len(self.tensor.data), ROWS_AT_ONCE):
            chunk = self._old(start, start + ROWS_AT_ONCE)
            for i in new:
                if start <= i < start + len(chunk):
                    chunk[i - start] = new[i][0]
            chunk.tofile(file)
        for i in range(len(self.tensor.data), self.shape[0]):
            new[i].tofile(file)

    def _old(self, start: int, end: int) -> np.ndarray:
        from gguf.quants import dequantize

        rows = self.tensor.data[start:end]
        if self.type == self.tensor.tensor_type:
            return np.array(rows)
        return quantized(dequantize(rows, self.tensor.tensor_type), self.type)


def write_copy(reader: GGUFReader, output: Path, metadata: dict, tables: dict[str, Table]) -> None:
    """Write a copy of a GGUF file with other metadata and some other tensors; a failure leaves no file."""
    from gguf import GGUFValueType, GGUFWriter

    writer = GGUFWriter(None, arch=reader.fields[ARCHITECTURE].contents())
    writer.data_alignment = int(reader.alignment)
    for key, field in reader.fields.items():
        value = metadata[key] if key in metadata else field.contents()
        # The writer counts for itself, and refuses empty arrays
        if key != ARCHITECTURE and not key.startswith("GGUF.") and value != []:
            writer.add_key_value(key, value, field.types[0], sub_type=field.types[-1])
    for key in metadata.keys() - reader.fields.keys():
        value = metadata[key]
        if isinstance(value, str):
            writer.add_string(key, value)
        else:
            kind = GGUFValueType.STRING if isinstance(value[0], str) else GGUFValueType.INT32
            writer.add_key_value(key, value, GGUFValueType.ARRAY, sub_type=kind)
    # A table has what the writer asks of an array
    tensors: dict[str, tuple[Any, GGMLQuantizationType]] = {
        tensor.name: (tensor.data, tensor.tensor_type) for tensor in reader.tensors
    }
    tensors.update({name: (table, table.type) for name, table in tables.items()})
    for name, (data, type) in tensors.items():
        writer.add_tensor_info(name, data.shape, data.dtype, data.nbytes, type)

    output.parent.mkdir(parents=True, exist_ok=True)
    part = output.with_name(f"{output.name}.{os.getpid()}.part")
    try:
        writer.write_header_to_file(part)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for data, _ in tensors.values():
            writer.write_tensor_data(data)
        writer.close()
        part.rename(output)
    finally:
        part.unlink(missing_ok=True)
