"""Sweeps: nothing twice, nothing lost, whoever is killed; engines, search, trackers, the view and the command."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mudpt import emoji
from mudpt.cli import app
from mudpt.core import BadInput, MudptError
from mudpt.engines import Job, Todo, Worker, pool, shares
from mudpt.prompts import methods
from mudpt.runs import Runs
from mudpt.sweep import Sweep, grid, read_cells, sweep, write_cells
from mudpt.sweep_view import SweepState, SweepView, page

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def few():
    return emoji.task("animals", n_train=4, n_val=2, n_test=2, classes=6)


def tiny(few, methods=("CoOp",), seeds=(1, 2), epochs=1, **kw):
    return grid(list(methods), few, shots=1, seeds=list(seeds), epochs=epochs, bs=4, **kw)


def ends(root):
    "How often each run of a folder came to its end, from its events"
    return {r.folder.name: sum(e.kind == "end" for e in r.events()) for r in Runs(root)}


def until(what, seconds=120):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it never came to pass"
        time.sleep(0.02)


# ---- the list


def test_the_list_gives_each_cell_out_once_and_waits_for_those_that_may_come_back():
    import threading

    t, got = Todo(range(30), patience=0), []

    def work():
        while (i := t.take()) is not None:
            got.append(i)
            t.give(i, dict(status="lost", error="x") if i % 3 == 0 and got.count(i) == 1 else dict(status="done"))

    team = [threading.Thread(target=work) for _ in range(4)]
    [x.start() for x in team]
    [x.join() for x in team]
    assert t.over and all(o == dict(status="done") for o in t.outcomes)
    assert sorted(got) == sorted([*range(30), *range(0, 30, 3)])


def test_a_cell_that_takes_its_processes_with_it_is_recorded_and_the_rest_goes_on(tmp_path, few):
    cells = tiny(few, ["ZeroShot"], seeds=[1, 2])

    def kill(i, o, team):
        if i == 0 and o["status"] == "begun":
            team[0].kill()

    todo = Todo(cells, retries=1, tell=kill, patience=0)
    pool(todo, Job(tmp_path, tasks={few.name: few}), workers=1)
    assert [o["status"] for o in todo.outcomes] == ["error", "done"]
    assert "SIGKILL" in todo.outcomes[0]["error"] and todo.losses[0] == 2
    s = Sweep(cells, tmp_path, tasks=[few])
    assert s.counts == {"done": 1, "error": 1}  # also for somebody who comes later
    assert s.run().counts == {"done": 1, "error": 1}
    assert sweep(cells, tmp_path, tasks=[few], retry_failed=True).counts == {"done": 2}
    assert len(Runs(tmp_path)) == 2  # the note of the failure is gone


def test_a_worker_stops_when_the_sweep_is_gone_and_the_cell_can_be_continued(tmp_path, few):
    import pickle

    cell = tiny(few, seeds=[1], epochs=200)[0]
    job = Job(tmp_path, tasks={few.name: few})
    w = Worker(pickle.dumps(job), shares(1)[0], tmp_path / "workers.log")
    w.process.stdin.write(w.job)
    pickle.dump(cell, w.process.stdin)
    w.process.stdin.flush()
    until(lambda: len(Runs(tmp_path)) and (Runs(tmp_path)[0].record.get("progress") or {}).get("epoch"))
    w.hang_up()  # as the end of the sweep's process does
    assert w.process.wait(60) == 0
    r = Runs(tmp_path)[0]
    assert r.status == "stopped" and 1 <= r.record["progress"]["epoch"] < 200


# ---- two sweeps, one folder

TWO = """
import sys
from mudpt import emoji
from mudpt.sweep import grid, sweep
few = emoji.task("animals", n_train=4, n_val=2, n_test=2, classes=6)
print("ready", flush=True)
s = sweep(grid("CoOp", few, shots=1, seeds=range(1, 7), epochs=9, bs=4), sys.argv[1], tasks=[few])
assert s.counts == {"done": 6}, s.counts
"""


def test_two_sweeps_on_one_folder_do_no_cell_twice(tmp_path, few):
    other = subprocess.Popen([sys.executable, "-c", TWO, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "ready\n"
    until(lambda: len(Runs(tmp_path)))  # the other one has begun
    s = sweep(grid("CoOp", few, shots=1, seeds=range(1, 7), epochs=9, bs=4), tmp_path, tasks=[few])
    assert other.wait(300) == 0 and s.counts == {"done": 6}
    assert len(Runs(tmp_path)) == 6 and set(ends(tmp_path).values()) == {1}
    assert {r.record["where"]["pid"] for r in Runs(tmp_path)} == {os.getpid(), other.pid}


# ---- Ctrl-C

CTRL_C = """
import sys
from mudpt import emoji
from mudpt.sweep import grid, sweep
few = emoji.task("animals", n_train=4, n_val=2, n_test=2, classes=6)
cells = grid("CoOp", few, shots=1, seeds=[1, 2], epochs=200, bs=4)
sweep(cells, sys.argv[1], engine=sys.argv[2], tasks=[few], workers=1)
"""


@pytest.mark.parametrize("engine", ["here", "pool"])
def test_ctrl_c_stops_cleanly_and_leaves_what_can_be_continued(tmp_path, few, engine):
    p = subprocess.Popen([sys.executable, "-c", CTRL_C, str(tmp_path), engine], stderr=subprocess.PIPE, text=True)
    until(lambda: any((r.record.get("progress") or {}).get("epoch") for r in Runs(tmp_path)))
    (r,) = Runs(tmp_path)
    assert r.status == "running"
    p.send_signal(signal.SIGINT)
    said = p.communicate(timeout=120)[1]
    assert p.returncode != 0 and said.strip().endswith("KeyboardInterrupt")
    until(lambda: r.status == "stopped")
    epoch = r.record["progress"]["epoch"]
    assert 1 <= epoch < 200
    with pytest.raises(ProcessLookupError):
        os.kill(r.record["where"]["pid"], 0)  # nobody is left behind
    s = Sweep(grid("CoOp", few, shots=1, seeds=[1, 2], epochs=200, bs=4), tmp_path, tasks=[few])
    assert s.counts == {"waiting": 1, "stopped": 1}


# ---- cells


def test_cells_in_a_file_and_mistakes_before_the_first_run(tmp_path):
    cells = grid(["CoOp", "MaPLe"], seeds=range(1, 3), args={"MaPLe": {"depth": [1, 2]}}, lr=[0.1, 0.2], epochs=1)
    assert len(cells) == 2 * (1 + 2) * 2 and len({json.dumps(c) for c in cells}) == 12
    write_cells(cells, tmp_path / "c.json")
    assert read_cells(tmp_path / "c.json") == cells
    for wrong, says in (
        ("[]", "no list of cells"),
        ("{", "not JSON"),
        ('[{"method": "CoOp"}]', "cell 1: a cell needs"),
        ('[{"method": "CoOp", "task": "emoji/animals", "sheed": 3}]', "cell 1"),
    ):
        (tmp_path / "w.json").write_text(wrong)
        with pytest.raises(MudptError, match=re.escape(says)):
            read_cells(tmp_path / "w.json")
    with pytest.raises(BadInput, match="check the path"):
        read_cells(tmp_path / "none.json")
    with pytest.raises(MudptError, match="did you mean 'pool'"):
        Sweep(cells, tmp_path, engine="pol")
    with pytest.raises(BadInput, match="only for engine='ray'"):
        Sweep(cells, tmp_path, address="x")
    assert len(Sweep(cells + cells[:3], tmp_path)) == 12


def test_a_task_that_is_not_there_is_a_row(tmp_path, few):
    s = sweep([*grid("ZeroShot", few, shots=1), *grid("ZeroShot", "emoji/furniture")], tmp_path, tasks=[few])
    assert s.counts == {"done": 1, "error": 1}
    row = s.frame.iloc[1]
    assert (row.task, row.status) == ("emoji/furniture", "error") and "furniture" in row.error


def test_gpus_and_cores_are_dealt_out(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert [e["CUDA_VISIBLE_DEVICES"] for e in shares(4, 0.5)] == ["4", "4", "7", "7"]
    assert [e["CUDA_VISIBLE_DEVICES"] for e in shares(3)] == ["4", "7", "4"]
    assert {e["OMP_NUM_THREADS"] for e in shares(4)} == {"2"} and "CUDA_VISIBLE_DEVICES" not in shares(1, 0)[0]


# ---- Ray


@pytest.mark.xdist_group("ray")
def test_ray_two_nodes_one_killed_every_cell_once(tmp_path):
    "The script that a reader runs; what it says is compared with what lies in the folder"
    out, script = tmp_path / "runs", ROOT / "scripts" / "ray_two_nodes.py"
    p = subprocess.run([sys.executable, script, "--out", out], capture_output=True, text=True, timeout=600)
    assert p.returncode == 0, (p.stdout + p.stderr)[-3000:]
    said = json.loads(p.stdout.strip().splitlines()[-1])
    assert said["counts"] == {"done": 4} and said["alive"] == 1 and said["losses"]
    (killed,) = said["killed"]
    frame = Runs(out).frame
    assert list(frame.status) == ["done"] * 4 and not frame[["method", "task", "shots", "seed"]].duplicated().any()
    assert set(ends(out).values()) == {1}
    record = next(r.record for r in Runs(out) if r.folder.name == killed["folder"])
    assert record["where"]["pid"] != killed["pid"] and killed["epoch"] >= 1
    with pytest.raises(ProcessLookupError):
        os.kill(killed["pid"], 0)


# ---- search, trackers


def test_a_search_goes_on_takes_up_what_was_cut_off_and_looks_at_no_test_image(tmp_path, few):
    pytest.importorskip("optuna")
    from dataclasses import replace

    from mudpt.search import Search

    class Sealed:
        def image(self):
            raise RuntimeError("a test image was opened")

    blind = replace(few, test=[(Sealed(), y) for _, y in few.test])
    how = dict(shots=1, epochs=2, bs=4, clip=emoji.clip("cpu"), root=tmp_path)
    s = Search("CoOp", blind, dict(lr=(1e-4, 1e-1, "log"), n_ctx=[2, 4]), **how)

    def interrupt(e):
        if e.kind == "epoch" and len(s.finished) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        s.run(3, [interrupt])
    cut = s.study.trials[-1].params
    s = Search("CoOp", blind, dict(lr=(1e-4, 1e-1, "log"), n_ctx=[2, 4]), **how).run(3)
    assert len(s.finished) == 3 and s.finished[1].params == cut
    assert set(s.frame.status) <= {"judged", "given up"}
    assert s.best["args"]["n_ctx"] in (2, 4) and s.best["train"]["lr"] > 0


def test_a_hopeless_trial_is_given_up_early(tmp_path, few):
    optuna = pytest.importorskip("optuna")
    from mudpt.search import Search

    how = dict(shots=1, epochs=6, bs=4, clip=emoji.clip("cpu"), root=tmp_path)
    never = optuna.pruners.ThresholdPruner(lower=101)  # no accuracy is good enough
    s = Search("CoOp", few, dict(lr=[0.002]), pruner=never, **how).run(1)
    assert s.frame.status.tolist() == ["given up"] and s.frame.epochs.tolist() == [1]
    with pytest.raises(MudptError, match="no trial"):
        _ = s.best


class Told:
    "Stands in for the clients of W&B and MLflow: notes what it is told"

    def __init__(self, calls, name=""):
        self.calls, self.name = calls, name

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Told(self.calls, name)

    def __call__(self, *a, **kw):
        self.calls.append((self.name, a, kw))
        return Told(self.calls)


@pytest.mark.parametrize("name, log, close", [("wandb", "log", "finish"), ("mlflow", "log_metric", "set_terminated")])
def test_trackers_of_services_pass_on_what_the_run_says(tmp_path, few, monkeypatch, name, log, close):
    from mudpt import trackers

    calls = []
    monkeypatch.setitem(sys.modules, name, Told(calls))
    s = sweep(tiny(few, seeds=[1], epochs=2, eval_every=1), tmp_path, tasks=[few], trackers=[trackers.known[name]])
    assert s.counts == {"done": 1}
    names = [c[0] for c in calls]
    assert names.count(close) == 1 and names[-1] == close
    said = [c for c in calls if c[0] == log]
    flat = json.dumps([c[1:] for c in said], default=str)
    assert "train/loss" in flat and "val/accuracy" in flat


# ---- the view, the command


def test_the_state_knows_everything_and_imports_no_widget(tmp_path):
    code = (
        "import sys, mudpt.sweep, mudpt.sweep_view; print({'ipywidgets', 'plotly', 'ray', 'optuna'} & {*sys.modules})"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_the_view_fills_up_names_who_is_at_work_and_why_something_failed(tmp_path, few):
    s = Sweep(tiny(few, ["CoOp", "VPT"], epochs=60), tmp_path, tasks=[few])
    f = SweepState(s).frame()
    assert f.counts == {"waiting": 4} and f.done == 0 and f.rows == ["CoOp", "VPT"]
    v = SweepView(s, every=0.05)
    v.start.click()
    until(lambda: "running" in SweepState(s).frame().counts and SweepState(s).frame().working[0][3])
    f = SweepState(s).frame()
    assert f.busy and f.working[0][2] == os.getpid() and f.working[0][3].endswith("/60")
    until(lambda: "epoch" in v.html.value)
    v.stop.click()
    assert s.join(120) and {"stopped", "waiting"} <= set(s.counts)
    v.close()
    html = page(SweepState(s).frame())
    assert "⏸" in html and 'class="stopped"' in html


def test_sweep_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = [dict(method="ZeroShot", task="emoji/vehicles", shots=1, seed=s) for s in (1, 2)]
    Path("cells.json").write_text(json.dumps([*cells, dict(method="ZeroShot", task="./gone")]))
    r = CliRunner().invoke(app, ["sweep", "--cells", "cells.json", "--out", "here"])
    assert r.exit_code == 0, r.output
    assert "ZeroShot" in r.output and "failed: task './gone'" in r.output and len(Runs("here")) == 3
    r = CliRunner().invoke(app, ["sweep", "--methods", "Zero", "--out", "here"])
    assert r.exit_code == 2 and "ZeroShot" in r.output
    r = CliRunner().invoke(app, ["sweep", "--track", "tensorbord", "--out", "here"])
    assert r.exit_code == 2 and "tensorboard" in r.output


def test_methods_stay_as_they_were():
    assert all(c.__module__.startswith(("mudpt.", "tests")) or "test" in c.__module__ for c in methods.values())
