"""What a user gets: the wheel, built from a copy and run away from the repository."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from configparser import ConfigParser
from email import message_from_string
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = "settings.ini setup.py pyproject.toml MANIFEST.in README.md LICENSE NOTICE CHANGELOG.md CITATION.cff mudpt"
CFG = ConfigParser(delimiters=["="])
CFG.read(ROOT / "settings.ini", encoding="utf-8")
CFG = CFG["DEFAULT"]
# A comparison too short to mean anything: two methods, one epoch
COMPARE = "compare --methods ZeroShot,CoOp --epochs 1 --seeds 1".split()


def call(*args, **kw):
    run = subprocess.run(list(map(str, args)), capture_output=True, text=True, **kw)
    if run.returncode:
        said = (run.stdout + run.stderr)[-4000:]
        pytest.fail(f"{' '.join(map(str, args))} ended with {run.returncode}:\n{said}", pytrace=False)
    return run.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "Built as `python -m build` does it, by way of the source archive: what that lacks, the wheel lacks."
    tmp = tmp_path_factory.mktemp("build")
    (tmp / "src").mkdir()
    for name in SOURCES.split():
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp / "src" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tmp / "src" / name)
    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp / "dist", tmp / "src", cwd=tmp)
    (made,) = (tmp / "dist").glob("*.whl")
    return made


@pytest.fixture(scope="module")
def home(wheel, tmp_path_factory):
    "An environment that has the wheel, and borrows its requirements from this one (but not this one's mudpt)."
    env = tmp_path_factory.mktemp("home") / "env"
    venv.create(env, with_pip=False)
    call(sys.executable, "-m", "pip", "--python", env / "bin/python", "install", "--no-deps", "--no-index", wheel)
    site = next(env.glob("lib/python*/site-packages"))
    (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"])  # a plain path: its .pth files do not count
    return env


def run_home(home, *args):
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | {"OMP_NUM_THREADS": "1"}
    return call(home / "bin" / args[0], *args[1:], cwd=home.parent, env=env)


@pytest.mark.xdist_group("wheel")
def test_wheel_holds_library_and_assets(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    here = [p for p in (ROOT / "mudpt").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    missing = {p.relative_to(ROOT).as_posix() for p in here} - names
    assert not missing, f"in the library but not in the wheel: {sorted(missing)}"
    assert any(n.startswith("mudpt/assets/") for n in names)
    strangers = [n for n in names if not n.startswith(("mudpt/", f"mudpt-{CFG['version']}.dist-info/"))]
    assert not strangers, f"in the wheel but not of the library: {strangers}"


@pytest.mark.xdist_group("wheel")
def test_wheel_is_small(wheel):
    assert wheel.stat().st_size < 25e6


@pytest.mark.xdist_group("wheel")
def test_wheel_describes_itself(wheel):
    z = zipfile.ZipFile(wheel)
    info = f"mudpt-{CFG['version']}.dist-info"
    meta = message_from_string(z.read(f"{info}/METADATA").decode())
    assert (meta["Name"], meta["Version"]) == ("mudpt", CFG["version"])
    assert meta["Requires-Python"] == ">=3.10"
    assert "Apache-2.0" in (meta["License-Expression"], meta["License"])
    assert {"LICENSE", "NOTICE"} <= set(meta.get_all("License-File"))
    assert meta.get_payload().strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()
    needed = {re.match(r"[\w.-]+", r)[0] for r in meta.get_all("Requires-Dist") if "extra ==" not in r}
    assert not needed & {"captum", "plotly", "ipywidgets", "anywidget", "ray", "nbdev", "fastcore"}
    assert {"widgets", "inside", "dev", "all"} <= set(meta.get_all("Provides-Extra"))
    assert "mudpt = mudpt.cli:" in z.read(f"{info}/entry_points.txt").decode()


@pytest.mark.xdist_group("wheel")
def test_installed_wheel_compares_methods(home):
    where = Path(run_home(home, "python", "-c", "import mudpt; print(mudpt.__file__)").strip())
    assert where.is_relative_to(home), f"the wheel was not what got imported: {where}"
    out = run_home(home, "mudpt", *COMPARE)
    assert "ZeroShot" in out and "CoOp" in out


@pytest.mark.parametrize("statement", ["from mudpt import *", "import mudpt.cli"])
def test_import_is_light(statement):
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    loaded = {m.split(".")[0] for m in call(sys.executable, "-c", code, cwd="/").split()}
    assert "mudpt" in loaded
    assert not loaded & {"ipywidgets", "anywidget", "captum", "plotly", "ray", "nbdev", "fastcore", "matplotlib"}
