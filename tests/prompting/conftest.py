from functools import lru_cache

import pytest

from .chat_tokenizers import build_tokenizer


@pytest.fixture(scope="session")
def tokenizers():
    """Builds the tokenizer of a family, once."""
    return lru_cache(build_tokenizer)
