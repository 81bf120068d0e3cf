"""Functions of Python as calls of the command: one list of names, defaults and checks for both."""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias, TypedDict, TypeVar, cast

from tlkit import _native
from tlkit._error import Error, Warning

StrPath: TypeAlias = str | os.PathLike[str]
Progress: TypeAlias = Callable[[int, int | None, str], object]
"""Called with what is done, of how much (None where nobody knows), and what the work is."""

T = TypeVar("T")
_log = logging.getLogger("tlkit")


class Argument(TypedDict):
    """One argument of a command."""

    long: str | None
    id: str
    help: str
    required: bool
    switch: bool
    bare: bool
    multiple: bool
    delimiter: str | None
    default: list[str]
    values: list[str]


def name_of(argument: Argument) -> str:
    """What Python calls an argument; a place by its ``id``."""
    name = (argument["long"] or argument["id"]).replace("-", "_")
    return name + "_" if name in ("as", "lambda") else name


@functools.cache
def commands() -> dict[str, list[Argument]]:
    """The arguments of every command, by its words."""
    return {" ".join(leaf["path"]): leaf["arguments"] for leaf in json.loads(_native.commands())}


_OWN = ("self", "progress", "threads")


def call(command: str, given: Mapping[str, Any], report: type[T], without: tuple[str, ...] = (), **more: Any) -> T:
    """Do what ``command`` does, and give its report, which is a ``report``.

    Args:
        command: Its words.
        given: The parameters of a function, by name: ``locals()``.
        report: The type of the report.
        without: Those that are no arguments of the command.
        more: Arguments that are no parameters.
    """
    progress: Progress | None = given.get("progress")
    threads = given.get("threads")
    values = {name: value for name, value in given.items() if name not in _OWN and name not in without} | more
    words = command.encode().split()
    if threads is not None:
        words.append(b"--threads=%d" % threads)
    words += _arguments(commands()[command], values)
    try:
        document, _, notes, attention = _native.call(words, progress)
    except Error as error:
        raise _in_python(error) from None
    for note in notes:
        _log.info("%s", note)
    for text in attention:
        warnings.warn(text, Warning, stacklevel=3)
    return cast(T, None if document is None else json.loads(document))


def _in_python(error: Error) -> Error:
    """The same, with parameters in place of flags where clap said it."""
    if error.kind != "usage":
        return error
    message = re.sub(r"--([a-z][a-z0-9-]*)", lambda m: m[1].replace("-", "_"), error.message)
    hint = None if error.hint == "try --help" else error.hint
    return Error(error.code, error.kind, message, error.file, error.tensor, hint)


def _arguments(arguments: list[Argument], values: Mapping[str, Any]) -> Iterator[bytes]:
    known = {name_of(argument): argument for argument in arguments}
    unknown = set(values) - set(known)
    assert not unknown, f"not arguments of the command: {unknown}"
    places: list[bytes] = []
    for name, argument in known.items():
        value = values.get(name)
        if value is None or is_default(argument, value):
            continue
        if argument["long"] is None:
            places += _words(value)
            continue
        flag = b"--" + argument["long"].encode()
        if argument["switch"] or (value is True and "true" not in argument["values"]):
            yield flag
        elif argument["multiple"]:
            yield from (flag + b"=" + word for word in _words(value))
        else:
            yield flag + b"=" + b",".join(_words(value))
    # What begins with a dash is no flag after this.
    yield b"--"
    yield from places


def is_default(argument: Argument, value: Any) -> bool:
    """Whether the command takes this value where none is given."""
    if argument["switch"]:
        return not value
    if value is False and "false" not in argument["values"]:
        return True
    default = argument["default"]
    if argument["delimiter"] and len(default) == 1:
        default = default[0].split(argument["delimiter"])
    words = list(_words(value))
    if isinstance(value, float) and len(default) == 1:
        return float(default[0]) == value
    return words == [word.encode() for word in default]


def _words(value: Any) -> Iterator[bytes]:
    if isinstance(value, bool):
        yield b"true" if value else b"false"
    elif isinstance(value, (str, os.PathLike)):
        yield os.fsencode(value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield os.fsencode(key) + b"=" + next(_words(item))
    elif hasattr(value, "__index__"):
        yield b"%d" % value.__index__()
    elif hasattr(value, "__float__"):
        yield repr(float(value)).encode()
    else:
        for item in value:
            yield from _words(item)
