"""Every notebook runs from top to bottom against the exported library, each in a process of its own."""

import json
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


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    "(notebook) -> (exit code, what it complained of)"
    one_thread = dict.fromkeys(["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"], "1")
    how = dict(env={**os.environ, **one_thread, "MPLBACKEND": "agg"}, text=True)
    script, said = [sys.executable, HERE / "run_notebook.py"], tmp_path_factory.mktemp("notebooks") / "stderr"
    if not hasattr(os, "fork"):

        def alone(path):
            r = subprocess.run([*script, path], capture_output=True, timeout=60 * MINUTES, **how)
            return r.returncode, r.stderr

        yield alone
        return

    def forked(path):
        said.write_text("")
        server.stdin.write(json.dumps([str(path), str(said)]) + "\n")
        server.stdin.flush()
        return int(server.stdout.readline() or 1), said.read_text()

    with subprocess.Popen(
        [*script, "--serve", str(MINUTES)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, **how
    ) as server:
        yield forked
        server.stdin.close()


@pytest.mark.parametrize("name", [p.relative_to(NBS).as_posix() for p in sorted(NBS.rglob("*.ipynb")) if tracked(p)])
def test_library_passes_notebook(name, run):
    code, said = run(NBS / name)
    if code:
        pytest.fail(f"{name} failed against the library (exit code {code}):\n{said[-5000:]}", pytrace=False)


def test_a_notebook_that_fails_is_noticed_and_leaves_nothing_for_the_next(run, tmp_path):
    def page(name, source):
        cell = dict(cell_type="code", source=source, metadata={}, outputs=[], execution_count=None, id="one")
        (NBS / name).write_text(json.dumps(dict(cells=[cell], metadata={}, nbformat=4, nbformat_minor=5)))
        return NBS / name

    name = f"_{tmp_path.name}.ipynb"  # pages that begin so are nobody's
    try:
        code, said = run(page(name, "import sys; sys.left_over = 1; assert 1 == 2, 'not so'"))
        assert code and "not so" in said
        assert run(page(name, "import sys; assert not hasattr(sys, 'left_over')")) == (0, "")
    finally:
        (NBS / name).unlink()
