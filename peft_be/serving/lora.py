"""[BE] as a standard LoRA adapter: a change of rank k to the input embedding, which engines load next to their base model."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from peft.utils import _get_input_embeddings_name
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..adapters.base_weights import check_weights, weights_fingerprint
from ..adapters.folder import WEIGHTS_FILE
from ..files import read_json
from ..models import load_model
from ..tuner import BETokenConfig
from ..tuner.provenance import Provenance
from ..tuner.token_ids import find_unused_token_ids
from ..vllm_resolver import NO_LORA_ON_EMBEDDING, TOKEN_FILE, refusal_warning
from .tokens import (
    AdapterRows,
    MergedToken,
    chat_templates,
    check_adapter_names,
    check_kept_texts,
    check_new_folder,
    check_shown,
    load_rows,
    with_default_system,
)


TEMPLATE_FILE = "chat_template.jinja"


@dataclass
class LoraToken(MergedToken):
    """
    A prompt's [BE] in a LoRA adapter, as `be_token.json` has it.

    Attributes:
        base_model (`str`): the base model's name.
        provenance (`dict`, *optional*): what the rows were made from, see [`Provenance`].
    """

    base_model: str
    provenance: dict | None


def export_lora(
    adapters: dict[str, str | os.PathLike],
    output_dir: str | os.PathLike,
    model: str | None = None,
    allow_other_weights: bool = False,
    dtype: torch.dtype | str | None = None,
    device: str | None = None,
) -> dict[str, LoraToken]:
    """
    Write each adapter's [BE] as a LoRA adapter of the input embedding, for PEFT, vLLM and whatever else loads LoRA.

    A row at token id i is the table's row plus a difference: LoRA with A one-hot at i, B the difference, and rank and alpha
    k. The ids are reserved tokens that the tokenizer reads in a text (`<|reserved_special_token_0|>`, `<repo_name>`). So a
    request names the LoRA adapter and has the token as its system message, followed by the kept text if there is one.
    `system_text` in `be_token.json` is that message; the chat template in `chat_template.jinja` puts it in front where a
    chat has none. The base model stays as it is, its output embedding too.

    The rows that an engine reads are those of the [BE] adapter in its dtype, see [`differences`]. There is a warning where
    vLLM needs an option to apply LoRA to the embedding of such a model.

    Args:
        adapters (`dict[str, str | os.PathLike]`):
            Adapters of one base model, each a folder or a name on the Hub as in [`load_adapter`], by names: letters, digits,
            `.`, `_` and `-`.
        output_dir (`str` or `os.PathLike`):
            Folder for the LoRA adapters, each in a folder of its name; new or empty.
        model (`str`, *optional*):
            The base model, as in [`load_model`]. `None` is the one that the first adapter was trained on.
        allow_other_weights (`bool`, *optional*, defaults to `False`):
            Accept other weights of the base model than those of the training.
        dtype (`torch.dtype` or `str`, *optional*):
            The dtype in which the engine computes. `None` is float32, which suits PEFT whatever the base's dtype is: it adds in float32.
            vLLM adds in the base's dtype, such as `torch.bfloat16`.
        device (`str`, *optional*):
            Where to load the base model, as in [`load_model`].

    Returns:
        `dict[str, LoraToken]`: by adapter.

    Raises:
        `ValueError`: no adapter, unusable names, adapters of different bases, a tokenizer with fewer reserved tokens than
            rows, or a model that scales its embeddings (Gemma).
        `FileNotFoundError`: there is no adapter in a folder.
        `OSError`: the base model cannot be loaded, or the Hub cannot be reached.
        `FileExistsError`: `output_dir` is not empty.
    """
    output_dir, dtype = Path(output_dir), torch.float32 if dtype is None else dtype
    check_adapter_names(adapters)
    check_new_folder(output_dir)

    base, tokenizer, found = load_rows(
        adapters, model=model, dtype=dtype, device=device, allow_other_weights=allow_other_weights
    )
    for config in found.configs.values():
        if config.embed_scale != 1:
            raise ValueError(
                f"This base model multiplies its embeddings by {config.embed_scale:g}, which engines do not do to LoRA: export "
                "a checkpoint (--format hf) instead."
            )
    tokens = lora_tokens(found, tokenizer, readable_ids(tokenizer, base))
    template = chat_templates(tokenizer)["default"]
    check_shown(tokenizer, template, tokens)
    check_kept_texts(found, tokenizer, tokens, tokenizer, template)
    model_type = base.config.get_text_config().model_type
    if model_type in NO_LORA_ON_EMBEDDING:
        warnings.warn(refusal_warning(model_type), UserWarning, stacklevel=2)
    for name, token in tokens.items():
        _write(base, found.rows[name], token, output_dir / name)
        write_record(token, template, output_dir / name)
    return tokens


def import_lora(
    directory: str | os.PathLike,
    output_dir: str | os.PathLike,
    model: str | None = None,
    allow_other_weights: bool = False,
    device: str | None = None,
) -> BETokenConfig:
    """
    Make a [BE] adapter of a LoRA adapter that [`export_lora`] wrote. Its rows are those that the LoRA adapter gives, in
    float32.

    Args:
        directory (`str` or `os.PathLike`): folder of the LoRA adapter.
        output_dir (`str` or `os.PathLike`): folder for the [BE] adapter; new or empty.
        model (`str`, *optional*): the base model, as in [`load_model`]. `None` is the one that the rows were trained on.
        allow_other_weights (`bool`, *optional*, defaults to `False`):
            Accept other weights of the base model than those of the training.
        device (`str`, *optional*): where to load the base model, as in [`load_model`].

    Returns:
        [`BETokenConfig`]: the configuration of the [BE] adapter.

    Raises:
        `FileNotFoundError`: there is no such adapter.
        `ValueError`: it is not one of [`export_lora`], is damaged, or was trained on other weights.
        `FileExistsError`: `output_dir` is not empty.
    """
    directory, output_dir = Path(directory), Path(output_dir)
    check_new_folder(output_dir)
    token, difference = _read(directory)
    base, tokenizer = load_model(model or token.base_model, torch.float32, device)
    table = base.get_input_embeddings().weight.detach()
    if len(difference) != table.shape[1] or not all(0 <= i < len(table) for i in token.ids):
        raise ValueError(f"The LoRA adapter in '{directory}' does not fit the base model '{base.name_or_path}'.")
    config = BETokenConfig.for_tokenizer(
        tokenizer, len(table), len(token.ids), slot=token.slot, kept_text=token.kept_text
    )
    config.provenance = token.provenance
    check_weights(
        Provenance.of(config), weights_fingerprint(base), f"The adapter in '{directory}'", allow_other_weights
    )
    rows = table[token.ids].float() + difference.T.to(table.device)
    peft_model = get_peft_model(base, config)
    peft_model.base_model.set_rows("default", rows)
    peft_model.peft_config["default"].base_model_name_or_path = token.base_model
    peft_model.save_pretrained(output_dir)
    return peft_model.peft_config["default"]


def _read(directory: Path) -> tuple[LoraToken, torch.Tensor]:
    """The record of a LoRA adapter, and its B `[d, k]`. Raises as [`import_lora`]."""
    try:
        record = read_json(directory / TOKEN_FILE, "record of [BE]", dict)
        record.pop("system_text", None)  # made of the others
        token = LoraToken(**record)
        tensors = load_file(directory / WEIGHTS_FILE)
        (difference,) = (tensor for name, tensor in tensors.items() if name.endswith("lora_embedding_B"))
        if not all(isinstance(i, int) for i in token.ids) or difference.shape[1:] != (len(token.ids),):
            raise ValueError("There is not one column for each id.")
    except (TypeError, ValueError, SafetensorError) as error:
        raise ValueError(f"'{directory}' is not a LoRA adapter that peft-be export wrote, or is damaged.") from error
    return token, difference


def readable_ids(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, exclude: Collection[int] = ()
) -> list[int]:
    """Ids that no prompt uses and that a text can have: those of reserved tokens."""
    rows = model.get_input_embeddings().num_embeddings
    free = find_unused_token_ids(tokenizer, rows, rows, exclude)
    return [i for i in free if i in tokenizer.added_tokens_decoder]


def lora_tokens(found: AdapterRows, tokenizer: PreTrainedTokenizerBase, free: list[int]) -> dict[str, LoraToken]:
    """
    The tokens of adapters that are served one at a time: all begin with the first of the `free` ids.

    Raises:
        `ValueError`: an adapter has more rows than there are ids.
    """
    tokens = {}
    for name, config in found.configs.items():
        k = len(found.rows[name])
        if k > len(free):
            raise ValueError(
                f"The rows of '{name}' need {k} reserved tokens, and the base model has {len(free)}: train with fewer "
                "rows, or export a model in which [BE] is a new token (--format hf or gguf)."
            )
        text = "".join(tokenizer.convert_ids_to_tokens(free[:k]))
        own = (config.base_model_name_or_path, config.provenance)
        tokens[name] = LoraToken(text, free[:k], config.slot, *own, kept_text=config.kept_text)
    return tokens


def write_record(token: LoraToken, template: str, directory: Path) -> None:
    """Write `be_token.json`, and for a system message the chat template that has it where a chat has none."""
    (directory / TOKEN_FILE).write_text(json.dumps(asdict(token), indent=2) + "\n", encoding="utf-8")
    if token.system_text is not None:
        (directory / TEMPLATE_FILE).write_text(with_default_system(template, token.system_text), encoding="utf-8")


@torch.no_grad()
def _write(base: PreTrainedModel, rows: torch.Tensor, token: LoraToken, directory: Path) -> None:
    k, table = len(token.ids), base.get_input_embeddings().weight
    # vLLM looks for the last part of the name
    target = _get_input_embeddings_name(base).rpartition(".")[2]
    lora = LoraConfig(task_type="CAUSAL_LM", r=k, lora_alpha=k, target_modules=[target], init_lora_weights=False)
    with warnings.catch_warnings():
        # That merging would change a tied output embedding: who exports does not merge
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")
        peft_model = get_peft_model(base, lora)
    try:
        layer = peft_model.get_input_embeddings()
        layer.lora_embedding_A["default"].zero_()[range(k), token.ids] = 1.0
        layer.lora_embedding_B["default"].copy_(differences(rows.to(table.device), table[token.ids]).T)
        peft_model.peft_config["default"].base_model_name_or_path = token.base_model
        # Not the table, which PEFT would add where its name is among the targets
        peft_model.save_pretrained(directory, save_embedding_layers=False)
    finally:
        peft_model.unload()


def differences(rows: torch.Tensor, table_rows: torch.Tensor) -> torch.Tensor:
    """
    What to add to the table's rows to get `rows` as the table's dtype has them, in float32.

    An engine that adds in float32 and rounds once, as PEFT does, reads exactly these rows. One that computes in 16 bits rounds the
    difference first, and one number in fifty is then off by its last bit. Without rounding the rows before, it would be one
    in four.

    Args:
        rows (`torch.Tensor`): the wanted rows, `[k, d]`.
        table_rows (`torch.Tensor`): the table's rows at the same ids, `[k, d]`, in the dtype in which the engine computes.

    Returns:
        `torch.Tensor`: the differences `[k, d]`, float32.
    """
    return (rows.to(table_rows.dtype).double() - table_rows.double()).float()
