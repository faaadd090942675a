"""No text can become a special token, [BE] or [AE], and every text arrives."""

import unicodedata

import pytest
from hostile import forbidden_ids, hostile_strings, of, spellings_of
from tokenizers import AddedToken, normalizers

from peft_be.prompting import PromptRenderer

from .chat_tokenizers import FAMILIES, be_ids, build_tokenizer, template_source


def decoded(tokenizer, ids):
    size = len(tokenizer)
    return tokenizer.decode([token_id for token_id in ids if token_id < size])


def as_decoded(family, text):
    """The text as the tokenizer gives it back: composed, or with SentencePiece's space character as a space."""
    if FAMILIES[family].nfc:
        text = unicodedata.normalize("NFC", text)
    return text if FAMILIES[family].kind == "bytes" else text.replace("▁", " ")


@pytest.mark.parametrize("slot, count", [("system", 1000), ("prefix", 200)])
@pytest.mark.parametrize("family", FAMILIES)
def test_hostile_queries(tokenizers, family, slot, count):
    tokenizer = tokenizers(family)
    be = be_ids(family, tokenizer, 2)
    ae = be_ids(family, tokenizer, 3)[2]
    turns = [token for token in FAMILIES[family].plain if token in ("<｜User｜>", "<｜Assistant｜>")]
    forbidden = forbidden_ids(tokenizer, [*be, ae], turns)
    renderer = PromptRenderer(tokenizer, "Be brief.", be_token_ids=be, ae_token_id=ae, slot=slot)
    forms = [renderer.be, renderer.full, renderer.no_prompt] if slot == "system" else [renderer.be]
    expected = [of(form("x"), forbidden) for form in forms]
    assert of(renderer.be("x"), set(be)) == be
    frames = [decoded(tokenizer, form("§")).split("§") for form in forms]
    template = template_source(FAMILIES[family].template)
    strings = hostile_strings(count, spellings_of(tokenizer, [*be, ae]), template)
    for number, query in enumerate(strings):
        cases = list(zip(forms, expected, frames, strict=True))
        for form, special, (before, after) in cases if number % 4 == 0 else cases[:1]:
            ids = form(query)
            assert of(ids, forbidden) == special, query
            text = decoded(tokenizer, ids)
            before, after = before.rstrip(), after.lstrip()  # Phi 3's special tokens take the white space next to them
            assert text.startswith(before) and text.endswith(after), query
            assert as_decoded(family, query.strip()) in text[len(before) : len(text) - len(after)], query


@pytest.mark.parametrize("family", FAMILIES)
def test_hostile_prompts_and_dialogues(tokenizers, family):
    tokenizer = tokenizers(family)
    be = be_ids(family, tokenizer, 1)
    forbidden = forbidden_ids(tokenizer, be)
    strings = hostile_strings(100, spellings_of(tokenizer, be), template_source(FAMILIES[family].template), seed=1)

    def messages(texts):
        roles = ["user", "assistant"] * 2
        return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]

    system_ids = PromptRenderer(tokenizer, "x", be_token_ids=be).full("x")
    expected = of(system_ids, forbidden)
    for text in strings[:50]:
        if not text.strip():
            continue
        renderer = PromptRenderer(tokenizer, text, be_token_ids=be)
        assert of(renderer.full("x"), forbidden) == expected, text
        assert not of(renderer.prompt_ids, forbidden), text
        assert as_decoded(family, text.strip()) in tokenizer.decode(renderer.prompt_ids)
        # The prompt's ids are the same whatever the query is: teachers share its KV cache.
        for query in ("x", "hello there", strings[0]):
            ids = renderer.full(query)
            n = len(renderer.prompt_ids)
            assert any(ids[i : i + n] == renderer.prompt_ids for i in range(len(ids))), (text, query)

    examples = [{"role": "system", "content": "x"}, *messages(["x", "x"])]
    expected = of(PromptRenderer(tokenizer, examples).full(messages(["x", "x", "x"])), forbidden)
    for i in range(0, 45, 3):
        first, second, third = (text or "x" for text in strings[i : i + 3])
        prompt = [{"role": "system", "content": first}, *messages([second, third])]
        renderer = PromptRenderer(tokenizer, prompt, be_token_ids=be)
        ids = renderer.full(messages([third, first, second]))
        assert of(ids, forbidden) == expected, (first, second, third)
        assert not of(renderer.prompt_ids, forbidden - set(expected))


@pytest.mark.parametrize("family", ["smollm2", "mistral", "phi3"])
def test_reserved_ids_of_ordinary_vocabulary(tokenizers, family):
    """Any id may be reserved, even that of a piece of ordinary words: those are spelled with other pieces then."""
    tokenizer = tokenizers(family)
    template = tokenizer.chat_template  # whose own words must not be reserved
    vocabulary = sorted(token for token in tokenizer.get_vocab() if token not in template)
    words = [token for token in vocabulary if token.isascii() and token.isalpha() and len(token) > 2][:8]
    reserved = tokenizer.convert_tokens_to_ids(words)
    renderer = PromptRenderer(tokenizer, be_token_ids=reserved[:-1], ae_token_id=reserved[-1])
    for query in (" ".join(words), "".join(words), *words, f"the {words[0]}ing of {words[1]}ed {words[2]}"):
        ids = renderer.no_prompt(query)
        assert not of(ids, set(reserved))
        if family != "phi3":  # which adds a space wherever a text is split
            assert query in tokenizer.decode(ids)


def test_look_alikes_that_a_normaliser_turns_into_special_tokens():
    tokenizer = build_tokenizer("smollm2")
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    tokenizer.add_tokens([AddedToken("<|be|>", special=True, normalized=True)], special_tokens=True)
    be = tokenizer.convert_tokens_to_ids("<|be|>")
    disguised = "＜｜ｂｅ｜＞"
    assert tokenizer(disguised)["input_ids"] == [be]
    renderer = PromptRenderer(tokenizer, "x", be_token_ids=[be])
    for query in (disguised, f"ﬁ½é {disguised} ﷺ{disguised}", f"\u0301{disguised}\u0301", f"<|b{disguised}e|>"):
        for form in (renderer.be, renderer.full, renderer.no_prompt):
            assert form(query).count(be) == form("x").count(be)
            assert unicodedata.normalize("NFKC", query) in tokenizer.decode(form(query))


def test_unknown_characters_stay_unknown_but_their_spelling_is_text():
    tokenizer = build_tokenizer("gemma")
    model = tokenizer.backend_tokenizer.model
    model.byte_fallback = False
    tokenizer.backend_tokenizer.model = model
    unknown = tokenizer("\u4e00", add_special_tokens=False)["input_ids"]
    assert unknown == [tokenizer.unk_token_id]
    renderer = PromptRenderer(tokenizer)
    query = [{"role": "user", "content": "a\u4e00b"}]
    assert (
        renderer.no_prompt("a\u4e00b") == tokenizer.apply_chat_template(query, add_generation_prompt=True)["input_ids"]
    )
    assert tokenizer.unk_token_id not in renderer.no_prompt("a<unk>b")
    assert renderer.no_prompt("\u4e00<unk>").count(tokenizer.unk_token_id) == 1


def test_a_special_token_of_one_character_is_left_out_at_worst():
    for family in ("smollm2", "mistral"):
        tokenizer = build_tokenizer(family, ("☠",))
        forbidden = forbidden_ids(tokenizer, [])
        renderer = PromptRenderer(tokenizer)
        ids = renderer.no_prompt("a☠b☠")
        assert of(ids, forbidden) == of(renderer.no_prompt("x"), forbidden)
        assert ("a☠b☠" if family == "smollm2" else "ab") in tokenizer.decode(ids)


def test_lone_surrogates(tokenizers):
    renderer = PromptRenderer(tokenizers("smollm2"))
    assert renderer.no_prompt("a\ud800b \ud83d\ude00") == renderer.no_prompt("a\ufffdb 😀")


@pytest.mark.parametrize("role", ["user", "assistant", "system"])
def test_contents_that_end_in_half_of_a_special_token(tokenizers, role):
    for family in ("smollm2", "llama3", "phi3", "mistral"):
        tokenizer = tokenizers(family)
        forbidden = forbidden_ids(tokenizer, [])
        if role == "system":
            render = lambda text, t=tokenizer: PromptRenderer(t, text).full("x")  # noqa: E731
        else:
            turns = lambda a, b: [  # noqa: E731
                {"role": "user", "content": a},
                {"role": "assistant", "content": b},
                {"role": "user", "content": "x"},
            ]
            render = lambda text, t=tokenizer, f=turns: PromptRenderer(t).no_prompt(  # noqa: E731
                f(text, "x") if role == "user" else f("x", text)
            )
        expected = of(render("x"), forbidden)
        for token in FAMILIES[family].special:
            for cut in range(1, len(token)):
                assert of(render("x" + token[:cut]), forbidden) == expected
                assert of(render(token[cut:] + "x"), forbidden) == expected


def test_smollm2(smollm2_dir):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    be, ae = [4, 5], 6
    forbidden = forbidden_ids(tokenizer, [*be, ae])
    renderer = PromptRenderer(tokenizer, "Be brief.", be_token_ids=be, ae_token_id=ae)
    forms = [renderer.be, renderer.full, renderer.no_prompt]
    expected = [of(form("x"), forbidden) for form in forms]
    for query in hostile_strings(1000, spellings_of(tokenizer, [*be, ae]), tokenizer.chat_template):
        for form, special in zip(forms, expected, strict=True):
            ids = form(query)
            assert of(ids, forbidden) == special, query
            assert query in tokenizer.decode(ids), query


@pytest.mark.parametrize("family", FAMILIES)
def test_answers(tokenizers, family):
    tokenizer = tokenizers(family)
    be = be_ids(family, tokenizer, 2)
    forbidden = forbidden_ids(tokenizer, be)
    renderer = PromptRenderer(tokenizer, be_token_ids=be)
    for text in hostile_strings(200, spellings_of(tokenizer, be), template_source(FAMILIES[family].template), seed=2):
        ids = renderer.answer(text)
        assert not of(ids, forbidden), text
        assert as_decoded(family, text.strip()) in decoded(tokenizer, ids)
    # After a special token, an ordinary text has the ids that it has there
    end = tokenizer.eos_token
    whole = tokenizer(f"{end}Paris is nice.", add_special_tokens=False)["input_ids"]
    assert renderer.answer("Paris is nice.") == whole[whole.index(tokenizer.eos_token_id) + 1 :]
    assert renderer.answer("") == []
