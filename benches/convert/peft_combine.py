"""Combines LoRAs with PEFT's `add_weighted_adapter`.

    PYTHON benches/convert/peft_combine.py COMBINATION_TYPE THREADS OUT_DIR ADAPTER=WEIGHT...

Prints JSON: seconds and CPU seconds of the combination alone, and the peak memory of the process in MB. What it made is
saved in OUT_DIR. The model is a skeleton of the adapters' modules, whose weights are never touched.
"""

import json
import resource
import sys
import time
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, set_peft_model_state_dict
from peft_shrink import skeleton
from safetensors.torch import load_file


def main():
    way, threads, out = sys.argv[1:4]
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(threads))
    names, weights, model = [], [], None
    for at, text in enumerate(sys.argv[4:]):
        folder, weight = text.rsplit("=", 1)
        tensors = load_file(Path(folder) / "adapter_model.safetensors")
        config = LoraConfig.from_pretrained(folder)
        config.task_type, config.inference_mode = None, True
        names.append(f"adapter{at}")
        weights.append(float(weight))
        if model is None:
            model = PeftModel(skeleton(tensors), config, names[0])
        else:
            model.add_adapter(names[-1], config)
        missing = set_peft_model_state_dict(model, tensors, names[-1]).unexpected_keys
        assert not missing, missing
    density = 0.5 if way not in ("cat", "svd", "linear") else None
    started, used = time.perf_counter(), time.process_time()
    model.add_weighted_adapter(names, weights, "combined", combination_type=way, density=density)
    seconds, cpu = time.perf_counter() - started, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    model.save_pretrained(out, selected_adapters=["combined"])
    print(json.dumps({"seconds": seconds, "cpu": cpu, "peak": peak}))


main()
