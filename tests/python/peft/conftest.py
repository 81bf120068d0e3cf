"""What the tests of ``tlkit.peft`` share. They need torch, transformers and PEFT, and are skipped without."""

from pathlib import Path

import pytest
from needs import MISSING

collect_ignore_glob = ["test_[a-mo-z]*.py"] if MISSING else []
ROOT = Path(__file__).resolve().parents[3]


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
