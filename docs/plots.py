"""Plotly's outputs for a page without a kernel: their JSON, which no docs engine draws, becomes HTML that draws itself
with the copy of plotly.js beside the page. No network is asked for anything."""

import nbformat

JSON = "application/vnd.plotly.v1+json"
SCRIPT = "plotly.min.js"


def drawn(path):
    "Rewrite the plotly outputs of one notebook; true if it had any."
    nb = nbformat.read(path, as_version=4)
    outputs = [o for c in nb.cells if c.cell_type == "code" for o in c.outputs if JSON in o.get("data", {})]
    for i, o in enumerate(outputs):
        o["data"] = {"text/html": as_html(o["data"][JSON], first=i == 0)}
    if outputs:
        nbformat.write(nb, path)
    return bool(outputs)


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
