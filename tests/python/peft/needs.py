"""What the tests of this folder need."""

import importlib.util


def _is_there(name: str) -> bool:
    # A folder of that name, such as this one, is found as a package without an origin.
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None


MISSING = [name for name in ("torch", "transformers", "peft") if not _is_there(name)]
