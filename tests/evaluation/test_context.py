"""Beyond the model's context: refused in a sentence wherever a sequence is sent to a model, before the work."""

import re

import pytest
import torch
from peft import get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from peft_be import BenchConfig, BETokenConfig, bench_inference, evaluate_fidelity
from peft_be.comparison.compare import compare_methods
from peft_be.evaluation import stream_answer
from peft_be.evaluation.latency import time_requests
from peft_be.evaluation.stand_in import StandIn
from peft_be.evaluation.tasks import GSM8K, DialoguePerplexity, evaluate_task
from peft_be.serving.side_by_side import PromptComparison
from peft_be.teacher import AnswerSettings, answer_states, generate_answers, share_prefix

from ..exports import save_adapter
from ..tiny import save_tiny_llama, tiny_llama


PROMPT = "You are a lighthouse keeper. You answer in short sentences."
QUESTION = "Is it cold?"
# Twice as long as the context of both models
LONG = "sea " * 1024


def learned_positions(tokenizer):
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, **ids)).eval().requires_grad_(False)


@pytest.fixture(scope="module", params=["rotary", "learned"])
def base(request, tiny_tokenizer):
    return (tiny_llama if request.param == "rotary" else learned_positions)(tiny_tokenizer)


@pytest.fixture
def adapter(base, tiny_tokenizer):
    config = BETokenConfig.for_tokenizer(tiny_tokenizer, base.get_input_embeddings().num_embeddings, 1)
    model = get_peft_model(base, config)
    yield model
    model.unload()


@pytest.mark.parametrize("prompt, query", [(LONG, QUESTION), (PROMPT, LONG)])
def test_evaluation_and_bench(adapter, tiny_tokenizer, prompt, query):
    dialogue = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}]
    named = rf"with the longest query \('{re.escape(query[:50])}.*\) and its answer it is \d+ tokens long, .* context is 512"
    for asked in (query, [*dialogue, {"role": "user", "content": query}]):
        with pytest.raises(ValueError, match=named):
            evaluate_fidelity(adapter, tiny_tokenizer, prompt, ["A", asked], max_answer_length=4)
        with pytest.raises(ValueError, match=named):
            bench_inference(adapter, tiny_tokenizer, prompt, [asked], BenchConfig((1,), 2, 2))


def test_the_answer_has_to_fit_too(base, tiny_tokenizer):
    ids = [5] * 500
    assert len(next(stream_answer(base, tiny_tokenizer, ids, 12)).ids) == 1
    for call in (
        lambda: next(stream_answer(base, tiny_tokenizer, ids, 13)),
        lambda: generate_answers(base, [[5], ids], AnswerSettings(max_new_tokens=13), 0),
        lambda: answer_states(base, [[5], ids], [[5], [5] * 13]),
        lambda: time_requests(base, [[5], ids], new_tokens=13),
        lambda: share_prefix(base, [ids * 2, ids * 2]),
    ):
        with pytest.raises(ValueError, match="context is 512"):
            call()
    # The longest answer follows the shortest prompt here
    assert len(answer_states(base, [[5], ids], [[5] * 500, [5]])) == 2


def test_tasks(base, tiny_tokenizer):
    items = [{"question": QUESTION, "answer": "3"}, {"question": LONG, "answer": "3"}]
    lines = [{"scene": "A", "history": ["B"], "response": response} for response in ("Aye.", LONG)]
    for task in (GSM8K(items, max_answer_length=4), DialoguePerplexity(lines)):
        with pytest.raises(ValueError, match="context is 512"):
            evaluate_task(task, base, tiny_tokenizer, StandIn(PROMPT))


def test_a_task_is_refused_before_anything_is_trained(tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("PEFT_BE_CACHE", str(tmp_path / "cache"))
    task = GSM8K([{"question": LONG, "answer": "3"}], max_answer_length=4)
    model, queries = save_tiny_llama(tmp_path / "base", tiny_tokenizer), [f"Day {i}?" for i in range(12)]
    with pytest.raises(ValueError, match="context is 512"):
        compare_methods(PROMPT, queries, tmp_path / "out", [], model=model, task=task, max_answer_length=4)
    assert not (tmp_path / "out").exists()


def test_the_page(tiny_tokenizer, tmp_path):
    base = save_tiny_llama(tmp_path / "base", tiny_tokenizer)
    folders = [save_adapter(base, tmp_path / name) for name in ("keeper", "seller")]
    with pytest.raises(ValueError, match="context is 512"):
        PromptComparison(folders, [PROMPT, LONG])
