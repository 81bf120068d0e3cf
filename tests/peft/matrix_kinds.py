"""The kinds of adapters of matrix.py: what PEFT is asked for, given a model."""

import re

import torch
from peft import LoraConfig, VeraConfig
from torch import nn
from transformers.pytorch_utils import Conv1D

# Kind -> (base, function of the model that gives PEFT's config, or None where the model has no such thing).
# A base is HEAD or HEAD.FORM, where the head is of matrix_models.HEADS or `main`.
KINDS = {}
# Kinds that the tensors which a model shares do not survive: PEFT saves a trained copy of one of them.
UNTIES = ("mts", "mts-embed", "grown-mts")
# Kinds that are also converted back to PEFT and merged again.
BACK = ("lora", "rslora", "patterns", "vera", "embed+head", "mts", "tokens", "params", "bias-all", "lora-bias", "seqcls")

# Kind -> the folders of its adapters below `adapter`, where PEFT wrote more than one, in the order of merging.
ADAPTERS = {"named": ["adapter/other"], "two": ["adapter", "adapter/second"]}
# Kind -> what is done to the model before PEFT is.
PREPARE = {}


class Absent(Exception):
    """The model has nothing that this kind could adapt."""


def kind(name, base="main"):
    def add(make):
        KINDS[name] = (base, make)
        return make
    return add


def grow(model):
    """A vocabulary with four more entries, as people add tokens before training."""
    model.resize_token_embeddings(model.get_input_embeddings().weight.shape[0] + 4, mean_resizing=False)


PREPARE |= {"grown": grow, "grown-mts": grow}


def linears(model):
    """Full name -> module, of the layers that can be targeted by suffix; without the output."""
    out = outputs(model)
    found = {n: m for n, m in model.named_modules()
             if type(m) in (nn.Linear, Conv1D) and n and n not in out and m.weight.dim() == 2}
    if not found:
        raise Absent("no linear layer")
    return found


def outputs(model):
    try:
        head = model.get_output_embeddings()
    except Exception:
        return []
    return [n for n, m in model.named_modules() if m is head and head is not None]


def inputs(model):
    try:
        table = model.get_input_embeddings()
    except Exception:
        return []
    return [n for n, m in model.named_modules() if m is table and type(m).__name__.endswith("Embedding")]


def suffixes(model):
    """Up to three layer names as people target them: the first, one that is not square, the last."""
    layers = linears(model)
    numbered = {n: m for n, m in layers.items() if re.search(r"\.\d+\.", n)} or layers
    names = {}
    for name, module in numbered.items():
        names.setdefault(name.rsplit(".", 1)[-1], module)
    names = {n: m for n, m in names.items() if not n.isdigit()} or {n: m for n, m in numbered.items()}
    order = list(names)
    odd = [n for n in order if names[n].weight.shape[0] != names[n].weight.shape[1]]
    return sorted({order[0], *odd[:1], order[-1]})


def norms(model):
    """A norm layer's last name."""
    for name, module in model.named_modules():
        last = name.rsplit(".", 1)[-1]
        if "norm" in type(module).__name__.lower() and not last.isdigit() and any(True for _ in module.parameters(False)):
            return last
    return None


def experts(model):
    """Suffixes of fused experts' parameters."""
    names = {}
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        if parameter.dim() == 3 and "experts" in parts and not name.endswith("bias") and parameter.shape[0] > 1:
            tail = [p for p in parts if not p.isdigit()][-3:]
            names[".".join(tail) if name.endswith(".".join(tail)) else ".".join(parts[-2:])] = None
    if not names:
        raise Absent("no fused experts")
    return sorted(names)


def biased(model):
    names = {}
    for name, module in linears(model).items():
        names.setdefault(name.rsplit(".", 1)[-1], []).append(module.bias is not None)
    names = [n for n, has in names.items() if all(has) and not n.isdigit()]
    if not names:
        raise Absent("no bias")
    return names[:2]


def lora(**more):
    return LoraConfig(**({"r": 4, "lora_alpha": 8, "init_lora_weights": False} | more))


def found(names, what):
    if not names:
        raise Absent(what)
    return names


def last(name):
    return name.rsplit(".", 1)[-1]


@kind("lora")
def _(m):
    return lora(target_modules=suffixes(m))


@kind("rslora")
def _(m):
    return lora(target_modules=suffixes(m), use_rslora=True)


@kind("dora")
def _(m):
    return lora(target_modules=suffixes(m), use_dora=True)


@kind("vera")
def _(m):
    return VeraConfig(r=4, target_modules=suffixes(m), init_weights=False)


@kind("patterns")
def _(m):
    names = suffixes(m)
    first = next(n for n in linears(m) if last(n) == last(names[0]))
    return lora(target_modules=names, rank_pattern={names[0]: 2, names[-1]: 8}, alpha_pattern={re.escape(first): 32, names[-1]: 4})


@kind("all-linear")
def _(m):
    return lora(target_modules="all-linear")


@kind("head")
def _(m):
    return lora(target_modules=found(outputs(m), "no output") + suffixes(m)[:1])


@kind("embed")
def _(m):
    return lora(target_modules=found(inputs(m), "no input embedding") + suffixes(m)[:1])


@kind("embed+head")
def _(m):
    return lora(target_modules=found(inputs(m), "no input embedding") + found(outputs(m), "no output"))


@kind("embed+head-bf16", "main.bf16")
def _(m):
    return lora(target_modules=found(inputs(m), "no input embedding") + found(outputs(m), "no output") + suffixes(m)[:1])


@kind("embed-dora")
def _(m):
    return lora(target_modules=found(inputs(m), "no input embedding") + suffixes(m)[:1], use_dora=True)


@kind("mts")
def _(m):
    head = [last(n) for n in outputs(m)]
    return lora(target_modules=suffixes(m), modules_to_save=head + found([n for n in [norms(m)] if n], "no norm"))


@kind("mts-embed")
def _(m):
    names = [last(n) for n in found(inputs(m), "no input embedding") + outputs(m)]
    return lora(target_modules=suffixes(m), modules_to_save=names)


@kind("save-embed")
def _(m):
    found(inputs(m), "no input embedding")
    return lora(target_modules=suffixes(m))


@kind("grown")
def _(m):
    found(inputs(m), "no input embedding")
    return lora(target_modules=suffixes(m))


@kind("grown-mts")
def _(m):
    names = [last(n) for n in found(inputs(m), "no input embedding") + outputs(m)]
    return lora(target_modules=suffixes(m), modules_to_save=names)


@kind("named")
@kind("two")
def _(m):
    return lora(target_modules=suffixes(m))


@kind("tokens")
def _(m):
    names = found(inputs(m), "no input embedding")
    return lora(target_modules=suffixes(m), trainable_token_indices={last(names[0]): [1, 3, 7]})


@kind("params")
def _(m):
    return lora(target_modules=suffixes(m), target_parameters=experts(m))


@kind("params-one")
def _(m):
    return lora(target_modules=[], target_parameters=experts(m)[-1:])


@kind("bias-all")
def _(m):
    return lora(target_modules=biased(m), bias="all")


@kind("bias-lora")
def _(m):
    return lora(target_modules=biased(m), bias="lora_only")


@kind("lora-bias")
def _(m):
    return lora(target_modules=biased(m), lora_bias=True)


@kind("bf16", "main.bf16")
@kind("f16", "main.f16")
def _(m):
    norm = norms(m)
    return lora(target_modules=suffixes(m) + inputs(m), modules_to_save=[norm] if norm else None)


@kind("dora-bf16", "main.bf16")
def _(m):
    return lora(target_modules=suffixes(m), use_dora=True)


@kind("vera-bf16", "main.bf16")
def _(m):
    return VeraConfig(r=4, target_modules=suffixes(m), init_weights=False)


@kind("params-bf16", "main.bf16")
def _(m):
    return lora(target_modules=suffixes(m), target_parameters=experts(m))


@kind("sharded", "main.sharded")
def _(m):
    return lora(target_modules="all-linear")


@kind("new-names", "main.new")
def _(m):
    return lora(target_modules="all-linear")


@kind("old-adapter")
def _(m):
    return lora(target_modules="all-linear")


@kind("random")
@kind("random-bf16", "main.bf16")
def _(m):
    return lora(target_modules="all-linear", r=16)


@kind("seqcls", "seqcls")
@kind("seqcls-null", "seqcls")
@kind("seqcls-no-head", "seqcls.lm")
@kind("seqcls-model", "seqcls.model")
def _(m):
    return lora(target_modules=suffixes(m), task_type="SEQ_CLS")


@kind("tokcls", "tokcls")
@kind("tokcls-no-head", "tokcls.lm")
def _(m):
    return lora(target_modules=suffixes(m), task_type="TOKEN_CLS")


@kind("qa", "qa")
def _(m):
    return lora(target_modules=suffixes(m), task_type="QUESTION_ANS")


@kind("encoder", "base")
def _(m):
    return lora(target_modules=suffixes(m), task_type="FEATURE_EXTRACTION")
