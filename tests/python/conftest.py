"""What the tests of the Python package share. They need NumPy alone, and run on ``fixtures/``."""

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The folder of fixtures; nothing is written there."""
    return ROOT / "fixtures"


@pytest.fixture
def base(fixtures: Path, tmp_path: Path) -> Path:
    """A copy of the small model."""
    return Path(shutil.copytree(fixtures / "llama-tiny", tmp_path / "base"))


@pytest.fixture
def lora(fixtures: Path) -> Path:
    """An untied LoRA of PEFT."""
    return fixtures / "adapters" / "lora"


@pytest.fixture
def tied(fixtures: Path) -> Path:
    """A tied adapter."""
    return fixtures / "adapters" / "style-tl6.tl"
