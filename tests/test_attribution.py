"""Attribution where the right answer is known, on every method and tower, and what it refuses"""

import itertools
import math
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from small import NAMES, images, shake, small

import mudpt.methods  # noqa: F401  (registers them)
from mudpt.attribution import Attribution, Bars, attribute, attributions, values
from mudpt.core import BadInput, NoSlots, Unknown, seed_all
from mudpt.doors import own_words, slots, with_gates, with_words, word_places
from mudpt.players import Space, tiles
from mudpt.prompts import Out, Prompts, methods

ARGS = dict(CoOp=dict(n_ctx=3), DPT=dict(n_ctx=3, n_image=2, top_k=4, n_extra=2), DCP=dict(n_ctx=2), VPT=dict(n_ctx=2))
ALL = ["ZeroShot", "CoOp", "CoCoOp", "VPT", "IVLP", "MaPLe", "MuDPT", "DCP", "DPT"]


def make(name, kind="vit"):
    seed_all(1)
    cls = methods[name]
    m = cls(small(kind), **ARGS.get(name, {}))
    m.bind(NAMES)
    return shake(m).eval()


class _Linear(Prompts):
    "Logits that are plain weighted sums of pixels: every way must find the weights"

    def __init__(self, clip):
        super().__init__(clip)
        g = torch.Generator().manual_seed(3)
        self.w = torch.randn(len(NAMES), 3, clip.image_size, clip.image_size, generator=g) / 50

    def forward(self, x, names, text=None, image=None):
        return Out(torch.einsum("bdhw,cdhw->bc", x, self.w), image, text)


# A function of pixels that can be done by hand


def test_linear_pixels():
    clip = small()
    m, x = _Linear(clip), images(clip, 1)[0]
    parts = (x * m.w[1]).sum(0).numpy()
    for by in "integrated gradients", "input x gradient":
        r = attribute(m, x, NAMES, NAMES[1], by)
        assert isinstance(r, Attribution)
        np.testing.assert_allclose(r.values, parts, atol=1e-5)
    np.testing.assert_allclose(attribute(m, x, NAMES, NAMES[1], "saliency").values, m.w[1].abs().amax(0), atol=1e-6)
    rival = attribute(m, x, NAMES, NAMES[1], "input x gradient", against=NAMES[3])
    np.testing.assert_allclose(rival.values, (x * (m.w[1] - m.w[3])).sum(0), atol=1e-5)


@pytest.mark.parametrize("by", ["integrated gradients", "input x gradient", "occlusion", "shapley"])
def test_linear_patches(by):
    "Without interactions all agree: a patch is worth the sum of its pixels"
    clip = small()
    m, x = _Linear(clip), images(clip, 1)[0]
    right = torch.zeros(16).index_add_(0, tiles(clip).flatten(), (x * m.w[2]).sum(0).flatten()).view(4, 4)
    r = attribute(m, x, NAMES, NAMES[2], by, on="patches", samples=2)
    np.testing.assert_allclose(r.values, right, atol=1e-4)
    if r.completeness is not None:
        assert r.completeness < 1e-3 and math.isclose(r.change, float(right.sum()), rel_tol=1e-3)


def test_linear_against_runner_up_and_baseline():
    clip = small()
    m, x = _Linear(clip), images(clip, 1)[0]
    logits = m(x[None], NAMES).logits[0]
    best, second = logits.argsort(descending=True)[:2].tolist()
    r = attribute(m, x, NAMES, NAMES[best], against="runner-up")
    assert r.kind.endswith(f"against {NAMES[second]}")
    assert math.isclose(r.change, float(logits[best] - logits[second]), rel_tol=1e-4)
    assert attribute(m, x, NAMES, NAMES[best], baseline="blur").change != r.change


def test_shapley_is_exact_when_every_order_is_tried():
    "All orders of four players, by the definition; sampling comes near and adds up exactly"
    table = torch.randn(16, generator=torch.Generator().manual_seed(0))
    f = lambda g: table[(g.round().long() * torch.tensor([1, 2, 4, 8])).sum(1)]
    right = torch.zeros(4)
    for order in itertools.permutations(range(4)):
        inside = 0
        for p in order:
            right[p] += (table[inside | 1 << p] - table[inside]) / 24
            inside |= 1 << p
    game = Space(torch.ones(1, 4), torch.zeros(1, 4), f, groups=torch.arange(4)[None])
    v, change = values(game, "shapley", samples=1500)
    assert math.isclose(float(v.sum()), change, abs_tol=1e-4)
    torch.testing.assert_close(v[0], right, atol=0.15, rtol=0)


# Completeness on real methods


@pytest.mark.parametrize("name", ALL)
def test_complete_and_of_the_right_size(name):
    m, x = make(name), images(small(), 1)[0]
    shot = dict(names=NAMES, name=NAMES[2])
    ig = attribute(m, x, **shot, steps=64)
    with torch.no_grad():
        change = float((m(x[None], NAMES).logits - m(x[None] * 0, NAMES).logits)[0, 2])
    assert ig.values.shape == (32, 32) and math.isclose(ig.change, change, abs_tol=2e-3)
    assert abs(ig.values.sum() - change) < 1e-3 * max(1, abs(change)), ig.completeness
    shapley = attribute(m, x, **shot, by="shapley", samples=1)
    assert shapley.values.shape == (4, 4) and abs(shapley.values.sum() - change) < 1e-3
    for by, on in ("gradcam", "patches"), ("saliency", "pixels"), ("saliency", "words"):
        r = attribute(m, x, **shot, by=by, on=on)
        assert np.isfinite(r.values).all() and (r.values >= 0).all() and r.completeness is None
    words = attribute(m, x, **shot, on="words", steps=64)
    assert words.labels[-3:] == ["fire", "truck", "."] and words.completeness < 1e-3
    if name != "ZeroShot":
        bars = attribute(m, x, **shot, by="shapley", on="slots", samples=1)
        assert isinstance(bars, Bars) and bars.completeness < 1e-3 and len(bars.labels) == len(set(bars.labels))


@pytest.mark.parametrize("kind", ["timm", "custom blocks", "siglip", "coca text", "wide text, unequal depth"])
def test_other_towers(kind):
    m, x = make("MaPLe", kind), images(small(kind), 1)[0]
    shot = dict(names=NAMES, name=NAMES[1])
    assert attribute(m, x, **shot, by="gradcam").values.shape == small(kind).image.grid
    assert attribute(m, x, **shot, by="input x gradient", on="patches").values.shape == small(kind).image.grid
    with torch.no_grad():
        right = float(m(x[None], NAMES).logits[0, 1])
        who = slots(m, x[None], NAMES)
        torch.testing.assert_close(
            with_gates(m, x[None], NAMES, who, torch.ones(len(who))).logits[0, 1].item(), right, atol=1e-3, rtol=1e-4
        )
    words = attribute(m, x, **shot, by="shapley", on="words", samples=1)
    assert words.labels[-3:-1] == ["golden", "retriever"] and words.completeness < 1e-3


# Doors


@pytest.mark.parametrize("name", ALL[1:])
def test_gates_speak_of_every_vector(name):
    m, x = make(name), images(small(), 1)
    who = slots(m, x, NAMES)
    stated = {(t, b, k) for t, row in m.enters().items() for b, (n, _) in row.items() for k in range(n)}
    assert set(who) == stated
    with torch.no_grad():
        full = m(x, NAMES).logits
        torch.testing.assert_close(
            with_gates(m, x, NAMES, who, torch.ones(len(who))).logits, full, atol=1e-3, rtol=1e-4
        )
        for i in range(len(who)):
            g = torch.ones(len(who))
            g[i] = 0
            moved = (with_gates(m, x, NAMES, who, g).logits - full).abs().max()
            assert moved > 1e-5, f"{who[i]} leaves and nothing moves"


def test_doors_close_behind_an_error():
    m, x = make("MaPLe"), images(small(), 1)
    before = {t: dict(vars(getattr(m.clip, t))) for t in ("text", "image")}
    with pytest.raises(IndexError):
        with_gates(m, x, NAMES, [("text", 0, 0), ("text", 0, 9)], torch.ones(1))
    assert before == {t: dict(vars(getattr(m.clip, t))) for t in ("text", "image")}
    assert not m.clip.text.net.token_embedding._forward_hooks


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("csc", [False, True])
def test_words_of_one_class_move_that_class(position, csc):
    seed_all(2)
    clip = small()
    m = methods["CoOp"](clip, n_ctx=4, position=position, csc=csc)
    m.bind(NAMES)
    x, T = images(clip, 2), clip.text
    cl = own_words(T, m.classes(NAMES))
    with torch.no_grad():
        full = m(x, NAMES).logits
        torch.testing.assert_close(m(x, cl).logits, full, atol=1e-3, rtol=1e-4)
        places = word_places(T, cl, 1)
        e = T.net.token_embedding.weight[cl.ids[1, places]]
        with with_words(T, cl, 1, places, e * 0):
            moved = (m(x, cl).logits - full).abs().amax(0)
    assert moved[1] > 1e-3 and moved[[0, 2, 3]].max() < 1e-3


# Where the patches are


def planted(kind, method):
    "A picture of noise with one strong square, asked for with the square at each of several places"
    clip, m = small(kind), make(method, kind)
    p, (rows, cols) = clip.image_size // clip.image.grid[0], clip.image.grid
    square = 4 * torch.randn(3, p, p, generator=torch.Generator().manual_seed(5))
    for r, c in (0, 0), (1, 2), (rows - 1, 0), (rows - 2, cols - 1):
        x = torch.zeros(3, clip.image_size, clip.image_size)
        x[:, r * p : (r + 1) * p, c * p : (c + 1) * p] = square
        yield m, x, (r, c)


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("kind", ["vit", "timm"])
def test_map_moves_with_the_object(kind, method):
    "One patch differs from its absence, so the whole effect is its own, wherever it is and however many prompts visit"
    for m, x, at in planted(kind, method):
        for by in ["input x gradient"] + ["occlusion"] * (method in ("ZeroShot", "VPT")):
            v = np.abs(attribute(m, x, NAMES, NAMES[0], by, on="patches").values)
            assert np.unravel_index(v.argmax(), v.shape) == at, by
            assert v[at] > 0.9 * v.sum(), by  # the rest is rounding


@pytest.mark.parametrize("method", ["ZeroShot", "VPT", "MuDPT", "DCP", "DPT"])
@pytest.mark.parametrize("kind", ["vit", "timm"])
def test_gradcam_grid(kind, method):
    "The stage is laid out as the grid: what captum sees at a cell is the stream at that patch, at its place"
    for m, x, _ in planted(kind, method):
        V, at_norm = m.clip.image, Kept()
        with at_norm.of(V.blocks[0]):
            logit = m(x[None].requires_grad_(), NAMES).logits[0, 0]
        (slope,) = torch.autograd.grad(logit, at_norm.out)
        cells = slice(V.n_special, V.n_special + math.prod(V.grid))
        tokens, slope = at_norm.out[0, cells], slope[0, cells]
        right = (tokens @ slope.mean(0)).clamp(min=0).detach().view(V.grid)
        v = attribute(m, x, NAMES, NAMES[0], "gradcam", layer=0).values
        np.testing.assert_allclose(v, right, atol=1e-4 * float(right.max() + 1e-3))


class Kept:
    "The output of a block's first norm in the last pass"

    @contextmanager
    def of(self, block):
        norm = block.norm

        def keep(y):
            self.out = norm(y)
            return self.out

        block.norm = keep
        try:
            yield
        finally:
            del block.norm


def test_dcp_is_asked_alone():
    "captum lays copies side by side; a method that looks at its batch must not notice"
    m, x = make("DCP"), images(small(), 1)[0]
    assert m.batch_dependent
    for by in "integrated gradients", "occlusion":
        one, many = (attribute(m, x, NAMES, NAMES[0], by, on="patches", bs=n, steps=8).values for n in (1, 8))
        np.testing.assert_allclose(one, many, atol=1e-4)


def test_nothing_is_left_behind():
    m, x = make("MuDPT"), images(small(), 1)[0]
    m.train()
    state = torch.random.get_rng_state()
    for by, on in ("integrated gradients", "words"), ("shapley", "slots"), ("gradcam", "patches"):
        attribute(m, x, NAMES, NAMES[0], by, on=on, steps=4, samples=1)
    assert m.training and all(p.grad is None for p in m.parameters())
    assert torch.equal(state, torch.random.get_rng_state())
    with torch.no_grad():
        again = attribute(m, x, NAMES, NAMES[0], "saliency")
    assert again.values.max() > 0


def test_half_precision():
    seed_all(1)
    m = shake(methods["MaPLe"](small("vit", "bf16"), n_ctx=2)).eval()
    x = images(m.clip, 1)[0]
    for by, on in (
        ("integrated gradients", "words"),
        ("shapley", "slots"),
        ("gradcam", "patches"),
        ("saliency", "pixels"),
    ):
        r = attribute(m, x, NAMES, NAMES[0], by, on=on, steps=8, samples=1)
        assert np.isfinite(r.values).all() and np.abs(r.values).max() > 0
        assert by != "shapley" or r.completeness < 1e-3


# What a result says


def test_gap_is_said(recwarn):
    f = lambda t: (40 * (t[:, 0] - 0.97)).sigmoid() * 5
    game = Space(torch.ones(1, 1), torch.zeros(1, 1), f)
    v, change = values(game, "integrated gradients", steps=2)
    b = Bars(["a"], v[0].numpy(), towers=["words"]).check(float(v.sum()), change)
    assert b.completeness > 0.05 and "steps=" in b.note and str(recwarn.pop(UserWarning).message) == b.note
    quiet = Bars(["a"], np.ones(1), towers=["words"]).check(1.0, 1.0)
    assert quiet.completeness == 0 and not quiet.note


def test_results_draw():
    m, x = make("IVLP"), images(small(), 1)[0]
    a = attribute(m, x, NAMES, NAMES[0], "occlusion")
    b = attribute(make("MaPLe"), x, NAMES, NAMES[0], "occlusion")
    whole = attribute(m, x, NAMES, NAMES[0], "shapley", samples=1)
    assert "adds up to" in repr(whole) and repr(a).startswith("Attribution('IVLP") and "adds" not in repr(a)
    assert (a - b).completeness is None and "IVLP − MaPLe" in (a - b).method
    bars = attribute(m, x, NAMES, NAMES[0], "input x gradient", on="slots")
    assert bars.png()[:4] == b"\x89PNG" and a.png()[:4] == b"\x89PNG"
    assert len(bars.figure().data) == 2 and list(bars.frame().columns) == ["player", "stands", "value"]
    assert [t.split()[0] for t in bars.labels] == bars.towers


@pytest.mark.parametrize(
    "how,error,says",
    [
        (dict(by="magic"), Unknown, "unknown way to attribute"),
        (dict(on="sounds"), Unknown, "sounds"),
        (dict(by="gradcam", on="words"), BadInput, "ask about patches"),
        (dict(by="shapley", on="pixels"), BadInput, "does not speak about pixels"),
        (dict(name="dog"), Unknown, "unknown class 'dog'"),
        (dict(by="gradcam", layer=4), BadInput, "give 0 to 3"),
        (dict(by="gradcam", layer="top"), BadInput, "layer is 'top'"),
        (dict(against="dog"), Unknown, "unknown class 'dog'"),
        (dict(against="cat"), BadInput, "against itself"),
        (dict(names=["cat"], against="runner-up"), BadInput, "only one class"),
        (dict(baseline="fog"), Unknown, "baseline"),
        (dict(on="slots", baseline="zero"), BadInput, "leave baseline out"),
        (dict(image=torch.zeros(3, 5, 5)), BadInput, "5, 5"),
    ],
)
def test_refusals(how, error, says):
    clip = small()
    with pytest.raises(error, match=says):
        attribute(make("MaPLe"), **dict(dict(image=images(clip, 1)[0], names=NAMES, name="cat"), **how))


def test_opaque_towers():
    m, x = make("CoOp", "resnet"), images(small("resnet"), 1)[0]
    shot = dict(names=NAMES, name="cat")
    for by in "gradcam", "occlusion", "shapley":
        with pytest.raises(NoSlots, match="ask"):
            attribute(m, x, **shot, by=by, on="patches")
    assert attribute(m, x, **shot, steps=4).values.shape == (32, 32)
    assert attribute(m, x, **shot, by="occlusion", on="pixels").values.shape == (32, 32)
    assert attribute(m, x, **shot, by="shapley", on="slots", samples=1).completeness < 1e-3
    with pytest.raises(BadInput, match="no prompt vectors"):
        attribute(make("ZeroShot"), images(small(), 1)[0], **shot, by="shapley", on="slots")


def test_every_way_is_registered():
    ways = ["gradcam", "input x gradient", "integrated gradients", "occlusion", "saliency", "shapley"]
    assert sorted(attributions) == ways
