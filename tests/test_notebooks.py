"""Every notebook runs from top to bottom against the exported library, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NBS = HERE.parent / "nbs"
MINUTES = 10


def tracked(path):
    parts = path.relative_to(NBS).parts
    return not any(p.startswith(("_", ".")) for p in parts)


@pytest.mark.parametrize("name", [p.relative_to(NBS).as_posix() for p in sorted(NBS.rglob("*.ipynb")) if tracked(p)])
def test_library_passes_notebook(name):
    one_thread = dict.fromkeys(["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"], "1")
    run = subprocess.run(
        [sys.executable, HERE / "run_notebook.py", NBS / name],
        env={**os.environ, **one_thread, "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        timeout=60 * MINUTES,
    )
    if run.returncode:
        pytest.fail(f"{name} failed against the library:\n{run.stderr[-5000:]}", pytrace=False)
