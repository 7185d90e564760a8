"""The alignment explorer: its state, its worker, its drawing without a browser; then a lasso, a slider and a
hovering mouse in a real JupyterLab."""

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


def test_long_work_is_stopped_and_taken_up_again(monkeypatch):
    begun = threading.Event()

    def slow(by, x, seed, tell, brake):
        begun.set()
        while True:
            brake.check()
            time.sleep(0.005)

    s = state()
    monkeypatch.setattr(joint_module, "aside", slow)
    s.by = "tsne"
    assert begun.wait(60) and s.busy
    s.stop()
    assert s.join(60) and s.status == "stopped" and not s.frame().clouds
    monkeypatch.setattr(joint_module, "aside", lambda by, x, *a: np.asarray(x)[:, :2])
    s.go_on()
    s.join()
    assert s.status == "ready" and not s.frame().linear and "mean nothing" in s.frame().notes[0]
    assert s.frame().clouds[0].seen is None
    s.stop()
    assert s.message == "nothing is at work"


def test_another_wish_ends_what_nobody_wants_any_more(monkeypatch):
    begun = threading.Event()

    def slow(by, x, seed, tell, brake):
        begun.set()
        while True:
            brake.check()
            time.sleep(0.005)

    s = state()
    monkeypatch.setattr(joint_module, "aside", slow)
    s.by = "umap"
    assert begun.wait(60)
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


def test_pages_and_stop_by_button(monkeypatch):
    s, a, _ = explorer(each=10)
    a.picked.value = "ant"
    assert "mudpt-off" not in a.after._dom_classes and "mudpt-off" in a.before._dom_classes
    a.after.click()
    assert s.page == 1 and [c["id"] for c in a.guide.cards] == [10, 11]
    begun = threading.Event()

    def slow(by, x, seed, tell, brake):
        tell(0.5, "half way")
        begun.set()
        while True:
            brake.check()
            time.sleep(0.005)

    monkeypatch.setattr(joint_module, "aside", slow)
    a.by.value = "tsne"
    assert begun.wait(60) and 'role="progressbar"' in a.bar.value
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


OF = ".mudpt-align"
PLOT = f"document.querySelector('{OF} .js-plotly-plot')"
TRACE = f"(m => {PLOT}?.data?.find(t => t.meta === m))"
ALL = (
    f"() => document.querySelector('{OF} .mudpt-chip')?.textContent === 'ready' && {TRACE}('2/dots')?.x?.length === 144"
    f" && {PLOT}.querySelectorAll('.scatterlayer .point').length >= 3*144"
)
PICKED = f"i => Array.from({TRACE}(i + '/dots').selectedpoints ?? [])"
SPOT = f"""([panel, id]) => {{ const g = {PLOT}, t = g._fullData.find(t => t.meta === panel + '/dots'), l = g._fullLayout;
  const x = l['xaxis' + t.xaxis.slice(1)], y = l['yaxis' + t.yaxis.slice(1)], r = g.getBoundingClientRect();
  return [r.left + x._offset + x.d2p(t.x[id]), r.top + y._offset + y.d2p(t.y[id])] }}"""
LONE = f"""() => {{ const d = {TRACE}('0/dots'), n = {TRACE}('0/names'), all = [...d.x].map((x, i) => [x, d.y[i]]), far = all.map(([x, y], i) =>
  Math.min(...[...all.filter((_, k) => k !== i), ...[...n.x].map((v, k) => [v, n.y[k]])].map(([a, b]) => Math.hypot(a - x, b - y)))); return far.indexOf(Math.max(...far)) }}"""
READ = [
    "h3",
    ".mudpt-chip",
    ".widget-label",
    ".mudpt-tools select",
    ".mudpt-pick select",
    ".mudpt-note",
    ".mudpt-caught",
]
READ += [
    ".mudpt-legend span",
    ".mudpt-card b",
    ".mudpt-card em",
    ".mudpt-table td",
    ".mudpt-table th",
    ".widget-readout",
]
READ += [".js-plotly-plot .annotation-text", ".js-plotly-plot .xtitle"]


@pytest.mark.xdist_group("lab")
@pytest.mark.skipif(not CHROMIUM, reason="no chromium")
def test_the_alignment_explorer_in_jupyterlab(lab):
    with notebook(lab, "compare_alignment.ipynb") as page:
        run_all(page)
        page.wait_for_function(ALL)
        it = page.locator(OF).first
        it.scroll_into_view_if_needed()
        page.wait_for_timeout(500)
        picture(page, "alignment 1 ready", OF)
        it.evaluate("e => e.scrollIntoView({ block: 'start' })")
        page.wait_for_timeout(500)

        # a mouse over a dot: its picture, what each method says, and a ring in every panel
        lone = page.evaluate(LONE)  # a dot with nothing near it
        x, y = page.evaluate(SPOT, [0, lone])
        page.mouse.move(x - 30, y - 30)
        page.mouse.move(x, y, steps=4)
        tip = page.locator(".mudpt-tip:not([hidden])")
        tip.locator("img:not([hidden])").wait_for()
        assert tip.locator("img").evaluate("i => i.decode().then(() => i.naturalWidth)") == 112
        assert tip.locator("span").count() == 3 and page.locator(".mudpt-rings > div").count() == 3
        picture(page, "alignment 2 hover")

        # a lasso in the first panel selects the same pictures in all of them, and lays them in the gallery
        page.mouse.move(x - 45, y - 45)
        page.mouse.down()
        for dx, dy in ((45, -45), (45, 45), (-45, 45), (-45, -45)):
            page.mouse.move(x + dx, y + dy, steps=6)
        page.mouse.up()
        page.wait_for_function(f"() => ['0', '1', '2'].every(i => ({PICKED})(i).length > 0)")
        picked = [page.evaluate(PICKED, str(i)) for i in range(3)]
        assert lone in picked[0] and picked[0] == picked[1] == picked[2] and len(picked[0]) < 144
        cards = it.locator(".mudpt-card")
        cards.first.locator("img:not([hidden])").wait_for()
        assert sorted(int(c) for c in cards.evaluate_all("c => c.map(c => c.dataset.id)")) == picked[0][:60]
        assert f"{len(picked[0])} of 144 pictures" in it.locator(".mudpt-caught").inner_text()
        picture(page, "alignment 3 lasso", OF)

        # by keyboard: from card to card, the ring follows; then a class by name
        cards.first.focus()
        page.keyboard.press("ArrowRight")
        assert page.evaluate("() => document.activeElement.dataset.id") == str(picked[0][1])
        assert page.locator(".mudpt-rings > div").count() == 3
        page.keyboard.press("Escape")
        cards.first.wait_for(state="detached")
        it.locator(".mudpt-pick select").select_option("wolf")
        page.wait_for_function(f"() => ({PICKED})('2').length === 12")
        assert cards.count() == 12 and cards.first.locator("b").inner_text() == "wolf"

        # the slider, by keyboard and by mouse: names of CoOp move, its pictures and zero-shot do not
        at = lambda m: page.evaluate(f"m => Array.from({TRACE}(m).x).map(v => v.toFixed(4)).join()", m)
        last = {m: at(m) for m in ("0/names", "1/dots", "1/names", "2/dots")}
        moved = f"([m, was]) => Array.from({TRACE}(m).x).map(v => v.toFixed(4)).join() !== was"
        it.locator(".noUi-handle").focus()
        page.keyboard.press("ArrowLeft")
        page.wait_for_function(moved, arg=["1/names", last["1/names"]])
        assert it.locator(".mudpt-epoch .widget-readout").inner_text() == "5"
        five = at("1/names")
        bar = it.locator(".noUi-base").bounding_box()
        page.mouse.click(bar["x"] + 1, bar["y"] + bar["height"] / 2)
        page.wait_for_function(moved, arg=["1/names", five])
        assert it.locator(".mudpt-epoch .widget-readout").inner_text() == "0"
        page.wait_for_timeout(500)
        assert at("0/names") == last["0/names"] and at("1/dots") == last["1/dots"] and at("2/dots") != last["2/dots"]
        assert "epoch 0" in page.evaluate(f"() => {PLOT}.layout.annotations[1].text")

        # another map, another colouring, one method less; everything is legible in both themes
        it.get_by_label("Map").select_option("along the gap")
        page.wait_for_function(f"() => {PLOT}.layout.xaxis.title.text === 'along the gap'")
        assert legible(page, OF, READ)
        it.get_by_label("Colour").select_option("right or wrong")
        it.locator(".mudpt-legend").get_by_text("wrong", exact=True).wait_for()
        dark(page)
        picture(page, "alignment 4 dark", OF)
        assert legible(page, OF, READ)
        it.get_by_role("checkbox", name="CoOp", exact=True).uncheck()
        page.wait_for_function(f"() => {PLOT}?.data?.length === 6 && {TRACE}('1/dots')?.x?.length === 144")
