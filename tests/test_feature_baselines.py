"""Feature baselines against other people's solvers and formulas written again; what they look at, and how often"""

import copy
import math

import pytest
import torch
from PIL import Image
from small import small
from torch.nn import functional as F

import mudpt.methods  # noqa: F401  (registers them)
from mudpt import emoji
from mudpt.comparing import compare
from mudpt.core import BadInput, seed_all
from mudpt.fewshot import Task
from mudpt.keep import load_prompts
from mudpt.methods.lpplus import LPPlusPlus, sizes, start
from mudpt.methods.probes import LADDER, CrossModalProbe, Halves, LinearProbe, View, Whole, ask
from mudpt.methods.tip import ALPHAS, BETAS, TipAdapter, TipAdapterF
from mudpt.methods.zeroshot import ZeroShot
from mudpt.prompts import methods
from mudpt.train import Trainer

ALL = LinearProbe, CrossModalProbe, TipAdapter, TipAdapterF, LPPlusPlus
SHORT = {"CrossModalProbe": 2, "LPPlusPlus": 3, "TipAdapterF": 3}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MUDPT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def clip():
    return emoji.clip("cpu")


@pytest.fixture(scope="module")
def task():
    return emoji.task("animals", classes=5).few_shot(4, seed=1)


def plain(clip, items, unit=True):
    "Features the long way, and labels"
    x = clip.encode_image(torch.stack([clip.test_transform(s.image()) for s, _ in items]))
    return F.normalize(x, dim=-1) if unit else x, torch.tensor([y for _, y in items])


def words(clip, task):
    return F.normalize(ZeroShot(clip, task.template).text_features(task.names)[0].float(), dim=-1)


def fit(cls, clip, task, stop=None, args=None, **how):
    m = cls(clip, **(args or {}))
    if cls.__name__ in SHORT:
        how.setdefault("epochs", SHORT[cls.__name__])
    return m, Trainer(m, task, **how).fit()


# --- linear probe


@pytest.mark.parametrize("C", [0.01, 0.316, 10.0])
def test_a_linear_probe_is_logistic_regression(clip, task, C):
    linear_model = pytest.importorskip("sklearn.linear_model")
    m, _ = fit(LinearProbe, clip, task, args=dict(C=C))
    x, y = (t.numpy() for t in plain(clip, task.train, unit=False))
    theirs = linear_model.LogisticRegression(C=C, tol=1e-9, max_iter=10_000).fit(x.astype("float64"), y)
    W, b = torch.tensor(theirs.coef_).float(), torch.tensor(theirs.intercept_).float()
    assert W.abs().max() > 1e-3
    assert (m.weight - W).abs().max() < 1e-4
    assert ((m.bias - m.bias.mean()) - (b - b.mean())).abs().max() < 5e-3  # nothing holds them, and their common part changes nothing
    test, _ = plain(clip, task.test[:20], unit=False)
    assert torch.allclose(m(None, task.names, image=test).logits.softmax(1), (test @ W.T + b).softmax(1), atol=1e-3)


def test_the_walk_over_strengths_is_the_published_one():
    "Written again as published: seven strengths, then both ends of a bracket that is halved eight times"
    for peak in (-6.3, -1.0, 0.4, 2.7, 5.9, 6.8):
        score = lambda c, peak=peak: -abs(c - peak)
        at = max(LADDER, key=lambda c: (score(c), c))
        lo, hi, tried = at - 1, at + 1, []
        for _ in range(8):
            tried += [lo, hi]
            lo, hi = ((lo + hi) / 2, hi) if score(lo) < score(hi) else (lo, (lo + hi) / 2)
        seen = {}
        while (c := ask(seen)) is not None:
            seen[c] = score(c)
        assert set(seen) == set(LADDER) | set(tried)
        assert len(seen) <= LinearProbe.recipe["epochs"]


def test_strength_is_chosen_on_validation_images(clip, task):
    m, run = fit(LinearProbe, clip, task)
    assert run.epoch == 15 and m.tried.isfinite().all() and run.o["bs"] == len(task.train) and run.o["augment"] is False
    x, y = plain(clip, task.val, unit=False)
    right = 100 * float((m(None, task.names, image=x).logits.argmax(1) == y).float().mean())
    assert right == pytest.approx(float(m.tried[:, 1].max()))
    best = max(range(15), key=lambda i: (float(m.tried[i, 1]), i))  # of equals the later
    again, _ = fit(LinearProbe, clip, task, args=dict(C=10 ** float(m.tried[best, 0])))
    assert torch.allclose(again.predict(torch.stack([clip.test_transform(s.image()) for s, _ in task.test[:9]]), task.names),
                          m.predict(torch.stack([clip.test_transform(s.image()) for s, _ in task.test[:9]]), task.names), atol=0.02)  # fmt: skip


def test_without_validation_images_the_default_is_used(clip, task):
    blind = Task(task.name, task.names, task.train, [], task.test)
    m, run = fit(LinearProbe, clip, blind)
    assert run.epoch == 1 and m.tried is None and m.strength() == 0.316
    same, _ = fit(LinearProbe, clip, blind, args=dict(C=0.316))
    assert torch.equal(m.weight, same.weight)
    tip, _ = fit(TipAdapter, clip, blind)
    assert tip.mix.tolist() == pytest.approx([1.17, 1.0])
    for cls in (LPPlusPlus, CrossModalProbe, TipAdapterF):
        m, run = fit(cls, clip, blind)
        assert m.best is None and run.epoch == SHORT[cls.__name__]


def test_a_batch_size_for_all_does_not_make_another_method(clip, task):
    for cls in (LinearProbe, LPPlusPlus):
        _, run = fit(cls, clip, task, bs=2, epochs=2)
        assert run.o["bs"] == len(task.train) and run.o["epochs"] == 2
    with pytest.raises(BadInput, match="use bs=20, or 'sgd' or 'adamw'"):
        Trainer(CrossModalProbe(clip), task, opt="lbfgs")


# --- cross-modal probe


def test_the_cross_modal_probe_sees_images_and_sentences_and_nothing_else(clip, task):
    m = CrossModalProbe(clip, task.template)
    run = Trainer(m, task, bs=6)
    x, y = plain(clip, task.train)
    t = words(clip, task)
    known = torch.cat([x, t])
    labels = torch.cat([y, torch.arange(len(t))])
    count = torch.zeros(len(known))
    for epoch in range(2):
        run.batches.set_epoch(epoch)
        for f, l in run.batches:
            near = F.normalize(f, dim=-1) @ known.T
            at = near.argmax(1)
            assert near.max(1).values.min() > 0.9999 and (labels[at] == l).all()
            assert [int((at >= len(x)).sum()), int((at < len(x)).sum())] == [3, 3]
            count += torch.bincount(at, minlength=len(known))
    assert len(run.batches) == 100 and count.min() > 0
    assert count[: len(x)].max() - count[: len(x)].min() <= 2 and count[len(x) :].max() - count[len(x) :].min() <= 2
    with pytest.raises(BadInput, match="takes 2 or more"):
        Trainer(CrossModalProbe(clip), task, bs=1)


def test_halves_are_the_same_for_a_seed_and_an_epoch():
    part = torch.arange(7.0)[:, None], torch.arange(7)
    a, b = (Halves(part, part, 4, seed=3, steps=5) for _ in range(2))
    for h in (a, b):
        h.set_epoch(2)
    same = [torch.equal(x, z) for (x, _), (z, _) in zip(a, b, strict=True)]
    b.set_epoch(3)
    other = [torch.equal(x, z) for (x, _), (z, _) in zip(a, b, strict=True)]
    assert all(same) and not all(other)


# --- Tip-Adapter


@pytest.mark.parametrize("cls", [TipAdapter, TipAdapterF])
def test_votes_are_those_of_the_paper(clip, task, cls):
    args = dict(alpha=2.5, beta=4.0, views=3, template=task.template)
    m, _ = fit(cls, clip, task, args=args)
    x, _ = plain(clip, task.test[:6])
    t, C = words(clip, task), len(task.names)
    expected = torch.zeros(6, C)
    for b in range(6):
        for c in range(C):
            votes = sum(math.exp(-4.0 * (1 - float(x[b] @ k.detach()))) for k, y in zip(m.keys, m.labels, strict=True) if y == c)
            expected[b, c] = clip.scale * float(x[b] @ t[c]) + 2.5 * votes
    assert torch.allclose(m(None, task.names, image=x).logits, expected, atol=2e-4)
    assert m.labels.tolist() == [y for _, y in task.train]


def test_keys_are_means_over_crops(clip, task):
    m, _ = fit(TipAdapter, clip, task, args=dict(views=3))
    views = [clip.encode_image(torch.stack([View(clip, v)(s.image(), r) for (s, _), r in zip(task.train, seeds(task), strict=True)])) for v in range(3)]
    assert torch.allclose(m.keys, F.normalize(sum(views) / 3, dim=-1), atol=1e-5)
    assert (views[0] - views[1]).abs().max() > 0.01
    still, _ = fit(TipAdapter, clip, task, augment=False)
    assert torch.allclose(still.keys, plain(clip, task.train)[0], atol=1e-5)


def seeds(task):
    "The generators that a loader hands to a transform"
    import random

    from mudpt.batches import loader

    seed = loader(task.train[:1], None).seed
    return [random.Random(f"{seed}/0/{i}") for i in range(len(task.train))]


def test_a_crop_has_a_name_and_its_features_another(clip, task):
    im = task.train[0][0].image()
    one, two = View(clip, 1), View(clip, 2)
    import random

    assert torch.equal(one(im, random.Random(5)), one(im, random.Random(5)))
    assert not torch.equal(one(im, random.Random(5)), two(im, random.Random(5)))
    assert repr(one) != repr(two)


def test_weights_of_the_votes_are_the_best_on_validation_images(clip, task):
    m, _ = fit(TipAdapter, clip, task, args=dict(views=2, template=task.template))
    x, y = plain(clip, task.val)
    twin = copy.deepcopy(m)

    def right(alpha, beta):
        twin.mix.copy_(torch.tensor([alpha, beta]))
        return int((twin(None, task.names, image=x).logits.argmax(1) == y).sum())

    best = max(right(a, b) for b in BETAS[::10] for a in ALPHAS)
    assert right(*m.mix.tolist()) >= best
    assert (len(BETAS), len(ALPHAS), BETAS[0], ALPHAS[0]) == (200, 20, 0.1, 0.1) and BETAS[-1] < 7 and ALPHAS[-1] < 3


def test_trained_keys_train_at_the_initial_weights_and_choose_after(clip, task):
    m = TipAdapterF(clip, views=2, template=task.template)
    run, mixes = Trainer(m, task, epochs=4), []
    before = m.keys.detach().clone()
    assert m.mix.tolist() == pytest.approx([1.17, 1.0])
    for e in run.events():
        if e.kind == "step":
            mixes.append(m.mix.tolist())
    assert all(x == mixes[0] for x in mixes) and (m.keys - before).abs().max() > 1e-4
    assert run.optimiser.param_groups[0]["eps"] == 1e-4
    again, _ = fit(TipAdapterF, clip, task, args=dict(views=2, template=task.template), epochs=4)
    Trainer(again, task, epochs=4).fit()  # a second training of the same object is not a continuation
    assert torch.equal(again.keys, m.keys) and torch.equal(again.mix, m.mix)


# --- LP++


def test_start_and_step_sizes_in_closed_form():
    seed_all(3)
    x, t = F.normalize(torch.randn(12, 6), dim=-1), F.normalize(torch.randn(3, 6), dim=-1)
    y = torch.tensor([0, 1, 2] * 4)
    w, a = sizes(x, t)
    assert w == pytest.approx(4 * 12 / float(torch.linalg.norm(x.double(), 2)) ** 2, rel=1e-4)
    assert a == pytest.approx(12 / (4 * max(sum(float(x[i] @ t[c]) ** 2 for i in range(12)) for c in range(3))), rel=1e-4)
    W, alpha = start(x, y, t)
    assert torch.allclose(W, torch.stack([x[y == c].sum(0) for c in range(3)]), atol=1e-6)
    assert alpha == pytest.approx(250 * sum(float((x[y == c] @ t[c]).mean()) for c in range(3)) / 3, rel=1e-4)
    _, lone = start(x[:2], y[:2], t)  # a class without images has no say
    assert lone == pytest.approx(250 * (float(x[0] @ t[0]) + float(x[1] @ t[1])) / 2, rel=1e-4)


def test_gradients_of_both_blocks(clip, task):
    m = LPPlusPlus(clip, task.template)
    m.bind(task.names)
    seed_all(5)
    with torch.no_grad():
        m.weight.normal_(), m.alpha.normal_()
    x, y = plain(clip, task.train)
    t = words(clip, task)
    out = m(None, task.names, image=x)
    m.loss(out, y).backward()
    p = (x @ (m.weight + m.alpha[:, None] * t).T).softmax(1).detach()
    off = (p - F.one_hot(y, len(task.names))) / len(y)  # what cross-entropy hands down
    assert torch.allclose(m.weight.grad, off.T @ x, atol=1e-6)
    assert torch.allclose(m.alpha.grad, (off * (x @ t.T)).sum(0), atol=1e-6)


def test_the_blocks_take_turns_as_written_again(clip, task):
    m = LPPlusPlus(clip, task.template)
    run = Trainer(m, Task(task.name, task.names, task.train, [], task.test, template=task.template), epochs=2, augment=False)
    x, y = plain(clip, task.train)
    t = words(clip, task)
    W, alpha = start(x, y, t)
    alpha, v, (step_w, step_a) = torch.full((len(t),), alpha), torch.zeros_like(W), sizes(x, t)
    for i in range(20):
        p = (x @ (W + alpha[:, None] * t).T).softmax(1)
        off = (p - F.one_hot(y, len(t))) / len(y)
        v = 0.9 * v + off.T @ x
        W, now = W - step_w * v, (off * (x @ t.T)).sum(0)
        if i % 10 == 9:
            alpha = alpha - step_a * now
    run.fit()
    assert torch.allclose(m.weight, W, atol=2e-3) and torch.allclose(m.alpha, alpha, atol=2e-3)
    assert run.step == 20


# --- all of them


class Forbidden:
    "A picture that must not be looked at"

    def image(self):
        raise AssertionError("a test image was read")


@pytest.mark.parametrize("cls", ALL)
def test_no_test_image_is_read_in_fitting(clip, task, cls):
    closed = Task(task.name, task.names, task.train, task.val, [(Forbidden(), y) for y in range(5)])
    m, run = fit(cls, clip, closed)
    assert m.trained_on == task.names and run.epoch == run.o["epochs"]


def count(clip, monkeypatch):
    assert clip.embed_dim  # found out once per model, by a blank picture
    seen, through = [], clip.image.encode
    monkeypatch.setattr(clip.image, "encode", lambda x, *a, **k: (seen.append(len(x)), through(x, *a, **k))[1])
    return seen


@pytest.mark.parametrize("cls", ALL)
def test_each_picture_goes_through_the_tower_once(clip, task, cls, monkeypatch):
    seen, crops = count(clip, monkeypatch), dict(TipAdapter=10, TipAdapterF=10, LPPlusPlus=1).get(cls.__name__)
    first, _ = fit(cls, clip, task)
    assert sum(seen) == len(task.val) + len(task.train) * (crops or 1)
    seen.clear()
    again, _ = fit(cls, clip, task)
    assert not seen  # nothing: all features were on disk
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    monkeypatch.setattr(cls, "store", False)
    fit(cls, clip, task)
    assert seen  # nothing kept, nothing read


def test_another_picture_is_not_mistaken_for_a_kept_one(clip, tmp_path, monkeypatch):
    "The cache looks at pixels, not at names"
    items = []
    for i, colour in enumerate(["red", "blue"] * 2):
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{i}.png")
        items.append((tmp_path / f"{i}.png", i % 2))
    t = Task("colours", ["red", "blue"], items, [], items[:1])
    first, _ = fit(LinearProbe, clip, t)
    Image.effect_noise((64, 64), 90).convert("RGB").save(tmp_path / "0.png")
    seen = count(clip, monkeypatch)
    second, _ = fit(LinearProbe, clip, t)
    assert seen and not torch.equal(first.weight, second.weight)


@pytest.mark.parametrize("cls", [LinearProbe, CrossModalProbe, TipAdapterF, LPPlusPlus])
def test_stopped_and_continued_is_the_same_to_the_bit(clip, task, cls):
    whole, _ = fit(cls, clip, task)
    n = {"LinearProbe": 4}.get(cls.__name__, 1)
    half = Trainer(cls(clip), task, **({"epochs": SHORT[cls.__name__]} if cls.__name__ in SHORT else {}))
    for e in half.events():
        if e.kind == "epoch" and half.epoch == n:
            half.stop()
    assert half.epoch == n < half.o["epochs"]
    kept = copy.deepcopy(half.state_dict())
    other = Trainer(cls(clip), task, **({"epochs": SHORT[cls.__name__]} if cls.__name__ in SHORT else {}))
    other.load_state_dict(kept)
    other.fit()
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), other.method.state_dict().values(), strict=True))


@pytest.mark.parametrize("cls", ALL)
def test_a_stopped_run_and_its_events(clip, task, cls):
    m = cls(clip)
    run = Trainer(m, task, **({"epochs": SHORT[cls.__name__]} if cls.__name__ in SHORT else {}))
    kinds = [e.kind for e in run.events()]
    assert kinds[0] == "start" and kinds[-1] == "end" and run.seconds > 0
    assert kinds.count("epoch") == run.o["epochs"] and kinds.count("step") == run.step


@pytest.mark.parametrize("cls", ALL)
def test_files_hold_what_prediction_needs_and_no_more(clip, task, cls, tmp_path):
    m, _ = fit(cls, clip, task)
    again = load_prompts(m.save(tmp_path / "m.safetensors"), clip)
    x = torch.stack([clip.test_transform(s.image()) for s, _ in task.test[:3]])
    assert torch.equal(again.predict(x, task.names), m.predict(x, task.names))
    assert not [k for k in again.state_dict() if k.startswith(("best", "tried"))]


def test_a_comparison_knows_them(clip, tmp_path, monkeypatch):
    seen = count(clip, monkeypatch)
    how = dict(shots=2, seeds=(1,), epochs=2, clip=clip, bar=False, tasks=[emoji.task("animals", classes=6)])
    c = compare(list(ALL), out=tmp_path / "a", **how)
    assert [r["error"] for r in c.rows] == [None] * 5
    assert all(r["new"] is None and r["H"] is None and r["base"] > 20 for r in c.rows)
    rows = {r["method"]: r for r in c.rows}
    assert rows["TipAdapter"]["trainable"] == 0 and rows["TipAdapter"]["seconds"] > 0
    assert rows["LinearProbe"]["recipe"]["bs"] == 6 and rows["LinearProbe"]["recipe"]["opt"] == "lbfgs"
    seen.clear()
    compare(list(ALL), out=tmp_path / "b", **how)
    assert not seen  # test images are kept, too
    few = compare(list(ALL), protocol="few-shot", **how)
    assert all(r["accuracy"] is not None for r in few.rows)


@pytest.mark.parametrize("cls", ALL)
def test_closed_towers_and_unknown_names(cls):
    r = small("resnet")
    m = cls(r)
    x = torch.randn(2, 3, 32, 32)
    with pytest.raises(BadInput, match="has not met its classes"):
        m(x, ["cat", "dog"])
    m.bind(["cat", "dog"])
    assert m(x, ["cat", "dog"]).logits.shape == (2, 2)
    for names in (["dog", "cat"], ["cat", "cow"], ["cat"]):
        with pytest.raises(BadInput, match=f"asked about {len(names)}"):
            m(x, names)
    with pytest.raises(BadInput, match="use predict"):
        m.classifier(["cat", "dog"])


@pytest.mark.parametrize("cls,args,word", [(LinearProbe, dict(C=0), "C is 0"), (LinearProbe, dict(C=-1.0), "above 0"), (TipAdapter, dict(alpha=-1), "alpha is -1"),
                                           (TipAdapterF, dict(beta=-2), "beta is -2"), (TipAdapter, dict(views=0), "views is 0"), (TipAdapter, dict(template="x"), "has no '{}'"),
                                           (CrossModalProbe, dict(template="a photo"), "has no '{}'"), (LPPlusPlus, dict(template=""), "has no '{}'")])  # fmt: skip
def test_bad_arguments(clip, cls, args, word):
    with pytest.raises(BadInput) as e:
        cls(clip, **args)
    assert word in str(e.value)


def test_whole_batches_say_whose_turn_it_is():
    w, turns = Whole(torch.zeros(3, 2), torch.zeros(3), 4), []
    for _ in w:
        turns.append(w.k)
    assert turns == [0, 1, 2, 3] and len(w) == 4


def test_they_are_registered():
    assert {c.__name__ for c in ALL} <= set(methods) and "_OnFeatures" not in methods
