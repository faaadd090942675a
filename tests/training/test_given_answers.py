"""Answers that are given instead of the teacher's own."""

import torch
from datasets import Dataset

from peft_be import BEDistillConfig, BEDistillTrainer

from ..stages import FAST, PROMPT, QUERIES, peft_model


def rows_with_states(model, tokenizer, folder, answers):
    """The teacher's hidden states, by the ids of [BE], query and answer."""
    queries = Dataset.from_dict({"query": QUERIES, "answer": answers})
    args = BEDistillConfig(str(folder), **FAST, kd_weight=1.0)
    trainer = BEDistillTrainer(model, args, PROMPT, queries, queries.select([0]), processing_class=tokenizer)
    states = {tuple(row["input_ids"]): trainer.data_collator([row])["teacher_hidden"] for row in trainer.train_dataset}
    return trainer, states


def test_given_answers_stand_beside_the_teachers(tiny_model, tiny_tokenizer, tmp_path):
    model = peft_model(tiny_model)
    trainer, expected = rows_with_states(model, tiny_tokenizer, tmp_path / "teacher", [None] * len(QUERIES))
    prompts = [trainer.renderers["default"].be(query) for query in QUERIES]
    written = [next(list(ids[len(p) :]) for ids in expected if list(ids[: len(p)]) == p) for p in prompts]
    # Some of its own answers given back to the teacher, as ids: the same rows, with the same states
    given = [answer if i % 2 else None for i, answer in enumerate(written)]
    _, states = rows_with_states(model, tiny_tokenizer, tmp_path / "given", given)
    assert states.keys() == expected.keys()
    for ids, hidden in expected.items():
        torch.testing.assert_close(states[ids], hidden, rtol=1e-4, atol=1e-5)
