"""Run one notebook's own checks against the installed library: python tests/run_notebook.py NOTEBOOK

Exported cells are replaced by the module's names, so what is checked is the file users import
(`nbdev_test`, by contrast, runs the notebook's own copies).

With --serve, notebooks are named on standard input, and each runs in a fork of this process: nothing of one is left for
the next, and what takes longest for a short page, importing packages that are not ours, is done once.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from execnb.shell import CaptureShell
from nbdev.config import get_config
from nbdev.process import NBProcessor

EXPORTS = {"export", "exports", "exporti"}
TAKE_NAMES = """import importlib as _i
globals().update({{k: v for k, v in vars(_i.import_module("{module}")).items() if not k.startswith("__")}})"""


def library_mode(path, lib):
    "The notebook, its exported cells replaced by the names of the modules they make."
    nb = NBProcessor(path, rm_directives=False).nb
    default = next((c.directives_["default_exp"][0] for c in nb.cells if "default_exp" in c.directives_), None)
    seen = set()
    for c in nb.cells:
        hit = EXPORTS & set(c.directives_)
        if c.cell_type == "code" and hit:
            args = c.directives_[hit.pop()]
            module = f"{lib}.{args[0] if args else default}"
            c.source = "pass" if module in seen else TAKE_NAMES.format(module=module)
            seen.add(module)
    return nb


def skipper(flags):
    "Cells nobody runs: marked `#| eval: false`, or with a flag from settings.ini (tst_flags)."

    def skip(cell):
        directives = getattr(cell, "directives_", {}) or {}
        return directives.get("eval:", [""])[0].lower() == "false" or bool(flags & directives.keys())

    return skip


def main(path):
    cfg = get_config(path=path.parent)
    os.environ["IN_TEST"] = "1"
    os.chdir(path.parent)
    shell = CaptureShell(path)
    try:
        skip = skipper(set(cfg.tst_flags.split()))
        shell.run_all(library_mode(path, cfg.lib_path.name), exc_stop=True, preproc=skip)
    except Exception:
        sys.exit(shell.prettytb(fname=path))


def serve(minutes):
    "Answers each line [notebook, file for its complaints] with an exit code. Returns in the forks alone: what to run"
    import open_clip  # noqa: F401
    import pandas  # noqa: F401
    import plotly.graph_objects  # noqa: F401
    import torchvision  # noqa: F401

    while line := sys.stdin.readline():
        path, complaints = json.loads(line)
        if not (child := os.fork()):
            for fd, where in (0, os.devnull), (1, os.devnull), (2, complaints):
                os.dup2(os.open(where, os.O_RDWR | os.O_CREAT), fd)
            return Path(path)
        end = time.monotonic() + 60 * minutes
        while not (done := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.05)
        print(os.waitstatus_to_exitcode(done[1]), flush=True)


if __name__ == "__main__":
    what = serve(float(sys.argv[2])) if sys.argv[1] == "--serve" else Path(sys.argv[1])
    if what:
        main(what.absolute())
