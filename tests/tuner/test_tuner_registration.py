import copy
import enum
import importlib
import json
import pickle

from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

import peft_be.tuner
from peft_be.tuner.registration import add_enum_member


class Closed(str, enum.Enum):
    LORA = "LORA"


def test_added_member_behaves_like_the_others():
    member = add_enum_member(Closed, "BE_TOKEN")

    assert Closed.BE_TOKEN is member is Closed("BE_TOKEN") is Closed["BE_TOKEN"]
    assert add_enum_member(Closed, "BE_TOKEN") is member
    assert list(Closed) == [Closed.LORA, member] and len(Closed) == 2
    assert [each._sort_order_ for each in Closed] == [0, 1]
    assert isinstance(member, Closed) and member in Closed and "BE_TOKEN" in list(Closed)
    assert (member.name, member.value, member == "BE_TOKEN", repr(member)) == (
        "BE_TOKEN",
        "BE_TOKEN",
        True,
        "<Closed.BE_TOKEN: 'BE_TOKEN'>",
    )
    assert pickle.loads(pickle.dumps(member)) is copy.deepcopy(member) is member
    assert json.dumps({"type": member}) == '{"type": "BE_TOKEN"}'
    assert {member: 1}["BE_TOKEN"] == 1


def test_reload_registers_again():
    before = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.BE_TOKEN]
    assert before is peft_be.tuner.BETokenConfig

    importlib.reload(peft_be.tuner)

    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.BE_TOKEN] is peft_be.tuner.BETokenConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING[PeftType.BE_TOKEN] is peft_be.tuner.BETokenModel
    assert PEFT_TYPE_TO_PREFIX_MAPPING[PeftType.BE_TOKEN] == "be_token_"
    assert [str(t.value) for t in PeftType].count("BE_TOKEN") == 1


def test_peft_finds_the_config_class(tmp_path):
    peft_be.tuner.BETokenConfig(be_token_ids=[7]).save_pretrained(tmp_path)

    config = PeftConfig.from_pretrained(tmp_path)

    assert type(config) is peft_be.tuner.BETokenConfig
    assert config.peft_type is PeftType.BE_TOKEN and config.be_token_ids == [7]
