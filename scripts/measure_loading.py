"""How fast folders become tasks and images become batches, beside torchvision's ImageFolder and DataLoader

    python scripts/measure_loading.py                 # 50,000 small JPEGs and 1,000 photos of 500 x 375
    python scripts/measure_loading.py --small 2000 --photos 100 --rounds 2

Makes its images in a temporary folder (the same each time), measures in rounds that go through all candidates, so
that a busy machine disturbs them alike, and prints the best of each and the ratios. "CPU" is processor seconds of this
process and its workers by seconds on the clock: 2.0 is two cores busy.
"""

import argparse
import json
import os
import platform
import resource
import tempfile
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from mudpt import emoji
from mudpt.batches import loader
from mudpt.data import folder
from mudpt.judging import score
from mudpt.methods import ZeroShot
from mudpt.pictures import threads
from mudpt.smallcache import small


def cpu():
    "Processor seconds of this process and its finished children"
    t = os.times()
    return t.user + t.system + t.children_user + t.children_system


def timed(f):
    "(result, seconds on the clock, processor seconds)"
    t, c = time.perf_counter(), cpu()
    r = f()
    return r, time.perf_counter() - t, cpu() - c


def make(root, n, classes, size):
    "n noisy JPEGs in class folders"
    rng = np.random.default_rng(n)
    for i in range(n):
        w, h = size(rng)
        coarse = rng.normal(128, 50, (max(2, h // 8), max(2, w // 8), 3)).clip(0, 255).astype(np.uint8)
        im = np.asarray(Image.fromarray(coarse).resize((w, h), Image.Resampling.BICUBIC), np.int16)
        im = (im + rng.integers(-12, 13, (h, w, 3), np.int16)).clip(0, 255).astype(np.uint8)
        d = root / f"class {i % classes:03}"
        if i < classes:
            d.mkdir(parents=True)
        Image.fromarray(im).save(d / f"{i:06}.jpg", quality=85)
    return sum(e.stat().st_size for e in root.rglob("*.jpg"))


def ours(items, transform, bs):
    return sum(len(y) for _, y in loader(items, transform, bs=bs, keep=0))


def theirs(ds, bs, workers):
    dl = torch.utils.data.DataLoader(ds, bs, num_workers=workers)
    return sum(len(y) for _, y in dl)


@contextmanager
def one_part(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield folder(path, val=0, test=0, verify=False)


@torch.no_grad()
def judge_theirs(method, ds, names, bs, workers):
    "What `score` does, with torchvision's loader"
    right = n = 0
    classes = method.classes(names)
    text = method.text_features(classes)
    for x, y in torch.utils.data.DataLoader(ds, bs, num_workers=workers):
        right += (method(x, classes, text=text).logits.argmax(1) == y).sum().item()
        n += len(y)
    return 100 * right / n


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # MiB on Linux


def run(a):
    from open_clip.transform import PreprocessCfg, image_transform_v2

    home = Path(a.folder or tempfile.mkdtemp(prefix="mudpt-loading-"))
    facts = dict(
        machine=platform.machine(), cores=threads(), torch=torch.__version__, torch_threads=torch.get_num_threads(),
        niceness=os.getpriority(os.PRIO_PROCESS, 0), load=os.getloadavg()[0], rounds=a.rounds,
    )  # fmt: skip
    print(json.dumps(facts))
    clip, out = emoji.clip(device="cpu"), dict(facts)
    zero = ZeroShot(clip)
    big = image_transform_v2(PreprocessCfg(size=224), is_train=False)
    sets = [
        ("small", a.small, 100, lambda rng: rng.integers(64, 129, 2)),
        ("photos", a.photos, 20, lambda rng: (500, 375)),
    ]
    for name, n, classes, size in sets:
        if not n:
            continue
        root = home / name
        if not root.exists():
            b, t, _ = timed(lambda root=root, n=n, classes=classes, size=size: make(root, n, classes, size))
            print(f"\n{name}: {n:,} JPEGs, {b / 1e6:.0f} MB, made in {t:.0f} s")
        for verify in (False, True):
            task, t, c = timed(lambda root=root, v=verify: folder(root, val=0, test=0, verify=v))
            out[f"{name} folder verify={verify} s"] = t
            print(f"{name}: folder(verify={verify}) {t:.1f} s ({n / t:,.0f} files/s, CPU {c / t:.2f})")
        _, t, _ = timed(lambda root=root: ImageFolder(root))
        out[f"{name} ImageFolder s"] = t
        print(f"{name}: torchvision ImageFolder {t:.1f} s")
        part = task.train[:: max(1, n // a.part)]
        where = {str(s): i for i, (s, _) in enumerate(ImageFolder(root).samples)}
        chosen = [where[str(s)] for s, _ in part]

        def sub(tf, root=root, chosen=chosen):
            return torch.utils.data.Subset(ImageFolder(root, transform=tf), chosen)

        kept, t, c = timed(lambda part=part: (small(part, 224, home / "kept"), small(part, clip, home / "kept")))
        print(f"{name}: small(…) of {len(part):,} for 224 and {clip.image_size} pixels {t:.1f} s (CPU {c / t:.2f})")
        names = task.names
        same = score(zero, part, names).accuracy == score(zero, kept[1], names).accuracy
        agree = (
            abs(judge_theirs(zero, sub(clip.test_transform), names, 100, a.workers) - score(zero, part, names).accuracy)
            < 1e-9
        )
        print(f"{name}: the small pictures give the same accuracy: {same}; torchvision's loader too: {agree}")
        cases = {
            "load 224": {
                "mudpt": lambda part=part: ours(part, big, 100),
                "mudpt small": lambda kept=kept: ours(kept[0], big, 100),
                "torchvision": lambda: theirs(sub(big), 100, a.workers),
            },
            f"load {clip.image_size}": {
                "mudpt": lambda part=part: ours(part, clip.test_transform, 100),
                "mudpt small": lambda kept=kept: ours(kept[1], clip.test_transform, 100),
                "torchvision": lambda: theirs(sub(clip.test_transform), 100, a.workers),
            },
            "judge emoji": {
                "mudpt": lambda part=part, names=names: score(zero, part, names),
                "mudpt small": lambda kept=kept, names=names: score(zero, kept[1], names),
                "torchvision": lambda names=names: judge_theirs(zero, sub(clip.test_transform), names, 100, a.workers),
            },
        }
        for case, candidates in cases.items():
            seen = {k: [] for k in candidates}
            for _ in range(a.rounds):
                for k, f in candidates.items():
                    seen[k].append(timed(f)[1:])
            best = {k: min(v) for k, v in seen.items()}
            base = best["torchvision"]
            for k, (t, c) in best.items():
                out[f"{name} {case} {k}"] = dict(
                    images_per_s=len(part) / t, cpu=c / t, ratio=base[0] / t, cpu_ratio=base[1] / c
                )
                print(
                    f"{name}: {case:<12} {k:<12} {len(part) / t:8,.0f} images/s  CPU {c / t:.2f}  {base[0] / t:.2f} x torchvision (clock), {base[1] / c:.2f} x (processor)"
                )
        mem = peak()
        _, t, c = timed(lambda task=task: score(zero, task.train, task.names))
        out[f"{name} judge all"] = dict(images_per_s=n / t, cpu=c / t, mib_before=mem, mib_after=peak())
        print(
            f"{name}: all {n:,} judged in {t:.1f} s, {n / t:,.0f} images/s, CPU {c / t:.2f}; peak memory {mem:.0f} -> {peak():.0f} MiB"
        )
    if a.out:
        Path(a.out).write_text(json.dumps(out, indent=1))


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--small", type=int, default=50_000, help="JPEGs of 64 to 128 pixels")
    p.add_argument("--photos", type=int, default=1_000, help="JPEGs of 500 x 375 pixels")
    p.add_argument("--part", type=int, default=2_000, help="images of each that the comparisons use")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--workers", type=int, default=2, help="of the DataLoader")
    p.add_argument("--folder", help="where to put the images; a new temporary folder if omitted")
    p.add_argument("--out", help="a JSON file for the numbers")
    run(p.parse_args())
