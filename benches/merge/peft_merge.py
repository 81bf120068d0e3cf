#!/usr/bin/env python3
"""Times what `tlkit merge BASE ADAPTER -o OUT` replaces: PEFT's merge of an adapter into a base model, on the CPU or a GPU.

    tests/peft/setup.sh
    tests/peft/venv/bin/python benches/merge/peft_merge.py BASE_DIR ADAPTER_DIR OUT_DIR

Prints one JSON line. `load` is from_pretrained of the model (in --dtype, with low_cpu_mem_usage) and of the adapter;
`merge` is merge_and_unload; `save` is save_pretrained; `seconds` is their sum. Importing torch and PEFT is left out of
it and given as `imports`; nothing is synced to disk. `peak_rss_bytes` is the kernel's high-water mark of the process
(VmHWM), which counts the pages of the memory-mapped base that were touched.

The adapter is not loaded with low_cpu_mem_usage: PEFT 0.21 then rounds a float32 adapter to the dtype of the base, so
the merge would be another one.
"""

import argparse
import json
import os
import re
from time import perf_counter

os.environ["HF_HUB_OFFLINE"] = "1"


def peak_rss_bytes() -> int:
    with open("/proc/self/status") as status:
        return 1024 * int(re.search(r"^VmHWM:\s+(\d+) kB", status.read(), re.M).group(1))


def main():
    parser = argparse.ArgumentParser(description="Time PEFT's merge of an adapter into a base model on the CPU.")
    parser.add_argument("base", help="folder of the base model")
    parser.add_argument("adapter", help="folder of the PEFT adapter")
    parser.add_argument("out", help="folder to save the merged model in")
    parser.add_argument("--dtype", default="bfloat16", help="dtype to load the base in (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="where to load the base and merge (default: %(default)s)")
    parser.add_argument("--safe", action="store_true", help="merge with safe_merge=True")
    args = parser.parse_args()

    times = [perf_counter()]
    import torch
    import transformers
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    transformers.utils.logging.disable_progress_bar()
    times.append(perf_counter())
    model = AutoModelForCausalLM.from_pretrained(args.base, dtype=getattr(torch, args.dtype), low_cpu_mem_usage=True)
    model = model.to(args.device)
    model = PeftModel.from_pretrained(model, args.adapter)
    times.append(perf_counter())
    model = model.merge_and_unload(safe_merge=args.safe)
    if args.device != "cpu":
        torch.cuda.synchronize()
    times.append(perf_counter())
    model.save_pretrained(args.out)
    times.append(perf_counter())

    imports, load, merge, save = (round(b - a, 4) for a, b in zip(times, times[1:]))
    report = {"seconds": round(times[-1] - times[1], 4), "load": load, "merge": merge, "save": save}
    report |= {"imports": imports, "peak_rss_bytes": peak_rss_bytes(), "threads": torch.get_num_threads()}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
