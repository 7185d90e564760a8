"""What each idea that makes a training step quick is worth, one after the other, and what some others were worth

    python scripts/measure_gains.py                          # MaPLe, ViT-B/16, 100 classes, batch 4
    python scripts/measure_gains.py --method MuDPT --classes 1000 --rounds 1 --json gains.json

Starts from the naive way and switches on one idea at a time; all rungs of the ladder take turns in every round, each
round in another order: one that always comes right after the naive way finds the memory as that left it, and was up to
15 % quicker for it. The two that take long sit out after the second round. Each rung's logits are compared with the naive
ones. The best of all rounds counts: what disturbs a measurement only ever makes it longer.
"""

import argparse
import copy
import json
import random
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import torch

from mudpt import blocks, text
from mudpt.bench import Case
from mudpt.image import ViT
from mudpt.naive import naive
from mudpt.text import FullText, Packed, SharedText
from mudpt.towers import load_clip


class Padded(Packed):
    "All names as long as the longest"

    def __init__(self, cl, lo, hi, alone=False, S=None):
        super().__init__(cl, lo, hi, alone, S)
        if self.where is not None:
            self.last, self.where = self.where[self.last], None


class WholeViT(ViT):
    "Every token goes all the way"

    def step(self, i, s, replaced=False):
        s.x = blocks.step(self.blocks[i], s.x)


class EndsViT(ViT):
    "Only the class token asks in the last block"

    def step(self, i, s, replaced=False):
        ViT._step(self, i, s, replaced=False)


def all_names(self, of, x, k0, v0, paired):
    "The last text block for all tokens"
    b = self.blocks[-1]
    q, k, v = (of.rows(t) for t in blocks.qkv(b, x))
    o = blocks.attend_shared(q, k, v, k0, v0, of.mask, b.scale)
    return self.pooled(of, b.close(x, of.pack(o)), paired)


def plain_activation(x):
    return x * torch.sigmoid(1.702 * x)


def on(m, text_tower, image_tower):
    "The method on other towers"
    c, new = copy.copy(m), copy.copy(m.clip)
    new.text, new.image = text_tower(m.clip.text.net, m.clip.text.tokenizer), image_tower(m.clip.image.net)
    c.clip, c._known = new, {}
    return c


@contextmanager
def patched(*what):
    with ExitStack() as s:
        for p in what:
            s.enter_context(p)
        yield


def ladder(m):
    "[(idea, method, context in which it runs)]"
    slow = patch.object(blocks, "quick_gelu", plain_activation)
    last, pad = patch.object(SharedText, "last_names", all_names), patch.object(text, "Packed", Padded)
    whole = on(m, FullText, WholeViT)
    return [
        ("the naive way", naive(m), ()),
        ("blocks opened: one product for q, k, v", whole, (slow,)),
        ("shared prefix, cut at the longest name", on(m, SharedText, WholeViT), (slow, last, pad)),
        ("names packed without padding", on(m, SharedText, WholeViT), (slow, last)),
        ("only end tokens ask in the last text block", on(m, SharedText, WholeViT), (slow,)),
        ("only the class token asks in the last image block", on(m, SharedText, EndsViT), (slow,)),
        ("image prompts that are replaced only answer", on(m, SharedText, ViT), (slow,)),
        ("the activation keeps one tensor", m, ()),
    ]


class Checkpointed(SharedText):
    "Names in four chunks, computed again in the backward pass"

    def names_at_once(self, cl, G, budget=None):
        return -(-len(cl) // 4)


def others(m, compile_too):
    "What was tried besides: [(idea, method, context)], to be compared with the last rung"
    out = [("names in four chunks, recomputed (saves memory)", on(m, Checkpointed, ViT), ())]
    if compile_too:
        fast = {id(b): torch.compile(b.mlp) for t in (m.clip.text, m.clip.image) for b in t.blocks}
        out += [("torch.compile of the MLPs", m, (patch.object(blocks.Block, "mlp", lambda b, x: fast[id(b)](x)),))]
    return out


def run(a):
    clip = load_clip(a.model, device=a.device, precision=a.precision, quickgelu=True)
    case = Case(a.method, clip, a.classes, a.batch)
    rungs = ladder(case.m)
    rest = others(case.m, a.compile)
    seen, diff, want = {r[0]: [] for r in rungs + rest}, {}, None  # {idea: [[seconds on the clock, on processors]]}
    for k in range(a.rounds + 1):  # the first round is not counted
        turn = (rungs if k <= 2 else rungs[2:]) + rest
        for name, m, context in random.Random(k).sample(turn, len(turn)) if k else turn:
            with patched(*context):
                logits, t = case.step(m)
            if want is None:
                want = logits
            diff[name] = (logits - want).abs().max().item()
            if k:
                seen[name].append(t)
            m._known.clear()
        print(f"round {k} of {a.rounds}", flush=True)
    best, busy = ({n: min(t[i] for t in v) for n, v in seen.items()} for i in (0, 1))
    rows, before = [], None
    for name, *_ in rungs + rest:
        base = best[rungs[-1][0]] if any(name == r[0] for r in rest) else before
        rows.append(
            dict(
                idea=name,
                seconds=best[name],
                processor=busy[name],
                gain=base / best[name] if base else 1.0,
                so_far=best[rungs[0][0]] / best[name],
                dlogits=diff[name],
            )
        )
        before = best[name]
        r = rows[-1]
        print(
            f"{name:52} {r['seconds']:7.2f} s  {r['gain']:5.2f} x  {r['so_far']:5.2f} x in all  |dlogits| {r['dlogits']:.0e}"
        )
    facts = dict(
        method=a.method,
        model=a.model,
        classes=a.classes,
        batch=a.batch,
        threads=torch.get_num_threads(),
        rounds=a.rounds,
        date=time.strftime("%Y-%m-%d"),
    )
    if a.json:
        Path(a.json).write_text(json.dumps(dict(facts, rungs=rows[: len(rungs)], others=rows[len(rungs) :]), indent=1))


def options(doc, rounds):
    "What every measurement of a step asks for; doc: of the script, rounds: as many as it takes if nobody says"
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--method", default="MaPLe")
    p.add_argument("--model", default="ViT-B-16")
    p.add_argument("--classes", type=int, default=100)
    p.add_argument("--batch", type=int, default=4)
    p.add_argument("--rounds", type=int, default=rounds)
    p.add_argument("--json", help="a file for the numbers")
    return p


if __name__ == "__main__":
    p = options(__doc__, rounds=6)
    p.add_argument("--device", default="cpu")
    p.add_argument("--precision", default="fp32")
    p.add_argument("--compile", action="store_true", help="also torch.compile, which needs a C++ compiler")
    run(p.parse_args())
