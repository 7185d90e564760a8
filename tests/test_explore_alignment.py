"""The alignment explorer: its state, its worker, its drawing and its widgets without a browser."""

import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from fakes import task
from small import small

from mudpt.core import BadInput, MudptError, Unknown

pytest.importorskip("traitlets")
from mudpt import joint as joint_module  # noqa: E402
from mudpt.align_draw import drawing, figure, place  # noqa: E402
from mudpt.align_state import CHANGED, COLOURINGS, WRONG, AlignState, look  # noqa: E402
from mudpt.joint import Brake, Joint, Stopped, aside, gently  # noqa: E402
from mudpt.methods import CoCoOp, CoOp, ZeroShot  # noqa: E402
from mudpt.spaces import embed  # noqa: E402
from mudpt.track import Track  # noqa: E402
from mudpt.train import Trainer  # noqa: E402

close = lambda a, b, tol=1e-5: np.testing.assert_allclose(a, b, rtol=0, atol=tol)


def space(shift, C=4, each=12, E=8, seed=1):
    t, y = np.eye(E)[:C], np.repeat(np.arange(C), each)
    return t[y] + 0.35 * np.random.default_rng(seed).normal(size=(len(y), E)) + shift, t, y


STEPS = {e: space(0.5 - e / 8) for e in range(4)}
NAMES = ["ant", "bee", "cat", "dog"]


def state(**kw):
    s = AlignState({"still": space(0.5, seed=2), "trained": STEPS}, **{"names": NAMES, **kw})
    s.join()
    return s


@pytest.fixture(autouse=True)
def nothing_goes_on_afterwards():
    yield
    for t in threading.enumerate():
        if t.name == "mudpt alignment":
            t.join(60)
            assert not t.is_alive()


def test_states_import_no_widget():
    code = (
        "import sys, mudpt.align_state, mudpt.align_draw, mudpt.joint; print(*{m.split('.')[0] for m in sys.modules})"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"ipywidgets", "anywidget", "plotly", "matplotlib", "umap"} & set(loaded)


def test_every_choice_changes_what_it_says():
    s = state()
    f = s.frame()
    assert f.status == "ready" and f.epochs == [0, 1, 2, 3] and f.epoch == 3 and f.shown == ["still", "trained"]
    for how in COLOURINGS:
        s.colour = how
        f = s.frame()
        assert all(len(c.colour) == len(c.shape) == 48 for c in f.clouds)
        assert (len({*f.clouds[0].colour}) > 2) == (how == "class") and bool(f.legend) == (how != "class")
    for by in ("gap", "pca"):
        s.by = by
        s.join()
        assert s.frame().linear and s.frame().axes[0].startswith("along the gap" if by == "gap" else "PC 1")
    s.turned = False
    s.join()
    assert not any("turned" in n for n in s.frame().notes)
    s.shown = ["trained"]
    s.join()
    assert [c.name for c in s.frame().clouds] == ["trained"] and list(s.frame().table.rows) == ["trained"]
    with pytest.raises(Unknown, match="did you mean 'pca'"):
        s.by = "pcaa"
    with pytest.raises(Unknown, match="did you mean 'class'"):
        s.colour = "clas"
    with pytest.raises(BadInput, match="at least one of still, trained"):
        s.shown = []
    with pytest.raises(Unknown, match="unknown method"):
        s.shown = ["other"]
    assert s.by == "pca" and s.shown == ["trained"]


def test_the_slider_computes_nothing_that_is_there(monkeypatch):
    s = state()
    for e in range(4):
        s.epoch = e
        s.join()
    never = lambda *a, **k: pytest.fail("computed again")
    monkeypatch.setattr(Joint, "chart", never)
    monkeypatch.setattr(joint_module, "unit", never)
    seen = []
    for e in (3, 0, 2, 1):
        s.epoch = e
        s.join()
        f = s.frame()
        assert s.status == "ready" and f.clouds[1].epoch == e and f.clouds[0].epoch is None and f.table is not None
        seen.append(f.clouds[1].gap)
    assert seen[0] < seen[2] < seen[3] < seen[1]


def test_the_map_is_the_formula_and_the_gap_is_true():
    s = state(turned=False)
    c = s.frame().clouds[1]
    x, t, y = STEPS[3]
    unit = lambda v: v / np.linalg.norm(v, axis=1, keepdims=True)
    close(c.gap, np.linalg.norm(unit(x).mean(0) - unit(t)[y].mean(0)))
    assert c.seen <= c.gap and s.frame().table.rows["trained"]["gap"] == pytest.approx(c.gap)
    close(c.ends, [c.t[y].mean(0), c.x.mean(0)])
    apart = np.linalg.norm(c.x[:, None] - c.x[None], axis=-1)
    assert (apart <= np.linalg.norm(unit(x)[:, None] - unit(x)[None], axis=-1) + 1e-5).all()
    assert (c.said == (unit(x) @ unit(t).T).argmax(1)).all() and (c.right == (c.said == y)).all()


def test_choosing_pictures():
    s = state()
    assert s.choose("cat") == tuple(range(24, 36))
    f = s.frame()
    assert [c["true"] for c in f.cards] == ["cat"] * 12 and "12 of 48" in f.said_selected
    a = np.stack(list(s.said().values()))
    assert s.choose(CHANGED) == (tuple(np.flatnonzero((a != a[0]).any(0))) or None)
    assert s.choose(WRONG) == (tuple(np.flatnonzero((a != f.labels).any(0))) or None)
    assert s.select(np.array([3, 1, 3])) == (1, 3) and s.frame().selected.tolist() == [1, 3]
    assert s.select([]) is None and s.frame().cards == []
    with pytest.raises(Unknown, match="did you mean 'cat'"):
        s.choose("cta")
    for wrong in ([48], [-1]):
        with pytest.raises(BadInput, match="from 0 to 47"):
            s.select(wrong)


def test_the_gallery_has_pages():
    s = state(each=10)
    s.select(range(25))
    assert (s.frame().pages, len(s.frame().cards)) == (3, 10)
    s.page = 2
    assert [c["id"] for c in s.frame().cards] == list(range(20, 25))
    s.page = 99
    assert s.frame().page == 2
    s.select([1])
    assert s.page == 0 and len(s.frame().cards) == 1


def test_two_classes_never_look_the_same():
    assert len({look(c) for c in range(42)}) == 42
    assert all(look(c)[0] != look(c + 1)[0] and look(c)[1] != look(c + 1)[1] for c in range(200))


BAD = [
    ({"a": space(0.5), "b": space(0.5, each=3)}, "same items"),
    ({"a": space(0.5), "b": (space(0.5)[0], space(0.5)[1], space(0.5)[2][::-1].copy())}, "labels differ"),
    ({"a": space(0.5), "b": space(0.5, E=9)}, "use one CLIP"),
    ({"a": (space(0.5)[0] * np.nan, *space(0.5)[1:])}, "diverged"),
]


@pytest.mark.parametrize("things,says", BAD, ids=[s for _, s in BAD])
def test_spaces_that_cannot_be_compared_are_told_where_a_person_looks(things, says):
    s = AlignState(things)
    s.join()
    assert s.status == "failed" and says in s.trouble[0] and says in s.frame().trouble[0] and not s.frame().clouds
    with pytest.raises(BadInput, match="no pictures yet"):
        s.choose("ant")
    with pytest.raises(BadInput, match="no map yet"):
        figure(s.frame())


def test_what_is_no_space_is_refused_at_once():
    with pytest.raises(BadInput, match="a str is no space"):
        AlignState({"a": "features.npz"})
    with pytest.raises(BadInput, match="nothing to compare"):
        AlignState({})
    with pytest.raises(BadInput, match="has to look at pictures: give task"):
        AlignState({"zero": ZeroShot(small())})
    with pytest.raises(BadInput, match="keep=True"):
        AlignState({"t": Track(ZeroShot(small()), task().test, task().names)})
    with pytest.raises(Unknown):
        AlignState({"a": space(0.5)}, measures=["gpa"])


def test_methods_and_tracks_together():
    t, clip = task(), small()
    m = CoOp(clip, n_ctx=2)
    track = Track(m, t.test, t.names, keep=True, metrics=["gap"])
    Trainer(m, t, epochs=2, bs=4, warmup=0).fit(track)
    s = AlignState({"zero": ZeroShot(clip), "CoOp": track}, measures=["gap"])
    s.join()
    f = s.frame()
    assert s.status == "ready" and f.epochs == [0, 1, 2] and f.names == list(t.names) and s.items == track.items
    close(f.table.rows["CoOp"]["gap"], track.rows[2]["gap"])
    fresh = embed(ZeroShot(clip), t.test, t.names)
    close(s.joint.space("zero", 0).image, fresh.image)
    assert [AlignState([ZeroShot(clip), ZeroShot(clip)], t).methods, AlignState(fresh).methods] == [
        ["ZeroShot", "ZeroShot #2"],
        ["ZeroShot"],
    ]


def test_embedding_in_pieces_is_embedding():
    t, clip = task(), small()
    for m in (CoOp(clip, n_ctx=2), CoCoOp(clip)):
        some = list(t.test) * 300
        told = []
        tell = lambda d, w, told=told: told.append(d)
        a, b = gently(m, some[:600], t.names, tell, bs=50), embed(m, some[:600], t.names, bs=50)
        close(a.image, b.image)
        close(a.text, b.text)
        assert (a.said == b.said).all() and len(told) >= 2 and told == sorted(told)


@pytest.fixture
def endless(monkeypatch):  # set when the work has begun
    "Work in another process goes on until its brake is pulled"
    begun = threading.Event()

    def slow(by, x, seed, tell, brake):
        tell(0.5, "half way")
        begun.set()
        while True:
            brake.check()
            time.sleep(0.005)

    monkeypatch.setattr(joint_module, "aside", slow)
    return begun


def test_long_work_is_stopped_and_taken_up_again(endless, monkeypatch):
    s = state()
    s.by = "tsne"
    assert endless.wait(60) and s.busy
    s.stop()
    assert s.join(60) and s.status == "stopped" and not s.frame().clouds
    monkeypatch.setattr(joint_module, "aside", lambda by, x, *a: np.asarray(x)[:, :2])
    s.go_on()
    s.join()
    assert s.status == "ready" and not s.frame().linear and "mean nothing" in s.frame().notes[0]
    assert s.frame().clouds[0].seen is None
    s.stop()
    assert s.message == "nothing is at work"


def test_another_wish_ends_what_nobody_wants_any_more(endless):
    s = state()
    s.by = "umap"
    assert endless.wait(60)
    s.by = "gap"
    assert s.join(60) and s.status == "ready" and s.frame().axes[0] == "along the gap"


def test_a_map_that_fails_says_so_and_the_others_go_on(monkeypatch):
    def broken(*a):
        raise BadInput("too few points: choose another map")

    s = state()
    monkeypatch.setattr(joint_module, "aside", broken)
    s.by = "tsne"
    s.join()
    assert s.status == "failed" and "another map" in s.frame().trouble[0]
    s.by = "pca"
    s.join()
    assert s.trouble is None and s.frame().clouds


def test_tsne_runs_in_another_process_and_can_be_ended():
    x = space(0.5)[0]
    shares = []
    assert aside("tsne", x, tell=lambda d, w: shares.append(d)).shape == (48, 2) and shares
    b = Brake()
    with pytest.raises(Stopped):
        aside("tsne", x, tell=lambda *_: b.pull(), brake=b)
    with pytest.raises(MudptError, match="(?s)ended with 1.*choose another map"):
        aside("tsne", np.full((9, 3), np.nan))


def test_too_many_epochs_for_tsne_get_a_map_each(monkeypatch):
    monkeypatch.setattr(joint_module, "aside", lambda by, x, *a: np.asarray(x)[:, :2])
    j = Joint({"a": STEPS, "b": space(0.5)}, most=100)
    one, two = j.chart("tsne", epoch=0), j.chart("tsne", epoch=3)
    assert one is not two and list(one.points) == [("a", 0), ("b", None)] and "do not compare" in one.note
    assert j.chart("tsne", epoch=0) is one
    whole = Joint({"a": STEPS, "b": space(0.5)})
    assert whole.chart("tsne", epoch=0) is whole.chart("tsne", epoch=3)


def test_figure_and_png_need_no_kernel():
    s = state()
    s.choose("cat")
    f = s.frame()
    fig = figure(f)
    assert [t.meta for t in fig.data] == [f"{i}/{k}" for i in (0, 1) for k in ("dots", "gap", "names")]
    close(fig.data[3].x, f.clouds[1].x[:, 0])
    assert fig.data[0].selectedpoints == fig.data[3].selectedpoints == tuple(range(24, 36))
    close([fig.data[4].x, fig.data[4].y], f.clouds[1].ends.T)
    assert f"gap {f.clouds[1].gap:.3f}" in fig.layout.annotations[1].text
    assert fig.layout.paper_bgcolor == "rgba(0,0,0,0)" and drawing(f).png()[:4] == b"\x89PNG"
    many = AlignState({"a": space(0.5, each=800)})
    many.join()
    assert figure(many.frame()).data[0].type == "scattergl" and fig.data[0].type == "scatter"
    for n in range(1, 8):
        at, _ = place(n)
        assert len({(x, y) for x, y in at}) == n and all(0 <= x[0] < x[1] <= 1 and 0 <= y[0] < y[1] <= 1 for x, y in at)


def explorer(**kw):
    view = pytest.importorskip("mudpt.align_view")
    s = state(**kw)
    return s, view.AlignmentExplorer(s), view


def test_two_views_on_one_state_stay_in_step():
    s, a, view = explorer()
    b = view.AlignmentExplorer(s)
    a.epoch.value = 1
    a.colour.value = "answer"
    a.methods.children[0].value = False
    s.join()
    assert (b.epoch.value, b.colour.value, s.shown, len(b.fig.data)) == (1, "answer", ["trained"], 3)
    b.picked.value = "bee"
    assert a.fig.data[0].selectedpoints == tuple(range(12, 24)) and len(a.guide.cards) == 12
    a.clear.click()
    assert s.selected is None and b.picked.value == view.NOTHING and not b.guide.cards
    b.methods.children[1].value = False  # the last one stays
    assert s.shown == ["trained"] and b.methods.children[1].value
    b.close()
    a.by.value = "gap"
    s.join()
    assert s.by == "gap" and b.box is None
    a.close()
    a.close()
    assert "closed" in a._repr_mimebundle_()["text/plain"]


def test_a_lasso_of_the_browser_selects_in_all_panels():
    s, a, _ = explorer(items=[(None, 0)] * 0)
    sent = []
    a.fig._send_restyle_msg = lambda data, trace_indexes=None, source_view_id=None: sent.append(data)
    a.guide.heard(a.guide, dict(selected=True), [np.array([5, 2], np.int32).tobytes()])
    a.guide.heard(a.guide, dict(marked=True))
    assert s.selected == (2, 5) and {"selectedpoints": [[2, 5], None, None] * 2} in sent
    a.guide.hovered = 7
    assert s.hovered == 7
    s.hovered = None
    assert a.guide.hovered is None
    a.guide.heard(a.guide, dict(clear=True))
    assert s.selected is None
    a.close()


def test_pages_and_stop_by_button(endless):
    s, a, _ = explorer(each=10)
    a.picked.value = "ant"
    assert "mudpt-off" not in a.after._dom_classes and "mudpt-off" in a.before._dom_classes
    a.after.click()
    assert s.page == 1 and [c["id"] for c in a.guide.cards] == [10, 11]
    a.by.value = "tsne"
    assert endless.wait(60) and 'role="progressbar"' in a.bar.value
    a.stop.click()
    s.join()
    assert s.status == "stopped" and a.stop.description == "Go on" and "stopped" in a.status.value
    a.by.value = "pca"
    s.join()
    assert s.status == "ready" and "mudpt-off" in a.stop._dom_classes
    a.close()


def test_trouble_is_on_the_screen():
    view = pytest.importorskip("mudpt.align_view")
    a = view.AlignmentExplorer(BAD[0][0])
    a.state.join()
    assert "same items" in a.trouble.value and 'role="alert"' in a.trouble.value and "failed" in a.status.value
    assert "image/png" not in a._repr_mimebundle_()
    a.close()


def test_the_script_parses(tmp_path):
    if not shutil.which("node"):
        pytest.skip("no node")
    gallery = pytest.importorskip("mudpt.gallery")
    (tmp_path / "guide.mjs").write_text(gallery.GUIDE, encoding="utf-8")
    subprocess.run(["node", "--check", tmp_path / "guide.mjs"], check=True)
    assert "http" not in gallery.GUIDE
