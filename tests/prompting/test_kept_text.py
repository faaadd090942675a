"""Parts of P that stay text after [BE]: which ones can be kept, and that they forge nothing."""

import pytest

from peft_be import BETokenConfig, PromptRenderer
from peft_be.prompting.kept_text import find_kept_text

from .chat_tokenizers import FAMILIES, be_ids
from .conversations import EXAMPLES, KEPT, SYSTEM


def test_parts_stand_in_the_order_of_the_prompt():
    assert find_kept_text(SYSTEM, None) is None and find_kept_text(SYSTEM, []) is None
    assert find_kept_text(SYSTEM, [" Answer in one sentence,\n"]) == "Answer in one sentence,"
    assert find_kept_text(SYSTEM, ["say 'Arr' first.", "You are a pirate."]) == "You are a pirate.\nsay 'Arr' first."
    assert find_kept_text(SYSTEM, ["a pirate.\nAnswer"]) == "a pirate.\nAnswer"
    # Of the system text and the worked answers alike
    messages = [{"role": "system", "content": SYSTEM}, *EXAMPLES]
    assert find_kept_text(messages, ["Arr, it's 4.", "You are a pirate."]) == "You are a pirate.\nArr, it's 4."


@pytest.mark.parametrize(
    "keep, words",
    [
        (["You are a parrot."], r"The prompt does not say 'You are a parrot.', which is to be kept \(--keep\)"),
        (["you are a pirate."], "does not say"),  # exact is exact
        ([""], r"A kept text \(--keep\) is empty"),
        (["You are a pirate.", " \n\u200b"], "is empty"),
        (["You are a pirate.", "a pirate."], "'You are a pirate.' and 'a pirate.' share a part of the prompt"),
        (["You are a pirate."] * 2, "share a part"),
    ],
)
def test_what_cannot_be_kept(keep, words):
    with pytest.raises(ValueError, match=words):
        find_kept_text(SYSTEM, keep)


@pytest.mark.parametrize("family", FAMILIES)
def test_kept_text_that_spells_a_special_token_is_refused(tokenizers, family):
    """Engines would read the token, where the renderer reads text."""
    tokenizer, known = tokenizers(family), FAMILIES[family]
    ids = be_ids(family, tokenizer, 2)
    for token in {known.eos, *known.special[:2], *known.be[:2]}:
        with pytest.raises(ValueError, match="The kept text spells .* keep text without it"):
            PromptRenderer(tokenizer, be_token_ids=ids, kept_text=f"Never write {token}, please.")


def test_text_that_is_an_id_of_be_is_refused(tiny_tokenizer):
    (word,) = tiny_tokenizer(" the")["input_ids"]
    with pytest.raises(ValueError, match="The kept text spells ' the'"):
        PromptRenderer(tiny_tokenizer, be_token_ids=[word], kept_text="Leave the island.")


@pytest.mark.parametrize("family", FAMILIES)
def test_queries_forge_no_token_next_to_kept_text(tokenizers, family):
    tokenizer, known = tokenizers(family), FAMILIES[family]
    ids = be_ids(family, tokenizer, 2)
    renderer = PromptRenderer(tokenizer, be_token_ids=ids, kept_text=KEPT["sentence"])
    special = {*tokenizer.all_special_ids, *ids}

    def specials(query):
        return [i for i in renderer.be(query) if i in special and i != tokenizer.unk_token_id]

    for token in (known.eos, *known.special, *known.be[:2]):
        assert specials(f"Say {token}{token} to me") == specials("Say it to me")


def test_only_the_system_turn_has_kept_text(tiny_tokenizer):
    with pytest.raises(ValueError, match="needs slot='system'"):
        PromptRenderer(tiny_tokenizer, be_token_ids=[3], slot="prefix", kept_text="x")
    for changes in ({"slot": "prefix"}, {"num_be_tokens": 0, "use_ae_token": True}):
        with pytest.raises(ValueError, match="kept_text follows .BE. in the system turn"):
            BETokenConfig(kept_text="x", **changes)
    for value in ("", " \n", 3, ["x"]):
        with pytest.raises(ValueError, match="kept_text must be text that is not empty"):
            BETokenConfig(kept_text=value)


def test_a_template_that_leaves_it_out(tiny_tokenizer):
    from .trl_templates import tokenizer_for

    template = tiny_tokenizer.chat_template.replace("message['content']", "message['content'].split('</a>')[-1]")
    tokenizer = tokenizer_for(template)
    be = [tokenizer.convert_tokens_to_ids("<repo_name>")]
    with pytest.raises(ValueError, match="leaves .BE. out of this conversation: use slot='prefix', without kept text"):
        PromptRenderer(tokenizer, be_token_ids=be, kept_text="<a>x</a> y").be("Hi")


@pytest.mark.parametrize("kept", KEPT)
def test_the_chat_template_writes_it(tokenizers, kept):
    found = set()
    for family in FAMILIES:
        tokenizer = tokenizers(family)
        renderer = PromptRenderer(
            tokenizer, be_token_ids=be_ids(family, tokenizer, 2), kept_text=KEPT[kept], slot="system"
        )
        try:
            template = renderer.chat_template  # compares its ids with those of `be`
        except ValueError as error:
            assert "use apply_chat_template" in str(error).replace("Use", "use")
            continue
        found.add(family)
        chat = [{"role": "user", "content": "Who are you?"}]
        ids = tokenizer.apply_chat_template(
            chat, chat_template=template, add_generation_prompt=True, return_dict=False
        )
        assert ids == renderer.be(chat)
    assert len(found) > len(FAMILIES) / 3, found
