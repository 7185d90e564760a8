"""nbdev's own processing of the pages (show_doc, hidden cells, links), without Quarto: fills _proc/."""

import ast
import warnings

from nbdev import processors
from nbdev.doclinks import _build_modidx
from nbdev.quarto import nbdev_sidebar, refresh_quarto_yml
from nbdev.serve import proc_nbs

needed_for_show_doc = processors._do_eval


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


if __name__ == "__main__":
    processors._do_eval = evaluate
    refresh_quarto_yml()
    _build_modidx()
    nbdev_sidebar.__wrapped__()
    print(proc_nbs(n_workers=0, force=True))  # in this process: torch is imported once
