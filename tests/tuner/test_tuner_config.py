import json

import pytest
from peft import PeftConfig

from peft_be.tuner import BETokenConfig


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
