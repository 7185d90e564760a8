"""The attention explorer: its sheets, state, frame, widget and script without a browser, then in a real JupyterLab."""

import io
import json
import re
import shutil
import subprocess
import sys
import threading
from datetime import datetime

import labkit
import numpy as np
import pytest
from labkit import CHROMIUM, dark, run_all
from PIL import Image
from small import NAMES, images, shake, small

from mudpt import attention, emoji
from mudpt.core import BadInput, seed_all
from mudpt.methods import DCP, DPT, VPT, CoOp, MaPLe, MuDPT, ZeroShot
from mudpt.prompts import Prompts
from mudpt.towers import trace

pytest.importorskip("traitlets")
from mudpt.attention_figure import figure, png  # noqa: E402
from mudpt.attention_state import MOST, AttentionState  # noqa: E402
from mudpt.sheets import KINDS, board, kinds, packed, sheet, unpacked  # noqa: E402

WHEN = datetime(2026, 1, 1)


@pytest.fixture(scope="module")
def clip():
    return emoji.clip("cpu")


@pytest.fixture(scope="module")
def task():
    return emoji.task("animals", classes=5)


@pytest.fixture
def state(clip, task):
    seed_all(0)
    return AttentionState([MaPLe(clip), ZeroShot(clip)], task)


@pytest.fixture
def passes(monkeypatch):
    "Every forward pass of a method and every pass of a picture through a tower, counted"
    seen, was = [], Prompts.forward
    monkeypatch.setattr(Prompts, "forward", lambda m, *a, **k: seen.append(m.name) or was(m, *a, **k))
    from mudpt.image import ViT

    step = ViT.step
    monkeypatch.setattr(ViT, "_step", lambda v, i, s, replaced=False: seen.append(i) or step(v, i, s, replaced))
    return seen


def test_a_state_imports_no_widget():
    code = "import sys, mudpt.attention_state, mudpt.attention_frame; print(*{m.split('.')[0] for m in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"ipywidgets", "anywidget", "plotly", "matplotlib"} & set(loaded)


# --- sheets


def patches(s, row):
    return row[[p.kind == "patch" for p in s.places]]


@pytest.mark.parametrize("kind", ["vit", "custom blocks", "timm", "siglip", "wide text, unequal depth"])
def test_sheets_are_the_maps(kind):
    c = small(kind)
    t = attention.look(shake(VPT(c, n_ctx=3, depth=2)), images(c, 1)[0], NAMES, grad=True)
    for by, how in ("raw", {}), ("rollout", {}), ("evidence", {"by": "relevance"}), ("similarity", {}):
        for layer in (0, c.image.layers - 1):
            s = sheet(t, "image", by, layer, NAMES[1])
            for head in (None, 0, c.image.heads - 1) if by != "similarity" else (None,):
                more = {} if by == "similarity" else {"head": head}
                was = attention.draw(t, NAMES[1], **{"by": by, **how}, layer=layer, **more)
                assert np.allclose(patches(s, s.takes(None, head)), was.values.ravel(), atol=1e-5), (by, layer, head)
    s = sheet(t, "image", "relevance", -1, NAMES[2])
    assert np.allclose(patches(s, s.takes()), attention.draw(t, NAMES[2], "relevance").values.ravel(), atol=1e-5)
    s = sheet(t, "image", "raw", 1)
    assert np.allclose(s.values.sum(-1), 1, atol=1e-4)
    assert np.allclose(
        patches(s, s.takes("all prompts", 0)), attention.draw(t, by="prompt", layer=1, head=0).values.ravel(), atol=1e-6
    )
    assert np.allclose(
        patches(s, s.gives("all prompts")), attention.draw(t, by="received", layer=1).values.ravel(), atol=1e-5
    )
    assert np.allclose(s.gives("prompt 2", 0), s.values[1][:, s.keys.index("prompt 2")])


def test_sheets_of_sentences():
    c = small()
    t = attention.look(shake(MuDPT(c, n_ctx=2, depth=2)), images(c, 1)[0], [*NAMES, "fire fire engine"], grad=True)
    s = sheet(t, "text", "raw", 2, "fire fire engine")
    assert s.keys.count("fire") == 1 and "fire (2)" in s.keys and s.at("fire (2)") == s.at("fire") + 1
    assert np.allclose(s.values[1:], t.heads("text", 2, "fire fire engine").numpy(), atol=1e-6)
    for by in ("rollout", "relevance"):
        pairs = attention.text_relevance(t, "golden retriever", by)
        s = sheet(t, "text", by, -1, "golden retriever")
        held = {}
        for p, v in pairs:
            k = ("slot", p.k) if p.kind == "prompt" else p.at
            held[k] = held.get(k, 0) + v
        mine = {("slot", p.k) if p.kind == "prompt" else p.at: v for p, v in zip(s.places, s.takes(), strict=True)}
        assert held == pytest.approx(mine, abs=1e-5)


def test_class_aware_prompts_have_a_sheet_where_they_are(clip, task):
    seed_all(0)
    t = attention.look(DPT(clip, top_k=2), task.test[3][0], task.names, grad=True)
    name = t.likely[0]
    assert "cavpt" in kinds(t, name) and "cavpt" not in kinds(t, next(n for n in task.names if n not in t.likely))
    s = sheet(t, "image", "cavpt", -1, name)
    assert np.allclose(s.values[0], attention.draw(t, name, "cavpt").values.ravel()) and "learned vectors" in s.note
    assert np.isnan(board(t, "cavpt", name=name)[0]).all()


def test_what_is_sent_is_near_enough(state):
    for kind in ("raw", "rollout", "evidence", "relevance"):
        s = state.sheet_of(state.looks[0], "image", kind, 2, state.name)
        about, data = packed(s)
        top = s.values.max((1, 2), keepdims=True)
        assert (np.abs(unpacked(about, data) - s.values) <= np.sqrt(s.values * top) / 65535 + 1e-6).all()
        assert len(data) == 2 * s.values.size


def test_a_board_is_the_mark_inside(clip, task):
    from mudpt.marks import inside

    seed_all(0)
    t = attention.look(MaPLe(clip), task.test[7][0], task.names, grad=True)
    b = board(t, "evidence", name=t.says)
    assert b.shape == (4, 5)
    assert b[2, 3] == pytest.approx(inside(attention.draw(t, t.says, "relevance", layer=2, head=2)), abs=1e-5)
    plain = attention.look(MaPLe(clip), Image.new("RGB", (20, 30), "teal"), task.names)
    assert board(plain, "raw") is None


# --- the state


def test_nothing_at_all_is_an_answer():
    s = AttentionState()
    assert [c.label for c in s.frame().columns] == ["MaPLe", "ZeroShot", "MaPLe − ZeroShot"] and s.trouble is None


def test_turning_a_knob_is_no_forward_pass(clip, task, passes):
    s = AttentionState([MaPLe(clip), DCP(clip, n_ctx=2)], task)
    assert passes.count("MaPLe") == passes.count("DCP") == 1
    before = len(passes)
    for kind in s.kinds():
        for layer in range(4):
            for head in (None, 0, 3):
                assert s.choose(
                    kind=kind, layer=layer, head=head, text_layer=layer, text_head=None if head is None else head % 2
                )
                s.frame()
    for token in ("class token", "patch row 0, column 7", "all prompts", "prompt 1", None):
        assert s.choose(token=token, word="end token", name=s.names[-1], contrast=True)
        s.frame()
    assert len(passes) == before
    s.item = 9
    assert passes.count("MaPLe") == 2
    s.second = ""
    s.second = "DCP"
    assert passes.count("DCP") == 2  # remembered


def test_who_looks_sees_nothing_of_a_training_in_another_thread(clip):
    m, x, names = MaPLe(clip), images(clip, 3), ["owl", "fox"]
    with trace(m) as t:
        elsewhere = threading.Thread(target=lambda: m(x, names).logits.sum().backward())
        elsewhere.start()
        elsewhere.join()
        assert not t.image and not t.text and not t.prefix
        m(x[:1], names)
    assert {len(w) for ws in t.image.values() for w in ws} == {1}


def test_the_class_follows_the_picture_and_choices_stay(state, task):
    state.choose(layer=1, head=2, token="prompt 1", kind="rollout")
    for i in (0, 13, 25):
        state.item = i
        assert state.title == state.name == task.names[task.test[i][1]]
    assert (state.layer, state.head, state.token, state.kind) == (1, 2, "prompt 1", "rollout")
    state.name = task.names[0]
    state.names = list(task.names[:2])
    assert state.name == task.names[0]


MISTAKES = [
    (lambda s: s.choose(layer=4), "layer 4 does not exist: the image tower has 4, give 0 to 3"),
    (lambda s: s.choose(text_head=7), "text head 7 does not exist"),
    (lambda s: s.choose(head=-1), "head -1 does not exist"),
    (lambda s: s.choose(kind="saliency"), "unknown kind of map"),
    (lambda s: s.choose(kind="cavpt"), "unknown kind of map"),
    (lambda s: s.choose(name="unicorn"), "unknown class name 'unicorn'"),
    (lambda s: s.choose(first="MaPle"), "did you mean 'MaPLe'"),
    (lambda s: s.choose(item=10**6), "there is no picture 1000000"),
    (lambda s: s.choose(colour="red"), "unknown choice 'colour'"),
    (lambda s: s.choose(layer="two"), "layer"),
    (lambda s: s.open_path("/no/such/picture.png"), "check the path"),
    (lambda s: s.open_path(" "), "no path was given"),
    (lambda s: s.open_path("/"), "is a folder"),
    (lambda s: s.upload("cat.png", b"GIF89a broken"), "'cat.png' cannot be read as an image"),
    (lambda s: s.upload("cat.png", b""), "is empty"),
    (lambda s: s.enter_names(" ,\n "), "no class names: give at least one"),
    (lambda s: s.enter_names("cat, cat"), "occurs 2 times"),
    (lambda s: s.enter_names("\n".join(f"thing {i}" for i in range(MOST + 1))), f"up to {MOST}"),
    (lambda s: s.enter_names("word " * 200), "shorten the name"),
]


@pytest.mark.parametrize("wish, says", MISTAKES)
def test_what_cannot_be_done_is_said_and_nothing_changes(state, wish, says):
    was = {k: getattr(state, k) for k in state.trait_names() if k != "trouble"}
    drawn = state.frame().columns[0].image["takes"].values
    assert wish(state) is False
    assert says in state.trouble[0], state.trouble[0]
    assert all(getattr(state, k) is v or getattr(state, k) == v for k, v in was.items())
    assert (state.frame().columns[0].image["takes"].values == drawn).all() and state.frame().trouble == state.trouble
    assert state.choose(layer=0) and state.trouble is None


def test_unforeseen_errors_bring_their_traceback(state, monkeypatch):
    monkeypatch.setattr("mudpt.attention_state.look", lambda *a, **k: 1 / 0)
    assert not state.choose(item=4)
    assert "ZeroDivisionError" in state.trouble[0] and "Traceback" in state.trouble[1] and state.item == 0


def test_pictures_of_ones_own(state, tmp_path):
    Image.new("RGBA", (90, 40), (200, 10, 10, 128)).save(tmp_path / "my cat.png")
    assert state.open_path(f'"{tmp_path / "my cat.png"}"') and state.title == "my cat" and state.item is None
    assert (
        state.looks[0].mask is None
        and state.frame().board is None
        and state.frame().columns[0].image["takes"].marks == {}
    )
    Image.new("L", (30, 30)).save(b := io.BytesIO(), "JPEG")
    assert state.upload("grey.jpg", b.getvalue()) and state.title == "grey"
    assert state.choose(item=0) and state.title == state.name


def test_what_an_explorer_can_be_given(clip, task, tmp_path):
    Image.new("RGB", (20, 20), "teal").save(f := tmp_path / "sea.png")
    m = VPT(clip)
    assert AttentionState(m, f, ["sea", "sky"]).names == ["sea", "sky"]
    assert AttentionState(m, [str(f), Image.open(f)], ["sea", "sky"]).items[1][1] is None
    assert AttentionState(m, [emoji.scene("owl"), emoji.scene("ant")]).names == ["owl", "ant"]
    assert list(AttentionState({"before": m, "after": VPT(clip)}, task).methods) == ["before", "after"]
    assert [c.label for c in AttentionState([m, VPT(clip), m], task).frame().columns][:2] == ["VPT", "VPT 2"]
    m.bind(["fox", "owl"])
    assert AttentionState(m, f).names == ["fox", "owl"]


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda c: AttentionState([], None), "at least one method"),
        (lambda c: AttentionState(None if c is None else c), "give ZeroShot(clip)"),
        (lambda c: AttentionState(ZeroShot(c), emoji.sprite("owl", "noto")), "which classes"),
        (lambda c: AttentionState(ZeroShot(c), []), "no picture"),
        (lambda c: AttentionState(ZeroShot(c), "/no/where.png", ["a"]), "check the path"),
        (lambda c: AttentionState(ZeroShot(c), emoji.scene("owl"), [f"n{i}" for i in range(101)]), "too many"),
        (lambda c: AttentionState(ZeroShot(small()), None), "give a task"),
    ],
)
def test_in_code_mistakes_are_exceptions(clip, make, says):
    with pytest.raises(BadInput, match=re.escape(says)):
        make(clip)


def test_a_resnet_has_no_attention_and_says_what_would(task):
    s = AttentionState(CoOp(small("resnet"), n_ctx=2), task)
    assert "has no attention of its own" in s.trouble[0] and "vision transformer" in s.trouble[0]
    c = s.frame().columns[0]
    assert not c.image and set(c.text) == {"takes", "gives"} and c.notes  # the sentence can be looked at all the same
    assert s.choose(word="context 1") and "has no attention" in s.trouble[0]
    assert len(png(s.frame())) > 1000


def test_two_models_that_cut_pictures_differently(clip, task):
    s = AttentionState({"small": ZeroShot(clip), "other": VPT(small("wide text, unequal depth"), n_ctx=1)}, task)
    f = s.frame()
    assert s.size("image") == (4, 4) and s.choose(layer=3) and s.frame().columns[1].image
    assert not f.columns[2].image and any("no difference" in n for n in f.columns[2].notes)


def test_many_names_are_looked_at_without_gradients(clip, task, monkeypatch):
    from mudpt.text import SharedText

    monkeypatch.setattr(SharedText, "names_at_once", lambda *a, **k: 2)
    s = AttentionState(ZeroShot(clip), task)
    assert "relevance" not in s.kinds() and "raw" in s.kinds() and s.trouble is None


# --- the frame


def test_the_frame_is_what_the_state_says(state):
    state.choose(layer=2, head=1, token="patch row 3, column 4", item=7)
    a, b, less = state.frame().columns
    M = state.looks[0].weights("image", 2, 1)
    at = state.looks[0].at("image", 2, "patch row 3, column 4")
    assert np.allclose(a.image["takes"].values, M[at], atol=1e-6) and np.allclose(
        a.image["gives"].values, M[:, at], atol=1e-6
    )
    assert sum(a.image["takes"].held.values()) == pytest.approx(1, abs=1e-4)
    assert a.image["takes"].limits == b.image["takes"].limits and a.image["takes"].limits[0] == 0
    main = np.concatenate([p.values[p.main] for p in (a.image["takes"], b.image["takes"])])
    assert a.image["takes"].limits[1] == pytest.approx(main.max())
    d = less.image["takes"]
    assert d.limits[0] == -d.limits[1] and "prompt 0" not in d.keys
    i, j = a.image["takes"].keys.index("class token"), d.keys.index("class token")
    assert d.values[j] == pytest.approx(a.image["takes"].values[i] - b.image["takes"].values[i])
    assert state.frame().board.shape == (4, 5) and 0 < state.frame().blind < 1


def test_a_position_that_only_one_method_has(state):
    state.choose(token="prompt 1")
    f = state.frame()
    assert f.columns[0].image and not f.columns[1].image and not f.columns[2].image
    assert f.columns[1].notes == ["ZeroShot has no prompt 1 in block 3"]
    state.choose(token="patch row 77, column 0")
    assert not state.frame().columns[0].image and state.frame().columns[0].notes


def test_every_kind_draws_and_is_a_picture_without_a_kernel(clip, task):
    seed_all(0)
    s = AttentionState([DPT(clip, top_k=5), DCP(clip)], task)
    assert s.kinds() == list(KINDS)
    for kind in KINDS:
        s.choose(kind=kind)
        f = s.frame()
        assert f.columns[0].image["takes"].heat and Image.open(io.BytesIO(png(f))).width > 500
    assert len(f.columns[1].tables) == 2 and len(figure(f).axes) > 4


# --- the view


@pytest.fixture
def view():
    pytest.importorskip("anywidget")
    from mudpt.attention_view import AttentionExplorer

    made = []
    yield lambda *a, **k: made.append(AttentionExplorer(*a, **k)) or made[-1]
    for v in made:
        v.close()


def test_two_views_of_one_state_stay_in_step(view, state):
    a, b = view(state=state), view(state=state)
    a.towers.layer = 1
    a.towers.token = "prompt 0"
    assert (state.layer, b.towers.layer, b.towers.token) == (1, 1, "prompt 0")
    b.side.second.value = ""
    assert state.second == "" and a.side.second.value == "" and len(a.towers.sheet["towers"][0]["columns"]) == 1
    b.side.names.value = "owl\nfox"
    assert list(a.side.name.options) == ["owl", "fox"] and a.side.names.value == "owl\nfox"
    a.side.item.value = 8
    assert (
        b.side.item.value == 8
        and a.towers.sheet["towers"][0]["columns"][0]["src"] == b.towers.sheet["towers"][0]["columns"][0]["src"]
    )
    a.close()
    state.choose(layer=2)
    assert b.towers.layer == 2


def test_choices_in_the_view_reach_the_state_and_mistakes_the_screen(view, state, tmp_path):
    v = view(state=state)
    v.side.kind.value, v.side.contrast.value = "similarity", True
    assert (state.kind, state.contrast) == ("similarity", True) and v.side.contrast.layout.display == ""
    v.side.path.value = "/no/such.png"
    assert "no image at" in v.trouble.value and 'role="alert"' in v.trouble.value and state.item == 0
    v.side.names.value = ""
    assert "no class names" in v.trouble.value and len(state.names) == 5
    v.side.file.value = (dict(name="x.png", type="image/png", size=3, content=memoryview(b"abc"), last_modified=WHEN),)
    assert "cannot be read as an image" in v.trouble.value
    emoji.sprite("owl", "noto").save(b := io.BytesIO(), "PNG")
    v.side.file.value = (
        dict(name="an owl.png", type="image/png", size=3, content=memoryview(b.getvalue()), last_modified=WHEN),
    )
    assert v.trouble.value == "" and state.title == "an owl" and v.towers.said["Picture"]["board"] == []
    v.side.first.value = "ZeroShot"
    assert state.first == "ZeroShot"


def test_blocks_are_sent_when_asked_for_and_are_the_frame(view, state):
    v, sent = view(state=state), []
    v.towers.send = lambda content, buffers=None: sent.append((content, buffers))
    assert not sent
    v.towers.answer(dict(need=[v.towers.stamp, "image", 2]))
    v.towers.answer(dict(need=[v.towers.stamp - 1, "image", 2]))
    v.towers.answer(dict(need=[v.towers.stamp, "text", 1]))
    (about, data), (words, _) = sent
    assert about["got"] == [v.towers.stamp, "image", 2] and len(data) == 2 and words["got"][1] == "text"
    state.choose(layer=2, head=3, token="class token")
    true = state.frame().columns[0].image["takes"].values
    assert np.allclose(unpacked(about["columns"][0], data[0])[4][0], true, atol=1e-4)
    json.dumps([v.towers.sheet, v.towers.said])
    stamp = v.towers.stamp
    state.choose(head=0, layer=1)
    assert v.towers.stamp == stamp  # block and head: nothing is built anew
    state.choose(kind="rollout")
    assert v.towers.stamp == stamp + 1


def test_an_error_while_a_block_is_made_is_shown(view, state, monkeypatch):
    v = view(state=state)
    monkeypatch.setattr("mudpt.attention_view.packed", lambda s: 1 / 0)
    v.towers.answer(dict(need=[v.towers.stamp, "image", 0]))
    assert "ZeroDivisionError" in v.trouble.value and "Traceback" in v.trouble.value


def test_the_widget_leaves_a_picture_for_those_without_a_kernel(view, state):
    v = view(state=state)
    bundle = v._repr_mimebundle_()
    assert {"application/vnd.jupyter.widget-view+json", "image/png"} <= set(bundle)
    v.close()
    assert "closed" in v._repr_mimebundle_()["text/plain"]


def test_an_outline_is_its_edge():
    from mudpt.attention_view import outline

    m = np.zeros((4, 4), bool)
    m[1:3, 1:4] = True
    assert outline(m) == "M0.25 0.25H1M0.25 0.75H1M0.25 0.25V0.75M1 0.25V0.75"
    assert outline(np.zeros((3, 3), bool)) == ""


@pytest.mark.skipif(not shutil.which("node"), reason="no node")
def test_the_script_is_a_module_that_fetches_nothing(tmp_path):
    from mudpt.attention_js import CSS, ESM

    (f := tmp_path / "attention.mjs").write_text(ESM)
    subprocess.run(["node", "--check", f], check=True)
    for text in (ESM.replace("http://www.w3.org/2000/svg", ""), CSS):
        assert not re.search(r"https?:|import\s*\(|fetch\(|@import|url\(", text)
    for word in ("jupyterapp", "jupyterlab", "require("):
        assert word not in ESM


# --- in a real JupyterLab

IT = ".mudpt-explorer"
READ = ["h3", "h4", ".widget-label", "select", "textarea", ".mudpt-line", ".mudpt-slider", ".mudpt-slider output"]
READ += [".mudpt-panel figcaption b", ".mudpt-panel figcaption span", ".mudpt-scale span", ".mudpt-chips button span"]
READ += [".mudpt-foot", ".mudpt-board-said", ".mudpt-board b", ".mudpt-see b", ".mudpt-quiet", ".mudpt-trouble"]
PIXELS = "p => document.querySelector(`[data-panel='${p}'] canvas`).toDataURL()"


@pytest.fixture
def page(lab):
    with labkit.notebook(lab, "see_where_a_prompt_looks.ipynb", 1500, 1500) as page:
        yield page


@pytest.mark.xdist_group("lab")
@pytest.mark.skipif(not CHROMIUM, reason="no chromium")
def test_the_attention_explorer_in_jupyterlab(page, tmp_path):
    page.evaluate("() => { window.jupyterapp.commands.execute('application:toggle-left-area') }")
    run_all(page)
    it = page.locator(IT)
    part = lambda p, css="": it.locator(f"[data-panel='{p}'] {css}".strip())
    pixels = lambda p="image/0/takes": page.evaluate(PIXELS, p)
    changed = lambda was, p="image/0/takes": page.wait_for_function(
        f"([was, p]) => ({PIXELS})(p) !== was", arg=[was, p]
    )
    line, field = it.locator(".mudpt-line").first, lambda name: it.get_by_label(name, exact=True)
    value = lambda n: it.locator(".mudpt-slider output").nth(n).inner_text()
    shot = lambda name: labkit.picture(page, name, IT)
    whole = "() => document.querySelector('.mudpt-attention')?.dataset.whole"
    page.wait_for_function(whole)  # all blocks are in the browser
    it.scroll_into_view_if_needed()
    assert [value(0), value(1)] == ["2", "1"] and it.locator(".mudpt-panel figcaption b").nth(
        2
    ).inner_text() == "MaPLe − ZeroShot"
    shot("attention 1")

    # by mouse: point at a patch, and both methods and their difference answer, in both directions
    before = {p: pixels(p) for p in ("image/0/takes", "image/1/takes", "image/2/takes", "image/0/gives")}

    def over(r, c):
        box = part("image/0/takes", ".mudpt-pic").bounding_box()
        page.mouse.move(box["x"] + (c + 0.5) * box["width"] / 8, box["y"] + (r + 0.5) * box["height"] / 8)

    over(3, 2)
    for p, was in before.items():
        changed(was, p)
    assert line.inner_text().startswith("patch row 3, column 2: what it takes")
    assert part("image/0/takes", "figcaption").inner_text().endswith("patch row 3, column 2 takes from")
    page.mouse.move(5, 5)
    page.wait_for_function(f"([was, p]) => ({PIXELS})(p) === was", arg=[before["image/0/takes"], "image/0/takes"])

    # hold a prompt; ZeroShot has none, and says so; pointing reads numbers off
    part("image/0/takes", "[data-key='prompt 1']").click()
    changed(before["image/0/takes"])
    assert "prompt 1 is held" in line.inner_text()
    assert "has no prompt 1" in part("image/1/takes", ".mudpt-foot").inner_text()
    held = pixels()
    over(5, 5)
    line.get_by_text(re.compile(r"prompt 1 takes [\d.]+ % from patch row 5, column 5")).wait_for()
    assert pixels() == held
    it.get_by_text("ZeroShot has no prompt 1 in block 2").wait_for()
    shot("attention 2 held")

    # by keyboard: let go, walk over the picture, hold, let go
    part("image/0/takes", ".mudpt-pic").focus()
    page.keyboard.press("Escape")
    page.mouse.move(5, 5)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert line.inner_text().startswith("patch row 1, column 1")
    page.keyboard.press("Enter")
    assert line.inner_text().startswith("patch row 1, column 1 is held")
    page.keyboard.press("Escape")
    page.keyboard.press("Tab")  # to the class token below
    assert page.evaluate("() => document.activeElement.dataset.key") == "class token"
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.getAttribute('aria-label')") == "prompt 0"
    assert page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert "prompt 0 is held" in line.inner_text()
    page.keyboard.press("Enter")

    # blocks and heads: by keyboard on the sliders, by mouse on the board; the kernel is not needed for it
    page.keyboard.press("Escape")
    page.mouse.move(5, 5)
    shows = lambda n, text: page.wait_for_function(
        "([n, text]) => document.querySelectorAll('.mudpt-slider output')[n].textContent === text", arg=[n, text]
    )
    it.get_by_label("Block, Picture").focus()
    page.wait_for_timeout(100)
    was = pixels()
    page.keyboard.press("ArrowLeft")
    shows(0, "1")
    changed(was)
    was = pixels()
    it.get_by_label("Head, Picture").focus()
    page.keyboard.press("Home")
    shows(1, "mean")
    changed(was)
    was = pixels()
    it.locator(".mudpt-board i[data-at='3/2']").click()
    shows(0, "3")
    shows(1, "2")
    changed(was)
    assert it.locator(".mudpt-board i.mudpt-held").get_attribute("data-at") == "3/2"

    # words
    was = part("text/0/takes", "[data-key='context 0'] small").inner_text()
    part("text/0/takes", "[data-key='context 1']").click()
    page.wait_for_function(
        "was => document.querySelector(`[data-panel='text/0/takes'] [data-key='context 0'] small`).textContent !== was",
        arg=was,
    )

    # another map, another picture, nobody beside, somebody else alone
    was = pixels()
    field("Map").select_option(label="rollout, up to this block")
    changed(was)
    was = pixels()
    it.get_by_role("spinbutton").fill("3")
    page.keyboard.press("Tab")
    changed(was)
    it.locator(".mudpt-see").get_by_text("ant", exact=True).wait_for()
    field("Map").select_option(label="similarity with class")
    it.get_by_text("One number for each patch, whoever asks.").wait_for()
    over(2, 2)
    line.get_by_text(re.compile(r"MaPLe: -?[\d.]+, ZeroShot: -?[\d.]+ at patch row 2")).wait_for()
    shot("attention 3 similarity")
    field("Beside").select_option("nobody")
    page.wait_for_function(
        "() => document.querySelectorAll('.mudpt-tower')[0].querySelectorAll('.mudpt-panel:not([hidden])').length === 1"
    )
    field("Method").select_option("ZeroShot")
    it.locator(".mudpt-panel figcaption b").first.get_by_text("ZeroShot").wait_for()
    field("Beside").select_option("MaPLe")
    it.locator(".mudpt-panel figcaption b").get_by_text("ZeroShot − MaPLe").first.wait_for()

    # mistakes are said where one looks, and mended; a picture of one's own
    field("Names").fill("cat\ncat")
    page.keyboard.press("Tab")
    it.locator(".mudpt-trouble").filter(has_text="occurs 2 times").wait_for()
    field("Path").fill("/no/such/picture.png")
    page.keyboard.press("Enter")
    it.locator(".mudpt-trouble").filter(has_text="no image at").wait_for()
    field("Map").select_option(label="attention, one block")
    it.get_by_role("alert").wait_for(state="detached")
    emoji.sprite("owl", "noto").save(tmp_path / "my owl.png")
    with page.expect_file_chooser() as chooser:
        it.get_by_role("button", name=re.compile("Upload")).click()
    chooser.value.set_files(tmp_path / "my owl.png")
    it.locator(".mudpt-see").get_by_text("my owl").wait_for()
    assert not it.locator(".mudpt-board").first.is_visible()  # its outline is not known

    # legible in both themes, and narrow enough for a narrow window
    it.get_by_role("spinbutton").fill("30")
    page.keyboard.press("Tab")
    it.locator(".mudpt-see").get_by_text("crocodile").first.wait_for()
    part("image/1/takes", "[data-key='prompt 0']").click()
    it.locator(".mudpt-note").first.wait_for()
    field("Path").fill("/no/such/picture.png")
    page.keyboard.press("Enter")
    it.locator(".mudpt-trouble").filter(has_text="no image at").wait_for()
    assert labkit.legible(page, IT, READ)
    dark(page)
    shot("attention 4 dark")
    assert labkit.legible(page, IT, READ)
    page.set_viewport_size(dict(width=900, height=1400))
    page.wait_for_function(
        "() => { const m = document.querySelector('.mudpt-explorer'); return [...m.querySelectorAll('.mudpt-pic')].every(p => !p.clientWidth || p.getBoundingClientRect().right <= m.getBoundingClientRect().right + 1) }"
    )
    shot("attention 5 narrow")
