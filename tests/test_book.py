"""The book beside its code: commands on its pages exist, links lead somewhere, tutorials and explanations only tell."""

import json
import re
import shlex
from pathlib import Path

import pytest
import typer

from mudpt.cli import app

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
PAGES = [p for p in sorted(NBS.rglob("*.ipynb")) if not any(d.startswith(("_", ".")) for d in p.relative_to(NBS).parts)]
TEXTS = [*PAGES, *(ROOT / f"{n}.md" for n in ("README", "CONTRIBUTING", "SECURITY"))]
TELLING = [p for p in PAGES if p.parent.name in ("tutorials", "explanations")]
FENCE = re.compile(r"^```(?:sh|bash)\n(.*?)^```", re.M | re.S)
LINK = re.compile(r"\]\((?!\w+:|#)([^)\s#]+)(?:#[^)]*)?\)")


def name(p):
    return p.relative_to(ROOT).as_posix()


def prose(p):
    if p.suffix == ".md":
        return p.read_text(encoding="utf-8")
    cells = json.loads(p.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def lines(text):
    "What a reader would type: fenced shell, and lines set in by four spaces."
    blocks = FENCE.findall(text) + [
        re.sub(r"^ {4}", "", m, flags=re.M) for m in re.findall(r"(?:^ {4}.+\n?)+", text, re.M)
    ]
    return [
        t.strip()
        for b in blocks
        for whole in b.replace("\\\n", " ").splitlines()
        for t in re.split(r"; |&& |\| ", whole)
    ]


def commands(text):
    "Calls of mudpt, as words."
    typed = (t.removeprefix("$ ") for t in lines(text))
    return [shlex.split(t, comments=True)[1:] for t in typed if t.startswith("mudpt ")]


def wrong(words):
    "What a command line has that the program does not know; empty if nothing."
    command, rest = typer.main.get_command(app), list(words)
    while hasattr(command, "commands"):
        while rest and rest[0] in {o for p in command.params for o in p.opts}:
            rest = rest[2:]  # an option of the whole program, and its value
        if not rest or rest[0] not in command.commands:
            return f"no command {rest[:1]}"
        command = command.commands[rest.pop(0)]
    known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
    return ", ".join(w for w in rest if w.startswith("--") and w.split("=")[0] not in known)


def test_a_wrong_command_would_be_found():
    assert not wrong(["compare", "--seeds", "1-3"]) and not wrong(["data", "prepare", "dtd"])
    assert not wrong(["--use", "mine.py", "compare"]) and wrong(["--use", "mine.py", "compair"])
    assert wrong(["compair"]) and wrong(["data", "fetch"]) and wrong(["train", "MaPLe", "--shot", "16"]) == "--shot"


@pytest.mark.parametrize("page", [p for p in TEXTS if commands(prose(p))], ids=name)
def test_commands_exist(page):
    bad = {" ".join(c): w for c in commands(prose(page)) if (w := wrong(c))}
    assert not bad


def leads(page, target):
    "Does a link lead to a file, or to the page that a notebook becomes?"
    here = ROOT if page.suffix == ".md" else page.resolve().parent
    at = here / target
    if at.suffix == ".html" and not at.exists():
        same = {p.name for p in at.parent.glob("*.ipynb")}
        return f"{at.stem}.ipynb" in same or any(re.sub(r"^\d+[a-z]*_", "", n) == f"{at.stem}.ipynb" for n in same)
    return at.exists()


@pytest.mark.parametrize("page", TEXTS, ids=name)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", prose(page), flags=re.S)
    dead = [t for t in LINK.findall(text) if not leads(page, t)]
    assert not dead


@pytest.mark.parametrize("page", TELLING, ids=name)
def test_tutorials_and_explanations_only_tell(page):
    cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
    first = "".join(cells[0]["source"])
    assert first.startswith("# ") and "\n> " in first, "a title, and a sentence that says what the page is for"
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    assert code and not any("#| export" in c for c in code)
    assert not any(c.get("outputs") for c in cells), "outputs are made when the documentation is built"
