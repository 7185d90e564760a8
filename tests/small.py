"""Small frozen CLIPs with random weights, one for each kind of tower the kit walks"""

import random
from functools import cache

import numpy as np
import open_clip
import torch

from mudpt.core import seed_all
from mudpt.towers import Clip, build, load_clip

TEXT = dict(context_length=77, vocab_size=49408, width=64, heads=1, layers=4)
VISION = dict(image_size=32, layers=4, width=128, patch_size=8)
CONFIGS = {
    "vit": dict(embed_dim=96, vision_cfg=VISION, text_cfg=TEXT, quick_gelu=True),
    "wide text, unequal depth": dict(
        embed_dim=48,
        vision_cfg=dict(image_size=24, layers=3, width=64, patch_size=8),
        text_cfg=dict(TEXT, width=128, heads=2, layers=5),
    ),
    "custom blocks": dict(
        embed_dim=32,
        custom_text=True,
        vision_cfg=dict(VISION, qk_norm=True, scale_attn_inner=True, ls_init_value=0.5, pool_type="avg"),
        text_cfg=dict(TEXT, scale_heads=True, scale_fc=True, pool_type="eos", eos_id=49407),
    ),
    "timm": dict(
        embed_dim=256,
        vision_cfg=dict(timm_model_name="test_vit", timm_pool="token", timm_proj="linear", image_size=160),
        text_cfg=TEXT,
    ),
    "siglip": dict(
        embed_dim=64,
        custom_text=True,
        init_logit_bias=-10,
        vision_cfg=dict(timm_model_name="test_vit", timm_pool="avg", timm_proj="linear", image_size=160),
        text_cfg=dict(TEXT, context_length=24, no_causal_mask=True, proj_bias=True, pool_type="last"),
    ),
    "coca text": dict(
        embed_dim=96,
        custom_text=True,
        vision_cfg=VISION,
        text_cfg=dict(TEXT, context_length=76, embed_cls=True),
    ),
    "resnet": dict(
        embed_dim=32,
        vision_cfg=dict(image_size=32, layers=[1, 1, 1, 1], width=8, patch_size=None),
        text_cfg=TEXT,
    ),
}


@cache
def small(kind="vit", precision="fp32") -> Clip:
    "A frozen CLIP of one kind; weights large enough that mistakes show"
    was = random.getstate(), np.random.get_state(), torch.get_rng_state()  # whoever is first draws what all others do
    try:
        return drawn(kind, precision)
    finally:
        random.setstate(was[0]), np.random.set_state(was[1]), torch.set_rng_state(was[2])


def drawn(kind, precision) -> Clip:
    seed_all(0)
    cfg = CONFIGS[kind]
    if precision != "fp32":
        return Clip(build(cfg), open_clip.SimpleTokenizer(context_length=77), kind, device="cpu", precision=precision)
    clip = load_clip(cfg, device="cpu")
    with torch.no_grad():
        for k, p in clip.model.named_parameters():
            if "positional" in k or "pos_embed" in k or "token_embedding" in k or "class_embedding" in k:
                p.mul_(5)
    return clip


def images(clip, n=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, clip.image_size, clip.image_size, generator=g)


NAMES = ["cat", "golden retriever", "fire truck", "African hunting dog"]


def shake(m, scale=0.1):
    "Move every trained number away from its start, so that zeros and equal copies cannot hide a mistake"
    g = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in m.parameters():
            p.add_(scale * torch.randn(p.shape, generator=g))
    return m
