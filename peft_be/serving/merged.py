"""A checkpoint in which [BE] is an ordinary special token, for engines that know nothing of PEFT."""

from __future__ import annotations

import json
import os
import re
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..models import load_adapters
from ..tuner import BETokenConfig
from ..tuner.model import untie_output_embedding
from ..tuner.token_ids import find_unused_token_ids


TOKENS_FILE = "be_tokens.json"
# What the output embedding is to give a [BE] token wherever the model is: e^-100 beside an ordinary best token
NEVER_LOGIT = -100.0


@dataclass
class MergedToken:
    """
    A prompt's [BE] in a merged checkpoint.

    Attributes:
        text (`str`): what to write where the prompt stood; the tokenizer reads it as the ids below.
        ids (`list[int]`): the ids of its k rows.
        slot (`str`): `"system"`: the text is the system message; `"prefix"`: it stands in front of the user's turn, where
            no chat message can be, so that it needs a prompt that is put together by hand.
    """

    text: str
    ids: list[int]
    slot: str


def export_merged(
    adapters: dict[str, str | os.PathLike],
    output_dir: str | os.PathLike,
    model: str | None = None,
    default: str | None = None,
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
            `.`, `_` and `-`. A name becomes the token `<|be_NAME|>`.
        output_dir (`str` or `os.PathLike`):
            Folder for the checkpoint; new or empty. `be_tokens.json` in it tells the tokens.
        model (`str`, *optional*):
            The base model, as in [`load_model`]. `None` is the one that the first adapter was trained on.
        default (`str`, *optional*):
            Name of the adapter that the chat template takes as the system message where a chat has none.

    Returns:
        `dict[str, MergedToken]`: by adapter.

    Raises:
        `ValueError`: no adapter, unusable names, an unknown `default`, or adapters of different bases.
        `FileNotFoundError`: there is no adapter in a folder.
        `OSError`: the base model cannot be loaded, or the Hub cannot be reached.
        `FileExistsError`: `output_dir` is not empty.
    """
    output_dir = Path(output_dir)
    for name in adapters:
        if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
            raise ValueError(f"'{name}' cannot be part of a token's name: use letters, digits, '.', '_' and '-'.")
    if not adapters:
        raise ValueError("There is no adapter to export.")
    if default is not None and default not in adapters:
        raise ValueError(f"The default '{default}' is not among the adapters: {', '.join(adapters)}.")
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise FileExistsError(f"'{output_dir}' exists and is not an empty folder: choose another one.")

    # PEFT allows no dot in a name
    own_names = {name: str(number) for number, name in enumerate(adapters)}
    peft_model, tokenizer = load_adapters({own_names[name]: folder for name, folder in adapters.items()}, model)
    rows, slots = {}, {}
    for name, directory in adapters.items():
        config = peft_model.peft_config[own_names[name]]
        _check_exportable(config, directory, default == name)
        rows[name], slots[name] = peft_model.base_model.get_rows(own_names[name]), config.slot
    base = peft_model.unload()

    texts = {
        name: [f"<|be_{name}|>"] if len(r) == 1 else [f"<|be_{name}_{i}|>" for i in range(len(r))]
        for name, r in rows.items()
    }
    wanted = [text for name in rows for text in texts[name]]
    taken = [text for text in wanted if text in tokenizer.get_vocab()]
    if taken:
        raise ValueError(f"The tokenizer has a token {taken[0]} already: name the adapter otherwise.")
    untie_output_embedding(base)
    never = never_row(base)
    tokenizer, ids = _name_tokens(tokenizer, base.get_input_embeddings().num_embeddings, wanted, output_dir)
    if max(ids) >= base.get_input_embeddings().num_embeddings:
        base.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    table, head = base.get_input_embeddings().weight, base.get_output_embeddings().weight
    with torch.no_grad():
        at = torch.tensor(ids, device=table.device)
        table.index_copy_(0, at, torch.cat(list(rows.values())).to(table))
        head.index_copy_(0, at, never.to(head).expand(len(ids), -1))
    suppressed = base.generation_config.suppress_tokens or []
    base.generation_config.suppress_tokens = sorted({*suppressed, *ids})

    tokens, left = {}, list(ids)
    for name in rows:
        own, left = left[: len(texts[name])], left[len(texts[name]) :]
        tokens[name] = MergedToken("".join(texts[name]), own, slots[name])
    if default is not None:
        tokenizer.chat_template = _with_default_system(tokenizer.chat_template, tokens[default].text)
    base.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    (output_dir / TOKENS_FILE).write_text(
        json.dumps({name: asdict(token) for name, token in tokens.items()}, indent=2) + "\n"
    )
    return tokens


def _check_exportable(config: BETokenConfig, directory: str | os.PathLike, is_default: bool) -> None:
    if not config.num_be_tokens:
        raise ValueError(f"'{directory}' holds an [AE] row, which is for training only, and no [BE].")
    if is_default and config.slot != "system":
        raise ValueError(
            f"'{directory}' was trained with slot '{config.slot}': only one of slot 'system' can be a default system message."
        )


@torch.no_grad()
def never_row(model: PreTrainedModel, num_sequences: int = 16, length: int = 96) -> torch.Tensor:
    """
    A row of the output embedding whose logit is about -100 wherever the model is, `[d]`, float32.

    It is the least-squares solution over the final hidden states of texts that the model writes itself, sampled without
    limits, and of random tokens, where contexts are as strange as can be. Half of the texts are kept to check it: the states
    of trained models have enough in common, those of a random model have not, which is warned of.

    Args:
        model ([`~transformers.PreTrainedModel`]): the causal LM, not wrapped by PEFT.
        num_sequences (`int`, *optional*, defaults to `16`): sequences of each kind.
        length (`int`, *optional*, defaults to `96`): their length, in tokens.
    """
    vocab_size = model.get_output_embeddings().weight.shape[0]
    start = model.config.get_text_config().bos_token_id
    start = start[0] if isinstance(start, list) else start or 0
    with torch.random.fork_rng():
        torch.manual_seed(0)
        begin = torch.full((num_sequences, 1), start, device=model.device)
        written = model.generate(
            begin, attention_mask=torch.ones_like(begin), do_sample=True, top_k=0, top_p=1.0, temperature=1.0,
            min_new_tokens=length, max_new_tokens=length,
        )  # fmt: skip
        noise = torch.randint(vocab_size, written.shape).to(model.device)
    states = [model.get_decoder()(input_ids=ids, use_cache=False)[0].double() for ids in (written, noise)]
    fit, check = (torch.cat([s[half::2].flatten(0, 1) for s in states]) for half in (0, 1))
    covariance = fit.T @ fit / len(fit)
    ridge = 1e-3 * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=fit.dtype, device=fit.device)
    row = torch.linalg.solve(covariance + ridge, NEVER_LOGIT * fit.mean(0))
    highest = (check @ row).max().item()
    if highest > NEVER_LOGIT / 4:
        warnings.warn(
            f"The output row of [BE] scores up to {highest:.0f} in this model, where {NEVER_LOGIT:.0f} was wanted: engines "
            "that do not read `suppress_tokens` of the generation config might write [BE].",
            stacklevel=3,
        )
    return row.float()


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


def _with_default_system(template: str, text: str) -> str:
    """A chat template that puts `text` in front as the system message where a chat has none."""
    first = "{%- if not messages or messages[0]['role'] != 'system' -%}"
    return f"{first}{{%- set messages = [{{'role': 'system', 'content': '{text}'}}] + messages -%}}{{%- endif -%}}{template}"
