#!/usr/bin/env python3
"""Holds tlkit's merge against PEFT's for every architecture of transformers that can be built small.

    tests/peft/setup.sh
    tests/peft/venv/bin/python tests/peft/matrix.py --work DIR --tlkit target/release/tlkit [--only REGEX] [--small]

A row is a model type, a column a kind of adapter (matrix_kinds.py). For each cell transformers and PEFT save a base and
an adapter as users do, PEFT loads both, merges (`merge_and_unload`, then `save_pretrained`), and tlkit merges the same
files (`--tied shared`). The cell is

    =       every tensor is PEFT's, bit by bit
    ~       it is once transformers has loaded it: file names or copies of tied tensors differ from what it saves itself
    m       it is that of the model that PEFT merged, in memory; the file that PEFT saves of it does not load: it lacks tensors
    TL0000  refused, for the reason that matrix-refusals.toml gives for it
    TL0000! refused without such a reason
    x       different
    -       not there: the model has no such part, or transformers or PEFT cannot (`--verbose` says which)

All values are small integers times a power of two, so that every sum and product is exact in any order; only `random`,
`random-bf16` and DoRA's norms of rows beyond EXACT_ROW are not, and are held to RANDOM.

What PEFT makes is kept in DIR and made once; --replay checks again what is there. --table writes spec/peft-matrix.md and the line of README.md.
The exit status is 1 where a cell is different or refused without a reason.
"""

import argparse
import contextlib
import json
import logging
import os
import re
import resource
import signal
import subprocess
import sys
import time
import tomllib
import warnings
from importlib import metadata
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1")
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from matrix_check import Tool, check_row  # noqa: E402
from matrix_fixture import IN_FIXTURE, fixture  # noqa: E402
from matrix_kinds import KINDS  # noqa: E402
from matrix_models import model_types  # noqa: E402
from matrix_peft import make_row  # noqa: E402

SMALL = (
    "llama", "gpt2", "bert", "camembert", "distilbert", "deberta-v2", "t5", "whisper", "gemma3", "qwen2_vl", "mixtral", "gpt_oss", "mamba",
)

HEAD = """# Merges against PEFT's, by architecture

For every model type of transformers that can be built small on the CPU, transformers and PEFT save a base and an adapter as
users do, PEFT merges them (`merge_and_unload`, `save_pretrained`), and so does `tlkit merge --tied shared` (`--tied untie`
where modules_to_save holds embeddings, which PEFT unties). {types} model types, {versions}:
**{equal} equal, {memory} equal where PEFT's file does not load, {refused} refused, {different} different**. `tests/peft/matrix.py` makes this page;
`fixtures/peft-matrix.jsonl` is a part of it that runs with every `cargo test`.

`=` every tensor is PEFT's, bit by bit. `~` it is when transformers has loaded it: PEFT's file has other names, another
copy of a tied tensor, or f32 where the base has half precision. `m` it is that of the model that PEFT merged, held against it
in memory: the file that PEFT saves of that lacks tensors (below). A code: refused, with the reason below. `-` the model has
no such part, or transformers or PEFT cannot do it. Values are such that every product and sum is exact, but for `random`
(f32, rank 16: within 4 units of the last place of the largest weight), `random-bf16` (within 1), and DoRA over rows of more
than 2,048 values, whose norms torch rounds (held to the same).

Besides: `tlkit verify merged --weights-only` accepts PEFT's own file in {verified} of the `=` cells (all but the random ones and
those in which transformers draws a head), {tl} adapters merge to the same bytes by way of a `.tl`, and {back} of them again from the
PEFT directory that the `.tl` becomes.

{table}

## PEFT's file lacks tensors

transformers' `save_pretrained` leaves out what it takes for a copy of a tied tensor, though PEFT has untied it, and
`from_pretrained` then draws it at random, with a warning. tlkit writes the tensors; the model loads as PEFT merged it.

| where | kind | not in PEFT's file |
|---|---|---|
{losses}

## Refused

| code | where | why |
|---|---|---|
{reasons}
"""


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


def results_of(args, row):
    file = args.work / row / "result.json"
    return json.loads(file.read_text()) if file.exists() else {}


def summary(args, rows, kinds):
    path = HERE / "matrix-refusals.toml"
    listed = tomllib.loads(path.read_text()).get("refusal", []) if path.exists() else []
    names = ("equal", "memory", "refused", "unexplained", "different", "absent", "verified", "tl", "back")
    cells, counts = {}, dict.fromkeys(names, 0)
    for row in rows:
        results, line = results_of(args, row), {}
        for kind in kinds:
            r = results.get(kind, {"cell": "-"})
            cell = r["cell"]
            counts["verified"] += r.get("verify") == "PEFT's"
            for way in ("tl", "back"):
                counts[way] += r.get(way) == "="
            if cell in "=~m":
                counts["memory" if cell == "m" else "equal"] += 1
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
    lost = [(row, kind, results_of(args, row)[kind]["lost"]) for row, line in cells.items() for kind in kinds if line[kind] == "m"]
    losses = "\n".join(f"| {row} | {kind} | `{'`, `'.join(names)}` |" for row, kind, names in lost)
    text = HEAD.format(types=len(cells), versions=versions, table=table(cells, kinds), losses=losses, reasons=reasons, **counts)
    if counts["unexplained"]:
        text = text.replace("## Refused\n", f"## Refused\n\n{counts['unexplained']} refusals, marked `!`, have no reason listed yet.\n")
    wrong = [(row, kind, results_of(args, row)[kind].get("detail", "")) for row, line in cells.items() for kind in kinds if line[kind] == "x"]
    if wrong:
        rows = "\n".join(f"| {row} | {kind} | {' '.join(why.split())[:200].replace('|', ';')} |" for row, kind, why in wrong)
        text += f"\n## Different\n\nNot mended yet: tlkit's merge is not PEFT's here.\n\n| model type | kind | what |\n|---|---|---|\n{rows}\n"
    root = HERE.parent.parent
    (root / "spec" / "peft-matrix.md").write_text(text)
    which = " ([which](spec/peft-matrix.md#different))" if wrong else ""
    line = (f"In the [matrix](spec/peft-matrix.md) of {len(cells)} model types, {counts['equal'] + counts['memory']:,} merges are PEFT's, "
            f"{counts['refused'] + counts['unexplained']:,} are refused by name, {counts['different']:,} differ{which}.")
    readme = root / "README.md"
    readme.write_text(re.sub(r"In the \[matrix\]\(spec/peft-matrix.md\) of .*? differ(?: \(\[which\]\([^)]*\)\))?\.", line, readme.read_text(), flags=re.S))


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
        results = results_of(args, row)
        for kind in kinds:
            r = results.get(kind, {})
            shown = cells[row][kind]
            say = lambda what, text: print(f"{row} {kind} {what}: {' '.join(text.split())[:330]}")
            if shown.endswith("!") or shown == "x" or (args.verbose and shown in "-~m"):
                say(shown, r.get("detail", ""))
            if r.get("verify", "own") not in ("own", "PEFT's"):
                say("verify", r["verify"])
            for way in ("tl", "back"):
                if r.get(way, "=") != "=" and (args.verbose or not r[way].startswith("convert")):
                    say(way, r[way])
    print(counts, len(cells), "model types")
    sys.exit(1 if counts["different"] or counts["unexplained"] else 0)


if __name__ == "__main__":
    main()
