import json
from types import SimpleNamespace

import pytest
from peft import PeftConfig

from peft_be.tuner import BETokenConfig, active_config
from peft_be.tuner.checks import read_rows


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"num_be_tokens": -1}, "num_be_tokens must be a whole number from 0"),
        ({"num_be_tokens": 0}, "num_be_tokens=0 needs use_ae_token=True"),
        ({"ae_token_id": 3}, "ae_token_id=3 needs use_ae_token=True"),
        ({"be_token_ids": [3, 4]}, "self.num_be_tokens=1 but be_token_ids has 2 ids"),
        ({"be_token_ids": [-1]}, "non-negative integers"),
        ({"be_token_ids": ["<be>"]}, "non-negative integers"),
        ({"be_token_ids": [True]}, "non-negative integers"),
        ({"num_be_tokens": 2, "be_token_ids": [3, 3]}, "differ from each other"),
        ({"be_token_ids": [3], "use_ae_token": True, "ae_token_id": 3}, "differ from each other"),
        ({"slot": "suffix"}, "slot must be one of"),
        ({"task_type": "POETRY"}, "Invalid task type: 'POETRY'"),
        ({"target_modules": 3}, "target_modules must be a string or a list of strings, got 3"),
        ({"target_modules": ["embed_tokens", 3]}, "target_modules must be a string or a list of strings"),
        ({"embed_scale": 0}, "embed_scale must be a finite number other than 0, got 0"),
        ({"embed_scale": float("inf")}, "embed_scale must be a finite number"),
        ({"embed_scale": True}, "embed_scale must be a finite number"),
        ({"use_ae_token": "yes"}, "use_ae_token must be true or false"),
        ({"base_model_name_or_path": 3}, "base_model_name_or_path must be a string"),
    ],
)
def test_bad_values_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        BETokenConfig(**kwargs)


@pytest.mark.parametrize(
    "kwargs, saved_ae",
    [
        ({"num_be_tokens": 2, "be_token_ids": [3, 4], "kept_text": "You are\n Ünï <b>.\n"}, None),
        ({"be_token_ids": [3], "use_ae_token": True, "ae_token_id": 5}, None),
        ({"be_token_ids": [3], "use_ae_token": True, "ae_token_id": 5, "save_ae_token": True}, 5),
        ({"num_be_tokens": 0, "be_token_ids": [], "use_ae_token": True, "ae_token_id": 5}, 5),
    ],
)
def test_saved_config_describes_the_saved_rows(kwargs, saved_ae, tmp_path):
    config = BETokenConfig(**kwargs, provenance={"prompt_tokens": 1200}, hidden_size=8, vocab_size=16)

    config.save_pretrained(tmp_path)
    loaded = BETokenConfig.from_pretrained(tmp_path)

    assert (loaded.use_ae_token, loaded.ae_token_id) == (saved_ae is not None, saved_ae)
    assert config.use_ae_token == kwargs.get("use_ae_token", False)  # saving leaves the object alone
    for key in ("num_be_tokens", "be_token_ids", "provenance", "hidden_size", "vocab_size", "slot", "kept_text"):
        assert getattr(loaded, key) == getattr(config, key)


def test_every_field_has_a_help_text():
    own = set(BETokenConfig.__dataclass_fields__) - set(BETokenConfig.__mro__[1].__dataclass_fields__)
    assert own and all(BETokenConfig.__dataclass_fields__[name].metadata.get("help") for name in own)


def test_config_is_plain_json(tmp_path):
    BETokenConfig().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["peft_type"] == "BE_TOKEN" and saved["target_modules"] is None


def test_a_configuration_with_the_earlier_name_loads(tmp_path):
    name = "BE_TOKEN (import peft_be first: it registers this method with PEFT)"
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": name, "be_token_ids": [7]}))
    assert PeftConfig.from_pretrained(tmp_path).be_token_ids == [7]


def test_a_damaged_file_of_rows(tmp_path):
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(b"no")
    with pytest.raises(
        ValueError, match=r"adapter_model.safetensors' is damaged \(.+\): train or download the adapter again"
    ):
        read_rows(file, BETokenConfig())


def test_a_configuration_for_a_tokenizer_has_no_ae_unless_asked_for(tiny_tokenizer):
    config = BETokenConfig.for_tokenizer(tiny_tokenizer, len(tiny_tokenizer) + 8)
    assert not config.use_ae_token and config.ae_token_id is None and len(config.be_token_ids) == 1
    assert len(BETokenConfig.for_tokenizer(tiny_tokenizer, len(tiny_tokenizer) + 8, 3).be_token_ids) == 3


def test_the_active_configuration_is_that_of_one_adapter():
    config = BETokenConfig(be_token_ids=[3])
    assert active_config(SimpleNamespace(active_adapter="a", peft_config={"a": config})) is config
    for active in ("b", ["a", "b"]):
        with pytest.raises(ValueError, match=r"no active adapter with \[BE\] rows"):
            active_config(SimpleNamespace(active_adapter=active, peft_config={"a": config}))
