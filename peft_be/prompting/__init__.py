"""Messages to ids: prompts, queries, chat templates and the place of [BE] in them."""

from .fingerprints import (
    chat_template_fingerprint,
    check_adapter_prompt,
    check_tokenizer,
    is_prompt_of,
    prompt_fingerprint,
    tokenizer_fingerprint,
)
from .prompt_files import load_prompt
from .renderer import PromptRenderer


__all__ = [
    "PromptRenderer",
    "chat_template_fingerprint",
    "check_adapter_prompt",
    "check_tokenizer",
    "is_prompt_of",
    "load_prompt",
    "prompt_fingerprint",
    "tokenizer_fingerprint",
]
