"""Run one notebook's own checks against the installed library: python tests/run_notebook.py NOTEBOOK

Exported cells are replaced by the module's names, so what is checked is the file users import
(`nbdev_test`, by contrast, runs the notebook's own copies).
"""

import os
import sys
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


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
