"""What an epoch of CoOp costs with pictures, and on their features, which are computed once

    OMP_NUM_THREADS=2 python scripts/measure_cached.py --json docs/bench/cached.json     # ViT-B/16, 100 classes; about five minutes

CoOp leaves the image tower alone, so without random crops (`Trainer(augment=False)`) every picture has the same features
in every epoch, and only the text tower has to be walked. Both ways train on the same pictures with the same options;
random weights, which are as fast as any.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from PIL import Image

from mudpt.bench import Bench, names_for
from mudpt.core import write_whole
from mudpt.fewshot import Task
from mudpt.methods import CoOp
from mudpt.towers import load_clip
from mudpt.train import Trainer


def pictures(classes, shots, size):
    "A task of plain pictures"
    g = torch.Generator().manual_seed(1)
    colours = torch.randint(0, 256, (classes * shots, 3), generator=g).tolist()
    return Task("plain", names_for(classes), [(Image.new("RGB", (size, size), tuple(c)), i % classes) for i, c in enumerate(colours)], [], [])  # fmt: skip


def epochs(clip, task, augment, n):
    "Seconds until the first step could begin, seconds of each epoch, mean losses"
    t = [time.perf_counter()]
    trainer = Trainer(CoOp(clip), task, epochs=n, bs=32, seed=1, augment=augment)
    t.append(time.perf_counter())
    trainer.fit(lambda e: t.append(time.perf_counter()) if e.kind == "epoch" else None)
    took = [b - a for a, b in zip(t, t[1:])]
    return dict(ready=took[0], epochs=took[1:], losses=trainer.history)


def run(a):
    clip = load_clip(a.model, device="cpu", quickgelu=True)
    task = pictures(a.classes, a.shots, clip.image_size)
    cached, seen = epochs(clip, task, False, a.epochs), epochs(clip, task, True, 1)
    ratio = seen["epochs"][0] / (sum(cached["epochs"]) / a.epochs)
    facts = dict(command=" ".join(["python", *sys.argv]), where=Bench([]).where, method="CoOp", model=a.model, classes=a.classes, images=len(task.train), batch=32, cached=cached, pictures=seen, ratio=ratio)  # fmt: skip
    if a.json:
        write_whole(Path(a.json), json.dumps(facts, indent=1) + "\n")
    print(f"{len(task.train)} pictures of {a.classes} classes: an epoch on features {min(cached['epochs']):.1f} to {max(cached['epochs']):.1f} s, after {cached['ready']:.1f} s once; an epoch on pictures {seen['epochs'][0]:.1f} s: {ratio:.1f} times as long")  # fmt: skip


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="ViT-B-16")
    p.add_argument("--classes", type=int, default=100)
    p.add_argument("--shots", type=int, default=4)
    p.add_argument("--epochs", type=int, default=3)
    p.add_argument("--json", help="a file for the numbers")
    run(p.parse_args())
