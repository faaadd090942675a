import pytest

from peft_be.comparison.methods import Job
from peft_be.data import QuerySplits, split_queries

from .reports import comparison_results


PROMPT = (
    "You are a lighthouse keeper. You answer in short sentences, and you never leave the island, whatever happens."
)
QUERIES = [f"What did you see on day {number}?" for number in range(12)]

SYSTEM = (
    "You are the keeper of a lighthouse, and you never leave your island.\n\n"
    "- Answer in short sentences; be friendly.\n"
    "- Mention the sea, the lamp, or the weather (whatever fits).\n"
    "- Don't promise a visit. Never!\n\n"
    'Say "Ahoy, friend!" first. Speak of 灯台守です。 as often as you like, and end with a wish 🌊.'
)
EXAMPLES = [
    {"role": "system", "content": SYSTEM},
    {"role": "user", "content": "Who are you, and what is that light over there?"},
    {"role": "assistant", "content": "Ahoy, friend! I keep the lamp. It warns the ships."},
    {"role": "user", "content": "Will you come to the harvest festival?"},
    {"role": "assistant", "content": "Ahoy, friend! I stay on my island, but I shall light the lamp for you."},
]
PROMPTS = {"system": SYSTEM, "examples": EXAMPLES, "examples only": EXAMPLES[1:]}


@pytest.fixture
def job(tiny_model, tiny_tokenizer, tmp_path, monkeypatch):
    """A job for a random model whose answers depend on the prompt."""
    monkeypatch.setenv("PEFT_BE_CACHE", str(tmp_path / "cache"))
    for parameter in tiny_model.parameters():
        parameter.data.mul_(3)
    splits = split_queries(QUERIES, ["Who are you?", "Is it cold?"])
    return Job(tiny_model, tiny_tokenizer, PROMPT, splits, tmp_path / "work", seed=1, max_steps=4, max_answer_length=5)


@pytest.fixture
def make_job(tiny_model, tiny_tokenizer, tmp_path):
    """Makes a job on the random model, or on another, with a prompt that has something to prune."""

    def make(prompt=SYSTEM, model=tiny_model, **changes) -> Job:
        queries = [f"What did you see on day {i}?" for i in range(10)]
        splits = QuerySplits(train=queries[:8], validation=queries[8:], test=[], num_duplicates=0)
        return Job(model, tiny_tokenizer, prompt, splits, tmp_path / "job", **changes)

    return make


@pytest.fixture
def results():
    """Results of a comparison, for its report."""
    return comparison_results()
