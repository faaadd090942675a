"""What `peft-be bench` measures, on a tiny model: that it computes the right thing, not how fast."""

import pytest
import torch
from peft import get_peft_model
from transformers import DynamicCache

from peft_be import BETokenConfig, PromptRenderer
from peft_be.evaluation.inference import MODES, BenchConfig, bench_inference, break_even
from peft_be.evaluation.latency import time_requests


PROMPT = (
    "You are a lighthouse keeper. You answer in short sentences, and you never leave the island, whatever happens."
)
QUERIES = ["Who are you?", "What do you see in the morning, when the fog is gone?", "Is it cold?"]


def decoded(model, monkeypatch, prompts, new_tokens, prefix=None):
    """The tokens that `time_requests` decodes, from the logits it sees."""
    tokens = []
    with monkeypatch.context() as patch:
        forward = model.forward
        patch.setattr(model, "forward", lambda **kw: tokens.append(out := forward(**kw)) or out)
        timing = time_requests(model, prompts, new_tokens, prefix)
    return torch.cat([out.logits[:, -1].argmax(-1, keepdim=True) for out in tokens], 1).tolist(), timing


@pytest.mark.parametrize("cached", [False, True])
def test_timed_requests_are_the_ones_that_generate_answers(tiny_model, tiny_tokenizer, monkeypatch, cached):
    for parameter in tiny_model.parameters():
        parameter.data.mul_(3)
    renderer = PromptRenderer(tiny_tokenizer, PROMPT)
    prompts = [renderer.full(query) for query in QUERIES]
    prefix = None
    if cached:
        prefix = DynamicCache(config=tiny_model.config)
        tiny_model(input_ids=torch.tensor([prompts[0][:20]]), past_key_values=prefix)
    tokens, timing = decoded(tiny_model, monkeypatch, prompts, 4, prefix)
    for prompt, row in zip(prompts, tokens):
        ids = torch.tensor([prompt])
        # Without the mask, `generate` would take the template's end-of-turn tokens for padding
        answer = tiny_model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, eos_token_id=None
        )
        assert row == answer[0, len(prompt) :].tolist()
    assert prefix is None or prefix.get_seq_length() == 20  # left as it was, for the next request
    config = tiny_model.config
    per_token = 2 * 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    assert timing.kv_bytes == per_token * (sum(map(len, prompts)) - (40 if cached else 0))
    assert timing.ttft_ms > 0 and timing.decode_tokens_per_s > 0


def test_report(tiny_model, tiny_tokenizer):
    model = get_peft_model(tiny_model, BETokenConfig(task_type="CAUSAL_LM", be_token_ids=[3]))
    rounds = []
    result = bench_inference(
        model, tiny_tokenizer, PROMPT, QUERIES, BenchConfig((1, 3), new_tokens=2, repeats=2), training_seconds=9.0,
        on_progress=lambda what, done, total, values: rounds.append((done, total)),
    )  # fmt: skip
    renderer = PromptRenderer.for_adapter(model.peft_config["default"], tiny_tokenizer, PROMPT)
    full, be = len(renderer.full(QUERIES[0])), len(renderer.be(QUERIES[0]))
    assert [batch["batch_size"] for batch in result["batches"]] == [1, 3]
    assert rounds[-1][0] == rounds[-1][1] == len(rounds)
    assert result["norm_flops"] == pytest.approx(be / full)  # Eq. 5
    rho = result["ttft_fit"]["rho"]
    assert result["ttft_ratio"]["predicted"] == pytest.approx(rho + (1 - rho) * be / full)  # Eq. 6
    for batch in result["batches"]:
        assert set(batch) == {"batch_size", *MODES}
        kv = {mode: batch[mode]["kv_bytes"] for mode in MODES}
        assert kv["be"] < kv["full_cached"] <= kv["full"]
        for mode in MODES:
            for name in ("ttft_ms", "decode_tokens_per_s"):
                spread = batch[mode][name]
                assert 0 < spread["q1"] <= spread["median"] <= spread["q3"]


def test_break_even():
    def costs(ttft, speed):
        return {"ttft_ms": {"median": ttft}, "decode_tokens_per_s": {"median": speed}}

    # 1 s + 10 tokens at 10 a second, 0.1 s + the same, and 0.2 s + 10 tokens at 20 a second
    batch = {"batch_size": 1, "full": costs(1000, 10), "full_cached": costs(100, 10), "be": costs(200, 20)}
    assert break_even(batch, 10, 65.0) == {"full": 50, "full_cached": 163}
    batch["full_cached"] = costs(10, 30)  # faster than [BE]: never
    assert break_even(batch, 10, 65.0) == {"full": 50, "full_cached": None}
    assert break_even(batch, 10, None) == {"full": None, "full_cached": None}


@pytest.mark.parametrize("wrong", [{"repeats": 1}, {"new_tokens": 0}, {"batch_sizes": (0,)}])
def test_settings_out_of_range(wrong):
    with pytest.raises(ValueError, match="at least 2 repeats"):
        BenchConfig(**wrong)
