"""What the other tests of this folder need."""

import pytest
from needs import MISSING


def test_torch_transformers_and_peft_are_there():
    """Where they are not, nothing else is collected here, and this says so."""
    if MISSING:
        pytest.skip(f"tests/python/peft is left out: {', '.join(MISSING)} missing")
