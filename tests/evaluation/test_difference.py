"""What changes from one adapter or prompt to another."""

import json
import statistics

import pytest
import torch
import torch.nn.functional as F
from peft import get_peft_model

from peft_be import BETokenConfig, PromptRenderer, evaluate_fidelity, load_checks
from peft_be.evaluation import check_changes, evaluate_difference
from peft_be.evaluation.stand_in import StandIn

from ..stages import PROMPT, QUERIES


OTHER = "You sell umbrellas in the rain, and you shout."


@pytest.fixture
def model(tiny_model):
    for parameter in tiny_model.parameters():
        parameter.data.mul_(3)  # a random model says nearly the same to everything
    return tiny_model


def rows(k, seed):
    return StandIn(rows=torch.randn(k, 32, generator=torch.Generator().manual_seed(seed)))


def test_nothing_changes_between_the_same(model, tiny_tokenizer):
    for side in (rows(2, 0), StandIn(PROMPT)):
        scores, found = evaluate_difference(model, tiny_tokenizer, side, side, QUERIES, 5)
        assert scores["same_answers"] == scores["top1_agreement"] == scores["answer_rouge_l"] == 1
        assert scores["kl"]["mean"] == pytest.approx(0, abs=1e-6) and scores["kl_no_prompt"]["mean"] > 1e-3
        assert all(entry["a"] == entry["b"] for entry in found)
    assert not hasattr(model.get_input_embeddings(), "be_token_embedding")  # the model can be used again


def test_figures_follow_their_definitions(model, tiny_tokenizer):
    before, after = StandIn(PROMPT), StandIn(OTHER)
    scores, found = evaluate_difference(model, tiny_tokenizer, before, after, QUERIES, 5, batch_size=2)
    expected, tokens = {}, {}
    for query in QUERIES:
        prompts = [PromptRenderer(tiny_tokenizer, prompt).full(query) for prompt in (PROMPT, OTHER)]
        ids = torch.tensor([prompts[0]])
        answer = model.generate(input_ids=ids, max_new_tokens=5, do_sample=False)[0, ids.shape[1] :].tolist()
        with torch.no_grad():
            logits = [model(input_ids=torch.tensor([prompt + answer])).logits[0] for prompt in prompts]
        log_p = [F.log_softmax(x[len(p) - 1 : -1].double(), -1) for x, p in zip(logits, prompts)]
        expected[query] = (log_p[0].exp() * (log_p[0] - log_p[1])).sum(-1).mean().item()
        tokens[query] = len(answer)
        (entry,) = (entry for entry in found if entry["query"] == query)
        assert entry["a"] == tiny_tokenizer.decode(answer, skip_special_tokens=True)
        assert entry["kl"] == pytest.approx(expected[query], rel=1e-4)
    assert [entry["query"] for entry in found] == sorted(QUERIES, key=lambda query: -expected[query])
    total = sum(tokens.values())
    assert scores["num_answer_tokens"] == total and scores["num_queries"] == len(QUERIES)
    mean = sum(expected[query] * tokens[query] for query in QUERIES) / total
    assert scores["kl"]["mean"] == pytest.approx(mean, rel=1e-4)
    assert scores["kl"]["median"] == pytest.approx(statistics.median(expected.values()), rel=1e-4)
    same = [entry["a"] == entry["b"] for entry in found]
    assert scores["same_answers"] == sum(same) / len(same) < 1
    assert json.loads(json.dumps(scores)) == scores


def test_rows_next_to_a_prompt_are_what_eval_scores(model, tiny_tokenizer):
    side = rows(1, 3)
    scores, found = evaluate_difference(model, tiny_tokenizer, StandIn(PROMPT), side, QUERIES, 5)
    peft_model = get_peft_model(model, BETokenConfig(task_type="CAUSAL_LM", be_token_ids=[3]))
    peft_model.base_model.set_rows("default", side.rows)
    theirs, texts = evaluate_fidelity(peft_model, tiny_tokenizer, PROMPT, QUERIES, 5)
    assert scores["kl"]["mean"] == pytest.approx(theirs["kl"]["be"])
    assert scores["kl_no_prompt"]["mean"] == pytest.approx(theirs["kl"]["no_prompt"])
    assert {entry["query"]: entry["b"] for entry in found} == {text["query"]: text["be"] for text in texts}
    assert scores["tokens"] == {"a": theirs["prompt_tokens"], "b": 1}


def test_what_does_not_fit_is_said_before_the_work(model, tiny_tokenizer):
    done = []
    long = StandIn("sea " * 600)
    for sides in ((rows(1, 0), long), (long, rows(1, 0))):
        with pytest.raises(ValueError, match="context is 512"):
            evaluate_difference(model, tiny_tokenizer, *sides, QUERIES, on_progress=lambda *told: done.append(told))
    assert not done
    with pytest.raises(ValueError, match="no queries"):
        evaluate_difference(model, tiny_tokenizer, rows(1, 0), rows(1, 1), [])


def test_checks_that_are_lost_and_gained():
    checks = load_checks({"greets": {"starts_with": "Hello"}, "waves": {"ends_with": "Bye"}, "speaks": "^"})
    pairs = [("Hello", "Bye")] * 8 + [("Hello", "Hello")] * 2
    changes = check_changes(checks, [{"query": "Hi", "a": a, "b": b} for a, b in pairs])
    greets, waves, speaks = (changes[name] for name in ("greets", "waves", "speaks"))
    assert (greets["a"], greets["b"], greets["only_a"], greets["only_b"]) == (1, 0.2, 8, 0)
    assert greets["lost"] and not greets["gained"] and greets["p_value"] == pytest.approx(2 / 2**8)
    assert waves["gained"] and not waves["lost"] and (waves["only_a"], waves["only_b"]) == (0, 8)
    assert not speaks["lost"] and not speaks["gained"]
