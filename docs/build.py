"""Build the documentation: python docs/build.py [--engine auto|quarto|sphinx] [--no-execute] [--out _docs]

One path up to the last step, so that a check without Quarto sees what a Quarto user gets:
  1. copy the project to build/docs-src (nothing is ever written to the tracked notebooks)
  2. execute the notebooks, several kernels at a time; figures of plotly become HTML
  3. nbdev's own processing into _proc/ (show_doc, hidden cells, links)
  4. render: `quarto render` where Quarto is installed, else Sphinx with MyST-NB, which needs no network at all
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from configparser import ConfigParser
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from plots import drawn, still, supply

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PICTURES = ".png", ".svg"


def settings():
    cfg = ConfigParser(delimiters=["="])
    cfg.read(ROOT / "settings.ini", encoding="utf-8")
    return cfg["DEFAULT"]


def run(*args, cwd, **env):
    print("+", *map(str, args), flush=True)
    subprocess.run(list(map(str, args)), cwd=cwd, check=True, env={**os.environ, **env})


def copy_sources(src, cfg):
    shutil.rmtree(src, ignore_errors=True)
    src.mkdir(parents=True)
    junk = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "_test_*")
    for name in ("nbs", cfg["lib_path"]):
        shutil.copytree(ROOT / name, src / name, symlinks=True, ignore=junk)
    shutil.copy(ROOT / "settings.ini", src)
    for p in kept():  # pages read and show what was measured
        (src / p).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / p, src / p)
    text = (ROOT / "index.ipynb").read_text(encoding="utf-8")
    (src / "index.ipynb").write_text(from_site(text, f"{cfg['git_url']}/blob/{cfg['branch']}"), encoding="utf-8")


def kept(kinds=(*PICTURES, ".json")):
    "Pictures and numbers that stand beside the documentation, as paths from the top of the project."
    return [p.relative_to(ROOT) for p in sorted((ROOT / "docs").rglob("*")) if p.suffix in kinds]


def from_site(text, repository):
    """index.ipynb stands at the top of the repository but among the pages of the site: its links move with it.
    Its pictures come along."""
    files = "|".join(re.escape(p.name) for p in ROOT.iterdir() if p.is_file())
    files += r"|(?:docs|scripts|tests)/[\w./-]+" + "".join(rf"(?<!{re.escape(kind)})" for kind in PICTURES)
    return re.sub(rf"\]\(({files})\)", rf"]({repository}/\1)", text.replace("](nbs/", "]("))


def place(src, site):
    "Put the pictures where index.ipynb looks for them."
    for p in kept(PICTURES):
        (site / p).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(src / p, site / p)


def skipped(cell, flags):
    "Cells nobody runs: marked `#| eval: false`, or with a flag from settings.ini (tst_flags)."
    marks = [line[2:].split() for line in cell.source.splitlines() if line.startswith("#|")]
    return ["eval:", "false"] in marks or any(m and m[0] in flags for m in marks)


def execute(path, flags, env):
    start, nb = time.time(), nbformat.read(path, as_version=4)
    for c in nb.cells:
        if c.cell_type == "code" and skipped(c, flags):
            c.metadata["tags"] = ["skip-execution"]
    client = NotebookClient(nb, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}})
    try:
        client.execute(env={**os.environ, **env, "IN_TEST": "1"})
    except Exception as e:
        raise RuntimeError(f"{path.name} does not run through") from e
    for c in nb.cells:
        if c.cell_type == "code":
            still(c)
        c.metadata.pop("tags", None)
        c.metadata.pop("execution", None)
    nbformat.write(nb, path)
    print(f"{path.name}: {time.time() - start:.1f} s", flush=True)


def execute_all(pages, flags, env, jobs):
    "Several at a time, for most of a page's seconds go into importing PyTorch. The first that fails ends it."
    with ThreadPoolExecutor(jobs) as pool:
        runs = [pool.submit(execute, p, flags, env) for p in pages]
        try:
            for r in as_completed(runs):
                r.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--engine", choices=["auto", "quarto", "sphinx"], default="auto")
    ap.add_argument("--out", type=Path, default=ROOT / "_docs")
    ap.add_argument("--work", type=Path, default=ROOT / "build" / "docs-src", help="where the sources are prepared")
    ap.add_argument("--no-execute", action="store_true", help="show the outputs stored in the notebooks")
    ap.add_argument("--execute", nargs="+", metavar="PAGE", help="run these pages only, such as 41b_curves.ipynb")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ap.add_argument("--jobs", type=int, default=min(4, cores), help="pages that are run at a time (1 to 2 GB each)")
    a = ap.parse_args()
    cfg, src, out = settings(), a.work.resolve(), a.out.resolve()
    engine = a.engine if a.engine != "auto" else "quarto" if shutil.which("quarto") else "sphinx"
    copy_sources(src, cfg)
    env = dict(PYTHONPATH=str(src))
    pages = [
        p
        for p in sorted(src.glob("nbs/**/*.ipynb"))
        if not any(d.startswith(("_", ".")) for d in p.relative_to(src).parts)
    ]
    to_run = [p for p in pages if (p.name in a.execute if a.execute else not a.no_execute)]
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // a.jobs))
    execute_all(to_run, set(cfg["tst_flags"].split()), {**env, "OMP_NUM_THREADS": threads}, a.jobs)
    for p in pages:
        drawn(p)
    run(sys.executable, HERE / "process_nbs.py", cwd=src, **env)
    if engine == "quarto":
        place(src, src / "_proc")
        run("quarto", "render", "--no-cache", cwd=src / "_proc")
        made = src / "_proc" / "_docs"
    else:
        run(sys.executable, HERE / "to_sphinx.py", src / "_proc", src / "_sphinx", cwd=src)
        place(src, src / "_sphinx")
        flags = "-q -W --keep-going -j 2 -b html".split()
        run(sys.executable, "-m", "sphinx", *flags, src / "_sphinx", src / "_html", cwd=src)
        made = src / "_html"
    shutil.rmtree(out, ignore_errors=True)
    shutil.move(made, out)
    supply(out)
    print(f"{engine}: {len(list(out.rglob('*.html')))} pages in {out}")


if __name__ == "__main__":
    main()
