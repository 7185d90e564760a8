"""Tables over runs, paired tests, published figures and cards: what is too dull for a page, and what must not break."""

import csv
import io
import json
import math
import random
import re
from statistics import fmean, pstdev, stdev

import pandas as pd
import pytest
import scipy.stats as stats
from typer.testing import CliRunner

from mudpt.cards import card, command, groups, interval, judged
from mudpt.cells import as_rows
from mudpt.cli import app
from mudpt.core import BadInput, Unknown
from mudpt.pairing import Differences, flips, paired, quantile, sign_test, student, wilcoxon
from mudpt.published import BY, OVER, behind, disagreeing, figures, not_found, triples
from mudpt.runs import Runs
from mudpt.sets import ORDER
from mudpt.sheet import Best, Sheet, tex
from mudpt.table import harmonic_of
from mudpt.tabulating import tabulate


def record(method, task, seed, base=60.0, new=50.0, status="done", error=None, cell=None, row=None):
    "What stands in a run.json"
    facts = dict(base=base, new=new, H=harmonic_of(base, new), tier="A", batch_dependent=False, trainable=8)
    facts |= dict(split=f"split {task}", subset=f"{task} {seed}", n_test=dict(base=9, new=9), recipe=dict(epochs=5))
    done = dict(method=method, args={}, task=task, seed=seed, shots=16, protocol="base-to-new", epochs=None, bs=None)
    clip = dict(name="ViT-B-16", pretrained="openai", digest="d", precision="fp32", device="cpu")
    return dict(
        format=1, key="0" * 16, status=status, error=error, clip=clip, env=dict(mudpt="0.0.1", torch="2"), git=None,
        cell=done | dict(train={}) | (cell or {}), row=facts | (row or {}) if status == "done" else {},
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    "A folder of runs: two data sets, three seeds; one failed, one is half written, one stopped"
    root = tmp_path / "runs"
    rng = random.Random(0)
    for t in ("emoji/animals", "emoji/food"):
        for s in (1, 2, 3):
            shift = rng.gauss(0, 3)
            for m, gain in (("ZeroShot", 0), ("CoOp", 3), ("MaPLe", 5)):
                x = record(m, t, s, 60 + gain + shift, 50 + shift + rng.random())
                if (m, t, s) == ("CoOp", "emoji/food", 3):
                    x = record(m, t, s, status="error", error="the loss became nan")
                if (m, t, s) == ("MaPLe", "emoji/food", 2):
                    x = record(m, t, s, status="stopped")
                keep(root, x)
    (root / "CoOp-torn").mkdir()
    (root / "CoOp-torn" / "run.json").write_text('{"form')
    return root


def keep(root, x):
    c = x["cell"]
    d = root / f"{c['method']}-{c['task'].replace('/', '_')}-{c['shots']}shots-seed{c['seed']}-{len(str(x))}"
    d.mkdir(parents=True, exist_ok=True)
    (d / "run.json").write_text(json.dumps(x))


def number(grid, **of):
    (found,) = [r for r in grid.numbers if all(r[k] == v for k, v in of.items())]
    return found


def test_a_folder_its_runs_and_their_frame_give_the_same_table(folder):
    path, runs, frame = (tabulate(x) for x in (folder, Runs(folder), Runs(folder).frame))
    assert str(path) == str(runs) == str(frame)
    assert "1 run folder could not be read." in path.notes
    assert any("CoOp failed in 1 of 6 runs: the loss became nan" in n for n in path.notes)
    assert any("MaPLe on emoji/food: stopped (1 run)" in n for n in path.notes)


def test_numbers_are_those_of_numpy_by_hand(folder):
    rows = [r for r in as_rows(folder) if r.get("method") == "MaPLe" and r["status"] == "ok"]
    base, new = ([r[m] for r in rows if r["task"] == "emoji/animals"] for m in ("base", "new"))
    x = number(tabulate(folder), method="MaPLe", task="emoji/animals")
    assert x["mean"] == pytest.approx(2 * fmean(base) * fmean(new) / (fmean(base) + fmean(new)))
    assert x["sd"] == pytest.approx(stdev(2 * b * n / (b + n) for b, n in zip(base, new, strict=True)))
    assert number(tabulate(folder, value="base", sd="population"), method="MaPLe", task="emoji/animals")[
        "sd"
    ] == pytest.approx(pstdev(base))
    mean = number(tabulate(folder, value="base"), method="MaPLe", task="average")
    whole = [s for s in (1, 2, 3) if sum(r["seed"] == s for r in rows) == 2]
    assert (mean["n"], mean["of"], whole) == (2, 3, [1, 3])
    assert mean["mean"] == pytest.approx(fmean(r["base"] for r in rows if r["seed"] in whole))


def test_incomplete_cells_are_marked_and_never_bold(folder):
    t = tabulate(folder, value="base")
    at = {(line[0], head[1]): c for line in t.lines for head, c in zip(t.head, line, strict=True)}
    assert at["MaPLe", "emoji/food"].endswith("(2/3)") and not isinstance(at["MaPLe", "emoji/food"], Best)
    assert isinstance(at["MaPLe", "emoji/animals"], Best)
    assert not any(isinstance(at[m, "emoji/food"], Best) for m in ("ZeroShot", "CoOp", "MaPLe"))
    alone = tabulate([record("CoOp", "a", 1, status="error", error="x"), record("CoOp", "b", 1)])
    assert alone.lines[0][1:] == ["failed", "54.5", "failed"]


def test_a_method_that_lacks_a_data_set_has_no_average():
    rows = [record("A", t, s) for t in "xy" for s in (1, 2)] + [record("B", "x", s, 99, 99) for s in (1, 2)]
    t = tabulate(rows)
    assert number(t, method="B", task="average")["mean"] is None
    assert number(t, method="A", task="average")["best"] is False  # nobody to compete with
    assert t.lines[1][2] == ""  # never run, as against failed


def test_what_prints_alike_is_bold_alike_and_less_can_be_better():
    rows = [
        record(m, "x", 1, b, 50, row=dict(seconds=s)) for m, b, s in (("A", 70.04, 9), ("B", 69.96, 5), ("C", 69.94, 7))
    ]
    bold = lambda t: [line[0] for line in t.lines if isinstance(line[1], Best)]
    assert bold(tabulate(rows, value="base")) == ["A", "B"]
    assert bold(tabulate(rows, value="base", digits=2)) == ["A"]
    assert bold(tabulate(rows, value="seconds")) == ["B"]


def test_average_is_over_targets_without_the_source():
    of = lambda t, role, a: record(
        "A", t, 1, cell=dict(protocol="cross-dataset"), row=dict(role=role, accuracy=a, trained_on="s")
    )
    t = tabulate([of("s", "source", 90.0), of("t", "target", 60.0), of("u", "target", 40.0)])
    assert number(t, task="average")["mean"] == 50.0
    assert any("without the source" in n for n in t.notes)


def test_two_runs_in_one_place_are_refused_and_the_way_out_works():
    rows = [record("A", "x", s, cell=dict(shots=k)) for s in (1, 2) for k in (4, 16)]
    with pytest.raises(BadInput, match=r"differ in shots \(4 and 16\).*where=\{'shots'"):
        tabulate(rows)
    assert number(tabulate(rows, where=dict(shots=4)), method="A")["n"] == 2
    assert [h[1] for h in tabulate(rows, cols="shots").head] == ["method", "4 shots", "16 shots"]
    with pytest.raises(BadInput, match="twice with the same settings"):
        tabulate([record("A", "x", 1), record("A", "x", 1)])
    with pytest.raises(BadInput, match="no run has shots 8: there are 4, 16"):
        tabulate(rows, where=dict(shots=8))
    with pytest.raises(BadInput, match="no runs to show"):
        tabulate([])


def test_other_images_and_settings_are_told():
    rows = [record("A", "x", 1), record("B", "x", 1, cell=dict(epochs=2), row=dict(split="another"))]
    notes = " ".join(tabulate(rows).notes)
    assert "epochs: default (A); epochs 2 (B)" in notes and "1 of 1 splits differ" in notes


def test_protocols_do_not_mix():
    few = record("A", "x", 1, cell=dict(protocol="few-shot"), row=dict(accuracy=70.0))
    assert len(tabulate([record("A", "x", 1), few]).lines) == 1
    assert number(tabulate([record("A", "x", 1, row=dict(accuracy=None)), few], value="accuracy", where=dict(protocol="few-shot")), method="A")["mean"] == 70.0  # fmt: skip


def test_classes_and_seeds_may_be_lines():
    rows = [record("A", "x", s, row=dict(per_class=dict(base=dict(cat=s, dog=50)))) for s in (1, 2, 3)]
    t = tabulate(rows, rows="class", cols="method", value="accuracy", where=dict(protocol="base-to-new"))
    assert [line[:2] for line in t.lines] == [["cat", "2.0 ± 1.0"], ["dog", "50.0 ± 0.0"]]
    assert [line[0] for line in tabulate(rows, rows="seed", value="base").lines] == ["seed 1", "seed 2", "seed 3"]


NASTY = Sheet(
    [("", "m&m"), ("50 %_x", "a|b"), ("50 %_x", "c")],
    [["<b>~\\^", Best("1.0 ± 0.1"), "−2 {x}"], ["#1 $", "–", "[red]"]], notes=("a < b & c_d",), title="T_1", rule=1,
)  # fmt: skip


def test_latex_is_balanced_and_escaped():
    out = NASTY.latex("tab:x")
    body = re.sub(r"\\[\\&%$#_{}]|\\text\w+\{\}|\$[^$]*\$", "", out.split("\n", 1)[1])
    assert not set("%$#_~^<>|±–−") & set(body), set("%$#_~^<>|±–−") & set(body)
    depth = 0
    for c in re.sub(r"\\[{}]", "", out):
        depth += (c == "{") - (c == "}")
        assert depth >= 0
    assert depth == 0
    begun, ended = (re.findall(rf"\\{w}{{(\w+)}}", out) for w in ("begin", "end"))
    assert sorted(begun) == sorted(ended) and begun[0] == ended[-1] == "table"
    rows = [x for x in out.split("\n") if x.endswith("\\\\") and "multicolumn" not in x]
    assert {len(re.findall(r"(?<!\\)&", x)) for x in rows} == {2}
    assert "\\cmidrule(lr){2-3}" in out and "\\textbf{1.0}" in out


def test_every_character_of_every_published_word_has_a_spelling():
    words = " ".join(figures().cite) + " ".join(figures().note) + not_found("MuDPT")
    assert all(ord(c) < 256 for c in tex(words)), {c for c in tex(words) if ord(c) > 255}


def test_markdown_html_csv_and_terminal_hold_the_same_words():
    md, page = NASTY.markdown().split("\n"), NASTY.html()
    assert all(len(re.findall(r"(?<!\\)\|", x)) == 4 for x in md if x.startswith("|"))
    assert "<b>~" not in page and "&lt;b&gt;~" in page and "<b>1.0</b>" in page and page.count("<tr") == 4
    assert list(csv.reader(io.StringIO(NASTY.csv())))[2] == ["#1 $", "–", "[red]"]
    from rich.console import Console

    console = Console(file=io.StringIO(), width=90, force_terminal=False)
    console.print(NASTY.rich())
    assert "[red]" in console.file.getvalue() and "1.0 ± 0.1" in console.file.getvalue()


def test_csv_of_a_table_is_numbers(folder):
    d = pd.read_csv(io.StringIO(tabulate(folder, value=("base", "new")).csv()))
    assert set(d.columns) == {"method", "task", "measure", "mean", "sd", "n", "of", "state", "best"}
    assert d["mean"].dtype == float and len(d) == 3 * 3 * 2


@pytest.mark.parametrize("df", [1, 2, 3, 4, 7, 10, 29, 120])
def test_students_t_against_scipy(df):
    for t in (0.0, 0.3, 1.0, 2.5, 12.0):
        assert student(t, df) == pytest.approx(2 * stats.t.sf(t, df), abs=1e-12)
    assert quantile(df) == pytest.approx(stats.t.ppf(0.975, df), rel=1e-9)


@pytest.mark.parametrize("n", [2, 3, 5, 8, 12])
def test_paired_tests_against_scipy(n):
    rng = random.Random(n)
    for _ in range(4):
        d = [rng.gauss(0.6, 1) for _ in range(n)]
        t = stats.ttest_1samp(d, 0)
        got = Differences("x", d)
        assert got.t == pytest.approx(t.pvalue, abs=1e-12)
        low, high = t.confidence_interval()
        assert (got.mean - got.half, got.mean + got.half) == pytest.approx((low, high))
        assert wilcoxon(d) == pytest.approx(stats.wilcoxon(d, method="exact").pvalue)
        assert sign_test(d) == pytest.approx(stats.binomtest(sum(x > 0 for x in d), n).pvalue)
        exact = stats.permutation_test(
            (d,), lambda x, axis: x.mean(axis), permutation_type="samples", n_resamples=math.inf
        )
        assert flips(d) == pytest.approx(exact.pvalue)


def test_many_pairs_are_drawn_not_counted():
    rng = random.Random(1)
    d = [rng.gauss(0.3, 1) for _ in range(40)]
    assert flips(d) == pytest.approx(Differences("x", d).t, abs=0.02)
    assert flips(d) == flips(d)  # the same draws every time


def test_no_difference_and_constant_difference():
    nothing, always = Differences("x", [0.0, 0.0, 0.0]), Differences("x", [1.0, 1.0, 1.0])
    assert set(nothing.tests.values()) == {1.0}
    assert always.tests == dict(t=0.0, permutation=0.25, wilcoxon=0.25, sign=0.25)
    assert Differences("x", [2.0]).tests["t"] is None and Differences("x", [2.0]).half is None


def test_paired_on_a_folder(folder):
    p = paired(folder, "MaPLe", "CoOp", "base")
    assert [(x.name, x.n) for x in p.parts] == [
        ("emoji/animals", 3),
        ("emoji/food", 1),
        ("average", 1),
        ("data sets", 2),
    ]
    assert p["emoji/animals"].d == pytest.approx([2.0, 2.0, 2.0])
    said = " ".join(p.notes)
    assert "3 pairs give no p below 0.25" in said and "emoji/food: 1 of 3 seeds have both" in said
    assert "One pair (emoji/food, average)" in said
    assert p.latex().count("{") == p.latex().count("}")


def test_what_is_no_pair_is_refused():
    a, b = [record("A", "x", s) for s in (1, 2)], [record("B", "x", s, row=dict(subset="other")) for s in (1, 2)]
    with pytest.raises(BadInput, match="they had other images"):
        paired(a + b, "A", "B")
    with pytest.raises(BadInput, match="precision is 'fp32' and 'fp16'"):
        x = record("B", "x", 1)
        paired(a + [x | dict(clip=x["clip"] | dict(precision="fp16"))], "A", "B")
    with pytest.raises(BadInput, match="nothing to pair"):
        paired(a + [record("B", "y", 1)], "A", "B")
    with pytest.raises(BadInput, match="compared with itself"):
        paired(a, "A", "A")
    blind = [r | dict(row={k: v for k, v in r["row"].items() if k != "subset"}) for r in a + [record("B", "x", 1)]]
    assert any("taken on trust" in n for n in paired(blind, "A", "B").notes)


def test_figures_are_whole_and_each_has_its_source():
    d = figures()
    assert (
        len(d) == 415
        and not d.duplicated(["method", "variant", "protocol", "task", "shots", "measure", "source"]).any()
    )
    assert d.cite.str.len().gt(5).all() and set(d.by) <= set(BY) and set(d.protocol) == set(OVER)
    assert d.value.between(0, 100).all() and d.shown.str.fullmatch(r"\d+\.\d\d").all()
    assert set(d.measure) == {"base", "new", "H", "accuracy"} and set(d.tier) == {"A", "B", "C"}
    assert all(len(behind(t)) > 1 or t in [*ORDER, *behind("average of 4")] for t in set(d.task))
    assert set(d.shots) == {"1", "2", "4", "8", "16", ""}


def test_harmonic_means_agree_but_for_three_that_are_known():
    assert len(triples()) == 87
    assert list(disagreeing().method) == ["VPT", "DPT", "HPT"]


@pytest.mark.parametrize("method", ["ZeroShot", "CoOp", "CoCoOp", "MaPLe", "PromptSRC"])
def test_averages_agree_with_their_columns(method):
    d = figures(method, protocol="base-to-new")
    for m in ("base", "new"):
        x = d[d.measure == m]
        assert x[x.task.isin(ORDER)].value.mean() == pytest.approx(x[x.task == "average of 11"].value.iloc[0], abs=0.01)


def test_averages_of_the_other_questions_agree_where_all_is_there():
    d = figures("MaPLe", protocol="cross-dataset").query("variant == ''")
    assert d[d.task.isin(behind("average of 10"))].value.mean() == pytest.approx(66.30, abs=0.01)
    shift = figures(protocol="domain-shift")
    for m, mean in (("MaPLe", 60.27), ("MMRL", 60.59)):
        assert shift[(shift.method == m) & shift.task.isin(behind("average of 4"))].value.mean() == pytest.approx(mean, abs=0.011)  # fmt: skip


def test_figures_by_hand():
    "A few looked up again in the texts they come from"
    for of, value in {
        ("MaPLe", "average", "base-to-new", 16, "H"): 78.55, ("CoOp", "dtd", "base-to-new", 16, "new"): 41.18,
        ("ZeroShot", "EuroSAT", "base-to-new", 16, "H"): 60.03, ("MaPLe", "imagenet_r", "domain-shift", 16, "accuracy"): 76.98,
        ("MaPLe", "eurosat", "cross-dataset", 16, "accuracy"): 48.06, ("CoCoOp", "average", "few-shot", 1, "accuracy"): 66.79,
        ("DPT", "average", "base-to-new", 16, "new"): 29.23, ("ZeroShot", "average", "few-shot", 8, "accuracy"): 65.36,
    }.items():  # fmt: skip
        *of, measure = of
        assert figures(*of).query("measure == @measure").value.iloc[0] == value, of
    assert set(figures("MaPLe", "eurosat", "few-shot", 4).value) == {84.50, 54.87}
    assert figures("MuDPT").empty and figures("DCP").empty
    assert figures("MaPLe", "average", "base-to-new").by.iloc[0] == "authors"


def test_a_card_says_what_is_the_same(folder):
    runs = [
        record(
            "MaPLe",
            "EuroSAT",
            s,
            90 + s,
            70 + s,
            row=dict(recipe=dict(epochs=5, lr=0.0035, bs=4), n_test=dict(base=4200, new=3900)),
        )
        for s in (1, 2, 3)
    ]
    text = str(card("MaPLe", "eurosat", runs))
    for part in (
        "94.07",
        "82.35",
        "92.0 ± 1.0",
        "| test images | 4,200 + 3,900 | 4,200 + 3,900 | same |",
        "| precision | fp16 | fp32 | ≠ differs |",
    ):
        assert part in text, part
    assert "--tasks eurosat --shots 16 --seeds 1,2,3 --model ViT-B-16 --pretrained openai" in text
    small = [r | dict(row=r["row"] | dict(n_test=dict(base=10, new=10))) for r in runs]
    assert "10 + 10 | ≠ differs" in str(card("MaPLe", "eurosat", small))


def test_a_card_keeps_settings_apart():
    runs = [record("CoOp", "dtd", s, 70 + 5 * (e or 0), 50, cell=dict(epochs=e)) for s in (1, 2) for e in (None, 2)]
    assert [len(g) for g in groups(runs, "CoOp", "DTD", "base-to-new", 16)] == [2, 2]
    text = str(card("CoOp", "dtd", runs))
    assert text.count("here (2 seeds)") == 2 and text.count("### To repeat it") == 2


def test_cards_without_figures_or_runs_say_so(folder):
    assert "could not be found" in str(card("MuDPT", "eurosat")) and "No figure was found" in str(
        card("MuDPT", "eurosat")
    )
    own = str(card("CoOp", "emoji/food", folder))
    assert "mudpt's own data set" in own and "seed 3 on emoji/food: error: the loss became nan" in own
    assert "no run" not in own and "(2/3)" in own
    assert "there is none of VPT on emoji/food" in str(card("VPT", "emoji/food", folder))
    assert "78.55" in str(card("MaPLe", "average"))
    assert "82.32" in str(card("PromptSRC", "eurosat")) and "80.55" in str(
        card("CLIP-SVD", "average", None, "few-shot", 8)
    )
    with pytest.raises(Unknown, match="unknown method"):
        card("Nonsense", "eurosat")
    with pytest.raises(Unknown, match="unknown data set"):
        card("MaPLe", "nonsense")
    with pytest.raises(Unknown, match="unknown protocol"):
        card("MaPLe", "eurosat", protocol="nonsense")


def test_a_card_for_the_average_needs_all_data_sets():
    of = lambda keys: [record("MaPLe", k, s, 82 + s, 75) for k in keys for s in (1, 2, 3)]
    assert "1 of 11 data sets missing: ucf101" in str(card("MaPLe", "average", of(ORDER[:-1])))
    assert "84.0 ± 1.0" in str(card("MaPLe", "average", of(ORDER)))


def test_interval_and_verdict():
    xs = [80.0, 82.0, 84.0]
    assert interval(xs) == pytest.approx(stats.t.interval(0.95, 2, fmean(xs), stats.sem(xs)))
    rows = as_rows([record("A", "x", s, b, 50) for s, b in enumerate(xs)])
    assert "inside" in judged(rows, ["x"], dict(base=80.0), ("base",))[0]
    assert "outside" in judged(rows, ["x"], dict(base=60.0), ("base",))[0]
    assert interval([1.0]) is None and "one seed" in judged(rows[:1], ["x"], dict(base=60.0), ("base",))[0]


def test_commands_of_cards_can_be_typed():
    "Each is parsed by the command it names"
    r = as_rows([record("MaPLe", "dtd", 1, cell=dict(epochs=3, args=dict(depth=3)))])
    for protocol in OVER:
        words = command(r, "MaPLe", "dtd", protocol, 4).split()
        assert words[0] == "mudpt" and "MaPLe.depth=3" in words and words[words.index("--epochs") + 1] == "3"
        said = CliRunner().invoke(app, [*words[1:], "--help"])
        assert said.exit_code == 0
        assert all(w in said.output.replace("\n", "") for w in words if w.startswith("--")), said.output


def test_terminal(folder):
    cli = lambda *a: CliRunner().invoke(app, list(map(str, a)))
    assert "MaPLe" in cli("table", folder).output
    for form, first in dict(md="**H, %**", latex="% needs", csv="method,task", html="<!doctype html>").items():
        r = cli("table", folder, "--format", form)
        assert r.exit_code == 0 and r.output.startswith(first)
    r = cli("table", folder, "--against", "CoOp", "--value", "base", "--format", "md")
    assert "MaPLe against CoOp, base" in r.output and "ZeroShot against CoOp" in r.output
    assert "82.35" in cli("card", "MaPLe", "eurosat", "--format", "md").output
    for bad in (
        ("table", folder / "no"),
        ("table", folder, "--format", "doc"),
        ("table", folder, "--against", "DCP"),
        ("card", "MaPLe", "eurosat", "--format", "latex"),
    ):
        r = cli(*bad)
        assert r.exit_code == 2 and "Traceback" not in r.output
    assert cli("table", folder, "--where", "shots").exit_code == 2
