"""Words in any script, which texts are compared by."""

import unicodedata

import pytest

from peft_be.data.repeats import passages_of
from peft_be.data.words import words
from peft_be.evaluation.quoting import quoted_tokens

from ..tiny import TOKENIZER


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Don't, SHARP-witted x_1!", ["don", "t", "sharp", "witted", "x", "1"]),
        ("Straße ＡＢ ﬁn", ["strasse", "ab", "fin"]),
        ("नमस्ते दुनिया, आप कैसे हैं?", ["नमस्ते", "दुनिया", "आप", "कैसे", "हैं"]),
        ("தமிழ் மொழி", ["தமிழ்", "மொழி"]),
        ("שָׁלוֹם", [unicodedata.normalize("NFKC", "שָׁלוֹם")]),
        ("灯台守です。", list("灯台守です")),
        ("", []),
    ],
)
def test_words_of_a_text(text, found):
    assert words(text) == found


def test_an_accent_may_be_a_character_of_its_own():
    texts = [unicodedata.normalize(form, "Où est le café près de la forêt ?") for form in ("NFC", "NFD")]
    assert words(texts[0]) == words(texts[1]) and len(words(texts[0])) == 8
    for one, other in (texts, reversed(texts)):
        assert passages_of(f"He asked: {one} She laughed.", [other]) == [one.removesuffix(" ?")]


def test_a_word_of_vowel_signs_is_one_of_the_five_of_a_quotation():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    prompt = "आप एक पुराने जहाज़ के कप्तान हैं और समुद्र से प्यार करते हैं"
    for answer, quoted in (("मैं कप्तान हैं", False), ("एक पुराने जहाज़ के कप्तान", True)):
        ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
        (mask,) = quoted_tokens(tokenizer, prompt, ["Who?"], [ids])
        assert set(mask) == {quoted}
