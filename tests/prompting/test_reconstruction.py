"""How Eq. 1 and Eq. 2 are laid out."""

import pytest

from peft_be.prompting.reconstruction import reconstruction_example


@pytest.mark.parametrize("family, starts_with_bos", [("llama2", True), ("gemma", True), ("smollm2", False)])
def test_the_layout(tokenizers, family, starts_with_bos):
    tokenizer = tokenizers(family)
    start = [tokenizer.bos_token_id] * starts_with_bos
    ids, labels = reconstruction_example(tokenizer, [7, 8], 9, [4, 5, 6])
    assert ids == [*start, 7, 8, 9, 4, 5, 6]
    assert labels == [*[-100] * (len(start) + 3), 4, 5, 6]
    ids, labels = reconstruction_example(tokenizer, [7, 8], None, [4, 5, 6])
    assert ids == [*start, 7, 8, 4, 5, 6]
    assert labels == [*[-100] * (len(start) + 2), 4, 5, 6]
