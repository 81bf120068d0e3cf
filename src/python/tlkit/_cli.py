"""The command ``tlkit``."""

from __future__ import annotations

import os
import sys

from tlkit import _native


def main() -> int:
    """Run the command with this process's arguments, and give its exit code."""
    return _native.main([os.fsencode(arg) for arg in sys.argv[1:]])
