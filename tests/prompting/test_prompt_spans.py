"""Which characters of P each token of a rendering stands for."""

import pytest

from peft_be.prompting import PromptRenderer

from .chat_tokenizers import FAMILIES
from .conversations import PROMPTS, QUERIES


@pytest.mark.parametrize("query", ["short", "spaces", "dialogue"])
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_spans_cover_what_the_template_shows(tokenizers, family, prompt, query):
    tokenizer = tokenizers(family)
    renderer = PromptRenderer(tokenizer, prompt, chat_template_kwargs=FAMILIES[family].kwargs)
    query = QUERIES[query]
    try:
        ids = renderer.full(query)
    except ValueError:
        pytest.skip("the template does not take such a conversation")
    spans = renderer.prompt_spans(query)
    assert len(spans) == len(ids)
    messages = [{"content": prompt}] if isinstance(prompt, str) else prompt
    for number, message in enumerate(messages):
        content = message["content"]
        covered = {c for span in spans if span and span[0] == number for c in range(span[1], span[2])}
        shown = {c for c in range(len(content)) if not content[c].isspace()}  # a tokenizer may drop white space
        assert shown <= covered <= set(range(len(content)))
    # In order within a message, and P's tokens are those of prompt_ids but for the template's text between them
    for number in range(len(messages)):
        starts = [span[1] for span in spans if span and span[0] == number]
        assert starts == sorted(starts)
    first = next(i for i, span in enumerate(spans) if span)
    last = max(i for i, span in enumerate(spans) if span)
    if query == "x":
        assert ids[first : last + 1] == renderer.prompt_ids


def test_tokens_spell_their_characters(tiny_tokenizer):
    prompt = PROMPTS["system_and_examples"]
    renderer = PromptRenderer(tiny_tokenizer, prompt)
    ids, spans = renderer.full("Who?"), renderer.prompt_spans("Who?")
    for token_id, span in zip(ids, spans):
        text = tiny_tokenizer.decode(token_id)
        if span and "\ufffd" not in text:  # not a part of a character
            assert prompt[span[0]]["content"][span[1] : span[2]].strip() == text.strip()
    assert None in spans[:2] and spans[-1] is None
    assert {span[0] for span in spans if span} == set(range(len(prompt)))


def test_needs_a_prompt(tiny_tokenizer):
    with pytest.raises(ValueError, match="no prompt"):
        PromptRenderer(tiny_tokenizer).prompt_spans("Who?")
