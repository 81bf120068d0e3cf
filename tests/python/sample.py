"""What a user of the package writes; mypy checks it, and nothing runs it."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import tlkit


def shrink(adapter: Path, base: Path, out: Path) -> float:
    """Fit, merge and prove, with every report used as what it is."""
    fitted = tlkit.fit(adapter, out / "a.tl", tolerance=0.05, base=base, progress=lambda done, total, what: None)
    error: float = fitted["error"]
    merged = tlkit.merge(base, {out / "a.tl": 0.5}, out / "merged")
    changed: int = merged["total"]["changed"]
    proof = tlkit.verify_merged(base, {out / "a.tl": 0.5}, out / "merged")
    if not proof["equal"] or changed == 0:
        raise RuntimeError(proof["obeys"])
    return error


def look(path: str) -> dict[str, NDArray[np.float32]]:
    """Every update of an adapter."""
    adapter = tlkit.Adapter.open(path)
    parts = tlkit.Adapter.from_parts(adapter.manifest, adapter.tensors())
    return {name: parts.delta(name) for name in parts.modules}


def serve(url: str, name: str, out: Path) -> str | None:
    """Get an adapter that may not be there."""
    store = tlkit.Store(url)
    try:
        return store.get(name, out)["root"]
    except tlkit.Error as error:
        if error.code == "TL0704":
            return None
        raise


def costs(folder: Path) -> int:
    """What adapters take that a thinner form would not."""
    report = tlkit.audit(folder, template="{user}/{task}")
    return sum(row["bytes"] for row in report["rows"] if row["error"] is None)
