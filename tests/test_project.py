"""The repository keeps its own rules: lint, a library that is what the notebooks export, a README that is the index."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# A path of somebody's machine, or a package index of somebody's own, left behind in code or in a notebook's output
MACHINE = re.compile(r"(?<![\w.}>])/(?:root|home|Users|work)/[\w.-]+|file:///|(?:--|_)index[-_]url")
FINE = {"the CPU wheels PyTorch publishes": "--index-url https://download.pytorch.org/whl/cpu"}


def passes(*args):
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    run = subprocess.run(list(map(str, args)), cwd=ROOT, env=env, capture_output=True, text=True)
    if run.returncode:
        said = (run.stdout + run.stderr)[-6000:]
        pytest.fail(f"{' '.join(map(str, args))} ended with {run.returncode}:\n{said}", pytrace=False)
    return run.stdout


def test_lint():
    passes(sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "concise", ".")


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_library_is_what_the_notebooks_export():
    passes("bash", "ci/check_export.sh")


def test_readme_is_the_index_notebook():
    passes(sys.executable, "docs/readme.py", "--check")


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a git checkout")
def test_no_machine_left_behind():
    found = []
    for name in passes("git", "ls-files", "-co", "--exclude-standard").splitlines():
        path = ROOT / name
        if path == Path(__file__) or not path.is_file():
            continue
        text = path.read_bytes().decode("utf-8", errors="ignore")
        for fine in FINE.values():
            text = text.replace(fine, "")
        found += [f"{name}: {m[0]}" for m in MACHINE.finditer(text)]
    assert not found, found


def test_readme_shows_the_table_that_was_measured():
    "Every row of the stored comparison stands in the README, number for number, with the command that made it"
    readme, table = ((ROOT / f).read_text(encoding="utf-8") for f in ("README.md", "docs/honest-table/table.md"))
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len(rows) >= 11 and not [row for row in rows if row not in readme]
    assert "mudpt compare --seeds 1-3" in readme
