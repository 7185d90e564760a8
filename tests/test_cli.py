import json
import subprocess
import sys

import pytest
import typer
from fakes import Explodes, Method, Nothing, clip, task
from typer.testing import CliRunner

import mudpt.cli as cli
import mudpt.comparing as mc
from mudpt.cli import app
from mudpt.runs import Runs
from mudpt.terminal import numbers, settings, words


def call(*args):
    return CliRunner().invoke(app, [str(a) for a in args])


@pytest.fixture
def small(monkeypatch, tmp_path):
    "The commands, on the stand-in model and task"
    monkeypatch.setattr(cli, "the_clip", lambda *a, **k: clip())
    monkeypatch.setattr(mc, "find_task", lambda x: x if not isinstance(x, str) else task(name=x))
    known = {c.__name__: c for c in (Nothing, Method, Explodes)}
    monkeypatch.setattr(
        mc, "find_methods", lambda w=None: [known[x] for x in w] if w and w != "all" else [Nothing, Method]
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_help_is_quick_because_torch_is_not_loaded():
    code = "import sys, mudpt.cli; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_file_of_ones_own_is_used(tmp_path):
    (tmp_path / "of_my_own_1.py").write_text(
        "from mudpt.methods import VPT\n\nclass MyVPT(VPT):\n    'Mine'\n    source = 'me'\n"
    )
    run = [sys.executable, "-c", "from mudpt.cli import app; app()", "--use", "of_my_own_1.py"]
    r = subprocess.run([*run, "methods", "--json"], capture_output=True, text=True, cwd=tmp_path)
    assert r.returncode == 0, r.stderr
    assert "me" in [m["source"] for m in json.loads(r.stdout) if m["method"] == "MyVPT"]
    for path, says in ("nowhere.py", "is not a Python file"), ("json.py", "rename the file"):
        (tmp_path / "json.py").write_text("")
        bad = call("--use", tmp_path / path, "methods")
        assert bad.exit_code == 2 and says in bad.output, bad.output


PROTOCOLS = ["few-shot", "base-to-new", "cross-dataset", "domain-shift"]
DATA = [("data", c) for c in ("list", "prepare", "where", "shots", "check")]


@pytest.mark.parametrize(
    "command", [(c,) for c in ["compare", "train", "judge", "predict", "methods", "version", *PROTOCOLS]] + DATA
)
def test_every_command_has_help(command):
    r = call(*command, "--help")
    assert r.exit_code == 0 and "Usage" in r.output


def test_lists_numbers_and_settings():
    assert words(" a, b ,,c") == ["a", "b", "c"]
    assert numbers("1-3,7") == [1, 2, 3, 7]
    assert settings(["A.depth=3", "A.per=image", "x=[1, 2]"]) == {"A": {"depth": 3, "per": "image"}, "": {"x": [1, 2]}}
    for bad in (lambda: numbers("one"), lambda: settings(["depth"])):
        with pytest.raises(typer.BadParameter):
            bad()


def test_compare_writes_a_table_and_a_report(small):
    r = call("compare", "--shots", 4, "--seeds", "1-2", "--tasks", "a,b", "--out", "res")
    assert r.exit_code == 0, r.output
    assert (
        "Method" in r.output
        and "average over tasks" in r.output
        and "5 epochs and 4 images per batch alike" in r.output
    )
    assert {p.name for p in (small / "res").iterdir()} == {
        "runs",
        "results.json",
        "table.md",
        "table.csv",
        "report.html",
    }
    assert len(json.loads((small / "res/results.json").read_text())["rows"]) == 8


def test_published_recipes_on_demand(small):
    r = call("compare", "--shots", 4, "--published", "--methods", "Nothing")
    assert r.exit_code == 0 and "own published recipe" in r.output


def test_a_failing_method_does_not_fail_the_command(small):
    r = call("compare", "--methods", "Explodes,Method", "--shots", 4)
    assert r.exit_code == 0 and "failed: the loss became inf" in r.output
    assert call("compare", "--methods", "Explodes", "--shots", 4, "--out", "b").exit_code == 1


def test_foreseen_errors_are_one_sentence_and_exit_2(small):
    r = call("compare", "--shots", 99)
    assert r.exit_code in (1, 2) and "Traceback" not in r.output
    r = call("compare", "--protocol", "base2new")
    assert r.exit_code == 2 and "known: base-to-new, few-shot" in r.output and "Traceback" not in r.output
    assert call("compare", "--protocol", "base2new", "--debug").exception is not None


def test_ctrl_c_exits_130_and_says_how_to_go_on(small, monkeypatch):
    def interrupted(*a, **k):
        raise KeyboardInterrupt

    monkeypatch.setattr(mc, "fill", interrupted)
    r = call("compare", "--shots", 4, "--out", "res")
    assert r.exit_code == 130 and "'res': the same command goes on" in r.output
    assert [x.name for x in (small / "res").iterdir()] == ["runs"]
    assert [x.status for x in Runs(small / "res")] == ["stopped"]


def test_unknown_names_suggest():
    r = call("train", "maple")
    assert r.exit_code == 2 and "did you mean 'MaPLe'" in r.output
    r = call("train", "MaPLe", "--set", "dept=3")
    assert r.exit_code == 2 and "did you mean 'depth'" in r.output


def test_version():
    assert call("version").output.strip()


def test_unreadable_pictures_are_counted_and_named(tmp_path, capsys):
    from PIL import Image

    from mudpt.cli import readable
    from mudpt.core import BadInput

    good, bad = tmp_path / "good.png", tmp_path / "bad.jpg"
    Image.new("RGB", (8, 8)).save(good)
    bad.write_bytes(b"\xff\xd8\xff\xe0 no picture")
    assert readable([good, bad]) == [good]
    said = capsys.readouterr().err
    assert "1 of 2 images are left out" in said and "bad.jpg" in said
    with pytest.raises(BadInput, match="bad.jpg"):
        readable([bad])


@pytest.fixture
def folders(tmp_path, monkeypatch):
    "Three little tasks on the disk: the same classes in two styles, and others"
    from mudpt import emoji

    for where, style, names in (
        ("twitter", "twemoji", ("fox", "owl", "cat", "bear")),
        ("google", "noto", ("fox", "owl", "cat", "bear")),
        ("fruit", "twemoji", ("banana", "kiwi")),
    ):
        for part, n in (("train", 2), ("test", 1)):
            for name in names:
                (tmp_path / where / part / name).mkdir(parents=True)
                for i in range(n):
                    image = emoji.scene(name, style, i + 100 * (part == "test")).image()
                    image.save(tmp_path / where / part / name / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


TINY = "--methods", "ZeroShot,CoOp", "--epochs", 1


def test_few_shot_and_base_to_new_from_the_command_line(folders):
    r = call("few-shot", *TINY, "--tasks", "twitter,fruit", "--shots", "1,2", "--out", "few")
    assert r.exit_code == 0, r.output
    for said in (
        "1 shot ",
        "2 shots",
        "average over tasks",
        "8/8",
        "tier A",
        "1 epochs and 4 images per batch alike",
    ):
        assert said in r.output, said
    r = call("base-to-new", *TINY, "--tasks", "twitter", "--shots", 1, "--out", "halves")
    assert r.exit_code == 0 and " H " in r.stdout and "harmonic mean of the averaged" in " ".join(r.stdout.split())
    files = {"runs", "results.json", "table.md", "table.csv", "report.html"}
    assert {p.name for p in (folders / "few").iterdir()} == {p.name for p in (folders / "halves").iterdir()} == files


def test_other_data_from_the_command_line_trained_once(folders):
    r = call("cross-dataset", *TINY, "--source", "twitter", "--targets", "fruit,google", "--shots", 2, "--out", "cross")
    assert r.exit_code == 0 and "average" in r.stdout and "cross-dataset from twitter" in r.stdout, r.output
    times = {f.name: f.stat().st_mtime_ns for f in (folders / "cross/trained").iterdir()}
    assert [r.card["method"] for r in Runs(folders / "cross/trained")] == ["CoOp", "ZeroShot"]
    shift = ("domain-shift", *TINY, "--source", "twitter", "--shots", 2, "--trained", "cross/trained", "--out", "shift")
    r = call(*shift, "--targets", "google")
    assert r.exit_code == 0 and "google" in r.stdout, r.output
    assert times == {f.name: f.stat().st_mtime_ns for f in (folders / "cross/trained").iterdir()}
    r = call("domain-shift", *TINY, "--source", "twitter", "--targets", "fruit", "--shots", 2)
    assert r.exit_code == 2 and "mudpt domain-shift: 'fruit' has classes that 'twitter' has not" in r.stderr


def test_a_damaged_target_does_not_fail_the_command(folders, monkeypatch):
    real = mc.score

    def score(m, items, names, **k):
        if "banana" in names:
            raise OSError("disk on fire")
        return real(m, items, names, **k)

    monkeypatch.setattr(mc, "score", score)
    args = "cross-dataset", "--methods", "ZeroShot", "--source", "twitter", "--shots", 2, "--out", "c", "--targets"
    r = call(*args, "fruit,google")
    assert r.exit_code == 0 and "failed: OSError: disk on fire" in r.stderr and "2 of 3 runs" in r.stdout


@pytest.mark.parametrize(
    "args,says",
    [
        (("cross-dataset", "--targets", "emoji/foods"), "did you mean 'emoji/food'"),
        (("cross-dataset", "--source", "emoji/animal"), "did you mean 'emoji/animals'"),
        (("few-shot", "--methods", "Coop"), "did you mean 'CoOp'"),
        (("few-shot", "--tasks", "eurosatt"), "did you mean 'eurosat'"),
        (("base-to-new", "--set", "CoOp.nctx=4"), "did you mean 'n_ctx'"),
        (("data", "where", "eurosatt"), "did you mean 'eurosat'"),
        (("data", "prepare", "dtd", "eurosatt"), "did you mean 'eurosat'"),
        (("data", "shots", "no.json", "--shots", 1), "no split file at 'no.json'"),
        (("data", "shots", "bad.json", "--shots", 1), "cannot be read as a split file"),
        (("data", "shots", "list.json", "--shots", 1), "it needs lists 'train'"),
        (("data", "shots", "good.json", "--shots", 0), "0 shots"),
        (("data", "shots", "good.json", "--shots", 1, "--half", "old"), "choose base or new"),
        (("data", "check", "no/folder"), "no/folder"),
    ],
)
def test_mistakes_in_names_are_one_sentence_and_a_2(tmp_path, monkeypatch, args, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "good.json").write_text(json.dumps(split()))
    r = call(*args)
    assert r.exit_code == 2 and says in r.stderr and r.stdout == "" and "Traceback" not in r.output, r.output
    called = " ".join(args[:2]) if args[0] == "data" else args[0]
    assert r.stderr.startswith(f"mudpt {called}: ") and len(list(tmp_path.iterdir())) == 3


def split():
    rows = [[f"{c}/{c}_{i}.jpg", y, c] for y, c in enumerate(("a", "b", "c")) for i in range(7)]
    return dict(train=rows[::-1], val=rows[:9], test=rows)


def by_hand(rows, rng, k):
    "The rule in its plainest form"
    groups = {}
    for r in rows:
        groups.setdefault(r[1], []).append(r)
    return [r for g in groups.values() for r in (rng.sample(g, k) if len(g) >= k else g)]


def test_shots_prints_the_official_subset_and_nothing_else(tmp_path):
    import random

    file = tmp_path / "split.json"
    file.write_text(json.dumps(split()))
    code = "from mudpt.cli import app; app()"
    args = [sys.executable, "-c", code, "data", "shots", str(file), "--shots", "5", "--seed", "2"]
    r = subprocess.run(args, capture_output=True, text=True)
    assert r.returncode == 0 and r.stderr == ""
    rng = random.Random(2)
    want = dict(train=by_hand(split()["train"], rng, 5), val=by_hand(split()["val"], rng, 4))
    assert json.loads(r.stdout) == want
    for half, labels in (("base", {0: 0, 1: 1}), ("new", {2: 0})):
        got = json.loads(call("data", "shots", file, "--shots", 5, "--seed", 2, "--half", half).stdout)
        assert got == {p: [[f, labels[y], n] for f, y, n in want[p] if y in labels] for p in want}


def test_data_sets_are_listed_and_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("MUDPT_DATA", str(tmp_path))
    monkeypatch.setenv("MUDPT_OFFLINE", "1")
    sets = json.loads(call("data", "list", "--json").stdout)
    assert len(sets) == 15 and {"key", "name", "classes", "train", "val", "test"} <= sets[0].keys()
    r = call("data", "list")
    assert r.exit_code == 0 and all(s["key"] in r.stdout for s in sets) and str(tmp_path) in r.stdout
    r = call("data", "where", "dtd")
    assert r.exit_code == 1 and r.stdout == "" and "DescribableTextures is not in" in r.stderr
    assert json.loads(call("data", "where", "textures", "--json").stdout)["state"] == "absent"
    r = call("data", "prepare", "dtd", "imagenet")
    assert r.exit_code == 2 and r.stdout == "" and "register at https://image-net.org" in r.stderr


def test_check_reports_and_fails_where_there_are_problems(folders):
    r = call("data", "check", "twitter")
    assert r.exit_code == 0 and "fox" in json.dumps(json.loads(call("data", "check", "twitter", "--json").stdout))
    (folders / "twitter/test/fox/again.png").write_bytes((folders / "twitter/train/fox/0.png").read_bytes())
    r = call("data", "check", "twitter", "--json")
    assert r.exit_code == 1 and json.loads(r.stdout)["problems"]


def test_ctrl_c_in_a_protocol_says_how_to_go_on(folders, monkeypatch):
    def interrupted(*a, **k):
        raise KeyboardInterrupt

    monkeypatch.setattr(mc, "score", interrupted)
    args = "cross-dataset", *TINY, "--source", "twitter", "--targets", "fruit", "--shots", 2, "--out", "res"
    r = call(*args)
    assert r.exit_code == 130 and "'res': the same command goes on" in r.output
    monkeypatch.undo()
    monkeypatch.chdir(folders)
    kept = [f.stat().st_mtime_ns for f in (folders / "res/trained").iterdir()]
    assert len(kept) == 1 and call(*args).exit_code == 0
    assert kept[0] in [f.stat().st_mtime_ns for f in (folders / "res/trained").iterdir()]


def test_methods_and_regularisers_are_listed():
    r = call("methods", "--json")
    assert r.exit_code == 0, r.output
    found = {m["method"] or m["regulariser"]: m for m in json.loads(r.stdout)}
    from mudpt.prompts import methods
    from mudpt.regularise import regularisers

    assert {*methods, *regularisers} <= set(found) and all(m["tier"] in "ABC" and m["source"] and m["doc"] for n, m in found.items() if n in {*methods, *regularisers} - {"Prompts"})
    E = 96  # of the emoji model
    per = {n: (found[n]["trainable"], found[n]["per"]) for n in ("ZeroShot", "LinearProbe", "CrossModalProbe", "TipAdapter", "TipAdapterF", "LPPlusPlus")}
    assert per == dict(
        ZeroShot=(0, {}), LinearProbe=(0, {"class": E + 1}), CrossModalProbe=(0, {"class": E}), TipAdapter=(0, {}),
        TipAdapterF=(0, {"training image": E}), LPPlusPlus=(0, {"class": E + 1}),
    )  # fmt: skip
    assert found["MaPLe"]["per"] == {} and found["MaPLe"]["trainable"] > 10_000
    for wrong, right in (("KgCop", "KgCoOp"), ("MaPl", "MaPLe")):
        r = call("methods", wrong)
        assert r.exit_code == 2 and f"unknown method or regulariser '{wrong}': did you mean '{right}'" in r.output
    r = call("methods", "LP++,PromptSRC")
    assert "LPPlusPlus (LP++ in tables)" in r.output and f"{E + 1:,} per class" in r.output and "text=25.0" in r.output
    assert "MaPLe" not in r.output and "ProGrad" not in r.output


def test_regularisers_in_comparisons(folders):
    common = "--methods", "ZeroShot,CoOp", "--epochs", 1, "--shots", 1, "--regulariser", "none,KgCoOp"
    for args in (
        ("compare", "--tasks", "twitter"),
        ("few-shot", "--tasks", "twitter"),
        ("base-to-new", "--tasks", "twitter"),
        ("cross-dataset", "--source", "twitter", "--targets", "fruit"),
        ("domain-shift", "--source", "twitter", "--targets", "google"),
    ):
        r = call(*args, *common, "--out", args[0])
        assert r.exit_code == 0 and "failed" not in r.output, r.output
        table = (folders / args[0] / "table.md").read_text()
        assert [l.split("|")[1].strip() for l in table.split("\n") if l.startswith("| ")][2:5] == ["ZeroShot", "CoOp", "CoOp + KgCoOp"]
        assert "CoOp + KgCoOp  twitter" in r.stderr
    r = call("compare", *common[:-1], "KgCop", "--tasks", "twitter")
    assert r.exit_code == 2 and "did you mean 'KgCoOp'" in r.output
