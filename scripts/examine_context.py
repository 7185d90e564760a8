"""Why text-only methods stay near or below zero-shot on emoji: where they start, and what random crops do to them.

    python scripts/examine_context.py          # some minutes on one core; validation images only

First, base accuracy before any training, for random contexts of several lengths (four seeds) and for the methods whose
published start is at random. Then CoOp, started from words, trained with and without random crops (seed 1).
"""

from mudpt import DCP, DPT, CoCoOp, CoOp, Trainer, ZeroShot, emoji, score, seed_all
from mudpt.methods import TCP, ATPrompt

clip = emoji.clip(device="cpu")
held = emoji.task("animals", n_val=12).base  # 480 validation images
task = emoji.task("animals", n_val=12).few_shot(16, seed=1).base


def accuracy(m):
    return round(score(m, held.val, held.names).accuracy, 1)


def start(method, seed, **args):
    seed_all(seed)
    return accuracy(method(clip, **args))


def trained(method, augment, **args):
    seed_all(1)
    m = method(clip, **args)
    Trainer(m, task, epochs=5, bs=4, seed=1, augment=augment).fit()
    return accuracy(m)


if __name__ == "__main__":
    print("zero-shot", accuracy(ZeroShot(clip)))
    for n in 2, 4, 8, 16:
        print(f"CoOp before training, {n} random vectors", [start(CoOp, s, n_ctx=n) for s in (1, 2, 3, 4)])
    for method in DCP, DPT, CoCoOp, ATPrompt, TCP:
        print(f"{method.__name__} before training", [start(method, s) for s in (1, 2, 3, 4)])
    for augment in True, False:
        words = trained(CoOp, augment, ctx_init="a photo of a")
        print(f"CoOp from words, 5 epochs, random crops {'on' if augment else 'off'}", words)
