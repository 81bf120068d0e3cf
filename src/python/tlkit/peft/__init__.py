"""Tied-LoRA in PEFT: train it where PEFT trains, save it as PEFT and as `.tl`.

    from peft import get_peft_model
    from tlkit.peft import TiedLoraConfig

    model = get_peft_model(model, TiedLoraConfig(method="tl6", r=8, target_modules=["q_proj", "k_proj", "v_proj"]))

Importing this module imports torch and PEFT, and registers the method with PEFT: `PeftModel.from_pretrained`
and `load_adapter` read what was saved.
"""

from .register import add_peft_type, register

add_peft_type()

from .config import TiedLoraConfig  # noqa: E402
from .layer import TiedLoraLayer, TiedLoraLinear  # noqa: E402
from .load import load_tl  # noqa: E402
from .model import TiedLoraModel  # noqa: E402
from .save import folder_to_tl, save_tl  # noqa: E402

register()

__all__ = ["TiedLoraConfig", "TiedLoraLayer", "TiedLoraLinear", "TiedLoraModel", "folder_to_tl", "load_tl", "save_tl"]
