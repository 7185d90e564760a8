"""Regulariser x coupling on emoji, base to new: run folders that can be continued, and the rows as JSON for the docs.

The runs alone are one command, which does the same cells into the same folders:

    mudpt sweep --methods IVLP,MaPLe,MuDPT,DCP --seeds 1-3 --out runs/grid \\
        --regulariser none,KgCoOp,PromptSRC,GaussianAverage,ProGrad,Consistency
"""

import argparse
import json
import time
from pathlib import Path

METHODS = "IVLP", "MaPLe", "MuDPT", "DCP"
REGULARISERS = "none", "KgCoOp", "PromptSRC", "GaussianAverage", "ProGrad", "Consistency"
LEFT_OUT = "losses", "plan", "traceback", "per_class"


def rows(sweep) -> list:
    "One row per cell that was done or failed, without what only one run is interested in"
    from mudpt.listen import plain

    found = [sweep.find().get(i) for i in range(len(sweep))]
    return [
        plain({k: v for k, v in r.row.items() if k not in LEFT_OUT})
        for r in found
        if r and r.status in ("done", "error")
    ]


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--task", default="emoji/animals")
    ap.add_argument("--shots", type=int, default=16)
    ap.add_argument("--seeds", type=int, default=3, help="1 to so many")
    ap.add_argument("--epochs", type=int, default=5)
    ap.add_argument("--bs", type=int, default=4)
    ap.add_argument("--methods", nargs="+", default=METHODS)
    ap.add_argument("--regularisers", nargs="+", default=REGULARISERS)
    ap.add_argument(
        "--runs", type=Path, default=Path("runs/grid"), help="folder of runs; what is done there stays done"
    )
    ap.add_argument("--workers", type=int, default=1, help="processes; 1: this one")
    ap.add_argument("--collect", action="store_true", help="run nothing: write the rows that are there")
    ap.add_argument("--out", type=Path, default=Path("docs/grid"), help="folder for results.json")
    a = ap.parse_args()
    from mudpt import emoji
    from mudpt.cli_sweep import progress
    from mudpt.core import write_whole
    from mudpt.listen import plain
    from mudpt.results import circumstances
    from mudpt.sweep import Sweep, grid

    seeds, began = list(range(1, a.seeds + 1)), time.time()
    cells = grid(["ZeroShot"], a.task, a.shots, seeds, epochs=a.epochs, bs=a.bs)
    cells += grid(list(a.methods), a.task, a.shots, seeds, epochs=a.epochs, bs=a.bs, regulariser=list(a.regularisers))
    s = Sweep(cells, a.runs, "here" if a.workers == 1 else "pool", a.workers)
    if not a.collect:
        s.run(bar=False, tell=progress(s))
    done = rows(s)
    info = circumstances(emoji.clip(), command="python scripts/grid.py", seconds=time.time() - began, shots=a.shots, seeds=seeds,
                         protocol="base-to-new", epochs=a.epochs, bs=a.bs, cells=len(cells))  # fmt: skip
    write_whole(a.out / "results.json", json.dumps(plain(dict(info=info, rows=done)), indent=1, ensure_ascii=False))
    print(f"{len(done)} of {len(cells)} cells in {a.out / 'results.json'}")


if __name__ == "__main__":
    main()
