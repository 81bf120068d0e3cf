"""Signatures, and where it is installed the package that OpenSSF Model Signing has for them."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from shapes import returned

import tlkit

KEY = """-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgHmpW6ei+joCKCOWX
LDKPpfvP9lIRd0J6GcL9nWQXbMShRANCAAS+zQucW8DImXSxXPBVaZNHs5q9s/E+
MjPy2xdqF6btAto4tHrcoizfzn+LKUUUjZ5MQ2VV+BpPONEUDNzfscHB
-----END PRIVATE KEY-----
"""
PUBLIC = """-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEvs0LnFvAyJl0sVzwVWmTR7OavbPx
PjIz8tsXahem7QLaOLR63KIs385/iylFFI2eTENlVfgaTzjRFAzc37HBwQ==
-----END PUBLIC KEY-----
"""


@pytest.fixture
def signed(lora: Path, tmp_path: Path) -> Path:
    """A folder of one's own to sign."""
    return shutil.copytree(lora, tmp_path / "lora")


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """A private key of nobody, and its public key."""
    pair = tmp_path / "key.pem", tmp_path / "public.pem"
    for path, text in zip(pair, (KEY, PUBLIC), strict=True):
        path.write_text(text)
    return pair


def test_signatures_bind_files_and_names(signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    """Breaks where a signature is not verified, or a report is of another type."""
    key, public = keys
    out = tmp_path / "own.sig"
    report = returned(tlkit.sign, tlkit.sign(signed, key, out, name="alice/style@3"))
    assert report["name"] == "alice/style@3" and json.loads(out.read_text())["dsseEnvelope"]
    verified = tlkit.verify_signature(signed, out, [public], name="alice/style@3")
    assert returned(tlkit.verify_signature, verified)["files"] == report["files"]
    (signed / "more").write_text("")
    with pytest.raises(tlkit.Error) as caught:
        tlkit.verify_signature(signed, out, public)
    assert caught.value.kind == "integrity"


def test_the_other_side(signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    """Breaks where ``model_signing`` does not verify our signatures, or we do not verify its."""
    pytest.importorskip("model_signing")
    key, public = keys

    def theirs(what: str, signature: Path, *rest: str) -> None:
        line = ["model_signing", what, "key", "--signature", str(signature), *rest, str(signed)]
        subprocess.run(line, check=True, capture_output=True)

    ours = tmp_path / "ours.sig"
    tlkit.sign(signed, key, ours, name="alice/style@3")
    theirs("verify", ours, "--public_key", str(public))
    other = tmp_path / "theirs.sig"
    theirs("sign", other, "--private_key", str(key))
    tlkit.verify_signature(signed, other, public)
    (signed / "adapter_config.json").write_text("{}")
    with pytest.raises(subprocess.CalledProcessError):
        theirs("verify", ours, "--public_key", str(public))
    with pytest.raises(tlkit.Error):
        tlkit.verify_signature(signed, other, public)
