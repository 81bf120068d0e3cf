#!/usr/bin/env python3
"""Holds tlkit's merge against PEFT's for every architecture of transformers that can be built small.

    tests/peft/setup.sh
    tests/peft/venv/bin/python tests/peft/matrix.py --work DIR --tlkit target/release/tlkit [--only REGEX] [--small]

A row is a model type, a column a kind of adapter (matrix_kinds.py). For each cell transformers and PEFT save a base and
an adapter as users do, PEFT loads both, merges (`merge_and_unload`, then `save_pretrained`), and tlkit merges the same
files (`--tied shared`). The cell is

    =       every tensor is PEFT's, bit by bit
    ~       it is once transformers has loaded it: file names or copies of tied tensors differ from what it saves itself
    TL0000  refused, for the reason that matrix-refusals.toml gives for it
    TL0000! refused without such a reason
    x       different
    -       not there: the model has no such part, or transformers or PEFT cannot (`--verbose` says which)

All values are small integers times a power of two, so that every sum and product is exact in any order; only `random`
and `random-bf16` are not, and are held to RANDOM.

What PEFT makes is kept in DIR and made once; --replay checks again what is there. --table writes spec/peft-matrix.md and the line of README.md.
The exit status is 1 where a cell is different or refused without a reason.
"""

import argparse
import contextlib
import functools
import hashlib
import json
import logging
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import warnings
from importlib import metadata
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1")
import numpy as np
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from matrix_kinds import KINDS, Absent  # noqa: E402
from matrix_models import build, class_of, model_types  # noqa: E402

# How far a sum of r products may be off in another order, in units of the largest weight's last place.
RANDOM = {torch.float32: 4, torch.bfloat16: 1}
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}
# Of each kind of model one, and the kinds whose rules differ most.
IN_FIXTURE = (
    "lora", "dora", "vera", "embed+head-bf16", "mts-embed", "tokens", "params-bf16", "bias-all", "seqcls", "seqcls-no-head",
    "old-adapter",
)
UNTIES = ("mts", "mts-embed")
SMALL = (
    "llama", "gpt2", "bert", "distilbert", "deberta-v2", "t5", "whisper", "gemma3", "qwen2_vl", "mixtral", "gpt_oss", "mamba",
)

HEAD = """# Merges against PEFT's, by architecture

For every model type of transformers that can be built small on the CPU, transformers and PEFT save a base and an adapter as
users do, PEFT merges them (`merge_and_unload`, `save_pretrained`), and so does `tlkit merge --tied shared` (`--tied untie`
where modules_to_save holds embeddings, which PEFT unties). {types} model types, {versions}:
**{equal} equal, {refused} refused, {different} different**. `tests/peft/matrix.py` makes this page;
`fixtures/peft-matrix.jsonl` is a part of it that runs with every `cargo test`.

`=` every tensor is PEFT's, bit by bit. `~` it is when transformers has loaded it: PEFT's file has other names, another
copy of a tied tensor, or f32 where the base has half precision. A code: refused, with the reason below. `-` the model has
no such part, or transformers or PEFT cannot do it. Values are such that every product and sum is exact, but for `random`
(f32, rank 16: within 4 units of the last place of the largest weight) and `random-bf16` (within 1).

{table}

## Refused

| code | where | why |
|---|---|---|
{reasons}
"""


def values(name, shape, low, high, unit):
    """Small multiples of `unit`, from the name alone."""
    count = int(np.prod(shape, dtype=np.int64))
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    x = (np.arange(count, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = (x >> np.uint64(33)) % np.uint64(high - low + 1)
    return torch.from_numpy((x.astype(np.int64) + low).astype(np.float32) * unit).reshape(shape)


def refill(folder, value, tied=None):
    """Rewrites the float tensors of every safetensors file by value(name, tensor); `tied` names are given one value."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as f:
            tensors, metadata = {k: f.get_tensor(k) for k in f.keys()}, f.metadata()
        one = lambda k: (tied or {}).get(k, k)
        save_file({k: value(one(k), t) if t.is_floating_point() else t for k, t in tensors.items()}, file, metadata=metadata)


def ties(peft_model):
    """Saved name -> the first saved name of the same parameter."""
    first, names = {}, {}
    for name, t in peft_model.state_dict(keep_vars=True).items():
        saved = name.replace(".modules_to_save.default", "").replace(".default", "")
        names[saved] = first.setdefault((t.data_ptr(), t.shape), saved) if t.numel() else saved
    return names


def base_value(name, t):
    return values(name, t.shape, -63, 63, 1 / 64).to(t.dtype)


def adapter_value(name, t, few=False):
    """With `few` values squares of sums are exact too."""
    if "base_layer" in name or "original_module" in name:
        return t
    if "magnitude" in name:
        return values(name, t.shape, 32, 96, 1 / 64).to(t.dtype)
    if "vera_" in name or "lora_" in name and few:
        return values(name, t.shape, -3, 3, 1 / 4).to(t.dtype)
    if "lora_" in name:
        return values(name, t.shape, -31, 31, 1 / 32).to(t.dtype)
    return base_value("adapter " + name, t)


def random_value(name, t):
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "little")
    return (torch.randn(t.shape, generator=torch.Generator().manual_seed(seed)) * 0.1).to(t.dtype)


# ---------------------------------------------------------------- what transformers and PEFT make


class Row:
    """One model type: its bases and cells under a folder."""

    def __init__(self, folder: Path, model_type: str):
        self.folder, self.model_type, self.bases = folder, model_type, {}

    def base(self, wanted):
        """(class, folder) of a base, made where it is missing. Raises what transformers raises."""
        if wanted not in self.bases:
            try:
                self.bases[wanted] = self.make_base(wanted)
            except Exception as e:
                self.bases[wanted] = e
        if isinstance(self.bases[wanted], Exception):
            raise self.bases[wanted]
        return self.bases[wanted]

    def make_base(self, wanted):
        head, _, form = wanted.partition(".")
        head = None if head == "main" else head
        cls, folder = class_of(self.model_type, head), self.folder / "bases" / wanted
        if cls is None:
            raise Absent(f"transformers has no {head} of it")
        saved = {"lm": None, "model": "base"}.get(form, head)
        if head and form in ("lm", "model"):
            if class_of(self.model_type, saved) is None:
                raise Absent(f"transformers has no {form} of it")
            if form == "lm" and class_of(self.model_type, saved) is class_of(self.model_type, "base"):
                raise Absent("its main class is the bare model")
        model = build(self.model_type, saved).to(DTYPES.get(form, torch.float32))
        options = dict(max_shard_size="30KB") if form == "sharded" else {}
        model.save_pretrained(folder, save_original_format=form != "new", **options)
        refill(folder, base_value)
        if form == "new":
            names = lambda f: {k for x in f.glob("*.safetensors") for k in safe_open(x, "pt").keys()}
            if names(folder) == names(self.base("main")[1]):
                raise Absent("its names on disk are those of the class")
        self.load(cls, folder, head and form in ("lm", "model"))
        return cls, folder

    def load(self, cls, folder, new_head=False):
        """The model of a base; with `new_head` some of it may be missing, and what is is kept in `self.missing`."""
        model, info = cls.from_pretrained(folder, dtype="auto", output_loading_info=True)
        self.missing = sorted(info["missing_keys"])
        lost = {k: sorted(map(str, v))[:3] for k, v in info.items() if v and k != "error_msgs"}
        if lost and not new_head:
            raise ValueError(f"transformers does not load what it saved: {lost}")
        return model.eval()

    def cell(self, kind):
        """Makes one cell, and says what came of it: class and dtypes, or why there is none."""
        from peft import PeftModel, get_peft_model

        wanted, make = KINDS[kind]
        folder = self.folder / "cells" / kind
        shutil.rmtree(folder, ignore_errors=True)
        cls, base = self.base(wanted)
        head = wanted.split(".")[0]
        new_head = wanted.endswith((".lm", ".model"))
        torch.manual_seed(2)
        model = self.load(cls, base, new_head)
        config = make(model)
        if config.task_type is None and cls.__name__.endswith("ForCausalLM"):
            config.task_type = "CAUSAL_LM"
        elif config.task_type is None and getattr(model.config, "is_encoder_decoder", False) and head == "main":
            config.task_type = "SEQ_2_SEQ_LM"
        adapter = folder / "adapter"
        peft_model = get_peft_model(model, config)
        peft_model.save_pretrained(adapter, **({"save_embedding_layers": True} if kind == "save-embed" else {}))
        self.edit(kind, adapter, base, cls)
        few = functools.partial(adapter_value, few="dora" in kind)
        refill(adapter, random_value if kind.startswith("random") else few, ties(peft_model))

        torch.manual_seed(3)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            merged = PeftModel.from_pretrained(self.load(cls, base, new_head), adapter)
        missing = [str(w.message) for w in caught if "missing adapter keys" in str(w.message)]
        if missing:
            raise Absent(f"PEFT does not load it: {missing[0][:120]}")
        with safe_open(adapter / "adapter_model.safetensors", "pt") as f:
            given = {k.removeprefix("base_model.model.") for k in f.keys()}
        merged = merged.merge_and_unload()
        expected = folder / "expected"
        options = dict(max_shard_size="30KB") if wanted.endswith(".sharded") else {}
        merged.save_pretrained(expected, save_original_format=not wanted.endswith(".new"), **options)
        return {"class": cls.__name__, "base": str(base.relative_to(self.folder)),
                "random": [k for k in self.missing if k not in given],
                "drawn": [k for k in self.missing if any(g.startswith(k.removesuffix("weight") + "lora_") for g in given)]}

    def edit(self, kind, adapter, base, cls):
        """What an older PEFT or transformers wrote."""
        if kind == "seqcls-null":
            path = adapter / "adapter_config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"modules_to_save": None}))
        if kind == "old-adapter":
            # Names as they are on disk: those of the classes that the base was saved from.
            model = self.load(cls, base)
            on_disk = {}
            for file in base.glob("*.safetensors"):
                with safe_open(file, "pt") as f:
                    on_disk |= {f.get_tensor(k).numpy().tobytes(): k for k in f.keys()}
            names = {k.removesuffix(".weight"): on_disk.get(v.detach().numpy().tobytes(), k).removesuffix(".weight")
                     for k, v in model.state_dict().items() if k.endswith(".weight")}
            if all(k == v for k, v in names.items()):
                raise Absent("its names on disk are those of the class")
            file = adapter / "adapter_model.safetensors"
            with safe_open(file, "pt") as f:
                tensors, metadata = {k: f.get_tensor(k) for k in f.keys()}, f.metadata()
            def old(key):
                module, dot, rest = key.removeprefix("base_model.model.").partition(".lora_")
                return f"base_model.model.{names.get(module, module)}{dot}{rest}"
            save_file({old(k): t for k, t in tensors.items()}, file, metadata=metadata)


def make_row(folder, model_type, kinds):
    """Makes what is missing of a row; each cell's record is written as soon as it is there."""
    row = Row(folder, model_type)
    shutil.rmtree(folder / "bases", ignore_errors=True) if not (folder / "records").exists() else None
    (folder / "records").mkdir(parents=True, exist_ok=True)
    for kind in kinds:
        record = folder / "records" / f"{kind}.json"
        if record.exists():
            continue
        try:
            done = row.cell(kind)
        except Absent as e:
            done = {"absent": str(e)}
        except Exception as e:
            done = {"absent": f"{type(e).__name__}: {str(e)[:300]}"}
        if "absent" in done:
            shutil.rmtree(folder / "cells" / kind, ignore_errors=True)
        record.write_text(json.dumps(done))


# ---------------------------------------------------------------- what tlkit makes


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


def narrowed(a, b):
    """Whether `a` is `b` rounded once: transformers holds some modules in f32 (`_keep_in_fp32_modules`) and saves them so."""
    return a.dtype != b.dtype == torch.float32 and same(a, b.to(a.dtype))


def without(tensors, names):
    """All but what transformers initialises at random, since neither base nor adapter has it."""
    return {k: t for k, t in tensors.items() if k not in names}


def differences(got, want, equal):
    missing, extra = sorted(want.keys() - got.keys()), sorted(got.keys() - want.keys())
    differ = sorted(k for k in got.keys() & want.keys() if not equal(got[k], want[k]))
    say = lambda what, names: [f"{what} {len(names)}: {', '.join(names[:3])}"] if names else []
    return "; ".join(say("missing", missing) + say("extra", extra) + say("differ", differ))


def loaded(cls, folder, random):
    model, info = getattr(transformers, cls).from_pretrained(folder, dtype="auto", output_loading_info=True)
    lost = sorted({*info["missing_keys"], *map(str, info["mismatched_keys"])} - {*random})
    if lost:
        raise ValueError(f"loads without {lost[:3]}")
    return without(model.state_dict(), random)


class Tool:
    def __init__(self, binary):
        self.binary = binary

    def __call__(self, *args):
        p = subprocess.run([self.binary, *map(str, args)], capture_output=True, text=True, timeout=120)
        if p.returncode < 0 or p.returncode == 101:
            return "crash", p.stderr[-400:]
        code = re.search(r"TL\d{4}", p.stderr)
        return (None if p.returncode == 0 else code.group() if code else f"exit {p.returncode}"), (p.stderr + p.stdout)[-900:]


def check_cell(tool, folder, kind, record, quick=False):
    cell, base = folder / "cells" / kind, folder / record["base"]
    out = cell / "out"
    shutil.rmtree(out, ignore_errors=True)
    # PEFT changes the shared tensor, but for modules_to_save: those become tensors of their own.
    how = "untie" if kind in UNTIES else "shared"
    code, text = tool("merge", base, cell / "adapter", "-o", out, "--tied", how)
    result = {"tied": how, "drawn": bool(record.get("drawn"))}
    if code:
        return result | {"cell": code, "detail": text}
    equal = (lambda a, b: same(a, b) or close(a, b)) if kind.startswith("random") else same
    random, expected = record.get("random", []), cell / "expected"
    try:
        got, want = without(tensors(out), random), without(tensors(expected), random)
        why = differences(got, want, equal)
        if not why:
            result["cell"] = "="
        elif not differences(got, want, lambda a, b: equal(a, b) or narrowed(a, b)):
            result |= {"cell": "~", "detail": "PEFT's file has some in f32: transformers holds them so"}
        else:
            loads = differences(loaded(record["class"], out, random), loaded(record["class"], expected, random), equal)
            result |= {"cell": "x", "detail": f"{why} | loaded: {loads}"} if loads else {"cell": "~", "detail": why}
    except Exception as e:
        result |= {"cell": "x", "detail": f"{type(e).__name__}: {e}"}
    if result["cell"] in "=~" and not kind.startswith("random") and not quick:
        whose = [cell / "expected", "--weights-only"] if result["cell"] == "=" and not random else [out]
        code, text = tool("verify", "merged", "--base", base, "--adapter", cell / "adapter", "--tied", how, "--merged", *whose)
        result["verify"] = code and f"{code} {text}"
        tl = cell / "a.tl"
        tl.unlink(missing_ok=True)
        code, text = tool("convert", "peft-to-tied", cell / "adapter", "-o", tl, "--base", base)
        if code:
            result["tl"] = f"convert {code} {text[:300]}"
        else:
            shutil.rmtree(cell / "out2", ignore_errors=True)
            code, text = tool("merge", base, tl, "-o", cell / "out2", "--tied", how)
            why = code and f"merge {code} {text[:300]}" or differences(tensors(cell / "out2"), got, same)
            result["tl"] = why or "="
            shutil.rmtree(cell / "out2", ignore_errors=True)
    if result["cell"] in "=~":
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


# ---------------------------------------------------------------- a part of it without torch


def digest(t):
    return hashlib.sha256(t.contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()[:8]


def fixture(args, rows, kinds):
    """What tests/interop/matrix.rs needs to make the same files again and to know PEFT's merge: a line for each base and cell.

    A tensor is its name, its shape, and where that is not F32 its dtype; its values are those of `values` for a base,
    and of `adapter_value` for an adapter, unless a copy of the base's ("=") or the name that a tied tensor has its values by ("~") is given. `few` is of the whole
    adapter.
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


# ---------------------------------------------------------------- rows side by side


@contextlib.contextmanager
def quiet():
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
        yield


def work_row(args, model_type, kinds):
    """In a process of its own."""
    folder = args.work / model_type
    with quiet():
        if not args.replay:
            make_row(folder, model_type, kinds)
        if args.tlkit and folder.exists():
            check_row(Tool(args.tlkit), folder, kinds, args.quick)


def run(args, rows, kinds):
    """Rows in child processes, each with a time limit. transformers is imported once, here."""
    import peft  # noqa: F401

    waiting, running, done = list(rows), {}, 0
    while waiting or running:
        while waiting and len(running) < args.jobs:
            model_type = waiting.pop(0)
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    signal.alarm(args.limit)
                    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
                    work_row(args, model_type, kinds)
                    status = 0
                except BaseException as e:
                    (args.work / "errors").mkdir(exist_ok=True)
                    (args.work / "errors" / model_type).write_text(repr(e))
                os._exit(status)
            running[pid] = (model_type, time.time())
        pid, status = os.wait()
        model_type, start = running.pop(pid)
        done += 1
        print(f"{done}/{len(rows)} {model_type} {time.time() - start:.0f} s{' status ' + str(status) if status else ''}", file=sys.stderr, flush=True)


def reason(listed, row, kind, code, drawn):
    for entry in listed:
        fits = re.fullmatch(entry["row"], row) and re.fullmatch(entry["kind"], kind) and entry["code"] == code
        if fits and (drawn or not entry.get("drawn")):
            return entry["reason"]
    return None


def summary(args, rows, kinds):
    path = HERE / "matrix-refusals.toml"
    listed = tomllib.loads(path.read_text()).get("refusal", []) if path.exists() else []
    cells, counts = {}, {"equal": 0, "refused": 0, "unexplained": 0, "different": 0, "absent": 0}
    for row in rows:
        file = args.work / row / "result.json"
        results = json.loads(file.read_text()) if file.exists() else {}
        line = {}
        for kind in kinds:
            r = results.get(kind, {"cell": "-"})
            cell = r["cell"]
            if cell in "=~":
                counts["equal"] += 1
            elif cell == "-":
                counts["absent"] += 1
            elif cell.startswith("TL") and reason(listed, row, kind, cell, r.get("drawn")):
                counts["refused"] += 1
            else:
                counts["different" if cell in ("x", "crash") else "unexplained"] += 1
                cell += "!" if cell != "x" else ""
            line[kind] = cell
        if any(c != "-" for c in line.values()):
            cells[row] = line
    return cells, counts, listed


def table(cells, kinds):
    head = ["model type", *kinds]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row, line in cells.items():
        lines.append(f"| {row} | " + " | ".join(line[k] for k in kinds) + " |")
    return "\n".join(lines)


def page(args, cells, counts, listed, kinds):
    """spec/peft-matrix.md."""
    kinds = [k for k in kinds if any(line[k] != "-" for line in cells.values())]
    versions = f"PEFT {metadata.version('peft')}, transformers {metadata.version('transformers')}, torch {metadata.version('torch')}"
    codes = sorted({c for line in cells.values() for c in line.values() if c.startswith("TL")})
    used = [e for e in listed if e["code"] in codes]
    reasons = "\n".join(f"| {e['code']} | {e['shown']} | {e['reason']} |" for e in used)
    text = HEAD.format(types=len(cells), versions=versions, table=table(cells, kinds), reasons=reasons, **counts)
    if counts["unexplained"]:
        text = text.replace("## Refused\n", f"## Refused\n\n{counts['unexplained']} refusals, marked `!`, have no reason listed yet.\n")
    root = HERE.parent.parent
    (root / "spec" / "peft-matrix.md").write_text(text)
    line = (f"In the [matrix](spec/peft-matrix.md) of {len(cells)} model types, {counts['equal']:,} merges are PEFT's, "
            f"{counts['refused'] + counts['unexplained']:,} are refused by name, {counts['different']:,} differ.")
    readme = root / "README.md"
    readme.write_text(re.sub(r"In the \[matrix\]\(spec/peft-matrix.md\) of .*?differ\.", line, readme.read_text(), flags=re.S))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for what PEFT makes, kept between runs")
    parser.add_argument("--tlkit", help="the binary; without it, only PEFT's side is made")
    parser.add_argument("--only", default="", metavar="REGEX", help="the model types that this finds")
    parser.add_argument("--kinds", default="", metavar="REGEX", help="the kinds that this finds")
    parser.add_argument("--small", action="store_true", help="a few model types")
    parser.add_argument("--replay", action="store_true", help="make nothing, check what is there")
    parser.add_argument("--quick", action="store_true", help="only merge: do not verify, nor go by way of a .tl")
    parser.add_argument("--report", action="store_true", help="run nothing, say what came of the last run")
    parser.add_argument("--fixture", type=Path, metavar="FILE", help="write fixtures/peft-matrix.jsonl of what is there")
    parser.add_argument("--table", action="store_true", help="write spec/peft-matrix.md")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--limit", type=int, default=300, help="seconds for a row")
    parser.add_argument("--verbose", action="store_true", help="say what is absent, and why")
    args = parser.parse_args()
    rows = [m for m in (SMALL if args.small else model_types()) if re.search(args.only, m)]
    kinds = [k for k in KINDS if re.search(args.kinds, k)]
    args.work = args.work.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    if args.fixture:
        return fixture(args, rows, [k for k in IN_FIXTURE if k in kinds])
    if not args.report:
        run(args, rows, kinds)
    cells, counts, listed = summary(args, rows, kinds)
    if args.table:
        page(args, cells, counts, listed, kinds)
    print(table(cells, kinds))
    for row in cells:
        results = json.loads((args.work / row / "result.json").read_text())
        for kind in kinds:
            r = results.get(kind, {})
            shown = cells[row][kind]
            if shown.endswith("!") or shown == "x" or (args.verbose and shown in "-~"):
                print(f"{row} {kind} {shown}: {' '.join(r.get('detail', '').split())[:330]}")
            if r.get("verify"):
                print(f"{row} {kind} verify: {' '.join(r['verify'].split())[:330]}")
            if r.get("tl", "=") != "=" and not r["tl"].startswith("convert") or "tl" in r and args.verbose and r["tl"] != "=":
                print(f"{row} {kind} tl: {' '.join(r['tl'].split())[:330]}")
    print(counts, len(cells), "model types")
    sys.exit(1 if counts["different"] or counts["unexplained"] else 0)


if __name__ == "__main__":
    main()
