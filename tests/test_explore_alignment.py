"""The alignment explorer: its state, its worker, its drawing and its widgets without a browser."""

import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from fakes import task
from labkit import CHROMIUM, dark, legible, notebook, picture, run_all
from small import small

from mudpt import emoji
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
    a.panels.epoch = 1
    a.colour.value = "answer"
    a.methods.children[0].value = False
    s.join()
    drawn = [p["name"] for p in b.panels.sheet["panels"]]
    assert (b.panels.epoch, b.colour.value, s.shown, drawn) == (1, "answer", ["trained"], ["trained"])
    b.picked.value = "bee"
    assert ids(a.panels.marks) == list(range(12, 24)) and len(a.guide.cards) == 12
    assert b.picked.value == "bee" and a.picked.value == view.NOTHING
    a.clear.click()
    assert s.selected is None and b.picked.value == view.NOTHING and not b.guide.cards and not a.panels.marks
    b.methods.children[1].value = False  # the last one stays
    assert s.shown == ["trained"] and b.methods.children[1].value
    b.close()
    a.by.value = "gap"
    s.join()
    assert s.by == "gap" and b.box is None
    a.close()
    a.close()
    assert "closed" in a._repr_mimebundle_()["text/plain"]


def ids(marks):
    return np.frombuffer(marks, "<i4").tolist()


def test_a_lasso_of_the_browser_selects_in_the_state_and_in_every_view():
    s, a, view = explorer()
    b = view.AlignmentExplorer(s)
    a.panels.set_state(dict(marks=memoryview(np.array([2, 5], "<i4").tobytes())))  # as a message of the browser
    assert s.selected == (2, 5) and ids(b.panels.marks) == [2, 5] and [c["id"] for c in b.guide.cards] == [2, 5]
    a.panels.hovered = 7
    assert s.hovered == b.panels.hovered == 7
    s.hovered = None
    assert a.panels.hovered is None
    with a.panels.hold_trait_notifications():  # a hand was there, and the state has not heard of it yet
        a.panels.epoch = 1
        a.panels.show(s.frame())
        assert a.panels.epoch == 1
    assert s.epoch == b.panels.epoch == 1
    b.panels.showing = -1  # another thread draws just now: what a hand does counts all the same
    b.panels.marks = b""
    assert s.selected is None and not a.panels.marks
    a.close()
    b.close()


def test_the_browser_is_sent_what_a_frame_says():
    s, a, _ = explorer()
    sheet, sent = a.panels.sheet, []
    a.panels.send = lambda m, buffers: sent.append((m, buffers[0]))
    assert sheet["panels"] == [dict(name="still", of=["None"] * 4), dict(name="trained", of=["0", "1", "2", "3"])]
    assert ids(a.panels.labels) == s.frame().labels.tolist() and not a.panels.waits
    for n, e in (("trained", "1"), ("still", "None")):
        a.panels.answer(dict(need=[sheet["stamp"], n, e]))
    s.epoch = 1
    s.join()
    for (m, data), c in zip(sent[::-1], s.frame().clouds):
        places, said = np.frombuffer(data, "<f4", 2 * (48 + 4 + 2)).reshape(-1, 2), np.frombuffer(data, "<i4")[-48:]
        close(places, np.concatenate([c.x, c.t, c.ends]), 0)
        assert (
            said.tolist() == c.said.tolist() and m["about"]["title"] == c.title and f"{c.gap:.3f}" in m["about"]["gap"]
        )
    for wrong in ({}, dict(need=[9, "still", "None"]), dict(need=[0, "still", "7"]), dict(need=[0, "else", "1"])):
        a.panels.answer(wrong)
    assert len(sent) == 2
    a.colour.value = "answer"
    assert a.panels.paint["looks"] == [(0, 0), (1, 4)] and a.panels.sheet["stamp"] == sheet["stamp"]
    a.by.value = "gap"
    s.join()
    assert a.panels.sheet["stamp"] != sheet["stamp"] and a.panels.sheet["axes"][0].startswith("along the gap")
    a.close()


def test_where_each_epoch_has_its_own_map_the_others_are_not_asked_for(monkeypatch):
    monkeypatch.setattr(joint_module, "aside", lambda by, x, *a: np.asarray(x)[:, :2])
    s, a, _ = explorer(epoch=3)
    s.joint.most = 100
    a.by.value = "tsne"
    s.join()
    assert a.panels.sheet["panels"][1]["of"] == ["", "", "", "3"] and not a.panels.sheet["linear"]
    a.panels.epoch = 0
    s.join()
    assert a.panels.sheet["panels"][1]["of"] == ["0", "", "", ""]
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


def test_the_scripts_parse():
    if not shutil.which("node"):
        pytest.skip("no node")
    gallery, js = pytest.importorskip("mudpt.gallery"), pytest.importorskip("mudpt.align_js")
    for script in (gallery.GUIDE, js.ESM):
        subprocess.run(["node", "--check", "--input-type=module", "-"], input=script, text=True, check=True)
        assert "http" not in script


# In JupyterLab. What the browser drew is read from its canvases.
OF = ".mudpt-align"
MAP = f"document.querySelector('{OF} .mudpt-map')"
READY = f"n => document.querySelector('{OF} .mudpt-chip')?.textContent === 'ready' && +{MAP}?.dataset.drawn > 0 && {MAP}.querySelectorAll('.mudpt-stage').length === n && !{MAP}.classList.contains('mudpt-waits')"
STAGE = f"const stage = {MAP}.querySelectorAll('.mudpt-stage')[panel], [base, over] = stage.children, p = {MAP}.spots(panel), d = base.width / stage.clientWidth, box = stage.getBoundingClientRect();"
SPOT = f"([panel, id]) => {{ {STAGE} return [box.left + stage.clientLeft + p[2*id], box.top + stage.clientTop + p[2*id + 1]] }}"
NOW = f"(c => `${{c.backgroundColor}} on ${{c.color}}`)(getComputedStyle({MAP}.querySelector('.mudpt-stage')))"
DRAWN = f"for (let n = 0; n < 150 && {MAP}.dataset.colours !== {NOW}; n++) await new Promise(r => setTimeout(r, 100));"
DRAWN += "await new Promise(r => requestAnimationFrame(() => setTimeout(r)));"  # what was to be drawn is drawn
# Dots with nothing near them: their number, and how far their colour is from that of the paper
LONE = f"""async panel => {{ {DRAWN} {STAGE} const paper = getComputedStyle(stage).backgroundColor.match(/\\d+/g).map(Number), n = p.length / 2, out = [];
  for (let i = 0; i < n; i++) {{ let near = Infinity; for (let k = 0; k < n; k++) if (k !== i) near = Math.min(near, Math.hypot(p[2*k] - p[2*i], p[2*k + 1] - p[2*i + 1]));
    if (near > 10) {{ const c = base.getContext('2d').getImageData(p[2*i] * d, p[2*i + 1] * d, 1, 1).data; if (c[3] !== 255) throw Error('nothing is drawn'); out.push([i, near, Math.max(...paper.map((v, k) => Math.abs(v - c[k])))]) }} }}
  return out.sort((a, b) => b[1] - a[1]) }}"""
RING = f"async ([panel, id]) => {{ {DRAWN} {STAGE} const a = over.getContext('2d').getImageData(0, 0, over.width, over.height).data; let n = 0, x = 0, y = 0; for (let i = 3; i < a.length; i += 4) if (a[i] > 128) {{ n++; x += (i >> 2) % over.width; y += (i >> 2) / over.width | 0 }} return n > 60 && Math.hypot(x / n / d - p[2*id], y / n / d - p[2*id + 1]) < 3 }}"
PLACES = f"panel => Array.from({MAP}.spots(panel), v => Math.round(10 * v)).join()"
READ = "h3|.mudpt-chip|.widget-label|.mudpt-tools select|.mudpt-pick select|.mudpt-note|.mudpt-caught|.mudpt-legend span|.mudpt-card b|.mudpt-card em"
READ = (
    READ + "|.mudpt-table td|.mudpt-table th|.mudpt-time output|.mudpt-pane b|.mudpt-pane figcaption span|.mudpt-axes"
).split("|")


def strong(page, panel):  # dots drawn in full colour, and pale ones, of those that stand alone
    lone = page.evaluate(LONE, panel)
    return {i for i, _, c in lone if c > 60}, {i for i, _, c in lone if c <= 60}


def shown_as(page, selected, panels=3):  # a line, a name or its mark may lie on a few of them
    for k in range(panels):
        full, pale = strong(page, k)
        wrong = (full - selected) | (pale & selected)
        assert len(wrong) <= 0.1 * len(full | pale), (k, wrong)
        assert len(pale & selected) <= 0.4 * len((full | pale) & selected), (k, pale & selected)
    return True


@pytest.mark.xdist_group("lab")
@pytest.mark.skipif(not CHROMIUM, reason="no chromium")
def test_the_alignment_explorer_in_jupyterlab(lab):
    with notebook(lab, "compare_alignment.ipynb") as page:
        run_all(page)
        page.wait_for_function(READY, arg=3)
        it = page.locator(OF).first
        it.scroll_into_view_if_needed()
        assert shown_as(page, set(range(144)))
        picture(page, "alignment 1 ready", OF)
        it.evaluate("e => e.scrollIntoView({ block: 'start' })")
        page.wait_for_timeout(300)

        twelve = emoji.task("animals", classes=12).names
        # a mouse over a dot: its picture, what each method says, and a ring in every panel
        lone = page.evaluate(LONE, 0)[0][0]
        x, y = page.evaluate(SPOT, [0, lone])
        page.mouse.move(x - 30, y - 30)
        page.mouse.move(x, y, steps=4)
        tip = page.locator(".mudpt-tip:not([hidden])")
        assert tip.locator("b").inner_text() in twelve and tip.locator("span").count() == 3
        page.wait_for_function("() => document.querySelector('.mudpt-tip img')?.naturalWidth === 112")
        assert tip.locator("img").is_visible()
        assert all(page.evaluate(RING, [k, lone]) for k in range(3))
        picture(page, "alignment 2 hover")

        # a lasso in the first panel selects the same pictures in all of them, and lays them in the gallery
        page.mouse.move(x - 45, y - 45)
        page.mouse.down()
        for dx, dy in ((45, -45), (45, 45), (-45, 45), (-45, -45)):
            page.mouse.move(x + dx, y + dy, steps=6)
        page.mouse.up()
        assert page.evaluate("() => document.activeElement.className") == "mudpt-stage"  # keys go where the hand was
        cards = it.locator(".mudpt-card")
        cards.first.wait_for()
        ids = cards.evaluate_all("c => c.map(c => +c.dataset.id)")
        assert lone in ids and len(ids) < 60 and shown_as(page, set(ids))
        assert f"{len(ids)} of 144 pictures" in it.locator(".mudpt-caught").inner_text()
        page.wait_for_function("() => [...document.querySelectorAll('.mudpt-card img')].every(i => i.naturalWidth > 0)")
        picture(page, "alignment 3 lasso", OF)

        # by keyboard: from card to card, the ring follows; Escape lets go; a class by name
        cards.first.focus()
        if len(ids) > 1:
            page.keyboard.press("ArrowRight")
        here = page.evaluate("() => +document.activeElement.dataset.id")
        assert here == ids[min(1, len(ids) - 1)] and all(page.evaluate(RING, [k, here]) for k in range(3))
        page.keyboard.press("Escape")
        cards.first.wait_for(state="detached")
        assert shown_as(page, set(range(144)))
        it.get_by_label("Select", exact=True).select_option("wolf")
        page.wait_for_function(
            f"() => {MAP}.dataset.marked === '12' && document.querySelectorAll('.mudpt-card').length === 12"
        )
        assert cards.first.locator("b").inner_text() == "wolf"
        wolves = set(cards.evaluate_all("c => c.map(c => +c.dataset.id)"))
        assert shown_as(page, wolves)

        # in a panel by keyboard: from dot to dot, Enter selects, Escape lets go
        stage = it.locator(".mudpt-stage").nth(1)
        stage.focus()
        for key in ("ArrowRight", "ArrowUp"):
            page.keyboard.press(key)
        assert tip.locator("b").inner_text() in twelve
        page.keyboard.press("Enter")
        page.wait_for_function("() => document.querySelectorAll('.mudpt-card').length === 1")
        one = int(cards.first.get_attribute("data-id"))
        assert page.evaluate(RING, [1, one]) and shown_as(page, {one})
        page.keyboard.press("Escape")
        cards.first.wait_for(state="detached")

        # the slider, by keyboard and by mouse: CoOp's pictures and zero-shot stand still, those of MuDPT move
        last = [page.evaluate(PLACES, k) for k in range(3)]
        at = lambda e: page.wait_for_function(
            f"e => {MAP}.dataset.epoch === e && !{MAP}.classList.contains('mudpt-waits')", arg=e
        )
        slider = it.get_by_role("slider", name="Epoch")
        slider.focus()
        page.keyboard.press("ArrowLeft")
        at("5")
        assert it.locator(".mudpt-time output").inner_text() == "5"
        assert [page.evaluate(PLACES, k) == last[k] for k in range(3)] == [True, True, False]
        bar = slider.bounding_box()
        page.mouse.click(bar["x"] + 2, bar["y"] + bar["height"] / 2)
        at("0")
        assert "epoch 0" in it.locator(".mudpt-pane b").nth(1).inner_text()
        stage.focus()
        page.keyboard.press("PageDown")
        at("1")
        page.wait_for_function("() => document.querySelector('.mudpt-table')?.innerText.includes('zero-shot')")

        # another map, another colouring; everything is legible in both themes
        it.get_by_label("Select", exact=True).select_option("wolf")
        page.wait_for_function(f"() => {MAP}.dataset.marked === '12'")
        it.get_by_label("Map", exact=True).select_option("along the gap")
        page.wait_for_function(f"() => {MAP}.querySelector('.mudpt-axes').textContent.includes('along the gap')")
        cards.first.wait_for()
        assert legible(page, OF, READ)
        it.get_by_label("Colour", exact=True).select_option("right or wrong")
        it.locator(".mudpt-legend").get_by_text("wrong", exact=True).wait_for()
        dark(page)
        assert legible(page, OF, READ) and shown_as(page, wolves)
        picture(page, "alignment 4 dark", OF)

        # a closer look and back; one method less
        it.get_by_role("button", name="zoom").click()
        it.locator(".mudpt-tools .mod-active").get_by_text("zoom").wait_for()
        places = page.evaluate(PLACES, 0)
        b = stage.bounding_box()
        page.mouse.move(b["x"] + 100, b["y"] + 100)
        page.mouse.down()
        page.mouse.move(b["x"] + 200, b["y"] + 200, steps=4)
        page.mouse.up()
        page.wait_for_function(f"was => ({PLACES})(0) !== was", arg=places)
        page.mouse.dblclick(b["x"] + 10, b["y"] + 10)
        page.wait_for_function(f"was => ({PLACES})(0) === was", arg=places)
        it.get_by_role("checkbox", name="CoOp", exact=True).uncheck()
        page.wait_for_function(READY, arg=2)
        assert shown_as(page, wolves, 2)
        page.set_viewport_size(dict(width=900, height=1180))
        page.wait_for_timeout(500)
        fits = f"() => {MAP}.getBoundingClientRect().right <= document.querySelector('{OF}').getBoundingClientRect().right + 1"
        page.wait_for_function(fits)
        picture(page, "alignment 5 narrow", OF)
