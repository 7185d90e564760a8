"""Cutting, sharing and chunking are exact: held against the plain walk over all positions, forward and backward"""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import images, shake, small

from mudpt.methods import DCP, CoCoOp, CoOp, MaPLe, MuDPT
from mudpt.text import FullText

WORDS = "cat dog okapi retriever golden snow leopard fire truck hard-leaved pocket orchid primrose x 2012 A5".split()
NAMES = st.lists(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join), min_size=1, max_size=7, unique=True
)
few = settings(max_examples=25, deadline=None)


def both_ways(names, prompts, **kw):
    "(features, gradients) of the plain walk and of the fast one"
    clip = small()
    plain, found = FullText(clip.text.net, clip.tokenizer), []
    for tower in plain, clip.text:
        layout = {k: kw[k] for k in ("n_ctx", "template", "position") if k in kw}
        f = tower.encode(tower.classes(names, **layout), prompts, paired=kw.get("paired", False))
        w = torch.randn(f.shape, generator=torch.Generator().manual_seed(0))
        found.append((f, torch.autograd.grad((f * w).sum(), list(prompts.values()))))
    return found


def same(a, b, tol=1e-4):
    scale = max(1.0, float(a.detach().abs().max()))
    assert torch.allclose(a, b, atol=tol * scale, rtol=0), float((a - b).abs().max())


def states(depth, n, width, G=None):
    "Prompts {block: [n, d]}, or [G, n, d]"
    shape = (n, width) if G is None else (G, n, width)
    return {i: (torch.randn(*shape) * 0.3).requires_grad_() for i in range(depth)}


@few
@given(
    NAMES, st.integers(1, 6), st.integers(1, 4), st.sampled_from(["{}.", "of a {}.", "{}", "a {} x"]), st.integers(0, 9)
)
def test_sharing_and_cutting(names, n, depth, template, seed):
    torch.manual_seed(seed)
    (a, ga), (b, gb) = both_ways(names, states(depth, n, 64), n_ctx=n, template=template)
    for x, y in zip((a, *ga), (b, *gb), strict=True):
        same(x, y)


@few
@given(NAMES, st.integers(1, 5), st.sampled_from(["middle", "front"]), st.integers(0, 9))
def test_other_positions(names, n, position, seed):
    torch.manual_seed(seed)
    (a, ga), (b, gb) = both_ways(names, states(1, n, 64), n_ctx=n, position=position)
    for x, y in zip((a, *ga), (b, *gb), strict=True):
        same(x, y)


@few
@given(NAMES, st.integers(1, 4), st.integers(1, 5), st.booleans(), st.integers(0, 9))
def test_a_context_per_image_or_class(names, n, G, paired, seed):
    torch.manual_seed(seed)
    G = len(names) if paired else G
    (a, ga), (b, gb) = both_ways(names, states(1, n, 64, G), n_ctx=n, paired=paired)
    for x, y in zip((a, *ga), (b, *gb), strict=True):
        same(x, y)


@few
@given(NAMES, st.integers(1, 4), st.integers(1, 4), st.integers(1, 8), st.integers(0, 9))
def test_chunks(names, n, depth, chunk, seed):
    torch.manual_seed(seed)
    tower, prompts = small().text, states(depth, n, 64)
    cl, found = tower.classes(names, n), []
    for tower.chunk in (None, chunk):
        f = tower.encode(cl, prompts)
        found.append((f, *torch.autograd.grad(f.square().sum(), list(prompts.values()))))
    tower.chunk = None
    for x, y in zip(*found, strict=True):
        same(x, y)


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(["CoOp", "CoCoOp", "MaPLe", "MuDPT", "DCP"]), st.integers(2, 5), st.integers(0, 9))
def test_batch_mates(name, B, seed):
    "Every order that claims it: an image's logits are its own"
    torch.manual_seed(seed)
    make = dict(CoOp=CoOp, CoCoOp=CoCoOp, MaPLe=MaPLe, MuDPT=MuDPT, DCP=lambda c: DCP(c, n_ctx=3, per="image"))[name]
    m, names = shake(make(small())), ["cat", "fire truck", "okapi"]
    x = images(m.clip, B, seed)
    with torch.no_grad():
        together, mixed = m(x, names).logits, m(x.flip(0), names).logits.flip(0)
        alone = torch.cat([m(i[None], names).logits for i in x])
    same(together, alone, 1e-3)
    same(together, mixed, 1e-3)


def test_memory_of_the_backward_pass_does_not_grow_with_the_classes():
    "With chunks, what autograd keeps for a thousand names is little more than for a hundred"

    def kept(C, chunk):
        seen, tower = [0], small().text
        tower.chunk = chunk
        names = [f"thing {i} of many" for i in range(C)]
        cl, prompts = tower.classes(names, 2), states(3, 2, 64)

        def count(t):
            seen[0] += t.numel() * t.element_size()
            return t

        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            f = tower.encode(cl, prompts)
        tower.chunk = None
        return seen[0] - 2 * f.numel() * f.element_size()

    assert kept(400, 25) < 2 * kept(50, 25)  # grows by far less than the eight times more names
    assert kept(400, None) > 5 * kept(50, None)  # and without chunks it does grow: the check can fail
