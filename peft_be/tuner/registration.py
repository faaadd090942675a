"""Makes `BE_TOKEN` a method that PEFT knows."""

from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_MIXED_MODEL_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.utils import PeftType, register_peft_method


# The method's name in configurations that were saved before the first release, which must keep loading
EARLIER_NAME = "BE_TOKEN (import peft_be first: it registers this method with PEFT)"


def add_enum_member(enum_cls, name: str):
    """
    Adds the member `name` to a closed enum whose members are strings, as [`PeftType`] is.

    PEFT has no plugin mechanism: [`register_peft_method`] accepts a method only if its name is a member of `PeftType`.
    The steps are those of the enum metaclass, so that look-up by name and by value, `in`, iteration, pickle and JSON
    behave as they do for the other members (Python 3.10 to 3.13).

    Args:
        enum_cls (`type[enum.Enum]`): An enum that derives from `str`.
        name (`str`): Name and value of the new member. An existing member is returned as it is.

    Returns:
        The member.
    """
    if name in enum_cls.__members__:
        return enum_cls[name]

    member = str.__new__(enum_cls, name)
    member._name_ = name
    member._value_ = name
    member.__objclass__ = enum_cls
    member._sort_order_ = len(enum_cls._member_names_)
    enum_cls._member_names_.append(name)
    enum_cls._member_map_[name] = member
    enum_cls._value2member_map_[name] = member
    # The metaclass forbids setting a member on the class, and Python 3.12 and later find members nowhere else.
    type.__setattr__(enum_cls, name, member)
    return member


def register_be_token(config_cls, model_cls) -> None:
    """
    Registers `BE_TOKEN` with PEFT. A second call, as after a reload of the package, replaces the classes of the first.

    Args:
        config_cls (`type[PeftConfig]`): The configuration class.
        model_cls (`type[BaseTuner]`): The tuner class.
    """
    peft_type = add_enum_member(PeftType, "BE_TOKEN")
    for mapping in (
        PEFT_TYPE_TO_CONFIG_MAPPING,
        PEFT_TYPE_TO_MIXED_MODEL_MAPPING,
        PEFT_TYPE_TO_PREFIX_MAPPING,
        PEFT_TYPE_TO_TUNER_MAPPING,
    ):
        mapping.pop(peft_type, None)
    # transformers derives the prefix from the name (`be_token_`); `register_peft_method` does the same.
    register_peft_method(name="be_token", config_cls=config_cls, model_cls=model_cls)
    PEFT_TYPE_TO_CONFIG_MAPPING[EARLIER_NAME] = config_cls
