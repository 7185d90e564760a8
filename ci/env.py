"""Make or renew the environment: python ci/env.py VENV run|dev

A second call returns at once. What counts as "nothing changed" is written into VENV/mudpt-env.json only after
the whole installation has passed its check, so a cut or failed installation is never taken for a finished one:
it is started over.
"""

import hashlib
import json
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INPUTS = ["settings.ini", "setup.py", "pyproject.toml", "ci/constraints.txt", "ci/env.py"]
WANTED = {"run": (".", ""), "dev": (".[dev,all]", ",dev,all")}  # what pip is asked for; the extras to check
STAMP = "mudpt-env.json"
COVERS = {"run": {"run", "dev"}, "dev": {"dev"}}
TESTED = [(3, 11), (3, 12), (3, 13)]  # where ci/constraints.txt holds; elsewhere pip chooses
# Every distribution that mudpt asks for (with the extras given) is there, and the heavy ones import.
CHECK = """
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pip._vendor.packaging.requirements import Requirement
missing = []
for r in map(Requirement, requires("mudpt")):
    if any(r.marker is None or r.marker.evaluate({"extra": e}) for e in sys.argv[1].split(",")):
        try:
            if not r.specifier.contains(version(r.name), prereleases=True):
                missing.append(f"{r} (there: {version(r.name)})")
        except PackageNotFoundError:
            missing.append(str(r))
if missing:
    sys.exit("missing: " + ", ".join(missing))
import torch, torchvision, open_clip, mudpt
"""


def fail(*lines):
    sys.exit("\n".join(("make: the environment is not ready.", *lines)))


def inputs():
    "The files that decide what gets installed, and where the project lies (an editable install points there)."
    seen = hashlib.sha256(str(ROOT).encode())
    for name in INPUTS:
        seen.update((ROOT / name).read_bytes())
    return seen.hexdigest()[:16]


def read(stamp):
    try:
        return json.loads(stamp.read_text())
    except (OSError, ValueError):
        return {}


def ask(env, code):
    "What the environment's interpreter prints for `code`; None if it cannot run it."
    try:
        python = [env / "bin" / "python", "-c", code]
        return subprocess.check_output(python, cwd="/", stderr=subprocess.DEVNULL, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None


VERSION = "import sys; print(sys.version.split()[0], end='')"
FOUND = "import importlib.util as u; assert all(map(u.find_spec, ['pip', 'torch', 'open_clip', 'mudpt']));" + VERSION


def ready(env, kind):
    "The stamp says that this very set was installed whole, and the packages are still there."
    stamp = read(env / STAMP)
    known = stamp.get("inputs") == inputs() and stamp.get("kind") in COVERS[kind]
    return known and same_line(stamp, sys.version) and stamp.get("python") == ask(env, FOUND)


def same_line(stamp, version):
    "Python 3.11 made it and 3.11 is asked for: patch versions may differ."
    return stamp.get("python", "").split(".")[:2] == version.split(".")[:2]


def create(env):
    if env.exists() and any(env.iterdir()) and not (env / "pyvenv.cfg").exists():
        fail(f"{env} is in the way: not a virtual environment.", "Choose another place: make VENV=... ")
    print(f"creating {env} with Python {sys.version.split()[0]}", flush=True)
    try:
        venv.create(env, clear=True, with_pip=True)
    except (subprocess.CalledProcessError, OSError) as e:
        fail(f"python -m venv failed in {env}: {e}", "On Debian and Ubuntu: apt-get install python3-venv")


def install(env, kind):
    stamp, cut = env / STAMP, env / "mudpt-env.unfinished"
    old = read(stamp)
    if cut.exists() or ask(env, "import pip") is None or (old and not same_line(old, sys.version)):
        create(env)
    elif old.get("kind") == "dev":
        kind = "dev"  # never shrink: the environment stays good for both
    cut.touch()
    stamp.unlink(missing_ok=True)
    what, extras = WANTED[kind]
    print(f"installing {what} (PyTorch is large: the first time takes minutes)", flush=True)
    pip = [env / "bin" / "python", "-m", "pip", "install", "--disable-pip-version-check", "--quiet", "-e", what]
    python = ask(env, VERSION)
    if tuple(map(int, python.split(".")[:2])) in TESTED:
        pip += ["-c", "ci/constraints.txt"]
    again = "Run the same command again to start over."
    if subprocess.run(pip, cwd=ROOT).returncode:
        fail(f"pip could not install {what!r}; its message is above.", again)
    if subprocess.run([env / "bin" / "python", "-c", CHECK, extras], cwd="/").returncode:
        fail(f"pip finished but the packages in {env} do not work; the reason is above.", again)
    part = stamp.with_suffix(".part")
    part.write_text(json.dumps(dict(inputs=inputs(), python=python, kind=kind), indent=1))
    part.replace(stamp)
    cut.unlink()


if __name__ == "__main__":
    if sys.version_info < (3, 10):  # noqa: UP036 (whoever comes with an older one should be told so)
        fail(f"Python 3.10 or newer is needed, this is {sys.version.split()[0]}.", "Try: make PYTHON=python3.11 ...")
    env, kind = Path(sys.argv[1]).resolve(), sys.argv[2]
    if not ready(env, kind):
        install(env, kind)
