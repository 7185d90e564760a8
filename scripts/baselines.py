"""The table that every prompt has to stand beside: feature baselines on emoji, few-shot, with spread.

    python scripts/baselines.py                             # ZeroShot and the five feature methods, 1 to 16 shots, seeds 1 to 3
    python scripts/baselines.py --prompts                   # CoOp and MaPLe beside them, 5 epochs of batches of 4 (an hour of one core)
    python scripts/baselines.py --shots 1,16 --seeds 1 --to /tmp/baselines --keep /tmp/runs        # a taste

Every run is kept in runs/baselines and is not done twice; without `--prompts` the prompt methods that were run before stay in
the table. Writes results.json and table.md. The same as a sweep, without this script:

    mudpt sweep --methods ZeroShot,LinearProbe,CrossModalProbe,LPPlusPlus,TipAdapter,TipAdapterF --tasks emoji/animals \
        --shots 1,2,4,8,16 --seeds 1-3 --protocol few-shot --out runs/baselines
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

import mudpt
from mudpt.cells import as_rows
from mudpt.core import write_whole
from mudpt.sweep import grid, sweep
from mudpt.tabulating import tabulate

FEATURES = "ZeroShot", "LinearProbe", "CrossModalProbe", "LPPlusPlus", "TipAdapter", "TipAdapterF"
PROMPTS = "CoOp", "MaPLe"
KEPT = ("method", "task", "shots", "seed", "protocol", "status", "error", "accuracy", "macro_f1", "ece", "trainable", "seconds", "total_seconds", "steps",
        "tier", "recipe", "args", "epochs", "bs", "train", "split", "subset", "weights", "precision", "mudpt", "clip")  # fmt: skip


def numbers(text):
    return [int(n) for n in text.split(",")]


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--task", default="emoji/animals")
    p.add_argument("--shots", type=numbers, default=[1, 2, 4, 8, 16])
    p.add_argument("--seeds", type=numbers, default=[1, 2, 3])
    p.add_argument("--methods", type=lambda t: t.split(","), default=list(FEATURES), help="only these; what was run before stays in the table")
    p.add_argument("--prompts", action="store_true", help="run CoOp and MaPLe, too")
    p.add_argument("--keep", type=Path, default=Path("runs/baselines"))
    p.add_argument("--to", type=Path, default=Path("docs/baselines"))
    a = p.parse_args()
    common = dict(tasks=a.task, shots=a.shots, seeds=a.seeds, protocol="few-shot")
    cells = grid(a.methods, **common)
    if a.prompts:
        cells += grid(list(PROMPTS), **common, epochs=5, bs=4)
    sweep(cells, a.keep)
    rows = [{k: r.get(k) for k in KEPT} for r in as_rows(a.keep) if r.get("shots") in a.shots and r.get("seed") in a.seeds]
    order = {m: i for i, m in enumerate((*FEATURES, *PROMPTS))}
    rows.sort(key=lambda r: (order.get(r["method"], 99), r["shots"], r["seed"]))
    command = "python " + shlex.join(sys.argv)
    made = dict(command=command, mudpt=mudpt.__version__, task=a.task, shots=a.shots, seeds=a.seeds, rows=rows)
    write_whole(a.to / "results.json", json.dumps(made, indent=0, ensure_ascii=False) + "\n")
    table = tabulate(rows, rows="method", cols="shots")
    write_whole(a.to / "table.md", f"Accuracy in %. Made by `{command}`.\n\n{table.markdown()}\n")
    print(table.markdown())


if __name__ == "__main__":
    main()
