"""The instruments' own scripts on a page that is not Jupyter's, as in VS Code: no application object, none of JupyterLab's
variables, no network, pictures only as data, and a dark theme that goes by other names.

The frame of buttons and lists around them is ipywidgets', which such a page brings along; here it is left out.
"""

import base64
import json
import re
import time
from collections import deque
from types import SimpleNamespace

import pytest
from labkit import CHROMIUM, FLAGS, legible, picture

from mudpt import emoji, looks
from mudpt.methods import MaPLe, ZeroShot

AT = "http://127.0.0.1:9/"  # nobody listens there: the page is handed over, and everything else is refused
POLICY = "default-src 'none'; script-src 'unsafe-inline' blob:; style-src 'unsafe-inline'; img-src data:"
VSCODE = (
    """--vscode-editor-background: #1e1e1e; --vscode-editor-foreground: #d4d4d4; --vscode-font-family: sans-serif"""
)
PAGE = f"""<!doctype html><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">
<style>:root {{ {VSCODE} }} body {{ background: #fff }} {looks.CSS}</style>
<body data-vscode-theme-kind="vscode-dark"><div class="mudpt mudpt-explorer" id="attention"></div>
<div class="mudpt mudpt-trainer mudpt-align" id="alignment"></div>"""

# What a host of widgets is to a script: a model with get, set, save_changes, send, on, off
HOST = """() => {
  const pack = v => v instanceof DataView ? { bytes: btoa(String.fromCharCode(...new Uint8Array(v.buffer, v.byteOffset, v.byteLength))) } : v;
  const unpack = v => v?.bytes === undefined ? v : new DataView(Uint8Array.from(atob(v.bytes), c => c.charCodeAt(0)).buffer);
  const host = window.host = { out: [], models: {}, undo: [] };
  host.mount = async (id, into, esm, css, state) => {
    const heard = {}, dirty = {}, fire = (what, ...a) => (heard[what] ?? []).slice().forEach(f => f(...a));
    const each = (names, f) => names.split(' ').forEach(f);
    const put = (k, v) => { const was = model.state[k]; model.state[k] = v; if (was !== v) fire(`change:${k}`); };
    const model = { state: Object.fromEntries(Object.entries(state).map(([k, v]) => [k, unpack(v)])), get: k => model.state[k],
      set: (k, v) => { dirty[k] = v; put(k, v); },
      save_changes: () => { for (const k in dirty) { host.out.push([id, 'set', { [k]: pack(dirty[k]) }]); delete dirty[k]; } },
      send: m => host.out.push([id, 'msg', m]),
      on: (names, f) => each(names, n => (heard[n] ??= []).push(f)), off: (names, f) => each(names, n => { heard[n] = (heard[n] ?? []).filter(g => g !== f); }) };
    host.models[id] = { get: model.get, take: (state, message, buffers) => { // all of a message is there before anybody hears of it
      const new_ = Object.entries(state).map(([k, v]) => [k, unpack(v)]); for (const [k, v] of new_) model.state[k] = v;
      new_.forEach(([k]) => fire(`change:${k}`)); if (message) fire('msg:custom', message, buffers.map(unpack)); }, heard };
    const style = document.createElement('style'), el = document.createElement('div'); style.textContent = css; document.head.append(style); into = document.getElementById(into); into.append(el);
    const m = await import(URL.createObjectURL(new Blob([esm], { type: 'text/javascript' })));
    host.undo.push(await m.default.render({ model, el }));
  };
}"""


def plain(v):
    return {"bytes": base64.b64encode(bytes(v)).decode()} if isinstance(v, bytes | memoryview | bytearray) else v


class Wire:
    "A comm without a kernel: what a widget says waits until the page is given it"

    def __init__(self, name):
        self.comm_id, self.said, self.hear = name, deque(), None

    def on_msg(self, f):
        self.hear = f

    def send(self, data=None, metadata=None, buffers=None):
        self.said.append((data or {}, list(buffers or [])))

    def close(self, *a, **k):
        pass

    def heard(self, kind, m):
        data, buffers = dict(method="custom", content=m), []
        if kind == "set":
            data = dict(method="update", state={}, buffer_paths=[])
            for k, v in m.items():
                if isinstance(v, dict) and "bytes" in v:
                    data["buffer_paths"].append([k])
                    buffers.append(memoryview(base64.b64decode(v["bytes"])))
                else:
                    data["state"][k] = v
        self.hear(dict(content=dict(data=data), buffers=buffers))


def state_of(data, buffers):
    "An update as {name: value}"
    if data.get("method") != "update":
        return {}
    state = dict(data["state"])
    for path, b in zip(data.get("buffer_paths", ()), buffers):
        state[path[0]] = b
    return {k: plain(v) for k, v in state.items() if not k.startswith("_")}


@pytest.fixture(scope="module")
def page():
    sync_api = pytest.importorskip("playwright.sync_api")
    pytest.importorskip("anywidget")
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport=dict(width=1300, height=2600))
        problems = []
        page.on("pageerror", lambda e: problems.append(str(e)))
        page.on("console", lambda m: m.type == "error" and problems.append(m.text))  # what the policy refuses, too
        page.route(
            "**/*", lambda r: r.fulfill(body=PAGE, content_type="text/html") if r.request.url == AT else r.abort()
        )
        page.goto(AT)
        page.evaluate(HOST)
        yield page
        assert not problems, problems
        browser.close()


@pytest.fixture
def host(page):
    wires = {}

    def mount(name, into, widget, css=""):
        before = {k: plain(v) for k, v in widget.get_state().items() if not k.startswith("_")}
        widget.comm = wires[name] = Wire(name)
        page.evaluate(
            "a => host.mount(...a)", [name, into, str(widget._esm), str(getattr(widget, "_css", "")) + css, before]
        )

    def pump():
        for name, kind, m in page.evaluate("() => host.out.splice(0)"):
            wires[name].heard(kind, m)
        for name, wire in wires.items():
            while wire.said:
                data, buffers = wire.said.popleft()
                if data.get("method") in ("update", "custom"):
                    message = data.get("content"), [plain(b) for b in buffers] if data["method"] == "custom" else []
                    page.evaluate("([n, a]) => host.models[n].take(...a)", [name, [state_of(data, buffers), *message]])

    def until(what, *a):
        end = time.monotonic() + 60
        while not (what() if callable(what) else page.evaluate(what, *a)):
            pump()
            assert time.monotonic() < end, what
            time.sleep(0.02)

    return SimpleNamespace(mount=mount, pump=pump, until=until)


READ = [".mudpt-line", ".mudpt-slider", ".mudpt-panel figcaption b", ".mudpt-scale span", ".mudpt-foot", "h4"]
JUPYTERS = """() => { const s = document.documentElement.style; // as ipywidgets' own style sheet has it where there is no JupyterLab: light, whatever the page
  s.setProperty('--jp-layout-color1', 'white'); s.setProperty('--jp-layout-color2', '#eee'); s.setProperty('--jp-border-color2', '#e0e0e0');
  s.setProperty('--jp-ui-font-color1', 'rgba(0,0,0,.87)'); s.setProperty('--jp-ui-font-color2', 'rgba(0,0,0,.54)') }"""
NONE = "() => { document.documentElement.removeAttribute('style') }"


@pytest.mark.skipif(not CHROMIUM, reason="no chromium")
def test_the_attention_explorer_elsewhere(page, host):
    from mudpt.attention_view import AttentionExplorer

    clip = emoji.clip()
    explorer = AttentionExplorer([MaPLe(clip), ZeroShot(clip)], emoji.task("animals", n_train=1, n_test=2, classes=4))
    host.mount("towers", "attention", explorer.towers)
    host.until("() => document.querySelector('.mudpt-attention').dataset.whole")
    canvas = "() => document.querySelector(\"[data-panel='image/0/takes'] canvas\").toDataURL()"
    was = page.evaluate(canvas)
    page.locator("[data-panel='image/0/takes'] .mudpt-pic").hover()
    page.wait_for_function(f"was => ({canvas})() !== was", arg=was)
    assert re.match(r"patch row \d, column \d: what it takes", page.locator(".mudpt-line").first.inner_text())
    page.mouse.move(2, 2)
    page.get_by_label("Block, Picture").focus()
    page.keyboard.press("ArrowLeft")
    host.until(lambda: explorer.state.layer == 2)
    page.locator("[data-panel='image/0/takes'] [data-key='prompt 0']").click()
    host.until(lambda: explorer.state.token == "prompt 0")
    for theme in (NONE, JUPYTERS, NONE):
        page.evaluate(theme)
        assert legible(page, "#attention", READ)
    picture(page, "elsewhere attention", "#attention")
    explorer.close()


SIDE = """() => { const box = document.getElementById('alignment'); box.insertAdjacentHTML('beforeend', `<section>
  <div class="mudpt-side"><div><label class="widget-label">Method</label><select><option>MuDPT</option><option>CoOp</option></select></div>
  <div class="widget-checkbox"><label><input type="checkbox"><span>csc</span></label></div></div>
  <button class="mudpt-reads">Start</button></section>`); box.querySelector('button').onclick = () => { box.dataset.clicks = 1 + +(box.dataset.clicks ?? 0) } }"""


@pytest.mark.skipif(not CHROMIUM, reason="no chromium")
def test_a_click_waits_for_a_choice_that_is_on_its_way(page, host):
    from mudpt.trainer_view import Manners

    manners, clicks = (
        Manners(),
        lambda: page.evaluate("() => +(document.getElementById('alignment').dataset.clicks ?? 0)"),
    )
    manners.known = [["Method", "MuDPT"], ["csc", "false"]]
    page.evaluate(SIDE)
    host.mount("manners", "alignment", manners)
    start = page.locator("#alignment .mudpt-reads")
    host.until("() => document.getElementById('alignment').getAttribute('aria-label') === 'Prompt trainer'")
    start.click()
    assert clicks() == 1, "nothing is on its way"
    page.locator("#alignment select").select_option("CoOp")
    page.locator("#alignment [type=checkbox]").check()
    start.click()
    page.wait_for_timeout(300)
    assert clicks() == 1, "the kernel knows nothing of CoOp yet"
    for known in ([["Method", "CoOp"], ["csc", "false"]], [["Method", "CoOp"], ["csc", "true"]]):
        assert clicks() == 1
        manners.known = known
        host.until(
            "known => JSON.stringify(host.models.manners.get('known')) === known",
            json.dumps(known, separators=(",", ":")),
        )
        page.wait_for_timeout(200)
    assert clicks() == 2, "and comes once, when it knows"
    page.evaluate("() => document.querySelector('#alignment section').remove()")
    manners.close()


@pytest.mark.skipif(not CHROMIUM, reason="no chromium")
def test_the_alignment_explorer_elsewhere(page, host):
    from mudpt.align_view import MORE, AlignmentExplorer

    clip, task = emoji.clip(), emoji.task("animals", n_train=1, n_test=6, classes=5)
    explorer = AlignmentExplorer({"zero-shot": ZeroShot(clip), "MaPLe": MaPLe(clip)}, task, measures=["gap"])
    explorer.state.join()
    manners = next(w for w in explorer.box.children if type(w).__name__ == "Manners")
    host.mount("manners", "alignment", manners)
    host.mount("panels", "alignment", explorer.panels, MORE)
    host.mount("guide", "alignment", explorer.guide)
    drawn = "document.querySelector('#alignment .mudpt-map')"
    host.until(f"() => +{drawn}.dataset.drawn > 0 && {drawn}.spots(1).length === 60")
    assert page.locator("#alignment").get_attribute("aria-label") == "Alignment explorer"

    # a mouse over a dot: its picture comes as data, because this page takes no other
    spot = f"""() => {{ const s = {drawn}.querySelectorAll('.mudpt-stage')[0], b = s.getBoundingClientRect(), p = {drawn}.spots(0);
      let k = 0, far = 0; for (let i = 0; i < 30; i++) {{ let d = 1e9; for (let j = 0; j < 30; j++) if (i !== j) d = Math.min(d, Math.hypot(p[2*i] - p[2*j], p[2*i+1] - p[2*j+1])); if (d > far) [k, far] = [i, d]; }}
      return [b.left + s.clientLeft + p[2*k], b.top + s.clientTop + p[2*k+1], k] }}"""
    page.locator("#alignment .mudpt-stage").first.scroll_into_view_if_needed()
    x, y, k = page.evaluate(spot)
    page.mouse.move(x - 30, y - 30)
    page.mouse.move(x, y, steps=4)
    host.until("() => document.querySelector('.mudpt-tip:not([hidden]) img')?.naturalWidth === 112")
    host.until(lambda: explorer.state.hovered == k)

    # a lasso: the state knows, and the gallery shows
    page.mouse.move(x - 20, y - 20)
    page.mouse.down()
    for dx, dy in ((20, -20), (20, 20), (-20, 20), (-20, -20)):
        page.mouse.move(x + dx, y + dy, steps=4)
    page.mouse.up()
    host.until(lambda: k in (explorer.state.selected or ()))
    host.until(
        "() => document.querySelectorAll('.mudpt-card img').length && [...document.querySelectorAll('.mudpt-card img')].every(i => i.naturalWidth)"
    )
    page.locator(".mudpt-card").first.focus()
    page.keyboard.press("Escape")
    host.until(lambda: explorer.state.selected is None)
    page.mouse.click(x, y)
    host.until("() => document.querySelectorAll('.mudpt-card').length === 1")

    # paper and ink are of one kind, whichever the page has; the panels follow a change of theme
    paper = f"() => {{ const s = {drawn}.querySelector('.mudpt-stage'), c = s.firstChild.getContext('2d').getImageData(2, 2, 1, 1).data; return [...c].slice(0, 3) }}"
    assert page.evaluate(paper) == [30, 30, 30]
    for theme, light in ((JUPYTERS, 255), (NONE, 30)):
        page.evaluate(theme)
        host.until(f"light => ({paper})()[0] === light", light)
        assert legible(
            page, "#alignment", [".mudpt-pane b", ".mudpt-pane figcaption span", ".mudpt-axes", ".mudpt-card b"]
        )
    picture(page, "elsewhere alignment", "#alignment")

    # and when it is taken away, nothing of it stays behind
    page.evaluate("() => { host.undo.forEach(f => f?.()); host.undo = [] }")
    assert not page.locator(".mudpt-tip").count()
    left = page.evaluate("() => Object.values(host.models).flatMap(m => Object.values(m.heard)).flat().length")
    assert left == 0
    explorer.close()
