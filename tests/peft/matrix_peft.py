"""What transformers and PEFT make for matrix.py: bases, adapters and merges, as people save them."""

import functools
import hashlib
import json
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import torch
import transformers
from matrix_kinds import ADAPTERS, KINDS, PREPARE, Absent
from matrix_models import build, class_of
from safetensors import safe_open
from safetensors.torch import save_file

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}


def values(name, shape, low, high, unit):
    """Small multiples of `unit`, from the name alone."""
    count = int(np.prod(shape, dtype=np.int64))
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    x = (np.arange(count, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = (x >> np.uint64(33)) % np.uint64(high - low + 1)
    return torch.from_numpy((x.astype(np.int64) + low).astype(np.float32) * unit).reshape(shape)


def plain(key):
    """Of the three names that save_embedding_layers gives a trained module, the two of the trained values are one."""
    return key.replace(".modules_to_save.", ".")


def refill(folder, value, tied=None, of="adapter"):
    """Rewrites the float tensors of every safetensors file by value(name, tensor); `tied` names are given one value.

    Adapters but for the first are given values of their own, by the name `of` each.
    """
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as f:
            tensors, metadata = {k: f.get_tensor(k) for k in f.keys()}, f.metadata()
        one = lambda k: (tied or {}).get(plain(k), plain(k)) + ("" if of in ("adapter", "adapter/other") else f" {of}")
        save_file({k: value(one(k), t) if t.is_floating_point() else t for k, t in tensors.items()}, file, metadata=metadata)


def ties(peft_model):
    """Saved name -> the first saved name of the same parameter."""
    first, names = {}, {}
    for name, t in peft_model.state_dict(keep_vars=True).items():
        saved = re.sub(r"(\.modules_to_save)?\.(default|other|second)\b", "", name)
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
        """The model of a base; with `new_head` some of it may be missing."""
        model, info = cls.from_pretrained(folder, dtype="auto", output_loading_info=True)
        lost = {k: sorted(map(str, v))[:3] for k, v in info.items() if v and k != "error_msgs"}
        if lost and not new_head:
            raise ValueError(f"transformers does not load what it saved: {lost}")
        return model.eval()

    def cell(self, kind):
        """Makes one cell, and says what came of it: class and dtypes, or why there is none."""
        from peft import get_peft_model

        wanted, make = KINDS[kind]
        folder, given = self.folder / "cells" / kind, ADAPTERS.get(kind, ["adapter"])
        shutil.rmtree(folder, ignore_errors=True)
        cls, base = self.base(wanted)
        head = wanted.split(".")[0]
        torch.manual_seed(2)
        model = self.load(cls, base, wanted.endswith((".lm", ".model")))
        PREPARE.get(kind, lambda m: None)(model)
        for number, (adapter, config) in enumerate(zip(given, [make(model) for _ in given])):
            if config.task_type is None and cls.__name__.endswith("ForCausalLM"):
                config.task_type = "CAUSAL_LM"
            elif config.task_type is None and getattr(model.config, "is_encoder_decoder", False) and head == "main":
                config.task_type = "SEQ_2_SEQ_LM"
            name = Path(adapter).name if "/" in adapter else "default"
            if number == 0:
                peft_model = get_peft_model(model, config, adapter_name=name)
            else:
                peft_model.add_adapter(name, config)
        peft_model.save_pretrained(folder / "adapter", **({"save_embedding_layers": True} if kind in ("save-embed", "grown") else {}))
        for adapter in given:
            modules = self.edit(kind, folder / adapter, base, cls)
            few = functools.partial(adapter_value, few="dora" in kind)
            refill(folder / adapter, random_value if kind.startswith("random") else few, ties(peft_model), of=adapter)

        self.missing = []
        record = {"class": cls.__name__, "base": str(base.relative_to(self.folder)), "adapters": given}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            merged = merged_in_memory(self.folder, record, folder, PREPARE.get(kind), self.missing)
        if kind in PREPARE:
            # What PEFT does not save of a model that was changed is drawn again at each loading.
            first = {k: t.clone() for k, t in merged.state_dict().items()}
            merged = merged_in_memory(self.folder, record, folder, PREPARE[kind], seed=4)
            drawn = sorted(k for k, t in merged.state_dict().items() if not t.equal(first[k]))
            if drawn:
                raise Absent(f"the adapter lacks what was drawn at random: {', '.join(drawn[:3])}")
        missing = [str(w.message) for w in caught if "missing adapter keys" in str(w.message)]
        if missing:
            raise Absent(f"PEFT does not load it: {missing[0][:120]}")
        keys = set()
        for adapter in given:
            with safe_open(folder / adapter / "adapter_model.safetensors", "pt") as f:
                keys |= {k.removeprefix("base_model.model.") for k in f.keys()}
        if modules:
            # PEFT reads the old names of tensors, and not those of a config.
            path = folder / "adapter" / "adapter_config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"target_modules": modules}))
        options = dict(max_shard_size="30KB") if wanted.endswith(".sharded") else {}
        merged.save_pretrained(folder / "expected", save_original_format=not wanted.endswith(".new"), **options)
        return record | {"random": [k for k in self.missing if k not in keys],
                         "drawn": [k for k in self.missing if any(g.startswith(k.removesuffix("weight") + "lora_") for g in keys)]}

    def edit(self, kind, adapter, base, cls):
        """What an older PEFT or transformers wrote. Gives the modules where it called them otherwise."""
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
            return sorted({old(k).removeprefix("base_model.model.").partition(".lora_")[0] for k in tensors})
        return None


def merged_in_memory(folder, record, cell, prepare=None, missing=None, seed=3):
    """The model that PEFT merges: what a user has before it is saved."""
    from peft import PeftModel

    torch.manual_seed(seed)
    cls, adapters = getattr(transformers, record["class"]), record.get("adapters", ["adapter"])
    model, info = cls.from_pretrained(folder / record["base"], dtype="auto", output_loading_info=True)
    if missing is not None:
        missing += sorted(info["missing_keys"])
    if prepare:
        prepare(model)
    model = PeftModel.from_pretrained(model.eval(), cell / adapters[0])
    names = ["default"]
    for adapter in adapters[1:]:
        names.append(Path(adapter).name)
        model.load_adapter(cell / adapter, names[-1])
    return model.merge_and_unload(adapter_names=names)


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
