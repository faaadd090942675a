"""[BE] for code that renders with a tokenizer: inputs of `generate`, and a chat template for pipelines."""

import copy

import pytest
import torch
from peft import get_peft_model
from transformers import pipeline

from peft_be import BETokenConfig, PromptRenderer

from .chat_tokenizers import FAMILIES


CHAT = [
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "A keeper."},
    {"role": "user", "content": "Of what?"},
]


@pytest.fixture
def be(tiny_tokenizer):
    return PromptRenderer(tiny_tokenizer, be_token_ids=[3, 4])


def test_a_conversation_is_what_be_renders(be):
    for conversation in (CHAT, "Who are you?"):
        inputs = be.apply_chat_template(
            conversation, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        assert inputs["input_ids"].tolist() == [be.be(conversation)]
        assert inputs["attention_mask"].tolist() == [[1] * len(be.be(conversation))]
    assert torch.equal(be.apply_chat_template("Who are you?", return_dict=False), inputs["input_ids"])
    assert be.apply_chat_template(CHAT, return_dict=False, return_tensors=None) == be.be(CHAT)


def test_a_batch_is_padded_on_the_left(be):
    inputs = be.apply_chat_template([CHAT, "Who are you?"])
    long, short = be.be(CHAT), be.be("Who are you?")
    gap = len(long) - len(short)
    assert inputs["input_ids"].tolist() == [long, [be.tokenizer.pad_token_id] * gap + short]
    assert inputs["attention_mask"].tolist() == [[1] * len(long), [0] * gap + [1] * len(short)]


def test_what_cannot_be_rendered(be):
    with pytest.raises(ValueError, match="add_generation_prompt=True"):
        be.apply_chat_template(CHAT, add_generation_prompt=False)
    with pytest.raises(ValueError, match="no conversation"):
        be.apply_chat_template([])
    with pytest.raises(ValueError, match="system"):
        be.apply_chat_template([{"role": "system", "content": "You are a parrot."}, *CHAT])


@pytest.mark.filterwarnings("error:The input holds none")
def test_a_pipeline_with_the_chat_template_answers_as_generate_does(tiny_model, tiny_tokenizer):
    config = BETokenConfig.for_tokenizer(tiny_tokenizer, len(tiny_tokenizer), 2)
    model = get_peft_model(tiny_model, config).eval()
    be = PromptRenderer.for_adapter(config, tiny_tokenizer)
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = be.chat_template
    settings = {"max_new_tokens": 8, "do_sample": False}
    answer = pipeline("text-generation", model=model, tokenizer=tokenizer)(CHAT, **settings)[0]["generated_text"]
    inputs = be.apply_chat_template(CHAT)
    output = model.generate(**inputs, **settings)[0, inputs["input_ids"].shape[1] :]
    assert answer[-1]["content"] == tokenizer.decode(output, skip_special_tokens=True)
    with pytest.raises(Exception, match="stands for the system message"):
        tokenizer.apply_chat_template([{"role": "system", "content": "You are a parrot."}, *CHAT])


def test_a_chat_template_renders_what_be_does_or_there_is_none(tokenizers):
    found = set()
    for name in FAMILIES:
        tokenizer = copy.deepcopy(tokenizers(name))
        spelling = "<|it's \\ be|>"
        tokenizer.add_special_tokens({"additional_special_tokens": [spelling]}, replace_extra_special_tokens=False)
        be = PromptRenderer(tokenizer, be_token_ids=[tokenizer.convert_tokens_to_ids(spelling)])
        try:
            template = be.chat_template
        except ValueError as error:
            assert "use apply_chat_template" in str(error)
            continue
        found.add(name)
        for chat in (CHAT[:1], CHAT):
            ids = tokenizer.apply_chat_template(
                chat, chat_template=template, add_generation_prompt=True, return_dict=False
            )
            assert ids == be.be(chat)
    assert len(found) > len(FAMILIES) / 2, found


@pytest.mark.parametrize("ids, slot", [([49152], "system"), ([3, 49152], "system"), ([3], "prefix"), ([], "system")])
def test_ids_that_no_text_is_read_as(tiny_tokenizer, ids, slot):
    be = PromptRenderer(tiny_tokenizer, be_token_ids=ids, slot=slot)
    with pytest.raises(ValueError, match="cannot write .BE. .*Use apply_chat_template"):
        str(be.chat_template)
