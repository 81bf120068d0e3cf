"""What goes wrong, with whose fault it is."""

from __future__ import annotations

import json
import os
from typing import Any, Literal

Kind = Literal[
    "io", "usage", "malformed", "integrity", "limit", "unsupported", "incompatible", "interrupted", "internal"
]


class Error(Exception):
    """A failure that tlkit knows. ``str(error)`` is one line: code, file, tensor, message, hint.

    Attributes:
        code: Stable code such as ``"TL0502"``; ``spec/errors.md`` lists them.
        kind: By whose fault: ``"io"`` (the system refused), ``"usage"`` (the arguments), ``"malformed"``,
            ``"integrity"`` and ``"limit"`` (a file), ``"unsupported"``, ``"incompatible"`` (two inputs),
            ``"interrupted"``, ``"internal"`` (a bug of tlkit).
        message: What is wrong, one line, without file and hint.
        file: The file or folder that it is about.
        tensor: The tensor or module that it is about.
        hint: What to do about it.
        report: The report that tells of the failures, where work went on past them; else None.
    """

    code: str
    kind: Kind
    message: str
    file: str | None
    tensor: str | None
    hint: str | None
    report: Any

    def __init__(
        self,
        code: str,
        kind: Kind,
        message: str,
        file: str | os.PathLike[str] | None = None,
        tensor: str | None = None,
        hint: str | None = None,
        report: str | None = None,
    ) -> None:
        """Make an error of its parts; ``report`` is a JSON document."""
        super().__init__(code, kind, message, file, tensor, hint, report)
        self.code = code
        self.kind = kind
        self.message = message
        self.file = None if file is None else os.fspath(file)
        self.tensor = tensor
        self.hint = hint
        self.report = None if report is None else json.loads(report)

    def __str__(self) -> str:
        """Say it in one line."""
        place = "".join(f"{part}: " for part in (self.file, self.tensor) if part)
        hint = f" (hint: {self.hint})" if self.hint else ""
        return f"[{self.code}] {place}{self.message}{hint}"


class Warning(UserWarning):
    """Something that needs attention, though the work goes on."""
