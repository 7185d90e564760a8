"""The table of all maps and methods on drawn scenes, where the outline of every thing is known.

    python scripts/score_maps.py                # 9 methods, seeds 1 to 3; trained prompts and marks are kept in runs/maps
    python scripts/score_maps.py --seeds 1 --methods ZeroShot,VPT --images 3 --epochs 1 --to /tmp/maps     # a taste

Every method is trained on half of the classes of a group (16 pictures each, 5 epochs of 4 pictures at a time, its own
learning rate), then all maps are drawn for held-out scenes of evenly spread classes and marked: `mudpt.scoring` says how.
A run that was interrupted goes on where it stopped. Writes table.md, results.json and a row of maps for each of two methods.
"""

import argparse
import json
import shlex
import sys
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure

import mudpt
from mudpt import Trainer, emoji, load_prompts, seed_all
from mudpt.comparing import find_methods, made_for
from mudpt.core import digest, write_whole
from mudpt.heat import as_png, colours, grey, limits
from mudpt.sanity import THRESHOLD
from mudpt.scoring import MARKS, all_maps, as_text, overall, score_maps

SHOW = "ZeroShot", "MuDPT"  # Whose maps are drawn


def trained(cls, clip, task, seed, a):
    "From its file, or by training it; a method without parameters is made anew"
    what = dict(epochs=a.epochs, shots=a.shots, bs=a.bs, seed=seed, clip=clip.digest, task=task.fingerprint)
    file = a.keep / "prompts" / f"{cls.__name__}-seed{seed}-{digest(json.dumps(what, sort_keys=True))}.safetensors"
    if not file.exists():
        seed_all(seed)
        m = cls(clip, **made_for(cls, task))
        if not m.n_trainable:
            return m
        t0 = time.perf_counter()
        Trainer(m, task.few_shot(a.shots, seed).base, epochs=a.epochs, bs=a.bs, seed=seed).fit()
        file.parent.mkdir(parents=True, exist_ok=True)
        m.save(file, budget=what)
        print(f"trained {cls.__name__}, seed {seed}: {time.perf_counter() - t0:.0f} s", flush=True)
    return load_prompts(file, clip)


def scenes(task, n):
    "One held-out scene of each of n classes, evenly spread; and the names they are told from"
    at = torch.linspace(0, len(task.names) - 1, min(n, len(task.names))).round().long().tolist()
    first = {y: (s, at.index(y)) for s, y in reversed(task.test) if y in at}
    return [first[y] for y in at], [task.names[y] for y in at]


def markdown(t):
    rows = [[*t.columns], ["---" if c in ("method", "map") else "---:" for c in t.columns], *t.values.tolist()]
    return "\n".join("| " + " | ".join(str(c) for c in r) + " |" for r in rows)


def by_method(table, k, spread):
    "One mark: a line per map, a column per method"
    cells = [f"{m:.2f} ± {d:.2f}" for m, d in zip(table[k], table[f"{k}_{spread}"])]
    t = table.assign(cell=cells).pivot(index="map", columns="method", values="cell")
    return t.reindex(index=table["map"].unique(), columns=table["method"].unique()).fillna("–").reset_index()


def report(table, names, items, a):
    all_ = overall(table)
    lost = all_[all_.sanity == "fails"]
    here = [f"{r.map} for {r.method} ({r.alike:.2f})" for r in table.itertuples() if r.sanity == "fails"]
    own = [h for h in here if h.split(" for ")[0] not in set(lost["map"])]
    spread = "seeds" if len(a.seeds) > 1 else "sd"
    what = "the seeds' means" if spread == "seeds" else "pictures"
    parts = [
        "# Maps on drawn scenes, marked",
        f"`{a.command}`",
        f"{len(table['method'].unique())} methods, seeds {', '.join(map(str, a.seeds))}, {len(items)} held-out scenes of "
        f"{', '.join(names)}; {a.shots} shots, {a.epochs} epochs, {a.bs} images per batch; "
        f"mudpt {mudpt.__version__}, {time.strftime('%Y-%m-%d %H:%M')}.",
        f"`pointing` and `inside` against `chance` (the share of the picture that the thing covers): large is good. "
        f"`deletion`: small is good; `insertion`: large is good. `alike`: rank correlation with the map of the same model "
        f"with all weights of the image tower and all prompts shuffled; above {THRESHOLD} a map fails. "
        "*centre*, *noise* and *edges* never ask the model; *truth* is the outline itself.",
        "## All methods together",
        "Mean ± standard deviation between methods.",
        markdown(as_text(all_)),
        "**Fail the test of sanity**, in the mean over methods: "
        + (", ".join(f"{r.map} ({r.alike:.2f})" for r in lost.itertuples()) or "none")
        + "." + (f" For single methods also: {', '.join(own)}." if own else ""),
    ]  # fmt: skip
    for k in MARKS:
        if k != "chance":
            parts += [f"## {k}", f"Mean ± standard deviation of {what}.", markdown(by_method(table, k, spread))]
    write_whole(a.to / "table.md", "\n\n".join(parts) + "\n")


def draw(methods, items, names, a, columns=6):
    "All maps of two methods on one scene, for the pages: each on its own scale, with the outline"
    for label in (x for x in SHOW if x in methods):
        picture, y = items[len(items) // 2]
        heats = [bh for bh in all_maps(methods[label][0], picture, names, names[y], a.maps) if bh[0] != "truth"]
        fig = Figure((1.45 * columns, 1.65 * -(-len(heats) // columns) + 0.3), dpi=90, layout="constrained")
        axes = fig.subplots(-(-len(heats) // columns), columns, squeeze=False).ravel()
        for ax, (b, h) in zip(axes, heats):
            (low, high), (height, width) = limits([h.values], h.signed), h.covers
            ax.imshow(grey(h.picture))
            ax.imshow(h.values, extent=(-0.5, width - 0.5, height - 0.5, -0.5), cmap=colours(h.signed),
                      vmin=low, vmax=high, alpha=0.65, interpolation="nearest")  # fmt: skip
            ax.contour(h.mask, [0.5], colors="white", linewidths=1.2)
            ax.set_title(b, fontsize=9)
        for ax in axes:
            ax.axis("off")
        fig.suptitle(f"{label}: {names[y]}", fontsize=10)
        write_whole(a.to / f"{label}.png", as_png(fig))


def main(args=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--methods", default=None, help="names with commas; all if omitted")
    p.add_argument("--maps", default=None, help="names with commas; all if omitted")
    p.add_argument("--seeds", default="1,2,3")
    p.add_argument("--task", default="animals", help="a group of emoji")
    p.add_argument("--images", type=int, default=10, help="held-out scenes, each of another class")
    p.add_argument("--shots", type=int, default=16)
    p.add_argument("--epochs", type=int, default=5)
    p.add_argument("--bs", type=int, default=4)
    p.add_argument("--steps", type=int, default=8, help="of the curves")
    p.add_argument("--keep", type=Path, default=Path("runs/maps"), help="trained prompts and finished cells")
    p.add_argument("--to", type=Path, default=Path("docs/maps"), help="where the table goes")
    a = p.parse_args(args)
    a.command = "python scripts/score_maps.py " + shlex.join(sys.argv[1:] if args is None else args)
    a.seeds, a.maps = [int(s) for s in a.seeds.split(",")], a.maps and a.maps.split(",")
    clip, task, t0 = emoji.clip(device="cpu"), emoji.task(a.task), time.perf_counter()
    items, names = scenes(task.base, a.images)
    classes = find_methods(a.methods and a.methods.split(","))
    methods = {c.__name__: [trained(c, clip, task, s, a) for s in a.seeds] for c in classes}
    table = score_maps(
        methods, items, names, a.maps, out=a.keep, steps=a.steps, path=16, samples=2,
        tell=lambda label, i, n: print(f"{i}/{n} {label}: {time.perf_counter() - t0:.0f} s", flush=True),
    )  # fmt: skip
    report(table, names, items, a)
    draw(methods, items, names, a)
    facts = dict(command=a.command, seeds=a.seeds, names=names, scenes=[repr(s) for s, _ in items])
    write_whole(a.to / "results.json", json.dumps(facts | dict(rows=table.to_dict("records")), indent=1) + "\n")
    print(as_text(overall(table)).to_string(index=False))


if __name__ == "__main__":
    main()
