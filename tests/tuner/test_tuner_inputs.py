"""What plain PEFT and transformers do with a model that holds adapters: warned of, or refused, before it goes wrong."""

import copy
import pickle
import warnings

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, GenerationConfig

from peft_be.tuner import BETokenConfig
from peft_be.tuner.inputs import any_input

from .tuner_helpers import VOCAB_SIZE, make_model


PLAIN, WITH_BE = [1, 9, 12, 13, 14], [1, 9, 7, 13, 14]
WARNING = "none of the token ids"


def adapted(be_token_ids=(7,), **kwargs):
    torch.manual_seed(1)
    config = BETokenConfig(task_type="CAUSAL_LM", be_token_ids=list(be_token_ids), **kwargs)
    return get_peft_model(make_model("llama"), config).eval()


@pytest.fixture
def saved(tmp_path):
    make_model("llama").save_pretrained(tmp_path / "base")
    model = adapted()
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path


def load_with_peft(path):
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(path / "base"), path / "adapter")


def load_with_transformers(path):
    model = AutoModelForCausalLM.from_pretrained(path / "base")
    model.load_adapter(str(path / "adapter"))
    return model


def generate(model, *rows, **kwargs):
    ids = torch.tensor(rows)
    kwargs = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 4, "do_sample": False, **kwargs}
    return model.generate(input_ids=ids, **kwargs)


def forward(model, *rows, **kwargs):
    return model(input_ids=torch.tensor(rows), **kwargs)


def our_warnings(function, *args, **kwargs):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function(*args, **kwargs)
    return [str(warning.message) for warning in caught if WARNING in str(warning.message)]


# An adapter that is not asked for


@pytest.mark.parametrize("use", [generate, forward])
@pytest.mark.parametrize("load", [load_with_peft, load_with_transformers])
def test_inputs_without_be_warn_once(saved, load, use):
    model = load(saved)
    assert our_warnings(use, model, WITH_BE) == []
    (message,) = our_warnings(use, model, PLAIN)
    assert "[7]" in message and "'default'" in message and "apply_chat_template" in message
    assert our_warnings(use, model, PLAIN) == []


def test_a_training_without_be_in_its_texts_warns():
    model = adapted().train()
    assert our_warnings(forward, model, PLAIN, labels=torch.tensor([PLAIN]))


def test_a_row_of_the_batch_without_be_warns():
    assert our_warnings(generate, adapted(), WITH_BE, PLAIN)


def test_what_needs_no_be_does_not_warn():
    model = adapted()
    output = generate(model, WITH_BE)  # its decoding steps have no [BE]
    assert our_warnings(generate, model, WITH_BE, use_cache=False) == []
    assert our_warnings(generate, model, WITH_BE, prompt_lookup_num_tokens=2) == []
    cache = model(input_ids=torch.tensor([WITH_BE]), use_cache=True).past_key_values
    assert our_warnings(forward, model, PLAIN, past_key_values=cache) == []
    with model.disable_adapter():
        assert our_warnings(generate, model, PLAIN) == []
    with any_input(model):
        assert our_warnings(generate, model, PLAIN) == []
    embeds = make_model("llama").get_input_embeddings()(output)
    assert our_warnings(lambda: model(inputs_embeds=embeds)) == []
    assert len(our_warnings(generate, model, PLAIN)) == 1  # outside of `any_input` it does again
    assert our_warnings(generate, model.unload(), PLAIN) == []


def test_each_row_is_to_use_the_adapter_named_for_it():
    model = adapted()
    model.add_adapter("other", BETokenConfig(task_type="CAUSAL_LM"))
    of_other = [1, 9, *model.peft_config["other"].be_token_ids, 13, 14]
    names = ["default", "__base__", "other"]
    kwargs = {"num_beams": 2, "num_return_sequences": 2}
    assert our_warnings(generate, model, WITH_BE, PLAIN, of_other, adapter_names=names, **kwargs) == []
    (message,) = our_warnings(generate, model, WITH_BE, PLAIN, PLAIN, adapter_names=names, **kwargs)
    assert "'other'" in message


def test_a_compiled_model_is_not_checked():
    model = adapted()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert our_warnings(lambda: compiled(input_ids=torch.tensor([PLAIN]))) == []


def test_the_base_model_is_left_as_it_was():
    base = make_model("llama")
    before = set(vars(base)), len(base._forward_pre_hooks)
    model = get_peft_model(base, BETokenConfig(task_type="CAUSAL_LM", be_token_ids=[7]))
    model.unload()
    assert "generate" not in vars(base) and len(base._forward_pre_hooks) == before[1]
    model = get_peft_model(base, BETokenConfig(task_type="CAUSAL_LM", be_token_ids=[7]))
    merged = model.merge_and_unload()
    assert "generate" not in vars(merged) and len(merged._forward_pre_hooks) == before[1]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_has_checks_of_its_own(copied):
    model = adapted()
    twin = copied(model.get_base_model())
    twin.get_input_embeddings().be_token_embedding["default"].weight.data.zero_()
    expected = generate(model, WITH_BE)
    assert not torch.equal(generate(twin, WITH_BE), expected)
    assert torch.equal(generate(model, WITH_BE), expected)
    assert our_warnings(generate, twin, PLAIN) and our_warnings(generate, model, PLAIN)


# Ways to generate that cannot take every id


REPEATING = [1, 9, VOCAB_SIZE, 12, 13, 1, 9]  # what a look-up proposes to go on with is [BE]
REFUSED = {
    "prompt_lookup_num_tokens": {"prompt_lookup_num_tokens": 3},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 1.5},
    "assistant_model": {"assistant_model": make_model("llama")},
}


@pytest.mark.parametrize("option", REFUSED)
@pytest.mark.parametrize("is_peft", [True, False])
def test_ids_beyond_the_vocabulary_are_refused_in_a_sentence(option, is_peft):
    model = adapted([VOCAB_SIZE])
    if not is_peft:  # as after load_adapter of transformers
        model = model.get_base_model()
    with pytest.raises(ValueError, match=rf"{option} cannot be used with token ids \[64\].*assign_token_ids"):
        generate(model, REPEATING, **REFUSED[option])
    if option != "assistant_model":
        model.generation_config.update(**REFUSED[option])
        with pytest.raises(ValueError, match=option):
            generate(model, REPEATING)
        with pytest.raises(ValueError, match=option):
            config = GenerationConfig(**REFUSED[option])
            model.generate(torch.tensor([REPEATING]), config)


@pytest.mark.parametrize("option", REFUSED)
def test_ids_inside_the_vocabulary_are_taken(option):
    model = adapted([VOCAB_SIZE])
    model.assign_token_ids("default", [7])
    ids = [7 if i == VOCAB_SIZE else i for i in REPEATING]
    output = generate(model, ids, **REFUSED[option])
    if option != "encoder_repetition_penalty":  # which changes what is written
        assert torch.equal(output, generate(model, ids))


def test_inputs_without_ids_beyond_the_vocabulary_are_taken():
    model = adapted([VOCAB_SIZE])
    with any_input(model):
        for option in REFUSED.values():
            generate(model, PLAIN, **option)


def test_an_assistant_with_an_adapter_of_its_own_is_taken():
    model, assistant = adapted([VOCAB_SIZE]), adapted([VOCAB_SIZE])
    assert torch.equal(generate(model, REPEATING, assistant_model=assistant), generate(model, REPEATING))


def test_an_assistant_with_a_smaller_vocabulary():
    assistant = make_model("llama", vocab_size=VOCAB_SIZE - 8)
    model = adapted([VOCAB_SIZE - 1])
    with pytest.raises(ValueError, match=r"assistant_model cannot be used with token ids \[63\].* vocabulary of 56"):
        generate(model, [1, 9, VOCAB_SIZE - 1, 12], assistant_model=assistant)


def test_ids_that_nobody_has():
    model = adapted([VOCAB_SIZE])
    with pytest.raises(ValueError, match="Token id 65 lies beyond the vocabulary of 64 and belongs to no adapter"):
        generate(model, [1, VOCAB_SIZE, VOCAB_SIZE + 1])


def test_ids_of_another_adapter_are_found_where_the_layer_does_not_look():
    """What `generate` asks on GPUs, where the layer would write NaN."""
    model = adapted()
    model.add_adapter("other", BETokenConfig(task_type="CAUSAL_LM", be_token_ids=[50]))
    layer = model.get_input_embeddings()
    layer.check_owners(torch.tensor([WITH_BE, PLAIN]))
    with pytest.raises(ValueError, match=r"id 50 belongs to adapter other, which is not active \(active: default\)"):
        layer.check_owners(torch.tensor([WITH_BE, [1, 50, 3, 4, 5]]))
    layer.batch_adapter_names = ["other", "__base__"]
    layer.check_owners(torch.tensor([[50, 3], [7, 50]]))
    with pytest.raises(ValueError, match=r"id 7 belongs to adapter default, which is not active \(active: other\)"):
        layer.check_owners(torch.tensor([[7, 3], [7, 50]]))
