"""Messages to ids: prompts, queries, chat templates and the place of [BE] in them."""

from .fingerprints import chat_template_fingerprint, check_tokenizer, tokenizer_fingerprint
from .messages import load_prompt
from .renderer import PromptRenderer


__all__ = [
    "PromptRenderer",
    "chat_template_fingerprint",
    "check_tokenizer",
    "load_prompt",
    "tokenizer_fingerprint",
]
