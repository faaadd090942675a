"""Which ids of a vocabulary are free to serve as addresses of learned rows."""

from __future__ import annotations

import re
from collections.abc import Collection


# <|reserved_special_token_0|> (Llama 3), <unused0> (Gemma), [unused1] (BERT), <extra_id_0> (T5), <SPECIAL_20> and
# [control_8] (Mistral), <|dummy_12|> and <|placeholder1|> (Phi), <|extra_0|> (Qwen)
RESERVED = re.compile(
    r"[<\[]\|?_?(reserved|unused|extra|special|dummy|placeholder|control)[a-z_]*\d+_?\|?[>\]]", re.IGNORECASE
)
NAMED_SPECIAL_TOKENS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


def find_unused_token_ids(tokenizer, vocab_size: int, count: int, exclude: Collection[int] = ()) -> list[int]:
    """
    Finds ids inside the vocabulary that no text and no prompt of the tokenizer uses. The tokenizer is not changed.

    Candidates, best first:

    1. rows that pad the embedding matrix beyond the tokenizer's last token, then ids that no token has;
    2. tokens with a reserved spelling, like `<|reserved_special_token_0|>`, `<unused0>` or `[unused1]`;
    3. special added tokens that neither the chat template nor the tokenizer's own special tokens (bos, eos, pad, ...,
       additional ones) use, like `<repo_name>` of SmolLM2.

    A token that occurs in the chat template is never taken, nor one that plain text can produce when special tokens in
    it are not parsed (`split_special_tokens=True`). A tokenizer with fewer tokens than half of `vocab_size` is not the
    model's and says nothing about its ids: for a folder without tokenizer files, transformers can return one that is
    almost empty.

    Args:
        tokenizer ([`PreTrainedTokenizerBase`]): The tokenizer.
        vocab_size (`int`): Number of rows of the model's input embedding.
        count (`int`): How many ids are wanted.
        exclude (`Collection[int]`, *optional*): Ids that must not be taken.

    Returns:
        `list[int]`: At most `count` different ids, in the order of preference; fewer if there are no more.
    """
    vocab = tokenizer.get_vocab()
    used = set(vocab.values())
    if len(used) < vocab_size // 2:
        return []
    template = tokenizer.chat_template or ""
    if isinstance(template, dict):  # several named templates
        template = "\n".join(template.values())
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = {getattr(tokenizer, f"{name}_token_id", None) for name in NAMED_SPECIAL_TOKENS}

    def is_free(token: str, token_id: int) -> bool:
        if token in template or token_id in named:
            return False
        return token_id not in tokenizer(token, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def candidates():
        last = max(used, default=-1)
        yield from range(last + 1, vocab_size)
        yield from (i for i in range(min(last, vocab_size)) if i not in used)
        by_id = sorted((i, token) for token, i in vocab.items() if i < vocab_size)
        yield from (i for i, token in by_id if RESERVED.fullmatch(token) and is_free(token, i))
        in_use = set(tokenizer.all_special_ids)
        yield from (i for i, token in by_id if i in special and i not in in_use and is_free(token, i))

    found: list[int] = []
    for token_id in candidates():
        if len(found) >= count:
            break
        if token_id not in exclude and token_id not in found:
            found.append(token_id)
    return found
