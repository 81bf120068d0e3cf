"""What the tests of ``tlkit.peft`` share. They need torch, transformers and PEFT, and are skipped without."""

import importlib.util
from pathlib import Path

import pytest

MISSING = [name for name in ("torch", "transformers", "peft") if importlib.util.find_spec(name) is None]
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
