import pytest

from peft_be.baselines import Job
from peft_be.data import split_queries


PROMPT = (
    "You are a lighthouse keeper. You answer in short sentences, and you never leave the island, whatever happens."
)
QUERIES = [f"What did you see on day {number}?" for number in range(12)]


@pytest.fixture
def job(tiny_model, smollm2_tokenizer, tmp_path, monkeypatch):
    """A job for a random model whose answers depend on the prompt."""
    monkeypatch.setenv("PEFT_BE_CACHE", str(tmp_path / "cache"))
    for parameter in tiny_model.parameters():
        parameter.data.mul_(3)
    splits = split_queries(QUERIES, ["Who are you?", "Is it cold?"])
    return Job(
        tiny_model, smollm2_tokenizer, PROMPT, splits, tmp_path / "work", seed=1, max_steps=4, max_answer_length=5
    )
