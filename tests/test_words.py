"""Nearest words and patches: found where they are, with a yardstick that says how far that is"""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from small import NAMES, images, small

from mudpt import emoji
from mudpt.core import BadInput, NoSlots, seed_all
from mudpt.methods import DCP, DPT, VPT, CoCoOp, CoOp, MaPLe, ZeroShot
from mudpt.near import nearest_rows, reach, typical, yardstick
from mudpt.train import Trainer
from mudpt.vocabulary import Vocabulary
from mudpt.words import WordTrack, nearest, nearest_patches, text_prompts


@pytest.fixture(scope="module")
def clip():
    return emoji.clip(device="cpu")


@pytest.mark.parametrize("by,theirs", [("cosine", "cosine"), ("euclid", "euclidean")])
def test_nearest_rows_against_scipy(by, theirs):
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(5, 7, generator=g), torch.randn(90, 7, generator=g)
    d = cdist(a.double(), b.double(), theirs)
    for chunk in (16, 4096):
        at, far = nearest_rows(a, b, 4, by, chunk)
        assert (at.numpy() == d.argsort(1)[:, :4]).all()
        np.testing.assert_allclose(far, np.sort(d, 1)[:, :4], atol=1e-9)
    own = cdist(b.double(), b.double(), theirs) + np.diag([np.inf] * 90)
    np.testing.assert_allclose(typical(b, by), np.sort(own.min(1)), atol=1e-9)


def test_typical_leaves_out_rows_of_the_same_owner():
    x = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
    assert torch.allclose(typical(x, "euclid", apart=[0, 0, 1, 1]), torch.tensor([4.9, 4.9, 5.0, 5.0], dtype=torch.double))


def test_yardstick():
    usual = torch.arange(1.0, 11)
    assert reach(usual) == pytest.approx(9.1)
    assert yardstick(9.1, usual) == (pytest.approx(1), 0.9) and yardstick(0, usual) == (0, 0)


@pytest.mark.parametrize("kind", ["vit", "custom blocks", "wide text, unequal depth"])
def test_words_are_walked_as_the_tower_walks_them(kind):
    c = small(kind)
    vocab = Vocabulary(c, ["cat", "dog", "photo"])
    got = []
    own = c.text.blocks[2].norm
    c.text.blocks[2].norm = lambda x: got.append(x) or own(x)
    try:
        from mudpt.text import FullText

        full = FullText(c.text.net, c.tokenizer)
        full.blocks = c.text.blocks
        with torch.no_grad():
            full.encode(full.classes(vocab.words, 0, "{} in the snow"), {})
    finally:
        del c.text.blocks[2].norm
    torch.testing.assert_close(vocab.at(2), got[0][0, :, full.lead], atol=1e-4, rtol=1e-4)


def test_towers_that_are_not_causal_say_what_they_are_compared_with():
    c = small("siglip")
    vocab = Vocabulary(c, ["cat", "dog"])
    assert "not causal" in vocab.how(1) and torch.equal(vocab.at(1), vocab.at(0))


def test_emoji_words_are_the_trained_ones(clip):
    vocab = Vocabulary(clip)
    assert "photo" in vocab.words and len(vocab) < 1000
    assert len(Vocabulary(small())) > 20_000
    assert all(w.isalpha() for w in vocab.words)


def test_a_word_is_found_at_distance_0_at_every_layer(clip):
    vocab = Vocabulary(clip)
    i = vocab.words.index("wolf")
    for layer in range(clip.text.layers):
        w = nearest({layer: vocab.at(layer)[[i]]}, clip, k=2, by="euclid", words=vocab).rows[0]
        assert w["words"][0] == "wolf" and w["ratio"] == 0 and w["beyond"] == 0


def test_every_kind_of_prompt(clip):
    coop = CoOp(clip, n_ctx=3, csc=True)
    coop.bind(NAMES)
    assert list(nearest(coop, k=1).frame()[["cls", "slot"]].itertuples(index=False, name=None)) == [(c, s) for c in range(4) for s in range(3)]
    assert set(nearest(MaPLe(clip, depth=3)).frame().layer) == {0, 1, 2}
    dcp = DCP(clip, n_ctx=2)
    assert "layers 1, 2, 3 are made at run time" in nearest(dcp).note
    seen = text_prompts(dcp, emoji.scene("wolf"), NAMES)
    assert set(seen) == {0, 1, 2, 3} and "couple" not in vars(dcp)
    x = clip.test_transform(emoji.scene("wolf").image())[None]
    m = CoCoOp(clip)
    with torch.no_grad():
        want = m.text_from(torch.nn.functional.normalize(clip.encode_image(x), dim=-1))[0][0]
    torch.testing.assert_close(text_prompts(m, emoji.scene("wolf"))[0], want)


def test_dcp_prompts_are_those_of_its_forward_pass(clip):
    m, rows = DCP(clip, n_ctx=2), []
    own = m.couple
    m.couple = lambda i, t, v: rows.append(own(i, t, v)) or rows[-1]
    with torch.no_grad():
        m(clip.test_transform(emoji.scene("ant").image())[None], NAMES)
    del m.couple
    for i, p in text_prompts(m, emoji.scene("ant"), NAMES).items():
        if i:
            torch.testing.assert_close(p, rows[i][0][0])


def test_word_track_leaves_the_run_alone(clip):
    task = emoji.task("animals", classes=4, n_train=4)

    def run(*listen):
        seed_all(0)
        m = CoOp(clip, ctx_init="a photo of a")
        t = [f(m) for f in listen]
        Trainer(m, task, epochs=3, bs=4, lr=0.02).fit(*t)
        return m, t

    (a, (track,)), (b, _) = run(lambda m: WordTrack(m, every=2)), run()
    assert torch.equal(a.ctx, b.ctx) and sorted(track.found) == [0, 2, 3]
    assert [r["words"][0] for r in track.found[0].rows] == ["a", "photo", "of", "a"]
    assert set(track.frame().epoch) == {0, 2, 3} and track.png()[:4] == b"\x89PNG" and track.figure().data[0].type == "heatmap"


@pytest.mark.parametrize("kind", ["vit", "timm", "custom blocks"])
@pytest.mark.parametrize("layer", [0, 1])
def test_patches_are_where_the_tower_has_them(kind, layer):
    "A patch of layer 0 by itself; at layer 1 what block 0 makes of all tokens, prompts among them"
    from mudpt.patches import patches_at

    c = small(kind)
    m = VPT(c, n_ctx=2, depth=2)
    x, got = images(c), []
    own = c.image.blocks[layer].norm
    c.image.blocks[layer].norm = lambda t: got.append(t) or own(t)
    try:
        with torch.no_grad():
            m(x, NAMES)
    finally:
        del c.image.blocks[layer].norm
    n, P = c.image.n_special, np.prod(c.image.grid)
    with torch.no_grad():
        here = patches_at(m, x, layer)
        if not layer:
            here = c.image.ln_pre(here)
    assert here.shape[1] == P
    torch.testing.assert_close(here, got[0][:, n : n + P], atol=1e-5, rtol=1e-5)


def test_nearest_patches_finds_the_patch_it_was_given(clip):
    from mudpt.patches import patches_at

    items = emoji.task("animals", classes=5, n_test=2).test
    m = VPT(clip, n_ctx=2, depth=2)
    x = clip.test_transform(items[6][0].image())[None]
    with torch.no_grad():
        m.ctx[1] = patches_at(m, x, 0)[0, 8 * 2 + 7]
    found = nearest_patches(m, items, slot=1, k=3, bs=4, by="euclid")
    assert tuple(found.frame().loc[0, ["item", "row", "col"]]) == (6, 2, 7) and found.rows[0]["distance"] < 1e-4
    assert found.frame().item.nunique() == 3 and (found.frame().distance.diff().dropna() >= 0).all()
    assert found.png()[:4] == b"\x89PNG" and len(found.figure().data) == 3


BAD = [
    (lambda c: nearest(VPT(c)), "no text prompts"),
    (lambda c: nearest(ZeroShot(c)), "no text prompts"),
    (lambda c: nearest(CoCoOp(c)), "picture="),
    (lambda c: text_prompts(DCP(c), emoji.scene("ant")), "names="),
    (lambda c: nearest(CoOp(c), k=10**6), "ask for 1 to"),
    (lambda c: nearest(torch.randn(2, 5), c), "5 numbers"),
    (lambda c: nearest(torch.full((2, 64), torch.nan), c), "not finite"),
    (lambda c: nearest(torch.randn(2, 64)), "model they belong to"),
    (lambda c: nearest({9: torch.randn(2, 64)}, c), "blocks 0 to 3"),
    (lambda c: nearest(CoOp(c), words=["xylophonist"]), "single token"),
    (lambda c: WordTrack(CoOp(c), every=0), "every"),
    (lambda c: nearest_patches(CoOp(c), [(emoji.scene("ant"), 0)]), "no visual prompts"),
    (lambda c: nearest_patches(VPT(c), [(emoji.scene("ant"), 0)], layer=7), "layer 7"),
    (lambda c: nearest_patches(DPT(c), [(emoji.scene("ant"), 0)], layer=3), "run time"),
    (lambda c: nearest_patches(VPT(c), [(emoji.scene("ant"), 0)], k=2), "k=2"),
]


@pytest.mark.parametrize("call,says", BAD, ids=[s for _, s in BAD])
def test_bad_input_is_a_sentence(clip, call, says):
    with pytest.raises(BadInput, match=says):
        call(clip)


def test_a_tower_without_tokens():
    with pytest.raises((NoSlots, BadInput)):
        nearest_patches(CoOp(small("resnet")), [(emoji.scene("ant"), 0)])
