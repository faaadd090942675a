"""LLMLingua-2 with a small random classifier and its own tokenizer, through the package itself."""

import sys

import pytest
import torch

from peft_be.comparison.methods import LLMLingua2
from peft_be.comparison.methods.llmlingua import _find, _kept_words, load_compressor
from peft_be.comparison.methods.pruning import split_words

from .conftest import EXAMPLES, PROMPTS, SYSTEM


@pytest.fixture(scope="module")
def encoding():
    """What the package counts with, if it is in tiktoken's cache or can be downloaded."""
    tiktoken = pytest.importorskip("tiktoken")
    pytest.importorskip("llmlingua")
    try:
        tiktoken.encoding_for_model("gpt-3.5-turbo")
    except OSError:
        pytest.skip("tiktoken can neither find nor download cl100k_base")


def save_classifier(folder, kind="bert", **changes):
    from tokenizers import SentencePieceUnigramTokenizer
    from tokenizers.implementations import BertWordPieceTokenizer, ByteLevelBPETokenizer
    from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast

    lines = [line for message in EXAMPLES for line in message["content"].split("\n")]
    if kind == "bert":
        tokenizer = BertWordPieceTokenizer(lowercase=False)
        tokenizer.train_from_iterator(lines, vocab_size=200)
        specials = {name: f"[{name[:3].upper()}]" for name in ("unk_token", "pad_token", "cls_token", "sep_token")}
        specials["mask_token"] = "[MASK]"
    else:
        tokenizer = SentencePieceUnigramTokenizer() if kind == "xlm-r" else ByteLevelBPETokenizer()
        added = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        arguments = {"unk_token": "<unk>"} if kind == "xlm-r" else {}
        tokenizer.train_from_iterator(lines, vocab_size=300, special_tokens=added, **arguments)
        specials = dict(zip(("cls_token", "pad_token", "sep_token", "unk_token", "mask_token"), added))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, **specials).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    sizes |= {"vocab_size": tokenizer.get_vocab_size(), "initializer_range": 0.5, "num_labels": 2, **changes}
    BertForTokenClassification(BertConfig(**sizes)).eval().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("models") / "some-classifier")


@pytest.mark.parametrize("budget", [5, 23, 60])
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_keeps_the_budget(encoding, classifier, make_job, tiny_tokenizer, prompt, budget):
    if prompt == PROMPTS["examples only"] and budget == 5:
        pytest.skip("an exchange is longer")
    kept = LLMLingua2(budget, classifier).fit(make_job(prompt))
    assert budget - (7 if isinstance(prompt, str) else 24) < kept.num_tokens(tiny_tokenizer) <= budget
    assert kept.prompt == LLMLingua2(budget, classifier).fit(make_job(prompt)).prompt


def test_what_fits_is_left_alone(make_job):
    assert LLMLingua2(1000, "no/such-model").fit(make_job()).prompt == SYSTEM  # not even loaded


@pytest.mark.parametrize("kind", ["bert", "xlm-r"])
@pytest.mark.parametrize("percent", [15, 50, 85])
def test_keeps_what_the_package_keeps(encoding, tmp_path, kind, percent):
    text = "the keeper lights the lamp every night and the ships go by without a word to him until the morning comes"
    compressor = load_compressor(save_classifier(tmp_path / "classifier", kind), torch.device("cpu"))
    theirs = compressor.compress_prompt(text, rate=percent / 100)["compressed_prompt"].split()
    messages = [{"role": "system", "content": text}]
    words = split_words(messages)
    ours = [text[w.start : w.end] for w, kept in zip(words, _kept_words(compressor, messages, words, percent)) if kept]
    assert ours == theirs and 0 < len(ours) < len(words)


def test_a_message_that_the_classifier_cannot_read(encoding, classifier, make_job, tiny_tokenizer):
    prompt = [*EXAMPLES, {"role": "user", "content": "👍"}, {"role": "assistant", "content": "👍"}]
    assert 0 < LLMLingua2(60, classifier).fit(make_job(prompt)).num_tokens(tiny_tokenizer) <= 60


def test_leaves_random_numbers_alone(encoding, classifier, make_job):
    state = torch.get_rng_state()
    LLMLingua2(20, classifier).fit(make_job())
    assert torch.equal(torch.get_rng_state(), state)


def test_finding_words():
    text = "Don't  STOP, Äpfel (now)"
    words = ["Don", "'", "t", "stop", ",", "apfel", "(", "now", ")", ""]
    assert [text[a:b] for a, b in _find(words, text)] == ["Don", "'", "t", "STOP", ",", "", "(", "now", ")", ""]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: str(folder / "nothing"), "cannot be loaded"),
        (lambda folder: save_classifier(folder, num_labels=3), "two labels"),
        (lambda folder: save_classifier(folder, "byte-level"), "has a BPE tokenizer"),
    ],
    ids=["nothing there", "three labels", "other tokenizer"],
)
def test_other_checkpoints(encoding, tmp_path, make_job, make, message):
    with pytest.raises((OSError, ValueError), match=message):
        LLMLingua2(20, make(tmp_path / "model")).fit(make_job())


def test_a_language_model(encoding, tmp_path, tiny_model, tiny_tokenizer, make_job):
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="not a model for token classification"):
        LLMLingua2(20, tmp_path / "model").fit(make_job())


def test_without_the_package(make_job, monkeypatch):
    monkeypatch.setitem(sys.modules, "llmlingua", None)
    with pytest.raises(ImportError, match="pip install"):
        LLMLingua2(20).fit(make_job())


def test_without_the_encoding(classifier, make_job, monkeypatch, tmp_path):
    registry = pytest.importorskip("tiktoken.registry")
    pytest.importorskip("llmlingua")
    requests = pytest.importorskip("requests")

    def no_network(*args, **kwargs):
        raise requests.exceptions.ConnectionError("no network")

    monkeypatch.setattr(registry, "ENCODINGS", {})
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(requests, "get", no_network)
    with pytest.raises(OSError, match="TIKTOKEN_CACHE_DIR"):
        LLMLingua2(20, classifier).fit(make_job())
