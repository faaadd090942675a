"""The scores of `peft-be eval` against their definitions."""

import dataclasses
import statistics
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peft import get_peft_model

from peft_be import BETokenConfig, PromptRenderer, evaluate_fidelity, evaluate_reconstruction
from peft_be.evaluation import FidelityScorer, Gap


PROMPT = (
    "You are a lighthouse keeper. You answer in short sentences, and you never leave the island, whatever happens."
)
QUERIES = ["Who are you?", "What do you see in the morning?", "Is it cold?"]


@pytest.fixture
def model(tiny_model):
    for parameter in tiny_model.parameters():
        parameter.data.mul_(3)  # a random model says nearly the same to everything
    return get_peft_model(tiny_model, BETokenConfig(task_type="CAUSAL_LM", be_token_ids=[3]))


def test_scores_follow_their_definitions(model, tiny_tokenizer):
    scores, samples = evaluate_fidelity(model, tiny_tokenizer, PROMPT, QUERIES, max_answer_length=5, batch_size=2)
    renderer = PromptRenderer.for_adapter(model.peft_config["default"], tiny_tokenizer, PROMPT)
    kl, top, count = {"no_prompt": 0.0, "be": 0.0}, {"no_prompt": 0, "be": 0}, 0
    shares = []
    for query, sample in zip(QUERIES, samples):
        ids = torch.tensor([renderer.full(query)])
        answer = model.generate(input_ids=ids, max_new_tokens=5, do_sample=False)[0, ids.shape[1] :].tolist()
        assert sample["full"] == tiny_tokenizer.decode(answer, skip_special_tokens=True)
        log_p = {}
        for name, prompt in (
            ("full", renderer.full(query)),
            ("be", renderer.be(query)),
            ("no_prompt", renderer.no_prompt(query)),
        ):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
            log_p[name] = F.log_softmax(logits.double(), -1)
        own = {name: (log_p["full"].exp() * (log_p["full"] - log_p[name])).sum().item() for name in kl}
        shares.append(1 - own["be"] / own["no_prompt"])
        for name in kl:
            kl[name] += own[name]
            top[name] += (log_p["full"].argmax(-1) == log_p[name].argmax(-1)).sum().item()
        count += len(answer)
    assert scores["num_answer_tokens"] == count
    for name in kl:
        assert scores["kl"][name] == pytest.approx(kl[name] / count, rel=1e-4)
        assert scores["top1_agreement"][name] == pytest.approx(top[name] / count)
        assert scores["same_answers"][name] == statistics.mean(sample["full"] == sample[name] for sample in samples)
    assert scores["kl_gap_closed"] == scores["gap"]["mean"] == pytest.approx(1 - kl["be"] / kl["no_prompt"], abs=1e-4)
    assert scores["gap"]["median"] == pytest.approx(statistics.median(shares), abs=1e-3)
    assert scores["gap"]["quoted_share"] == 0 and scores["copies"] == scores["left_out"] == []
    assert scores["compression_ratio"] == scores["prompt_tokens"] == len(renderer.prompt_ids)


def test_the_keys_are_the_documented_ones(model, tiny_tokenizer):
    scores, _ = evaluate_fidelity(model, tiny_tokenizer, PROMPT, QUERIES, max_answer_length=2)
    assert scores.keys() == {
        "model", "prompt_tokens", "be_tokens", "kept_tokens", "compression_ratio", "num_queries", "num_answer_tokens", "kl",
        "kl_gap_closed", "top1_agreement", "answer_rouge_l", "same_answers", "ttft_ms", "versions", "gap", "copies", "cut_answers",
        "left_out",
    }  # fmt: skip
    assert scores["gap"].keys() == {field.name for field in dataclasses.fields(Gap)}
    pages = "".join(page.read_text() for page in (Path(__file__).parents[2] / "docs").rglob("*.md"))
    told = [f"gap.{name}" for name in ("median", "behaviour", "quoted", "mean")]
    for name in (
        *told,
        "copies",
        "cut_answers",
        "left_out",
        "top1_agreement",
        "answer_rouge_l",
        "same_answers",
        "reconstruction",
        "ttft_ms",
    ):
        assert f"`{name}`" in pages
    for name in ("kl", "top1_agreement", "answer_rouge_l", "same_answers"):
        assert scores[name].keys() == {"no_prompt", "be"}
    assert scores["ttft_ms"].keys() == {"full", "no_prompt", "be"}


def test_answers_without_an_end_are_cut(model, tiny_tokenizer):
    scores, samples = evaluate_fidelity(model, tiny_tokenizer, PROMPT, QUERIES, max_answer_length=6)
    full = PromptRenderer(tiny_tokenizer, PROMPT)
    base, prompts = model.get_base_model(), [full.full(query) for query in QUERIES]
    assert scores["cut_answers"] == len(QUERIES)
    # Where any token may end an answer, none is cut, though all are as long as they may be
    base.generation_config.eos_token_id = list(range(base.config.vocab_size))
    assert FidelityScorer(base, tiny_tokenizer, prompts, max_answer_length=1).cut_answers == 0


def test_the_prompt_itself_as_be_closes_the_whole_gap(tiny_tokenizer, model):
    """[BE] rows that are P's own embeddings are the full prompt: every score must say so."""
    base = model.unload()
    ids = PromptRenderer(tiny_tokenizer, PROMPT).prompt_ids
    k = len(ids)
    config = BETokenConfig(task_type="CAUSAL_LM", num_be_tokens=k, be_token_ids=list(range(49152, 49152 + k)))
    model = get_peft_model(base, config)
    table = base.get_input_embeddings().get_base_layer().weight
    model.base_model.set_rows("default", table[torch.tensor(ids)])
    scores, samples = evaluate_fidelity(model, tiny_tokenizer, PROMPT, QUERIES, max_answer_length=5)
    assert scores["kl_gap_closed"] == pytest.approx(1.0, abs=1e-4)
    assert scores["top1_agreement"]["be"] == scores["answer_rouge_l"]["be"] == scores["same_answers"]["be"] == 1.0
    assert scores["same_answers"]["no_prompt"] < 1
    assert all(sample["be"] == sample["full"] for sample in samples)


def test_greedy_prefix_is_where_greedy_decoding_leaves_the_prompt(model, tiny_tokenizer):
    """The teacher-forced shortcut against real greedy decoding from [BE][AE]."""
    base = model.unload()
    config = BETokenConfig(task_type="CAUSAL_LM", be_token_ids=[3], use_ae_token=True, ae_token_id=15)
    model = get_peft_model(base, config)
    ids = torch.tensor([[3, 15]])
    written = model.generate(input_ids=ids, max_new_tokens=6, do_sample=False)[0, 2:].tolist()
    from peft_be.evaluation.fidelity import reconstruction_scores
    from peft_be.losses import OutputHead

    target = written[:4] + [written[4] + 1, 7, 8, 9]
    rows, ae_row = model.base_model.get_rows("default"), model.base_model.get_ae_row("default")
    scores = reconstruction_scores(base, tiny_tokenizer, rows, ae_row, target, OutputHead(base))
    assert scores["greedy_prefix_match"] == 4 / 8
    assert scores["curve"][3] == [4, 1.0] and scores["curve"][-1] == [8, scores["token_accuracy"]]
    assert scores["token_accuracy"] >= 4 / 8


def test_no_queries(model, tiny_tokenizer):
    with pytest.raises(ValueError, match="no queries"):
        evaluate_fidelity(model, tiny_tokenizer, PROMPT, [])


def test_the_reconstruction_of_an_adapter(model, tiny_tokenizer):
    ae_row = torch.randn(1, 32)
    scores = evaluate_reconstruction(model, tiny_tokenizer, PROMPT, ae_row)
    assert 0 <= scores["greedy_prefix_match"] <= 1 and scores["curve"][-1][1] == scores["token_accuracy"]


def test_quoted_tokens_are_scored_apart(model, tiny_tokenizer):
    base = model.unload()
    renderer = PromptRenderer(tiny_tokenizer, PROMPT)
    full, without = ([form(query) for query in QUERIES] for form in (renderer.full, renderer.no_prompt))
    scorer = FidelityScorer(base, tiny_tokenizer, full, 6)
    whole = scorer.score(without)
    assert whole.quoted_kl is whole.quoted_tokens is None and Gap.between(whole, whole).behaviour is None
    # A random model quotes nothing. What is marked is scored, whoever marked it
    scorer.quoted = [[i % 2 == 0 for i, _ in enumerate(answer.ids)] for answer in scorer.teacher]
    scorer.quoted[1] = [False] * len(scorer.quoted[1])
    apart = scorer.score(without)
    assert apart.query_kl == pytest.approx(whole.query_kl) and apart.kl == pytest.approx(whole.kl)
    assert apart.quoted_tokens == [3, 0, 3] and apart.quoted_kl[1] == 0
    scorer.quoted = [[not quoted for quoted in mask] for mask in scorer.quoted]
    rest = scorer.answer_kl(without)
    for i, tokens in enumerate(apart.query_tokens):
        sums = [side.quoted_kl[i] * side.quoted_tokens[i] for side in (apart, rest)]
        assert sum(sums) == pytest.approx(apart.query_kl[i] * tokens)


def test_queries_of_the_prompt_are_left_out(model, tiny_tokenizer):
    inside = "You never leave the island, whatever happens?"
    with pytest.warns(UserWarning, match="Left out 1 of 4 held-out queries"):
        scores, samples = evaluate_fidelity(model, tiny_tokenizer, PROMPT, [inside, *QUERIES], max_answer_length=3)
    assert scores["num_queries"] == 3 == len(samples)
    assert scores["left_out"] == [{"query": inside, "passage": "you never leave the island, whatever happens"}]
    with pytest.raises(ValueError, match="All held-out queries stand in the prompt"):
        evaluate_fidelity(model, tiny_tokenizer, PROMPT, [inside], max_answer_length=3)
