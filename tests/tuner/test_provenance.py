"""The record of an adapter's making: what comes back from a file is what was written, or is refused."""

import pytest

from peft_be import BETokenConfig
from peft_be.tuner.provenance import Provenance


def config_with(provenance):
    return BETokenConfig(be_token_ids=[3], hidden_size=8, vocab_size=16, provenance=provenance)


def test_round_trip(tmp_path):
    record = Provenance(
        base_model_revision="abc",
        base_weights={"sketch": "AAAA"},
        prompt_sha256="00",
        prompt_tokens=7,
        stages=["stage 1", "stage 2"],
        training={"steps": 3, "validation_kl": 0.5, "validation_kl_no_prompt": None},
        versions={"torch": "2"},
    )
    config_with(record.as_json()).save_pretrained(tmp_path)
    assert Provenance.of(BETokenConfig.from_pretrained(tmp_path)) == record


def test_nothing_recorded_is_an_empty_record():
    assert Provenance.of(config_with(None)) == Provenance()
    assert Provenance().as_json() == {}


def test_what_a_later_version_adds_is_left_alone(tmp_path):
    config = config_with({"prompt_tokens": 7, "colour": "red"})
    assert Provenance.of(config) == Provenance(prompt_tokens=7)
    config.save_pretrained(tmp_path)
    assert BETokenConfig.from_pretrained(tmp_path).provenance["colour"] == "red"


@pytest.mark.parametrize(
    "damaged",
    [
        "text",
        [1],
        {"stages": "stage 1"},
        {"stages": [1]},
        {"training": [3]},
        {"training": {"steps": "3"}},
        {"prompt_tokens": "7"},
        {"base_weights": 7},
        {"prompt_tokens": True},
    ],
)
def test_damaged_records_are_refused(damaged):
    with pytest.raises(ValueError, match="provenance (must|has)"):
        config_with(damaged)
