"""A part of the matrix that needs neither torch nor PEFT: fixtures/peft-matrix.jsonl."""

import hashlib
import json

import torch
from matrix_check import same, tensors
from matrix_kinds import UNTIES
from matrix_peft import adapter_value, base_value

# Of each kind of model one, and the kinds whose rules differ most.
IN_FIXTURE = (
    "lora", "dora", "vera", "embed+head-bf16", "mts-embed", "tokens", "params-bf16", "bias-all", "seqcls", "seqcls-no-head",
    "old-adapter",
)


def digest(t):
    return hashlib.sha256(t.contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()[:8]


def fixture(args, rows, kinds):
    """What tests/interop/matrix.rs needs to make the same files again and to know PEFT's merge: a line for each base and cell.

    A tensor is its name, its shape, and where that is not F32 its dtype; its values are those of `values` for a base,
    and of `adapter_value` for an adapter, unless a copy of the base's ("=")
    or the name that a tied tensor has its values by ("~") is given. `few` is of the whole adapter.
    """
    short = {torch.float32: [], torch.bfloat16: ["BF16"], torch.float16: ["F16"]}
    lines, bases = [], set()
    for row in rows:
        folder = args.work / row
        for kind in kinds:
            record = folder / "records" / f"{kind}.json"
            record = json.loads(record.read_text()) if record.exists() else {"absent": ""}
            results = json.loads((folder / "result.json").read_text())
            if "absent" in record or results.get(kind, {}).get("cell") != "=":
                continue
            path, cell = folder / record["base"], folder / "cells" / kind
            base, adapter, want = tensors(path), tensors(cell / "adapter"), tensors(cell / "expected")
            changes = [k for k, t in want.items() if k in base and not same(t, base[k])]
            # A part of what the model holds in one has no values of its own name.
            if any(not same(base[k], base_value(k, base[k])) for k in changes):
                continue
            if record.get("random") or base.keys() - want.keys():
                continue
            name = f"{row}/{path.name}"
            if name not in bases:
                bases.add(name)
                config = json.loads((path / "config.json").read_text())
                lines.append({"base": name, "config": config, "tensors": [[k, list(t.shape), *short[t.dtype]] for k, t in sorted(base.items())]})
            few, given = "dora" in kind or "vera" in kind, []
            for k, t in sorted(adapter.items()):
                copied = [b for b, x in base.items() if same(x, t)]
                alike = [k for k, x in adapter.items() if same(x, t)]
                given.append([k, list(t.shape), *short[t.dtype], *[f"={b}" for b in copied[:1]]])
                if not copied and not same(t, adapter_value(k, t, few)):
                    seeds = [x for x in alike if same(t, adapter_value(x, t, few))]
                    given[-1].append(f"~{seeds[0]}")
            config = json.loads((cell / "adapter" / "adapter_config.json").read_text())
            dull = ("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version")
            config = {k: v for k, v in config.items() if v not in (None, False, {}, []) and k not in dull}
            changed = {k: digest(t) for k, t in sorted(want.items()) if k not in base or not same(t, base[k])}
            lines.append({"of": name, "kind": kind, "untie": kind in UNTIES, "few": few, "config": config, "tensors": given, "changed": changed})
    args.fixture.write_text("".join(json.dumps(x, separators=(",", ":")) + "\n" for x in lines))
