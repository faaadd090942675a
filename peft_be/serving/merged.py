"""A checkpoint in which [BE] is an ordinary special token, for engines that know nothing of PEFT."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..tuner import untie_output_embedding
from ..tuner.token_ids import find_unused_token_ids
from .tokens import (
    MergedToken,
    chat_templates,
    check_adapter_names,
    check_kept_texts,
    check_new_folder,
    check_shown,
    load_rows,
    never_row,
    with_default_system,
)


TOKENS_FILE = "be_tokens.json"


def export_merged(
    adapters: dict[str, str | os.PathLike],
    output_dir: str | os.PathLike,
    model: str | None = None,
    default: str | None = None,
    allow_other_weights: bool = False,
    token_names: dict[str, str] | None = None,
    dtype: torch.dtype | str | None = None,
    device: str | None = None,
) -> dict[str, MergedToken]:
    """
    Write a transformers checkpoint in which each adapter's [BE] is an ordinary special token.

    The rows go to ids that nothing uses: rows that pad the embedding, then reserved tokens (`<|reserved_special_token_0|>`,
    `<repo_name>`), which are renamed, and only then to added rows. All other tokens keep their rows, and their logits.

    A [BE] token cannot be generated. Its row is as long as a hidden state, and a model with tied embeddings would write it
    nearly everywhere: so the output embedding is untied (V x d more numbers), and gets a row for it that scores about -100
    in any context. The generation config suppresses the ids too, for what reads it.

    Args:
        adapters (`dict[str, str | os.PathLike]`):
            Adapters of one base model, each a folder or a name on the Hub as in [`load_adapter`], by names: letters, digits,
            `.`, `_` and `-`. A name becomes the token `<|be_NAME|>`, if `token_names` says nothing else.
        output_dir (`str` or `os.PathLike`):
            Folder for the checkpoint; new or empty. `be_tokens.json` in it tells the tokens.
        model (`str`, *optional*):
            The base model, as in [`load_model`]. `None` is the one that the first adapter was trained on.
        default (`str`, *optional*):
            Name of the adapter that the chat template takes as the system message where a chat has none.
        allow_other_weights (`bool`, *optional*, defaults to `False`):
            Accept other weights of the base model than those of the training.
        token_names (`dict[str, str]`, *optional*):
            How the tokens are spelled, by adapter, for instance `{"pirate": "<|pirate|>"}`: in angle or square brackets.
            Several rows are numbered: `<|pirate_0|>`. An adapter that is not among them becomes `<|be_NAME|>`.
        dtype (`torch.dtype` or `str`, *optional*), device (`str`, *optional*):
            Of the checkpoint, and where it is made, as in [`load_model`].

    Returns:
        `dict[str, MergedToken]`: by adapter.

    Raises:
        `ValueError`: no adapter, unusable names, a token that the tokenizer has already, an unknown `default`, or
            adapters of different bases.
        `FileNotFoundError`: there is no adapter in a folder.
        `OSError`: the base model cannot be loaded, or the Hub cannot be reached.
        `FileExistsError`: `output_dir` is not empty.
    """
    output_dir = Path(output_dir)
    check_adapter_names(adapters, default, token_names)
    check_new_folder(output_dir)

    loading = {"model": model, "dtype": dtype, "device": device, "allow_other_weights": allow_other_weights}
    base, tokenizer, found = load_rows(adapters, default, token_names, **loading)
    found.check_texts_are_new(tokenizer.get_vocab())
    untie_output_embedding(base)
    never = never_row(base)
    trained = tokenizer
    tokenizer, ids = _name_tokens(tokenizer, base.get_input_embeddings().num_embeddings, found.all_texts, output_dir)
    if max(ids) >= base.get_input_embeddings().num_embeddings:
        base.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    table, head = base.get_input_embeddings().weight, base.get_output_embeddings().weight
    with torch.no_grad():
        at = torch.tensor(ids, device=table.device)
        table.index_copy_(0, at, torch.cat(list(found.rows.values())).to(table))
        head.index_copy_(0, at, never.to(head).expand(len(ids), -1))
    suppressed = base.generation_config.suppress_tokens or []
    base.generation_config.suppress_tokens = sorted({*suppressed, *ids})

    tokens = found.tokens(ids)
    check_shown(tokenizer, tokenizer.get_chat_template(), tokens, default)
    check_kept_texts(found, trained, tokens, tokenizer, tokenizer.get_chat_template())
    if default is not None:
        own, system_text = chat_templates(tokenizer).items(), tokens[default].system_text
        assert system_text is not None  # of slot `system`, see load_rows
        templates = {name: with_default_system(template, system_text) for name, template in own}
        tokenizer.chat_template = templates if len(templates) > 1 else templates["default"]
    base.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    (output_dir / TOKENS_FILE).write_text(
        json.dumps({name: asdict(token) for name, token in tokens.items()}, indent=2) + "\n"
    )
    return tokens


def _name_tokens(
    tokenizer: PreTrainedTokenizerBase, vocab_size: int, texts: list[str], output_dir: Path
) -> tuple[PreTrainedTokenizerBase, list[int]]:
    """The tokenizer with the tokens `texts`, and their ids: free ones below `vocab_size`, and only then beyond it."""
    vocab = tokenizer.get_vocab()
    # Ids in between that no token has cannot be given to one: tokenizers count on
    free = find_unused_token_ids(tokenizer, vocab_size, vocab_size)
    padding = [i for i in free if i > max(vocab.values())]
    reserved = [i for i in free if i in tokenizer.added_tokens_decoder]
    if not tokenizer.is_fast:
        reserved = []
    num_added = min(len(texts), len(padding))
    renamed = reserved[: len(texts) - num_added]
    num_added = len(texts) - len(renamed)
    added, named = texts[:num_added], texts[num_added:]

    output_dir.mkdir(parents=True, exist_ok=True)
    if added:
        # A new token counts on from the last one, which padding rows follow
        tokenizer.add_special_tokens({"additional_special_tokens": added}, replace_extra_special_tokens=False)
    tokenizer.save_pretrained(output_dir)
    names = {tokenizer.added_tokens_decoder[i].content: text for i, text in zip(renamed, named)}
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if names and (output_dir / file).is_file():
            content = json.loads((output_dir / file).read_text(encoding="utf-8"))
            (output_dir / file).write_text(
                json.dumps(_replaced(content, names), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
            )
    tokenizer = AutoTokenizer.from_pretrained(output_dir)
    ids = tokenizer.convert_tokens_to_ids(texts)
    read = [tokenizer(f"a{text}b", add_special_tokens=False)["input_ids"] for text in texts]
    if ids[num_added:] != renamed or not all(i in sequence for i, sequence in zip(ids, read)):
        raise ValueError("This tokenizer does not take new special tokens: serve the adapter with PEFT instead.")
    return tokenizer, ids


def _replaced(value, names: dict[str, str]):
    """A JSON value with the strings and keys that are in `names` replaced."""
    if isinstance(value, dict):
        return {names.get(key, key): _replaced(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, names) for item in value]
    return names.get(value, value) if isinstance(value, str) else value
