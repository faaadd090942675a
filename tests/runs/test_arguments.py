"""What the jobs are handed in Python: paths do as names, and what is neither ends in a sentence before anything is loaded."""

from pathlib import Path

import pytest

from peft_be import BEDistillConfig, compress_prompt, load_adapters, pretrain_ae

from ..tiny import save_tiny_llama


PROMPT = "You are a lighthouse keeper. You answer in short sentences."
QUERIES = ["Who are you?", "What do you see?", "Is it cold?"]
FAST = {"max_steps": 1, "max_answer_length": 4}


def test_a_model_may_be_a_path(tmp_path, tiny_tokenizer):
    folder = Path(save_tiny_llama(tmp_path / "tiny", tiny_tokenizer))
    result = compress_prompt(PROMPT, QUERIES, tmp_path / "out", model=folder, **FAST)
    assert result.report["model"] == str(folder)


@pytest.mark.parametrize("model", [None, 5, ["smollm2"]])
def test_what_is_no_model(tmp_path, model):
    with pytest.raises(ValueError, match="model must be smollm2, a folder, a Hub id or a loaded causal LM"):
        compress_prompt(PROMPT, QUERIES, tmp_path / "out", model=model)
    with pytest.raises(ValueError, match="model must be"):
        pretrain_ae(QUERIES, tmp_path / "out", model=model)
    assert not (tmp_path / "out").exists()


def test_what_is_no_tokenizer(tmp_path, tiny_model):
    with pytest.raises(ValueError, match="tokenizer must be a PreTrainedTokenizerBase, and is of type str"):
        compress_prompt(PROMPT, QUERIES, tmp_path / "out", model=tiny_model, tokenizer="smollm2")


def test_prompts_are_no_paths(tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text(PROMPT)
    for prompt in (path, str(path)):
        with pytest.raises(ValueError, match="read it with peft_be.load_prompt"):
            compress_prompt(prompt, QUERIES, tmp_path / "out", model="/no/such/folder")
    for prompt in (None, " ", {"a": PROMPT}):
        with pytest.raises(ValueError, match="The prompt "):
            compress_prompt(prompt, QUERIES, tmp_path / "out", model="/no/such/folder")


@pytest.mark.parametrize("texts", ["a text", [1, 2], [None]])
def test_what_is_no_corpus(tmp_path, texts):
    with pytest.raises(ValueError, match="The corpus is a list of texts"):
        pretrain_ae(texts, tmp_path / "out", model="/no/such/folder")


@pytest.mark.parametrize("directories", [{}, ["adapter"], "adapter"])
def test_adapters_without_names(directories):
    with pytest.raises(ValueError, match="Adapters are loaded by name"):
        load_adapters(directories)


def test_how_the_best_rows_are_chosen():
    assert BEDistillConfig("be", metric_for_best_model="kl").metric_for_best_model == "kl"
    for args in ({"metric_for_best_model": "gap_closed"}, {"metric_for_best_model": "kl", "kd_weight": 0.0}):
        with pytest.raises(ValueError, match="metric_for_best_model must be one of"):
            BEDistillConfig("be", **args)
    with pytest.raises(ValueError, match="would keep the worst rows"):
        BEDistillConfig("be", greater_is_better=True)
