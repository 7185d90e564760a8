"""Marks on constructed maps with known answers, the test of sanity, and the table"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from small import NAMES, shake, small

import mudpt.methods  # noqa: F401  (registers them)
from mudpt import emoji
from mudpt.core import BadInput, Unknown, digest, seed_all
from mudpt.heat import Heat
from mudpt.marks import curve, deletion, insertion, inside, pointing, ranking, returned
from mudpt.prompts import Out, Prompts, methods
from mudpt.sanity import Sanity, alike, all_maps, controls, own_copy, ruined, sanity, stages
from mudpt.scoring import MARKS, as_text, mark_all, overall, pooled, score_maps

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))


def square(top=8, left=16, size=8, n=32):
    m = np.zeros((n, n), bool)
    m[top : top + size, left : left + size] = True
    return m


def heat(values, mask=None, name="cat", picture=PICTURE):
    return Heat(np.asarray(values, float), picture, name=name, mask=square() if mask is None else mask, kind="made")


# Inside the outline


@pytest.mark.parametrize("cell,hit", [((1, 2), 1), ((2, 1), 0), ((0, 0), 0), ((3, 3), 0)])
def test_pointing_of_one_patch(cell, hit):
    "A 4 x 4 map on a picture of 32 pixels: only row 1, column 2 lies on the square"
    v = np.zeros((4, 4))
    v[cell] = 1
    assert pointing(heat(v)) == hit
    assert (inside(heat(v)) > 0.5) == bool(hit)


def test_inside_by_hand():
    v = np.zeros((32, 32))
    v[10, 18], v[0, 0], v[31, 31] = 3, 1, -50
    assert inside(heat(v)) == pytest.approx(0.75)
    assert pointing(heat(v)) == 1
    assert inside(heat(-np.ones((4, 4)))) == pytest.approx(64 / 1024)  # nothing positive: chance
    assert pointing(heat(np.zeros((4, 4)))) == pytest.approx(64 / 1024)


def test_ties_count_in_part():
    v = np.zeros((32, 32))
    v[10, 18] = v[11, 18] = v[0, 0] = v[1, 0] = 1
    assert pointing(heat(v)) == 0.5


@pytest.mark.parametrize("tolerance,hit", [(0, 0), (2, 0), (3, 1), (5, 1)])
def test_tolerance_is_in_pixels(tolerance, hit):
    v = np.zeros((32, 32))
    v[10, 13] = 1  # three pixels left of the square
    assert pointing(heat(v), tolerance) == hit


# Curves


class _Bright(Prompts):
    "The logit of the first class is the sum over a square; the others' is 0: the curve can be done by hand"

    where = torch.from_numpy(square())

    def forward(self, x, names, text=None, image=None):
        cl = self.classes(names)
        first = x[:, :, self.where].sum((1, 2)) / 20
        return Out(torch.cat([first[:, None], torch.zeros(len(x), len(cl) - 1)], 1), image, text)


def bright():
    "A picture that is brighter than the mean in the square, and the mean colour elsewhere"
    clip = small()
    grey = np.array([round(255 * m) for m in clip.mean], np.uint8)
    a = np.tile(grey, (32, 32, 1))
    a[square()] = 255
    return _Bright(clip), Image.fromarray(a)


def test_curves_by_hand():
    m, picture = bright()
    x = returned(m.clip, picture)
    assert float(x[:, :, ~m.where].abs().max()) < 0.02
    full = float(x[:, :, m.where].sum() / 20)
    truth = heat(square(), picture=picture)
    # 16 steps of 64 pixels: all 64 pixels of the square leave in the first step
    cut = deletion(m, truth, NAMES, steps=16)
    p = lambda logit: np.exp(logit) / (np.exp(logit) + 3)
    np.testing.assert_allclose(cut.p, [p(full)] + [p(0)] * 16, atol=1e-2)
    assert cut.area == pytest.approx((p(full) + 31 * p(0)) / 32, abs=1e-2)
    late = deletion(m, heat(~square(), picture=picture), NAMES, steps=16)
    np.testing.assert_allclose(late.p, [p(full)] * 16 + [p(0)], atol=1e-2)
    back = insertion(m, truth, NAMES, steps=16)
    np.testing.assert_allclose(back.p[1:], p(full), atol=1e-2)
    assert back.p[0] < back.p[1] and back.area > insertion(m, heat(~square(), picture=picture), NAMES, steps=16).area


def test_equal_values_leave_in_random_order():
    order = ranking(heat(np.ones((4, 4))))
    assert sorted(order) == list(range(1024)) and abs(np.corrcoef(order, np.arange(1024))[0, 1]) < 0.15
    np.testing.assert_array_equal(order, ranking(heat(np.ones((4, 4)))))


def test_curves_of_a_method_that_looks_at_its_batch():
    seed_all(0)
    m = shake(methods["DCP"](small(), n_ctx=2)).eval()
    h = heat(np.arange(16).reshape(4, 4))
    together, alone = (curve(m, h, NAMES, "deletion", steps=4, bs=n).p for n in (8, 1))
    np.testing.assert_allclose(together, alone, atol=1e-5)
    first = m(returned(m.clip, PICTURE), NAMES).logits.softmax(-1)[0, 0].item()
    assert together[0] == pytest.approx(first, abs=1e-4)


def test_curves_draw():
    m, picture = bright()
    c = deletion(m, heat(square(), picture=picture), NAMES, steps=2)
    assert c.png()[:4] == b"\x89PNG" and "area" in c.figure().layout.title.text and "deletion" in repr(c)


# Sanity


def test_alike_is_spearman():
    rng = np.random.default_rng(1)
    a, b = rng.random((5, 5)), rng.random((5, 5))
    ranks = [np.argsort(np.argsort(v.ravel())) for v in (a, b)]
    by_hand = 1 - 6 * np.sum((ranks[0] - ranks[1]) ** 2) / (25 * (25**2 - 1))
    assert alike(heat(a), heat(b)) == pytest.approx(by_hand)
    assert alike(heat(a), heat(np.exp(3 * a))) == pytest.approx(1) and alike(heat(a), heat(-a)) == pytest.approx(-1)
    flat = heat(np.ones((5, 5)))
    assert alike(flat, flat) == 1 and alike(flat, heat(a)) == 0
    with pytest.raises(BadInput, match="cannot be compared"):
        alike(heat(a), heat(np.ones((4, 4))))


@pytest.mark.parametrize("kind", ["vit", "timm", "resnet"])
def test_only_a_copy_is_ruined(kind):
    seed_all(0)
    clip = small(kind)
    m = methods["CoOp" if kind == "resnet" else "MaPLe"](clip, n_ctx=2)
    x = torch.randn(1, 3, clip.image_size, clip.image_size, generator=torch.Generator().manual_seed(0))
    model, prompts = digest(clip.model.state_dict()), digest(m.state_dict())
    with torch.no_grad():
        right = m(x, NAMES).logits
        torch.testing.assert_close(own_copy(m)(x, NAMES).logits, right)
        logits = [n(x, NAMES).logits.clone() for _, n in ruined(m)]
        assert len(logits) == len(stages(m)) >= 2
        for before, after in zip([right, *logits], logits):
            assert (before - after).abs().max() > 1e-4, "a stage that changes nothing"
        torch.testing.assert_close(m(x, NAMES).logits, right)
    assert (model, prompts) == (digest(clip.model.state_dict()), digest(m.state_dict()))


def test_every_weight_of_the_tower_is_in_one_stage():
    m = methods["VPT"](small("timm"), n_ctx=2)
    seen = [id(p) for _, ps in stages(m) for p in ps]
    mine = [id(p) for p in m.clip.image.net.parameters()] + [id(p) for p in m.parameters()]
    assert len(seen) == len(set(seen)) and set(seen) == set(mine)


@pytest.fixture(scope="module")
def zoo():
    clip = emoji.clip(device="cpu")
    names = ["bear", "butterfly", "bird"]
    scenes = [(emoji.scene(n, key=2_000_002), y) for y, n in enumerate(names)]
    return methods["ZeroShot"](clip), scenes, names


@pytest.mark.parametrize("by", list(controls))
def test_controls_fail(zoo, by):
    m, scenes, names = zoo
    s = sanity(m, scenes[0][0], names, names[0], by)
    assert s.fails and s.last == pytest.approx(1) and "FAILS" in repr(s)


@pytest.mark.parametrize("by", ["integrated gradients", "saliency", "similarity"])
def test_maps_that_read_the_model_pass(zoo, by):
    m, scenes, names = zoo
    results = [sanity(m, s, names, names[y], by) for s, y in scenes]
    assert np.mean([r.last for r in results]) < results[0].threshold
    assert results[0].stages == ["block 3", "block 2", "block 1", "block 0", "the rest"]
    assert results[0].png()[:4] == b"\x89PNG" and len(results[0].figure().data[0].y) == 6


def test_verdict_follows_the_threshold():
    a = Sanity("a", ["the rest"], [0.4])
    assert (
        not a.fails and Sanity("a", ["the rest"], [0.6]).fails and Sanity("a", ["the rest"], [0.4], threshold=0.3).fails
    )


# The table


def test_table(zoo, tmp_path):
    m, scenes, names = zoo
    seed_all(0)
    vpt = [methods["VPT"](m.clip, n_ctx=2) for _ in range(2)]
    by, told = ["truth", "saliency", "prompt"], []
    args = (dict(ZeroShot=m, VPT=vpt), scenes[:2], names, by)
    t = score_maps(*args, out=tmp_path, steps=2, tell=lambda label, i, n: told.append((label, i, n)))
    assert list(zip(t["method"], t["map"])) == [("ZeroShot", "truth"), ("ZeroShot", "saliency"), ("VPT", "truth"), ("VPT", "saliency"), ("VPT", "prompt")]  # fmt: skip
    assert told == [("ZeroShot", 1, 2), ("VPT", 2, 2)] and list(t.seeds) == [1, 1, 2, 2, 2] and set(t.images) == {2}
    truth = t[t["map"] == "truth"]
    assert (truth.pointing == 1).all() and (truth.inside == 1).all() and (truth.sanity == "fails").all()
    by_hand = mark_all(m, scenes[:2], names, ["saliency"], steps=2)["saliency"]
    row = t.iloc[1]
    for k in MARKS:
        assert row[k] == pytest.approx(np.mean(by_hand[k])) and row[f"{k}_sd"] == pytest.approx(np.std(by_hand[k]))
    cells = sorted(tmp_path.glob("cells/*.json"))
    assert len(cells) == 3
    before = [c.stat().st_mtime_ns for c in cells]
    again = score_maps(*args, out=tmp_path, steps=2)
    assert again.equals(t) and before == [c.stat().st_mtime_ns for c in cells]
    kept = json.loads(cells[0].read_text())
    cells[0].write_text(json.dumps({k: {m: [0.25] * 2 for m in MARKS} for k in kept}))
    assert not score_maps(*args, out=tmp_path, steps=2).equals(t), "kept cells are read, not made again"
    score_maps(dict(ZeroShot=m), scenes[1:2], names, by[:1], out=tmp_path, steps=2)
    assert len(list(tmp_path.glob("cells/*.json"))) == 4, "other pictures, another cell"
    assert list(as_text(t).columns) == ["method", "map", *MARKS, "sanity"] and len(overall(t)) == 3


def test_spreads_by_hand():
    one = {k: [0.0, 1.0] for k in MARKS}
    two = {k: [1.0, 1.0] for k in MARKS}
    row = pooled([one, two])
    assert (
        row["pointing"] == 0.75
        and row["pointing_seeds"] == 0.25
        and row["pointing_sd"] == pytest.approx(np.std([0, 1, 1, 1]))
    )
    assert row["sanity"] == "fails" and row["images"] == 2 and row["seeds"] == 2


def test_maps_of_a_closed_tower():
    "A ResNet has no patches: the maps that need none are there, the others are left out"
    m = methods["CoOp"](small("resnet"), n_ctx=2)
    got = [
        b
        for b, _ in all_maps(
            m, PICTURE, NAMES, "cat", ["centre", "raw", "relevance", "saliency", "occlusion", "shapley", "gradcam"]
        )
    ]
    assert got == ["centre", "saliency", "occlusion"]
    with pytest.raises(BadInput, match="nothing to test"):
        sanity(m, PICTURE, NAMES, "cat", "gradcam")


@pytest.mark.parametrize(
    "call,error,says",
    [
        (lambda m, s, n: pointing(Heat(np.ones((4, 4)), PICTURE)), BadInput, "does not know where"),
        (lambda m, s, n: pointing(heat(np.ones((4, 4)), np.zeros((32, 32), bool))), BadInput, "mask is empty"),
        (lambda m, s, n: inside(heat(np.ones((4, 4)), np.ones((8, 8), bool))), BadInput, "must be alike"),
        (lambda m, s, n: deletion(m, heat(np.ones((4, 4))), n, name="bear"), BadInput, "another model"),
        (
            lambda m, s, n: deletion(m, next(all_maps(m, s[0][0], n, n[0], ["edges"]))[1], n, steps=0),
            BadInput,
            "steps is 0",
        ),
        (lambda m, s, n: insertion(m, heat(np.ones((4, 4))), ["bear"], name="bear"), BadInput, "one class"),
        (lambda m, s, n: mark_all(m, s, ["bear"]), BadInput, "one class"),
        (lambda m, s, n: mark_all(m, [(s[0][0], 3)], n), BadInput, "out of range"),
        (lambda m, s, n: mark_all(m, [(s[0][0], -1)], n), BadInput, "out of range"),
        (lambda m, s, n: mark_all(m, [s[0][0]], n), BadInput, "not a pair"),
        (lambda m, s, n: mark_all(m, [], n), BadInput, "no pictures"),
        (lambda m, s, n: mark_all(m, [(s[0][0].image(), 0)], n, ["edges"], steps=1), BadInput, "does not know where"),
        (lambda m, s, n: score_maps(dict(z=m), s, n, ["heat"]), Unknown, "unknown map 'heat'"),
        (lambda m, s, n: sanity(m, s[0][0], n, n[0], "prompt"), BadInput, "nothing to test"),
        (lambda m, s, n: sanity(m, s[0][0], n, "dog", "saliency"), Unknown, "dog"),
    ],
)
def test_refusals(zoo, call, error, says):
    with pytest.raises(error, match=says):
        call(*zoo)


def test_maps_that_some_pictures_lack_are_pooled_over_the_others():
    full = dict.fromkeys(MARKS, [0.0, 1.0, 1.0, 0.0])
    part = dict.fromkeys(MARKS, [1.0]) | dict(alike=[None])
    row = pooled([full, part])
    assert row["images"] == 4 and row["inside"] == pytest.approx(3 / 5) and row["inside_seeds"] == pytest.approx(0.25)
    assert row["alike"] == pytest.approx(0.5) and row["sanity"] == "passes"
    assert pooled([part])["sanity"] == "unknown"


def test_the_kept_table_is_what_the_kept_numbers_give():
    kept = Path(__file__).parent.parent / "docs" / "maps"
    rows = pd.DataFrame(json.loads((kept / "results.json").read_text())["rows"])
    text = (kept / "table.md").read_text()
    for line in as_text(overall(rows)).to_numpy().tolist():
        assert "| " + " | ".join(map(str, line)) + " |" in text
