"""One list of names and defaults for the command and for Python."""

import inspect
import json
from collections.abc import Callable
from typing import Any

import pytest

import tlkit
from tlkit import _native, convert
from tlkit._call import commands, is_default, name_of

Function = Callable[..., Any]

# The functions of each command, and what they leave to its other functions.
FUNCTIONS: dict[str, list[Function]] = {
    "convert peft-to-tied": [
        convert.peft_to_tied,
        tlkit.fit,
        tlkit.fit_untied,
        tlkit.fit_curve,
        tlkit.fit_shared,
        tlkit.fit_onto,
    ],
    "convert tied-to-peft": [convert.tied_to_peft],
    "convert tied-to-gguf": [convert.tied_to_gguf],
    "combine": [tlkit.combine],
    "convert mlx-to-tied": [convert.mlx_to_tied],
    "convert nemo-to-tied": [convert.nemo_to_tied],
    "convert tied-to-mlx": [convert.tied_to_mlx],
    "check": [tlkit.check],
    "train": [tlkit.train],
    "sweep": [tlkit.sweep],
    "merge": [tlkit.merge, tlkit.merge_each, tlkit.plan_merge],
    "extract": [tlkit.extract],
    "dequantise": [tlkit.dequantise],
    "unmerge": [tlkit.unmerge],
    "verify file": [tlkit.verify_file],
    "verify adapters": [tlkit.verify_adapters],
    "verify merged": [tlkit.verify_merged],
    "verify logits": [tlkit.verify_logits],
    "verify signature": [tlkit.verify_signature],
    "sign": [tlkit.sign],
    "inspect": [tlkit.inspect],
    "pack": [tlkit.pack],
    "store init": [tlkit.Store.init],
    "generate": [tlkit.generate],
    "eval": [tlkit.evaluate],
    "params": [tlkit.params],
    "audit": [tlkit.audit],
    "plan": [tlkit.plan],
}
FUNCTIONS |= {
    f"store {name}": [getattr(tlkit.Store, name)]
    for name in [
        "put",
        "get",
        "list",
        "history",
        "tag",
        "rm",
        "stat",
        "fsck",
        "gc",
        "publish",
        "quota",
        "export",
        "sync",
        "watch",
        "push",
        "pull",
    ]
}
FUNCTIONS["store import"] = [tlkit.Store.import_]
# For people at a terminal.
LEFT_OUT = {"completions", "demo", "devices"}
# What the function itself says.
SAID = {
    "convert peft-to-tied": {"fit", "untied", "share"},
    "merge": {"each", "dry_run"},
    # Without an end.
    "store export": {"watch", "every"},
    "store watch": {"interval", "once"},
}
# Of one adapter where the command takes several.
ALIASES = {"adapter": "adapters"}
OWN = {"self", "cls", "progress", "threads"}


def test_every_command_has_its_function() -> None:
    """Breaks where a command is added and Python does not have it."""
    assert set(commands()) - LEFT_OUT == set(FUNCTIONS)


@pytest.mark.parametrize("command", FUNCTIONS)
def test_names_and_defaults_are_those_of_the_command(command: str) -> None:
    """Breaks where a flag has no parameter, a parameter no flag, or one has another default than the other."""
    arguments = {name_of(argument): argument for argument in commands()[command]}
    missing = set(arguments) - SAID.get(command, set())
    if command.startswith("store "):
        missing.discard("url")
    for function in FUNCTIONS[command]:
        for name, parameter in inspect.signature(function).parameters.items():
            if name in OWN:
                continue
            known = name if name in arguments else ALIASES.get(name, name)
            assert known in arguments, f"{function.__name__} has {name}, {command} does not"
            missing.discard(known)
            argument, default = arguments[known], parameter.default
            if default is inspect.Parameter.empty:
                assert argument["required"] or argument["default"] == [], name
            elif argument["switch"]:
                assert default is False, name
            elif argument["default"]:
                assert is_default(argument, default), (
                    f"{function.__name__}: {name} is {default}, not {argument['default']}"
                )
            elif function is not tlkit.fit_curve or name != "curve":
                assert default is None or default == (), f"{function.__name__}: {name}"
            if argument["required"] and command != "generate":
                assert default is inspect.Parameter.empty or name in ("output",), name
    assert not missing, f"{command} has {missing}, Python does not"


def test_every_parameter_is_documented() -> None:
    """Breaks where a function does not say what it takes and what it raises."""
    for functions in FUNCTIONS.values():
        for function in functions:
            text = inspect.getdoc(function) or ""
            assert "Raises:" in text, function.__name__
            for name in inspect.signature(function).parameters:
                assert name in ("self", "cls") or f"    {name}: " in text, f"{function.__name__}: {name}"


def test_the_tree_is_json() -> None:
    """Breaks where the list that all of this rests on is empty."""
    assert len(json.loads(_native.commands())) > 30
