"""What half precision is worth on this processor: a training step in fp32 and in bf16, in turns

    python scripts/measure_precision.py                      # MaPLe, ViT-B/16, 100 classes, batch 4
    python scripts/measure_precision.py --rounds 8 --json docs/bench/precision.json

`rate` is the speed of a plain matrix product; where it grows more than the step does, the rest of the step is to blame.
"""

import json
import time
from pathlib import Path
from statistics import median

import torch
from measure_gains import options

from mudpt.bench import Case
from mudpt.floor import rate
from mudpt.towers import load_clip


def case(a, precision):
    "The same weights and prompts in either precision"
    torch.manual_seed(0)
    return Case(a.method, load_clip(a.model, precision=precision, quickgelu=True), a.classes, a.batch)


def run(a):
    made = {p: case(a, p) for p in ("fp32", a.half)}
    seconds, busy, logits = {p: [] for p in made}, {p: [] for p in made}, {}
    for k in range(a.rounds + 1):  # the first round is not counted
        for p, c in made.items():
            logits[p], (clock, processor) = c.step(c.m)
            c.m._known.clear()
            if k:
                seconds[p].append(clock)
                busy[p].append(processor)
    out = dict(method=a.method, model=a.model, classes=a.classes, batch=a.batch, rounds=a.rounds, half=a.half)
    out |= dict(threads=torch.get_num_threads(), date=time.strftime("%Y-%m-%d"))
    out |= dict(seconds={p: median(v) for p, v in seconds.items()}, processor={p: median(v) for p, v in busy.items()})
    out |= dict(rate={p: rate(c.clip, a.batch) for p, c in made.items()})
    out |= dict(dlogits=(logits["fp32"] - logits[a.half]).abs().max().item())
    out |= dict(gain=out["seconds"]["fp32"] / out["seconds"][a.half], rates=out["rate"][a.half] / out["rate"]["fp32"])
    print(json.dumps(out, indent=1))
    if a.json:
        Path(a.json).write_text(json.dumps(out, indent=1))


if __name__ == "__main__":
    p = options(__doc__, rounds=6)
    p.add_argument("--half", default="bf16", help="bf16 or fp16")
    run(p.parse_args())
