"""Makes PEFT know the method `tied_lora`."""

from __future__ import annotations

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType, register_peft_method

NAME = "TIED_LORA"


def add_peft_type() -> None:
    """Adds the member `TIED_LORA` to PEFT's enumeration of methods, which has no way to extend it."""
    if NAME in PeftType.__members__:
        return
    member = str.__new__(PeftType, NAME)
    member._name_ = NAME
    member._value_ = NAME
    PeftType._member_map_[NAME] = member
    PeftType._value2member_map_[NAME] = member
    PeftType._member_names_.append(NAME)
    type.__setattr__(PeftType, NAME, member)


def register() -> None:
    """Registers configuration and tuner; does nothing the second time."""
    from .config import TiedLoraConfig
    from .model import TiedLoraModel

    if PeftType[NAME] not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(
            name=NAME.lower(), config_cls=TiedLoraConfig, model_cls=TiedLoraModel, prefix=TiedLoraModel.prefix
        )
