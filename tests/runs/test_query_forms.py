"""Whatever takes queries in Python takes them in every form."""

import json

import pytest
from datasets import Dataset

from peft_be import (
    BEDistillConfig,
    BEDistillTrainer,
    BenchConfig,
    PromptJob,
    bench_inference,
    compress_prompt,
    compress_prompts,
    evaluate_fidelity,
)
from peft_be.comparison.compare import compare_methods

from ..tiny import save_tiny_llama


PROMPT = "You are a lighthouse keeper. You answer in short sentences, and you never leave the island."
QUERIES = [f"What did you see on day {i}?" for i in range(8)]
ROWS = [{"instruction": "What did you see", "input": query} for query in QUERIES]
SHORT = {"max_steps": 2, "max_answer_length": 4}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFT_BE_CACHE", str(tmp_path / "cache"))


def seen(folder):
    return json.loads((folder / "training.json").read_text())["seen_queries"]


def test_compressions(tmp_path, tiny_model, tiny_tokenizer):
    common = {"model": tiny_model, "tokenizer": tiny_tokenizer, **SHORT}
    texts = [f"What did you see\n\n{query}" for query in QUERIES]
    compress_prompt(PROMPT, texts, tmp_path / "list", **common).model.unload()
    generator = (dict(row) for row in ROWS)
    result = compress_prompt(PROMPT, generator, tmp_path / "generator", test_queries=iter(["Who?"]), **common)
    assert seen(tmp_path / "generator") == seen(tmp_path / "list") and len(seen(tmp_path / "list")) == 8

    as_dataset = Dataset.from_list(ROWS)
    scores, samples = evaluate_fidelity(result.model, tiny_tokenizer, PROMPT, as_dataset, max_answer_length=2)
    assert scores["num_queries"] == 8 and [sample["query"] for sample in samples] == texts
    timing = BenchConfig(batch_sizes=(1,), new_tokens=1, repeats=2)
    figures = bench_inference(result.model, tiny_tokenizer, PROMPT, iter(ROWS), timing)
    assert figures == {**figures, "new_tokens": 1}
    with pytest.raises(ValueError, match="no queries to measure with"):
        bench_inference(result.model, tiny_tokenizer, PROMPT, [], timing)
    result.model.unload()

    jobs = [
        PromptJob("one", PROMPT, (row for row in ROWS)),
        PromptJob("two", PROMPT, as_dataset, ({"query": "Who?"},)),
    ]
    compress_prompts(jobs, tmp_path / "many", **common)
    assert seen(tmp_path / "many" / "one") == seen(tmp_path / "many" / "two") == seen(tmp_path / "list")


def test_comparisons(tmp_path, tiny_tokenizer):
    folder = save_tiny_llama(tmp_path / "tiny", tiny_tokenizer)
    rows = Dataset.from_list([{"question": query} for query in QUERIES])
    results = compare_methods(PROMPT, rows, tmp_path / "out", ["truncation:4"], model=folder, max_answer_length=2)
    assert results["num_queries"] == {"train": 5, "validation": 1, "test": 2}
    assert set(results["queries"]) < set(QUERIES)


@pytest.mark.parametrize("form", [list, iter, Dataset.from_list])
def test_trainers(tmp_path, tiny_model, tiny_tokenizer, form):
    args = BEDistillConfig(str(tmp_path / "out"), kd_weight=1.0, **SHORT)
    trainer = BEDistillTrainer(tiny_model, args, PROMPT, form(ROWS), form(ROWS[:2]), tiny_tokenizer)
    asked = [tiny_tokenizer.decode(row["input_ids"]) for row in trainer.train_dataset]
    assert len(asked) == 8 and all(
        f"What did you see\n\n{query}" in text for query, text in zip(QUERIES, sorted(asked))
    )


def test_what_is_no_query_is_named_by_its_row(tmp_path, tiny_model, tiny_tokenizer):
    common = {"model": tiny_model, "tokenizer": tiny_tokenizer, **SHORT}
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    for wrong, message in (
        ([*QUERIES, system], "row 9 of the queries starts with a system message"),
        ([*ROWS, {"prompt": PROMPT, "question": "Hi"}], "Row 9 of the queries has several fields"),
        ("queries.txt", "load_queries"),
        ({"query": QUERIES}, "not an object"),
    ):
        with pytest.raises(ValueError, match=message):
            compress_prompt(PROMPT, wrong, tmp_path / "out", **common)
        with pytest.raises(ValueError, match=message):
            compress_prompt(PROMPT, QUERIES, tmp_path / "out", test_queries=wrong, **common)
        with pytest.raises(ValueError, match=message):
            PromptJob("one", PROMPT, wrong)
        with pytest.raises(ValueError, match=message):
            compare_methods(PROMPT, wrong, tmp_path / "out", ["truncation:4"], model="nowhere")
        args = BEDistillConfig(str(tmp_path / "trainer"), kd_weight=1.0, **SHORT)
        with pytest.raises(ValueError, match=message):
            BEDistillTrainer(tiny_model, args, PROMPT, wrong, QUERIES, tiny_tokenizer)
    assert not (tmp_path / "out").exists()
