"A run that survives: killed at any instant and continued, on a full disk, in a folder that is not ours, with two at it"

import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings
from functools import cache
from pathlib import Path

import pytest
import torch
from fakes import Draws, Explodes, Method, Nothing, clip, task
from small import NAMES, small

import mudpt.comparing as mc
import mudpt.surviving as ms
from mudpt import core, emoji
from mudpt.comparing import compare, kept, run_folder
from mudpt.core import BadFile, BadInput, MudptError, seed_all
from mudpt.fewshot import Task
from mudpt.keep import tensors_of
from mudpt.methods import CoOp
from mudpt.prompts import methods as known
from mudpt.protocols import cross_dataset
from mudpt.results import load
from mudpt.runfolder import read_events, read_moment, read_record
from mudpt.runs import Run, Runs, cell, run
from mudpt.shelf import CannotWrite, alone, busy
from mudpt.surviving import Keeper, Stopped, attend
from mudpt.train import Control, Trainer

HERE = Path(__file__).parent
CELL = dict(method="Draws", args={}, task="colours", seed=1, shots=4, protocol="base-to-new", epochs=4, bs=2)


colours = cache(task)


def fake(root, cls=Draws, cell=CELL, **how):
    "One run of a stand-in method, which draws random numbers in its loss"
    c = dict(cell, method=cls.__name__)
    folder = run_folder(c, clip(), colours(), root)[0]
    return Run(folder), lambda: kept(c, cls, clip(), colours(), root, workers=1, **how)


def trained(folder):
    "The numbers in prompts.safetensors"
    from safetensors.torch import load_file

    return load_file(Path(folder) / "prompts.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def assert_readable(root):
    "Every file of every run folder can be read by those who know nothing of mudpt"
    for f in Path(root).rglob("*"):
        if f.is_dir() or f.name.startswith("."):  # locks, and what was being written beside its place
            continue
        if f.name == "run.json":
            assert json.loads(f.read_text())["status"] in ("running", "stopped", "done", "error")
        elif f.name == "events.jsonl":
            assert all(json.loads(line)["kind"] for line in f.read_text().splitlines())
        elif f.name == "resume.pt":
            assert torch.load(f, weights_only=True) and read_moment(f.parent)["trainer"]["place"]["at"] == 0
        elif f.name == "prompts.safetensors":
            assert trained(f.parent)
        else:
            assert f.name in ("begun", "operations"), f


def epochs_told(folder):
    return [e.epoch for e in read_events(folder) if e.kind == "epoch"]


# Killed ---------------------------------------------------------------------------------------------------------

# A process that is killed has to be a real one. Starting Python and torch costs seconds, so one server is started,
# and forks a child for every life of the run.
SERVER = """
import os, sys, json
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
import test_runs, tempfile
with tempfile.TemporaryDirectory() as d: test_runs.fake(d)[1]()  # what is imported on the way need not be in each child
print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    lives = order.pop("lives", 1)
    for _ in range(lives):
        if os.fork() == 0:
            if lives == 1: print(os.getpid(), flush=True)
            try: test_runs.one_life(**order)
            except BaseException as e: print(repr(e), file=sys.stderr, flush=True); os._exit(1)
            os._exit(0)
    for _ in range(lives): print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


def one_life(root, die_at=None, slow=0.0, epochs=4, cls="Draws", limit=None, nobody=False):
    "Do the run, or what is left of it; perhaps be killed at the so-many-th file operation, in the middle of a write"
    n = 0
    if limit:  # as on a disk that is full: the operating system refuses to write more
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if nobody and os.geteuid() == 0:  # root may write everywhere
        os.setuid(65534)

    def counted(real, torn=False):
        def call(*a, **k):
            nonlocal n
            n += 1
            if n == die_at:
                if torn:  # half of the content is there
                    os.truncate(a[0], os.path.getsize(a[0]) // 2) if os.path.isfile(a[0]) else None
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*a, **k)

        return call

    os.fsync = lambda fd: None  # matters for power cuts, not for kills, and takes most of the time
    ms.git_state = lambda: None
    core.to_disk, os.replace = counted(core.to_disk, True), counted(os.replace)
    ms.to_disk = counted(ms.to_disk)
    Path.unlink = counted(Path.unlink)

    def begun(e):
        time.sleep(slow)
        if e.kind == "start":
            with open(Path(root, "begun"), "a") as f:
                f.write(f"{os.getpid()}\n")

    try:
        fake(root, globals()[cls], CELL | dict(epochs=epochs), listeners=[begun])[1]()
    except MudptError as e:
        print(e, file=sys.stderr, flush=True)
        Path(f"{root}.said").write_text(str(e))
        os._exit(2)
    Path(root, "operations").write_text(str(n))


@pytest.fixture(scope="module")
def server():
    p = subprocess.Popen([sys.executable, "-c", SERVER.format(tests=str(HERE))], stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
    assert p.stdout.readline() == "ready\n"

    class Lives:
        def start(self, root, **how):
            p.stdin.write(json.dumps(dict(root=str(root), **how)) + "\n")
            p.stdin.flush()
            return int(p.stdout.readline())  # the child's process

        def end(self):
            return int(p.stdout.readline())  # how it ended: 0, or -9

        def __call__(self, root, **how):
            self.start(root, **how)
            return self.end()

        def two(self, root, **how):
            return [self.start(root, lives=2, **how), self.end()]

    yield Lives()
    p.stdin.close()
    p.wait(20)


def in_peace(server, root, epochs):
    root.mkdir(exist_ok=True)
    t0 = time.monotonic()
    assert server(root, epochs=epochs) == 0
    r = Runs(root)[0]
    r.seconds, r.operations = time.monotonic() - t0, int((root / "operations").read_text())
    return r


def check_like(r, whole):
    assert r.status == "done" and same(trained(r.folder), trained(whole.folder))
    assert [r.row[k] for k in ("base", "new", "H", "losses", "steps")] == [whole.row[k] for k in ("base", "new", "H", "losses", "steps")]  # fmt: skip
    assert [(e.kind, e.epoch, e.data.get("losses")) for e in r.events()] == [(e.kind, e.epoch, e.data.get("losses")) for e in whole.events()]  # fmt: skip
    assert {p.name for p in r.folder.iterdir()} - {".run.lock"} == {"run.json", "events.jsonl", "prompts.safetensors"}


def test_killed_at_random_moments_and_continued_each_time(server, tmp_path):
    """kill -9 from outside, whenever the clock says so, until the run is done; at most twenty deaths each.
    Four runs, and more of them where the machine was quicker than the clock, until there were deaths enough."""
    undisturbed = in_peace(server, tmp_path / "whole", 4)
    rng, deaths, progress, span = random.Random(0), 0, set(), 1.2 * max(0.15, undisturbed.seconds)
    for k in range(40):
        if k >= 4 and deaths >= 5 and len(progress) >= 3:
            break
        root = tmp_path / str(k)
        root.mkdir()
        for _ in range(20):
            pid = server.start(root, slow=0.004)  # so that there is time to die between two steps, too
            time.sleep(rng.uniform(0, span))
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            ended = server.end()
            assert ended in (0, -9)
            assert_readable(root)
            deaths += ended == -9
            for r in Runs(root):
                assert r.status in ("stopped", "done") and epochs_told(r.folder) == list(
                    range(len(epochs_told(r.folder)))
                )
                progress.add(len(epochs_told(r.folder)))
            if ended == 0:
                span *= 0.8  # it got through: the next blows fall earlier
                break
        else:
            assert server(root) == 0  # twenty deaths are enough
        check_like(Runs(root)[0], undisturbed)
    assert deaths >= 5 and len(progress) >= 3  # it did die, at different places


def test_killed_at_every_single_file_operation(server, tmp_path):
    "Before each rename, each flush and each removal; the file in the making is cut in half"
    undisturbed = in_peace(server, tmp_path / "whole", 2)
    assert undisturbed.operations > 25
    for at in range(1, undisturbed.operations + 1):
        root = tmp_path / str(at)
        root.mkdir()
        assert server(root, die_at=at, epochs=2) == -9
        assert_readable(root)
        assert server(root, epochs=2) == 0
        assert_readable(root)
        check_like(Runs(root)[0], undisturbed)


# Stopped, and every method continued ------------------------------------------------------------------------------


def on_small(method, args, root, listeners=(), control=None, **more):
    "A run of a real method on a small random CLIP"
    seed_all(random.randrange(2**31))  # whatever this process drew before
    c = dict(method=method, args=args, task="colours", seed=1, shots=4, protocol="base-to-new", epochs=3, bs=4) | more
    return kept(c, known[method], small("vit"), task(), root, control, listeners=listeners, workers=1)


VARIANTS = [(k, {}, {}) for k in sorted(known) if known[k].__module__.startswith("mudpt.")] + [
    ("CoOp", dict(csc=True), dict(opt="adamw")), ("DPT", dict(csc=True), {}), ("MaPLe", {}, dict(accum=2, clip_grad=1.0)),
    ("CoOp", {}, dict(augment=False)), ("MuDPT", {}, dict(amp="bf16")), ("VPT", {}, dict(eval_every=1)),
]  # fmt: skip


@pytest.mark.parametrize("method,args,train", VARIANTS)
def test_every_method_continues_to_the_same_prompts(tmp_path, method, args, train):
    whole = on_small(method, args, tmp_path / "whole", train=train)
    assert whole["progress"].get("epoch") == (3 if whole["row"]["trainable"] else None)
    for epoch in (0, 1):
        control = Control()
        stop = lambda e, epoch=epoch, control=control: e.kind == "epoch" and e.epoch == epoch and control.stop()
        r = on_small(method, args, tmp_path / "again", [stop], control, train=train)
        assert r["status"] == ("stopped" if whole["row"]["trainable"] else "done")
    r = on_small(method, args, tmp_path / "again", train=train)
    a, b = (Runs(tmp_path / k)[0] for k in ("again", "whole"))
    assert r["status"] == "done" and same(trained(a.folder), trained(b.folder))
    assert r["row"]["losses"] == whole["row"]["losses"] and r["row"]["H"] == whole["row"]["H"]
    assert [(e.kind, e.epoch, e.step) for e in a.events()] == [(e.kind, e.epoch, e.step) for e in b.events()]
    if train.get("eval_every"):
        assert [e.epoch for e in a.events() if e.kind == "eval"] == [0, 1, 2]


class Remembers(Method):
    "What it learns depends on a buffer that it fills itself"

    def __init__(self, clip):
        super().__init__(clip)
        self.args = {}
        self.register_buffer("mean", torch.zeros(8))

    def loss(self, out, y):
        self.mean = 0.9 * self.mean + 0.1 * self.w.detach().mean(1)
        return super().loss(out, y) + (self.w.mean(1) * self.mean).sum()


def until(control, epoch):
    return lambda e: control.stop() if e.kind == "epoch" and e.epoch == epoch else None


def test_a_state_that_is_no_parameter_is_continued_too(tmp_path):
    whole = fake(tmp_path / "whole", Remembers)[1]()
    control = Control()
    fake(tmp_path / "cut", Remembers, control=control, listeners=[until(control, 1)])[1]()
    r = fake(tmp_path / "cut", Remembers)[1]()
    assert same(*(trained(Runs(tmp_path / k)[0].folder) for k in ("whole", "cut")))
    assert r["row"]["losses"] == whole["row"]["losses"]


class Tally:
    "A listener that remembers"

    def __init__(self):
        self.seen = []

    def __call__(self, e):
        self.seen += [e.epoch] if e.kind == "epoch" else []

    def state_dict(self):
        return dict(seen=list(self.seen))

    def load_state_dict(self, s):
        self.seen = s["seen"]


def test_listeners_that_remember_are_continued_and_missed(tmp_path):
    control, a, b, c, d = Control(), Tally(), Tally(), Tally(), Tally()
    fake(tmp_path, control=control, listeners=[a, until(control, 1), b])[1]()
    with pytest.warns(UserWarning, match="listener Tally 2 that remembers"):
        fake(tmp_path, control=(again := Control()), listeners=[c, until(again, 2)])[1]()
    fake(tmp_path, listeners=[d])[1]()
    assert (a.seen, b.seen, c.seen, d.seen) == ([0, 1], [0, 1], [0, 1, 2], [0, 1, 2, 3])


class Dies(Draws):
    "Ctrl-C in the third epoch"

    steps, deadly = 0, True

    def loss(self, out, y):
        Dies.steps += 1
        if self.epoch == 2 and Dies.deadly:
            raise KeyboardInterrupt
        return super().loss(out, y)


@pytest.fixture
def dies():
    Dies.steps, Dies.deadly = 0, True
    return Dies


def test_an_interrupted_comparison_loses_an_epoch_at_most(tmp_path, dies):
    how = dict(tasks=[task()], shots=4, seeds=(1,), clip=clip(), bar=False, workers=1)
    with pytest.raises(KeyboardInterrupt):
        compare([Nothing, Dies], out=tmp_path, **how)
    assert [r.status for r in Runs(tmp_path)] == ["stopped", "done"]
    assert Runs(tmp_path)[0].record["progress"]["epoch"] == 2
    Dies.deadly, Dies.steps = False, 0
    c = compare([Nothing, Dies], out=tmp_path, **how)
    assert Dies.steps == 2 * 2 and [r["H"] for r in c.rows] == [r["H"] for r in compare([Nothing, Dies], **how).rows]


def test_the_train_command_says_how_to_continue_and_does(tmp_path, monkeypatch, dies):
    from typer.testing import CliRunner

    import mudpt.cli as cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "the_clip", lambda *a, **k: clip())
    monkeypatch.setattr(mc, "find_task", lambda x: task())
    monkeypatch.setattr(mc, "find_methods", lambda w: [Dies])
    go = lambda: CliRunner().invoke(cli.app, ["train", "Dies", "--shots", "4", "--half", "all", "--lr", "0.1"])
    r = go()
    assert r.exit_code == 130 and "kept in 'runs': the same command continues" in r.output
    assert not list(tmp_path.glob("*.safetensors")) and Runs()[0].status == "stopped"
    Dies.deadly, Dies.steps = False, 0
    assert go().exit_code == 0 and Dies.steps == 2 * 4 and (tmp_path / "Dies.safetensors").exists()
    monkeypatch.setattr(
        "mudpt.once.load_prompts", lambda file, clip: Dies(clip)
    )  # a stand-in cannot be loaded by its name
    assert "trained before, in 'runs/Dies-colours-trained-on-all-4shots-seed1-" in go().output and Dies.steps == 2 * 4


# What disks do ----------------------------------------------------------------------------------------------------


class Big(Draws):
    "Has 400 kB to keep"

    def __init__(self, clip):
        super().__init__(clip)
        self.args, self.big = {}, torch.nn.Parameter(torch.zeros(100_000))

    def loss(self, out, y):
        return super().loss(out, y) + self.big[:8].sum()


def test_the_operating_system_refuses_to_write_more(server, tmp_path):
    root = tmp_path / "runs"
    assert server(root) == 0
    before = {f: f.read_bytes() for f in Runs(root)[0].folder.iterdir()}
    assert server(root, cls="Big", limit=100_000) == 2
    said = Path(f"{root}.said").read_text()
    assert f"cannot write in '{root}" in said and "File too large" in said and "choose another folder" in said
    assert_readable(root)
    assert all(f.read_bytes() == b for f, b in before.items())
    assert [r.status for r in Runs(root)] == ["stopped", "done"] and "File too large" in Runs(root)[0].row["error"]
    assert server(root, cls="Big") == 0  # there is room again
    assert [r.status for r in Runs(root)] == ["done", "done"] and Runs(root)[0].row["error"] is None


@pytest.mark.parametrize("at", [0, 1, 2, 3, 4, 6, 9, 12, 15])
def test_a_full_disk_at_any_write_is_told_and_costs_nothing_that_was_there(tmp_path, monkeypatch, at):
    whole = fake(tmp_path, Method)[1]()
    real, n = Path.write_bytes, []

    def full(self, data):
        n.append(1)
        if len(n) > at:
            raise OSError(28, "No space left on device")
        return real(self, data)

    with monkeypatch.context() as m:
        m.setattr(Path, "write_bytes", full)
        with pytest.raises(
            CannotWrite,
            match="the disk of '.*Draws.* is full .*make room, or choose another folder; finished runs are intact",
        ):
            fake(tmp_path)[1]()
    assert_readable(tmp_path)
    assert fake(tmp_path, Method)[1]() == whole and not list(tmp_path.rglob("*.part"))
    r = fake(tmp_path)[1]()
    assert r["status"] == "done" and r["row"]["losses"] == fake(tmp_path / "whole")[1]()["row"]["losses"]


def test_a_full_disk_ends_a_comparison_instead_of_failing_its_cells(tmp_path, monkeypatch):
    def full(*a):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CannotWrite, match="is full"):
        compare([Nothing, Method], [task()], 4, (1, 2), clip=clip(), out=tmp_path, bar=False, workers=1)


def test_a_folder_that_may_only_be_read(server, tmp_path_factory):
    import shutil
    import tempfile

    top = Path(tempfile.mkdtemp(prefix="read-only-"))  # pytest's own folders are closed to other users
    top.chmod(0o777)
    root = top / "runs"
    try:
        assert server(root) == 0
        before = {f: f.read_bytes() for f in Runs(root)[0].folder.iterdir() if f.name[0] != "."}
        for d in (root, Runs(root)[0].folder):
            d.chmod(0o555)
        assert server(root, cls="Method", nobody=True) == 2
        said = Path(f"{root}.said").read_text()
        assert (
            f"cannot write in '{root}/Method-colours" in said
            and "Permission denied" in said
            and "choose another folder" in said
        )
        assert {f: f.read_bytes() for f in Runs(root)[0].folder.iterdir() if f.name[0] != "."} == before
        assert Runs(root)[0].status == "done" and len(Runs(root).frame) == 1
    finally:
        for d in (root, *root.glob("*")):
            d.chmod(0o755)
        shutil.rmtree(top)


def test_finished_runs_are_fetched_without_writing_anything(tmp_path, monkeypatch):
    whole = fake(tmp_path)[1]()

    def never(*a, **k):
        raise OSError(30, "Read-only file system")

    for where, name in ((os, "replace"), (os, "unlink"), (os, "mkdir"), (Path, "write_bytes"), (Path, "unlink")):
        monkeypatch.setattr(where, name, never)
    assert fake(tmp_path)[1]() == whole


def test_a_file_in_the_place_of_a_folder(tmp_path):
    (tmp_path / "runs").write_text("mine")
    with pytest.raises(CannotWrite, match="cannot write in '.*runs/Draws.*choose another folder"):
        fake(tmp_path / "runs")[1]()
    assert (tmp_path / "runs").read_text() == "mine"
    with pytest.raises(BadInput, match="no folder of runs"):
        Runs(tmp_path / "runs")


def test_content_is_on_the_disk_before_its_name(tmp_path, monkeypatch):
    done, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(
        os,
        "fsync",
        lambda fd: (
            done.append(os.readlink(f"/proc/self/fd/{fd}") if os.path.isdir("/proc/self/fd") else "?"),
            sync(fd),
        ),
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append((str(a), str(b))), replace(a, b)))
    folder = str(tmp_path / "x")
    attend(folder, {}, "k", lambda k: k.note(more=1) or {})
    assert len(done) % 3 == 0 and len(done) >= 9
    for file, (a, b), where in zip(done[::3], done[1::3], done[2::3], strict=True):
        assert b == f"{folder}/run.json" and file in (a, "?") and where in (folder, "?")


# Two at it --------------------------------------------------------------------------------------------------------


def test_two_processes_run_a_cell_once(server, tmp_path):
    assert server.two(tmp_path, slow=0.01) == [0, 0]
    assert len((tmp_path / "begun").read_text().split()) == 1
    r = Runs(tmp_path)[0]
    assert r.status == "done" and r.record["timing"]["sittings"] == 1


def test_who_does_not_wait_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(mc, "find_methods", lambda w=None: [Draws])
    import mudpt.runs as mr

    monkeypatch.setattr(mr, "find_methods", lambda w=None: [Draws])
    folder = run_folder(CELL, clip(), task(), tmp_path)[0]
    inside, leave = threading.Event(), threading.Event()

    def slowly(e):
        inside.set()
        assert leave.wait(20)

    t = threading.Thread(target=fake(tmp_path, listeners=[slowly])[1])
    t.start()
    assert inside.wait(20) and Run(folder).status == "running" and busy(folder / "run")
    assert run(CELL, clip(), task(), tmp_path, wait=False, workers=1).status == "running"
    leave.set()
    assert run(CELL, clip(), task(), tmp_path, workers=1).status == "done"
    t.join(20)
    assert Run(folder).record["timing"]["sittings"] == 1 and not busy(folder / "run")


def test_a_row_reads_its_record_once(tmp_path, monkeypatch):
    import mudpt.cells as mcells
    import mudpt.runs as mr

    r, seen = fake(tmp_path)[0], []
    r.folder.mkdir(parents=True)
    (r.folder / "run.json").write_text(json.dumps(dict(format=1, key="?", status="stopped", cell=CELL)))
    monkeypatch.setattr(mr, "read_record", lambda f: seen.append(f) or read_record(f))
    assert mr.line(r)["status"] == r.row["status"] == mcells.as_row(r)["status"] == "stopped"
    assert seen == [r.folder] * 3  # one look for each


def test_nobody_is_at_a_run_whose_process_is_gone(tmp_path):
    r = fake(tmp_path)[0]
    r.folder.mkdir(parents=True)
    (r.folder / "run.json").write_text(json.dumps(dict(format=1, key="?", status="running", cell=CELL)))
    (r.folder / ".run.lock").touch()
    assert r.status == "stopped"
    with alone(r.folder / "run"):
        assert r.status == "running"
    with pytest.raises(BadInput, match="holds another run"):
        fake(tmp_path)[1]()


# Damage -----------------------------------------------------------------------------------------------------------


def half_done(root):
    "A run stopped after its second epoch"
    control = Control()
    r, go = fake(root, control=control, listeners=[until(control, 1)])
    assert go()["status"] == "stopped"
    return r


@pytest.mark.parametrize("name,sittings,says", [
    ("resume.pt", 2, "resume.pt' is damaged .*begins anew"), ("events.jsonl", 2, "events.jsonl' is damaged .*begin with epoch 2"),
    ("run.json", 1, "run.json' is damaged .*the run goes on"),
])  # fmt: skip
@pytest.mark.parametrize("how", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b"\xff" * len(b)])
def test_a_damaged_file_of_a_stopped_run_is_a_sentence(tmp_path, name, sittings, says, how):
    whole, r = fake(tmp_path / "whole")[1](), half_done(tmp_path / "cut")
    f = r.folder / name
    f.write_bytes(how(f.read_bytes()))
    if f.read_bytes() == b"" and name == "events.jsonl":
        says = None  # no events is what a file without lines says
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        again = fake(tmp_path / "cut")[1]()
    assert says is None or [w for w in heard if __import__("re").search(says, str(w.message))]
    assert again["row"]["losses"] == whole["row"]["losses"] and again["timing"]["sittings"] == sittings
    assert same(trained(r.folder), trained(Runs(tmp_path / "whole")[0].folder))


def test_a_damaged_result_is_named_and_made_again(tmp_path):
    how = dict(tasks=[task()], shots=4, seeds=(1, 2), clip=clip(), bar=False, workers=1, out=tmp_path)
    first = compare([Method], **how)
    f = Runs(tmp_path)[0].folder / "run.json"
    f.write_bytes(f.read_bytes()[:100])
    frame = Runs(tmp_path).frame
    assert (
        list(frame.status) == ["unreadable", "done"]
        and "is damaged" in frame.error[0]
        and "delete its folder" in frame.error[0]
    )
    assert "unreadable" in Runs(tmp_path)._repr_html_() and "is damaged" in Runs(tmp_path)._repr_html_()
    with pytest.raises(BadFile, match="is damaged"):
        Runs(tmp_path)[0].record  # noqa: B018
    with pytest.warns(UserWarning, match="is damaged"):
        again = compare([Method], **how)
    assert [r["H"] for r in again.rows] == [r["H"] for r in first.rows] and list(Runs(tmp_path).frame.status) == [
        "done"
    ] * 2
    (tmp_path / "results.json").write_text('{"rows": [')
    with pytest.raises(BadFile, match="results.json' is damaged"):
        load(tmp_path)
    with pytest.raises(BadFile, match="no comparison in"):
        load(tmp_path / "runs")


def test_results_of_an_earlier_form_are_mentioned(tmp_path):
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells/0123456789abcdef.json").write_text('{"method": "Method"}')
    with pytest.warns(UserWarning, match="holds 1 results of an earlier mudpt.*left alone"):
        compare([Method], [task()], 4, (1,), clip=clip(), out=tmp_path, bar=False, workers=1)
    assert len(Runs(tmp_path)) == 1 and (tmp_path / "cells/0123456789abcdef.json").exists()


def test_another_machine_is_mentioned(tmp_path, monkeypatch):
    half_done(tmp_path)
    monkeypatch.setattr(ms, "environment", lambda d: dict(torch="0.1"))
    with pytest.warns(UserWarning, match="was begun with torch .*, now 0.1: the last digits may differ"):
        fake(tmp_path)[1]()


# Failures, frames, words ------------------------------------------------------------------------------------------


class Buggy(Method):
    def loss(self, out, y):
        return 1 / 0


def test_a_failure_is_a_row_with_its_reason(tmp_path, monkeypatch):
    import mudpt.runs as mr

    monkeypatch.setattr(
        mr, "find_methods", lambda w=None: [{"Buggy": Buggy, "Explodes": Explodes, "Draws": Draws}[x] for x in w]
    )
    go = lambda m, **k: run(dict(CELL, method=m), clip(), task(), tmp_path, workers=1, **k)
    a, b, c = go("Buggy"), go("Explodes"), go("Draws")
    assert [r.status for r in (a, b, c)] == ["error", "error", "done"]
    assert (
        a.row["status"] == "error" and a.row["error"].startswith("ZeroDivisionError") and "1 / 0" in a.row["traceback"]
    )
    assert "the loss became inf" in b.row["error"] and b.row["traceback"] == "" and b.record["progress"]["epoch"] == 2
    assert c.row["status"] == "ok" and c.row["H"] > 0
    frame = Runs(tmp_path).frame.set_index("method")
    assert list(frame.status) == ["error", "done", "error"] and frame.H.notna().tolist() == [False, True, False]
    assert "inf" in frame.error["Explodes"] and {"base", "new", "seed", "shots", "protocol", "trainable"} <= set(frame)
    assert go("Buggy", retry=False).record["timing"]["sittings"] == 1 and go("Buggy").record["timing"]["sittings"] == 1
    monkeypatch.setattr(Buggy, "loss", Method.loss)
    assert go("Buggy").status == "done" and go("Buggy").row["error"] is None
    html = Runs(tmp_path)._repr_html_()
    assert html.count("<tr>") == 4 and "1 error" in html and "2 done" in html and "2/4" in html


def test_the_record_says_where_a_number_comes_from(tmp_path, monkeypatch):
    repo = tmp_path / "repo"
    repo.mkdir()
    git = lambda *a: subprocess.run(["git", "-C", repo, "-c", "user.name=n", "-c", "user.email=e", *a], check=True, capture_output=True)  # fmt: skip
    git("init")
    (repo / "paper.py").write_text("1")
    git("add", ".")
    git("commit", "-m", "x")
    monkeypatch.chdir(repo)
    r = fake(tmp_path / "runs")[1]()
    assert len(r["git"]["commit"]) == 40 and r["git"]["dirty"] is False
    (repo / "paper.py").write_text("2")
    assert fake(tmp_path / "more")[1]()["git"]["dirty"] is True
    assert r["data"]["split"] == task().fingerprint and r["data"]["subset"] == mc.subset_digest(
        task().few_shot(4, 1).train
    )
    assert r["data"]["n_train"] == 8 and r["data"]["n_test"] == dict(base=8, new=8) and r["cell"]["train"] == {}
    assert (
        r["env"]["torch"] == torch.__version__ and r["clip"]["digest"] == "f" * 16 and r["where"]["pid"] == os.getpid()
    )
    assert r["started"] <= r["finished"] and r["timing"]["total_seconds"] >= r["timing"]["seconds"] > 0
    assert r["progress"] == dict(epoch=4, epochs=4, step=16) and r["timing"]["peak_mib"] > 10


def test_time_and_losses_add_up_over_sittings(tmp_path):
    r = half_done(tmp_path)
    before = r.record["timing"]
    after = fake(tmp_path)[1]()
    assert after["timing"]["sittings"] == 2 and after["timing"]["total_seconds"] > before["total_seconds"]
    assert after["timing"]["seconds"] > before["seconds"] and after["row"]["total_seconds"] > before["total_seconds"]
    assert len(after["row"]["losses"]) == 16 == after["row"]["steps"]


def test_zero_shot_is_judged_once_for_all_seeds(tmp_path, monkeypatch):
    seen, real = [], mc.score
    monkeypatch.setattr(mc, "score", lambda m, *a, **k: (seen.append(m.name), real(m, *a, **k))[1])
    t = Task("colours", NAMES, task().train, [], task().test)
    how = dict(shots=2, seeds=(1, 2, 3), clip=small("vit"), epochs=1, bs=4, bar=False, workers=1)
    c = compare(["ZeroShot", "CoOp"], [t], out=tmp_path, **how)
    assert seen.count("ZeroShot") == 2 and seen.count("CoOp") == 6 and len(c.rows) == 6
    assert len({r["subset"] for r in c.rows}) == 3 and len({r["H"] for r in c.rows if r["method"] == "ZeroShot"}) == 1
    seen.clear()
    u = Task("others", NAMES, task(7).train, [], task(7).test)
    cross_dataset(["ZeroShot", "CoOp"], t, [u], **how)
    assert seen.count("ZeroShot") == 2 and seen.count("CoOp") == 6


def test_a_template_makes_another_cell():
    t = task()
    t.template = "a drawing of a {}."
    assert run_folder(CELL, clip(), t, "x") != run_folder(CELL, clip(), task(), "x")
    assert run_folder(CELL | dict(train={}), clip(), t, "x") == run_folder(CELL, clip(), t, "x")
    assert run_folder(CELL | dict(train=dict(lr=0.1)), clip(), t, "x") != run_folder(CELL, clip(), t, "x")


@pytest.mark.parametrize("call,says", [
    (lambda: cell("Maple", "emoji/animals"), "did you mean 'MaPLe'"), (lambda: cell("MaPLe", "emoji/animals", args=dict(dept=1)), "'depth'"),
    (lambda: cell("MaPLe", "emoji/animals", protocol="b2n"), "known: base-to-new, few-shot"), (lambda: cell("CoOp", "a", epoch=3), "option of a run"),
    (lambda: cell("CoOp", "a", args=dict(n_ctx=object())), "words and numbers"), (lambda: run(cell("CoOp", "emoji/animal"), small()), "did you mean"),
])  # fmt: skip
def test_mistakes_are_found_before_there_is_a_folder(tmp_path, monkeypatch, call, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MudptError, match=says):
        call()
    assert list(tmp_path.iterdir()) == []


def test_a_run_gives_its_method_back(tmp_path):
    t = emoji.task("animals", classes=4, n_train=2, n_test=2)
    c = cell("CoOp", t, shots=2, epochs=1, bs=4, args=dict(n_ctx=2), lr=0.01)
    assert json.loads(json.dumps(c)) == c and c["train"] == dict(lr=0.01)
    r = run(c, emoji.clip("cpu"), t, tmp_path, workers=1)
    assert r.row["recipe"]["lr"] == 0.01 and r.card["recipe"]["lr"] == 0.01
    m = r.method(emoji.clip("cpu"))
    assert isinstance(m, CoOp) and same(tensors_of(m), trained(r.folder)) and len(Runs(tmp_path)) == 1


def test_a_keeper_without_a_record(tmp_path):
    t, control = Trainer(Method(clip()), task(), workers=1), Control()
    with pytest.raises(Stopped):
        Keeper(tmp_path, control=control).fit(t, until(control, 0))
    assert read_record(tmp_path)["progress"]["epoch"] == 1
