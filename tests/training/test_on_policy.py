"""Training on answers that the student wrote: what is read, and what a run with such rounds reports."""

import pytest
import torch
from datasets import Dataset

from peft_be import BEDistillConfig, BEDistillTrainer, compress_prompt

from .test_stages import FAST, PROMPT, QUERIES, peft_model


def rows_with_states(model, tokenizer, folder, answers):
    """The teacher's hidden states, by the ids of [BE], query and answer."""
    queries = Dataset.from_dict({"query": QUERIES, "answer": answers})
    args = BEDistillConfig(str(folder), **FAST, kd_weight=1.0)
    trainer = BEDistillTrainer(model, args, PROMPT, queries, queries.select([0]), processing_class=tokenizer)
    states = {tuple(row["input_ids"]): trainer._collate([row])["teacher_hidden"] for row in trainer.train_dataset}
    return trainer, states


def test_given_answers_stand_beside_the_teachers(tiny_model, smollm2_tokenizer, tmp_path):
    model = peft_model(tiny_model)
    trainer, expected = rows_with_states(model, smollm2_tokenizer, tmp_path / "teacher", [None] * len(QUERIES))
    prompts = [trainer.renderers["default"].be(query) for query in QUERIES]
    written = [next(list(ids[len(p) :]) for ids in expected if list(ids[: len(p)]) == p) for p in prompts]
    # Some of its own answers given back to the teacher, as ids: the same rows, with the same states
    given = [answer if i % 2 else None for i, answer in enumerate(written)]
    _, states = rows_with_states(model, smollm2_tokenizer, tmp_path / "given", given)
    assert states.keys() == expected.keys()
    for ids, hidden in expected.items():
        torch.testing.assert_close(states[ids], hidden, rtol=1e-4, atol=1e-5)


def test_the_student_answers_behind_its_own_rows(tiny_model, smollm2_tokenizer, tmp_path):
    model = peft_model(tiny_model)
    trainer, _ = rows_with_states(model, smollm2_tokenizer, tmp_path, [None] * len(QUERIES))
    ids = torch.tensor([trainer.renderers["default"].be(QUERIES[0])])
    states = []
    for scale in (1.0, 30.0):
        model.base_model.set_rows("default", scale * torch.linspace(-1, 1, 32)[None])
        first = trainer.student_answers(QUERIES)[0]
        written = model.generate(input_ids=ids, max_new_tokens=FAST["max_answer_length"], do_sample=False)
        assert first.ids == written[0, ids.shape[1] :].tolist()
        states.append(first.hidden)
    assert not torch.allclose(*states, atol=1e-3)


def test_rounds_are_a_part_of_the_run(tiny_model, smollm2_tokenizer, tmp_path):
    queries = [f"{query} And on day {i}?" for i in range(4) for query in QUERIES]
    settings = {"max_steps": 8, "eval_steps": 2, "save_steps": 2, "logging_steps": 1, "max_answer_length": 6}
    result = compress_prompt(
        PROMPT, queries, tmp_path, model=tiny_model, tokenizer=smollm2_tokenizer, on_policy_rounds=2, **settings
    )
    report, log = result.report, result.report["log"]
    assert report["steps"] == 16 and report["settings"]["max_steps"] == 8
    assert [entry["step"] for entry in log if "eval_kl" in entry] == [2, 4, 6, 8, 10, 12, 14, 16]
    assert list(dict.fromkeys(entry["stage"] for entry in log)) == [
        "stage 2",
        "stage 2, on-policy round 1",
        "stage 2, on-policy round 2",
    ]
    # The rows are the best of the last round: earlier validations read fewer answers
    last = [entry for entry in log if "eval_kl" in entry and entry["step"] > 12]
    best = min(last, key=lambda entry: entry["eval_kl"])
    assert {name: report["best"][name] for name in ("kl", "step")} == {"kl": best["eval_kl"], "step": best["step"]}
    provenance = result.model.peft_config["default"].provenance
    assert provenance["stages"] == ["stage 2", "on-policy rounds"]
    assert provenance["training"]["steps"] == 16 and provenance["training"]["train_queries"] == 18


@pytest.mark.parametrize("settings", [{"on_policy_rounds": -1}, {"on_policy_rounds": 1, "kd_weight": 0.0}])
def test_rounds_that_cannot_be(tmp_path, settings):
    with pytest.raises(ValueError, match="on_policy_rounds"):
        compress_prompt(PROMPT, QUERIES, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()
