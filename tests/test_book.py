"""The book beside its code: commands on its pages exist, links lead somewhere, tutorials and explanations only tell."""

import ast
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
TUTORIALS = [p for p in TELLING if p.parent.name == "tutorials"]
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


def test_the_front_page_leads_to_every_method_tutorial_and_explanation():
    linked = set(LINK.findall(prose(ROOT / "index.ipynb")))
    pages = TELLING + sorted(NBS.glob("1*.ipynb"))  # nbs/10 to nbs/19: the methods, and what they are held against
    assert not [p.stem for p in pages if name(p) not in linked]


def measured(text):
    """Lines of tables that give base, new, H and what is trained: (method as it is called, four numbers as text).
    Started from words, a method has a file of its own there and the words behind its name here."""
    cells = ([c.strip().replace("**", "") for c in line.strip("| ").split("|")] for line in text.splitlines())
    plain = lambda c: re.sub(r"\[(.+)\]\(.+\)", r"\1", c).removesuffix(" from words")
    return {(plain(c[0]), *c[1:5]) for c in cells if len(c) > 4 and "±" in c[1]}


METHOD_PAGES = sorted(NBS.glob("1[0-7]*.ipynb"))


@pytest.mark.parametrize("page", METHOD_PAGES, ids=name)
def test_small_tables_say_what_was_measured(page):
    true = set().union(*(measured(p.read_text(encoding="utf-8")) for p in (ROOT / "docs/honest-table").glob("*.md")))
    lines = measured(prose(page))
    assert lines and not lines - true


@pytest.mark.parametrize("page", TELLING, ids=name)
def test_tutorials_and_explanations_only_tell(page):
    cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
    first = "".join(cells[0]["source"])
    assert first.startswith("# ") and "\n> " in first, "a title, and a sentence that says what the page is for"
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    assert code and not any("#| export" in c for c in code)
    kept = page in TUTORIALS
    assert kept or not any(c.get("outputs") for c in cells), "outputs are made when the documentation is built"


@pytest.fixture
def docs(monkeypatch):
    "Scripts of the documentation can be imported."
    monkeypatch.syspath_prepend(ROOT / "docs")


def shows(source):
    "Does a cell print, or end in a value?"
    body = ast.parse(source).body
    said = [n for n in body if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call)]
    return isinstance(body[-1], ast.Expr) or any(getattr(n.value.func, "id", "") == "print" for n in said)


@pytest.mark.parametrize("page", TUTORIALS, ids=name)
def test_a_tutorial_keeps_what_its_code_shows(page, docs):
    import outputs

    nb = json.loads(page.read_text(encoding="utf-8"))
    code = [c for c in nb["cells"] if c["cell_type"] == "code"]
    mend = f"python docs/outputs.py {page.stem}"
    assert nb["metadata"].get(outputs.KEY) == {"of": outputs.code_of(nb)}, f"outputs are of other code: {mend}"
    silent = ["".join(c["source"])[:80] for c in code if shows("".join(c["source"])) and not c["outputs"]]
    assert not silent, mend
    stored = [o for c in code for o in c["outputs"]]
    assert not any(o["output_type"] == "error" or o.get("name") == "stderr" for o in stored)
    kinds = {k for o in stored for k in o.get("data", {})}
    assert kinds <= {"text/plain", "text/html", "text/markdown", "image/png", "image/jpeg", "image/svg+xml"}
    assert page.stat().st_size <= outputs.MOST


def test_other_code_has_another_fingerprint(docs):
    import outputs

    nb = json.loads(TUTORIALS[0].read_text(encoding="utf-8"))
    was, plain = outputs.code_of(nb), outputs.bare(nb)
    assert outputs.code_of(plain) == was and not any(c.get("outputs") for c in plain["cells"])
    next(c for c in nb["cells"] if c["cell_type"] == "markdown")["source"] = ["prose does not matter"]
    assert outputs.code_of(nb) == was
    next(c for c in nb["cells"] if c["cell_type"] == "code")["source"] = ["1 + 1"]
    assert outputs.code_of(nb) != was


def test_every_public_name_says_what_it_takes_and_gives_and_where_it_is_from(docs):
    import api

    library = api.Library()
    assert len(library.symbols) > 500 and not library.lacks()


NOT_SAID = """
__all__ = ['Out', 'Mine', 'dumb', 'bare', 'flat', 'given', 'told', 'fails', 'calls']
from .core import BadInput

class Prompts:
    "The base"
class Mine(Prompts):
    "A method without a source"
    def __init__(self, clip, depth=3): self.depth = depth

def dumb(clip):
    clip.eval()

def bare(n):
    "Gives one more"
    return n + 1

def flat(features, # What was seen
        ) -> float: # 0 to 1
    "Knows no shape"
    return features.mean() / features.shape[0]

def given(x, # Pixels [B, 3, H, H]
         )->torch.Tensor: # Features
    "Gives an array of any shape"
    return x.mean()

def told(x, # Pixels [B, 3, H, H]
         k:int=1 # Neighbours
        )->torch.Tensor: # [B]
    "All is said; `low` is where it begins"
    return x.mean((1, 2, 3))

def fails(path): # A file
    "Reads"
    if path is None: raise BadInput(f"path is {path!r}: give a file")

def calls(path):
    "Reads too"
    fails(path)
"""


def test_what_is_not_said_is_found(docs, tmp_path):
    import api

    (tmp_path / "kit").mkdir()
    (tmp_path / "kit" / "prompts.py").write_text(NOT_SAID)
    words = [(0, 99, "clip", "a Clip")]
    library = api.Library(tmp_path, "kit", words)
    assert set(library.lacks()) == {
        ("prompts.Mine", "words", "parameter depth"),
        ("prompts.Mine", "source", "no `source`"),
        ("prompts.dumb", "told", "has no sentence"),
        ("prompts.bare", "gives", "what it returns"),
        ("prompts.flat", "shapes", "parameter features"),
        ("prompts.given", "shapes", "what it returns"),
    }
    assert "BadInput" in library.notes("prompts", "fails") and "give a file" in library.notes("prompts", "fails")
    assert "a file" in library.notes("prompts", "calls").lower() and "fails" in library.notes("prompts", "calls")


# A reader runs a page from its top, and what the page defines takes the place of what it imported. So whatever a cell
# uses, and whatever that uses in turn, has to stand above it. What is only called further down is named here.
ONLY_CALLED_BELOW = {
    ("22d_surviving", "remembering"),
    ("35c_spaces", "measure"),
    ("47_sweep", "Shown"),
}
DEFINES = ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom


def bound(statement):
    "Names that a statement of a page gives a meaning to"
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {(a.asname or a.name).split(".")[0] for a in statement.names}
    return {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def read(statement):
    return {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def wanted(definition):
    "Names that a function or class takes from its page when it is used"
    inner = list(ast.walk(definition))
    own = {a.arg for n in inner if isinstance(n, ast.FunctionDef | ast.Lambda) for a in n.args.args + n.args.kwonlyargs}
    own |= {n.id for n in inner if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return read(definition) - own - {b for n in inner if isinstance(n, ast.Import | ast.ImportFrom) for b in bound(n)}


def from_below(cells):
    "[(cell, name)]: what code cells use before the page has said it"
    parsed = [(bool(re.search(r"^#\|\s*export[is]?\b", c, re.M)), ast.parse(c).body) for c in cells]
    said = {}  # {name: [(cell, statement)]}
    for i, (exported, body) in enumerate(parsed):
        for s in body:
            for n in bound(s) if exported or isinstance(s, DEFINES) else ():
                said.setdefault(n, []).append((i, s))
    found = set()
    for i, (exported, body) in enumerate(parsed):
        now = [s for s in body if not isinstance(s, ast.FunctionDef) and not (exported and isinstance(s, ast.ClassDef))]
        todo, seen = [n for s in now for n in read(s)], set()
        while todo:
            n = todo.pop()
            if n in seen or n not in said:
                continue
            seen.add(n)
            above = [s for k, s in said[n] if k <= i]
            if not above and all(isinstance(s, ast.FunctionDef | ast.ClassDef) for _, s in said[n]):
                found.add((i, n))
            elif above and isinstance(above[-1], ast.FunctionDef | ast.ClassDef):
                todo += wanted(above[-1])
    return found


def test_what_comes_too_early_is_seen():
    early = ["#| export\ndef a(): return b()", "a()", "#| export\ndef b(): return 1"]
    assert from_below(early) == {(1, "b")} and not from_below([early[0], early[2], early[1]])
    assert not from_below(["from somewhere import b", *early]), "imported above"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_says_a_thing_before_it_uses_it(page):
    cells = [
        re.sub(r"^\s*[%!].*$", "", "".join(c["source"]), flags=re.M)
        for c in json.loads(page.read_text(encoding="utf-8"))["cells"]
        if c["cell_type"] == "code" and not re.search(r"^#\|\s*eval:\s*false", "".join(c["source"]), re.M)
    ]
    early = {(i, n) for i, n in from_below(cells) if (page.stem, n) not in ONLY_CALLED_BELOW}
    assert not early, f"code cell, counted from 0, and the name that stands further down: {sorted(early)}"
