"""Attention from the model's own weights, and the sampling."""

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, MambaConfig, MambaForCausalLM

from peft_be.comparison.methods import AttentionSampling
from peft_be.comparison.methods.attention import (
    MIN_SURVIVAL,
    attention_received,
    sample,
    split_sentences,
    survival,
    tf_idf,
)
from peft_be.comparison.methods.pruning import split_words
from peft_be.data import QuerySplits

from .conftest import EXAMPLES, SYSTEM


PREFIX = list(range(100, 140))
SUFFIXES = [[5, 6, 7], [8, 9, 10, 11, 12], [13]]


def reference(model, ids):
    """All weights at once: the last position's row, mean over layers and heads."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        layers = model(torch.tensor([ids]), output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    return torch.stack([layer[0, :, -1].mean(0) for layer in layers]).mean(0)


def tiny_gemma():
    """Layers with a sliding window of 16, and one without."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 6,
        "num_attention_heads": 2,
        "head_dim": 8,
    }
    config = Gemma3TextConfig(vocab_size=200, num_key_value_heads=1, sliding_window=16, initializer_range=0.3, **sizes)
    return Gemma3ForCausalLM(config).eval()


@pytest.mark.parametrize("sliding", [False, True])
def test_is_the_models_own_and_adds_up(tiny_model, sliding):
    model = tiny_gemma() if sliding else tiny_model
    received = attention_received(model, PREFIX, SUFFIXES)
    rows = [reference(model, PREFIX + suffix) for suffix in SUFFIXES]
    expected = sum(row[: len(PREFIX)] for row in rows) / len(rows)
    torch.testing.assert_close(received, expected, rtol=1e-4, atol=1e-6)
    within = sum(row[len(PREFIX) :].sum() for row in rows) / len(rows)
    assert float(received.sum() + within) == pytest.approx(1, abs=1e-5)


def test_in_parts(tiny_model):
    window = 5 + 15  # the longest suffix, and room for three parts
    received = attention_received(tiny_model, PREFIX, SUFFIXES, window)
    parts = [PREFIX[:14], PREFIX[:1] + PREFIX[14:27], PREFIX[:1] + PREFIX[27:]]
    expected = []
    for number, part in enumerate(parts):
        skip = 1 if number else 0
        rows = [reference(tiny_model, part + suffix)[skip : len(part)] for suffix in SUFFIXES]
        expected.append(sum(rows) / len(rows) * (len(part) - skip) / len(PREFIX))
    torch.testing.assert_close(received, torch.cat(expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("length", [2, 3, 7, 16, 40, 41])
@pytest.mark.parametrize("room", [2, 3, 5, 16, 40])
def test_parts_fit_the_window(tiny_model, length, room):
    lengths = []
    tiny_model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    received = attention_received(tiny_model, list(range(length)), [[5, 6]], room + 2)
    assert max(lengths) <= room and (received > 0).all()


def test_a_query_as_long_as_the_context(tiny_model):
    with pytest.raises(ValueError, match="as long as the model's context"):
        attention_received(tiny_model, PREFIX, SUFFIXES, window=6)


def test_a_model_without_attention(make_job):
    model = MambaForCausalLM(MambaConfig(vocab_size=49152, hidden_size=16, num_hidden_layers=1, state_size=4)).eval()
    with pytest.raises(ValueError, match="no attention weights"):
        AttentionSampling(20).fit(make_job(model=model))


def test_needs_queries(make_job):
    job = make_job()
    job.splits = QuerySplits([], [], [], 0)
    with pytest.raises(ValueError, match="needs queries"):
        AttentionSampling(20).fit(job)


def test_sentences():
    words = split_words(EXAMPLES)
    sentences = split_sentences(EXAMPLES, words)
    texts = {}
    for word, number in zip(words, sentences.tolist()):
        texts.setdefault(number, []).append(EXAMPLES[word.message]["content"][word.start : word.end])
    texts = [" ".join(words) for _, words in sorted(texts.items())]
    assert texts[:3] == [
        "You are the keeper of a lighthouse, and you never leave your island.",
        "- Answer in short sentences; be friendly.",
        "- Mention the sea, the lamp, or the weather (whatever fits).",
    ]
    assert "- Don't promise a visit." in texts and "Never!" in texts and 'Say "Ahoy, friend!"' in texts
    assert "I keep the lamp." in texts and texts.count("Ahoy, friend!") == 2


def test_words_that_are_everywhere_count_less_each():
    words = ["the", "lamp", "the", "sea", "the", "island"]
    sentences = torch.tensor([0, 0, 1, 1, 2, 2])
    scores = tf_idf(words, sentences)
    assert (scores[[1, 3, 5]] == scores[1]).all() and (scores[[0, 2, 4]] == scores[0]).all()
    assert scores[0] < 3 * scores[1]  # three times as frequent, not three times as important


def test_a_word_of_all_sentences_weighs_nothing():
    words, sentences = ["the", "sea", "the", "wind", "the", "rain"], torch.tensor([0, 0, 1, 1, 2, 2])
    scores = tf_idf(words, sentences)
    assert (scores[[0, 2, 4]] == 0).all() and (scores[[1, 3, 5]] > 0).all()
    assert (tf_idf(["the", "sea"], torch.tensor([0, 0])) > 0).all()  # a single sentence tells nothing


def test_roulette_keeps_the_expectation():
    weights = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5, 0.1, 0.0, 0.0], dtype=torch.float64)
    sentences = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    probability = survival(weights, sentences)
    assert probability[0] == 1 and probability[3] == MIN_SURVIVAL
    assert probability[1] == pytest.approx(1.5 / weights.mean().item())
    survived = torch.tensor([(sample(weights, sentences, seed)[::2] > -1000).tolist() for seed in range(2000)])
    torch.testing.assert_close(survived.double().mean(0), probability, rtol=0, atol=0.05)


def test_draws_in_proportion_to_the_weights():
    weights = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    one_sentence = torch.zeros(4, dtype=torch.long)
    first = torch.tensor([int(sample(weights, one_sentence, seed).argmax()) for seed in range(4000)])
    torch.testing.assert_close(torch.bincount(first) / 4000, weights.float() / 10, rtol=0, atol=0.03)


def test_lost_sentences_come_last():
    weights = torch.tensor([10.0, 10.0, 1.0, 1.0], dtype=torch.float64)
    sentences = torch.tensor([0, 0, 1, 1])
    for seed in range(50):
        keys = sample(weights, sentences, seed)
        assert keys[2:].max() < keys[:2].min() or keys[2:].min() > -1000


def test_a_prompt_longer_than_the_context(make_job, tiny_tokenizer):
    assert AttentionSampling(100).fit(make_job(SYSTEM * 8)).num_tokens(tiny_tokenizer) <= 100
