"""`mudpt lab`, and the first tutorial in a real JupyterLab in a real browser, used with mouse and keyboard.

Nothing leaves the machine, in no page of it: any request to another host fails the test.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from mudpt import lab as lab_module
from mudpt.core import Missing

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
TOKEN, PATIENCE = "not-a-secret", 300_000  # milliseconds; a crowded machine is slow, and nothing here is timed
SHOTS = Path(os.environ["MUDPT_SHOTS"]) if os.environ.get("MUDPT_SHOTS") else None  # where pictures go, to be looked at
pytestmark = pytest.mark.xdist_group("lab")


def test_the_packaged_tutorials_are_those_of_the_repository():
    packed = lab_module.tutorials()
    assert list(packed)[0] == lab_module.FIRST
    for name, content in packed.items():
        source = ROOT / "nbs" / "tutorials" / name
        assert content == source.read_bytes(), f"cp nbs/tutorials/{name} mudpt/assets/lab/"


def test_missing_jupyterlab_is_said_before_anything_is_written(monkeypatch, tmp_path):
    monkeypatch.setattr(lab_module, "find_spec", lambda name: None if name == "jupyterlab" else object())
    with pytest.raises(Missing, match="pip install"):
        lab_module.start_command(tmp_path / "new")
    assert not (tmp_path / "new").exists()


SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {"checkForUpdates": False, "fetchNews": "false"},
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none", "autoStartDefaultKernel": True},
    "@jupyterlab/docmanager-extension/plugin": {"autosave": False},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    "JupyterLab as `mudpt lab` starts it; configuration, settings and notebooks in a temporary folder"
    pytest.importorskip("jupyterlab")
    home = tmp_path_factory.mktemp("lab")
    for plugin, body in SETTINGS.items():
        f = home / "settings" / f"{plugin}.jupyterlab-settings"
        f.parent.mkdir(parents=True, exist_ok=True)
        f.write_text(json.dumps(body))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    dirs = dict(CONFIG="config", RUNTIME="runtime", DATA="data")
    env = {**os.environ, **{f"JUPYTER_{k}_DIR": str(home / v) for k, v in dirs.items()}}
    env |= {"JUPYTERLAB_SETTINGS_DIR": str(home / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(home / "spaces")}
    env |= {"IPYTHONDIR": str(home / "ipython"), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    lab_module.lay_out(home / "work")
    more = ["--allow-root", f"--IdentityProvider.token={TOKEN}", "--LabApp.expose_app_in_browser=True"]
    more += ["--ServerApp.ip=127.0.0.1", "--ServerApp.port_retries=0", "--LabApp.news_url=None"]
    with open(home / "log", "w") as log:
        command = lab_module.start_command(home / "work", port, browser=False) + more
        process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + PATIENCE / 1000
    try:
        while True:
            died = process.poll() is not None or time.monotonic() > end
            if died:
                pytest.fail("JupyterLab did not start:\n" + (home / "log").read_text()[-3000:], pytrace=False)
            try:
                urllib.request.urlopen(f"{url}/api/status?token={TOKEN}", timeout=5).read()
                break
            except OSError:
                time.sleep(0.25)
        yield url, home / "work"
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


# What JupyterLab's own model says: the page looks idle before there is a kernel.
READY = """() => { const w = window.jupyterapp?.shell.currentWidget;
  return w?.context?.isReady && w.sessionContext?.isReady && w.sessionContext.session?.kernel?.status === 'idle'
    && w.content.widgets.length > 0 }"""
DONE = """() => window.jupyterapp.shell.currentWidget.content.widgets
  .filter(c => c.model.type === 'code' && c.model.sharedModel.source.trim()).every(c => c.model.executionCount !== null)"""
ERRORS = """() => window.jupyterapp.shell.currentWidget.content.widgets.filter(c => c.model.type === 'code')
  .flatMap(c => c.model.outputs.toJSON()).filter(o => o.output_type === 'error').map(o => o.evalue)"""


@pytest.fixture
def page(server):
    "The first tutorial, open, with an idle kernel; what goes wrong on the page is collected and must be nothing"
    sync_api = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM:
        pytest.skip("no chromium")
    url, _ = server
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport=dict(width=1440, height=1180))
        page.set_default_timeout(PATIENCE)
        problems = []
        page.on("pageerror", lambda e: problems.append(str(e)))
        page.on("request", lambda r: r.url.startswith((url, "data:", "blob:")) or problems.append(f"asks for {r.url}"))
        page.on("websocket", lambda w: w.url.startswith(url.replace("http", "ws")) or problems.append(f"asks {w.url}"))
        page.goto(f"{url}/lab/tree/{lab_module.FIRST}?token={TOKEN}&reset")
        page.wait_for_function(READY)
        yield page
        assert not problems, problems
        page.evaluate("() => { window.jupyterapp.serviceManager.sessions.shutdownAll() }")
        browser.close()


def picture(page, name):
    if SHOTS:
        SHOTS.mkdir(parents=True, exist_ok=True)
        page.locator(".mudpt-trainer").screenshot(path=SHOTS / f"{name}.png", timeout=PATIENCE)


def status(page, *wanted):
    page.wait_for_function("w => w.includes(document.querySelector('.mudpt-chip')?.textContent)", arg=list(wanted))


POINTS = """run => { const g = document.querySelector('.mudpt-trainer .js-plotly-plot');
  const t = g.data.findIndex(t => t.meta === run + '/loss/each');
  const drawn = t < 0 ? 0 : g.querySelectorAll('.scatterlayer .trace').length;
  return t < 0 || !drawn ? 0 : Math.min(g.data[t].x.length, g.querySelectorAll('.scatterlayer .point').length) }"""


def points(page, run=1):
    return page.evaluate(POINTS, run)


def more_than(page, n, run=1):
    page.wait_for_function(f"([run, n]) => ({POINTS})(run) > n", arg=[run, n])


# Contrast of text with what lies behind it, as WCAG counts it, for everything a person reads
CONTRAST = """() => {
  const rgb = s => (s.match(/[\\d.]+/g) ?? []).map(Number);
  const light = ([r, g, b]) => { const f = v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; return .2126 * f(r) + .7152 * f(g) + .0722 * f(b) };
  const behind = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c.length === 3 || c[3] > .9) return c } return [255, 255, 255] };
  const out = {};
  for (const q of ['h3', 'h4', '.widget-label', '.mudpt-side input[type=text]', '.mudpt-side select', '.mudpt-numbers span', '.mudpt-numbers b', '.mudpt-run-text b',
                   '.mudpt-quiet', '.mudpt-trouble', '.mudpt-said', '.js-plotly-plot .x3tick text', '.js-plotly-plot .annotation-text', 'button:not(.mudpt-dim)']) {
    const e = document.querySelector('.mudpt-trainer ' + q); if (!e) { out[q] = 'is not there'; continue }
    const s = getComputedStyle(e), ink = light(rgb(e instanceof SVGElement ? s.fill : s.color)), paper = light(behind(e));
    out[q] = (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05);
  }
  return out }"""


def legible(page):
    poor = {k: v for k, v in page.evaluate(CONTRAST).items() if not isinstance(v, float | int) or v < 4.5}
    assert not poor, poor


@pytest.mark.skipif(not CHROMIUM, reason="no chromium")
def test_the_prompt_trainer_in_jupyterlab(page, server):
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.wait_for_function(DONE)
    assert not page.evaluate(ERRORS)
    it = page.locator(".mudpt-trainer")
    button = lambda name: it.get_by_role("button", name=re.compile(f"{name}$"))  # an icon stands before the word
    field = lambda name: it.get_by_label(name, exact=True)
    page.wait_for_function("() => document.querySelector('.mudpt-trainer .js-plotly-plot')?.data?.length === 3")
    it.scroll_into_view_if_needed()
    picture(page, "1 idle")

    # by mouse: start, watch the points come, pause
    button("Start").click()
    status(page, "training")
    more_than(page, 4)
    more_than(page, points(page))
    button("Pause").click()
    status(page, "paused")
    page.wait_for_timeout(500)
    seen = points(page)
    page.wait_for_timeout(700)
    assert points(page) == seen
    assert it.get_by_role("progressbar").get_attribute("aria-valuenow") != "0"
    picture(page, "2 paused")

    # by keyboard, from where the focus still is: continue, one step, stop
    focused = "() => document.activeElement.textContent.trim()"
    assert page.evaluate(focused) == "Continue"
    page.keyboard.press("Space")
    status(page, "training")
    more_than(page, seen)
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "Step"
    page.keyboard.press("Enter")  # while it trains: pause after this step
    status(page, "paused")
    page.wait_for_timeout(500)
    step = "() => document.querySelector('.mudpt-numbers').innerText.match(/step\\s+(\\d+) of/)[1]"
    before = int(page.evaluate(step))
    page.keyboard.press("Enter")
    page.wait_for_function(f"n => ({step})() == n", arg=str(before + 1))
    status(page, "paused")
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "Stop"
    page.keyboard.press("Enter")
    status(page, "stopped")

    # a value that makes no sense is said at its field, and where Start was pressed; then it is mended
    field("Learning rate").fill("fast")
    page.keyboard.press("Tab")
    it.locator(".mudpt-said").get_by_text("Learning rate is 'fast'").wait_for()
    button("Start").click()
    it.locator(".mudpt-trouble").get_by_text("give a number").wait_for()
    picture(page, "3 wrong")
    legible(page)
    field("Learning rate").fill("")
    page.keyboard.press("Tab")
    it.locator(".mudpt-said").wait_for(state="detached")

    # another method, trained to the end over the first; the plan follows the choice; the kernel answers meanwhile
    field("Method").select_option("MaPLe")
    it.locator(".mudpt-plan svg[aria-label=MaPLe]").wait_for()
    field("Shots").fill("4")
    field("Epochs").fill("2")
    page.keyboard.press("Tab")
    button("Start").click()
    more_than(page, 1, run=2)
    run_cell = """i => { const nb = window.jupyterapp.shell.currentWidget.content; nb.activeCellIndex = i;
      window.jupyterapp.commands.execute('notebook:run-cell') }"""
    texts = "() => window.jupyterapp.shell.currentWidget.content.widgets.map(c => c.model.sharedModel.source)"
    at = next(i for i, text in enumerate(page.evaluate(texts)) if text.startswith("def told"))
    page.evaluate(run_cell, at)
    answer = "i => JSON.stringify(window.jupyterapp.shell.currentWidget.content.widgets[i].model.outputs.toJSON())"
    page.wait_for_function(f"i => ({answer})(i).includes('MaPLe(')", arg=at)
    status(page, "done")
    assert it.locator(".mudpt-run").count() == 2
    page.wait_for_function(
        "() => document.querySelector('.mudpt-trainer .js-plotly-plot').data.some(t => t.meta === '2/accuracy/new' && t.x.length === 3)"
    )
    assert it.locator(".mudpt-words tr").count() == 1 + 2  # two prompts, and what they are near to
    picture(page, "4 done")

    # hide the first run; save the second
    it.get_by_role("checkbox").last.wait_for()
    it.locator(".mudpt-run input[type=checkbox]").first.uncheck()
    page.wait_for_function(
        "() => document.querySelector('.mudpt-trainer .js-plotly-plot').data.find(t => t.meta === '1/loss/mean').visible === false"
    )
    it.locator(".mudpt-run input[type=checkbox]").first.check()
    button("Save").click()
    it.get_by_role("status").get_by_text("saved as").wait_for()
    assert list(server[1].glob("MaPLe-emoji-animals-4shots-seed1.safetensors"))

    # a run that fails says why, with the traceback folded away; all of it is legible in the dark theme too
    field("Shots").fill("1000")
    page.keyboard.press("Tab")
    button("Start").click()
    status(page, "failed")
    it.locator(".mudpt-trouble summary").click()
    it.locator(".mudpt-trouble pre").get_by_text("BadInput").first.wait_for()
    field("Learning rate").fill("fast")
    page.keyboard.press("Tab")
    it.locator(".mudpt-said").wait_for()
    page.evaluate("() => { window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'}) }")
    page.wait_for_function("() => document.body.dataset.jpThemeLight === 'false'")
    page.wait_for_timeout(1000)
    picture(page, "5 dark")
    legible(page)

    # and in a narrow window nothing sticks out
    page.set_viewport_size(dict(width=1000, height=1180))
    page.wait_for_timeout(1500)
    inside = "() => { const g = document.querySelector('.mudpt-trainer .js-plotly-plot'); return g.getBoundingClientRect().right <= g.closest('.mudpt-main').getBoundingClientRect().right + 1 }"
    page.wait_for_function(inside)
    picture(page, "6 narrow")
