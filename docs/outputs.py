"""Store what the tutorials show, for readers without a kernel: python docs/outputs.py [NAME ...]

Each tutorial is run from top to bottom in a kernel of its own, offline, with one thread, in an empty folder; what it
showed is written into it, whole or not at all. Figures and widgets become pictures. The notebook remembers which code
its outputs are of, and a test fails when the code has changed since. `mudpt lab` brings copies without outputs.
"""

import argparse
import base64
import copy
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TUTORIALS = ROOT / "nbs" / "tutorials"
PACKED = ROOT / "mudpt" / "assets" / "lab"
KEY = "outputs"  # In the notebook's metadata; settings.ini tells nbdev_clean to leave it
MOST = 600_000  # Bytes of a notebook


def code_of(nb):
    "A fingerprint of everything that was run."
    source = ["".join(c["source"]) for c in nb["cells"] if c["cell_type"] == "code"]
    return hashlib.sha256("\0".join(source).encode()).hexdigest()[:16]


def bare(nb):
    "The same notebook as nobody has run it."
    nb = copy.deepcopy(nb)
    nb["metadata"].pop(KEY, None)
    for c in nb["cells"]:
        if c["cell_type"] == "code":
            c["outputs"], c["execution_count"] = [], None
    return nb


def clean(nb):
    "The text of a notebook as nbdev_clean leaves it."
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.ipynb"
        nbformat.write(nb, path)
        subprocess.run(["nbdev_clean", "--fname", path], cwd=ROOT, check=True)
        text = path.read_text(encoding="utf-8")
    assert json.loads(text)["metadata"].get(KEY) == nb["metadata"].get(KEY), "settings.ini: allowed_metadata_keys"
    return text


def write(path, text):
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def last_lines(text):
    "What remains on a terminal of lines that were written over."
    return re.sub(r"[^\n]*\r(?!\n)", "", text)


def executed(path):
    from nbclient import NotebookClient
    from plots import WIDGET, having, photographed, smaller, still

    nb = bare(nbformat.read(path, as_version=4))
    quiet = dict.fromkeys(["OMP_NUM_THREADS", "MKL_NUM_THREADS", "MUDPT_OFFLINE"], "1")
    with tempfile.TemporaryDirectory() as folder:
        here, scratch = Path(folder) / "here", Path(folder) / "tmp"
        here.mkdir()
        scratch.mkdir()
        client = NotebookClient(nb, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(here)}})
        client.execute(env={**os.environ, **quiet, "IN_TEST": "1", "TMPDIR": str(scratch)})
        for c in nb.cells:
            c.metadata.clear()
            if c.cell_type != "code":
                continue
            c.execution_count = None
            c.outputs = [o for o in c.outputs if o.output_type != "stream" or o.name == "stdout"]
            still(c)
            for o in c.outputs:
                if o.output_type == "stream":
                    o.text = last_lines(o.text).replace(str(scratch), "/tmp").replace(str(here), "/tmp")
                for kind in [k for k in o.get("data", {}) if k.startswith("text/")]:
                    o.data[kind] = o.data[kind].replace(str(scratch), "/tmp").replace(str(here), "/tmp")
                if len(o.get("data", {}).get("image/png", "")) > 100_000:
                    o.data["image/png"] = smaller(base64.b64decode(o.data["image/png"]))
    photographed(nb)
    assert not having(nb, WIDGET)
    nb.metadata.pop("widgets", None)
    nb.metadata[KEY] = {"of": code_of(nb)}
    text = clean(nb)
    if len(text.encode()) > MOST:
        raise SystemExit(f"{path.name} would have {len(text.encode()):,} bytes, {MOST:,} are allowed: show less")
    if str(ROOT) in text:
        raise SystemExit(f"{path.name} shows '{ROOT}', which is nobody's business: show less")
    return text


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("names", nargs="*", help="tutorials, without .ipynb; none: all")
    ap.add_argument("--pack", action="store_true", help="run nothing: renew the copies that `mudpt lab` brings")
    a = ap.parse_args()
    paths = [TUTORIALS / f"{n}.ipynb" for n in a.names] or sorted(TUTORIALS.glob("[!_]*.ipynb"))
    for p in paths:
        start = time.time()
        if not a.pack:
            write(p, executed(p))
            print(f"{p.name}: {time.time() - start:.0f} s, {p.stat().st_size / 1e3:.0f} kB", flush=True)
        if (PACKED / p.name).exists():
            write(PACKED / p.name, clean(bare(nbformat.read(p, as_version=4))))


if __name__ == "__main__":
    sys.exit(main())
