"""What a look costs: seconds and peak memory of the whole process, for a CLIP of ordinary size with random weights.

    python scripts/measure_trace.py                                # ViT-B-16 at 224 pixels, 10 classes, MuDPT, one core
    python scripts/measure_trace.py --model ViT-L-14 --method DCP --threads 4

The times are of this machine as it is at this moment; memory is what the system counts (resident set, at its highest).
"""

import argparse
import os
import resource
import sys
import time

p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
p.add_argument("--model", default="ViT-B-16", help="an open_clip model name")
p.add_argument("--method", default="MuDPT", help="a method of mudpt")
p.add_argument("--classes", type=int, default=10)
p.add_argument("--threads", type=int, default=1)
args = p.parse_args()
os.environ["OMP_NUM_THREADS"] = str(args.threads)

import torch  # noqa: E402  (after the number of threads is set)

from mudpt import load_clip, methods, seed_all  # noqa: E402
from mudpt.attention import able, draw, look, words  # noqa: E402

torch.set_num_threads(args.threads)


def peak():
    top = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return top / (2**30 if sys.platform == "darwin" else 2**20)


def timed(what, f):
    wall, cpu = time.perf_counter(), time.process_time()
    out = f()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{what:34} {wall:6.2f} s   {cpu:6.2f} s of computing   peak {peak():.2f} GiB", flush=True)
    return out


names = [
    "cat",
    "dog",
    "golden retriever",
    "fire truck",
    "sea lion",
    "tulip",
    "violin",
    "airplane",
    "cup of coffee",
    "oak",
]
names = (names + [f"thing number {i}" for i in range(args.classes)])[: args.classes]
seed_all(0)
clip = timed("model, random weights", lambda: load_clip(args.model, device="cpu"))
m = getattr(methods, args.method)(clip)
x = torch.randn(3, clip.image_size, clip.image_size)
with torch.no_grad():
    timed("one pass, nobody looking", lambda: m(x[None], names))
timed("one look", lambda: look(m, x, names))
t = timed("one look, with gradients", lambda: look(m, x, names, grad=True))
for by in able(t):
    timed(f"map: {by}", lambda by=by: draw(t, None if by in ("raw", "rollout") else (t.likely or names)[0], by))
timed("map: relevance, another class", lambda: draw(t, names[1]))
timed("words of a class", lambda: words(t, names[0]))
held = sum(w.numel() * w.element_size() for w in t.parts.values()) / 2**20
print(t)
print(f"attention held by the look: {held:.0f} MiB; peak of the whole process: {peak():.2f} GiB")
