"""What the library says of its public names, and what it leaves out: python docs/api.py

Read from the exported modules without importing them. A public name is a function or class of a module's `__all__`.
  told     it has a sentence
  words    every parameter has a meaning: a comment beside it, its name in the sentence, the comment of an earlier
           parameter of that name and type on the page, a place among the words that mean the same on many pages
           (nbs/explanations/words_of_the_api.ipynb), or a class of the kit as its type; the only parameter of a function
           may be left to its sentence
  gives    what gives something says what: a type or a comment
  shapes   an array, by its type or by what the code does with it, has its shape, as in [B, 3, H, H]
  source   methods, regularisers and figures of merit say where they were published
Errors need no care: they are read off the code, and stand on the page with what else is said here (`notes`).
"""

import ast
import io
import json
import re
import sys
import tokenize
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORDS = ROOT / "nbs" / "explanations" / "words_of_the_api.ipynb"
ARRAY = {
    "shape",
    "ndim",
    "dtype",
    "softmax",
    "argmax",
    "unflatten",
    "detach",
    "permute",
    "unsqueeze",
    "reshape",
    "numpy",
}
SHAPE = re.compile(r"\[[^\]]*\]")
PUBLISHED = re.compile(r"\b(1[89]|20)\d\d\b")
MERITS = ("measures", "shapes", "marks", "pairing")  # pages whose functions that give a number are figures of merit
NOT_PUBLISHED = {  # figures of merit that nobody published, or that are arithmetic
    "marks.chance": "the share of the picture that the object covers",
    "pairing.quantile": "a quantile of Student's t",
    "pairing.sign_test": "a sum of binomial coefficients",
}
TIERS = {"A": "labels only", "B": "labels, and texts of a language model", "C": "a teacher, or images without labels"}


@dataclass
class Parameter:
    name: str
    annotation: str = ""
    says: str = ""  # Beside it, or about it
    found: str = ""  # Its meaning from elsewhere
    array: bool = False
    kit: bool = False  # Is it an object of the kit, which is no array whatever attributes it has?


@dataclass
class Symbol:
    module: str
    name: str
    node: ast.AST
    sentence: str = ""
    parameters: list = field(default_factory=list)
    gives: str = ""  # Annotation and comment
    value: bool = False  # Does it return anything?
    raises: list = field(default_factory=list)  # [(class, message)]
    calls: list = field(default_factory=list)  # Functions of the kit that it calls by name
    source: str = ""
    tier: str = ""

    @property
    def full(self):
        return f"{self.module}.{self.name}"


def comments(text):
    "{line: comment}"
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {t.start[0]: t.string.lstrip("#").strip() for t in tokens if t.type == tokenize.COMMENT}


def told(node):
    return (ast.get_docstring(node) or "").strip()


def inner(node):
    "The nodes of a function, without those of functions inside it."
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, (ast.FunctionDef, ast.Lambda, ast.ClassDef)):
            yield from inner(child)


def written(node):
    "A message as a reader may know it: what is filled in becomes …"
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(written(v) if isinstance(v, ast.Constant) else "…" for v in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return written(node.left) + written(node.right)
    return "…"


def raised(node):
    "[(class, message)] of the errors that a function makes itself."
    found = []
    for n in inner(node):
        if isinstance(n, ast.Raise) and isinstance(n.exc, ast.Call):
            name = ast.unparse(n.exc.func).split(".")[-1]
            words = [written(a) for a in n.exc.args]
            if name == "unknown":
                found.append(("Unknown", f"unknown {words[0]} '…': did you mean …"))
            elif name[0].isupper() or name.startswith("_"):
                found.append((name, words[0] if words else ""))
    return [f for i, f in enumerate(found) if f not in found[:i]]


def arrays(node, names):
    "Which parameters are handled as arrays?"
    found = set()
    for n in ast.walk(node):
        if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.attr in ARRAY:
            found.add(n.value.id)
        if isinstance(n, ast.BinOp) and isinstance(n.op, ast.MatMult):
            found |= {s.id for s in (n.left, n.right) if isinstance(s, ast.Name)}
    changed = {
        t.id
        for n in ast.walk(node)
        if isinstance(n, ast.Assign)
        for t in ast.walk(n)
        if isinstance(t, ast.Name) and isinstance(t.ctx, ast.Store)
    }
    return (found & names) - changed


def helped(annotation):
    "The help of a command's option."
    return next(
        (
            written(k.value)
            for n in ast.walk(annotation)
            if isinstance(n, ast.Call)
            for k in n.keywords
            if k.arg == "help"
        ),
        "",
    ) or next(
        (
            written(n.args[0])
            for n in ast.walk(annotation)
            if isinstance(n, ast.Call)
            and n.args
            and isinstance(n.args[0], ast.Constant)
            and isinstance(n.args[0].value, str)
        ),
        "",
    )


def signature(node, beside, sentence):
    "(parameters, what is given, does it give anything?) of a function."
    a = node.args
    args = [*a.posonlyargs, *a.args, *filter(None, [a.vararg]), *a.kwonlyargs, *filter(None, [a.kwarg])]
    typed = {x.arg for x in args}
    ends = [
        node.lineno,
        *(x.end_lineno for x in args),
        *(d.end_lineno for d in [*a.defaults, *filter(None, a.kw_defaults)]),
    ]
    last = node.returns.end_lineno if node.returns is not None else max(ends)
    one_line = node.end_lineno == node.lineno
    later = [n for n in beside if last < n < node.body[0].lineno]  # behind a bracket on a line of its own
    end = beside.get(later[-1] if later else last, "")
    whole = end
    at = arrays(node, typed)
    parameters = []
    for x in args:
        if x.arg in ("self", "cls") or x.arg.startswith("_"):
            continue
        type_ = ast.unparse(x.annotation) if x.annotation else ""
        says = beside.get(x.lineno, "")
        if (
            x.lineno == last
            and says == end
            and node.returns is not None
            and not one_line
            and not re.search(rf"\b{x.arg}\b", says)
        ):
            says = ""  # it speaks of what is given
        if not says and x.annotation is not None:
            says = helped(x.annotation)
        if not says and (f"`{x.arg}`" in sentence or re.search(rf"\b{x.arg}\b", end)):
            says = sentence if f"`{x.arg}`" in sentence else end
        parameters.append(Parameter(x.arg, type_, says, array=x.arg in at or "Tensor" in type_ or "ndarray" in type_))
    value = any(
        isinstance(n, ast.Return)
        and n.value is not None
        and not (isinstance(n.value, ast.Constant) and n.value.value is None)
        for n in inner(node)
    )
    value |= any(isinstance(n, (ast.Yield, ast.YieldFrom)) and n.value is not None for n in inner(node))
    gives = " ".join(filter(None, [ast.unparse(node.returns) if node.returns is not None else "", end]))
    return parameters, gives, value, whole


def given(node):
    "(target, value) pairs of an assignment; `a.b, a.c = b, c` gives two"
    for t in node.targets:
        if isinstance(t, ast.Tuple) and isinstance(node.value, ast.Tuple):
            yield from zip(t.elts, node.value.elts)
        else:
            yield t, node.value


class Library:
    "Every module of a package, read."

    def __init__(self, root=ROOT, package="mudpt", words=None):
        self.words = standard_words() if words is None else words
        self.package, self.pages = package, {}  # {module: number of its page}
        self.symbols, self.classes, self.functions, self.imports = {}, {}, {}, {}
        self.options, self.given_to, self.hooks = {}, {}, {}  # types of a command's options; functions put into classes
        for path in sorted((root / package).rglob("*.py")):
            if path.name not in ("__init__.py", "_modidx.py"):
                self.read(
                    ".".join(path.relative_to(root / package).with_suffix("").parts), path.read_text(encoding="utf-8")
                )
        for s in self.symbols.values():
            s.source, s.tier = self.attribute(s.module, s.name, "source"), self.attribute(s.module, s.name, "tier")
        self.complete()

    def read(self, module, text):
        tree, beside = ast.parse(text), comments(text)
        if page := re.search(r"File to edit: \S*?/(\d\d)\w*\.ipynb", text):
            self.pages[module] = int(page[1])
        names = self.public(tree)
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and node.level:
                up = module.split(".")[: -node.level]
                home = ".".join([*up, *(node.module or "").split(".")]).strip(".")
                self.imports.setdefault(module, {}).update({n.asname or n.name: (home, n.name) for n in node.names})
            if isinstance(node, ast.Assign):
                self.assigned(module, node)
            if isinstance(node, ast.FunctionDef):
                self.functions[module, node.name] = node
                if node.name in names:
                    self.add(module, node, beside)
            elif isinstance(node, ast.ClassDef):
                self.classes[module, node.name] = node
                if node.name in names:
                    self.add(module, node, beside)

    def assigned(self, module, node):
        "`Trainer.fit, Trainer.stop = fit, stop` puts functions into a class; `Seed = Annotated[...]` is an option's type."
        for target, value in given(node):
            if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name):
                self.given_to[module, getattr(value, "id", "")] = (target.value.id, target.attr)
                self.hooks.setdefault((module, target.value.id), set()).add(target.attr)
            elif isinstance(target, ast.Name) and "Annotated" in ast.unparse(value):
                self.options[module, target.id] = helped(value)

    def overrides(self, s):
        "Is a function put into a class in the place of something that a base of it has said already?"
        first = s.node.args.args[:1] if isinstance(s.node, ast.FunctionDef) else []
        typed = ast.unparse(first[0].annotation) if first and first[0].arg == "self" and first[0].annotation else ""
        cls, attr = self.given_to.get((s.module, s.name), (typed, s.name))
        if attr.startswith("_"):  # Python says what `__repr__` is
            return True
        at = self.home(s.module, cls)
        for base in self.bases(*at)[1:] if at else ():
            made = {n.name for n in self.classes[base].body if isinstance(n, ast.FunctionDef)}
            if attr in made | self.hooks.get(base, set()):
                return True
        return False

    @staticmethod
    def public(tree):
        for node in tree.body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
                return set(ast.literal_eval(node.value))
        return set()

    def add(self, module, node, beside):
        s = Symbol(module, node.name, node, told(node))
        body = node
        if isinstance(node, ast.ClassDef):
            made = {n.name: n for n in node.body if isinstance(n, ast.FunctionDef)}
            body = made.get("__init__")
            fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
            if body is not None:
                s.parameters = signature(body, beside, s.sentence)[0]
            elif any("dataclass" in ast.unparse(d) for d in node.decorator_list):
                for f in fields:
                    if f.target.id.startswith("_"):
                        continue
                    says, type_ = beside.get(f.end_lineno, ""), ast.unparse(f.annotation)
                    says = says or (s.sentence if f"`{f.target.id}`" in s.sentence else "")
                    s.parameters.append(
                        Parameter(f.target.id, type_, says, array="Tensor" in type_ or "ndarray" in type_)
                    )
            for part in filter(None, [body, made.get("__post_init__")]):
                s.raises += raised(part)
        else:
            s.parameters, s.gives, s.value, beside_it = signature(node, beside, s.sentence)
            s.sentence = s.sentence or beside_it
            s.raises = raised(node)
        s.calls = sorted(
            {n.func.id for n in ast.walk(body or node) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
        )
        self.symbols[module, node.name] = s

    def home(self, module, name, depth=0):
        "(module, name) where something used in a module was defined, or None."
        if any((module, name) in known for known in (self.functions, self.classes, self.options)):
            return module, name
        there = self.imports.get(module, {}).get(name)
        return self.home(*there, depth + 1) if there and depth < 9 else None

    def bases(self, module, name):
        "The class and all it is made from, nearest first, as far as the kit knows them."
        found, todo = [], [(module, name)]
        while todo:
            at = todo.pop(0)
            if at in self.classes and at not in found:
                found.append(at)
                todo += filter(None, (self.home(at[0], ast.unparse(b).split(".")[-1]) for b in self.classes[at].bases))
        return found

    def attribute(self, module, name, which):
        "A class attribute that is written down as a string, perhaps in a base."
        for at in self.bases(module, name):
            for n in self.classes[at].body:
                for target, value in given(n) if isinstance(n, ast.Assign) else ():
                    if getattr(target, "id", "") == which and isinstance(value, ast.Constant):
                        return str(value.value)
        return ""

    @cached_property
    def failing(self):
        "Functions that raise, themselves or through what they call."

        def calls(at):
            names = {
                n.func.id
                for n in ast.walk(self.functions[at])
                if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
            }
            return set(filter(None, (self.home(at[0], n) for n in names)))

        found, graph = {at for at, f in self.functions.items() if raised(f)}, {at: calls(at) for at in self.functions}
        while more := {at for at, to in graph.items() if to & found} - found:
            found |= more
        return found

    def passed_on(self, s):
        "Public functions that a symbol calls by name and whose errors it therefore has."
        found = [self.home(s.module, n) for n in s.calls]
        return [at for at in found if at in self.failing and at in self.symbols and at != (s.module, s.name)]

    def complete(self):
        "Meanings from elsewhere: earlier on the page, the words of the API, a class of the kit."
        known = {}
        for s in self.symbols.values():
            earlier = known.setdefault(s.module, {})
            for p in s.parameters:
                kit = self.home(s.module, p.annotation.split("|")[0].strip(" '\"")) if p.annotation else None
                p.kit = kit in self.symbols or p.name in ("clip", "method", "task", "cl")
                type_ = f"a `{kit[1]}`" if kit in self.symbols else self.options.get(kit, "")
                p.found = (
                    p.says
                    or type_
                    or earlier.get((p.name, p.annotation), "")
                    or earlier.get((p.name, ""), "")
                    or self.standard(s.module, p.name)
                )
                if p.says and len(p.name) > 1:
                    earlier.setdefault((p.name, p.annotation), p.says)

    def standard(self, module, word):
        "What a word means on a page: the narrowest range of pages that says it counts."
        at = self.pages.get(module, 0)
        said = [(high - low, meaning) for low, high, w, meaning in self.words if w == word and low <= at <= high]
        return min(said)[1] if said else ""

    def lacks(self):
        "[(module.name, kind, what)] of everything that is missing."
        return [(s.full, *w) for s in self.symbols.values() for w in self.wanting(s)]

    def wanting(self, s):
        again = self.overrides(s)
        if not s.sentence and not again:
            yield "told", "has no sentence"
        for p in s.parameters:
            alone = len(s.parameters) == 1 and not p.array and told(s.node)
            if not p.found and not alone:
                yield "words", f"parameter {p.name}"
            elif p.array and not p.kit and not SHAPE.search(p.found):
                yield "shapes", f"parameter {p.name}"
        command = any("told" in ast.unparse(d) for d in s.node.decorator_list)
        if s.value and not s.gives and not again and not command:
            yield "gives", "what it returns"
        if re.search(r"torch.Tensor|np.ndarray", s.gives) and not SHAPE.search(
            s.gives.replace("tuple[", "").replace("list[", "").replace("dict[", "") + s.sentence
        ):
            yield "shapes", "what it returns"
        roots = {("prompts", "Prompts"), ("regularise", "Regulariser")}
        made_from = set(self.bases(s.module, s.name)) if isinstance(s.node, ast.ClassDef) else set()
        if made_from & roots and (s.module, s.name) not in roots and not PUBLISHED.search(s.source):
            yield "source", "no `source`"
        if (
            s.module in MERITS
            and s.gives.startswith("float")
            and s.full not in NOT_PUBLISHED
            and not PUBLISHED.search(s.sentence)
        ):
            yield "source", "no publication named"

    def notes(self, module, name, link=None):
        "What stands under a signature, as Markdown: meanings from elsewhere, errors, source. Empty if nothing is to say"
        s = self.symbols.get((module, name))
        if s is None:
            return ""
        lines = [
            f"- **{p.name}**: {p.found.replace(chr(60), chr(38) + 'lt;')}"
            for p in s.parameters
            if p.found and not p.says
        ]
        if s.sentence and not told(s.node):  # a comment, which nbdev shows beside a parameter or not at all
            lines.insert(0, f"- {s.sentence.replace(chr(60), chr(38) + 'lt;')}")
        lines += [f"- Raises *{c}*: {shortened(m)}" if m else f"- Raises *{c}*" for c, m in s.raises]
        if more := self.passed_on(s):
            said = ", ".join(link(*at) if link else f"`{at[1]}`" for at in more)
            lines.append(f"- Raises what is raised by {said}")
        if s.source:
            lines.append(
                f"- Source: {linked(s.source)}" + (f". Learns from {TIERS[s.tier]}" if s.tier in TIERS else "")
            )
        return "\n".join(lines)


def shortened(message, most=200):
    "A message, not too long, with nothing in it that Markdown would take for its own."
    flat = " ".join(message.split())
    flat = flat if len(flat) <= most else flat[: most - 1].rsplit(" ", 1)[0] + " …"
    return "“" + re.sub(r"([\\`*_{}\[\]<>#|$~@^])", r"\\\1", flat) + "”"


def linked(source):
    "arXiv numbers as links."
    return re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", source)


def standard_words(path=WORDS):
    """[(first page, last page, word, meaning)] from the tables; a heading with `pages 30 to 37` says where its table holds.
    Several words in a row share its meaning, or have one each, with semicolons between."""
    if not path.exists():
        return []
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    found, low, high = [], 0, 99
    for line in "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown").splitlines():
        if line.startswith("#"):
            pages = re.search(r"pages (\d+) to (\d+)", line)
            low, high = map(int, pages.groups()) if pages else (0, 99)
        if row := re.fullmatch(r"\| ((?:`\w+`(?:, )?)+) \| (.+?) \|", line):
            words, meanings = re.findall(r"`(\w+)`", row[1]), row[2].split("; ")
            found += [
                (low, high, *pair)
                for pair in zip(words, meanings if len(meanings) == len(words) else [row[2]] * len(words))
            ]
    return found


def main():
    library = Library()
    lacks = library.lacks()
    for at, kind, what in lacks:
        print(f"{kind:7} {at}: {what}")
    kinds = {k: sum(kind == k for _, kind, _ in lacks) for k in dict.fromkeys(kind for _, kind, _ in lacks)}
    print(f"{len(library.symbols)} public functions and classes; lacking: {kinds or 'nothing'}", file=sys.stderr)
    return 1 if lacks else 0


if __name__ == "__main__":
    sys.exit(main())
