"""Train, store, convert, merge and verify Tied-LoRA adapters, and the LoRA and VeRA adapters of PEFT.

Functions have the names and defaults of the command ``tlkit``, and give back what its ``--json`` prints, as typed
dictionaries (:mod:`tlkit.reports`). Failures are :class:`Error`. Work runs without the interpreter's lock; Ctrl-C stops
it, and leaves nothing half-written. ``import tlkit`` imports NumPy alone; :mod:`tlkit.torch` is for torch.
"""

from tlkit import convert
from tlkit._adapter import Adapter, seeded
from tlkit._combine import combine
from tlkit._error import Error, Warning
from tlkit._extract import extract
from tlkit._fit import fit, fit_curve, fit_onto, fit_shared, fit_untied
from tlkit._look import audit, inspect, pack, params, plan
from tlkit._merge import dequantise, merge, merge_each, plan_merge, unmerge
from tlkit._native import __version__
from tlkit._run import evaluate, generate, sweep, train
from tlkit._store import Store
from tlkit._verify import (
    check,
    sign,
    verify_adapters,
    verify_file,
    verify_logits,
    verify_merged,
    verify_signature,
)

__all__ = [
    "Adapter",
    "Error",
    "Store",
    "Warning",
    "__version__",
    "audit",
    "check",
    "combine",
    "convert",
    "dequantise",
    "evaluate",
    "extract",
    "fit",
    "fit_curve",
    "fit_onto",
    "fit_shared",
    "fit_untied",
    "generate",
    "inspect",
    "merge",
    "merge_each",
    "pack",
    "params",
    "plan",
    "plan_merge",
    "seeded",
    "sign",
    "sweep",
    "train",
    "unmerge",
    "verify_adapters",
    "verify_file",
    "verify_logits",
    "verify_merged",
    "verify_signature",
]
