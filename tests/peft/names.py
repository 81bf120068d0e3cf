#!/usr/bin/env python3
"""Writes what transformers makes of the names of tensors on the disk, for every class with load rules.

    tests/peft/setup.sh
    tests/peft/venv/bin/python tests/peft/names.py target/names.json
    TLKIT_NAMES=$PWD/target/names.json cargo test --lib base::names

Each class of the table is built on the meta device, its tensors get the names that save_pretrained gives them, and
each of these the name that from_pretrained makes of it. Nothing is computed.
"""

import json
import os
import re
import sys
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "src" / "python"))
warnings.filterwarnings("ignore")
try:
    import architectures
    import torch
    import transformers
    from transformers import core_model_loading as loading
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.initialization import no_init_weights
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
except ImportError as e:
    print(f"{e}: run tests/peft/setup.sh, then this with tests/peft/venv/bin/python", file=sys.stderr)
    sys.exit(2)


def case(model_type, name, config):
    cls = getattr(transformers, name)
    config = architectures.shortened(architectures.fitting(type(config).from_dict(config.to_dict()), cls))
    with torch.device("meta"), no_init_weights():
        model = cls(config)
    config.architectures = [name]
    state = dict(model.state_dict())
    rules = get_model_conversion_mapping(model)
    renamings = [r for r in rules if isinstance(r, loading.WeightRenaming)]
    converters = [r for r in rules if isinstance(r, loading.WeightConverter)]
    rows = []
    for disk in sorted(loading.revert_weight_conversion(model, dict(state))):
        new, pattern = loading.rename_source_key(disk, renamings, converters, model.base_model_prefix, state)
        rows.append([disk, new, pattern])
    return {
        "type": model_type, "class": name, "prefix": model.base_model_prefix, "rows": rows,
        "config": json.loads(json.dumps(config.to_dict(), default=str)), "class_names": sorted(state),
    }


def main():
    transformers.logging.set_verbosity_error()
    table = json.loads((ROOT / "src" / "base" / "architectures.json").read_text())
    cases, failed = [], {}
    for model_type, entry in sorted(table["types"].items()):
        ruled = [n for n, c in entry["classes"].items() if (c["load"] if "load" in c else entry.get("load"))]
        configs = architectures.small(CONFIG_MAPPING[model_type]) if ruled else []
        for name in ruled:
            for config in configs:
                try:
                    cases.append(case(model_type, name, config))
                    failed.pop(name, None)
                    break
                except Exception as e:  # noqa: BLE001: a library that is missing here
                    failed[name] = f"{type(e).__name__}: {e}"[:100]
    # Python's words for what JSON has no numbers for.
    text = re.sub(r"(?<=[\[,: ])-?(NaN|Infinity)(?=[\],}])", "0", json.dumps(cases))
    Path(sys.argv[1]).write_text(text)
    print(f"{len(cases)} classes, {sum(len(c['rows']) for c in cases)} names")
    for name, reason in failed.items():
        print(f"{name}: {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
