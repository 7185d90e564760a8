"""The documentation builds, and a reader without a network gets all of it: links, styles, formulas, search."""

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = "--no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-background-networking".split()
LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}  # fetched with the page
pytestmark = pytest.mark.xdist_group("site")


class Page(HTMLParser):
    "What a page names (ids), points at (links) and loads by itself (loads)."

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.loads = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.ids |= {a[k] for k in ("id", "name") if a.get(k)}
        self.links += [a[k] for k in ("href", "src") if a.get(k)]
        if a.get(LOADED.get(tag)) and a.get("rel") not in ("canonical", "index", "search", "next", "prev"):
            self.loads.append(a[LOADED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("site")
    build = [sys.executable, ROOT / "docs" / "build.py", "--engine", "sphinx", "--no-execute"]
    run = subprocess.run([*build, "--out", tmp / "out", "--work", tmp / "src"], capture_output=True, text=True)
    if run.returncode:
        pytest.fail(f"docs/build.py ended with {run.returncode}:\n{(run.stdout + run.stderr)[-4000:]}", pytrace=False)
    return tmp / "out"


@pytest.fixture(scope="module")
def pages(site):
    found = {p: Page(p.read_text(encoding="utf-8")) for p in site.rglob("*.html") if "_static" not in p.parts}
    assert site / "index.html" in found
    return found


def test_every_notebook_has_a_page(pages):
    notebooks = [p for p in (ROOT / "nbs").rglob("*.ipynb") if not any(d.startswith(("_", ".")) for d in p.parts[-2:])]
    assert len(pages) >= len(notebooks)


def test_links_lead_somewhere(pages, site):
    bad = []
    for page, seen in pages.items():
        for link in seen.links:
            u = urlsplit(link)
            if u.scheme or u.netloc:
                continue
            target = (page.parent / unquote(u.path)).resolve() if u.path else page
            lost = u.fragment and target in pages and unquote(u.fragment) not in pages[target].ids
            if not target.exists() or lost:
                bad.append(f"{page.relative_to(site)} -> {link}")
    assert not bad, bad


def test_nothing_is_loaded_from_elsewhere(pages, site):
    bad = [f"{p.relative_to(site)} loads {x}" for p, seen in pages.items() for x in seen.loads if urlsplit(x).netloc]
    assert not bad, bad


@pytest.mark.skipif(not CHROMIUM, reason="no chromium")
def test_browser_finds_nothing_missing(pages, site):
    sync_api = pytest.importorskip("playwright.sync_api")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url, problems = f"http://127.0.0.1:{server.server_port}", []
    try:
        with sync_api.sync_playwright() as play:
            browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            tab = browser.new_page()
            tab.on("request", lambda r: r.url.startswith(("data:", url)) or problems.append(f"asks for {r.url}"))
            tab.on("response", lambda r: r.status < 400 or "favicon" in r.url or problems.append(f"{r.status} {r.url}"))
            tab.on("pageerror", lambda e: problems.append(str(e)))
            for page in sorted(pages):
                tab.goto(f"{url}/{page.relative_to(site).as_posix()}")
            tab.goto(f"{url}/search.html?q=prompt")
            tab.wait_for_selector("#search-results li a")
            browser.close()
    finally:
        server.shutdown()
    assert not problems, problems


def test_plotly_figures_become_pages_that_draw_themselves(tmp_path):
    go = pytest.importorskip("plotly.graph_objects")
    nbformat = pytest.importorskip("nbformat")
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import plots
    finally:
        sys.path.remove(str(ROOT / "docs"))
    fig = go.Figure(go.Bar(y=[1, 3, 2])).to_plotly_json()
    out = nbformat.v4.new_output
    cells = [nbformat.v4.new_code_cell("fig", outputs=[out("display_data", data={plots.JSON: fig})]) for _ in range(2)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "a.ipynb")
    assert plots.drawn(tmp_path / "a.ipynb") and not plots.drawn(tmp_path / "a.ipynb")
    html = "".join(o["data"]["text/html"] for c in nbformat.read(tmp_path / "a.ipynb", 4).cells for o in c.outputs)
    assert html.count(plots.SCRIPT) == 1 and html.count("plotly-graph-div") == 2 and "https://cdn" not in html
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.html").write_text(html, encoding="utf-8")
    assert plots.supply(tmp_path) == 1 and (tmp_path / "sub" / plots.SCRIPT).stat().st_size > 1e6
