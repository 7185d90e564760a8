"""Outputs that need a kernel or a script, for pages that have neither. Plotly's JSON, which no docs engine draws, becomes
HTML that draws itself with the copy of plotly.js beside the page, or a picture; a widget becomes its picture. No network
is asked for anything."""

import base64
import io
import os
import shutil
from pathlib import Path

import nbformat

JSON = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
SCRIPT = "plotly.min.js"
PICTURES = Path(__file__).resolve().parent / "pictures"
AT_WORK = {  # made in JupyterLab
    "PromptTrainer(": "trainer.png",
    "AlignmentExplorer(": "alignment_explorer.png",
    "Sequel(trainer, AttentionExplorer)": "attention_explorer.png",
    "Sequel(trainer, AlignmentExplorer)": "alignment_explorer.png",
}
WIDE = 1000  # Pixels; more is lost on a page
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = "--no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-background-networking".split()


def drawn(path):
    "Rewrite the plotly outputs of one notebook; true if it had any."
    nb = nbformat.read(path, as_version=4)
    outputs = having(nb, JSON)
    for i, o in enumerate(outputs):
        o["data"] = {"text/html": as_html(o["data"][JSON], first=i == 0)}
    if outputs:
        nbformat.write(nb, path)
    return bool(outputs)


def having(nb, kind):
    "Outputs of one kind in a notebook."
    return [o for c in nb.cells if c.cell_type == "code" for o in c.outputs if kind in o.get("data", {})]


def as_html(fig, first):
    import plotly.io as pio

    script = f'<script charset="utf-8" src="{SCRIPT}"></script>\n' if first else ""
    config = dict(displaylogo=False, responsive=True)
    return script + pio.to_html(fig, include_plotlyjs=False, full_html=False, validate=False, config=config)


def supply(site):
    "Put plotly.js beside every page that draws with it."
    from plotly.offline import get_plotlyjs

    folders = {p.parent for p in site.rglob("*.html") if "plotly-graph-div" in p.read_text(encoding="utf-8")}
    for folder in folders:
        (folder / SCRIPT).write_text(get_plotlyjs(), encoding="utf-8")
    return len(folders)


def still(cell):
    "A widget of a cell becomes a picture: its own where it brings one, else that of its kind at work, else a sentence."
    outputs = []
    for o in cell.outputs:
        data = o.get("data", {})
        if WIDGET in data:
            known = next((PICTURES / f for word, f in AT_WORK.items() if word in cell.source), None)
            own = data.get("image/png")
            if not own and known:
                said = "A picture of the instrument at work; here it needs a kernel: run this page in JupyterLab."
                outputs.append(nbformat.v4.new_output("stream", name="stdout", text=said + "\n"))
            picture = own or (smaller(known.read_bytes()) if known else "")
            o["data"] = {"text/plain": "A widget: run this page in JupyterLab to use it."}
            o["data"] |= {"image/png": picture, "text/plain": "A picture of a widget"} if picture else {}
        outputs.append(o)
    cell.outputs = outputs


def smaller(png):
    "A picture as a page needs it, in base64: not too wide, and with as many colours as the eye finds."
    from PIL import Image

    im, out = Image.open(io.BytesIO(png)).convert("RGBA"), io.BytesIO()
    if im.width > WIDE:
        im = im.resize((WIDE, round(im.height * WIDE / im.width)), Image.Resampling.LANCZOS)
    im = im.quantize(256, Image.Quantize.FASTOCTREE) if im.getextrema()[3][0] < 255 else im.convert("RGB").quantize(256)
    im.save(out, "png", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def photographed(nb):
    "Plotly's outputs become pictures, drawn in a browser."
    outputs = having(nb, JSON)
    if not outputs:
        return
    from playwright.sync_api import sync_playwright
    from plotly.offline import get_plotlyjs

    if not CHROMIUM:
        raise SystemExit("a figure has to be drawn in a browser: install Chromium, or say where it is with CHROMIUM=")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        tab = browser.new_page()
        tab.add_script_tag(content=get_plotlyjs())
        for o in outputs:
            fig = o["data"][JSON]
            layout = fig.get("layout", {})
            size = dict(width=layout.get("width") or 900, height=layout.get("height") or 420)
            url = tab.evaluate(
                "([fig, size]) => Plotly.toImage({data: fig.data, layout: fig.layout}, {format: 'png', scale: 1.5, ...size})",
                [fig, size],
            )
            picture = smaller(base64.b64decode(url.split(",", 1)[1]))
            o["data"] = {"image/png": picture, "text/plain": "A figure: run this page to point at it."}
            o["metadata"] = {"image/png": {"width": min(size["width"], WIDE)}}
        browser.close()
