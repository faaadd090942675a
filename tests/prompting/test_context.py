"""The longest input of a model, by its configuration alone, and what does not fit into it."""

import pytest
from transformers import GPT2Config, LlamaConfig, MistralConfig, PretrainedConfig

from peft_be.prompting.context import check_prompts, context_length, fit_dialogue


class Model:
    """What of a model these functions read."""

    def __init__(self, config: PretrainedConfig):
        self.config = config


def llama(scaling: dict | None = None) -> Model:
    return Model(LlamaConfig(max_position_embeddings=512, rope_scaling=scaling))


LLAMA_3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    "scaling, longest",
    [
        (None, 512),
        ({"rope_type": "linear", "factor": 2.0}, 1024),
        ({"rope_type": "dynamic", "factor": 4.0}, 2048),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}, 2048),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}, 512),
        # Llama 3.2 names a longer product, but was trained to max_position_embeddings
        (LLAMA_3 | {"factor": 32.0, "original_max_position_embeddings": 128}, 512),
    ],
)
def test_rope_scaling(scaling, longest):
    assert context_length(llama(scaling)) == longest


def test_other_positions():
    assert context_length(Model(GPT2Config(n_positions=256))) == 256
    assert context_length(Model(MistralConfig(max_position_embeddings=64, sliding_window=8))) == 64
    # ALiBi and recurrent models
    assert context_length(Model(PretrainedConfig())) is None
    assert context_length(Model(PretrainedConfig(max_position_embeddings=-1))) is None
    assert context_length(Model(PretrainedConfig(max_position_embeddings=1))) == 1


def test_the_longest_prompt_is_named():
    prompts, queries = [[5] * 500, [5] * 508], ["Short?", [{"role": "user", "content": "Is it the longer one?"}]]
    check_prompts(llama(), [], 600)
    check_prompts(llama(), prompts)
    check_prompts(llama(), prompts, 4, queries)
    check_prompts(llama(), prompts, [12, 4])
    with pytest.raises(
        ValueError, match="with the longest query it is 513 tokens long, and the model's context is 512"
    ):
        check_prompts(llama(), [[5] * 513])
    with pytest.raises(
        ValueError, match=r"with the longest query \('Is it the longer one\?'\) and its answer it is 513"
    ):
        check_prompts(llama(), prompts, 5, queries)
    with pytest.raises(ValueError, match=r"with the longest query \('Short\?'\) and its answer it is 513"):
        check_prompts(llama(), prompts, [13, 0], queries)


def test_the_oldest_turns_of_a_dialogue_go_first():
    def render(dialogue: list[dict]) -> list[int]:
        return [5] * sum(len(message["content"]) for message in dialogue)

    def dialogue(*lengths: int) -> list[dict]:
        roles = ("user", "assistant")
        return [{"role": roles[i % 2], "content": "a" * length} for i, length in enumerate(lengths)]

    turns = dialogue(100, 100, 100, 100, 100)
    assert fit_dialogue(llama(), render, turns, 12) == ([5] * 500, 0)
    assert fit_dialogue(llama(), render, turns, 13) == ([5] * 300, 1)
    assert [len(message["content"]) for message in turns] == [100, 100, 100]
    assert fit_dialogue(llama(), render, dialogue(100, 100, 300, 100, 100), 350) == ([5] * 100, 2)
    assert fit_dialogue(Model(PretrainedConfig()), render, dialogue(999), 999) == ([5] * 999, 0)
    with pytest.raises(ValueError, match="the question and an answer of 13 tokens it is 513 tokens long"):
        fit_dialogue(llama(), render, dialogue(100, 100, 500), 13)
