import hashlib
import json
from types import SimpleNamespace

import pytest
from tokenizers import AddedToken, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from peft_be.prompting import (
    PromptRenderer,
    chat_template_fingerprint,
    check_adapter_prompt,
    check_tokenizer,
    prompt_fingerprint,
    tokenizer_fingerprint,
)

from .chat_tokenizers import FAMILIES, build_tokenizer


@pytest.mark.parametrize("family", FAMILIES)
def test_stable_across_save_and_load(tokenizers, family, tmp_path):
    tokenizer = tokenizers(family)
    tokenizer.save_pretrained(tmp_path / "one")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "one")
    loaded.save_pretrained(tmp_path / "two")
    for other in (loaded, AutoTokenizer.from_pretrained(tmp_path / "two"), build_tokenizer(family)):
        assert tokenizer_fingerprint(other) == tokenizer_fingerprint(tokenizer)
        assert chat_template_fingerprint(other) == chat_template_fingerprint(tokenizer)


def test_state_does_not_count():
    tokenizer = build_tokenizer("llama3")
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["a", "b c d"], padding=True, truncation=True, max_length=2, split_special_tokens=True)
    tokenizer.padding_side = "left"
    tokenizer.model_max_length = 7
    tokenizer.pad_token = "<|reserved_special_token_5|>"
    tokenizer.chat_template = "x"
    assert tokenizer_fingerprint(tokenizer) == before


def test_every_other_tokenizer_differs(tokenizers):
    def changed(change):
        tokenizer = build_tokenizer("smollm2")
        change(tokenizer)
        return tokenizer_fingerprint(tokenizer)

    fingerprints = [tokenizer_fingerprint(tokenizers(family)) for family in ("smollm2", "qwen3", "llama3", "phi3")]
    fingerprints += [
        changed(lambda tokenizer: tokenizer.add_tokens(["new"])),
        changed(lambda tokenizer: tokenizer.add_special_tokens({"additional_special_tokens": ["[BE]"]})),
        changed(lambda tokenizer: tokenizer.add_tokens([AddedToken("[BE]", special=True, rstrip=True)], True)),
        changed(lambda tokenizer: setattr(tokenizer.backend_tokenizer, "normalizer", normalizers.NFKC())),
        changed(lambda tokenizer: setattr(tokenizer.backend_tokenizer, "normalizer", normalizers.Lowercase())),
        changed(lambda tokenizer: setattr(tokenizer.backend_tokenizer, "pre_tokenizer", pre_tokenizers.ByteLevel())),
    ]
    assert len(set(fingerprints)) == len(fingerprints)


def test_check(tokenizers):
    tokenizer = build_tokenizer("smollm2")
    provenance = {
        "tokenizer_sha256": tokenizer_fingerprint(tokenizer),
        "chat_template_sha256": chat_template_fingerprint(tokenizer),
    }
    config = SimpleNamespace(provenance=provenance)
    check_tokenizer(config, tokenizer)

    tokenizer.chat_template += " "
    with pytest.raises(ValueError, match="another chat template"):
        check_tokenizer(config, tokenizer)
    check_tokenizer(config, tokenizer, allow_template_change=True)
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="another chat template"):
        check_tokenizer(config, tokenizer)

    with pytest.raises(ValueError, match="another tokenizer"):
        check_tokenizer(config, tokenizers("qwen3"), allow_template_change=True)


@pytest.mark.parametrize("provenance", [None, {}, {"tokenizer_sha256": None, "chat_template_sha256": None}])
def test_nothing_recorded_is_nothing_to_check(tokenizers, provenance):
    check_tokenizer(SimpleNamespace(provenance=provenance), tokenizers("smollm2"))


def test_a_tokenizer_without_template_has_no_template_fingerprint():
    tokenizer = build_tokenizer("smollm2")
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="chat_template is not set"):
        chat_template_fingerprint(tokenizer)


def test_smollm2(smollm2_dir, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_fingerprint(AutoTokenizer.from_pretrained(tmp_path)) == tokenizer_fingerprint(tokenizer)


def test_prompts_are_known_in_every_form(tokenizers):
    text = "You are a pirate."
    one, two = [{"role": "system", "content": text}], [{"role": "assistant", "content": "Arr."}]
    assert prompt_fingerprint(text) == prompt_fingerprint(one)
    assert prompt_fingerprint(two) == prompt_fingerprint([{**two[0], "name": None}])
    # What earlier versions recorded: a hash of what they were given
    old = [hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).hexdigest() for prompt in (text, one, two)]
    for recorded, prompts in zip([*old, prompt_fingerprint(one)], [(text, one), (text, one), (two,), (text, one)]):
        config = SimpleNamespace(provenance={"prompt_sha256": recorded})
        for prompt in prompts:
            check_adapter_prompt(config, prompt)
        for other in ("You are a pirate!", text + "\n", [*one, *two]):
            with pytest.raises(ValueError, match="another prompt .*--allow-other-prompt"):
                check_adapter_prompt(config, other)
            check_adapter_prompt(config, other, allow_other_prompt=True)
    for provenance in (None, {}):
        check_adapter_prompt(SimpleNamespace(provenance=provenance), text)
    config = SimpleNamespace(
        provenance={"prompt_sha256": old[0]}, be_token_ids=[5], ae_token_id=None, slot="system", kept_text=None
    )
    tokenizer = tokenizers("smollm2")
    assert PromptRenderer.for_adapter(config, tokenizer, text).full("Hi")
    with pytest.raises(ValueError, match="another prompt"):
        PromptRenderer.for_adapter(config, tokenizer, "You are a pirate!")
    assert PromptRenderer.for_adapter(config, tokenizer, "You!", allow_other_prompt=True).full("Hi")
