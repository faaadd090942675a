"""Several adapters on one model: their ids and their names."""

import warnings

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from peft_be.tuner import BETokenConfig

from .tuner_helpers import VOCAB_SIZE, make_model, make_tokenizer


def adapted(adapter_name="default", base_model=None, **kwargs):
    config = BETokenConfig(task_type="CAUSAL_LM", **kwargs)
    return get_peft_model(base_model or make_model("llama"), config, adapter_name=adapter_name).eval()


def logits(model, *ids, **kwargs):
    with torch.no_grad():
        return model(input_ids=torch.tensor([list(ids)]), **kwargs).logits


@pytest.fixture
def saved(tmp_path):
    """A base model and three adapters in folders, of two rows and an [AE] row each, all at the same ids."""
    make_model("llama").save_pretrained(tmp_path / "base")
    for seed, name in enumerate("xyz"):
        torch.manual_seed(seed)
        model = adapted(
            num_be_tokens=2, be_token_ids=[7, 8], use_ae_token=True, ae_token_id=9, save_ae_token=seed == 0
        )
        model.save_pretrained(tmp_path / name)
    return tmp_path


def load_with_peft(path):
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(path / "base"), path / "x", "x")
    for name in "yz":
        model.load_adapter(path / name, name)
    return model


def load_with_transformers(path):
    model = AutoModelForCausalLM.from_pretrained(path / "base")
    for name in "yzx":  # the last one is active
        model.load_adapter(str(path / name), adapter_name=name)
    return model.eval()


@pytest.mark.parametrize("load", [load_with_peft, load_with_transformers])
def test_each_loaded_adapter_has_ids_of_its_own(saved, load):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Adapter .* was to have")
        model = load(saved)
    ids = {name: model.peft_config[name].token_ids for name in "xyz"}
    assert len({i for own in ids.values() for i in own}) == sum(map(len, ids.values())) == 7
    layer = model.get_input_embeddings()
    assert {name: layer.be_token_ids[name].tolist() for name in "xyz"} == ids
    # The prompt of another adapter, with adapter_names forgotten
    with pytest.raises(ValueError, match="belongs to adapter y, which is not active"):
        model.generate(input_ids=torch.tensor([[1, *ids["y"], 3]]), max_new_tokens=2)
    alone = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(saved / "base"), saved / "y")
    expected = logits(alone, 1, 7, 8, 3)
    model.set_adapter("y")
    assert torch.equal(logits(model, 1, *ids["y"], 3), expected)


def test_what_has_other_ids_is_saved_with_them_and_loads_as_before(saved):
    model = load_with_peft(saved)
    model.save_pretrained(saved / "again")
    for name in "xyz":
        one = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(saved / "base"), saved / "again" / name)
        config = one.peft_config["default"]
        assert config.be_token_ids == model.peft_config[name].be_token_ids
        model.set_adapter(name)
        assert torch.equal(logits(one, 1, *config.be_token_ids, 3), logits(model, 1, *config.be_token_ids, 3))


def test_adapters_that_are_added_have_ids_of_their_own():
    config = BETokenConfig(task_type="CAUSAL_LM")
    model = adapted("first")
    model.add_adapter("second", config)
    model.add_adapter("third", config)  # one configuration for two
    model.add_adapter("fourth", model.peft_config["first"])
    assert [model.peft_config[name].be_token_ids for name in ("first", "second", "third", "fourth")] == [
        [VOCAB_SIZE], [VOCAB_SIZE + 1], [VOCAB_SIZE + 2], [VOCAB_SIZE + 3],
    ]  # fmt: skip


def test_ids_written_by_hand_that_another_adapter_has_are_replaced_aloud():
    model = adapted("first", be_token_ids=[7])
    config = BETokenConfig(num_be_tokens=2, be_token_ids=[7, 8], use_ae_token=True, ae_token_id=9)
    with pytest.warns(UserWarning, match=r"'second' was to have the token ids \[7, 8, 9\], .*got \[64, 65, 9\]"):
        model.add_adapter("second", config)
    assert model.peft_config["second"].token_ids == [VOCAB_SIZE, VOCAB_SIZE + 1, 9]
    assert config.token_ids == [7, 8, 9]  # of another model, perhaps
    assert model.assign_token_ids("second", [7, 8], 9) == [7, 8]  # whoever wants to share them can


def test_unused_ids_inside_the_vocabulary_come_first(tmp_path):
    words = {"[UNK]": 0, **{f"w{i}": i for i in range(1, VOCAB_SIZE - 3)}}
    make_tokenizer(words=words).save_pretrained(tmp_path)
    base_model = make_model("llama")
    base_model.name_or_path = str(tmp_path)
    model = adapted("a", base_model)
    for name, k in (("b", 1), ("c", 2), ("d", 1), ("e", 1)):
        model.add_adapter(name, BETokenConfig(num_be_tokens=k))
    # Three rows pad the table, of which two adapters leave one, too few for c
    assert {name: config.be_token_ids for name, config in model.peft_config.items()} == {
        "a": [VOCAB_SIZE - 3],
        "b": [VOCAB_SIZE - 2],
        "c": [VOCAB_SIZE, VOCAB_SIZE + 1],
        "d": [VOCAB_SIZE - 1],
        "e": [VOCAB_SIZE + 2],
    }


def test_deleting_an_adapter_gives_its_ids_free():
    model = adapted("a", be_token_ids=[7])
    model.add_adapter("b", BETokenConfig())
    model.set_adapter("b")
    model.delete_adapter("a")
    model.add_adapter("c", BETokenConfig(be_token_ids=[7]))
    assert model.peft_config["c"].be_token_ids == [7]


def table_and_rows(model):
    return [model.get_input_embeddings().weight.clone(), *(p.clone() for p in model.parameters() if p.requires_grad)]


def test_a_name_is_taken_once(saved):
    model = adapted("a", be_token_ids=[7])
    before, config = table_and_rows(model), model.peft_config["a"]
    with pytest.raises(ValueError, match="'a' already exists"):
        model.add_adapter("a", BETokenConfig())
    # PEFT reads another file into an adapter that is there, as trainers do with a checkpoint of theirs: its rows have to fit
    with pytest.raises(ValueError, match="do not fit its configuration"):
        model.load_adapter(saved / "x", "a")
    assert model.peft_config["a"] is config
    assert all(torch.equal(*pair) for pair in zip(table_and_rows(model), before))
    base_model = AutoModelForCausalLM.from_pretrained(saved / "base")
    base_model.load_adapter(str(saved / "x"), adapter_name="x")
    with pytest.raises(ValueError, match="name x already exists"):
        base_model.load_adapter(str(saved / "y"), adapter_name="x")


def test_what_is_merged_stays_as_it_is(saved):
    model = load_with_peft(saved)
    model.base_model.assign_token_ids("x", [7, 8], 9)
    table = model.get_input_embeddings().weight.clone()
    model.merge_adapter(["x"])
    merged = model.get_input_embeddings().weight.clone()
    rows = model.base_model.get_rows("x")
    with pytest.raises(ValueError, match="while they are merged"):
        model.delete_adapter("x")
    for change in (
        lambda: model.load_adapter(saved / "x", "x"),
        lambda: model.base_model.set_rows("x", rows + 1),
        lambda: model.base_model.set_ae_row("x", rows[:1] + 1),
        lambda: model.base_model.assign_token_ids("x", [17, 18], 19),
    ):
        with pytest.raises(ValueError, match="x is merged into the embedding table: call unmerge_adapter first"):
            change()
    assert torch.equal(model.get_input_embeddings().weight, merged) and "x" in model.peft_config
    model.delete_adapter("z")  # another one can go
    model.unmerge_adapter()
    assert torch.equal(model.get_input_embeddings().weight, table) and torch.equal(
        model.base_model.get_rows("x"), rows
    )
    model.delete_adapter("x")
    assert list(model.peft_config) == ["y"]


def test_transformers_deletes_no_merged_adapter_either(saved):
    model = load_with_transformers(saved)
    layer = model.get_input_embeddings()
    layer.set_token_ids("x", [7, 8, 9])
    layer.merge(adapter_names=["x"])
    with pytest.raises(ValueError, match="x is merged"):
        model.delete_adapter("x")
    assert set(model.peft_config) == set("xyz")
    layer.unmerge()
    model.delete_adapter("x")
    assert set(model.peft_config) == set("yz")


def test_an_adapter_named_twice_is_merged_once():
    model = adapted("a", be_token_ids=[7])
    table = model.get_input_embeddings().weight.clone()
    model.merge_adapter(["a", "a"])
    assert not torch.equal(model.get_input_embeddings().weight, table)
    model.unmerge_adapter()
    assert torch.equal(model.get_input_embeddings().weight, table)


def test_tokens_of_a_merged_adapter_are_no_others():
    """As PEFT's trainable tokens: the error names the adapter that comes second."""
    model = adapted("a", be_token_ids=[7, 8], num_be_tokens=2)
    model.add_adapter("b", BETokenConfig(be_token_ids=[10]))
    model.merge_adapter(["a"])
    model.base_model.assign_token_ids("b", [8])
    with pytest.raises(ValueError, match="Adapters a and b both use token id 8"):
        model.merge_adapter(["b"])
    model.base_model.assign_token_ids("b", [9])
    model.merge_adapter(["b"])
    assert model.get_input_embeddings().merged_adapters == ["a", "b"]


# Names


@pytest.mark.parametrize("name", ["v1.0", ".", "..", "", "a/b", "../a", "a\\b", "a\0", "__base__"])
@pytest.mark.parametrize("how", ["get_peft_model", "from_pretrained", "add_adapter", "load_adapter", "transformers"])
def test_names_that_cannot_be_used(saved, name, how):
    with pytest.raises(ValueError, match="cannot be the name of an adapter"):
        if how == "get_peft_model":
            adapted(name)
        elif how == "from_pretrained":
            PeftModel.from_pretrained(make_model("llama"), saved / "x", name)
        elif how == "transformers":
            make_model("llama").load_adapter(str(saved / "x"), adapter_name=name or "a.b")  # "" is its default name
        else:
            model = adapted("first")
            try:
                if how == "add_adapter":
                    model.add_adapter(name, BETokenConfig())
                else:
                    model.load_adapter(saved / "x", name)
            finally:
                assert list(model.peft_config) == ["first"]  # the model can still be used
                assert logits(model, 1, VOCAB_SIZE).isfinite().all()


@pytest.mark.parametrize("name", ["keys", "train", "float", "to", "weight"])
def test_names_that_pytorch_uses(name):
    with pytest.raises(ValueError, match=f"'{name}' cannot be the name of an adapter, as PyTorch uses it"):
        adapted(name)


@pytest.mark.parametrize("name", ["b", "be", "token", "be_token_", "be_token_embedding", "base_layer", "ü", "a b"])
@pytest.mark.filterwarnings("ignore:Adapter name")
def test_names_that_look_dangerous_and_are_not(name, tmp_path):
    model = adapted("first", use_ae_token=True, save_ae_token=True)
    model.add_adapter(name, BETokenConfig(use_ae_token=True, save_ae_token=True))
    model.save_pretrained(tmp_path)
    for other in ("default", name):
        loaded = PeftModel.from_pretrained(make_model("llama"), tmp_path / name, other)
        assert torch.equal(loaded.get_rows(other), model.get_rows(name))
        assert torch.equal(loaded.get_ae_row(other), model.get_ae_row(name))


# Other methods


def test_a_model_with_an_adapter_of_another_method_is_refused():
    from peft import LoraConfig

    lora = get_peft_model(make_model("llama"), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="adapter of another method .*merge it first"):
        adapted(base_model=lora.get_base_model())
    assert adapted(base_model=lora.merge_and_unload())


def test_a_file_never_holds_what_another_method_learned(tmp_path):
    from peft import LoraConfig, inject_adapter_in_model

    model = adapted()
    config = model.peft_config["default"]
    inject_adapter_in_model(LoraConfig(target_modules=["q_proj"]), model.get_base_model(), "default")
    model.peft_config["default"] = config  # which the other method replaced
    with pytest.raises(ValueError, match="carries an adapter of another method .*lora_A"):
        model.save_pretrained(tmp_path)
    assert not (tmp_path / "adapter_model.safetensors").exists()
