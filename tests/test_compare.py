import json
import re
from html.parser import HTMLParser

import pytest
from fakes import Draws, Explodes, Method, Nothing, clip, task
from small import small

import mudpt.comparing as mc
from mudpt.cards import card
from mudpt.charts import accuracy_chart, nice
from mudpt.comparing import compare, find_methods, find_task, load
from mudpt.core import BadInput, MudptError, Unknown
from mudpt.prompts import methods as registry
from mudpt.protocols import cross_dataset, few_shot_curve
from mudpt.report import report
from mudpt.runs import cell
from mudpt.runs import run as run_cell
from mudpt.table import Table, harmonic_of, known_as
from mudpt.tabulating import tabulate


def run(methods=(Nothing, Method), **kw):
    return compare(
        list(methods),
        kw.pop("tasks", [task()]),
        **{"shots": 4, "seeds": (1, 2), "clip": clip(), "bar": False, "workers": 1, **kw},
    )


def test_one_row_per_method_task_and_seed():
    c = run(tasks=[task(), task(name="again")])
    assert [(r["method"], r["task"], r["seed"]) for r in c.rows] == [
        (m, t, s) for s in (1, 2) for t in ("colours", "again") for m in ("Nothing", "Method")
    ]
    assert all(r["status"] == "ok" and 0 <= r["base"] <= 100 and r["peak_mib"] > 0 for r in c.rows)
    assert c.frame().shape[0] == 8


def test_a_failing_method_is_a_row_and_the_others_go_on():
    c = run((Explodes, Method))
    assert [r["status"] for r in c.rows] == ["error", "ok"] * 2
    assert "the loss became inf" in c.rows[0]["error"] and c.rows[0]["traceback"] == ""
    table = c.table()
    assert table.lines[0]["runs"] == 0 and "0 of 2 runs" in str(table)
    assert any("Explodes" in n and "failed" in n for n in c.notes())


class Broken(Method):
    def loss(self, out, y):
        return 1 / 0


def test_a_bug_in_a_method_keeps_its_traceback():
    r = run((Broken,), seeds=(1,)).rows[0]
    assert r["error"].startswith("ZeroDivisionError") and "1 / 0" in r["traceback"]


def test_interrupted_comparison_continues_with_the_missing_cell(tmp_path, monkeypatch):
    whole = run((Nothing, Method, Draws))
    done, real = [], mc.fill

    def dies(cell, *a, **k):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(cell)
        return real(cell, *a, **k)

    monkeypatch.setattr(mc, "fill", dies)
    with pytest.raises(KeyboardInterrupt):
        run((Nothing, Method, Draws), out=tmp_path)
    kept = [json.loads(f.read_text())["status"] for f in tmp_path.glob("runs/*/run.json")]
    assert sorted(kept) == ["done", "done", "done", "stopped"]
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]

    later = []
    monkeypatch.setattr(mc, "fill", lambda cell, *a, **k: (later.append(cell), real(cell, *a, **k))[1])
    c = run((Nothing, Method, Draws), out=tmp_path)
    assert len(later) == 3
    assert [r["H"] for r in c.rows] == [r["H"] for r in whole.rows]


def test_a_cell_is_known_by_everything_it_depends_on():
    t, base = (
        task(),
        dict(method="A", args={}, task="colours", seed=1, shots=4, protocol="base-to-new", epochs=None, bs=None),
    )
    key = lambda clip=clip(), t=t, **kw: mc.cell_key(base | kw, clip, t)
    other = clip()
    other.digest = "0" * 16
    keys = [
        key(),
        key(seed=2),
        key(shots=2),
        key(epochs=3),
        key(bs=8),
        key(args=dict(depth=3)),
        key(method="B"),
        key(clip=other),
        key(t=task(5)),
    ]
    assert len(set(keys)) == len(keys) and key() == keys[0]


def test_failed_cells_are_tried_again(tmp_path):
    for sitting in (1, 2):
        c = run((Explodes,), out=tmp_path)
        assert [r["status"] for r in c.rows] == ["error"] * 2
        kept = [json.loads(f.read_text()) for f in tmp_path.glob("runs/*/run.json")]
        assert [(r["status"], r["timing"]["sittings"]) for r in kept] == [("error", sitting)] * 2
        assert all("the loss became inf" in r["error"] for r in kept)


def test_results_survive_and_say_where_they_come_from(tmp_path):
    c = run(out=tmp_path, command="mudpt compare --shots 4")
    assert {p.name for p in tmp_path.iterdir()} == {"runs", "results.json", "table.md", "table.csv", "report.html"}
    again = load(tmp_path)
    assert again.table().markdown() == c.table().markdown()
    md = (tmp_path / "table.md").read_text()
    assert "`mudpt compare --shots 4`" in md and "own published recipe" in md and "seeds 1, 2" in md
    assert "alike" in (run(epochs=2, bs=8).notes()[0])


def test_epochs_and_batch_hold_for_all_trained_methods():
    c = run((Nothing, Method, Draws), epochs=2, bs=8, seeds=(1,))
    assert [(r["recipe"].get("epochs"), r["recipe"].get("bs")) for r in c.rows] == [(None, None), (2, 8), (2, 8)]


def test_few_shot_protocol():
    c = run(protocol="few-shot")
    assert c.table().measures == ("accuracy", "macro_f1", "ece") and "base" not in c.rows[0]
    assert set(c.rows[0]["per_class"]["all"]) == {"red", "green", "blue", "white"}


class Bound(Method):
    class_specific = True


def test_a_method_bound_to_its_classes_has_no_answer_on_new_ones():
    c = run((Bound,))
    assert c.rows[0]["new"] is None and c.rows[0]["H"] is None
    assert "own classes only" in str(c.table()) and "no answer" in accuracy_chart(c.rows)


def test_harmonic_mean_is_taken_of_averages():
    kw = dict(task="t", protocol="base-to-new", status="ok", trainable=1, seconds=1.0, peak_mib=1.0, order="apart")
    rows = [dict(method="A", seed=s, base=b, new=n, **kw) for s, b, n in ((1, 90.0, 30.0), (2, 50.0, 70.0))]
    line = Table(rows).lines[0]
    assert line["H"][0] == pytest.approx(harmonic_of(70, 50)) != (harmonic_of(90, 30) + harmonic_of(50, 70)) / 2
    assert line["base"] == (70, pytest.approx(20 * 2**0.5))  # of a sample: two draws out of many


def test_an_incomplete_method_is_never_bold():
    kw = dict(
        task="t", protocol="few-shot", macro_f1=1.0, ece=1.0, trainable=1, seconds=1.0, peak_mib=1.0, order="apart"
    )
    rows = [dict(method="A", seed=1, accuracy=99.0, status="ok", **kw), dict(method="A", seed=2, status="error", **kw),
            *(dict(method="B", seed=s, accuracy=50.0, status="ok", **kw) for s in (1, 2))]  # fmt: skip
    a, b = str(Table(rows)).split("\n")[2:4]
    assert "99.0" in a and "**99" not in a and "**50.0 ± 0.0**" in b


@pytest.mark.parametrize(
    "call,error,says",
    [
        (lambda: find_methods(["maple"]), Unknown, "did you mean 'MaPLe'"),
        (lambda: find_task("no/such/folder"), BadInput, "neither a folder"),
        (lambda: run(protocol="base2new"), Unknown, "base-to-new"),
        (lambda: run(args={"Method": {"width": 12}, "MaPLe": {}}), BadInput, "MaPLe, which is not among"),
        (lambda: run(seeds=()), BadInput, "no seeds"),
        (lambda: run(methods=()), BadInput, "no methods"),
        (lambda: run(tasks=[]), BadInput, "no tasks"),
        (lambda: run(tasks=[task(), task(5)]), BadInput, "two tasks are called 'colours'"),
    ],
)
def test_mistakes_are_told_before_anything_runs(call, error, says):
    with pytest.raises(error, match=says):
        call()
    assert issubclass(error, MudptError)


class Page(HTMLParser):
    void = {"meta", "br", "img", "hr", "link"}

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.links = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "srcset") and v]
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_report_is_one_sound_file_that_asks_nothing_of_the_network():
    c = run((Nothing, Method, Explodes), tasks=[task(), task(name="a < b & c")], command="mudpt compare --tasks '<x>'")
    html = report(c)
    page = Page(html)
    assert page.open == [] and page.links == [] and "script" not in page.tags
    assert not re.search(r"https?://(?!www\.w3\.org/)", html) and "@import" not in html
    assert page.tags.count("svg") >= 4 and "&lt;x&gt;" in html and "a &lt; b &amp; c" in html
    assert len(html) < 1_000_000


def test_axis_ticks_cover_the_data():
    for lo, hi in ((0, 1), (58.3, 88.1), (0.001, 0.0042), (12, 12), (-5, 100)):
        t = nice(lo, hi)
        assert t[0] <= lo and t[-1] >= hi and 2 <= len(t) <= 9


def test_a_regulariser_makes_another_competitor(tmp_path):
    t, many = task(4), dict(shots=2, seeds=(1,), epochs=2, bs=2, clip=small("vit"), bar=False)
    c = compare(["ZeroShot", "CoOp"], [t], regulariser=["none", "KgCoOp(weight=4)"], out=tmp_path, **many)
    assert [(r["method"], r["status"]) for r in c.rows] == [
        ("ZeroShot", "ok"),  # has no training to stand beside, and competes once
        ("CoOp", "ok"),
        ("CoOp + KgCoOp(weight=4.0)", "ok"),
    ]
    assert [l["method"] for l in c.table().lines] == [r["method"] for r in c.rows]
    assert c.rows[2]["coupling"] == "CoOp" and c.rows[2]["regulariser"] == "KgCoOp(weight=4.0)"
    assert c.rows[1]["losses"] != c.rows[2]["losses"]
    page = report(c)
    assert Page(page).open == [] and page.count("CoOp + KgCoOp(weight=4.0)") > 5
    assert load(tmp_path).table().lines[2]["method"] == "CoOp + KgCoOp(weight=4.0)"
    assert str(tabulate(tmp_path, value="base")).count("CoOp + KgCoOp(weight=4.0)") == 1

    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "runs").rglob("*")}
    one = run_cell(cell("CoOp", t, 2, epochs=2, bs=2, regulariser={"KgCoOp": {"weight": 4}}), small("vit"), t, tmp_path / "runs")
    assert one.status == "done" and before == {f: f.stat().st_mtime_ns for f in (tmp_path / "runs").rglob("*")}

    with pytest.raises(MudptError, match="did you mean 'KgCoOp'"):
        compare(["CoOp"], [t], regulariser="KgCop", **many)
    alone = compare(["CoOp"], [t], regulariser=[], **many)
    assert [r["method"] for r in alone.rows] == ["CoOp"] and alone.rows[0]["losses"] == c.rows[1]["losses"]


def test_a_regulariser_in_the_other_protocols():
    t, how = task(4), dict(seeds=(1,), epochs=1, bs=2, clip=small("vit"), bar=False, regulariser=[None, "KgCoOp"])
    few = few_shot_curve(["CoOp"], [t], shots=(1, 2), **how)
    assert [(r["method"], r["shots"]) for r in few.rows] == [("CoOp", 1), ("CoOp + KgCoOp", 1), ("CoOp", 2), ("CoOp + KgCoOp", 2)]
    assert [l["method"] for l in few.table().lines] == ["CoOp", "CoOp + KgCoOp"]
    other = cross_dataset(["CoOp"], t, [task(4, name="again")], shots=2, **how)
    assert [(r["method"], r["task"], r["status"]) for r in other.rows] == [
        (m, x, "ok") for m in ("CoOp", "CoOp + KgCoOp") for x in ("colours", "again")
    ]


def test_tables_call_methods_as_the_field_does():
    c = compare(["LP++", "Tip-Adapter"], [task(4)], 2, (1,), clip=small("vit"), epochs=1, bar=False)
    assert [r["method"] for r in c.rows] == ["LPPlusPlus", "TipAdapter"] and not c.errors
    for text in (str(c.table()), report(c), str(tabulate(c)), accuracy_chart(c.rows)):
        assert "LP++" in text and "Tip-Adapter" in text
        assert "LPPlusPlus<" not in text and "| LPPlusPlus" not in text and ">LPPlusPlus" not in text.replace(">LPPlusPlus(", "")
    assert str(card("LP++", "average", protocol="few-shot")) == str(card("LPPlusPlus", "average", protocol="few-shot"))

    class Mine(registry["LPPlusPlus"]):
        "Not LP++"

    try:
        assert known_as("Mine") == "Mine" and known_as("LoRA + KgCoOp") == "CLIP-LoRA + KgCoOp"
    finally:
        registry.pop("Mine")
