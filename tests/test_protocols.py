"The four protocols: what is trained, what is judged, what is averaged, and what happens when something goes wrong"

import json

import pytest
from test_compare import Page

import mudpt.comparing as mc
import mudpt.once as mo
from mudpt import emoji
from mudpt.columns import Columns, column_chart, columns, most_shots, table_of
from mudpt.comparing import compare, find_task
from mudpt.core import BadInput, MudptError, Unknown
from mudpt.data import Task
from mudpt.keep import load_prompts
from mudpt.methods import CoOp, MaPLe, ZeroShot
from mudpt.named import NoTask
from mudpt.once import Once, answer, facing
from mudpt.protocols import base_to_new, cross_dataset, domain_shift, few_shot_curve
from mudpt.report import report
from mudpt.results import load
from mudpt.runs import Runs
from mudpt.transfer import usual


@pytest.fixture(scope="module")
def clip():
    return emoji.clip()


def tiny(group="animals", style="twemoji", **kw):
    return emoji.task(group, style, **{"classes": 3, "n_train": 4, "n_val": 1, "n_test": 2, **kw})


@pytest.fixture
def how(clip):
    return dict(seeds=(1,), clip=clip, epochs=1, bs=4, bar=False, workers=1)


@pytest.fixture
def trainings(monkeypatch):
    "The cells that are really trained"
    done, real = [], mc.learn
    monkeypatch.setattr(mo, "learn", lambda cell, *a, **k: (done.append(cell), real(cell, *a, **k))[1])
    monkeypatch.setattr(mc, "learn", lambda cell, *a, **k: (done.append(cell), real(cell, *a, **k))[1])
    return done


def accuracies(c, task):
    return [r.get("accuracy") for r in c.rows if r["task"] == task]


def test_few_shot_fills_the_cells_that_compare_fills(how, trainings, tmp_path):
    one = compare(["CoOp"], [tiny()], 2, protocol="few-shot", out=tmp_path, **how)
    c = few_shot_curve(["CoOp"], [tiny()], shots=(4, 1, 2), out=tmp_path, **how)
    assert [t["shots"] for t in trainings] == [2, 1, 4]
    assert [r["accuracy"] for r in c.rows if r["shots"] == 2] == [one.rows[0]["accuracy"]]
    assert c.table().measures == ("1 shot", "2 shots", "4 shots") and c.table().headline == "4 shots"
    assert {p.name for p in tmp_path.iterdir()} == {"runs", "results.json", "table.md", "table.csv", "report.html"}
    assert load(tmp_path).table().markdown() == c.table().markdown()


def test_rows_say_what_a_reader_needs_to_check_them(how, tmp_path):
    c = few_shot_curve(["ZeroShot", "CoOp"], [tiny()], shots=(1, 2), out=tmp_path, command="mudpt few-shot -x", **how)
    d = json.loads((tmp_path / "results.json").read_text())
    r, i = d["rows"][-1], d["info"]
    assert (r["protocol"], r["tier"], r["seed"], r["shots"]) == ("few-shot", "A", 1, 2)
    assert r["split"] == tiny().fingerprint and r["subset"] == mc.subset_digest(tiny().few_shot(2, 1).train)
    assert i["clip"]["precision"] == "fp32" and i["versions"]["torch"] and i["command"] == "mudpt few-shot -x"
    md = (tmp_path / "table.md").read_text()
    for said in ("few-shot, 1, 2 shots", "fp32 on cpu", "torch ", "tier A", r["split"], r["subset"], "One seed (1)"):
        assert said in md, said
    assert "never saw twemoji or fluent-emoji-high-contrast" in md and "guessing is right in 33.3 %" in md
    assert "split" in (tmp_path / "table.csv").read_text().split("\n")[0] and len(c.frame()) == 4


def test_base_to_new_is_compare(how):
    task = tiny(classes=4)
    a, b = base_to_new(["CoOp"], [task], 2, **how), compare(["CoOp"], [task], 2, protocol="base-to-new", **how)
    assert [a.rows[0][k] for k in ("base", "new", "H")] == [b.rows[0][k] for k in ("base", "new", "H")]
    assert a.table().measures == ("base", "new", "H") and any("harmonic mean of the averaged" in n for n in a.notes())


def test_a_target_added_later_trains_nothing(how, trainings, tmp_path):
    kw = dict(shots=2, out=tmp_path, **how)
    first = cross_dataset(["ZeroShot", "CoOp", "MaPLe"], tiny(), [tiny("food")], **kw)
    assert len(trainings) == 3 and [r["role"] for r in first.rows] == ["source", "target"] * 3
    more = cross_dataset(["ZeroShot", "CoOp", "MaPLe"], tiny(), [tiny("food"), tiny("places")], **kw)
    assert len(trainings) == 3 and accuracies(more, "emoji/food") == accuracies(first, "emoji/food")
    fresh = cross_dataset(["ZeroShot", "CoOp", "MaPLe"], tiny(), [tiny("places")], shots=2, **how)
    assert len(trainings) == 6 and accuracies(fresh, "emoji/places") == accuracies(more, "emoji/places")
    assert set(more.table().measures) == {"emoji/animals", "food", "places", "average"}


def test_protocols_can_share_their_prompts(how, trainings, tmp_path):
    a = cross_dataset(["CoOp"], tiny(), [tiny("food")], shots=2, out=tmp_path / "a", **how)
    b = domain_shift(
        ["CoOp"], tiny(), [tiny(style="noto")], 2, out=tmp_path / "b", trained=tmp_path / "a/trained", **how
    )
    assert len(trainings) == 1 and accuracies(a, "emoji/animals") == accuracies(b, "emoji/animals")
    assert not (tmp_path / "b/trained").exists() and b.table().measures == ("emoji/animals", "@noto")
    file = next((tmp_path / "a/trained").glob("*/prompts.safetensors"))
    assert load_prompts(file, how["clip"]).name == "CoOp"  # an ordinary prompt file


def test_interrupted_while_judging_and_continued(how, trainings, tmp_path, monkeypatch):
    kw = dict(shots=2, out=tmp_path, **how)
    seen, real = [], mc.score

    def dies(*a, **k):
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(*a, **k)

    monkeypatch.setattr(mc, "score", dies)
    with pytest.raises(KeyboardInterrupt):
        domain_shift(["CoOp", "MaPLe"], tiny(), [tiny(style="noto")], **kw)
    assert len(trainings) == 2 and not (tmp_path / "results.json").exists()
    c = domain_shift(["CoOp", "MaPLe"], tiny(), [tiny(style="noto")], **kw)
    assert len(trainings) == 2 and len(seen) == 5 and not c.errors
    whole = domain_shift(["CoOp", "MaPLe"], tiny(), [tiny(style="noto")], shots=2, **how)
    assert [r["accuracy"] for r in c.rows] == [r["accuracy"] for r in whole.rows]


def test_interrupted_while_training_leaves_no_prompts(how, tmp_path, monkeypatch):
    def dies(*a, **k):
        raise KeyboardInterrupt

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(mo, "learn", dies)
        cross_dataset(["CoOp"], tiny(), [tiny("food")], shots=2, out=tmp_path, **how)
    assert not list(tmp_path.rglob("*.safetensors"))
    assert [r.status for r in Runs(tmp_path / "trained")] == ["stopped"]


def test_a_damaged_prompt_file_is_made_again(how, trainings, tmp_path):
    kw = dict(shots=2, out=tmp_path, **how)
    a = cross_dataset(["CoOp"], tiny(), [tiny("food")], **kw)
    file = next((tmp_path / "trained").glob("*/prompts.safetensors"))
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.warns(UserWarning, match="prompts.safetensors' is damaged.* is trained again"):
        b = cross_dataset(["CoOp"], tiny(), [tiny("food"), tiny("places")], **kw)
    assert len(trainings) == 2 and accuracies(a, "emoji/food") == accuracies(b, "emoji/food") and not b.errors


def test_a_failing_target_is_a_row_and_is_tried_again(how, trainings, tmp_path):
    gone = tiny("food")
    gone.test[1] = (tmp_path / "gone.png", 0)
    c = cross_dataset(["ZeroShot", "CoOp"], tiny(), [gone, tiny("places")], shots=2, out=tmp_path, **how)
    assert [r["status"] for r in c.rows] == ["ok", "error", "ok"] * 2 and "gone.png" in c.rows[1]["error"]
    assert "average" not in c.table().measures  # one target is left
    assert any("CoOp failed in 1 of 3 runs" in n and "gone.png" in n for n in c.notes())
    fixed = cross_dataset(["ZeroShot", "CoOp"], tiny(), [tiny("food"), tiny("places")], shots=2, out=tmp_path, **how)
    assert not fixed.errors and len(trainings) == 2


def test_a_data_set_that_is_not_here_is_a_row(how, tmp_path, monkeypatch):
    monkeypatch.setenv("MUDPT_DATA", str(tmp_path))
    monkeypatch.setenv("MUDPT_OFFLINE", "1")
    c = cross_dataset(["ZeroShot"], tiny(), ["dtd", tiny("food"), tiny("places")], shots=2, **how)
    assert [r["status"] for r in c.rows] == ["ok", "error", "ok", "ok"] and c.rows[1]["task"] == "dtd"
    average = c.table().lines[0]["average"][0]
    assert average == pytest.approx((c.rows[2]["accuracy"] + c.rows[3]["accuracy"]) / 2)


class _Sick(CoOp):
    def loss(self, out, y):
        return out.logits.mean() * float("nan")


def test_a_failing_training_fails_once_and_fills_its_line(how, trainings):
    c = cross_dataset([ZeroShot, _Sick], tiny(), [tiny("food"), tiny("places")], shots=2, **how)
    assert [r["status"] for r in c.rows] == ["ok"] * 3 + ["error"] * 3 and len(trainings) == 2
    assert "loss became nan" in c.rows[-1]["error"] and c.table().lines[1]["average"] == (None, None)


def test_a_method_bound_to_its_classes_refuses_others_and_takes_the_same(how):
    kw = dict(shots=2, args=dict(CoOp=dict(csc=True)), **how)
    c = cross_dataset(["ZeroShot", "CoOp"], tiny(), [tiny("food"), tiny("places")], **kw)
    line = c.table().lines[1]
    assert line["average"] == line["food"] == (None, None) and line["emoji/animals"][0] is not None
    assert (
        "own classes only" in str(c.table()) and any("bound to the 3 classes" in n for n in c.notes()) and not c.errors
    )
    assert accuracies(domain_shift(["CoOp"], tiny(), [tiny(style="noto")], **kw), "emoji/animals@noto")[0] is not None


@pytest.mark.parametrize("method,args", [("DPT", {}), ("CoOp", {"csc": True}), ("DCP", {"n_ctx": 2}), ("MuDPT", {})])
def test_prompts_from_their_file_answer_as_they_did_when_trained(how, tmp_path, method, args):
    kw = dict(shots=2, args={method: args}, **how)
    domain_shift([method], tiny(), [tiny(style="noto")], out=tmp_path, **kw)
    kept = domain_shift([method], tiny(), [tiny(style="noto"), tiny(style="emojione", n_test=4)], out=tmp_path, **kw)
    fresh = domain_shift([method], tiny(), [tiny(style="emojione", n_test=4)], **kw)
    assert not kept.errors and accuracies(kept, "emoji/animals@emojione") == accuracies(fresh, "emoji/animals@emojione")


def test_sentences_belong_to_the_data_set_that_is_judged(clip):
    flowers = tiny("nature")
    flowers.template = "a photo of a {}, a type of flower."
    assert facing(ZeroShot(clip), flowers).template == flowers.template
    own = ZeroShot(clip, template="my {}")
    assert facing(own, flowers, {"template": "my {}"}) is own
    m = MaPLe(clip)
    assert facing(m, flowers) is m
    cell = dict(method="ZeroShot", args={}, task="emoji/animals", seed=1, shots=2, epochs=None, bs=None)
    once = Once(cell, ZeroShot, clip, tiny())
    plain = tiny("nature")
    assert [once.made()[0].template, facing(once.made()[0], flowers).words] == [plain.template, flowers.template]
    assert answer(once, flowers, "target", "cross-dataset")["status"] == "ok"


@pytest.mark.parametrize(
    "call,error,says",
    [
        (lambda k: cross_dataset(["CoOp"], tiny(), ["emoji/vehicle"], **k), NoTask, "did you mean 'emoji/vehicles'"),
        (lambda k: cross_dataset(["CoOp"], "emoji/animal", **k), NoTask, "did you mean 'emoji/animals'"),
        (lambda k: cross_dataset(["Coop"], tiny(), [tiny("food")], **k), Unknown, "did you mean 'CoOp'"),
        (lambda k: cross_dataset(["CoOp"], tiny(), [tiny()], **k), BadInput, "is the source"),
        (lambda k: cross_dataset(["CoOp"], tiny(), [tiny("food")] * 2, **k), BadInput, "given twice"),
        (lambda k: cross_dataset(["CoOp"], tiny(), [], **k), BadInput, "no targets"),
        (lambda k: cross_dataset(["CoOp"], own(), **k), BadInput, "Name them"),
        (lambda k: domain_shift(["CoOp"], tiny(), [tiny("food")], **k), BadInput, "that is another data set"),
        (
            lambda k: domain_shift(["CoOp"], tiny(), [tiny(style="noto")], args={"MaPLe": {}}, **k),
            BadInput,
            "not among the methods",
        ),
        (lambda k: few_shot_curve(["CoOp"], [tiny()], shots=(), **k), BadInput, "no shots"),
        (lambda k: few_shot_curve(["CoOp"], ["nothing/here"], **k), NoTask, "neither a folder nor a listing"),
        (lambda k: few_shot_curve(["CoOp"], [tiny()], **k | {"seeds": ()}), BadInput, "no seeds"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(how, trainings, call, error, says):
    with pytest.raises(error, match=says):
        call(how)
    assert trainings == [] and issubclass(error, MudptError)


def own():
    t = tiny()
    return Task("mine", t.names, t.train, t.val, t.test)


def test_targets_that_go_with_a_source():
    assert "emoji/food" in usual(tiny(), "cross-dataset") and "emoji/animals" not in usual(tiny(), "cross-dataset")
    assert usual(tiny(style="noto"), "cross-dataset")[0].endswith("@noto")
    shifts = usual(tiny(), "domain-shift")
    assert "emoji/animals@fluent-emoji-high-contrast" in shifts and len(shifts) == len(emoji.styles) - 1
    assert "emoji/animals" in usual(tiny(style="noto"), "domain-shift")
    assert all(find_task(t).names == find_task("emoji/animals").names for t in shifts)
    net = own()
    net.name = "ImageNet"
    assert len(usual(net, "cross-dataset")) == 10 and len(usual(net, "domain-shift")) == 4


def test_a_target_with_a_part_of_the_classes_is_judged_among_those(how):
    source = tiny(classes=4)
    part = tiny(style="noto", classes=4)
    part = Task(part.name, part.names[:2], [], [], [(s, y) for s, y in part.test if y < 2])
    c = domain_shift(["ZeroShot"], source, [part], 2, **how)
    assert any("shows 2 of the 4 classes" in n for n in c.notes())
    assert set(c.rows[1]["per_class"]["all"]) == set(part.names) and c.rows[1]["n_test"] == {"all": 4}


def row(method, seed, accuracy, **kw):
    return dict(method=method, task="t", seed=seed, shots=16, accuracy=accuracy, protocol="few-shot", status="ok",
                error=None, trainable=9, seconds=1.0, peak_mib=1.0, memory="", order="apart", batch_dependent=False,
                n_test={"all": 9}, per_class={"all": {"fox": 50.0}}, losses=[1.0, 0.5], recipe={"epochs": 1}) | kw  # fmt: skip


def moved(method, seed, **accuracy):
    return [row(method, seed, a, task=t, trained_on="s", role="source" if t == "s" else "target",
                protocol="cross-dataset") for t, a in accuracy.items()]  # fmt: skip


def test_the_average_is_over_targets_and_over_whole_seeds():
    rows = [*moved("A", 1, s=0.0, x=10.0, y=30.0), *moved("A", 2, s=0.0, x=20.0, y=None),
            *moved("B", 1, s=99.0, x=1.0, y=None), *moved("B", 2, s=99.0, x=1.0, y=None)]  # fmt: skip
    t = Columns(rows)
    a, b = t.lines
    assert a["average"] == (20.0, None) and a["x"] == (15.0, pytest.approx(50**0.5)) and b["average"] == (None, None)
    nobody = [r | ({"accuracy": None} if r["task"] == "y" else {}) for r in rows]
    assert list(columns([*nobody, *(r | {"task": "z"} for r in nobody if r["task"] == "x")]))[-1] == "average"
    assert {
        r["task"] for r in columns([*nobody, *(r | {"task": "z"} for r in nobody if r["task"] == "x")])["average"]
    } == {"x", "z"}


def test_a_column_with_a_failed_run_is_never_bold_and_the_others_are():
    rows = [*moved("A", 1, s=50.0, x=90.0), *moved("B", 1, s=40.0, x=10.0)]
    rows[1] |= dict(status="error")
    text = str(Columns([*rows, *(r | {"task": "z"} for r in rows if r["task"] == "x")]))
    assert "**50.0**" in text and "**90.0**" not in text and "**10.0**" in text


def test_few_shot_over_several_tasks_is_averaged_seed_by_seed():
    rows = [
        row("A", s, 10.0 * s + k + e, shots=k, task=t) for s in (1, 2) for k in (1, 2) for t, e in (("t", 0), ("u", 4))
    ]
    t = table_of(rows)
    assert t.lines[0]["1 shot"] == (18.0, pytest.approx(50**0.5)) and t.tasks == ["t", "u"] and len(most_shots(rows)) == 4
    assert table_of(rows, "u").lines[0]["1 shot"] == (20.0, pytest.approx(50**0.5))


@pytest.mark.parametrize("kind", ["curve", "targets"])
def test_pictures_and_report_of_wide_tables(how, kind):
    if kind == "curve":
        c = few_shot_curve(["ZeroShot", "CoOp"], [tiny()], shots=(1, 2), **how)
    else:
        c = domain_shift(["ZeroShot", "CoOp"], tiny(), [tiny(style="noto"), tiny(style="emojione")], 1, **how)
    fig = c.figure()
    assert [t.name for t in fig.data] == ["ZeroShot", "CoOp"] and len(fig.data[0].x) == len(c.table().measures)
    assert c.png()[:8] == b"\x89PNG\r\n\x1a\n" and column_chart(c.table()).count("<circle") == 2 * len(fig.data[0].x)
    page = Page(html := report(c))
    assert page.open == [] and page.links == [] and "script" not in page.tags and "cdn" not in html
    assert "Class by class" in html and c._repr_html_().count("<svg") == 1


def test_a_name_goes_before_a_folder_and_a_pet_name_gives_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("emoji/food", "pets/cat", "pets/dog"):
        (tmp_path / folder).mkdir(parents=True)
        for i in range(4):
            emoji.scene("fox", key=i).image().save(tmp_path / folder / f"{i}.png")
    with pytest.warns(UserWarning, match="the folder that is called the same is './emoji/food'"):
        assert find_task("emoji/food").name == "emoji/food"
    assert find_task("pets").names == ["cat", "dog"] == find_task("./pets").names == find_task(tmp_path / "pets").names
    monkeypatch.setenv("MUDPT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MUDPT_OFFLINE", "1")
    with pytest.raises(MudptError, match="DescribableTextures"):
        find_task("dtd")
    with pytest.raises(NoTask, match="did you mean 'eurosat'.*emoji/<animals|.*data sets imagenet"):
        find_task("eurosatt")
