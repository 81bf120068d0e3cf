"""Whether a value is what a type says: reports are JSON, and their types are written by hand."""

import types
import typing
from typing import Any, Literal, NotRequired, Union, get_args, get_origin


def check(value: Any, hint: Any, at: str = "report") -> None:
    """Fail where ``value`` is not a ``hint``: a key too many, too few, or of another type."""
    if hint is Any:
        return
    origin = get_origin(hint)
    if typing.is_typeddict(hint):
        hints = typing.get_type_hints(hint, include_extras=True)
        assert isinstance(value, dict), at
        required = {key for key in hints if key in hint.__required_keys__}
        assert required <= set(value), f"{at}: {sorted(required - set(value))} are missing"
        assert set(value) <= set(hints), f"{at}: {sorted(set(value) - set(hints))} are not in the type"
        for key, item in value.items():
            check(item, hints[key], f"{at}.{key}")
    elif origin is NotRequired:
        check(value, get_args(hint)[0], at)
    elif origin in (Union, types.UnionType):
        for option in get_args(hint):
            try:
                return check(value, option, at)
            except AssertionError as e:
                last = e
        raise last
    elif origin is list:
        assert isinstance(value, list), at
        for i, item in enumerate(value):
            check(item, get_args(hint)[0], f"{at}[{i}]")
    elif origin is dict:
        assert isinstance(value, dict), at
        for key, item in value.items():
            check(item, get_args(hint)[1], f"{at}.{key}")
    elif origin is Literal:
        assert value in get_args(hint), f"{at}: {value!r} is not one of {get_args(hint)}"
    elif hint is float:
        # What is not finite is null in JSON.
        assert value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)), f"{at}: {value!r}"
    elif hint is type(None):
        assert value is None, at
    elif hint is int:
        assert isinstance(value, int) and not isinstance(value, bool), f"{at}: {value!r}"
    else:
        assert isinstance(value, hint), f"{at}: {value!r} is not {hint}"


def returned(function: Any, report: Any) -> Any:
    """The report of a function, which is of the type that it says."""
    check(report, typing.get_type_hints(function)["return"], function.__name__)
    return report
