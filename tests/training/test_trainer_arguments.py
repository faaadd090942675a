"""What the trainers are handed: other types end in a sentence, and an error leaves the base model as it was."""

import math

import pytest
from datasets import Dataset, DatasetDict
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer

from peft_be import AEConfig, AETrainer, BEDistillConfig, BEDistillTrainer, BETokenConfig, ManyPromptsTrainer
from peft_be.data import query_dataset


PROMPT = "You are a lighthouse keeper. You answer in short sentences."
QUERIES = ["Who are you?", "What do you see?", "Is it cold?"]


@pytest.fixture
def make(tiny_model, tiny_tokenizer, tmp_path):
    def make(trainer=BEDistillTrainer, **changes):
        args = BEDistillConfig(str(tmp_path), max_answer_length=4)
        given = {"prompt": PROMPT, "train_dataset": QUERIES, "eval_dataset": ["Why?"]}
        return trainer(tiny_model, **{"args": args, **given, "processing_class": tiny_tokenizer, **changes})

    return make


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"args": {"max_steps": 3}}, "args must be a BEDistillConfig, and is of type dict"),
        ({"args": AEConfig("ae")}, "args must be a BEDistillConfig, and is of type AEConfig"),
        ({"peft_config": LoraConfig(task_type="CAUSAL_LM")}, "peft_config must be a BETokenConfig.* LoraConfig"),
        ({"peft_config": {"num_be_tokens": 2}}, "peft_config must be a BETokenConfig.* dict"),
        ({"peft_config": BETokenConfig(num_be_tokens=0, use_ae_token=True)}, r"holds an \[AE\] row only"),
        ({"processing_class": "smollm2"}, "processing_class must be the model's tokenizer.* str"),
        ({"prompt": " "}, "The prompt is empty"),
        ({"prompt": "sea " * 600}, "does not fit"),
        ({"train_dataset": [{"query": "a", "answer": 5}]}, "answer in row 1 of the queries is 5"),
    ],
)
def test_an_error_leaves_the_base_model_as_it_was(make, tiny_model, changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)
    assert not any(isinstance(module, BaseTunerLayer) for module in tiny_model.modules())
    make()


@pytest.mark.parametrize(
    "dataset, message",
    [
        (["a text"], "Dataset with a column 'text'.* of type list"),
        (DatasetDict(train=Dataset.from_dict({"text": ["a"]})), "of type DatasetDict"),
        (Dataset.from_dict({"passage": ["a"]}), "Row 1 of train_dataset has no text"),
        (Dataset.from_dict({"text": ["a", None]}), "Row 2 of train_dataset has no text"),
        (Dataset.from_dict({"text": ["too short"]}), "No text of the corpus has 64 tokens"),
    ],
)
def test_passages(tiny_model, tiny_tokenizer, tmp_path, dataset, message):
    with pytest.raises(ValueError, match=message):
        AETrainer(tiny_model, AEConfig(str(tmp_path)), dataset, processing_class=tiny_tokenizer)
    assert not any(isinstance(module, BaseTunerLayer) for module in tiny_model.modules())


@pytest.mark.parametrize("answer", [5, True, 0.5, [], ["a"], [1.5], [True], {"text": "a"}])
def test_answers_that_are_none(answer):
    with pytest.raises(ValueError, match="The answer in row 2 of the queries is .* token ids"):
        query_dataset([{"query": "a", "answer": None}, {"query": "b", "answer": answer}])


def test_missing_answers():
    rows = [{"query": "a", "answer": math.nan}, {"query": "b", "answer": "c"}]
    assert query_dataset(rows)["answer"][:] == [None, "c"]
    assert query_dataset([{"question": "a", "answer": "c"}, "b"])["answer"][:] == ["c", None]
    with pytest.raises(ValueError, match="row 2 .* the same in all rows"):
        query_dataset([{"query": "a", "answer": "c"}, {"query": "b", "answer": [1]}])


@pytest.mark.parametrize(
    "names, message",
    [
        (None, "train queries of several prompts need a column prompt_name"),
        (["a", "b", "c"], "Row 3 of the train queries has the prompt_name 'c', and the prompts are a, b"),
        (["a", "b", None], "prompt_name None"),
        (["a", "a", "a"], "train queries of prompt 'b', and there are none"),
    ],
)
def test_queries_of_no_prompt(make, names, message):
    train = Dataset.from_dict({"query": QUERIES, **({"prompt_name": names} if names else {})})
    held_out = Dataset.from_dict({"query": ["Why?", "How?"], "prompt_name": ["a", "b"]})
    config = BETokenConfig(task_type="CAUSAL_LM", num_be_tokens=2)
    queries = {"train_dataset": train, "eval_dataset": held_out}
    with pytest.raises(ValueError, match=message):
        make(ManyPromptsTrainer, prompt={"a": PROMPT, "b": PROMPT}, peft_config=config, **queries)


def test_validation_queries_that_are_trained_on(make):
    with pytest.warns(UserWarning, match="1 of the 2 validation queries are trained on, too"):
        make(eval_dataset=["Why?", [{"role": "user", "content": "who are you? "}]])
