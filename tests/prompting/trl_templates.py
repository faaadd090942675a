"""The chat templates that TRL ships, each with a small tokenizer."""

import importlib.util
import re
from functools import lru_cache
from pathlib import Path

from .chat_tokenizers import build_tokenizer


TRL = Path(importlib.util.find_spec("trl").submodule_search_locations[0]) / "chat_templates"
TEMPLATES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(TRL.glob("*.jinja"))}
# These take lists of text and images, and no plain text
ONLY_PARTS = ("idefics3", "llava_next", "smolvlm")


@lru_cache
def tokenizer_for(template, family="smollm2", more=()):
    """A tokenizer that has the special tokens that a template of TRL spells."""
    spelled = re.findall(
        r"<[|｜][^<>|｜{}']+[|｜]>|<[a-z_]*turn[a-z_|]*>|\[/?INST\]|\[gMASK\]|<sop>|<\|turn>|<turn\|>", template
    )
    built = build_tokenizer(family)
    new = [token for token in dict.fromkeys(spelled) if token not in built.get_vocab()]
    built = build_tokenizer(family, (*new, *more))
    built.add_tokens(["<think>", "</think>"])
    built.chat_template = template
    return built
