"""nbdev's own processing of the pages (show_doc, hidden cells, links), without Quarto: fills _proc/."""

import ast
import os
import re
import warnings
from pathlib import Path

import yaml
from api import Library
from nbdev import processors, showdoc
from nbdev.doclinks import _build_modidx
from nbdev.quarto import nbdev_sidebar, refresh_quarto_yml
from nbdev.serve import proc_nbs

needed_for_show_doc = processors._do_eval
begin = processors.exec_show_docs.begin


def evaluate(cell):
    "nbdev runs every cell with an import in it, the work beside the import included: that work is not needed here."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not needed_for_show_doc(cell):
            return False
    exported = cell.directives_.keys() & {"export", "exports", "exporti", "exec_doc"}
    lesson = (
        any(isinstance(t, (ast.Assign, ast.Expr, ast.With)) for t in cell.parsed_()) and "show_doc" not in cell.source
    )
    return bool(exported) or not lesson


def as_written(cell, shown, names=processors._def_names):
    "nbdev shows what one cell defines from the last to the first."
    return names(cell, shown)[::-1]


class Noted(showdoc.BasicMarkdownRenderer):
    "What nbdev says of a name, and what the code says besides: words that were explained before, errors, source."

    library, module, pages = None, "", {}

    def _repr_markdown_(self):
        if not getattr(self.sym, "__doc__", None):
            self.docs = ""  # nbdev would show what Python says of any function: "Call self as a function."
        notes = self.library.notes(self.module, self.nm, self.link)
        return super()._repr_markdown_() + (f"\n\n::: {{.api-notes}}\n{notes}\n:::\n" if notes else "")

    @classmethod
    def link(cls, module, name):
        page = cls.pages.get(f"mudpt.{module}", {}).get(f"mudpt.{module}.{name}")
        return f"[{name}]({cls.site}/{page[0]})" if page else name  # no backticks: nbdev would link them again


def begun(self):
    "Which page is it?"
    homes = [c.directives_["default_exp"][0] for c in self.nb.cells if "default_exp" in (c.directives_ or {})]
    Noted.module = homes[0] if homes else ""
    begin(self)


# [`Heat`](30_heat.html) names a thing and a page: nbdev links the name again, within the link. The inner one is the finer.
LINKED_TWICE = re.compile(r"\[(\[`[^`\]]+`\]\([^)\s]*\))\]\([^)\s]*\)")

# What is told comes before what is looked up, and in the order in which it is best read; nbdev goes by the alphabet.
TOLD = dict(
    tutorials="first_prompts train_widget see_where_a_prompt_looks compare_alignment add_a_method add_a_data_set"
    " bring_your_own_model reproduce_base_to_new".split(),
    explanations="four_orders where_we_differ how_numbers_go_wrong feature_baselines regulariser_times_coupling which_map"
    " why_a_shared_prefix_is_exact what_a_step_costs words_of_the_api".split(),
)


def arranged(contents):
    "The sidebar's entries: tutorials, explanations, and then the library page by page"

    def place(section, path):
        name = Path(path).stem
        return TOLD[section].index(name) if name in TOLD[section] else len(TOLD[section])

    said = {c["section"]: c for c in contents if isinstance(c, dict)}
    for section in TOLD.keys() & said.keys():
        said[section]["contents"].sort(key=lambda p: place(section, p))
    rest = [c for c in contents if not isinstance(c, dict) or c["section"] not in TOLD]
    front = [c for c in rest if c == "index.ipynb"]
    return front + [said[s] for s in TOLD if s in said] + [c for c in rest if c not in front]


if __name__ == "__main__":
    from nbdev.config import get_config

    processors._do_eval, processors._def_names, processors.exec_show_docs.begin = evaluate, as_written, begun
    showdoc.BasicMarkdownRenderer = Noted
    refresh_quarto_yml()
    _build_modidx()
    nbdev_sidebar.__wrapped__()
    cfg = get_config()
    side = cfg.nbs_path / "sidebar.yml"
    bar = yaml.safe_load(side.read_text(encoding="utf-8"))
    bar["website"]["sidebar"]["contents"] = arranged(bar["website"]["sidebar"]["contents"])
    side.write_text(yaml.safe_dump(bar, sort_keys=False), encoding="utf-8")
    index = {}
    exec((cfg.lib_path / "_modidx.py").read_text(encoding="utf-8"), index)  # written a moment ago
    Noted.library, Noted.pages = Library(), index["d"]["syms"]
    Noted.site = (cfg.doc_host + cfg.doc_baseurl).rstrip("/")
    print(proc_nbs(n_workers=0, force=True), flush=True)  # in this process: torch is imported once
    for page in (cfg.config_path / "_proc").rglob("*.ipynb"):
        text = page.read_text(encoding="utf-8")
        page.write_text(LINKED_TWICE.sub(r"\1", text), encoding="utf-8")
    os._exit(0)  # otherwise each page's shell collects all garbage before it goes: minutes for nothing
