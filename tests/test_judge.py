"""Judging: the numbers agree with their definitions, the route through a method is the right one, and nothing grows."""

import json
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from mudpt.core import BadInput, MudptError
from mudpt.data import Task
from mudpt.judging import Tally, harmonic, judge, judge_on, score

pairs = st.integers(2, 6).flatmap(
    lambda c: st.tuples(
        st.just(c), st.lists(st.tuples(st.integers(0, c - 1), st.integers(0, c - 1)), min_size=1, max_size=60)
    )
)


def count(logits, y, C, bs=7):
    t = Tally([f"n{i}" for i in range(C)])
    for a, b in zip(logits.split(bs), y.split(bs), strict=True):
        t.add(a, b)
    return t.scores()


@settings(max_examples=60, deadline=None)
@given(pairs)
def test_accuracy_and_f1_are_scikit_learns(case):
    C, ys = case
    y, said = (torch.tensor(t) for t in zip(*ys, strict=True))
    s = count(torch.nn.functional.one_hot(said, C).float(), y, C)
    occurs = np.unique(y)
    assert s.accuracy == pytest.approx(100 * accuracy_score(y, said))
    assert s.macro_f1 == pytest.approx(100 * f1_score(y, said, average="macro", labels=occurs, zero_division=0))
    assert (s.confusion.numpy() == confusion_matrix(y, said, labels=range(C))).all()
    assert list(s.per_class) == [f"n{i}" for i in occurs]
    assert sum(k for *_, k in s.mistakes(C * C)) == int((y != said).sum())


def ece(p, right, bins=15):
    edges, total = np.linspace(0, 1, bins + 1), 0.0
    for lo, hi in zip(edges[:-1], edges[1:], strict=True):
        inside = (p > lo) & (p <= hi)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - p[inside].mean())
    return 100 * total


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 20), st.integers(1, 300), st.integers(1, 64))
def test_calibration_is_its_definition_in_batches_of_any_size(seed, scale, n, bs):
    g = torch.Generator().manual_seed(seed)
    logits, y = scale * torch.randn(n, 4, generator=g), torch.randint(0, 4, (n,), generator=g)
    p, said = logits.softmax(1).max(1)
    s = count(logits, y, 4, bs)
    assert s.ece == pytest.approx(ece(p.double().numpy(), (said == y).double().numpy()), abs=1e-3)
    assert int(s.bins[:, 0].sum()) == s.n == n


@given(st.floats(0, 100), st.floats(0, 100))
def test_the_harmonic_mean_lies_between_and_near_the_smaller(a, b):
    h = harmonic(a, b)
    assert min(a, b) - 1e-9 <= h <= (a + b) / 2 + 1e-9 and h <= 2 * min(a, b) + 1e-9
    assert harmonic(a, None) is harmonic(None, b) is None


# ---- a method that reads the answer off the picture -------------------------------------------------------------------


class Reader(torch.nn.Module):
    "Knows the class from the red channel; counts what it is asked for"

    order, class_specific, batch_dependent, stated, name = "apart", False, False, {0: "a prompt"}, "Reader"

    def __init__(self, **kw):
        super().__init__()
        self.clip = SimpleNamespace(
            name="r", pretrained=None, digest="0", precision="fp32", device=torch.device("cpu"), autocast=nullcontext,
            test_transform=lambda im: torch.tensor(im.getpixel((0, 0))).view(3, 1, 1).float(), encode_image=lambda x: x.flatten(1),
        )  # fmt: skip
        self.asked = []
        vars(self).update(kw)

    @property
    def prompts_image(self):
        return self.order in ("text first", "lockstep") or bool(self.stated)

    def classes(self, names):
        return list(names)

    def text_features(self, classes):
        self.asked.append("text")
        return torch.zeros(1, len(classes), 3)

    def forward(self, x, classes, text=None, image=None):
        self.asked.append("x" if image is None else "image")
        assert not self.training and not torch.is_grad_enabled()
        assert (text is None) == (self.order in ("image first", "lockstep"))
        red = (x.flatten(1) if image is None else image)[:, 0].long()
        first = int(classes[0][1:])  # class i is shown by red = i, whichever half it is in
        return SimpleNamespace(
            logits=9 * torch.nn.functional.one_hot((red - first).clamp(0, len(classes) - 1), len(classes)).float()
        )


def shown(y, red=None):
    return Image.new("RGB", (2, 2), (y if red is None else red, 0, 0)), y


def task(C=5, n=6, wrong=()):
    every = [shown(y, C - 1 if (y, i) in wrong else None) for y in range(C) for i in range(n)]
    return Task("reds", [f"n{i}" for i in range(C)], every[:C], test=every)


@pytest.mark.parametrize("order,texts", [("apart", 1), ("text first", 1), ("image first", 0), ("lockstep", 0)])
@pytest.mark.parametrize("bs", [1, 7, 100])
def test_class_features_once_where_the_order_allows(order, texts, bs):
    m = Reader(order=order)
    s = score(m, task().test, task().names, bs=bs)
    assert s.accuracy == s.macro_f1 == 100 and s.n == 30
    assert m.asked.count("text") == texts and m.asked.count("x") == -(-30 // bs)


def test_kept_features_are_used_only_where_the_image_tower_is_untouched(tmp_path):
    for kw, kept in (
        (dict(), 0),
        (dict(stated={}, order="lockstep"), 0),
        (dict(stated={}), 3),
        (dict(stated={}, order="image first"), 3),
    ):
        m = Reader(**kw)
        assert score(m, task().test, task().names, bs=10, store=tmp_path).accuracy == 100
        assert m.asked.count("image") == kept
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1


def test_the_mode_a_method_had_comes_back_even_after_an_error():
    m = Reader().train()
    score(m, task().test, task().names)
    assert m.training
    with pytest.raises(IndexError):
        score(m, task().test, [])
    assert m.training


def test_no_more_is_read_than_the_batches_ahead():
    asked, most = [], []

    class Scene:
        def image(self):
            asked.append(1)
            return Image.new("RGB", (2, 2))

    done = lambda n, of: most.append(len(asked) - n)  # noqa: E731
    score(Reader(), [(Scene(), 0)] * 600, ["n0", "n1"], bs=10, workers=2, tell=done)
    assert max(most) <= 60 and len(asked) == 600


def test_base_new_and_their_mean():
    r = judge(Reader(), task(wrong={(0, 0), (3, 0), (3, 1), (3, 2)}))
    assert (r.base, r.new) == pytest.approx((100 * 17 / 18, 75.0))
    assert pytest.approx(2 * r.base * r.new / (r.base + r.new)) == r.H
    assert json.loads(json.dumps(r.as_dict()))["H"] == r.H
    assert r["base"].names == ["n0", "n1", "n2"] and r.accuracy is None
    assert all(word in r._repr_html_() for word in ("base", "new", "H", "75.0"))


def test_which_question_is_asked():
    t = task()
    assert set(judge(Reader(), t).scores) == {"base", "new"}
    assert set(judge(Reader(trained_on=t.names), t).scores) == {"all"}
    assert set(judge(Reader(trained_on=t.base.names), t).scores) == {"base", "new"}
    assert set(judge(Reader(), t.base).scores) == {"all"}
    assert judge(Reader(), t, halves=False).as_dict()["accuracy"] == 100


@pytest.mark.parametrize("order", ["apart", "lockstep"])
def test_bound_methods_answer_for_their_classes_only(order):
    t = task()
    m = Reader(order=order, class_specific=True, trained_on=t.base.names)
    r = judge(m, t)
    assert r.base == 100 and r.new is r.H is None and r.as_dict()["new"] is None
    assert (
        "new: n/a, Reader is bound to the 3 classes" in r.notes[0] and "n/a" in r._repr_html_() and "new n/a" in repr(r)
    )
    assert judge(Reader(class_specific=True, trained_on=t.names), t).accuracy == 100
    assert judge_on(m, [t]).scores == {"reds": None} and judge_on(m, [t]).mean is None


def test_other_data_sets_and_their_mean():
    r = judge_on(Reader(), {"same": task(), "shifted": task(wrong={(0, i) for i in range(6)})})
    assert r.mean == pytest.approx(90) and list(r.scores) == ["same", "shifted"] and r.as_dict()["shifted"] == 80
    assert judge_on(Reader(), [task()])["reds"].accuracy == 100


def test_batch_mates_are_mentioned():
    r = judge(Reader(batch_dependent=True), task(), bs=8)
    assert r.notes == ["logits depend on batch-mates (batches of 8)"] and r["base"].note == r.notes[0]
    assert judge(Reader(), task()).notes == []


def test_no_number_where_there_is_none():
    with pytest.raises(BadInput, match="no images to judge"):
        score(Reader(), [], ["n0"])
    with pytest.raises(BadInput, match="no tasks"):
        judge_on(Reader(), {})
    t = Tally(["a", "b"])
    t.add(torch.tensor([[1.0, float("inf")], [0, 1]]), torch.tensor([0, 1]))
    with pytest.raises(MudptError, match="1 images have logits that are not finite"):
        t.scores()
