"""Self-information against a full softmax of the model's own logits."""

import math

import pytest
import torch

from peft_be.comparison.methods import SelfInformation
from peft_be.comparison.methods.pruning import split_words
from peft_be.comparison.methods.self_information import self_information
from peft_be.prompting import PromptRenderer

from .conftest import PROMPTS, SYSTEM


def reference(model, ids):
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].float()
    return -torch.log_softmax(logits[:-1], -1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_is_the_models_own(tiny_model, tiny_tokenizer, prompt):
    ids = PromptRenderer(tiny_tokenizer, prompt).full("Who are you?")
    scores = self_information(tiny_model, ids)
    torch.testing.assert_close(scores[1:], reference(tiny_model, ids), rtol=1e-5, atol=1e-5)
    assert scores[0] == pytest.approx(math.log(tiny_model.config.vocab_size))
    assert (scores >= 0).all()


@pytest.mark.parametrize("window", [2, 7, 16, 64, 500])
def test_in_windows(tiny_model, tiny_tokenizer, window):
    ids = tiny_tokenizer(SYSTEM)["input_ids"][:50]
    scores = self_information(tiny_model, ids, window)
    half, done = window // 2, min(window, len(ids))
    expected = reference(tiny_model, ids[:done]).tolist()
    while done < len(ids):  # the second half of each further window is new
        end = min(done - half + window, len(ids))
        expected += reference(tiny_model, ids[done - half : end])[half - 1 :].tolist()
        done = end
    torch.testing.assert_close(scores[1:], torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_a_prompt_longer_than_the_context(tiny_model, make_job, tiny_tokenizer):
    lengths = []
    tiny_model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    kept = SelfInformation(100).fit(make_job(SYSTEM * 8))
    assert len(lengths) > 1 and max(lengths) <= tiny_model.config.max_position_embeddings
    assert kept.num_tokens(tiny_tokenizer) <= 100


def test_one_token(tiny_model):
    assert self_information(tiny_model, [5]).shape == (1,)


def test_repetition_goes_first(smollm2, make_job):
    prompt = "You sell umbrellas in Lisbon. " * 6 + "Never mention Porto."
    importance = SelfInformation(10)
    messages = [{"role": "system", "content": prompt}]
    words = split_words(messages)
    scores = importance.importance(make_job(prompt, smollm2), messages, words)
    first, last, ending = scores[:5], scores[25:30], scores[30:]
    assert sum(last) < 0.2 * sum(first)
    assert min(ending) > max(last)
