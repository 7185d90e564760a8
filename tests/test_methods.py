"""One contract, held by every method on every kind of tower"""

import copy

import pytest
import torch
from small import CONFIGS, NAMES, images, shake, small

import mudpt.methods  # noqa: F401  (registers them)
from mudpt.core import BadInput, NoSlots, seed_all
from mudpt.keep import load_prompts
from mudpt.prompts import methods

Y = torch.tensor([0, 1, 2])
VARIANTS = {
    "ZeroShot": [{}, dict(ensemble=True)],
    "CoOp": [dict(n_ctx=3), dict(n_ctx=3, position="middle"), dict(n_ctx=2, csc=True), dict(ctx_init="a photo of a")],
    "CoCoOp": [{}],
    "VPT": [dict(n_ctx=3, depth=1), dict(n_ctx=2)],
    "IVLP": [{}, dict(n_ctx_text=4, n_ctx_image=0), dict(depth_text=1, depth_image=2)],
    "MaPLe": [{}, dict(n_ctx=3, depth=1)],
    "MuDPT": [
        {},
        dict(fuse_input=False),
        dict(net="transformer", both=False),
        dict(net="transformer"),
        dict(both=False),
    ],
    "DCP": [dict(n_ctx=3), dict(n_ctx=3, per="image"), dict(n_ctx=2, shared=False, fuse="max"), dict(as_released=True)],
    "DPT": [
        dict(n_ctx=2, n_image=2, top_k=2),
        dict(n_ctx=2, n_image=2, bottom=1),
        dict(stage="vlp", n_ctx=2, n_image=2),
        dict(stage="vpt", n_image=2),
    ],
    "LinearProbe": [{}, dict(C=1.0)],
    "CrossModalProbe": [{}],
    "TipAdapter": [dict(alpha=2.0, beta=3.0, views=1)],
    "TipAdapterF": [dict(alpha=2.0, beta=3.0, views=1)],
    "LPPlusPlus": [{}],
    "TCP": [{}, dict(n_ctx=2, block=1), dict(template="a photo of a {}, a type of pet.")],
    "HiCroPL": [dict(n_ctx=2), dict(n_ctx=5, depth=3, turn=2)],
    "ATPrompt": [{}, dict(on="MaPLe"), dict(attributes=["habitat"], n_ctx=3)],
    "LoRA": [{}, dict(rank=1, params="qv", towers="image")],
    "MMRL": [{}, dict(n_rep=2, rep_dim=16, depth=1)],
}
ON_FEATURES = "LinearProbe", "CrossModalProbe", "TipAdapter", "TipAdapterF", "LPPlusPlus"  # they enter no tower
CASES = [(name, kw) for name, many in VARIANTS.items() for kw in many]
IDS = [f"{n}({','.join(f'{k}={v}' for k, v in kw.items())})" for n, kw in CASES]
OPEN = [k for k in CONFIGS if k != "resnet"]
ALL_KINDS = ["vit", "siglip"]  # every variant here; the first of each method on the other kinds


def fits(kind, name, kw):
    "Class-free layouts that a tower cannot offer"
    if kind == "siglip" and name == "CoOp" and kw.get("position"):
        return False
    return kind in ALL_KINDS or kw == VARIANTS[name][0]


def make(kind, name, kw):
    clip = small(kind)
    n = dict(kw)
    if kind == "siglip":
        n = {k: v for k, v in n.items() if k != "ctx_init"}
        if name == "DCP":
            n.setdefault("n_ctx", 2)
    seed_all(1)  # CoCoOp's small network has two hidden units here: of some draws both sleep
    m = methods[name](clip, **n)
    m.bind(NAMES)
    return shake(m)


GRID = [(k, n, kw) for k in OPEN for n, kw in CASES if fits(k, n, kw)]
GRID_IDS = [f"{k}-{IDS[CASES.index((n, kw))]}" for k, n, kw in GRID]


def test_every_method_is_here():
    assert set(VARIANTS) == set(methods)


@pytest.mark.parametrize("kind,name,kw", GRID, ids=GRID_IDS)
def test_contract(kind, name, kw, tmp_path):
    m = make(kind, name, kw)
    x = images(m.clip)
    out = m(x, NAMES)
    assert out.logits.shape == (3, 4) and out.logits.isfinite().all()
    assert torch.allclose(out.image.norm(dim=1), torch.ones(3), atol=1e-5)

    if m.n_trainable:  # gradients reach what is trained, and nothing else
        m.loss(out, Y).backward()
        quiet = [k for k, p in m.named_parameters() if p.numel() and (p.grad is None or not p.grad.abs().sum() > 0)]
        assert (
            not quiet
            or name == "DCP"
            and m.as_released
            or name == "MuDPT"
            and quiet == ["t2v_input.weight", "t2v_input.bias"]
            or name == "HiCroPL"  # a single proxy leaves a mapper nothing to choose among
            and quiet == [f"{w}.k.{p}" for w, n in (("t2v", m.turn), ("v2t", m.depth - m.turn)) for p in ("weight", "bias") if n == 1]
        )
        assert all(p.grad is None and not p.requires_grad for p in m.clip.model.parameters())

    with torch.no_grad():  # an image's logits do not depend on its batch-mates, unless the method says so
        alone = torch.cat([m(i[None], NAMES).logits for i in x])
    off = (alone - out.logits).abs().max()
    assert off > 1e-4 if m.batch_dependent else off < 1e-4

    if m.order in ("apart", "text first"):  # what may be computed once, may be
        with torch.no_grad():
            again = m(x, NAMES, text=m.text_features(NAMES))
        assert torch.allclose(again.logits, out.logits, atol=1e-4)

    p = m.predict(x, NAMES)
    assert torch.allclose(p.sum(1), torch.ones(3), atol=1e-5)
    kept = load_prompts(m.save(tmp_path / "m.safetensors"), m.clip)
    assert torch.equal(kept.predict(x, NAMES), p)
    assert kept.args == m.args and repr(kept) == repr(m)

    other = ["okapi", "red panda"]
    if m.class_specific:
        with pytest.raises(BadInput, match="asked about 2"):
            m(x, other)
    else:
        assert m(x, other).logits.shape == (3, 2)

    svg = m._repr_html_()
    assert svg.startswith("<svg") and f"{m.n_trainable:,}" in svg
    twin = copy.deepcopy(m)
    assert twin.clip is m.clip and all(
        torch.equal(a, b) for a, b in zip(twin.parameters(), m.parameters(), strict=True)
    )


@pytest.mark.parametrize("name,kw", CASES, ids=IDS)
def test_resnet(name, kw):
    "Text-only methods run on a ResNet; the others say what to use instead"
    clip, text_only = small("resnet"), name in ("ZeroShot", "CoOp", "CoCoOp", "TCP", *ON_FEATURES) or kw.get("n_ctx_image") == 0 or name == "ATPrompt" and kw.get("on") != "MaPLe"
    if not text_only:
        with pytest.raises(NoSlots, match="use a ViT, or a text-only method: CoOp, CoCoOp"):
            methods[name](clip, **kw)
        return
    m = methods[name](clip, **kw)
    m.bind(NAMES)
    assert m(images(clip), NAMES).logits.isfinite().all()


def learns_in_text(name, kw):
    return name not in ("ZeroShot", "VPT", *ON_FEATURES) and kw.get("stage") != "vpt"


TEXT_CASES = [(c, i) for c, i in zip(CASES, IDS, strict=True) if learns_in_text(*c)]


@pytest.mark.parametrize("name,kw", [c for c, _ in TEXT_CASES], ids=[i for _, i in TEXT_CASES])
def test_chunks_change_nothing(name, kw):
    "Names in chunks, recomputed in the backward pass: same logits, same gradients"
    m = make("vit", name, kw)
    x, grads = images(m.clip), []
    for m.clip.text.chunk in (None, 1, 3):
        m.zero_grad()
        out = m(x, NAMES)
        m.loss(out, Y).backward()
        grads.append([out.logits.detach()] + [p.grad.clone() for p in m.parameters() if p.grad is not None])
    m.clip.text.chunk = None
    for other in grads[1:]:
        for a, b in zip(grads[0], other, strict=True):
            assert torch.allclose(a, b, atol=1e-4 * max(1.0, float(a.abs().max())))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", VARIANTS)
def test_half_precision(name, precision):
    "Frozen weights in half precision, prompts and their gradients in fp32"
    clip = small("vit", precision)
    m = methods[name](clip, **VARIANTS[name][0])
    m.bind(NAMES)
    out = m(images(clip), NAMES)
    assert out.logits.dtype == torch.float32 and out.logits.isfinite().all()
    if m.n_trainable:
        m.loss(out, Y).backward()
        assert all(
            p.dtype == p.grad.dtype == torch.float32 and p.grad.isfinite().all()
            for p in m.parameters()
            if p.grad is not None
        )


@pytest.mark.parametrize(
    "name,kw,word",
    [
        ("CoOp", dict(n_ctx=0), "n_ctx is 0"),
        ("CoOp", dict(n_ctx=76), "n_ctx is 76"),
        ("CoOp", dict(position="back"), "position 'back'"),
        ("CoOp", dict(csc=True, ctx_init="a photo"), "exclude each other"),
        ("VPT", dict(depth=5), "depth is 5, but the tower has 4 blocks"),
        ("VPT", dict(n_ctx=-1), "n_ctx is -1"),
        ("IVLP", dict(depth_text=9), "depth_text is 9"),
        ("MaPLe", dict(depth=0), "depth is 0"),
        ("MuDPT", dict(net="mlp"), "net is 'mlp'"),
        ("DCP", dict(depth=4), "give 1 to 3"),
        ("DCP", dict(fuse="sum"), "fuse is 'sum'"),
        ("DPT", dict(stage="x"), "stage is 'x'"),
        ("DPT", dict(bottom=5), "bottom is 5"),
        ("ZeroShot", dict(template="a photo"), "has no '{}'"),
    ],
)
def test_bad_arguments(name, kw, word):
    with pytest.raises(BadInput) as e:
        m = methods[name](small(), **kw)
        m(images(m.clip), NAMES)
    assert word in str(e.value)


@pytest.mark.parametrize("names,word", [(["cat", "cat"], "occurs 2 times"), (["a_b", "a b"], "occurs 2 times"), (["cat", " "], "empty"),
                                        ("cat", "must be a list"), (["cat", "very " * 80], "shorten the name"), ([], "empty")])  # fmt: skip
def test_bad_names(names, word):
    with pytest.raises(BadInput, match=word):
        methods["CoOp"](small(), n_ctx=4)(images(small()), names)
