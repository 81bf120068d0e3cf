#!/usr/bin/env python3
"""Writes src/base/architectures.json from an installed transformers.

    python src/python/architectures.py            # write the table
    python src/python/architectures.py --check    # fail where it is not what this transformers says

Every class of the auto classes is built on the meta device, in its default configuration with few
layers, and asked: where its embeddings are, what it ties, which modules are Conv1D, how it names the
tensors of a checkpoint when it loads them. One line of the table is one model type, or one set of load
rules. What cannot be built is listed with the reason and has no entry.
"""

import argparse
import inspect
import json
import multiprocessing
import re
import sys
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

TABLE = Path(__file__).resolve().parent.parent / "base" / "architectures.json"
# What configurations call the number of their layers.
LAYER_KEYS = (
    "num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers",
    "num_encoder_layers", "num_decoder_layers", "depth", "num_decoder_blocks", "decoder_num_layers",
)
# Task types of PEFT, by the auto mapping that a class is in.
TASKS = {
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES": "SEQ_CLS",
    "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES": "TOKEN_CLS",
    "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES": "QUESTION_ANS",
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES": "CAUSAL_LM",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES": "SEQ_2_SEQ_LM",
    "MODEL_MAPPING_NAMES": "FEATURE_EXTRACTION",
}


def templated(name):
    return re.sub(r"(?<![^.])\d+(?![^.])", "{}", name)


# Values for keys that some defaults leave open, and that every checkpoint's config has.
OPEN = {"head_dim": 64, "attention_head_dim": 64, "vocab_size": 128, "prediction_length": 4, "pad_token_id": 0,
        "num_experts": 8, "n_routed_experts": 8, "num_local_experts": 8, "n_shared_experts": 1}
# The same by model type, where a value means something there alone.
OPEN_OF = {"lfm2_moe": {"layer_types": ["conv", "full_attention"]}}
# Values that are another class's than the default's is, by model type.
OTHER = {"reformer": {"is_decoder": True}}
# How parameters lie that these classes multiply with, and say nothing of.
UNSTATED = {"Llama4TextExperts": "in,out"}
# How many layers at the beginning have no experts: one, so that two layers have both kinds.
DENSE_KEYS = ("first_k_dense_replace", "num_dense_layers")


def cut(config):
    """Keys of a config that make it short."""
    more = lambda k, n: isinstance(getattr(config, k, None), int) and getattr(config, k) > n
    return {k: 2 for k in LAYER_KEYS if more(k, 2)} | {k: 1 for k in DENSE_KEYS if more(k, 1)}


def closed(config):
    """Keys that the defaults leave open."""
    out = {}
    own = OPEN_OF.get(getattr(config, "model_type", None), {})
    for key, value in [*OPEN.items(), *own.items(), ("num_key_value_heads", None)]:
        try:
            if getattr(config, key, 0) is None:
                out[key] = config.num_attention_heads if value is None else value
        except Exception:  # noqa: BLE001: it differs between layers
            continue
    return out | OTHER.get(getattr(config, "model_type", None), {})


def small(config_class):
    """The default configuration with two layers, where that is one, and as it is."""
    import transformers

    config = config_class()
    parts = {}
    for key in getattr(config, "sub_configs", None) or {}:
        sub = getattr(config, key, None)
        if isinstance(sub, transformers.PreTrainedConfig):
            parts[key] = sub
    out = []
    for values in (lambda c: {**cut(c), **closed(c)}, cut, closed):
        nested = {}
        for key, sub in parts.items():
            if values(sub):
                nested[key] = {"model_type": sub.model_type, **values(sub)} if sub.model_type else values(sub)
        for kwargs in ({**values(config), **nested}, values(config)):
            if kwargs:
                try:
                    out.append(config_class(**kwargs))
                except Exception:  # noqa: BLE001, S110: then it is not one
                    pass
    return [*out, config]


def fitting(config, cls):
    """The config that a class takes: some take a nested one of their type's."""
    wanted = getattr(cls, "config_class", None)
    if wanted is None or isinstance(config, wanted):
        return config
    for key in getattr(config, "sub_configs", None) or {}:
        if isinstance(getattr(config, key, None), wanted):
            return getattr(config, key)
    return config


def shortened(config):
    """Every list of a value per layer that is longer than the layers, cut."""
    n = getattr(config, "num_hidden_layers", None)
    for key in ("layer_types", "mlp_layer_types"):
        values = getattr(config, key, None)
        if isinstance(values, list) and isinstance(n, int) and len(values) > n:
            # Every kind that there is stays.
            kinds = list(dict.fromkeys(values))[:n]
            setattr(config, key, (kinds + values)[:n])
    return config


def path_of(model, module):
    for name, other in model.named_modules(remove_duplicate=False):
        if other is module:
            return name
    return None


def embedding(model, which):
    try:
        module = getattr(model, which)()
    except Exception:  # noqa: BLE001: the class has none
        return None
    return None if module is None else path_of(model, module)


def operation(op):
    kind = type(op).__name__
    if kind == "MergeModulelist" and op.dim == 0:
        return "stack"
    if kind == "Concatenate" and op.num_shards_attribute is None:
        return f"cat{op.dim}"
    if kind == "Chunk" and op.num_shards_attribute is None:
        return f"chunk{op.dim}"
    if kind == "Transpose" and {op.dim0, op.dim1} == {1, 2}:
        return "flip?" if op.check_dims else "flip"
    if kind == "Interleave":
        return ("interleave" if op.inverse else "deinterleave") + str(op.dim)
    return f"!{kind}"


def rule(transform):
    """A load rule as the table has it: [kind, sources, targets, operations]."""
    sources = []
    for source in transform.source_patterns:
        # What transformers compiles: a glob over list entries, and an end on a name's boundary.
        pattern = source.replace("*.", r".*\.")
        sources.append(pattern + r"(?!\w)" if re.search(r"[a-zA-Z0-9]$", pattern) else pattern)
    kind = type(transform).__name__
    out = {"from": sources, "to": list(transform.target_patterns)}
    if kind == "WeightConverter":
        out["ops"] = [operation(op) for op in transform.operations]
    elif kind not in ("WeightRenaming", "PrefixChange"):
        out["ops"] = [f"!{kind}"]
    return out


def load_rules(model, mapping):
    """Keys of rule sets in the order in which the model applies them, each with where it applies."""
    of = {}
    original = mapping.get_checkpoint_conversion_mapping

    def noted(key):
        found = original(key)
        if found:
            for transform in found:
                of[id(transform)] = key
            noted.kept.append(found)
        return found

    noted.kept = []
    mapping.get_checkpoint_conversion_mapping = noted
    try:
        transforms = mapping.get_model_conversion_mapping(model, add_legacy=False)
    finally:
        mapping.get_checkpoint_conversion_mapping = original
    out = []
    for transform in transforms:
        entry = [of[id(transform)]]
        if transform.scope_prefix is not None:
            entry += [transform.scope_prefix]
        if not out or out[-1] != entry:
            out.append(entry)
    return out


def tied_names(model, config):
    """Names that are one tensor once the model is loaded, if its config ties them: lists, source first."""
    for sub in [config, *(getattr(config, k, None) for k in getattr(config, "sub_configs", None) or {})]:
        if sub is not None and hasattr(sub, "tie_word_embeddings"):
            sub.tie_word_embeddings = True
    tied = model.get_expanded_tied_weights_keys(all_submodels=True)
    groups = {}
    for target, source in tied.items():
        groups.setdefault(source, []).append(target)
    return [[source, *sorted(targets)] for source, targets in sorted(groups.items())]


def output_by_tie(entry):
    """The output of a class that does not tell of it: what is tied to its input, and is no embedding."""
    of_input = [names for names in entry["tied"] if f"{entry.get('in')}.weight" in names]
    modules = {name.removesuffix(".weight") for names in of_input for name in names if name.endswith(".weight")}
    outputs = modules - {*entry["embeds"]}
    return outputs.pop() if len(outputs) == 1 else None


def experts(model):
    """Parameters of several experts in one tensor: name, orientation, and how gate and up lie in it."""
    out = {}
    for name, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            if parameter.dim() != 3 or not re.search(r"expert|moe", f"{name}.{leaf}".lower()):
                continue
            if re.search(r"conv|position", leaf):
                continue
            text = None
            if hasattr(module, "is_transposed"):
                text = "in,out" if module.is_transposed else "out,in"
                if "gate_up" in leaf:
                    text += ",concatenated" if module.is_concatenated else ",interleaved"
            elif type(module).__name__ in UNSTATED:
                text = "unknown," + UNSTATED[type(module).__name__] + (",concatenated" if "gate_up" in leaf else "")
            out[templated(f"{name}.{leaf}")] = text or "unknown"
    return out


def sub_models(model, config):
    """Parts that an auto class makes of a nested config, which may be of any type: {path: [key, type, task]}."""
    import transformers
    from transformers.models.auto import modeling_auto

    kinds = {"base": modeling_auto.MODEL_MAPPING_NAMES, "lm": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    out = {}
    for name, module in model.named_modules():
        if not name or not isinstance(module, transformers.PreTrainedModel):
            continue
        if any(name.startswith(f"{path}.") for path in out):
            continue
        for key in sorted(getattr(config, "sub_configs", None) or {}):
            if getattr(config, key, None) is not module.config:
                continue
            for kind, names in kinds.items():
                known = names.get(module.config.model_type)
                if type(module).__name__ in ([known] if isinstance(known, str) else known or ()):
                    out[name] = [key, module.config.model_type, kind]
                    break
    return out


def unlike_linear(model):
    """Modules whose `weight` has two axes and is no linear layer's: embeddings, and all others."""
    import torch
    from transformers.pytorch_utils import Conv1D

    embeds, plain = [], []
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if not name or not isinstance(weight, torch.nn.Parameter) or weight.dim() != 2:
            continue
        if isinstance(module, torch.nn.Embedding):
            embeds.append(name)
        elif not isinstance(module, (torch.nn.Linear, Conv1D)):
            plain.append(name)
    return embeds, plain


def describe(cls, config):
    import torch
    from transformers import conversion_mapping
    from transformers.initialization import no_init_weights
    from transformers.pytorch_utils import Conv1D

    with torch.device("meta"), no_init_weights():
        model = cls(config)
    prefix = model.base_model_prefix
    is_base = not (prefix and hasattr(model, prefix))
    flag = getattr(config, "tie_word_embeddings", None)
    if flag is None and hasattr(config, "get_text_config"):
        flag = getattr(config.get_text_config(), "tie_word_embeddings", None)
    entry = {"prefix": prefix, "base": is_base, "ties": bool(flag)}
    other = config.to_dict() | {"tie_word_embeddings": False}
    if getattr(type(config).from_dict(other), "tie_word_embeddings", False):
        entry["always"] = True
    at = f"{prefix}."

    def relative(name):
        if is_base:
            return f"@{name}" if prefix else name
        return f"@{name[len(at):]}" if name.startswith(at) else name

    at_module = {}
    for key, which in (("in", "get_input_embeddings"), ("out", "get_output_embeddings")):
        name = embedding(model, which)
        if name is not None:
            entry[key] = relative(name)
            at_module[key] = name
    order = list(at_module.values()) if len(at_module) == 2 else []
    first = next((n for n, _ in model.named_modules() if n in order), None)
    # What is defined first is merged first.
    entry["output_first"] = bool(order) and first == at_module["out"] != at_module["in"]
    entry["conv1d"] = sorted(
        {templated(relative(n)) for n, m in model.named_modules() if isinstance(m, Conv1D)}
    )
    entry["embeds"], entry["plain"] = (sorted({templated(relative(n)) for n in names}) for names in unlike_linear(model))
    entry["experts"] = {relative(k): v for k, v in sorted(experts(model).items())}
    if not is_base:
        entry["heads"] = sorted(
            n for n, m in model.named_children() if n != prefix and any(True for _ in m.parameters())
        )
    entry["parts"] = {relative(k): v for k, v in sorted(sub_models(model, config).items())}
    entry["load"] = load_rules(model, conversion_mapping)
    entry["tied"] = sorted(
        {tuple(dict.fromkeys(templated(relative(n)) for n in names)) for names in tied_names(model, config)}
    )
    entry["tied"] = [list(t) for t in entry["tied"] if len(t) > 1]
    entry.setdefault("out", output_by_tie(entry))
    return {k: v for k, v in entry.items() if v not in (None, [], {}, False)}


def classes_by_type():
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    out = {model_type: {} for model_type in CONFIG_MAPPING_NAMES}
    for attribute in sorted(dir(modeling_auto)):
        if not attribute.endswith("MAPPING_NAMES"):
            continue
        for model_type, names in getattr(modeling_auto, attribute).items():
            for name in [names] if isinstance(names, str) else names:
                tasks = out.setdefault(model_type, {}).setdefault(name, set())
                if attribute in TASKS:
                    tasks.add(TASKS[attribute])
    return out


def model_type_entry(model_type, classes):
    """The description of all classes of a model type, and what could not be built."""
    warnings.filterwarnings("ignore")
    import torch
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    described, failed = {}, {}
    try:
        config_class = CONFIG_MAPPING[model_type]
        configs = small(config_class)
    except Exception as e:  # noqa: BLE001
        return model_type, {}, {"": reason(e)}
    for name in sorted(classes):
        cls = getattr(transformers, name, None)
        if cls is None or not inspect.isclass(cls) or not issubclass(cls, transformers.PreTrainedModel):
            continue
        for config in configs:
            try:
                described[name] = describe(cls, shortened(fitting(type(config).from_dict(config.to_dict()), cls)))
                failed.pop(name, None)
                break
            except Exception as e:  # noqa: BLE001
                failed[name] = reason(e)
    return model_type, described, failed


def reason(error):
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:100] if text else ''}"


def hoisted(described, tasks):
    """Fields that most classes share stand once, for the type."""
    common = {}
    keys = sorted({k for entry in described.values() for k in entry})
    for key in keys:
        values = Counter(json.dumps(entry.get(key)) for entry in described.values())
        common[key] = json.loads(sorted(values.items(), key=lambda v: (-v[1], v[0]))[0][0])
    entry = {k: v for k, v in common.items() if v is not None}
    entry["classes"] = {}
    for name, own in sorted(described.items()):
        differs = {k: own.get(k) for k in keys if own.get(k) != common[k]}
        if tasks.get(name):
            differs["task"] = sorted(tasks[name])
        entry["classes"][name] = differs
    return entry


def table():
    import transformers
    from transformers import conversion_mapping

    by_type = classes_by_type()
    types, unbuilt = {}, {}
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("fork")) as pool:
        jobs = [pool.submit(model_type_entry, t, sorted(c)) for t, c in sorted(by_type.items()) if c]
        for n, job in enumerate(as_completed(jobs)):
            model_type, described, failed = job.result()
            if described:
                types[model_type] = hoisted(described, by_type[model_type])
            if failed:
                unbuilt[model_type] = failed
            if sys.stderr.isatty():
                print(f"\r{n + 1}/{len(jobs)} {model_type:40}", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    used = {entry[0] for t in types.values() for c in [t, *t["classes"].values()] for entry in c.get("load") or []}
    mapping = conversion_mapping._build_checkpoint_conversion_mapping()
    rules = {key: [rule(t) for t in mapping[key]] for key in sorted(used | {"legacy"})}
    # One set under many names is kept once, under the name that transformers has it under.
    aliases = conversion_mapping._MODEL_TO_CONVERSION_PATTERN
    for key in sorted(used & set(aliases)):
        rules.setdefault(aliases[key], [rule(t) for t in mapping[aliases[key]]])
    first, same = {}, {}
    for key in sorted(rules, key=lambda k: (k in aliases, k)):
        same[key] = first.setdefault(json.dumps(rules[key]), key)
    for t in types.values():
        for c in [t, *t["classes"].values()]:
            for entry in c.get("load") or []:
                entry[0] = same[entry[0]]
    rules = {key: value for key, value in rules.items() if same[key] == key}
    return {"transformers": transformers.__version__, "rules": rules, "types": types, "unbuilt": unbuilt}


def text(table):
    """JSON with one line for every entry of `rules`, `types` and `unbuilt`."""

    def dumps(value):
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)

    lines = ["{", f'"transformers":{dumps(table["transformers"])},']
    for section in ("rules", "types", "unbuilt"):
        entries = [f"{dumps(k)}:{dumps(v)}" for k, v in sorted(table[section].items())]
        lines += [f'"{section}":{{', *(e + "," for e in entries[:-1]), *entries[-1:], "}" + ("," if section != "unbuilt" else "")]
    return "\n".join([*lines, "}", ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, and fail where the table differs")
    parser.add_argument("--output", type=Path, default=TABLE)
    parser.add_argument("--only", help="comma-separated model types: print their entries")
    args = parser.parse_args()
    if args.only:
        by_type = classes_by_type()
        for model_type in args.only.split(","):
            _, described, failed = model_type_entry(model_type, sorted(by_type[model_type]))
            print(json.dumps({model_type: described, "failed": failed}, indent=1))
        return 0
    new = table()
    if args.check:
        old = json.loads(args.output.read_text())
        different = list(differences(old, new))
        for line in different[:20]:
            print(line)
        return 1 if different else 0
    args.output.write_text(text(new))
    return 0


def differences(old, new):
    """Where two tables differ, but for what a library that is missing here would have to build."""
    if old["transformers"] != new["transformers"]:
        yield f"made with transformers {old['transformers']}, and this is {new['transformers']}"
    missing = {t for t, classes in new["unbuilt"].items() if any(r.startswith("ImportError") for r in classes.values())}
    for section in ("rules", "types"):
        for key in sorted(set(old[section]) | set(new[section])):
            was, is_now = old[section].get(key), new[section].get(key)
            if was == is_now or section == "types" and key in missing or section == "rules" and is_now is None:
                continue
            yield f"{section} {key}: {json.dumps(was, sort_keys=True)[:200]} and {json.dumps(is_now, sort_keys=True)[:200]}"


if __name__ == "__main__":
    sys.exit(main())
