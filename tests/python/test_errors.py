"""How failures are told."""

import pickle
from pathlib import Path

import pytest

import tlkit


def test_parts_of_an_error(tmp_path: Path) -> None:
    """Breaks where an error loses its code, its kind, its file, or its one line."""
    missing = tmp_path / "missing.tl"
    with pytest.raises(tlkit.Error) as caught:
        tlkit.verify_file(missing)
    error = caught.value
    assert (error.code, error.kind, error.file, error.tensor) == ("TL0002", "io", str(missing), None)
    assert str(error) == f"[TL0002] {missing}: no such file or folder"
    assert error.report is None
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.__dict__) == (tlkit.Error, str(error), error.__dict__)


def test_every_malformed_file_has_its_code(fixtures: Path) -> None:
    """Breaks where Python takes a file that the command refuses, or says another code."""
    seen = set()
    for code in sorted((fixtures / "v1" / "malformed").glob("*.code")):
        file = code.with_suffix(".tl")
        if not file.exists():
            continue
        with pytest.raises(tlkit.Error) as caught:
            tlkit.verify_file(file)
        assert caught.value.code == code.read_text().strip(), file.name
        seen.add(caught.value.kind)
    assert {"malformed", "integrity"} <= seen


def test_hints_speak_of_parameters(fixtures: Path, lora: Path, tmp_path: Path) -> None:
    """Breaks where Python's users are told of flags."""
    out = tmp_path / "out.tl"
    out.write_bytes(b"")
    with pytest.raises(tlkit.Error) as caught:
        tlkit.convert.peft_to_tied(lora, out)
    assert caught.value.hint == "choose another name, or let it be replaced"
    with pytest.raises(tlkit.Error) as caught:
        tlkit.fit(lora, tmp_path / "fit.tl", rank=2, tolerance=0.1)
    assert caught.value.kind == "usage" and "--" not in str(caught.value)
    with pytest.raises(tlkit.Error) as caught:
        tlkit.fit(lora, tmp_path / "fit.tl")
    assert caught.value.kind == "usage" and "--" not in str(caught.value)


def test_names_with_dashes_are_names(tied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks where a file's name is taken for a flag."""
    monkeypatch.chdir(tmp_path)
    for name in ("--help", "-o", "a=0.5", "é\udcff"):
        Path(name).write_bytes(tied.read_bytes())
        assert tlkit.verify_file(name)["canonical"]
        tlkit.pack(name, "--out", zstd=True, force=True)
        assert tlkit.verify_file("--out")["root"] == tlkit.verify_file(name)["root"]


def test_arguments_of_the_wrong_type(tied: Path) -> None:
    """Breaks where Python's own errors come from deep inside."""
    with pytest.raises(TypeError):
        tlkit.Adapter.open(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        tlkit.verify_file(tied, nope=1)  # type: ignore[call-arg]
    with pytest.raises(tlkit.Error) as caught:
        tlkit.verify_adapters(tied, tied, tolerance="much")  # type: ignore[arg-type]
    assert caught.value.kind == "usage"
