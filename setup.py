"""Packaging driven by settings.ini, the one place names, versions and requirements are written."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(here / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]
readme = here / "README.md"
status = "2 - Pre-Alpha,3 - Alpha,4 - Beta,5 - Production/Stable".split(",")[int(cfg["status"]) - 2]

TAIL = "_requirements"
extras = {k.removesuffix(TAIL): v.split() for k, v in cfg.items() if k.endswith(TAIL)}
ALONE = {"dev", "wandb", "mlflow"}  # asked for by name: what developers need, and the clients of services
extras["all"] = sorted({r for name, reqs in extras.items() if name not in ALONE for r in reqs})

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else cfg["description"],
    long_description_content_type="text/markdown",
    author=cfg["author"],
    url=cfg["git_url"],
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE*"],
    keywords=cfg["keywords"],
    classifiers=[
        f"Development Status :: {status}",
        f"Intended Audience :: {cfg['audience']}",
        "Framework :: Jupyter",
        "Natural Language :: " + cfg["language"],
        "Operating System :: OS Independent",
        *[f"Programming Language :: Python :: 3.{v}" for v in (10, 11, 12, 13)],
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=f">={cfg['min_python']}",
    packages=find_packages(include=[cfg["lib_path"], cfg["lib_path"] + ".*"]),
    package_data={cfg["lib_path"]: ["assets/**/*"]},
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "nbdev": [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"],
    },
    zip_safe=False,
)
