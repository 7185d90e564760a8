"""How the cost of a training step grows with the number of classes, and with the batch

    OMP_NUM_THREADS=2 python scripts/measure_growth.py --json docs/bench/growth.json     # MaPLe, ViT-B/16; about 15 minutes on two cores

The naive way takes part up to a thousand classes and is extrapolated in memory where it does not fit; beyond, ours goes
alone. The records are those of `mudpt bench`.
"""

import argparse
import json
import sys
from pathlib import Path

from mudpt.bench import Bench, bench
from mudpt.core import write_whole


def run(a):
    def tell(r):
        ratio = f", naive way {r['step_ratio']:.1f} times as long" if r["step_ratio"] else ""
        print(f"{r['classes']:,} classes, batch {r['batch']}: {r['medians']['step']:.2f} s{ratio}", flush=True)

    def measure(classes, batch):
        rounds = a.rounds if max(classes) < 1000 else 1
        return bench((a.method,), classes, (a.model,), batch, dtype=a.precision, rounds=rounds, tell=tell).records

    by_classes = [r for C in a.classes for r in measure((C,), a.batch)]
    by_batch = [r for b in a.batches for r in measure((a.fixed,), b)]
    facts = dict(command=" ".join(["python", *sys.argv]), where=Bench([]).where, classes=by_classes, batch=by_batch)
    if a.json:
        write_whole(Path(a.json), json.dumps(facts, indent=1))
    print(Bench(by_classes + by_batch))


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--method", default="MaPLe")
    p.add_argument("--model", default="ViT-B-16")
    p.add_argument("--precision", default="fp32")
    p.add_argument("--classes", type=int, nargs="*", default=[10, 100, 1000, 10_000])
    p.add_argument("--batch", type=int, default=4, help="images in a batch while classes grow")
    p.add_argument("--batches", type=int, nargs="*", default=[1, 4, 16, 32])
    p.add_argument("--fixed", type=int, default=100, help="classes while the batch grows")
    p.add_argument("--rounds", type=int, default=2)
    p.add_argument("--json", help="a file for the numbers")
    run(p.parse_args())
