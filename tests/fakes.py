"""A stand-in for a model and for methods, with the same faces and no weights: the loop is tested without CLIP."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save as to_bytes
from torch import nn
from torch.nn import functional as F

from mudpt.core import write_whole
from mudpt.data import Task

NAMES = ["red", "green", "blue", "white"]
COLOURS = dict(red=(220, 30, 30), green=(30, 200, 30), blue=(30, 30, 220), white=(230, 230, 230))


def to_tensor(im):
    return torch.from_numpy(np.asarray(im.resize((4, 4)), dtype=np.float32).transpose(2, 0, 1) / 255)


def clip(device="cpu"):
    return SimpleNamespace(
        name="fake", pretrained="none", digest="f" * 16, device=torch.device(device), precision="fp32", embed_dim=12,
        image_size=4, mean=(0, 0, 0), std=(1, 1, 1), test_transform=to_tensor, autocast=nullcontext,
        encode_image=lambda x: F.adaptive_avg_pool2d(x, 2).flatten(1),
    )  # fmt: skip


def patch(name, i):
    "A noisy square of one colour"
    rng = np.random.default_rng([i, *name.encode()])
    noise = rng.normal(0, 60, (8, 8, 3))
    return Image.fromarray((np.array(COLOURS[name]) + noise).clip(0, 255).astype(np.uint8))


def task(n=6, names=NAMES, name="colours"):
    part = lambda lo, hi: [(patch(c, i), y) for y, c in enumerate(names) for i in range(lo, hi)]
    return Task(name, list(names), part(0, n), part(n, n + 2), part(100, 104))


class Method(nn.Module):
    "A linear classifier on average colours, dressed as a prompt method"

    recipe = dict(lr=0.5, epochs=4, bs=4, warmup=1)
    order, source, tier, batch_dependent, class_specific, epoch = "apart", "none", "A", False, False, 0

    def __init__(self, clip, width=12):
        super().__init__()
        object.__setattr__(self, "clip", clip)
        self.name, self.args = type(self).__name__, dict(width=width)
        self.w = nn.Parameter(torch.randn(8, width) * 0.02)

    @property
    def n_trainable(self):
        return sum(p.numel() for p in self.parameters())

    def bind(self, names):
        self.bound = self.trained_on = list(names)

    def classes(self, names):
        return list(names)

    def groups(self, lr, warmup):
        return [dict(params=list(self.parameters()), lr=lr, warmup=warmup)]

    prompts_image = True  # as if it prompted the image tower

    def text_features(self, classes):
        return None

    def forward(self, x, classes, text=None, image=None):
        f = image if image is not None else self.clip.encode_image(x)
        return SimpleNamespace(logits=f @ self.w[: len(classes)].T, extra={})

    def loss(self, out, y):
        return F.cross_entropy(out.logits, y)

    def save(self, path, **about):
        return write_whole(path, to_bytes({k: p.detach() for k, p in self.named_parameters()}))


class Explodes(Method):
    "Its loss becomes infinite in the third epoch"

    def loss(self, out, y):
        return super().loss(out, y) / (0 if self.epoch == 2 else 1)


class Draws(Method):
    "Its loss draws random numbers"

    def loss(self, out, y):
        return F.cross_entropy(F.dropout(out.logits, 0.3), y)


class Nothing(Method):
    "Zero-shot: nothing to train"

    recipe = {}

    def __init__(self, clip):
        super().__init__(clip)
        self.w.requires_grad_(False)
        self.args = {}

    n_trainable = 0


methods = {c.__name__: c for c in (Nothing, Method, Draws, Explodes)}
