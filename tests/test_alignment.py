"""Measures of pictures and names against closed forms and other libraries; comparing, tracking and projecting them"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import orthogonal_procrustes
from scipy.spatial import procrustes as scipy_procrustes
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, top_k_accuracy_score
from sklearn.neighbors import NearestNeighbors
from small import NAMES, shake, small

import mudpt.alignment as al
from mudpt import emoji
from mudpt.core import BadInput, Unknown, seed_all
from mudpt.methods import DCP, DPT, IVLP, VPT, CoCoOp, CoOp, MaPLe, MuDPT, ZeroShot
from mudpt.project import project, rotation
from mudpt.shapes import neighbours
from mudpt.spaces import metrics
from mudpt.track import Track
from mudpt.train import Trainer

close = lambda a, b, tol=1e-6: np.testing.assert_allclose(a, b, rtol=0, atol=tol)


def clouds(seed=0, N=60, C=6, E=8):
    r = np.random.default_rng(seed)
    t, y = r.normal(size=(C, E)), r.permutation(np.arange(N) % C)
    return t[y] + 0.7 * r.normal(size=(N, E)) + 0.5, t, y


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def turn(E, seed=1):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(E, E)))[0]


def test_alignment_uniformity_and_gap_by_hand():
    x, t, y = clouds()
    u, v = unit(x), unit(t)
    close(al.alignment(x, t, y), np.mean([np.sum((u[i] - v[y[i]]) ** 2) for i in range(len(x))]))
    for of, w in (("image", u), ("text", v)):
        close(al.uniformity(x, t, y, of=of), np.log(np.exp(-2 * pdist(w, "sqeuclidean")).mean()))
    close(al.gap_vector(x, t, y), sum(u[i] - v[y[i]] for i in range(len(x))) / len(x))


def test_uniformity_does_not_depend_on_the_blocks_it_is_computed_in():
    x, t, y = clouds(N=2100, E=4)
    close(al.uniformity(x, t, y), np.log(np.exp(-2 * pdist(unit(x), "sqeuclidean")).mean()))


def test_gap_of_two_cones_in_closed_form():
    "Points at angle a around one axis and around its opposite: means at cos a and -cos a"
    a = 0.4
    ring = np.array([[np.cos(a), np.sin(a) * np.cos(b), np.sin(a) * np.sin(b)] for b in 2 * np.pi * np.arange(5) / 5])
    image, text, y = np.repeat(ring, 3, 0), ring * [-1, 1, 1], np.repeat(np.arange(5), 3)
    close(al.gap(image, text, y), 2 * np.cos(a))
    close(al.gap_vector(image, text, y), [2 * np.cos(a), 0, 0])
    close(al.alignment(image, text, y), 4 * np.cos(a) ** 2)
    close(al.within(image, text, y), 0)
    close(al.between(image, text, y), np.sin(a) ** 2)


def test_margin_and_spread_by_hand():
    x, t, y = clouds()
    s = unit(x) @ unit(t).T
    close(al.margins(x, t, y), [s[i, y[i]] - np.delete(s[i], y[i]).max() for i in range(len(x))])
    u = unit(x)
    inner = np.concatenate([u[y == c] - u[y == c].mean(0) for c in range(6)])
    close(al.within(x, t, y), (inner**2).sum() / len(x))
    close(al.within(x, t, y) + al.between(x, t, y), ((u - u.mean(0)) ** 2).sum() / len(x))
    close(al.spread_ratio(x, t, y), al.within(x, t, y) / al.between(x, t, y))


def hsic(K, L):
    n = len(K)
    H = np.eye(n) - 1 / n
    return np.trace(K @ H @ L @ H) / (n - 1) ** 2


def test_cka_is_normalised_hsic_of_linear_kernels():
    x, t, y = clouds()
    other = np.random.default_rng(3).normal(size=(len(x), 5))
    for a, b, got in ((x, other, al.cka(x, other)), (x, t[y], al.cka(x, t, y))):
        K, L = a @ a.T, b @ b.T
        close(got, hsic(K, L) / np.sqrt(hsic(K, K) * hsic(L, L)))


def test_cka_of_orthogonal_subspaces_in_closed_form():
    a = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]], float)
    close(al.cka(a, a * [1, 0]), 1 / np.sqrt(2))  # one of two equal directions kept
    close(al.cka(a[:, :1], a[:, 1:]), 0)
    close(al.cka(a, a @ turn(2)), 1)


def test_procrustes_against_scipy():
    x, t, y = clouds()
    noisy = x @ turn(8) + np.random.default_rng(4).normal(size=x.shape)
    close(al.procrustes(x, noisy), scipy_procrustes(x, noisy)[2])
    close(al.procrustes(x, t, y), scipy_procrustes(x, t[y])[2])
    close(rotation(x, noisy), orthogonal_procrustes(x, noisy)[0])


def test_neighbours_against_sklearn():
    x, t, y = clouds(N=200)
    want = NearestNeighbors(n_neighbors=8, metric="cosine").fit(x).kneighbors(return_distance=False)
    assert (neighbours(x, 7) == want[:, :7]).all()
    b = np.random.default_rng(5).normal(size=(200, 5))
    theirs = NearestNeighbors(n_neighbors=7, metric="cosine").fit(b).kneighbors(return_distance=False)
    close(al.mutual_knn(x, b, k=7), np.mean([len(set(p) & set(q)) / 7 for p, q in zip(want[:, :7], theirs)]))
    means = np.stack([unit(x)[y == c].mean(0) for c in range(6)])
    p, q = (
        NearestNeighbors(n_neighbors=2, metric="cosine").fit(v).kneighbors(return_distance=False) for v in (means, t)
    )
    close(al.mutual_knn(x, t, y), np.mean([len(set(a) & set(b)) / 2 for a, b in zip(p, q)]))


def test_rsa_against_scipy():
    x, t, y = clouds(C=9, N=90)
    means = unit(np.stack([unit(x)[y == c].mean(0) for c in range(9)]))
    i = np.triu_indices(9, 1)
    close(al.rsa(x, t, y), spearmanr((means @ means.T)[i], (unit(t) @ unit(t).T)[i]).statistic)


def test_retrieval_against_sklearn():
    x, t, y = clouds()
    s = unit(x) @ unit(t).T
    for k in (1, 2, 5):
        close(al.recall(x, t, y, k=k), top_k_accuracy_score(y, s, k=k))
        top = np.argsort(-s.T, 1)[:, :k]
        close(al.recall(x, t, y, k=k, of="text"), np.mean([(y[top[c]] == c).any() for c in range(6)]))
    close(al.average_precision(x, t, y), np.mean([average_precision_score(y == c, s[:, c]) for c in range(6)]))


def test_average_precision_with_ties_and_collapse():
    x, t, y = np.ones((6, 3)), np.eye(3) + 1e-9, np.arange(6) % 3
    close(al.average_precision(x, t, y), 1 / 3)
    same = np.ones((3, 3))
    assert al.recall(x, same, y) == 0 and al.recall(x, same, y, k=3) == 1


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_a_rotation_of_both_clouds_changes_nothing(seed):
    x, t, y = clouds(seed)
    q = turn(8, seed)
    before, after = al.measure(x, t, y), al.measure(x @ q, t @ q, y)
    close(list(before.values()), list(after.values()), 1e-9)
    for n, v in before.items():
        assert metrics[n].range[0] - 1e-9 <= v <= metrics[n].range[1] + 1e-9, n


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 10))
def test_shapes_ignore_rotation_and_scale_of_one_space(seed, scale):
    x, _, _ = clouds(seed)
    other = scale * x @ turn(8, seed + 1)
    close([al.cka(x, other), al.mutual_knn(x, other), al.procrustes(x, other)], [1, 1, 0])


def test_numpy_torch_and_half_precision_are_the_same_to_the_measures():
    x, t, y = (torch.tensor(v) for v in clouds())
    a, b = al.measure(x, t, y), al.measure(x.numpy(), t.numpy(), y.numpy())
    assert a == b
    close(list(al.measure(x.bfloat16(), t.bfloat16(), y).values())[:5], list(a.values())[:5], 0.05)


BAD = [
    (dict(labels=np.full(60, 6)), "label 6"),
    (dict(labels=np.full(60, -1)), "label -1"),
    (dict(labels=np.zeros(60)), "whole number"),
    (dict(labels=np.zeros(59, int)), "60 pictures and 59 labels"),
    (dict(text=np.ones((1, 8)), labels=np.zeros(60, int)), "single class"),
    (dict(text=np.ones((6, 7))), "8 dimensions and names 7"),
    (dict(image=np.full((60, 8), np.nan)), "not finite"),
    (dict(image=np.ones(60)), "one vector a row"),
]


@pytest.mark.parametrize("change,says", BAD, ids=[s for _, s in BAD])
@pytest.mark.parametrize("name", metrics)
def test_bad_input_is_a_sentence(name, change, says):
    x, t, y = clouds()
    with pytest.raises(BadInput, match=says):
        metrics[name](**dict(image=x, text=t, labels=y) | change)


def test_more_bad_input():
    x, t, y = clouds()
    one = np.zeros(60, int)
    for f in (al.cka, al.procrustes, al.mutual_knn, al.between, al.rsa):
        with pytest.raises(BadInput, match="1 class"):
            f(x, t, one)
    for call in (lambda: al.recall(x, t, y, k=7), lambda: al.mutual_knn(x, x, k=60), lambda: al.recall(x, t, y, k=0)):
        with pytest.raises(BadInput, match="k="):
            call()
    with pytest.raises(BadInput, match="60 and 59 rows"):
        al.cka(x, x[1:])
    with pytest.raises(BadInput, match="all zeros"):
        al.gap(x * 0, t, y)
    with pytest.raises(BadInput, match="give a list"):
        al.compare({"a": (x, t, y)}, "gap")
    with pytest.raises(Unknown):
        al.likeness({"a": (x, t, y)}, "ckA")


@pytest.mark.parametrize("cls", [ZeroShot, CoOp, CoCoOp, VPT, IVLP, MaPLe, MuDPT, DCP, DPT])
def test_every_method_is_embedded_as_it_answers(cls):
    clip = small()
    seed_all(1)
    m = cls(clip)
    m.bind(NAMES)
    shake(m, 0.02).train()
    items = [(emoji.scene(n, key=k), i) for k in range(3) for i, n in enumerate(["cat face", "wolf", "ant", "dove"])]
    state = torch.get_rng_state()
    f = al.embed(m, items, NAMES, bs=5)
    assert m.training and torch.equal(state, torch.get_rng_state()) and not f.image.requires_grad
    m.eval()
    x = torch.stack([clip.test_transform(s.image()) for s, _ in items])
    with torch.no_grad():
        outs = [m(b, NAMES) for b in x.split(5)]
    torch.testing.assert_close(f.image, torch.cat([o.image for o in outs]))
    assert torch.equal(f.said, torch.cat([o.logits.argmax(1) for o in outs]))
    text = [o.text if o.text.ndim == 3 else o.text.expand(len(o.image), -1, -1) for o in outs]
    torch.testing.assert_close(f.text, torch.cat(text).mean(0), atol=1e-5, rtol=1e-5)
    assert ("depend on the picture" in f.note) == (m.order in ("image first", "lockstep"))


def test_embedding_in_small_batches_and_from_kept_features_is_the_same(tmp_path):
    clip = small()
    items = [(emoji.scene("wolf", key=k), k % 4) for k in range(7)]
    for m in (CoCoOp(clip), CoOp(clip)):
        a, b, c = al.embed(m, items, NAMES), al.embed(m, items, NAMES, bs=2), al.embed(m, items, NAMES, store=tmp_path)
        for u, v, w in zip(a, b, c):
            torch.testing.assert_close(u, v, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(u, w, atol=1e-5, rtol=1e-5)


def runs(listen, seed=0):
    task = emoji.task("animals", classes=4, n_train=4, n_test=3)
    seed_all(seed)
    m = CoCoOp(small())
    track = Track(m, task.test, task.names, every=2, keep=True) if listen else None
    Trainer(m, task, epochs=3, bs=4, warmup=0).fit(*([track] if listen else []))
    return m, track


def test_track_measures_and_leaves_the_run_alone():
    (a, track), (b, _) = runs(True), runs(False)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    t = track.frame()
    assert list(t.index) == [0, 2, 3] and {"accuracy", *metrics} == set(t.columns)
    fresh = al.embed(a, track.items, track.names)
    close(t.loc[3, "gap"], al.gap(*fresh))
    close(t.loc[3, "accuracy"], fresh.accuracy)
    assert track.features[3].image.dtype == torch.float16 and track.png()[:4] == b"\x89PNG"
    over = project(track)
    assert over.steps and not over.aligned and [f.name for f in over.figure().frames] == ["0", "2", "3"]


def test_track_goes_on_when_features_are_no_numbers():
    task = emoji.task("animals", classes=4, n_test=2)
    m = CoOp(small())
    track = Track(m, task.test, task.names)
    with torch.no_grad():
        m.ctx.fill_(float("nan"))
    assert np.isnan(track.look(1)["gap"])


def test_compare_marks_the_best_and_takes_plain_arrays():
    x, t, y = clouds()
    good = t[y] + 0.01 * x
    table = al.compare({"loose": (x, t, y), "tight": (good, t, torch.tensor(y))}, ["gap", "margin", "alignment"])
    assert table.best() == {"margin": ["tight"], "alignment": ["tight"]}
    assert (
        list(table.frame().index) == ["loose", "tight"] and f"<b>{al.margin(good, t, y):.3f}</b>" in table._repr_html_()
    )
    assert len(table.figure().data) == 3 and table.png()[:4] == b"\x89PNG"
    like = al.likeness({"a": (x, t, y), "b": (x @ turn(8), t, y), "c": (good, t, y)})
    close(like.frame().loc["a", "b"], 1)
    close(like.frame().loc["c", "a"], al.cka(x, good))
    assert like.figure().data[0].type == "heatmap"


@pytest.mark.parametrize("by", ["pca", "gap"])
def test_projection_of_a_turned_copy_is_the_same_picture(by):
    x, t, y = clouds(E=20)
    q = turn(20)
    p = project({"a": (x, t, y), "b": (x @ q, t @ q, y)}, by=by)
    for u, v in zip(*p.points.values()):
        close(u, v)
    apart = project({"a": (x, t, y), "b": (x @ q, t @ q, y)}, by=by, align=False)
    assert np.abs(apart.points["a"][0] - apart.points["b"][0]).max() > 0.1


def test_projection_keeps_what_it_can():
    "PCA in as many dimensions as the cloud has is a rigid motion; a gap along an axis is seen at full length"
    x, t, y = clouds(E=3)
    p = project({"a": (x, t, y)}, dim=3)
    close(pdist(p.points["a"][0]), pdist(unit(x)))
    close(p.place(x), p.points["a"][0])
    g = project({"a": (x, t, y)}, by="gap")
    a, b = g.gap("a")
    close(b - a, [al.gap(x, t, y), 0])
    assert {"scatter3d"} == {m.type for m in p.figure().data}


def test_projection_frame_is_what_is_drawn():
    x, t, y = clouds()
    p = project({"a": (x, t, y), "b": (x[::2], t, y[::2])}, by="tsne", perplexity=5)
    f = p.frame()
    assert f.groupby(["method", "kind"]).size().to_dict() == {
        ("a", "image"): 60,
        ("a", "name"): 6,
        ("b", "image"): 30,
        ("b", "name"): 6,
    }
    d = p.figure().data[0]
    close(np.stack([d.x, d.y], 1), f.query("method == 'a' and kind == 'image'")[["x", "y"]].to_numpy())
    again = project({"a": (x, t, y), "b": (x[::2], t, y[::2])}, by="tsne", perplexity=5)
    close(again.points["a"][0], p.points["a"][0])
    with pytest.raises(BadInput, match="no formula"):
        p.place(x)


def test_umap_is_handed_all_points_at_once(monkeypatch):
    import sys
    import types

    seen = []

    class UMAP:
        def __init__(self, **kw):
            seen.append(kw)

        def fit_transform(self, x):
            seen.append(x.shape)
            return x[:, :2]

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=UMAP))
    x, t, y = clouds()
    p = project({"a": (x, t, y), "b": (x, t, y)}, by="umap", seed=3, min_dist=0.5)
    assert seen[1] == (132, 8) and seen[0]["random_state"] == 3 and seen[0]["min_dist"] == 0.5
    close(p.points["b"][1], unit(t)[:, :2])


def test_umap_itself_keeps_clouds_apart_and_repeats_itself():
    g = np.random.default_rng(0)
    centres = unit(g.normal(size=(3, 8)))
    y = np.repeat(np.arange(3), 20)
    x = centres[y] + 0.02 * g.normal(size=(60, 8))
    p, again = (project({"a": (x, centres, y)}, by="umap", seed=1, n_neighbors=8) for _ in range(2))
    at, names = p.points["a"]
    close(at, again.points["a"][0])
    middle = np.stack([at[y == c].mean(0) for c in range(3)])
    nearest = np.linalg.norm(at[:, None] - middle, axis=-1).argmin(1)
    assert (nearest == y).all() and names.shape == (3, 2)
