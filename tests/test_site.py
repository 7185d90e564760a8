"""The documentation builds, and a reader without a network gets all of it: links, styles, formulas, figures, search."""

import ast
import functools
import http.server
import json
import os
import re
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
# The one page that is run here, for its figures; all the others are run by other tests
DRAWN = "what_a_step_costs.ipynb"
pytestmark = pytest.mark.xdist_group("site")


class Page(HTMLParser):
    "What a page names (ids), points at (links), loads by itself (loads) and says (text, and where ids stand in it)."

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.loads, self.text, self.at = set(), [], [], "", {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        named = {a[k] for k in ("id", "name") if a.get(k)}
        self.ids |= named
        self.at |= {i: len(self.text) for i in named - self.at.keys()}
        self.links += [a[k] for k in ("href", "src") if a.get(k)]
        if a.get(LOADED.get(tag)) and a.get("rel") not in ("canonical", "index", "search", "next", "prev"):
            self.loads.append(a[LOADED[tag]])

    def handle_data(self, data):
        self.text += plain(data)


def plain(text):
    "Letters and digits: how quotes, dashes and line ends are set does not matter."
    return re.sub(r"[\W_]+", "", text)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("site")
    build = [sys.executable, ROOT / "docs" / "build.py", "--engine", "sphinx", "--execute", DRAWN]
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


def test_the_book_is_told_in_order(site, monkeypatch):
    front = (site / "index.html").read_text(encoding="utf-8")
    at = [front.index(f'href="{p}.html"') for p in ("tutorials/first_prompts", "explanations/four_orders", "core")]
    assert at == sorted(at)
    monkeypatch.syspath_prepend(ROOT / "docs")
    from process_nbs import TOLD

    for part, pages in TOLD.items():
        assert sorted(pages) == sorted(p.stem for p in (ROOT / "nbs" / part).glob("*.ipynb")), f"the order of {part}"


@pytest.fixture(scope="module")
def places():
    "Where nbdev says that names stand: {module: {name: (page#anchor, file)}}"
    index = {}
    exec((ROOT / "mudpt" / "_modidx.py").read_text(encoding="utf-8"), index)
    return index["d"]["syms"]


def test_every_public_name_stands_on_its_page_with_its_words_errors_and_source(pages, places, site, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    import api

    missing, library = [], api.Library()
    for s in library.symbols.values():
        name = f"mudpt.{s.module}.{s.name}"
        at = places.get(f"mudpt.{s.module}", {}).get(name, ("nowhere", ""))[0]
        at = at.replace("search.html#", "searches.html#")  # the name of the search itself
        page, anchor = pages.get(site / at.split("#")[0]), at.split("#")[-1]
        if page is None or anchor not in page.ids:
            missing.append(f"{name}: not at {at}")
            continue
        shown = page.text[page.at[anchor] :]
        words = [p.name for p in s.parameters] + [p.found for p in s.parameters if p.found and not p.says]
        words += [s.sentence.splitlines()[0] if s.sentence else ""]
        words += [m[:60].split("…")[0] for _, m in s.raises] + [c for c, _ in s.raises] + [s.source]
        missing += [f"{name}: {w!r}" for w in words if plain(w.strip("`")) not in shown]
    assert not missing, missing


def test_names_stand_in_the_order_of_the_code(pages, places, site):
    turned, held, known = [], 0, 0
    for module, names in places.items():
        code = ast.parse((ROOT / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8"))
        defined = [n.name for n in code.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name[0] != "_"]
        at = []
        for n in (n for n in defined if f"{module}.{n}" in names and defined.count(n) == 1):
            page, anchor = names[f"{module}.{n}"][0].split("#")
            here = pages.get(site / page)
            known += 1
            # where a title or another name differs in capitals only, the place is theirs
            if here and here.text[here.at.get(anchor, 0) :].startswith(plain(n) + "source"):
                at.append(here.at[anchor])
        held += len(at)
        turned += [module] if at != sorted(at) else []
    assert not turned and held > 0.9 * known, (turned, held, known)


def told(source):
    "Paragraphs of a markdown cell as a reader sees them: the first words of each, without marks, links and formulas"
    for part in re.split(r"\n\s*\n", source):
        if re.match(r"\s*([#>|`$!:-]|\*{3}|\d+\.| {4})", part) or "\n    " in part:
            continue
        text = re.sub(r"</?kbd>", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", part)).split("$")[0]
        if len(plain(text)) > 20:
            yield plain(text)[:60]


def test_what_is_told_is_on_the_page(pages, site):
    lost = []
    titles = {p.read_text(encoding="utf-8").partition("<title>")[2].partition("</title>")[0]: p for p in pages}
    for nb in (ROOT / "nbs").rglob("*.ipynb"):
        if any(d.startswith(("_", ".")) for d in nb.relative_to(ROOT).parts):
            continue
        cells = [c for c in json.loads(nb.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "markdown"]
        name = re.match(r"# (.+)", "".join(cells[0]["source"]))[1]
        page = titles.get(min((t for t in titles if plain(t).startswith(plain(name))), key=len, default=None))
        if page is None:
            lost.append(f"{nb.name}: no page called {name}")
            continue
        lost += [f"{nb.name}: {t}" for c in cells for t in told("".join(c["source"])) if t not in pages[page].text]
    assert not lost, lost


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


@pytest.fixture(scope="module")
def browsed(site):
    "A browser on the site: (tab, address, what it complained of so far)"
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
            tab.on(
                "request", lambda r: r.url.startswith(("data:", "blob:", url)) or problems.append(f"asks for {r.url}")
            )
            tab.on("response", lambda r: r.status < 400 or "favicon" in r.url or problems.append(f"{r.status} {r.url}"))
            tab.on("pageerror", lambda e: problems.append(f"{tab.url}: {e}"))
            tab.on(
                "console",
                lambda m: m.type != "error" or "favicon" in str(m.location) or problems.append(f"{tab.url}: {m.text}"),
            )
            yield tab, url, problems
            browser.close()
    finally:
        server.shutdown()


@pytest.mark.skipif(not CHROMIUM, reason="no chromium")
def test_browser_finds_nothing_missing(pages, site, browsed):
    tab, url, problems = browsed
    for page in sorted(pages):
        tab.goto(f"{url}/{page.relative_to(site).as_posix()}")
    tab.goto(f"{url}/search.html?q=prompt")
    tab.wait_for_selector("#search-results li a")
    assert not problems, problems


HOVER = """() => { const g = document.querySelector('.js-plotly-plot'), t = g._fullData.find(t => t.x.length > 2), l = g._fullLayout;
  g.scrollIntoView({ block: 'center', behavior: 'instant' });
  const a = l['xaxis' + t.xaxis.slice(1)], b = l['yaxis' + t.yaxis.slice(1)], r = g.getBoundingClientRect();
  return [r.x + a._offset + a.d2p(t.x[1]), r.y + b._offset + b.d2p(t.y[1]), t.name] }"""


@pytest.mark.skipif(not CHROMIUM, reason="no chromium")
def test_a_figure_answers_the_mouse(browsed):
    tab, url, problems = browsed
    tab.goto(f"{url}/explanations/{Path(DRAWN).stem}.html")
    tab.wait_for_selector(".js-plotly-plot .scatterlayer .point, .js-plotly-plot .scatterlayer .js-line")
    x, y, name = tab.evaluate(HOVER)
    tab.mouse.move(x - 30, y)
    tab.mouse.move(x, y, steps=6)
    said = tab.locator(".hoverlayer .hovertext").first
    said.wait_for()
    assert name in tab.locator(".hoverlayer").first.text_content()
    assert not problems, problems


def test_plotly_figures_become_pages_that_draw_themselves(tmp_path, monkeypatch):
    go = pytest.importorskip("plotly.graph_objects")
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.syspath_prepend(ROOT / "docs")
    import plots

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


def test_a_widget_becomes_a_picture(monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.syspath_prepend(ROOT / "docs")
    import plots

    def shown(source, **more):
        data = {plots.WIDGET: {"model_id": "a"}, "text/plain": "VBox(...)", **more}
        cell = nbformat.v4.new_code_cell(source, outputs=[nbformat.v4.new_output("display_data", data=data)])
        plots.still(cell)
        return cell.outputs

    assert shown("x = 1\nx", **{"image/png": "own"})[0].data == {
        "image/png": "own",
        "text/plain": "A picture of a widget",
    }
    said, known = shown("t = PromptTrainer()\nt")
    assert "JupyterLab" in said.text and 10_000 < len(known.data["image/png"]) < 300_000
    assert list(shown("x = 1\nx")[0].data) == ["text/plain"]
