"""Streamed answers are those of `generate`, and nothing goes on after them."""

import threading

import pytest
import torch
from peft import get_peft_model

from peft_be import BETokenConfig, PromptRenderer
from peft_be.evaluation import stream_answer
from peft_be.evaluation.latency import time_requests


PROMPT = "You are a lighthouse keeper. You answer in short sentences, and you never leave the island."


@pytest.fixture
def model(tiny_model):
    for parameter in tiny_model.parameters():
        parameter.data.mul_(3)
    return get_peft_model(tiny_model, BETokenConfig(task_type="CAUSAL_LM", be_token_ids=[3]))


@pytest.fixture
def renderer(model, tiny_tokenizer):
    return PromptRenderer.for_adapter(model.peft_config["default"], tiny_tokenizer, PROMPT)


@pytest.mark.parametrize("form", ["full", "be", "no_prompt"])
def test_the_tokens_and_their_cost(model, renderer, tiny_tokenizer, form):
    ids = getattr(renderer, form)("Is it cold?")
    steps = list(stream_answer(model, tiny_tokenizer, ids, 12))
    inputs = torch.tensor([ids])
    expected = model.generate(
        input_ids=inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=12, do_sample=False
    )[0, len(ids) :].tolist()
    assert [step.ids for step in steps] == [expected[: n + 1] for n in range(len(expected))]
    assert steps[-1].text == tiny_tokenizer.decode(expected, skip_special_tokens=True).rstrip("\ufffd")
    (first,) = {(step.input_tokens, step.ttft_ms, step.kv_bytes) for step in steps}
    assert first[0] == len(ids) and first[1] > 0
    assert first[2] == time_requests(model.get_base_model(), [ids]).kv_bytes


def test_sampling_and_greedy_decoding(model, renderer, tiny_tokenizer):
    ids = renderer.be("Is it cold?")
    torch.manual_seed(0)
    answers = {
        temperature: {tuple(list(stream_answer(model, tiny_tokenizer, ids, 8, temperature))[-1].ids) for _ in "123"}
        for temperature in (0.0, 5.0)
    }
    assert len(answers[0.0]) == 1 and len(answers[5.0]) == 3


def test_a_character_appears_when_it_is_complete(model, renderer, tiny_tokenizer):
    (start, *rest) = tiny_tokenizer("🦜", add_special_tokens=False)["input_ids"]
    assert rest and tiny_tokenizer.decode([start]).endswith("\ufffd")
    model.generation_config.sequence_bias = [[[start], 1e4]]
    steps = list(stream_answer(model, tiny_tokenizer, renderer.be("A parrot?"), 3))
    assert steps[-1].ids == [start] * 3
    assert not any(step.text.endswith("\ufffd") for step in steps)


def test_a_closed_stream_stops_the_model(model, renderer, tiny_tokenizer):
    forwards, threads = [], threading.active_count()
    model.get_base_model().get_decoder().register_forward_hook(lambda *_: forwards.append(1))
    stream = stream_answer(model, tiny_tokenizer, renderer.be("Is it cold?"), 400)
    next(stream)
    assert threading.active_count() == threads + 1
    stream.close()
    assert threading.active_count() == threads
    assert len(forwards) < 300  # it ran ahead of its reader, but not to the end


def test_an_error_of_the_model_is_raised(model, renderer, tiny_tokenizer):
    model.get_base_model().get_decoder().register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(stream_answer(model, tiny_tokenizer, renderer.be("Is it cold?"), 4))
