"""Train, store, convert, merge and verify Tied-LoRA adapters, and the LoRA and VeRA adapters of PEFT."""

from tlkit._adapter import Adapter, seeded
from tlkit._error import Error, Warning
from tlkit._native import __version__

__all__ = ["Adapter", "Error", "Warning", "__version__", "seeded"]
