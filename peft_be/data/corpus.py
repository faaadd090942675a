"""Text passages for Stage 0, the training of [AE]."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import PreTrainedTokenizerBase


def load_corpus(path: str | Path) -> list[str]:
    """
    Read passages from a JSONL file, one object with a `text` a line.

    Raises:
        `FileNotFoundError`: there is no such file.
        `ValueError`: a line is no JSON object with a `text`, or the file holds no text.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no corpus file '{path}': check the path.")
    texts = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)["text"]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ValueError(f"Line {number} of '{path}' is no JSON object with a 'text'.") from error
            texts.append(text)
    if not any(texts):
        raise ValueError(f"The corpus file '{path}' holds no text.")
    return texts


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
        raise ValueError(f"No text of the corpus has {min_length} tokens: give longer texts or lower the minimum.")
    return [list(ids) for ids in distinct]
