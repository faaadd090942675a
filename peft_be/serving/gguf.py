"""A GGUF file in which [BE] is an ordinary special token, for llama.cpp and what is built on it."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..tuner.token_ids import find_unused_token_ids
from .gguf_file import (
    ARCHITECTURE,
    CONTROL,
    INPUT,
    NORMAL,
    OUTPUT,
    TEMPLATE,
    TOKEN_TYPES,
    TOKENS,
    Table,
    file_templates,
    quantized,
    read_gguf,
    used_ids,
    write_copy,
)
from .gguf_weights import check_base
from .tokens import (
    MergedToken,
    check_adapter_names,
    check_kept_texts,
    check_shown,
    load_rows,
    never_row,
    with_default_system,
)


if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFReader


TOKENS_KEY = "peft_be.tokens"
SUPPRESSED = "tokenizer.ggml.suppress_tokens"
BIAS = "output.bias"


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
    check_adapter_names(adapters, default, token_names)
    base, output = Path(base), Path(output)
    if output.exists():
        raise FileExistsError(f"'{output}' exists: choose another file.")
    reader = read_gguf(base)
    loading = {"model": model, "device": device, "allow_other_weights": allow_other_weights}
    hf_model, tokenizer, found = load_rows(adapters, default, token_names, **loading)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    vocab = reader.fields[TOKENS].contents()
    check_base(base, reader, hf_model, tokenizer, allow_other_weights)
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
        INPUT: Table(table, _input_type(table.tensor_type), dict(zip(ids, rows))),
        OUTPUT: Table(head, _output_type(head.tensor_type), dict(zip(ids, never))),
    }
    if BIAS in tensors:
        bias = tensors[BIAS]
        written[BIAS] = Table(bias, bias.tensor_type, dict.fromkeys(ids, np.zeros((), np.float32)))
    metadata = _new_metadata(reader, vocab, ids, found.all_texts)
    templates = file_templates(reader, tokenizer)
    check_shown(tokenizer, templates["default"], tokens, default)
    check_kept_texts(found, tokenizer, tokens, _with_tokens(tokenizer, found.all_texts), templates["default"])
    if default is not None:
        system_text = tokens[default].system_text
        assert system_text is not None  # of slot `system`, see load_rows
        templates = {name: with_default_system(template, system_text) for name, template in templates.items()}
    metadata[TEMPLATE] = templates.pop("default")
    metadata |= {f"{TEMPLATE}.{name}": template for name, template in templates.items()}
    metadata |= {f"{TEMPLATE}s": sorted(templates)} if templates else {}
    metadata[TOKENS_KEY] = json.dumps({name: asdict(token) for name, token in tokens.items()})
    write_copy(reader, output, metadata, written)
    return tokens


def _free_ids(reader: GGUFReader, tokenizer: PreTrainedTokenizerBase, vocab_size: int, count: int) -> list[int]:
    """Ids that neither the tokenizer nor the file itself uses, then ids beyond the vocabulary."""
    used = used_ids(reader)
    free = find_unused_token_ids(tokenizer, vocab_size, count, exclude=used)
    return [*free, *range(vocab_size, vocab_size + count - len(free))]


def _with_tokens(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> PreTrainedTokenizerBase:
    """A copy of a tokenizer that reads the new tokens, as the file does. Their ids are others."""
    copied = copy.deepcopy(tokenizer)
    copied.add_special_tokens({"additional_special_tokens": texts}, replace_extra_special_tokens=False)
    return copied


def _new_metadata(reader: GGUFReader, vocab: list[str], ids: list[int], texts: list[str]) -> dict:
    """The metadata of a GGUF file that change or are new."""

    def extended(key: str, fill, values: list) -> list:
        old = reader.fields[key].contents() if key in reader.fields else [fill] * len(vocab)
        new = old + [fill] * (max(ids) + 1 - len(old))
        for i, value in zip(ids, values):
            new[i] = value
        return new

    metadata: dict[str, Any] = {
        TOKENS: extended(TOKENS, "", texts),
        TOKEN_TYPES: extended(TOKEN_TYPES, NORMAL, [CONTROL] * len(ids)),
    }
    if "tokenizer.ggml.scores" in reader.fields:
        # As low as the converter's for tokens that are not merged from others
        metadata["tokenizer.ggml.scores"] = extended("tokenizer.ggml.scores", 0.0, [-1000.0] * len(ids))
    suppressed = reader.fields.get(SUPPRESSED)
    metadata[SUPPRESSED] = sorted({*(suppressed.contents() if suppressed else []), *ids})
    size = f"{reader.fields[ARCHITECTURE].contents()}.vocab_size"
    if size in reader.fields:
        metadata[size] = len(metadata[TOKENS])
    return metadata


def _input_type(type: GGMLQuantizationType) -> GGMLQuantizationType:
    from gguf import GGMLQuantizationType as Type

    return type if type in (Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q6_K) else Type.F32


def _output_type(type: GGMLQuantizationType) -> GGMLQuantizationType:
    """The table's own type wherever one row of it can be made here, and else F16."""
    from gguf import GGMLQuantizationType as Type

    try:
        quantized(np.zeros((1, 256), dtype=np.float32), type)
    except NotImplementedError:
        return Type.F16
    return type
