"""Holds what tlkit makes of a cell of matrix.py against what PEFT made of it."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import torch
import transformers
from matrix_kinds import BACK, UNTIES
from matrix_peft import merged_in_memory
from safetensors import safe_open

# How far a sum of r products may be off in another order, in units of the largest weight's last place.
RANDOM = {torch.float32: 4, torch.bfloat16: 1}
# The longest row whose norm, which DoRA divides by, is exact: f32 holds the sum of so many squares of the values used here.
EXACT_ROW = 2048


def tensors(folder):
    found = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, "pt") as f:
            found |= {k: f.get_tensor(k) for k in f.keys()}
    return found


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.contiguous().view(-1).view(torch.uint8).equal(
        b.contiguous().view(-1).view(torch.uint8))


def close(a, b):
    """Whether two are within RANDOM, elementwise."""
    if a.dtype != b.dtype or a.shape != b.shape or a.dtype not in RANDOM:
        return False
    ulp = torch.finfo(a.dtype).eps * (b.float().abs() if a.dtype != torch.float32 else b.float().abs().max())
    return bool(((a.float() - b.float()).abs() <= RANDOM[a.dtype] * ulp).all())


def narrowed(a, b, equal):
    """Whether `a` is `b` rounded once: transformers holds some modules in f32 (`_keep_in_fp32_modules`) and saves them so."""
    return a.dtype != b.dtype == torch.float32 and equal(a, b.to(a.dtype))


def without(tensors, names):
    """All but what transformers initialises at random, since neither base nor adapter has it."""
    return {k: t for k, t in tensors.items() if k not in names}


def differences(got, want, equal):
    missing, extra = sorted(want.keys() - got.keys()), sorted(got.keys() - want.keys())
    differ = sorted(k for k in got.keys() & want.keys() if not equal(got[k], want[k]))
    say = lambda what, names: [f"{what} {len(names)}: {', '.join(names[:3])}"] if names else []
    return "; ".join(say("missing", missing) + say("extra", extra) + say("differ", differ))


def loaded(cls, folder, random):
    """The tensors of the model that transformers loads, and the names it draws at random for want of a tensor."""
    model, info = getattr(transformers, cls).from_pretrained(folder, dtype="auto", output_loading_info=True)
    lost = sorted({*info["missing_keys"], *map(str, info["mismatched_keys"])} - {*random})
    return without(model.state_dict(), random), lost


def is_exact(kind, adapters):
    """Whether the values of a cell are such that every sum is exact in any order."""
    rows = [t.shape[-1] for a in adapters for k, t in tensors(a).items() if "lora_A" in k]
    return not kind.startswith("random") and not ("dora" in kind and max(rows, default=0) > EXACT_ROW)


class Tool:
    def __init__(self, binary):
        self.binary = binary

    def __call__(self, *args):
        p = subprocess.run([self.binary, *map(str, args)], capture_output=True, text=True, timeout=120)
        if p.returncode < 0 or p.returncode == 101:
            return "crash", p.stderr[-400:]
        code = re.search(r"TL\d{4}", p.stderr)
        return (None if p.returncode == 0 else code.group() if code else f"exit {p.returncode}"), (p.stderr + p.stdout)[-900:]


def compare(folder, record, cell, out, equal):
    """What a merge is against PEFT's: its mark in the table, and why."""
    random, expected = record.get("random", []), cell / "expected"
    got, want = without(tensors(out), random), without(tensors(expected), random)
    why = differences(got, want, equal)
    if not why:
        return {"cell": "="}
    if not differences(got, want, lambda a, b: equal(a, b) or narrowed(a, b, equal)):
        return {"cell": "~", "detail": "PEFT's file has some in f32: transformers holds them so"}
    (ours, lost), (pefts, theirs) = loaded(record["class"], out, random), loaded(record["class"], expected, random)
    if lost:
        return {"cell": "x", "detail": f"{why} | loads without {lost[:3]}"}
    if theirs:
        # save_pretrained leaves out what it takes for a copy, and from_pretrained then draws it at random.
        pefts = without(merged_in_memory(folder, record, cell).state_dict(), random)
    differ = differences(ours, pefts, equal)
    if differ:
        return {"cell": "x", "detail": f"{why} | {'in memory' if theirs else 'loaded'}: {differ}"}
    return {"cell": "m", "lost": theirs, "detail": f"PEFT's file loads without {theirs[:3]}"} if theirs else {"cell": "~", "detail": why}


def around(tool, kind, base, adapter, cell, how, got):
    """By way of a .tl, and of what PEFT is given back: the same bytes, or what is not."""
    tl, result = cell / "a.tl", {}
    tl.unlink(missing_ok=True)
    steps = [("tl", ("convert", "peft-to-tied", adapter, "-o", tl, "--base", base), tl)]
    if kind in BACK:
        steps.append(("back", ("convert", "tied-to-peft", tl, "-o", cell / "back", "--base", base), cell / "back"))
    for step, convert, made in steps:
        for folder in ("back", "out2"):
            shutil.rmtree(cell / folder, ignore_errors=True)
        code, text = tool(*convert)
        if code:
            return result | {step: f"convert {code} {text[:300]}"}
        code, text = tool("merge", base, made, "-o", cell / "out2", "--tied", how)
        result[step] = code and f"merge {code} {text[:300]}" or differences(tensors(cell / "out2"), got, same) or "="
    for folder in ("back", "out2"):
        shutil.rmtree(cell / folder, ignore_errors=True)
    return result


def check_cell(tool, folder, kind, record, quick=False):
    cell, base = folder / "cells" / kind, folder / record["base"]
    adapters, out = [cell / a for a in record.get("adapters", ["adapter"])], cell / "out"
    shutil.rmtree(out, ignore_errors=True)
    # PEFT changes the shared tensor, but for modules_to_save: those become tensors of their own.
    how = "untie" if kind in UNTIES else "shared"
    code, text = tool("merge", base, *adapters, "-o", out, "--tied", how)
    result = {"tied": how, "drawn": bool(record.get("drawn"))}
    if code:
        return result | {"cell": code, "detail": text}
    exact = is_exact(kind, adapters)
    equal = same if exact else lambda a, b: same(a, b) or close(a, b)
    try:
        result |= compare(folder, record, cell, out, equal)
    except Exception as e:
        result |= {"cell": "x", "detail": f"{type(e).__name__}: {e}"}
    if result["cell"] in "=~m" and not kind.startswith("random") and not quick:
        pefts = result["cell"] == "=" and exact and not record.get("random")
        given = [x for a in adapters for x in ("--adapter", a)]
        whose = [cell / "expected", "--weights-only"] if pefts else [out]
        code, text = tool("verify", "merged", "--base", base, *given, "--tied", how, "--merged", *whose)
        result["verify"] = f"{code} {text}" if code else "PEFT's" if pefts else "own"
        if len(adapters) == 1:
            result |= around(tool, kind, base, adapters[0], cell, how, tensors(out))
    if result["cell"] in "=~m":
        shutil.rmtree(out, ignore_errors=True)
    return result


def check_row(tool, folder, kinds, quick):
    file = folder / "result.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    for kind in kinds:
        record = folder / "records" / f"{kind}.json"
        if not record.exists():
            results[kind] = {"cell": "-", "detail": "no time"}
            continue
        record = json.loads(record.read_text())
        results[kind] = {"cell": "-", "detail": record["absent"]} if "absent" in record else check_cell(tool, folder, kind, record, quick)
        file.write_text(json.dumps(results, indent=1))
