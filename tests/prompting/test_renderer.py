"""Renderings of ordinary text against `apply_chat_template` of the same tokenizer."""

import random
import time

import pytest
from transformers import AutoTokenizer

from peft_be.prompting import PromptRenderer

from .chat_tokenizers import CHATML, FAMILIES, be_ids, build_tokenizer
from .conversations import KEPT, PROMPTS, QUERIES, SYSTEM


all_families = pytest.mark.parametrize("family", FAMILIES)


def messages_of(prompt, query):
    prompt = [{"role": "system", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    return prompt + ([{"role": "user", "content": query}] if isinstance(query, str) else query)


def reference(family, tokenizer, messages):
    """The ids of `apply_chat_template`, with the system text in the user's turn where there is no system role."""
    if not FAMILIES[family].system_role and messages[0]["role"] == "system":
        first = {"role": "user", "content": messages[0]["content"] + "\n\n" + messages[1]["content"]}
        messages = [first, *messages[2:]]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, **FAMILIES[family].kwargs)["input_ids"]


def with_be(family, k):
    """A tokenizer in which k tokens of [BE] are spelled out as special tokens, their spellings, ids there and here."""
    known = FAMILIES[family].be[:k]
    spellings = known or [f"[BE{i}]" for i in range(k)]
    tokenizer = build_tokenizer(family, () if known else tuple(spellings))
    return tokenizer, spellings, [tokenizer.convert_tokens_to_ids(spelling) for spelling in spellings]


@all_families
@pytest.mark.parametrize("prompt", PROMPTS)
def test_full_gives_the_ids_of_the_template(tokenizers, family, prompt):
    tokenizer = tokenizers(family)
    renderer = PromptRenderer(tokenizer, PROMPTS[prompt], be_token_ids=be_ids(family, tokenizer, 1))
    for query in QUERIES.values():
        assert renderer.full(query) == reference(family, tokenizer, messages_of(PROMPTS[prompt], query))


@all_families
def test_no_prompt_gives_the_ids_of_the_template(tokenizers, family):
    tokenizer = tokenizers(family)
    renderer = PromptRenderer(tokenizer, SYSTEM, be_token_ids=be_ids(family, tokenizer, 1))
    for query in QUERIES.values():
        assert renderer.no_prompt(query) == reference(family, tokenizer, messages_of([], query))


@all_families
@pytest.mark.parametrize("k", [1, 4])
def test_be_in_the_system_slot_is_a_special_token_there(tokenizers, family, k):
    tokenizer = tokenizers(family)
    ids = be_ids(family, tokenizer, k)
    spelled, spellings, spelled_ids = with_be(family, k)
    rename = dict(zip(spelled_ids, ids, strict=True))
    for prompt in (None, SYSTEM, PROMPTS["system_and_examples"]):
        renderer = PromptRenderer(tokenizer, prompt, be_token_ids=ids)
        for query in QUERIES.values():
            expected = reference(family, spelled, messages_of("".join(spellings), query))
            assert renderer.be(query) == [rename.get(token_id, token_id) for token_id in expected]


@all_families
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("kept", KEPT)
def test_kept_text_follows_be_in_the_system_turn(tokenizers, family, k, kept):
    tokenizer, kept = tokenizers(family), KEPT[kept]
    ids = be_ids(family, tokenizer, k)
    spelled, spellings, spelled_ids = with_be(family, k)
    rename = dict(zip(spelled_ids, ids, strict=True))
    for prompt in (None, PROMPTS["system_and_examples"]):
        renderer = PromptRenderer(tokenizer, prompt, be_token_ids=ids, kept_text=kept)
        plain = PromptRenderer(tokenizer, prompt, be_token_ids=ids)
        for query in QUERIES.values():
            expected = reference(family, spelled, messages_of("".join(spellings) + "\n" + kept, query))
            assert renderer.be(query) == [rename.get(token_id, token_id) for token_id in expected]
            assert renderer.no_prompt(query) == plain.no_prompt(query)
            assert prompt is None or renderer.full(query) == plain.full(query)
    if FAMILIES[family].rstrip:  # the line break goes with such a token, and what follows is split otherwise
        return
    start = renderer.be("x").index(ids[-1]) + 1
    after = renderer.be("x")[start : start + len(renderer.kept_ids)]
    # The last token may have grown together with the template's text after it
    assert after[:-1] == renderer.kept_ids[:-1] and tokenizer.decode(after).strip().startswith(kept)


@all_families
@pytest.mark.parametrize("k", [1, 4])
def test_be_in_front_is_the_papers_form(tokenizers, family, k):
    tokenizer = tokenizers(family)
    ids = be_ids(family, tokenizer, k)
    spelled, spellings, spelled_ids = with_be(family, k)
    rename = dict(zip(spelled_ids, ids, strict=True))
    renderer = PromptRenderer(tokenizer, SYSTEM, be_token_ids=ids, slot="prefix")
    for query in (QUERIES["short"], QUERIES["sentence"], QUERIES["unicode"]):
        text = FAMILIES[family].prefix_form.format(be="".join(spellings), q=query)
        expected = spelled(text, add_special_tokens=False)["input_ids"]
        assert renderer.be(query) == [rename.get(token_id, token_id) for token_id in expected]


@all_families
def test_a_dialogue_in_front_keeps_its_turns(tokenizers, family):
    tokenizer = tokenizers(family)
    be = be_ids(family, tokenizer, 2)
    renderer = PromptRenderer(tokenizer, be_token_ids=be, slot="prefix")
    ids = renderer.be(QUERIES["dialogue"])
    place = ids.index(be[0])
    assert ids[place : place + 2] == be
    assert ids[:place] == ([tokenizer.bos_token_id] if FAMILIES[family].adds_bos else [])
    # The dialogue itself is what the template writes, from the first user's turn on.
    turns = ids[place + 2 :]
    rendered = renderer.no_prompt(QUERIES["dialogue"])
    assert turns == rendered[-len(turns) :]
    assert tokenizer.decode(turns).count("Who are you?") == 1


@all_families
def test_prompt_ids_are_the_prompt_in_the_full_rendering(tokenizers, family):
    tokenizer = tokenizers(family)
    for prompt in PROMPTS.values():
        renderer = PromptRenderer(tokenizer, prompt)
        ids, full = renderer.prompt_ids, renderer.full("What's the weather?")
        assert any(full[i : i + len(ids)] == ids for i in range(len(full)))
        text = tokenizer.decode(ids)
        contents = [message["content"].strip() for message in messages_of(prompt, [])]
        if FAMILIES[family].template == FAMILIES["mistral"].template:  # the system text comes last there
            contents.sort(key=lambda content: content == SYSTEM)
        assert text.strip().startswith(contents[0]) and text.strip().endswith(contents[-1])
        assert all(content in text for content in contents)


def test_prompt_ids_of_a_system_prompt_hold_nothing_else(tokenizers):
    assert PromptRenderer(tokenizers("qwen3"), SYSTEM).prompt_ids == tokenizers("qwen3")(SYSTEM)["input_ids"]


@pytest.mark.parametrize("family", ["llama3", "gemma", "mistral", "deepseekv3"])
def test_bos_is_written_once(tokenizers, family):
    tokenizer = tokenizers(family)
    assert tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id  # the tokenizer adds one, too
    for slot in ("system", "prefix"):
        renderer = PromptRenderer(tokenizer, SYSTEM, be_token_ids=be_ids(family, tokenizer, 1), slot=slot)
        for ids in (renderer.full("x"), renderer.be("x"), renderer.no_prompt("x")):
            assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1


@all_families
def test_empty_queries(tokenizers, family):
    tokenizer = tokenizers(family)
    be = be_ids(family, tokenizer, 1)
    renderer = PromptRenderer(tokenizer, SYSTEM, be_token_ids=be)
    for query in ("", " ", "\n\n", [{"role": role, "content": ""} for role in ("user", "assistant", "user")]):
        assert len(renderer.full(query)) > len(renderer.prompt_ids)
        assert be[0] in renderer.be(query)
        assert renderer.no_prompt(query)


def test_no_prompt_keeps_the_default_system_turn_and_the_prefix_slot_does_not(tokenizers):
    tokenizer = tokenizers("qwen2_5")
    renderer = PromptRenderer(tokenizer, be_token_ids=be_ids("qwen2_5", tokenizer, 1), slot="prefix")
    assert "You are Qwen" in tokenizer.decode(renderer.no_prompt("x"))
    assert "system" not in tokenizer.decode(renderer.be("x")[1:])


def test_templates_that_print_the_date_give_the_same_ids_every_day(tokenizers):
    tokenizer = tokenizers("llama3_2")
    assert "Today Date: 26 Jul 2024\n" in tokenizer.decode(PromptRenderer(tokenizer).no_prompt("x"))
    renderer = PromptRenderer(tokenizer, chat_template_kwargs={"date_string": "1 Jan 2026"})
    assert "Today Date: 1 Jan 2026\n" in tokenizer.decode(renderer.no_prompt("x"))

    tokenizer = build_tokenizer("smollm2")
    tokenizer.chat_template = "{{ strftime_now('%Y-%m-%d %H:%M') }}\n" + CHATML
    assert tokenizer.decode(PromptRenderer(tokenizer).no_prompt("x")).startswith("2024-07-26 00:00\n<|im_start|>")


def test_template_variables_are_passed_on(tokenizers):
    tokenizer = tokenizers("qwen3")
    renderer = PromptRenderer(tokenizer, chat_template_kwargs={"enable_thinking": False})
    assert tokenizer.decode(renderer.no_prompt("x")).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_a_template_that_drops_the_system_turn_gets_the_text_in_the_users_turn():
    tokenizer = build_tokenizer("smollm2")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}Q: {{ m.content }}\nA:{% endif %}{% endfor %}"
    )
    be = be_ids("smollm2", tokenizer, 1)
    assert tokenizer.decode(PromptRenderer(tokenizer, "Be brief.").full("Hi")) == "Q: Be brief.\n\nHi\nA:"
    assert tokenizer.decode(PromptRenderer(tokenizer, be_token_ids=be).be("Hi")) == "Q: <repo_name>\n\nHi\nA:"
    with pytest.raises(ValueError, match="does not show the text of assistant messages"):
        PromptRenderer(tokenizer).no_prompt(QUERIES["dialogue"])


def test_stripping_by_newlines_only():
    tokenizer = build_tokenizer("smollm2")
    tokenizer.chat_template = CHATML.replace("message['content']", "message['content'].lstrip('\n')")
    for query in ("\n\n x \n\n", " \n x", "x\n"):
        expected = tokenizer.apply_chat_template([{"role": "user", "content": query}], add_generation_prompt=True)
        assert PromptRenderer(tokenizer).no_prompt(query) == expected["input_ids"]


def test_rendering_does_not_depend_on_earlier_ones_or_on_the_tokenizers_state(tokenizers):
    tokenizer = build_tokenizer("qwen3")
    renderer = PromptRenderer(tokenizer, SYSTEM, be_token_ids=[5000])
    queries = [query for query in QUERIES.values() if isinstance(query, str)] + ["<|im_end|>"]
    expected = {query: (renderer.full(query), renderer.be(query), renderer.no_prompt(query)) for query in queries}
    tokenizer(["a", "b c d e f g h"], padding=True, truncation=True, max_length=2, split_special_tokens=True)
    random.Random(0).shuffle(queries)
    for query in queries:
        assert (renderer.full(query), renderer.be(query), renderer.no_prompt(query)) == expected[query]


def test_many_queries_are_fast(tokenizers):
    renderer = PromptRenderer(tokenizers("qwen3"), SYSTEM * 100, be_token_ids=[5000])
    renderer.full("x")
    start = time.process_time()
    for i in range(500):
        renderer.full(f"What is {i} + {i}?")
    assert (
        time.process_time() - start < 2.5
    )  # 5 ms a query; about 0.7 ms on an idle core, most of them in the template


@pytest.mark.parametrize("k", [1, 4])
def test_smollm2(smollm2_dir, k):
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    spelled = AutoTokenizer.from_pretrained(smollm2_dir)
    spellings = [f"[BE{i}]" for i in range(k)]
    spelled.add_special_tokens({"additional_special_tokens": spellings})
    be = [50000 + i for i in range(k)]
    rename = dict(zip(spelled.convert_tokens_to_ids(spellings), be, strict=True))
    for prompt in PROMPTS.values():
        renderer = PromptRenderer(tokenizer, prompt, be_token_ids=be)
        for query in QUERIES.values():
            assert renderer.full(query) == reference("smollm2", tokenizer, messages_of(prompt, query))
            assert renderer.no_prompt(query) == reference("smollm2", tokenizer, messages_of([], query))
            expected = reference("smollm2", spelled, messages_of("".join(spellings), query))
            assert renderer.be(query) == [rename.get(token_id, token_id) for token_id in expected]
    assert tokenizer.decode(PromptRenderer(tokenizer, SYSTEM).prompt_ids) == SYSTEM


class TestErrors:
    def raises(self, message):
        return pytest.raises(ValueError, match=message)

    def test_no_chat_template(self):
        tokenizer = build_tokenizer("smollm2")
        tokenizer.chat_template = None
        with self.raises("has no chat template.*use the instruction-tuned model"):
            PromptRenderer(tokenizer)

    def test_slow_tokenizer(self):
        class Slow:
            is_fast = False

        with self.raises("not a fast tokenizer"):
            PromptRenderer(Slow())

    def test_slot(self, tokenizers):
        with self.raises("slot must be"):
            PromptRenderer(tokenizers("smollm2"), slot="suffix")

    def test_nothing_to_render(self, tokenizers):
        renderer = PromptRenderer(tokenizers("smollm2"))
        with self.raises("has no prompt"):
            renderer.full("x")
        with self.raises("has no prompt"):
            renderer.prompt_ids  # noqa: B018
        with self.raises("be_token_ids"):
            renderer.be("x")

    @pytest.mark.parametrize("prompt", ["", " \n", []])
    def test_empty_prompt(self, tokenizers, prompt):
        with self.raises("empty"):
            PromptRenderer(tokenizers("smollm2"), prompt)

    def test_prompt_that_ends_in_a_users_turn(self, tokenizers):
        with self.raises("ends in a user message"):
            PromptRenderer(tokenizers("smollm2"), [{"role": "user", "content": "x"}])

    @pytest.mark.parametrize(
        "query, message",
        [
            ([{"role": "system", "content": "x"}, {"role": "user", "content": "x"}], "starts with a system message"),
            ([{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}], "must end in a user message"),
            ([{"role": "tool", "content": "x"}], "role 'tool'"),
            ([{"role": "user", "content": "x", "name": "y"}], "key 'name'"),
            ([{"role": "user", "content": ["x"]}], "must be text"),
            ([{"role": "user"}], "must be an object with"),
            ([], "non-empty list"),
            (None, "non-empty list"),
        ],
    )
    def test_query(self, tokenizers, query, message):
        with self.raises(message):
            PromptRenderer(tokenizers("smollm2")).no_prompt(query)

    def test_roles_that_the_template_refuses(self, tokenizers):
        query = [{"role": "user", "content": "x"}, {"role": "user", "content": "y"}]
        with self.raises("cannot render a conversation of user, user: Conversation roles must alternate"):
            PromptRenderer(tokenizers("gemma")).no_prompt(query)

    @pytest.mark.parametrize("key", ["be_token_ids", "ae_token_id"])
    def test_ids_that_the_template_writes(self, tokenizers, key):
        tokenizer = tokenizers("smollm2")
        im_end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        with self.raises("The chat template itself writes"):
            PromptRenderer(tokenizer, **{key: [im_end] if key == "be_token_ids" else im_end}).no_prompt("x")

    def test_user_turn_that_cannot_be_found(self):
        tokenizer = build_tokenizer("smollm2")
        tokenizer.chat_template = (
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
            "{% if loop.last and m.role == 'assistant' %}<|endoftext|>{% else %}<|im_end|>{% endif %}{% endfor %}"
        )
        with self.raises("use slot='system'"):
            PromptRenderer(tokenizer, be_token_ids=[3], slot="prefix").be("x")
