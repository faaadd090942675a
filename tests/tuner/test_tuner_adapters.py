import contextlib
import json
import warnings

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from peft_be.tuner import BETokenConfig, BETokenEmbedding, untie_output_embedding

from .tuner_helpers import VOCAB_SIZE, make_model, make_tokenizer, with_table_rows


def adapted(model="llama", *, adapter_name="default", **kwargs):
    torch.manual_seed(1)
    kwargs.setdefault("task_type", "CAUSAL_LM")
    base_model = make_model(model) if isinstance(model, str) else model
    return get_peft_model(base_model, BETokenConfig(**kwargs), adapter_name=adapter_name).eval()


def logits(model, *ids, **kwargs):
    with torch.no_grad():
        return model(input_ids=torch.tensor([list(ids)]), **kwargs).logits


def trainable(model):
    return {name.rsplit("embed_tokens.")[-1] for name, p in model.named_parameters() if p.requires_grad}


BE_WEIGHT = "be_token_embedding.default.weight"
AE_WEIGHT = "be_token_ae_embedding.default.weight"


# Ids


def test_defaults_without_a_tokenizer_are_ids_beyond_the_vocabulary():
    model = adapted(num_be_tokens=3, use_ae_token=True)
    config = model.peft_config["default"]
    assert (config.be_token_ids, config.ae_token_id) == ([VOCAB_SIZE, VOCAB_SIZE + 1, VOCAB_SIZE + 2], VOCAB_SIZE + 3)
    assert (config.hidden_size, config.vocab_size) == (32, VOCAB_SIZE)


def test_chosen_ids_avoid_given_ones():
    config = adapted(use_ae_token=True, ae_token_id=VOCAB_SIZE).peft_config["default"]
    assert config.token_ids == [VOCAB_SIZE + 1, VOCAB_SIZE]


@pytest.mark.parametrize("source", ["name_or_path", "config"])
def test_unused_ids_of_a_local_tokenizer(source, tmp_path):
    words = {"[UNK]": 0, **{f"w{i}": i for i in range(1, VOCAB_SIZE - 3)}}
    make_tokenizer(["<|reserved_special_token_0|>"], words=words).save_pretrained(tmp_path)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    base_model = make_model("llama")
    if source == "name_or_path":
        base_model.name_or_path = str(tmp_path)
        config = BETokenConfig(num_be_tokens=2, use_ae_token=True)
    else:
        config = BETokenConfig(num_be_tokens=2, use_ae_token=True, tokenizer_name_or_path=str(tmp_path))

    model = get_peft_model(base_model, config)

    # Two rows pad the table, then there is one reserved token.
    assert config.token_ids == [VOCAB_SIZE - 2, VOCAB_SIZE - 1, VOCAB_SIZE - 3]
    assert len(model.get_input_embeddings().weight) == VOCAB_SIZE
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_all_ids_lie_beyond_the_vocabulary_if_one_must(tmp_path):
    words = {"[UNK]": 0, **{f"w{i}": i for i in range(1, VOCAB_SIZE - 1)}}
    make_tokenizer(words=words).save_pretrained(tmp_path)
    config = adapted(num_be_tokens=2, tokenizer_name_or_path=str(tmp_path)).peft_config["default"]
    assert config.be_token_ids == [VOCAB_SIZE, VOCAB_SIZE + 1]


@pytest.mark.parametrize("model_name", ["llama", "gemma3", "qwen2"])
def test_base_without_tokenizer_files(model_name, tmp_path):
    make_model(model_name).save_pretrained(tmp_path)
    base_model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert adapted(base_model).peft_config["default"].be_token_ids == [VOCAB_SIZE]


# Trainability


@pytest.mark.parametrize(
    "kwargs, expected",
    [
        ({}, {BE_WEIGHT}),
        ({"use_ae_token": True}, {BE_WEIGHT}),
        ({"use_ae_token": True, "num_be_tokens": 0}, {AE_WEIGHT}),
    ],
)
def test_ae_learns_only_without_be(kwargs, expected):
    model = adapted(**kwargs)
    assert trainable(model) == expected
    with model.disable_adapter():
        assert trainable(model) == set()
    assert trainable(model) == expected
    model.set_adapter("default")
    assert trainable(model) == expected
    model.set_requires_grad("default", False)
    model.set_requires_grad("default", True)
    assert trainable(model) == expected
    model.add_adapter("other", BETokenConfig(use_ae_token=True))
    assert trainable(model) == expected


# Rows


def test_rows_are_read_and_written_in_place():
    model = adapted(num_be_tokens=2, use_ae_token=True)
    layer = model.get_input_embeddings()
    weights = layer.be_token_embedding["default"].weight, layer.be_token_ae_embedding["default"].weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    rows, row = torch.randn(2, 32), torch.randn(1, 32)
    model.set_rows("default", rows)
    model.set_ae_row("default", row)

    assert torch.equal(model.get_rows("default"), rows) and torch.equal(model.get_ae_row("default"), row)
    assert weights[0] is layer.be_token_embedding["default"].weight
    assert weights[1] is layer.be_token_ae_embedding["default"].weight
    assert optimizer.param_groups[0]["params"][0] is not None
    model.get_rows("default").zero_()  # a copy
    assert torch.equal(model.get_rows("default"), rows)


def test_wrong_rows_are_refused():
    model = adapted()
    with pytest.raises(ValueError, match=r"Expected rows of shape \(1, 32\), got \(32,\)"):
        model.set_rows("default", torch.zeros(32))
    with pytest.raises(ValueError, match=r"default has no \[AE\] row"):
        model.get_ae_row("default")


def test_random_rows_are_seeded_and_of_the_scale_of_the_table():
    first, second = (adapted(num_be_tokens=64).get_rows("default") for _ in range(2))
    assert torch.equal(first, second)
    table = make_model("llama").get_input_embeddings().weight
    assert 0.8 < first.std() / table.std() < 1.25


# Saving and loading


@pytest.fixture
def saved(tmp_path, model_name):
    base_model = make_model(model_name)
    base_model.save_pretrained(tmp_path / "base")
    base_model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = adapted(base_model, num_be_tokens=2, be_token_ids=[7, VOCAB_SIZE], use_ae_token=True)
    model.save_pretrained(tmp_path / "adapter")
    return model, tmp_path


def load_with_peft(path, **kwargs):
    base_model = AutoModelForCausalLM.from_pretrained(path / "base", dtype=kwargs.pop("dtype", None))
    return PeftModel.from_pretrained(base_model, path / "adapter", **kwargs)


def load_with_transformers(path, dtype=None):
    base_model = AutoModelForCausalLM.from_pretrained(path / "base", dtype=dtype)
    base_model.load_adapter(str(path / "adapter"))
    return base_model


LOADERS = {
    "PeftModel": load_with_peft,
    "PeftModel, low_cpu_mem_usage": lambda path, **kw: load_with_peft(path, low_cpu_mem_usage=True, **kw),
    "AutoPeftModelForCausalLM": lambda path, **kw: AutoPeftModelForCausalLM.from_pretrained(path / "adapter", **kw),
    "load_adapter of transformers": load_with_transformers,
    "AutoModelForCausalLM": lambda path, **kw: AutoModelForCausalLM.from_pretrained(path / "adapter", **kw),
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reload_is_bit_exact(saved, loader, dtype):
    model, path = saved
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        loaded = LOADERS[loader](path, dtype=dtype)
    layer = loaded.get_input_embeddings()
    assert isinstance(layer, BETokenEmbedding) and layer.base_layer.weight.dtype == dtype
    assert torch.equal(layer.be_token_embedding["default"].weight, model.get_rows("default"))
    assert layer.be_token_embedding["default"].weight.dtype == torch.float32
    assert not any(p.requires_grad for p in layer.parameters())
    if dtype == torch.float32:
        assert torch.equal(logits(loaded, 1, 7, VOCAB_SIZE, 4), logits(model, 1, 7, VOCAB_SIZE, 4))


@pytest.mark.parametrize("save_embedding_layers", ["auto", False])
def test_file_holds_the_rows_and_nothing_else(saved, save_embedding_layers):
    model, path = saved
    model.save_pretrained(path / "again", save_embedding_layers=save_embedding_layers)
    file = path / "again" / "adapter_model.safetensors"
    assert {key: tuple(t.shape) for key, t in load_file(file).items()} == {
        "base_model.model.model.embed_tokens.be_token_embedding.weight": (2, 32)
    }
    assert file.stat().st_size < 1024


def test_ae_row_is_saved_when_asked(tmp_path):
    model = adapted(use_ae_token=True, save_ae_token=True)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_model("llama"), tmp_path, is_trainable=True)
    assert torch.equal(loaded.get_ae_row("default"), model.get_ae_row("default"))
    assert trainable(loaded) == {BE_WEIGHT}


def test_ae_only_adapter_saves_its_row(tmp_path):
    model = adapted(num_be_tokens=0, use_ae_token=True)
    model.save_pretrained(tmp_path)
    assert len(load_file(tmp_path / "adapter_model.safetensors")) == 1
    loaded = PeftModel.from_pretrained(make_model("llama"), tmp_path, is_trainable=True)
    assert torch.equal(loaded.get_ae_row("default"), model.get_ae_row("default"))
    assert trainable(loaded) == {AE_WEIGHT}


def test_checkpoint_without_ae_loads_into_a_model_that_has_it(saved):
    # As the Trainer does with its best checkpoint.
    model, path = saved
    rows, row = model.get_rows("default"), model.get_ae_row("default")
    model.set_rows("default", torch.zeros_like(rows))
    model.load_adapter(path / "adapter", "default", is_trainable=True)
    assert torch.equal(model.get_rows("default"), rows) and torch.equal(model.get_ae_row("default"), row)


@pytest.mark.parametrize("change", [{"hidden_size": 64}, {"vocab_size": 80}])
@pytest.mark.parametrize("how", ["peft", "transformers"])
def test_other_base_is_refused(tmp_path, change, how):
    adapted(be_token_ids=[7]).save_pretrained(tmp_path)
    other = make_model("llama", **change)
    sizes = {"hidden_size": 32, "vocab_size": VOCAB_SIZE, **change}
    message = (
        f"made for a base model with hidden size 32 and {VOCAB_SIZE} embedding rows, but the given model has hidden "
        f"size {sizes['hidden_size']} and {sizes['vocab_size']} embedding rows"
    )
    with pytest.raises(ValueError, match=message):
        if how == "peft":
            PeftModel.from_pretrained(other, tmp_path)
        else:
            other.load_adapter(str(tmp_path))


@pytest.mark.parametrize(
    "shape, message", [(None, "found none"), ((3, 32), r"found \(3, 32\)"), ((2, 31), r"found \(2, 31\)")]
)
def test_weights_that_do_not_fit_are_refused(saved, shape, message):
    _, path = saved
    key = "base_model.model.model.embed_tokens.be_token_embedding.weight"
    save_file({"unrelated": torch.zeros(1)} if shape is None else {key: torch.zeros(shape)}, path / "adapter.tmp")
    (path / "adapter.tmp").replace(path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=f"do not fit its configuration: expected .* of shape .*, {message}"):
        load_with_peft(path)


def test_rows_of_an_embedding_that_the_model_does_not_have_are_refused(tmp_path):
    adapted(be_token_ids=[7]).save_pretrained(tmp_path)
    rows = {"base_model.model.model.other_tokens.be_token_embedding.weight": torch.zeros(1, 32)}
    save_file(rows, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="other_tokens.*, and this model has no such embedding"):
        PeftModel.from_pretrained(make_model("llama"), tmp_path)


def test_config_is_complete_on_disk(saved):
    _, path = saved
    config = json.loads((path / "adapter" / "adapter_config.json").read_text())
    assert config["be_token_ids"] == [7, VOCAB_SIZE] and config["ae_token_id"] is None
    assert (config["hidden_size"], config["vocab_size"]) == (32, VOCAB_SIZE)


# Several adapters


@pytest.fixture
def two_adapters(base_model):
    """Two adapters "a" and "b" of one row each, both at id 7 by the user's own wish."""
    model = adapted(base_model, adapter_name="a", be_token_ids=[7])
    model.add_adapter("b", BETokenConfig(task_type="CAUSAL_LM"))
    model.assign_token_ids("b", [7])
    return model.eval()


def expected_logits(model_name, table, *ids):
    """Logits of the base model with rows in its table: `table` maps ids to rows."""
    return logits(with_table_rows(make_model(model_name), list(table), torch.cat(list(table.values()))), *ids)


def test_same_ids_one_at_a_time(two_adapters, model_name):
    for name in ("a", "b"):
        two_adapters.set_adapter(name)
        expected = expected_logits(model_name, {7: two_adapters.get_rows(name)}, 1, 7, 3)
        assert torch.equal(logits(two_adapters, 1, 7, 3), expected)


def test_same_ids_in_one_batch(two_adapters, model_name):
    x = torch.tensor([[1, 7, 3, 4]])
    base = logits(make_model(model_name), *x[0])
    alone = {"__base__": base}
    for name in ("a", "b"):
        two_adapters.set_adapter(name)
        alone[name] = logits(two_adapters, *x[0])
    names = ["b", "__base__", "a", "b", "a"]
    with torch.no_grad():
        mixed = two_adapters(input_ids=x.expand(5, -1), adapter_names=names).logits
    assert torch.allclose(mixed, torch.cat([alone[name] for name in names]), atol=1e-5)
    assert not torch.allclose(alone["a"], alone["b"]) and not torch.allclose(alone["a"], base)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"do_sample": False},
        {"num_beams": 3, "num_return_sequences": 2, "do_sample": False},
        {"num_return_sequences": 2, "do_sample": True, "top_k": 1},
    ],
    ids=["greedy", "beams", "several samples"],
)
def test_generate_with_adapter_names(two_adapters, kwargs):
    x = torch.tensor([[1, 7, 3, 4]])
    names = ["b", "a", "__base__"]
    kwargs["max_new_tokens"] = 6
    mixed = two_adapters.generate(input_ids=x.expand(3, -1), adapter_names=names, **kwargs)
    copies = kwargs.get("num_return_sequences", 1)
    for i, name in enumerate(names[:2]):
        two_adapters.set_adapter(name)
        alone = two_adapters.generate(input_ids=x, **kwargs)
        ours = mixed[i * copies : (i + 1) * copies]
        length = min(alone.shape[1], ours.shape[1])
        assert torch.equal(ours[:, :length], alone[:, :length])
    assert "adapter_names" not in str(two_adapters.get_input_embeddings()._forward_pre_hooks)


def test_a_batch_of_many_adapters_reads_each_row_from_its_own(tiny_model):
    torch.manual_seed(0)
    vocab_size = tiny_model.get_input_embeddings().num_embeddings
    ids = {f"p{i}": ([3 + i, vocab_size + i] if i % 3 else [5])[: 1 + i % 2] for i in range(12)}
    model = None
    for i, (name, be_token_ids) in enumerate(ids.items()):
        config = BETokenConfig(
            task_type="CAUSAL_LM",
            num_be_tokens=len(be_token_ids),
            be_token_ids=be_token_ids,
            use_ae_token=i % 4 == 0,
            ae_token_id=17 if i % 4 == 0 else None,
        )
        if model is None:
            model = get_peft_model(tiny_model, config, adapter_name=name)
        else:
            model.add_adapter(name, BETokenConfig(num_be_tokens=len(be_token_ids), use_ae_token=config.use_ae_token))
            model.assign_token_ids(name, be_token_ids, config.ae_token_id)  # some are those of another adapter
    model.eval()
    embed = model.get_input_embeddings()
    names = [*ids, "__base__"]
    names = [names[i] for i in torch.randperm(len(names)).tolist()]
    rows = [[40, *(ids.get(name) or [5, 17]), 41, 42][:4] for name in names]
    x = torch.tensor(rows)
    mixed = embed(x, adapter_names=names)
    for name, row, got in zip(names, x, mixed):
        if name == "__base__":
            expected = embed.get_base_layer()(row)
        else:
            model.set_adapter(name)
            expected = embed(row[None])[0]
        assert torch.equal(got, expected)
    x[names.index("p0"), 0] = ids["p7"][0]
    with pytest.raises(ValueError, match=f"id {ids['p7'][0]} belongs to adapter p7, but its row of the batch uses"):
        embed(x, adapter_names=names)


def test_bad_adapter_names(two_adapters):
    with pytest.raises(ValueError, match=r"non-existing adapter\(s\): c"):
        logits(two_adapters, 1, 7, adapter_names=["c"])
    with pytest.raises(ValueError, match="Length of `adapter_names` should be the same as the number of inputs"):
        logits(two_adapters, 1, 7, adapter_names=["a", "b"])
    logits(two_adapters, 1, 7)  # no hook is left behind


def test_composition_in_one_sequence(two_adapters, model_name):
    with pytest.raises(ValueError, match="both use token id 7 .*: call assign_token_ids"):
        two_adapters.base_model.set_adapter(["a", "b"])
    assert two_adapters.active_adapters == ["a"]

    assert two_adapters.assign_token_ids("b") == [VOCAB_SIZE]
    two_adapters.base_model.set_adapter(["a", "b"])

    # The reference holds b's row at an id inside the vocabulary.
    rows = {7: two_adapters.get_rows("a"), 9: two_adapters.get_rows("b")}
    assert torch.equal(logits(two_adapters, 1, 7, VOCAB_SIZE, 3), expected_logits(model_name, rows, 1, 7, 9, 3))
    two_adapters.set_adapter("b")
    with pytest.raises(ValueError, match="id 7 belongs to adapter a, which is not active"):
        logits(two_adapters, 1, 7, VOCAB_SIZE)


def test_assign_token_ids():
    model = adapted(adapter_name="a", num_be_tokens=2, use_ae_token=True)
    config = model.peft_config["a"]
    model.add_adapter("b", config)  # one configuration for both
    old = config.token_ids
    assert model.assign_token_ids("b", [5, 6], 8) == [5, 6]
    assert model.peft_config["b"].token_ids == [5, 6, 8] and model.peft_config["a"].token_ids == old
    assert model.assign_token_ids("b") == [VOCAB_SIZE + 3, VOCAB_SIZE + 4]
    assert model.peft_config["b"].ae_token_id == VOCAB_SIZE + 5
    model.base_model.set_adapter(["a", "b"])
    with pytest.raises(ValueError, match="both use token id"):
        model.assign_token_ids("b", old[:2], old[2])
    with pytest.raises(ValueError, match="be_token_ids has 1 ids"):
        model.assign_token_ids("b", [5])
    assert model.peft_config["b"].be_token_ids == [VOCAB_SIZE + 3, VOCAB_SIZE + 4]


def test_delete_and_unload(two_adapters, model_name):
    expected = logits(make_model(model_name), 1, 7, 3)
    two_adapters.delete_adapter("a")
    assert two_adapters.active_adapters == ["b"]
    assert not torch.allclose(logits(two_adapters, 1, 7, 3), expected)
    base_model = two_adapters.unload()
    assert not any(isinstance(module, BETokenEmbedding) for module in base_model.modules())
    assert torch.equal(logits(base_model, 1, 7, 3), expected)


def test_saving_with_several_adapters(two_adapters, tmp_path):
    two_adapters.save_pretrained(tmp_path)
    for name in ("a", "b"):
        loaded = PeftModel.from_pretrained(
            make_model({"gemma3_text": "gemma3"}.get(two_adapters.config.model_type, two_adapters.config.model_type)),
            tmp_path / name,
            adapter_name="anything",
        )
        assert torch.equal(loaded.get_rows("anything"), two_adapters.get_rows(name))


# Merging


def final_hidden_states(model, *ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([list(ids)]), output_hidden_states=True).hidden_states[-1]


def test_without_adapters_the_embedding_is_the_bases(two_adapters, model_name):
    base_model = two_adapters.get_base_model()
    for name in ("a", "b"):
        two_adapters.base_model.delete_adapter(name)
    assert isinstance(base_model.get_input_embeddings(), BETokenEmbedding)
    assert torch.equal(logits(base_model, 1, 7, 3), logits(make_model(model_name), 1, 7, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merge_and_unmerge(base_model, dtype):
    model = adapted(base_model.to(dtype), num_be_tokens=2, be_token_ids=[50, 7], use_ae_token=True, ae_token_id=9)
    table = model.get_input_embeddings().weight
    table_before = table.clone()
    ids = (1, 7, 3, 50, 9)
    before = final_hidden_states(model, *ids)

    model.merge_adapter()
    assert torch.equal(final_hidden_states(model, *ids), before)
    changed = (table != table_before).any(-1).nonzero().flatten().tolist()
    assert changed == [7, 9, 50]
    with pytest.raises(ValueError, match="default is merged into the embedding table"):
        model.assign_token_ids("default")

    model.unmerge_adapter()
    assert torch.equal(table, table_before)
    assert torch.equal(final_hidden_states(model, *ids), before)

    model.merge_adapter()
    with model.disable_adapter():  # unmerges
        assert not torch.equal(final_hidden_states(model, *ids), before)
        assert torch.equal(table, table_before)
    merged = model.merge_and_unload()
    assert not any(isinstance(module, BETokenEmbedding) for module in merged.modules())
    assert torch.equal(final_hidden_states(merged, *ids), before)


@pytest.mark.parametrize("tied", [False, True])
def test_merging_keeps_all_logits(tmp_path, tied):
    """Those of [BE]'s id, too: a tied output embedding is untied, and the merged model is saved and loaded untied."""
    model = adapted("qwen2" if tied else "llama", be_token_ids=[7])
    base = model.get_base_model()
    assert (base.get_output_embeddings().weight is base.get_input_embeddings().base_layer.weight) == tied
    model.base_model.set_rows("default", 100 * model.base_model.get_rows("default"))
    before = logits(model, 1, 7, 3)

    with pytest.warns(UserWarning, match="tied to its input embedding") if tied else contextlib.nullcontext():
        model.merge_adapter()
    assert torch.equal(logits(model, 1, 7, 3), before)
    model.unmerge_adapter()
    assert torch.equal(logits(model, 1, 7, 3), before)

    merged = model.merge_and_unload()
    assert torch.equal(logits(merged, 1, 7, 3), before)
    assert not merged.config.tie_word_embeddings
    merged.save_pretrained(tmp_path)
    loaded = type(merged).from_pretrained(tmp_path)
    assert torch.equal(logits(loaded, 1, 7, 3), before)


def test_a_model_that_was_untied_before_is_merged_without_a_word(recwarn):
    model = adapted("qwen2", be_token_ids=[7])
    before = logits(model, 1, 7, 3)
    assert untie_output_embedding(model) and not untie_output_embedding(model.get_base_model())
    assert model.get_base_model().all_tied_weights_keys == {}
    assert torch.equal(logits(model, 1, 7, 3), before)
    model.merge_adapter()
    assert torch.equal(logits(model, 1, 7, 3), before)
    assert not [warning for warning in recwarn if "tied" in str(warning.message)]


def test_ids_beyond_the_vocabulary_cannot_be_merged():
    model = adapted(num_be_tokens=2, be_token_ids=[7, VOCAB_SIZE])
    before = model.get_input_embeddings().weight.clone()
    with pytest.raises(ValueError, match=r"token ids \[7, 64\] reach beyond the vocabulary of 64 rows"):
        model.merge_and_unload()
    assert torch.equal(model.get_input_embeddings().weight, before)


def test_adapters_with_the_same_ids_cannot_be_merged_together(two_adapters):
    with pytest.raises(ValueError, match="both use token id 7"):
        two_adapters.merge_adapter(["a", "b"])
    two_adapters.merge_adapter(["a"])
    with pytest.raises(ValueError, match="both use token id 7"):
        two_adapters.merge_adapter(["b"])


# Models


def test_encoder_decoder_is_refused():
    from transformers import T5Config, T5ForConditionalGeneration

    model = T5ForConditionalGeneration(
        T5Config(vocab_size=32, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    )
    with pytest.raises(ValueError, match="this one is an encoder-decoder"):
        get_peft_model(model, BETokenConfig(task_type="SEQ_2_SEQ_LM"))


def test_second_table_of_per_layer_embeddings():
    from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

    config = Gemma3nTextConfig(
        vocab_size=VOCAB_SIZE,
        vocab_size_per_layer_input=VOCAB_SIZE - 8,
        hidden_size=32,
        hidden_size_per_layer_input=8,
        intermediate_size=48,
        num_hidden_layers=5,
        num_kv_shared_layers=0,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        laurel_rank=4,
        altup_num_inputs=2,
        activation_sparsity_pattern=[0.0] * 5,
        pad_token_id=0,
    )
    base_model = Gemma3nForCausalLM(config)
    with pytest.raises(ValueError, match=r"second embedding table, of 56 rows, .* \[64\] are too large"):
        adapted(base_model)
    model = adapted(base_model, be_token_ids=[55])
    assert logits(model, 1, 55, 3).isfinite().all()


def test_target_modules_of_a_transformers_model_are_refused():
    # PEFT would save the whole embedding matrix.
    with pytest.raises(ValueError, match="leave target_modules unset"):
        adapted(target_modules=["embed_tokens"])


class Plain(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = torch.nn.Embedding(10, 4)
        self.positions = torch.nn.Embedding(10, 4)
        self.head = torch.nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.tokens(x) + self.positions(torch.arange(x.shape[-1])))


def test_plain_module():
    model = get_peft_model(Plain(), BETokenConfig(target_modules="tokens", be_token_ids=[10]))
    assert model(torch.tensor([[1, 10]])).shape == (1, 2, 2)
    assert model.peft_config["default"].vocab_size == 10


@pytest.mark.parametrize(
    "target, message",
    [(None, "matches 0 modules"), (["tokens", "positions"], "matches 2 modules"), ("head", "needs an nn.Embedding")],
)
def test_plain_module_with_bad_target(target, message):
    with pytest.raises(ValueError, match=message):
        get_peft_model(Plain(), BETokenConfig(target_modules=target))
