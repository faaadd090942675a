"""Whatever a folder holds, its loaders say in a sentence what is wrong with it."""

import json
import shutil

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from peft_be import BETokenConfig, PromptEmbeds, compress_prompt, load_adapter, load_model, push_adapters
from peft_be.adapters.folder import read_report
from peft_be.adapters.load import read_adapter

from ..exports import save_adapter
from ..tiny import merged_lora, save_lora, save_tiny_llama, tiny_llama


PROMPT = "You are a lighthouse keeper, and never leave the island."


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_tokenizer):
    """A base and an adapter of two rows."""
    folder = tmp_path_factory.mktemp("whole")
    base = save_tiny_llama(folder / "base", tiny_tokenizer)
    return base, save_adapter(base, folder / "adapter", k=2)


@pytest.fixture
def adapter(whole, tmp_path):
    return shutil.copytree(whole[1], tmp_path / "adapter")


def change_config(adapter, **changes):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    "content, words",
    [
        ("", "not JSON"),
        ("{}", "peft_type is missing"),
        ("[]", "must be an object, and is a list"),
        ("null", "must be an object, and is null"),
        ('{"peft_type": 7}', "peft_type is missing"),
        ('{"peft_type": "LORA", "r": 8}', "is a LORA adapter"),
        ('{"peft_type": "PROMPT_TUNING"}', "is a PROMPT_TUNING adapter"),
        ('{"peft_type": "NOBODY"}', "is a NOBODY adapter"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_configurations(adapter, content, words):
    (adapter / "adapter_config.json").write_text(content)
    for load in (read_adapter, PromptEmbeds.from_pretrained, load_adapter):
        with pytest.raises(ValueError, match=words):
            load(adapter)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_be_tokens": -3},
        {"num_be_tokens": "2"},
        {"num_be_tokens": 2.0},
        {"num_be_tokens": 10**9, "be_token_ids": None},
        {"num_be_tokens": 3, "be_token_ids": None},
        {"be_token_ids": 7},
        {"be_token_ids": {"a": 1}},
        {"be_token_ids": [1, None]},
        {"be_token_ids": [1, 10**30]},
        {"be_token_ids": [1, -1]},
        {"hidden_size": "32"},
        {"hidden_size": 64},
        {"hidden_size": -1},
        {"vocab_size": [1]},
        {"embed_scale": float("nan")},
        {"embed_scale": "1"},
        {"use_ae_token": "yes"},
        {"use_ae_token": True, "ae_token_id": 9, "save_ae_token": True},
        {"slot": ["system"]},
        {"provenance": [1]},
        {"provenance": {"training": []}},
        {"provenance": {"base_weights": 3}},
        {"provenance": {"base_weights": {"sketch": "!"}}},
        {"base_model_name_or_path": {"a": 1}},
        {"base_model_name_or_path": None},
        {"task_type": "COOKING"},
        {"target_modules": 3},
    ],
    ids=str,
)
def test_fields_of_a_configuration(adapter, changes):
    change_config(adapter, **changes)
    with pytest.raises(ValueError) as caught:
        load_adapter(adapter)
    assert len(str(caught.value)) < 600 and "\n" not in str(caught.value)


def test_fields_of_a_later_version_are_left_out(adapter):
    change_config(adapter, invented=True)
    assert load_adapter(adapter)[0].base_model.get_rows("default").shape == (2, 32)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda rows: rows | {"base_model.model.lora_A.weight": torch.ones(2, 2)}, "no row of"),
        (lambda rows: {name: row[:1] for name, row in rows.items()}, "do not fit"),
        (lambda rows: {name: row[:, :5].contiguous() for name, row in rows.items()}, "do not fit"),
        (lambda rows: {name: row.flatten() for name, row in rows.items()}, "do not fit"),
        (lambda rows: {name: row.long() for name, row in rows.items()}, "floating-point"),
        (lambda rows: {name: row / 0 for name, row in rows.items()}, "not finite"),
        (lambda rows: {name: row * float("nan") for name, row in rows.items()}, "not finite"),
        (lambda rows: {f"{name}.x": row for name, row in rows.items()}, "found none"),
        (lambda rows: {}, "found none"),
    ],
)
def test_tensors_that_are_no_rows(whole, adapter, change, words):
    file = adapter / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)
    for load in (load_adapter, PromptEmbeds.from_pretrained):
        with pytest.raises(ValueError, match=words):
            load(adapter)
    with pytest.raises(ValueError, match=words):  # and with PEFT alone
        PeftModel.from_pretrained(load_model(whole[0])[0], adapter)


@pytest.mark.parametrize(
    "content", [b"", b"x" * 100, (2**62).to_bytes(8, "little") + b"{}", (10**6).to_bytes(8, "little") + b"{}" * 10]
)
def test_files_that_are_no_tensors(adapter, content):
    (adapter / "adapter_model.safetensors").write_bytes(content)
    for load in (load_adapter, PromptEmbeds.from_pretrained):
        with pytest.raises(ValueError, match="is damaged"):
            load(adapter)


def test_pickles_are_not_read(adapter):
    class Explosive:
        def __reduce__(self):
            return shutil.rmtree, (str(adapter),)

    (adapter / "adapter_model.safetensors").unlink()
    torch.save(Explosive(), adapter / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match="pickle"):
        load_adapter(adapter)
    assert adapter.is_dir()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "3",
        '{"seen_queries": 4}',
        '{"seen_queries": [1]}',
        '{"seconds": "x"}',
        '{"model": ["a"]}',
        '{"search": {"metric": [], "curve": [{"k": 1}]}}',
    ],
)
def test_training_reports(adapter, content):
    (adapter / "training.json").write_text(content)
    for read in (read_report, load_adapter):
        with pytest.raises(ValueError, match="training report .*training.json"):
            read(adapter)


def test_the_report_of_a_resumed_run(adapter):
    (adapter / "training.json").write_text('{"seconds": null}')
    assert read_report(adapter) == {"seconds": None} and load_adapter(adapter)


def test_links_out_of_the_folder_are_not_uploaded(adapter, tmp_path):
    (tmp_path / "secret.json").write_text('{"model": "secret"}')
    (adapter / "training.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(ValueError, match="is a link to"):
        push_adapters(adapter, "me/adapter", base_model="org/model")


def test_a_base_that_moved(tiny_tokenizer, tmp_path):
    base = save_tiny_llama(tmp_path / "base", tiny_tokenizer)
    folder = save_adapter(base, tmp_path / "adapter")
    shutil.move(base, tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match="adapter' was trained on '.*base', .*--model"):
        load_adapter(folder)
    assert load_adapter(folder, str(tmp_path / "moved"))[0].active_adapter == "default"
    for file in (tmp_path / "moved").glob("token*"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match="holds a model and no tokenizer"):
        load_adapter(folder, str(tmp_path / "moved"))


def test_an_adapter_is_no_base(whole, adapter, tmp_path):
    lora = save_lora(whole[0], tmp_path / "lora")
    for folder, words in ((lora, "is a LORA adapter of .*merge it first"), (adapter, "is an adapter of this package")):
        with pytest.raises(ValueError, match=words):
            load_model(str(folder))
        with pytest.raises(ValueError, match=words):
            load_adapter(adapter, str(folder))
        with pytest.raises(ValueError, match=words):
            compress_prompt(PROMPT, ["a", "b", "c", "d"], tmp_path / "out", model=str(folder), max_steps=1)
        assert not (tmp_path / "out").exists()


def test_a_model_that_carries_an_adapter_is_no_base(whole, tmp_path):
    lora, tokenizer = save_lora(whole[0], tmp_path / "lora"), AutoTokenizer.from_pretrained(whole[0])
    for load in (AutoModelForCausalLM, AutoPeftModelForCausalLM):  # the first of them says nothing of the adapter
        with pytest.raises(ValueError, match="carries an adapter already .*merge it first"):
            compress_prompt(
                PROMPT, ["a", "b", "c", "d"], tmp_path / "out", model=load.from_pretrained(lora), tokenizer=tokenizer
            )
        assert not (tmp_path / "out").exists()


def test_a_file_of_ours_holds_rows_and_nothing_else(whole, tmp_path, tiny_tokenizer):
    with_lora = AutoModelForCausalLM.from_pretrained(save_lora(whole[0], tmp_path / "lora"))
    with pytest.raises(ValueError, match="an adapter of another method .*merge it first"):
        get_peft_model(with_lora, BETokenConfig(task_type="CAUSAL_LM"))
    model = get_peft_model(tiny_llama(tiny_tokenizer), BETokenConfig(task_type="CAUSAL_LM"))
    config = model.peft_config["default"]
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj"]), model.get_base_model())
    model.peft_config["default"] = config  # of which PEFT takes any layer's weights by the adapter's name
    with pytest.raises(ValueError, match="carries an adapter of another method .*merge it"):
        model.save_pretrained(tmp_path / "out")
    model = get_peft_model(tiny_llama(tiny_tokenizer), BETokenConfig(task_type="CAUSAL_LM"))
    with pytest.raises(ValueError, match="was not saved: .*is no row of"):
        model.save_pretrained(tmp_path / "out", save_embedding_layers=True)
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_a_merged_lora_does_not_pass_for_its_base(whole, tmp_path):
    model, tokenizer = load_model(whole[0])
    merged = merged_lora(model)
    assert merged.name_or_path == whole[0]
    queries = ["Who are you?", "Is it cold?", "What do you see?", "Where is the boat?"]
    result = compress_prompt(
        PROMPT, queries, tmp_path / "out", model=merged, tokenizer=tokenizer, max_steps=1, max_answer_length=4
    )
    assert set(load_file(tmp_path / "out" / "adapter_model.safetensors")) == {
        "base_model.model.model.embed_tokens.be_token_embedding.weight"
    }
    with pytest.raises(ValueError, match="other weights"):
        load_adapter(result.directory)


def test_a_run_is_resumed_on_the_weights_that_it_was_started_on(whole, tmp_path, tiny_tokenizer, monkeypatch):
    from peft_be.training import BEDistillTrainer

    base = shutil.copytree(whole[0], tmp_path / "base")

    def compress(**options):
        return compress_prompt(
            PROMPT,
            ["a", "b", "c", "d"],
            tmp_path / "out",
            model=str(base),
            max_steps=1,
            max_answer_length=4,
            **options,
        )

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(BEDistillTrainer, "compute_loss", interrupt)
        with pytest.raises(KeyboardInterrupt):
            compress()
    (tmp_path / "out" / "training" / "work").write_text("worth keeping")
    other = tiny_llama(tiny_tokenizer)
    other.model.layers[0].mlp.up_proj.weight.data[3] *= 1.1
    other.save_pretrained(base)
    with pytest.raises(ValueError, match="another base model or dtype"):
        compress(resume=True)
    tiny_llama(tiny_tokenizer).save_pretrained(base)
    assert compress(resume=True).report["steps"] == 1
