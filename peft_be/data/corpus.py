"""Text passages for stage 0, the training of [AE]."""

from __future__ import annotations

import os

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from ..files import capitalised, well_formed
from .table import read_table


def load_corpus(path: str | os.PathLike) -> list[str]:
    """
    Read passages from a file.

    Args:
        path (`str` or `os.PathLike`): rows with a `text` each, in any of the formats of [`read_table`], such as
            `.jsonl`.

    Returns:
        `list[str]`: the texts in file order.

    Raises:
        `FileNotFoundError`: there is no such file.
        `ValueError`: a row has no `text`, or the file holds none or is damaged.
    """
    texts = []
    for where, row in read_table(path, "corpus file"):
        if not isinstance(row.get("text"), str):
            raise ValueError(f"{capitalised(where)} is no JSON object with a 'text'.")
        texts.append(well_formed(row["text"]))
    if not any(text.strip() for text in texts):
        raise ValueError(f"The corpus file '{path}' holds no text.")
    return texts


def check_passages(name: str, dataset: object) -> None:
    """Raises a `ValueError` if the argument `name` is no data set with a text in each row's `text`."""
    if not isinstance(dataset, (Dataset, IterableDataset)):
        raise ValueError(
            f"{name} must be a Dataset with a column 'text', such as Dataset.from_dict({{'text': texts}}), and is of type "
            f"{type(dataset).__name__}."
        )
    for number, row in enumerate(dataset, start=1):
        if not isinstance(row.get("text"), str):
            raise ValueError(f"Row {number} of {name} has no text in a column 'text'.")


def passages(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, min_length: int = 64, max_length: int = 256
) -> list[list[int]]:
    """
    Token ids X of Eq. 1, one passage a text.

    Args:
        texts (`list[str]`): running text.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): special tokens in the text are read as plain text.
        min_length (`int`, *optional*, defaults to `64`): shorter texts are left out, in tokens.
        max_length (`int`, *optional*, defaults to `256`): longer texts are cut, in tokens.

    Returns:
        `list[list[int]]`: passages in the order of the texts, duplicates removed.

    Raises:
        `ValueError`: no text is long enough.
    """
    encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    distinct = dict.fromkeys(tuple(ids[:max_length]) for ids in encoded if len(ids) >= min_length)
    if not distinct:
        longest = max(map(len, encoded), default=0)
        raise ValueError(
            f"No text of the corpus has {min_length} tokens (the longest has {longest}): give longer texts, or lower "
            "min_passage_length (--min-passage-length)."
        )
    return [list(ids) for ids in distinct]
