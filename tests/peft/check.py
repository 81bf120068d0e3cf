#!/usr/bin/env python3
"""Holds tlkit's PEFT import, export and merge against PEFT itself.

    tests/peft/setup.sh
    tests/peft/venv/bin/python tests/peft/check.py --tlkit target/release/tlkit --data PEFT_INTEROP_DIR

For every adapter in DATA/adapters, on its base in DATA/bases:

    plain     peft-to-tied, tied-to-peft; PEFT loads the result and computes the logits of the original
    portable  the same with --portable (for servers: may be refused where the adapter has no such form)
    vera      the same with --as vera (VeRA adapters only)
    merge     the merged model: every weight within one ulp of what PEFT merged, the logits too
    tied=     merging the .tl, and merging its export to PEFT, give the same bytes

"PEFT loads" means no missing and no unexpected tensor, and no warning the original adapter does not also cause.

Tolerances. Adapters: atol = rtol = 1e-4, as in PEFT's own tests. float32 bases are held against the stored logits;
bfloat16 and float16 bases are read as float32, where a wrong adapter cannot hide behind the rounding of the forward
pass, and held against PEFT with the original files. Merged models: loaded in their own dtype, against the weights PEFT
merged; float32 1e-4, else HALF below, twice what changing the last bit of a float32 adapter was seen to move the
logits of these bases by (their size is below 1).

Standard output is the table and a closing `N passed, N failed` (with --json, one JSON object); the exit status is 1
when a check failed, 2 when the checks could not be run.
"""

import argparse
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
try:
    import peft
    import torch
    import transformers
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM
except ImportError as e:
    print(f"{e}: run tests/peft/setup.sh, then this with tests/peft/venv/bin/python", file=sys.stderr)
    sys.exit(2)

# What tlkit has to refuse: writing nothing, with an exit status that is not 0.
REFUSE_CONVERT = {"lora-dora": "DoRA is no tied LoRA", "lora-pissa": "PiSSA changes the base it is loaded on"}
REFUSE_MERGE = {"lora-pissa"}
# Adapters with no portable form (more than A and B on linear layers): refusing is right, a correct export is too.
NO_PORTABLE = {"lora-bias-all", "lora-lorabias", "lora-modules-to-save", "lora-embed", "lora-gpt2-conv1d", "vera-gpt2"}

F32 = 1e-4
HALF = {torch.bfloat16: 2e-2, torch.float16: 1e-3}
COLUMNS = ("plain", "portable", "vera", "merge", "tied=")


class Fail(Exception):
    """A check that did not hold; the message says what was found."""


class Adapter:
    """One adapter of the set: its files, its base, and PEFT's results for it."""

    def __init__(self, data: Path, name: str, base: str):
        self.name, self.base = name, data / "bases" / base
        self.path, self.expected = data / "adapters" / name, data / "expected" / name
        stored = load_file(self.expected / "logits.safetensors")
        self.ids = stored["input_ids"]
        model, self.warnings = load_adapter(self.base, self.path)
        merged = load_base(self.base)
        self.merged_tol = HALF.get(merged.dtype, F32)
        if merged.dtype == torch.float32:
            self.logits, self.merged = stored["logits_adapter"], stored["logits_merged"]
        else:  # the stored ones hold only for kernels that round as those of the machine that made them
            self.logits = run(model, self.ids)
            merged.load_state_dict(load_file(self.expected / "merged" / "model.safetensors"), strict=False)
            self.merged = run(merged, self.ids)


def load_base(path, dtype="auto"):
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()


def run(model, ids):
    with torch.no_grad():
        return model(ids).logits.float()


def load_adapter(base: Path, path: Path):
    """The float32 model with the adapter at `path`, and the warnings it caused.

    Raises Fail on missing or unexpected tensors. PEFT says nothing of unexpected ones when it loads a folder, so what
    its loader returned is looked at as well.
    """
    results = []
    inner = peft.peft_model.set_peft_model_state_dict

    def spy(*args, **kwargs):
        results.append(inner(*args, **kwargs))
        return results[-1]

    model = load_base(base, torch.float32)
    peft.peft_model.set_peft_model_state_dict = spy
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = PeftModel.from_pretrained(model, path).eval()
    finally:
        peft.peft_model.set_peft_model_state_dict = inner
    messages = {str(w.message).replace(str(path), "ADAPTER") for w in caught}
    missing = [m for m in messages if "missing adapter keys" in m]
    unexpected = [k for r in results for k in r.unexpected_keys]
    if missing or unexpected or not results:
        raise Fail(f"{'; '.join(missing)} unexpected keys: {unexpected[:3]}"[:300])
    return model, messages


def close(got, want, tol) -> str:
    """Raises Fail unless |got - want| <= tol + tol * |want| everywhere; else the largest difference, to print."""
    if got.shape != want.shape:
        raise Fail(f"logits are {tuple(got.shape)}, not {tuple(want.shape)}")
    worst = (got - want).abs().max().item()
    if not torch.allclose(got, want, rtol=tol, atol=tol):
        raise Fail(f"logits differ by {worst:.2e} (tolerance {tol:g})")
    return f"{worst:.0e}" if worst else "0"


def ulps(got, want):
    """How many representable values apart, elementwise (both of one float dtype)."""
    ints = {2: torch.int16, 4: torch.int32}[got.element_size()]
    top = 1 << (8 * got.element_size() - 1)
    a, b = (x.contiguous().view(ints).to(torch.int64) for x in (got, want))
    return (torch.where(a < 0, -top - a, a) - torch.where(b < 0, -top - b, b)).abs()


class Tool:
    """tlkit, as a user runs it."""

    def __init__(self, binary: str):
        self.binary = binary

    def __call__(self, *args):
        p = subprocess.run([self.binary, *map(str, args)], capture_output=True, text=True, timeout=300)
        if p.returncode < 0 or p.returncode == 101:  # a signal, a panic: never an answer
            raise Fail(f"`{' '.join(map(str, args))}` crashed ({p.returncode}): {last(p.stderr)}")
        return p

    def ok(self, *args):
        p = self(*args)
        if p.returncode != 0:
            raise Fail(f"`{args[0]} {args[1]}` exited {p.returncode}: {last(p.stderr)}")

    def refused(self, out: Path, *args) -> bool:
        """Whether it refused. Raises Fail if a refusal left anything where the output was to go, or gave no reason."""
        before = set(out.parent.iterdir())
        p = self(*args)
        if p.returncode == 0:
            return False
        left = set(out.parent.iterdir()) - before
        if left:
            raise Fail(f"refused, but left {sorted(x.name for x in left)}")
        if not p.stderr.strip():
            raise Fail(f"exited {p.returncode} without a word")
        return True


def last(text: str) -> str:
    lines = [x for x in text.splitlines() if x.strip()]
    return " / ".join(lines[:3])[:300] if lines else "(no message)"


def check_export(tool: Tool, a: Adapter, tied: Path, out: Path, *flags, may_refuse=False) -> str:
    args = ("convert", "tied-to-peft", tied, "-o", out, *flags)
    if may_refuse:
        if tool.refused(out, *args):
            return "refused"
    else:
        tool.ok(*args)
    model, messages = load_adapter(a.base, out)
    if messages - a.warnings:
        raise Fail(f"PEFT warns: {sorted(messages - a.warnings)[0][:200]}")
    kind = json.loads((out / "adapter_config.json").read_text())["peft_type"]
    if kind != ("VERA" if "vera" in flags else "LORA"):
        raise Fail(f"peft_type is {kind}")
    return close(run(model, a.ids), a.logits, F32)


def check_merge(tool: Tool, a: Adapter, out: Path) -> str:
    if a.name in REFUSE_MERGE:
        if not tool.refused(out, "merge", a.base, a.path, "-o", out):
            raise Fail("merged, but must be refused")
        return "refused"
    tool.ok("merge", a.base, a.path, "-o", out)
    got, want = load_file(out / "model.safetensors"), load_file(a.expected / "merged" / "model.safetensors")
    if got.keys() != want.keys():
        raise Fail(f"tensor names differ: {sorted(got.keys() ^ want.keys())[:4]}")
    differ = 0
    for name, w in want.items():
        g = got[name]
        if (g.dtype, g.shape) != (w.dtype, w.shape):
            raise Fail(f"{name} is {g.dtype} {tuple(g.shape)}, not {w.dtype} {tuple(w.shape)}")
        apart = ulps(g, w)
        differ += int((apart > 0).sum())
        if apart.max() > 1:
            raise Fail(f"{name}: a weight is {int(apart.max())} ulp from PEFT's")
    worst = close(run(load_base(out), a.ids), a.merged, a.merged_tol)
    return f"{worst}, {differ} ulp" if differ else worst


def check_same_bytes(tool: Tool, a: Adapter, tied: Path, exported: Path, work: Path) -> str:
    blobs = []
    for i, adapter in enumerate((tied, exported)):
        out = work / f"same{i}"
        tool.ok("merge", a.base, adapter, "-o", out)
        blobs.append((out / "model.safetensors").read_bytes())
    if blobs[0] != blobs[1]:
        raise Fail("merge(T.tl) and merge(export of T.tl) differ")
    return "="


def check_adapter(tool: Tool, a: Adapter, work: Path) -> dict:
    """Column -> (passed, text) for one adapter."""
    row = {}

    def record(column, check, *args, **kwargs):
        try:
            row[column] = (True, check(*args, **kwargs))
        except Fail as e:
            row[column] = (False, str(e))
        except Exception as e:  # what PEFT or transformers make of our files: the finding, not an accident
            row[column] = (False, f"{type(e).__name__}: {str(e)[:200]}")
        return row[column][0]

    def refuse_convert():
        if not tool.refused(tied, "convert", "peft-to-tied", a.path, "-o", tied):
            raise Fail(f"converted, but must be refused ({REFUSE_CONVERT[a.name]})")
        return "refused"

    def plain():
        # Only with the base can tlkit know how many inputs the modules of such an adapter have.
        base = ["--base", a.base] if a.name == "vera-noproj" else []
        tool.ok("convert", "peft-to-tied", a.path, "-o", tied, *base)
        return check_export(tool, a, tied, work / "plain")

    tied = work / "T.tl"
    record("merge", check_merge, tool, a, work / "merged")
    if a.name in REFUSE_CONVERT:
        record("plain", refuse_convert)
        return row
    if record("plain", plain):
        record("tied=", check_same_bytes, tool, a, tied, work / "plain", work)
    if tied.exists():
        portable = a.name in NO_PORTABLE
        record("portable", check_export, tool, a, tied, work / "portable", "--portable", may_refuse=portable)
        if a.name.startswith("vera"):
            record("vera", check_export, tool, a, tied, work / "vera", "--as", "vera")
    return row


def table(rows: dict) -> str:
    cells = [("adapter", *COLUMNS)]
    for name, row in rows.items():
        cells.append((name, *(("-" if c not in row else row[c][1] if row[c][0] else "FAIL") for c in COLUMNS)))
    widths = [max(len(r[i]) for r in cells) for i in range(len(cells[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(r, widths)).rstrip() for r in cells)


def main() -> int:
    parser = argparse.ArgumentParser(description="Hold tlkit's PEFT import, export and merge against PEFT itself.")
    parser.add_argument("--tlkit", required=True, help="the tlkit binary")
    parser.add_argument("--data", required=True, type=Path, help="folder with adapters, bases, expected, summary.json")
    parser.add_argument("--only", default="", help="check only the adapters whose name this regular expression finds")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    args = parser.parse_args()
    if not shutil.which(args.tlkit):
        parser.error(f"{args.tlkit} cannot be run")
    bases = {n: s["base"] for n, s in json.loads((args.data / "summary.json").read_text()).items()}
    names = [n for n in bases if re.search(args.only, n)]
    if not names:
        parser.error(f"no adapter in {args.data} matches --only {args.only}")

    tool, rows = Tool(args.tlkit), {}
    for name in names:
        with tempfile.TemporaryDirectory(prefix="tlkit-peft-") as work:
            rows[name] = check_adapter(tool, Adapter(args.data, name, bases[name]), Path(work))
    results = [(n, c, ok, text) for n, row in rows.items() for c, (ok, text) in row.items()]
    failed = [r for r in results if not r[2]]
    if args.json:
        checks = [dict(zip(("adapter", "check", "passed", "detail"), r)) for r in results]
        print(json.dumps({"checks": checks, "passed": len(results) - len(failed), "failed": len(failed)}, indent=1))
    else:
        print(table(rows))
        for name, column, _, text in failed:
            print(f"FAIL {name} {column}: {text}")
        print(f"{len(results) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    try:
        sys.exit(main())
    except OSError as e:
        print(f"check.py: {e}", file=sys.stderr)
        sys.exit(2)
