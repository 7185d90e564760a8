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
from mudpt.terminal import numbers, settings, words


def call(*args):
    return CliRunner().invoke(app, [str(a) for a in args])


@pytest.fixture
def small(monkeypatch, tmp_path):
    "The commands, on the stand-in model and task"
    monkeypatch.setattr(cli, "the_clip", lambda *a, **k: clip())
    monkeypatch.setattr(mc, "find_task", lambda x: x if not isinstance(x, str) else task(name=x))
    known = {c.__name__: c for c in (Nothing, Method, Explodes)}
    monkeypatch.setattr(mc, "find_methods", lambda w=None: [known[x] for x in w] if w else [Nothing, Method])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_help_is_quick_because_torch_is_not_loaded():
    code = "import sys, mudpt.cli; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("command", ["compare", "train", "judge", "predict", "methods", "version"])
def test_every_command_has_help(command):
    r = call(command, "--help")
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
        "cells",
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
    assert not (small / "res").exists()


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
