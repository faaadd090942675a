"""Settings that cannot be: refused in a sentence, before anything is loaded or written."""

import json
import math
import time
from pathlib import Path

import pytest
import torch

from peft_be import (
    AEConfig,
    BEDistillConfig,
    PromptJob,
    compress_prompt,
    compress_prompts,
    evaluate_fidelity,
    pretrain_ae,
)
from peft_be.comparison.compare import compare_methods
from peft_be.teacher import AnswerSettings

from ..stages import FAST, PROMPT, QUERIES, trainer


NAN, INF = math.nan, math.inf
# By field, what it must not be
BAD = {
    "max_steps": [0, -2, 1.5, "100", True, NAN],
    "learning_rate": [0, 0.0, -1, NAN, INF, "0.1", True],
    "warmup_steps": [-1, NAN, INF],
    "per_device_train_batch_size": [0, -1, 2.5, True],
    "per_device_eval_batch_size": [0, "16"],
    "gradient_accumulation_steps": [0, -1, 1.5],
    "weight_decay": [-0.1, NAN],
    "max_grad_norm": [-1.0, NAN],
    "eval_steps": [0, -5, NAN],
    "save_steps": [0, -1],
    "logging_steps": [0, NAN],
    "save_total_limit": [0],
    "seed": [-1, 2**32, 1.0, "42"],
    "adam_beta1": [1.0, -0.1, NAN],
    "adam_epsilon": [0.0, NAN],
    "bf16": ["yes", 1],
    "lr_scheduler_type": ["cosin"],
    "gradient_checkpointing": ["False"],
}
BAD_DISTILLATION = {
    "kd_weight": [-0.1, 1.1, NAN, "1", True],
    "temperature": [0, -1.0, NAN, INF],
    "beta": [-0.1, 1.5, NAN],
    "scale_by_temperature_squared": [1, "no"],
    "reconstruction_interval": [0, 1.5],
    "use_ae_token": ["False", 0],
    "hard_labels": [None],
    "max_kd_tokens": [0, 2.0],
    "max_answer_length": [0, -5, 6.0],
    "num_answers": [0, 2],  # 2 without sampling
    "answer_temperature": [-1.0, NAN, INF],
    "answer_top_p": [0.0, 1.01, NAN],
    "answer_batch_size": [0],
    "init": ["word", "text"],  # a text that is missing
    "init_text": ["You are"],  # a text that `init` does not read
    "init_scale": [0.0, -1.0, NAN, INF],
    "optim": ["sgdd", 3],
}


def cases(*tables):
    return [(name, value) for table in tables for name, values in table.items() for value in values]


@pytest.mark.parametrize("name, value", cases(BAD, BAD_DISTILLATION))
def test_distillation(tmp_path, name, value):
    with pytest.raises(ValueError, match=name if name != "lr_scheduler_type" else value):
        BEDistillConfig(str(tmp_path), **{name: value})
    # The same in a job, without any model, and none of it stays
    with pytest.raises(ValueError):
        compress_prompt(PROMPT, QUERIES, tmp_path / "out", model="/no/such/folder", **_job(name, value))
    with pytest.raises(ValueError):
        compress_prompts(
            [PromptJob("a", PROMPT, QUERIES)], tmp_path / "out", model="/no/such/folder", **_job(name, value)
        )
    assert not (tmp_path / "out").exists()


def _job(name, value):
    return {name: value}


@pytest.mark.parametrize("name, value", cases(BAD, {"min_passage_length": [0], "max_passage_length": [0, 1.5]}))
def test_the_ae_row(tmp_path, name, value):
    with pytest.raises(ValueError, match=name if name != "lr_scheduler_type" else value):
        AEConfig(str(tmp_path), **{name: value})
    with pytest.raises(ValueError):
        pretrain_ae(["a", "b"], tmp_path / "out", model="/no/such/folder", **{name: value})
    assert not (tmp_path / "out").exists()


def test_what_is_allowed(tmp_path):
    config = BEDistillConfig(
        str(tmp_path), max_steps=-1, warmup_steps=0.1, eval_steps=0.5, max_grad_norm=0, learning_rate=1, weight_decay=0,
        save_total_limit=None, init=None, max_kd_tokens=1, report_to=["none"], tf32=None,
        answer_cache_dir=tmp_path,
    )  # fmt: skip
    assert config.learning_rate == 1


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"num_be_tokens": 0}, "num_be_tokens must be at least 1"),
        ({"num_be_tokens": 65_537}, "num_be_tokens must be at least 1 and at most 65536"),
        ({"num_be_tokens": 1.0}, "num_be_tokens must be a whole number"),
        ({"slot": "suffix"}, "slot must be one of system, prefix"),
        ({"max_minutes": 0}, "max_minutes must be above 0"),
        ({"max_minutes": -3}, "max_minutes must be above 0"),
        ({"max_minutes": NAN}, "max_minutes must be a finite"),
        ({"max_minutes": INF}, "max_minutes must be a finite"),
        ({"reconstruction_steps": 1.5}, "reconstruction_steps must be a whole"),
        ({"learning_rat": 0.1}, "no setting 'learning_rat': did you mean 'learning_rate'"),
        ({"batchsize": 2}, "no setting 'batchsize'"),
        ({"quux": 2}, "no setting 'quux': see the fields of CompressConfig"),
    ],
)
def test_arguments_of_a_job(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        compress_prompt(PROMPT, QUERIES, tmp_path / "out", model="/no/such/folder", **changes)
    own = {"max_minutes", "reconstruction_steps"}
    if not own & changes.keys():
        with pytest.raises(ValueError, match=words):
            compress_prompts([PromptJob("a", PROMPT, QUERIES)], tmp_path / "out", model="/no/such/folder", **changes)
    assert not (tmp_path / "out").exists()


def test_group_sizes_and_passages(tmp_path):
    for size in (0, 1.5, True):
        with pytest.raises(ValueError, match="group_size"):
            compress_prompts([PromptJob("a", PROMPT, QUERIES)], tmp_path / "out", group_size=size)
    with pytest.raises(ValueError, match="num_validation must be at least 1"):
        pretrain_ae(["a", "b"], tmp_path / "out", num_validation=0)
    with pytest.raises(ValueError, match="did you mean 'max_passage_length'"):
        pretrain_ae(["a", "b"], tmp_path / "out", max_passage_len=3)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["max_steps", "max_minutes", "max_answer_length"])
def test_comparisons(tmp_path, name):
    for value in (0, -1, NAN, "3"):
        with pytest.raises(ValueError, match=name):
            compare_methods(PROMPT, QUERIES, tmp_path / "out", [], model="/no/such/folder", **{name: value})
    with pytest.raises(ValueError, match="seed must be a whole number"):
        compare_methods(PROMPT, QUERIES, tmp_path / "out", [], model="/no/such/folder", seeds=(1.5,))
    assert not (tmp_path / "out").exists()


def test_answers():
    for changes in ({"max_new_tokens": 0}, {"batch_size": 0}, {"temperature": NAN}, {"top_p": 0.0}):
        with pytest.raises(ValueError, match=next(iter(changes))):
            AnswerSettings(**changes)


def test_more_rows_than_the_context_holds(tiny_model, tiny_tokenizer, tmp_path):
    args = {"model": tiny_model, "tokenizer": tiny_tokenizer, "num_be_tokens": 513}
    with pytest.raises(ValueError, match="num_be_tokens=513 .* context is 512"):
        compress_prompt(PROMPT, QUERIES, tmp_path / "out", **args)
    assert not (tmp_path / "out").exists()


# Weights that are no numbers


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize(
    "where", ["model.layers.1.mlp.down_proj.weight", "model.embed_tokens.weight", "model.norm.weight"]
)
@pytest.mark.parametrize(
    "start", [{}, {"init_scale": 1.0}]
)  # where nothing is measured for the start, the teacher finds it
def test_broken_weights_are_found_before_the_first_step(tiny_model, tiny_tokenizer, tmp_path, where, value, start):
    tiny_model.get_parameter(where).data.fill_(value)
    with pytest.raises(FloatingPointError, match="damaged"):
        trainer(tiny_model, tiny_tokenizer, tmp_path, kd_weight=1.0, **start)
    assert not list(tmp_path.rglob("*.safetensors"))  # answers that nobody could learn from


def test_broken_rows(tiny_model, tiny_tokenizer, tmp_path):
    from peft_be.adapters.create import add_adapter

    model = add_adapter(tiny_model, tiny_tokenizer)
    for value in (NAN, INF, 0.0):
        model.base_model.set_rows("default", torch.full((1, 32), value))
        with pytest.raises(FloatingPointError, match="start rows"):
            trainer(model, tiny_tokenizer, tmp_path, kd_weight=1.0, init=None)


# Time


def test_a_budget_that_ends_before_the_first_step(tiny_model, tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("PEFT_BE_CACHE", str(tmp_path / "cache"))
    args = {"model": tiny_model, "tokenizer": tiny_tokenizer, **FAST, "answer_batch_size": 2, "max_steps": 50}

    def run(name, minutes, on_progress=None):
        result = compress_prompt(
            PROMPT, QUERIES, tmp_path / name, max_minutes=minutes, on_progress=on_progress, **args
        )
        result.model.unload()
        return result.report

    done = []

    def slowly(what, count, total, values):
        if what.startswith("teacher"):
            done.append((what, count))
            time.sleep(0.5)

    with pytest.raises(ValueError, match="max_minutes=0.005 is over before the first step.*cache.*more minutes"):
        run("short", 0.005, slowly)
    # It ended in the middle of the teacher's work, which is kept
    assert done == [("teacher, train queries", 2)]
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 1
    assert not (tmp_path / "short").exists()
    assert run("short", 1)["steps"] >= 1
    assert json.loads((tmp_path / "short" / "training.json").read_text())["settings"]["max_minutes"] == 1


def test_the_time_may_end_with_the_teacher(tiny_model, tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("PEFT_BE_CACHE", str(tmp_path / "cache"))

    def slow_end(what, count, total, values):
        if what == "teacher, validation queries" and count == total:
            time.sleep(2)

    args = {"model": tiny_model, "tokenizer": tiny_tokenizer, **FAST, "on_progress": slow_end}
    with pytest.raises(ValueError, match="before the first step"):
        compress_prompt(PROMPT, QUERIES, tmp_path / "out", max_minutes=0.03, **args)


def test_evaluations_of_nothing(tiny_model, tiny_tokenizer):
    from peft_be.adapters.create import add_adapter

    model = add_adapter(tiny_model, tiny_tokenizer)
    for changes in ({"max_answer_length": 0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            evaluate_fidelity(model, tiny_tokenizer, PROMPT, QUERIES[:1], **changes)


@pytest.mark.parametrize(
    "setting",
    [{"report_to": []}, {"report_to": ["none"]}, {"resume_from_checkpoint": True}, {"run_name": Path("a")}],
    ids=str,
)
def test_what_transformers_takes_besides_texts_is_taken(tmp_path, setting):
    BEDistillConfig(output_dir=tmp_path, **setting)  # a path, too
