#!/usr/bin/env python3
"""Holds tlkit's extractions against the models they are of, in PEFT, beside mergekit's.

    tests/peft/setup.sh
    tests/peft/venv/bin/python tests/peft/extract.py --tlkit target/release/tlkit [--mergekit SITE] [--work DIR]

For small models, in f32 and bf16, and models made of them by a merged LoRA (`lora`) or by full-rank changes of every weight,
norms and biases too (`full`):

    rank      the adapter of the LoRA's rank has its ΔW, to 1e-5 in f32; in bf16 to the noise that rounding the merge left
    peft      tied-to-peft, and PEFT's model over the base has the tuned model's logits
    merge     `tlkit merge` of the adapter at full rank gives the tuned weights
    mergekit  is no closer at the same rank, in ΔW over the modules that both have, with --mergekit (a folder with mergekit 0.1.5 and
              what it needs besides)
    written   mergekit's own file, with modules of rank 0 and whole tensors that are the base's, through `peft-to-tied --base`: both
              are left out, each said, and the merge is the sum of what is left

The exit status is 1 when a check failed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

disable_progress_bar()
warnings.filterwarnings("ignore")

SIZES = dict(vocab_size=96, num_hidden_layers=2, num_attention_heads=4, bos_token_id=1, eos_token_id=2, pad_token_id=0)
MODELS = {
    "llama": dict(SIZES, hidden_size=64, intermediate_size=96, num_key_value_heads=2, head_dim=16, tie_word_embeddings=False),
    "qwen2": dict(SIZES, hidden_size=64, intermediate_size=96, num_key_value_heads=2, tie_word_embeddings=True),
    "gpt2": dict(vocab_size=96, n_embd=64, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2),
}
TARGETS = {"gpt2": ["c_attn", "c_proj", "c_fc"]}
RANK = 4


def models(kind, dtype, folder):
    """A base, and two models that were made of it."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **MODELS[kind])
    base = AutoModelForCausalLM.from_config(config).to(dtype)
    with torch.no_grad():
        for weight in base.parameters():
            weight.copy_(torch.randn(weight.shape) * 0.05 + (1.0 if weight.dim() == 1 else 0.0))
    base.save_pretrained(folder / "base")
    lora = LoraConfig(
        r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS.get(kind, ["q_proj", "v_proj", "down_proj"]),
        fan_in_fan_out=kind == "gpt2", task_type="CAUSAL_LM", init_lora_weights=False,
    )
    loaded = lambda: AutoModelForCausalLM.from_pretrained(folder / "base", dtype=dtype)
    get_peft_model(loaded(), lora).merge_and_unload().save_pretrained(folder / "lora")
    full = loaded()
    with torch.no_grad():
        for name, weight in full.named_parameters():
            if "wte" in name or "embed" in name or "lm_head" in name:
                continue
            weight.add_((torch.randn(weight.shape) * 0.01).to(dtype))
    full.save_pretrained(folder / "full")


def logits(model):
    tokens = torch.arange(3, 51).reshape(3, 16)
    with torch.no_grad():
        return model.eval()(tokens).logits.float()


def relative(one, other):
    return float((one - other).norm() / other.norm())


class Checks:
    def __init__(self, args):
        self.args, self.failed, self.done = args, 0, 0

    def run(self, *command):
        command = [str(self.args.tlkit), *map(str, command)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
        return done.stdout

    def check(self, name, value, limit):
        self.done += 1
        good = value <= limit
        self.failed += not good
        if not good or self.args.verbose:
            print(f"{'ok' if good else 'FAILED'} {name}: {value:.3g}, at most {limit:.3g}")

    def extract(self, folder, tuned, *flags, dtype="f32"):
        report = self.run("extract", folder / "base", folder / tuned, "-o", folder / "a.tl", "--force", "--json", "--dtype", dtype, *flags)
        peft = folder / "peft"
        self.run("convert", "tied-to-peft", folder / "a.tl", "-o", peft, "--force", "--dtype", dtype, "--base", folder / "base")
        return json.loads(report), peft

    def model(self, kind, dtype):
        folder = self.args.work / f"{kind}-{str(dtype).removeprefix('torch.')}"
        shutil.rmtree(folder, ignore_errors=True)
        models(kind, dtype, folder)
        name = folder.name
        loaded = lambda path: AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        exact = dtype == torch.float32
        norm = torch.cat([w.flatten() for n, w in load_file(folder / "base/model.safetensors").items() if w.dim() == 2 and "w" in n]).float()
        for tuned in ("lora", "full"):
            want = logits(loaded(folder / tuned))
            rank = RANK if tuned == "lora" else 64
            report, peft = self.extract(folder, tuned, "--rank", rank)
            # PEFT rounds the update to bf16, and its sum with the weight, each by up to 2⁻⁹: noise of full rank.
            noise = 2**-9 * (1 + float(norm.norm()) / report["norm"])
            self.check(f"{name} {tuned} rank", report["error"], 1e-5 if exact or tuned == "full" else noise)
            self.check(f"{name} {tuned} bound", report["bound"], report["error"])
            got = logits(PeftModel.from_pretrained(loaded(folder / "base"), peft))
            before = relative(logits(loaded(folder / "base")), want)
            limit = 1e-4 if exact or tuned == "full" else noise * before + 1e-4
            self.check(f"{name} {tuned} peft (the base is off by {before:.3g})", relative(got, want), limit)
            if tuned == "full":
                merged = folder / "merged"
                self.run("merge", folder / "base", folder / "a.tl", "-o", merged)
                one, other = load_file(merged / "model.safetensors"), load_file(folder / "full/model.safetensors")
                off = max(relative(one[n].float(), other[n].float()) for n in other)
                self.check(f"{name} merge", off, 1e-6 if exact else 1e-4)
            if self.args.mergekit:
                self.beside(folder, tuned, name, dtype)
                if tuned == "lora":
                    self.written(folder, name)

    def mergekit(self, folder, tuned, name, *flags):
        """What mergekit extracts; `None` where it cannot."""
        out = folder / f"mergekit-{tuned}"
        shutil.rmtree(out, ignore_errors=True)
        command = [sys.executable, "-m", "mergekit.scripts.extract_lora", "--model", folder / tuned, "--base-model", folder / "base"]
        command += ["--out-path", out, *flags]
        environment = dict(os.environ, PYTHONPATH=str(self.args.mergekit))
        done = subprocess.run([str(w) for w in command], env=environment, capture_output=True, text=True, check=False)
        # Its card wants the base's from the hub, after all else is written.
        if done.returncode and not (out / "adapter_model.safetensors").exists():
            print(f"skipped {name} {tuned} mergekit: {done.stderr.strip().splitlines()[-1]}")
            return None
        return out

    def written(self, folder, name):
        """mergekit's file of a model that differs in some modules only."""
        out = self.mergekit(folder, "lora", name, "--max-rank", 64, "--sv-epsilon", 1e-3)
        if out is None:
            return
        file = load_file(out / "adapter_model.safetensors")
        whole = [n for n in file if ".lora_" not in n]
        none = [n for n, t in file.items() if ".lora_A." in n and len(t) == 0]
        tied = folder / "mergekit.tl"
        report = json.loads(self.run("convert", "peft-to-tied", out, "-o", tied, "--base", folder / "base", "--force", "--json"))
        notes = " ".join(report["notes"])
        said = f"{len(none)} modules have rank 0" in notes and f"{len(whole)} whole tensors are the base's own" in notes
        self.check(f"{name} written: {len(none)} of rank 0, {len(whole)} whole, said", int(not (said and none and whole)), 0)
        self.check(f"{name} written: left out", abs(len(report["left_out"]) - len(whole)), 0)
        merged = folder / "merged"
        self.run("merge", folder / "base", tied, "-o", merged)
        base, got = load_file(folder / "base/model.safetensors"), load_file(merged / "model.safetensors")
        off = 0.0
        for weight in base:
            a = f"base_model.model.{weight.removesuffix('.weight')}.lora_A.weight"
            want = base[weight].double()
            if a in file:
                want = want + file[a.replace("lora_A", "lora_B")].double() @ file[a].double()
            off = max(off, relative(got[weight].double(), want))
        self.check(f"{name} written: merged", off, 1e-6 if "32" in name else 2**-8)

    def beside(self, folder, tuned, name, dtype):
        """mergekit's adapter of the same rank, and tlkit's of the same dtype."""
        out = self.mergekit(folder, tuned, name, "--max-rank", RANK)
        if out is None:
            return
        kind = "f32" if dtype == torch.float32 else "bf16"
        _, peft = self.extract(folder, tuned, "--rank", RANK, dtype=kind)
        theirs, ours = errors(folder, tuned, out), errors(folder, tuned, peft)
        shared = sorted(set(theirs) & set(ours))
        total = lambda e: (sum(e[n][0] for n in shared) / sum(e[n][1] for n in shared)) ** 0.5
        self.check(f"{name} {tuned} mergekit ({len(shared)} modules)", total(ours), total(theirs) * (1 + 1e-4) + 1e-6)


def errors(folder, tuned, adapter):
    """‖ΔW − ΔW'‖² and ‖ΔW‖² of every module, by its name in the class."""
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    before = {n: w.clone().double() for n, w in model.state_dict().items()}
    after = AutoModelForCausalLM.from_pretrained(folder / tuned, dtype=torch.float32).state_dict()
    wrapped = PeftModel.from_pretrained(model, adapter)
    out = {}
    for name, module in wrapped.base_model.model.named_modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            # In f64: PEFT's own product is rounded to f32.
            a, b = (getattr(module, f)["default"].weight.double() for f in ("lora_A", "lora_B"))
            delta = module.scaling["default"] * (b @ a)
            delta = delta.T if module.fan_in_fan_out else delta
            own = after[f"{name}.weight"].double() - before[f"{name}.weight"]
            if own.norm() > 0:
                out[name] = (float((own - delta).norm() ** 2), float(own.norm() ** 2))
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tlkit", type=Path, default=Path("target/release/tlkit"))
    parser.add_argument("--mergekit", type=Path)
    parser.add_argument("--work", type=Path, default=Path("target/peft-extract"))
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()
    checks = Checks(args)
    for kind in MODELS:
        for dtype in (torch.float32, torch.bfloat16):
            checks.model(kind, dtype)
    print(f"{checks.done} checks, {checks.failed} failed")
    return 1 if checks.failed else 0


if __name__ == "__main__":
    sys.exit(main())
