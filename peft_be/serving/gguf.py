"""A GGUF file in which [BE] is an ordinary special token, for llama.cpp and what is built on it."""

from __future__ import annotations

import json
import os
import re
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..tuner.token_ids import find_unused_token_ids
from .gguf_weights import check_layers
from .tokens import (
    MergedToken,
    chat_templates,
    check_names,
    check_shown,
    load_rows,
    never_row,
    renders_alike,
    with_default_system,
)


if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFReader
    from gguf.gguf_reader import ReaderTensor


TOKENS_KEY = "peft_be.tokens"
ARCHITECTURE = "general.architecture"
TEMPLATE = "tokenizer.chat_template"
SUPPRESSED = "tokenizer.ggml.suppress_tokens"
INPUT, OUTPUT, BIAS = "token_embd.weight", "output.weight", "output.bias"
# Architectures for which llama.cpp reads no output.weight: their rows of the table score, too
ALWAYS_TIED = ("bitnet", "cohere2", "command-r", "gemma", "gemma2", "openelm")
NORMAL, CONTROL = 1, 3  # llama.cpp's token types
ROWS_AT_ONCE = 8192


def export_gguf(
    adapters: dict[str, str | os.PathLike],
    base: str | os.PathLike,
    output: str | os.PathLike,
    model: str | None = None,
    default: str | None = None,
    allow_other_weights: bool = False,
    token_names: dict[str, str] | None = None,
    device: str | None = None,
) -> dict[str, MergedToken]:
    """
    Write a copy of a GGUF file in which each adapter's [BE] is an ordinary special token.

    The rows go where [`export_merged`] puts them: to ids that nothing uses, which are renamed, and only then to added ids.
    All other tokens keep their numbers: tensors are copied byte by byte.

    The input table keeps its type if that is F32, F16, BF16, Q8_0 or Q6_K. Other types are too coarse for a row that stands
    for a whole prompt, and a table has one type: then it is written in F32, with the numbers that its blocks stand for.

    A [BE] token cannot be generated: a tied table is copied to `output.weight`, where [BE] has the row of [`never_row`],
    fitted to the base model's hidden states. The ids are in `tokenizer.ggml.suppress_tokens`, too, which `llama-server`
    reads. An output table of a type that cannot be written here (other K types than Q6_K, IQ types) becomes F16.

    Args:
        adapters (`dict[str, str | os.PathLike]`):
            Folders of adapters of one base model by names, as in [`export_merged`].
        base (`str` or `os.PathLike`):
            GGUF file of the base model, of any quantisation, in one piece.
        output (`str` or `os.PathLike`):
            The file to write, which must not exist. The key `peft_be.tokens` in it tells the tokens, as JSON.
        model (`str`, *optional*):
            The base model as in [`load_model`], which knows its tokenizer and its hidden states. `None` is the one that
            the first adapter was trained on.
        default (`str`, *optional*):
            Name of the adapter that the chat template takes as the system message where a chat has none.
        allow_other_weights (`bool`, *optional*, defaults to `False`):
            Accept other weights of the base model than those of the training.
        token_names (`dict[str, str]`, *optional*):
            How the tokens are spelled, by adapter, for instance `{"pirate": "<|pirate|>"}`: in angle or square brackets.
            Several rows are numbered: `<|pirate_0|>`. An adapter that is not among them becomes `<|be_NAME|>`.
        device (`str`, *optional*):
            Where the base model is computed, as in [`load_model`].

    Returns:
        `dict[str, MergedToken]`: by adapter.

    Raises:
        `ImportError`: the package gguf is not installed.
        `ValueError`: adapters, names or default as in [`export_merged`]; `base` is damaged, is of another model, or of an
            architecture that llama.cpp always ties.
        `FileNotFoundError`: there is no such GGUF file, or no adapter in a folder.
        `FileExistsError`: `output` exists.
    """
    check_names(adapters, default, token_names)
    base, output = Path(base), Path(output)
    if output.exists():
        raise FileExistsError(f"'{output}' exists: choose another file.")
    reader = _read(base)
    loading = {"model": model, "device": device, "allow_other_weights": allow_other_weights}
    hf_model, tokenizer, found = load_rows(adapters, default, token_names, **loading)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    vocab = reader.fields["tokenizer.ggml.tokens"].contents()
    _check_same_model(base, tensors, vocab, hf_model, tokenizer)
    if not allow_other_weights:
        check_layers(base, reader.fields[ARCHITECTURE].contents(), tensors, hf_model)
    found.check_texts_are_new(vocab)
    ids = _free_ids(reader, tokenizer, len(vocab), len(found.all_texts))
    tokens = found.tokens(ids)
    for tensor in reader.tensors if max(ids) >= len(vocab) else ():
        if tensor.name not in (INPUT, OUTPUT, BIAS) and len(vocab) in tensor.shape:
            raise ValueError(
                f"'{base}' has no ids left for {len(ids)} tokens, and added ids would need numbers in {tensor.name}, too: "
                "export fewer adapters."
            )

    rows = np.concatenate([r.float().cpu().numpy() for r in found.rows.values()])
    never = never_row(hf_model).cpu().numpy()[None].repeat(len(ids), 0)
    del hf_model
    table, head = tensors[INPUT], tensors.get(OUTPUT, tensors[INPUT])
    written = {
        INPUT: _Table(table, _input_type(table.tensor_type), dict(zip(ids, rows))),
        OUTPUT: _Table(head, _output_type(head.tensor_type), dict(zip(ids, never))),
    }
    if BIAS in tensors:
        bias = tensors[BIAS]
        written[BIAS] = _Table(bias, bias.tensor_type, dict.fromkeys(ids, np.zeros((), np.float32)))
    metadata = _new_metadata(reader, vocab, ids, found.all_texts)
    templates = _templates(reader, tokenizer)
    check_shown(tokenizer, templates["default"], tokens, default)
    if default is not None:
        templates = {name: with_default_system(template, tokens[default].text) for name, template in templates.items()}
    metadata[TEMPLATE] = templates.pop("default")
    metadata |= {f"{TEMPLATE}.{name}": template for name, template in templates.items()}
    metadata |= {f"{TEMPLATE}s": sorted(templates)} if templates else {}
    metadata[TOKENS_KEY] = json.dumps({name: asdict(token) for name, token in tokens.items()})
    _write(reader, output, metadata, written)
    return tokens


def _read(path: str | os.PathLike) -> GGUFReader:
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
    if arch is None or INPUT not in names or "tokenizer.ggml.tokens" not in reader.fields:
        raise ValueError(f"'{path}' holds no language model with its tokenizer.")
    if arch in ALWAYS_TIED:
        raise ValueError(
            f"For models of architecture '{arch}' llama.cpp scores tokens by the rows of its input table, and would write [BE] "
            "nearly everywhere: serve a transformers checkpoint instead (--format hf)."
        )
    return reader


def _check_same_model(
    path: Path,
    tensors: dict[str, ReaderTensor],
    vocab: list[str],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Check that a GGUF file is of the adapters' base: the table's shape and what is in it, and the vocabulary."""
    from gguf.quants import dequantize

    table = model.get_input_embeddings().weight
    found = tuple(int(size) for size in reversed(tensors[INPUT].shape))
    other = f"'{path}' is not the base model of the adapters"
    if found != tuple(table.shape) or len(vocab) != len(table):
        raise ValueError(
            f"{other}: its table is {found[0]} x {found[1]} for {len(vocab)} tokens, theirs {len(table)} x {table.shape[1]}."
        )
    added = {}
    for i, token in tokenizer.added_tokens_decoder.items():
        # llama.cpp's converter writes what is left of a token when it is read and spelled out again
        again = tokenizer.decode(tokenizer.encode(token.content, add_special_tokens=False))
        added[i] = {token.content, again}
    for token, i in tokenizer.get_vocab().items():
        if i < len(vocab) and vocab[i] not in added.get(i, {token}):
            raise ValueError(f"{other}: its token {i} is {vocab[i]!r} instead of {token!r}.")
    some = np.linspace(0, len(vocab) - 1, 256, dtype=int)
    mine = dequantize(tensors[INPUT].data[some], tensors[INPUT].tensor_type)
    theirs = table[some.tolist()].float().cpu().numpy()
    # 2-bit types are off by a third
    if np.linalg.norm(mine - theirs) > 0.7 * np.linalg.norm(theirs):
        raise ValueError(f"{other}: its tokens have other embeddings.")


def _free_ids(reader: GGUFReader, tokenizer: PreTrainedTokenizerBase, vocab_size: int, count: int) -> list[int]:
    """Ids that neither the tokenizer nor the file itself uses, then ids beyond the vocabulary."""
    named = re.compile(r"tokenizer\.ggml\.\w+_token_id")
    used = {field.contents() for key, field in reader.fields.items() if named.fullmatch(key)}
    free = find_unused_token_ids(tokenizer, vocab_size, count, exclude=used)
    return [*free, *range(vocab_size, vocab_size + count - len(free))]


def _new_metadata(reader: GGUFReader, vocab: list[str], ids: list[int], texts: list[str]) -> dict:
    """The metadata of a GGUF file that change or are new."""

    def extended(key: str, fill, values: list) -> list:
        old = reader.fields[key].contents() if key in reader.fields else [fill] * len(vocab)
        new = old + [fill] * (max(ids) + 1 - len(old))
        for i, value in zip(ids, values):
            new[i] = value
        return new

    metadata: dict[str, Any] = {
        "tokenizer.ggml.tokens": extended("tokenizer.ggml.tokens", "", texts),
        "tokenizer.ggml.token_type": extended("tokenizer.ggml.token_type", NORMAL, [CONTROL] * len(ids)),
    }
    if "tokenizer.ggml.scores" in reader.fields:
        # As low as the converter's for tokens that are not merged from others
        metadata["tokenizer.ggml.scores"] = extended("tokenizer.ggml.scores", 0.0, [-1000.0] * len(ids))
    suppressed = reader.fields.get(SUPPRESSED)
    metadata[SUPPRESSED] = sorted({*(suppressed.contents() if suppressed else []), *ids})
    size = f"{reader.fields[ARCHITECTURE].contents()}.vocab_size"
    if size in reader.fields:
        metadata[size] = len(metadata["tokenizer.ggml.tokens"])
    return metadata


def _templates(reader: GGUFReader, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
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


def _input_type(type: GGMLQuantizationType) -> GGMLQuantizationType:
    from gguf import GGMLQuantizationType as Type

    return type if type in (Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q6_K) else Type.F32


def _output_type(type: GGMLQuantizationType) -> GGMLQuantizationType:
    """The table's own type wherever one row of it can be made here, and else F16."""
    from gguf import GGMLQuantizationType as Type

    try:
        _quantized(np.zeros((1, 256), dtype=np.float32), type)
    except NotImplementedError:
        return Type.F16
    return type


def _quantized(rows: np.ndarray, type: GGMLQuantizationType) -> np.ndarray:
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
class _Table:
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
        self.shape = (max(len(self.tensor.data), max(self.rows) + 1), *one.shape[1:])
        self.nbytes = one.nbytes * self.shape[0]

    def tofile(self, file: BinaryIO) -> None:
        new = {i: _quantized(row[None], self.type) for i, row in self.rows.items()}
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
        return _quantized(dequantize(rows, self.tensor.tensor_type), self.type)


def _write(reader: GGUFReader, output: Path, metadata: dict, tables: dict[str, _Table]) -> None:
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
