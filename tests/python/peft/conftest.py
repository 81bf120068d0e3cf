"""What the tests of ``tlkit.peft`` share. They need torch, transformers and PEFT, and are skipped without."""

import importlib.util
from pathlib import Path

import pytest


def _is_there(name: str) -> bool:
    # A folder of that name, such as this one, is found as a package without an origin.
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None


MISSING = [name for name in ("torch", "transformers", "peft") if not _is_there(name)]
collect_ignore_glob = ["test_*.py"] if MISSING else []
ROOT = Path(__file__).resolve().parents[3]


def pytest_report_header() -> str:
    """Say why nothing is collected here."""
    return f"tests/python/peft is skipped: {', '.join(MISSING)} missing" if MISSING else "tests/python/peft"


@pytest.fixture
def model():
    """The small model of the fixtures, in float32, in evaluation mode."""
    from transformers import AutoModelForCausalLM

    def load(dtype: str = "float32"):
        import torch

        return AutoModelForCausalLM.from_pretrained(
            ROOT / "fixtures" / "llama-tiny", dtype=getattr(torch, dtype)
        ).eval()

    return load
