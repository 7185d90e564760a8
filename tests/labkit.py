"""JupyterLab, Notebook 7 and Chromium for the tests of instruments: one server, any tutorial, and what must hold on
every page.

    def test_it(lab):                                  # `lab`, of conftest.py: JupyterLab, started once for all tests
        with notebook(lab, "some_tutorial.ipynb") as page:
            run_all(page)                              # Run All Cells, to the end and without an error
            ...
            assert legible(page, ".mudpt-trainer", ["h3", "button"])
        with notebook(lab, "some_tutorial.ipynb", at=NOTEBOOK7) as page:
            ...

Nothing leaves the machine: any request to another host fails the test, and so does an error of the page's scripts.
"""

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from mudpt import lab as lab_module

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
TOKEN, PATIENCE = "not-a-secret", 300_000  # milliseconds; a crowded machine is slow, and nothing here is timed
SHOTS = Path(os.environ["MUDPT_SHOTS"]) if os.environ.get("MUDPT_SHOTS") else None  # where pictures go, to be looked at
LAB, NOTEBOOK7 = "lab/tree", "notebooks"  # pages of the same server
SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {"checkForUpdates": False, "fetchNews": "false"},
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none", "autoStartDefaultKernel": True},
    "@jupyterlab/docmanager-extension/plugin": {"autosave": False},
}


@contextmanager
def jupyterlab(home):  # .url, and .work: the folder of its notebooks
    "JupyterLab as `mudpt lab` starts it; configuration, settings and notebooks in a temporary folder"
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
    more += ["--JupyterNotebookApp.expose_app_in_browser=True"]
    more += ["--ServerApp.ip=127.0.0.1", "--ServerApp.port_retries=0", "--LabApp.news_url=None"]
    with open(home / "log", "w") as log:
        command = lab_module.start_command(home / "work", port, browser=False) + more
        process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + PATIENCE / 1000
    try:
        while True:
            if process.poll() is not None or time.monotonic() > end:
                pytest.fail("JupyterLab did not start:\n" + (home / "log").read_text()[-3000:], pytrace=False)
            try:
                urllib.request.urlopen(f"{url}/api/status?token={TOKEN}", timeout=5).read()
                break
            except OSError:
                time.sleep(0.25)
        yield SimpleNamespace(url=url, work=home / "work")
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


# Notebook 7 itself misses a schema of its settings now and then, and has no file browser to open a path in.
# anywidget gives a script two seconds to start, which a busy machine may not; a widget that is then not on the screen
# is missed by the test that wants to use it.
NOTEBOOKS_OWN = "reading 'schema'", "Command 'filebrowser:open-path' not registered"


def hosts_own(at, e):
    "Is this complaint the host's own?"
    return "[anywidget] Failed to initialize model" in str(e) or at == NOTEBOOK7 and any(w in str(e) for w in NOTEBOOKS_OWN)


@contextmanager
def notebook(lab, name, width=1440, height=1180, at=LAB):
    "A notebook, open, with an idle kernel; what goes wrong on the page is collected and must be nothing"
    sync_api = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM:
        pytest.skip("no chromium")
    ours = lab.url, "data:", "blob:"
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport=dict(width=width, height=height))
        page.set_default_timeout(PATIENCE)
        problems = []
        page.on("pageerror", lambda e: hosts_own(at, e) or problems.append(f"{e}\n{e.stack}"))
        page.on("request", lambda r: r.url.startswith(ours) or problems.append(f"asks for {r.url}"))
        page.on(
            "websocket", lambda w: w.url.startswith(lab.url.replace("http", "ws")) or problems.append(f"asks {w.url}")
        )
        page.goto(f"{lab.url}/{at}/{name}?token={TOKEN}&reset")
        page.wait_for_function(READY)
        yield page
        assert not problems, problems
        page.evaluate("() => { window.jupyterapp.serviceManager.sessions.shutdownAll() }")
        browser.close()


def run_all(page):
    "Run All Cells, to the end and without an error"
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.wait_for_function(DONE)
    assert not page.evaluate(ERRORS)


def dark(page):
    "JupyterLab's dark theme"
    page.evaluate("() => { window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'}) }")
    page.wait_for_function("() => document.body.dataset.jpThemeLight === 'false'")
    page.wait_for_timeout(1000)


def picture(page, name, of=None):
    "Keep what is on the screen, to be looked at: all of it, or one element"
    if SHOTS:
        SHOTS.mkdir(parents=True, exist_ok=True)
        (page.locator(of).first if of else page).screenshot(path=SHOTS / f"{name}.png", timeout=PATIENCE)


# Contrast of text with what lies behind it, as WCAG counts it
CONTRAST = """([of, what]) => {
  const rgb = s => { const v = (s.match(/[\\d.]+/g) ?? []).map(Number); return s.startsWith('color(') ? v.map((x, i) => i < 3 ? 255 * x : x) : v };
  const light = ([r, g, b]) => { const f = v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; return .2126 * f(r) + .7152 * f(g) + .0722 * f(b) };
  const behind = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c.length === 3 || c[3] > .9) return c } return [255, 255, 255] };
  return Object.fromEntries(what.map(q => {
    const e = document.querySelector(of + ' ' + q); if (!e) return [q, 'is not there'];
    const s = getComputedStyle(e), ink = light(rgb(e instanceof SVGElement ? s.fill : s.color)), paper = light(behind(e));
    return [q, (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05)];
  })) }"""


def legible(page, of, what):  # CSS of the instrument; CSS of what a person reads in it
    "Does every text stand out from what lies behind it? Says which does not"
    found = page.evaluate(CONTRAST, [of, list(what)])
    poor = {k: v for k, v in found.items() if not isinstance(v, float | int) or v < 4.5}
    assert not poor, poor
    return True
