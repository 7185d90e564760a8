"""The prompt trainer without a browser: its state, its thread, its buttons, and what it says when things go wrong."""

import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from fakes import task
from small import small

from mudpt.core import BadInput, MudptError, Unknown
from mudpt.curve import Curve
from mudpt.prompts import Prompts, methods, vectors

pytest.importorskip("traitlets")
from mudpt import choices as choices_module  # noqa: E402
from mudpt.job import Job  # noqa: E402
from mudpt.states import TrainState, _alive  # noqa: E402
from mudpt.train import Event  # noqa: E402
from mudpt.watch import Ear, Run  # noqa: E402

LONG = 100_000  # epochs; nobody waits for their end


def state(**kw):
    return TrainState(small(), [task()], **{"method": "CoOp", "shots": 2, "epochs": 2, "bs": 2, "args": {"n_ctx": 2}, **kw})


def until(s, *wanted, seconds=120):
    end = time.monotonic() + seconds
    while s.status not in wanted:
        assert time.monotonic() < end, f"still {s.status}, {s.trouble}"
        time.sleep(0.005)


@pytest.fixture(autouse=True)
def nothing_goes_on_afterwards():
    yield
    left = [t for t in threading.enumerate() if t.name == "mudpt training"]
    for s in list(_alive):
        s.stop()
    for t in left:
        t.join(60)
        assert not t.is_alive()


def test_states_import_no_widget():
    code = "import sys, mudpt.states, mudpt.frames, mudpt.curves, mudpt.looks; print(*{m.split('.')[0] for m in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"ipywidgets", "anywidget", "plotly", "matplotlib"} & set(loaded)


def test_every_status_on_the_way():
    s, seen = state(epochs=LONG), []
    s.observe(lambda c: seen.append(c["new"]), "status")
    s.start()
    until(s, "training")
    s.pause()
    until(s, "paused")
    at = s.run.job.trainer.step
    time.sleep(0.1)
    assert s.run.job.trainer.step == at
    s.step()
    while s.run.job.trainer.step == at:
        time.sleep(0.005)
    until(s, "paused")
    assert s.run.job.trainer.step == at + 1
    s.go_on()
    while s.run.job.trainer.step < at + 3:
        time.sleep(0.005)
    s.stop()
    assert s.join(60)
    assert seen[:2] == ["preparing", "training"] and seen[-2:] == ["stopping", "stopped"] and "pausing" in seen
    assert len(s.runs) == 1 and s.run.job.trainer.step >= at + 3


def test_a_stopped_run_goes_on_and_ends_as_if_it_had_not_been_stopped():
    one, two = state(), state()
    one.start(), one.join(60)
    two.step(), until(two, "paused"), two.stop(), two.join(60)
    assert two.status == "stopped" and two.run.job.trainer.step == 1
    two.go_on(), two.join(60)
    assert (one.status, two.status) == ("done", "done")
    assert all(torch.equal(a, b) for a, b in zip(one.trained.parameters(), two.trained.parameters(), strict=True))
    assert len(two.run.loss) == two.run.job.trainer.step


def test_second_start_is_refused_politely():
    s = state(epochs=LONG)
    assert s.start() is True
    assert s.start() is False and "still at work" in s.message and len(s.runs) == 1
    until(s, "training")
    assert s.start() is False


def test_wishes_that_make_no_sense_are_answered():
    s = state()
    for wish in (s.pause, s.go_on, s.stop, s.save):
        s.message = ""
        wish()
        assert s.message and s.status == "idle"


def test_stop_while_preparing():
    s, gate = state(epochs=LONG), threading.Event()
    find, s.the_task = s.the_task, lambda: gate.wait(60) and find()
    copy = s.snapshot
    s.snapshot = lambda: (c := copy(), setattr(c, "the_task", s.the_task))[0]
    s.start()
    assert s.status == "preparing"
    s.stop()
    assert s.status == "stopping"
    gate.set()
    assert s.join(60) and s.status == "stopped" and s.run.job.trainer.step == 0


def test_choices_made_while_training_concern_the_next_run():
    s = state(epochs=LONG)
    s.start(), until(s, "training")
    s.method, s.shots, s.epochs = "VPT", 1, 1
    s.stop(), s.join(60)
    assert s.run.choices.method == "CoOp" and s.trained.name == "CoOp" and len(s.run.job.trainer.task.train) == 4
    s.start(), s.join(60)
    assert s.trained.name == "VPT" and len(s.run.job.trainer.task.train) == 2


def test_runs_lie_over_each_other_until_they_are_hidden_or_removed():
    s = state(epochs=1)
    for method in ("CoOp", "VPT", "MaPLe"):
        s.method = method
        s.start(), s.join(60)
    f = s.frame()
    assert len({r["colour"] for r in f.runs}) == 3 and len({r["label"] for r in f.runs}) == 3
    s.show(2, False)
    assert {line.visible for line in s.frame().lines if line.run == 2} == {False}
    s.remove(1)
    assert [r["key"] for r in s.frame().runs] == [2, 3] and s.trained.name == "MaPLe"
    s.start(), s.join(60)
    assert s.run.key == 4 and s.run.colour not in {r.colour for r in s.runs[:-1]}
    with pytest.raises(BadInput, match="no run 1"):
        s.show(1)


def test_a_run_at_work_is_not_removed():
    s = state(epochs=LONG)
    s.start(), until(s, "training")
    s.remove(1)
    assert len(s.runs) == 1 and "stop it" in s.message and not s.frame().runs[0]["can_remove"]


@pytest.mark.parametrize("name, text", [("lr", "fast"), ("shots", "0"), ("shots", ""), ("args.n_ctx", "two"), ("epochs", "1.5"), ("lr", "inf")])
def test_what_cannot_be_understood_is_said_beside_the_field_and_not_started(name, text):
    s = state()
    before = s.value(next(f for f in s.fields if f.name == name))
    assert s.enter(name, text) is False
    assert name in s.wrong and "give a" in s.wrong[name]
    assert s.start() is False and s.trouble[0] == s.wrong[name] and s.status == "idle" and not s.runs
    assert s.value(next(f for f in s.fields if f.name == name)) == before
    assert s.enter(name, "2") and not s.wrong and s.start()
    assert s.join(60) and s.status == "done" and s.trouble is None


@pytest.mark.parametrize("wrong, says", [({"shots": 50}, "fewer"), ({"warmup": 9}, "warmup=9"), ({"task": "nowhere"}, "nowhere"), ({"args": {"n_ctx": 0}}, "n_ctx")])
def test_errors_of_the_run_end_it_with_a_remedy(wrong, says):
    s = state(**wrong)
    s.start(), s.join(60)
    assert s.status == "failed" and says in s.trouble[0] and "Traceback" in s.trouble[1]
    assert not s.runs  # it never began
    assert s.frame().trouble == s.trouble and s.frame().can["start"]


def test_a_run_that_diverges_keeps_its_curve_and_says_what_to_do():
    s = state(lr=1e30, epochs=3, warmup=0)
    s.start(), s.join(60)
    assert s.status == "failed" and "Try lr=" in s.trouble[0] and len(s.runs) == 1 and s.trained is not None


@pytest.fixture
def breaks():
    "A method made to fail in a way nobody foresaw; known only while one test runs"

    class Breaks(Prompts):
        def __init__(self, clip, n_ctx: int = 2):
            super().__init__(clip)
            self.n_ctx, self.ctx = n_ctx, vectors(n_ctx, clip.image.width)

        def image(self):
            return {0: self.ctx}

        def loss(self, out, y):
            return {}["nothing"]

    yield Breaks.__name__
    methods.pop(Breaks.__name__)


def test_an_unforeseen_error_brings_its_traceback(breaks):
    s = state(method=breaks, args={})
    s.start(), s.join(60)
    assert s.status == "failed" and "KeyError" in s.trouble[0] and "in loss" in s.trouble[1]


def test_unknown_method_from_code_is_an_exception():
    with pytest.raises(Unknown, match="MaPLe"):
        state().method = "Maple"


def test_drawing_is_asked_for_at_most_five_times_a_second():
    now, ticks = [0.0], []
    run = Run(1, None, "#000", job=SimpleNamespace(trainer=SimpleNamespace(totals=dict, method=None)))
    ear = Ear(run, lambda: ticks.append(now[0]), words=None, clock=lambda: now[0])
    for i in range(1, 1001):  # a step every 10 ms, ten seconds in all
        ear(Event("step", i, 0, dict(loss=torch.tensor(1.0), lr=0.1, at=i, of=1000)))
        now[0] += 0.01
    assert ticks[0] == 0 and 45 <= len(ticks) <= 52
    ear.look()
    assert len(run.loss) * run.loss.each <= 1000 < (len(run.loss) + 1) * run.loss.each


def test_points_are_bounded_and_no_loss_is_lost():
    c = Curve(8)
    for i in range(1000):
        c.add(i, 1.0)
    assert len(c) < 8 and c.each == 128 and (c.arrays()[1] == 1).all()


def test_glances_are_at_training_and_validation_images_only():
    s = state(epochs=1)
    s.start(), s.join(60)
    t = s.run.job.trainer.task
    assert s.run.parts["train"][0] == t.train and s.run.parts["base"][0] == t.val and set(s.run.parts) == {"train", "base", "new"}
    used = {id(x) for items, _ in s.run.parts.values() for x, _ in items}
    assert not used & {id(x) for x, _ in s.the_task().test}
    assert s.frame().runs[0]["H"] is not None


def test_methods_bound_to_their_classes_and_tasks_without_validation_images():
    s = state(args={"csc": True, "n_ctx": 2}, epochs=1)
    s.start(), s.join(60)
    assert set(s.run.parts) == {"train", "base"} and s.status == "done"
    bare = task(name="bare")
    bare.val = []
    s = TrainState(small(), [bare], method="CoOp", shots=1, epochs=1, half="all")
    s.start(), s.join(60)
    assert set(s.run.parts) == {"train"} and "no validation images" in s.frame().notes[0]


def test_zero_shot_has_nothing_to_train_and_is_glanced_at():
    s = state(method="ZeroShot", args={})
    s.start(), s.join(60)
    assert s.status == "done" and set(s.run.scores) == {"train", "base", "new"} and not len(s.run.loss)
    assert s.frame().numbers


def test_saving(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    s = state(epochs=LONG)
    s.start(), until(s, "training")
    assert s.save() is None and "pause or stop" in s.message
    s.stop(), s.join(60)
    first, second = s.save(), s.save()
    assert first != second and first.exists() and second.exists() and str(second) in s.frame().runs[0]["saved"]
    assert s.save("prompts.txt") is None and ".safetensors" in s.trouble[0]


def test_words_of_methods_without_text_prompts_are_none():
    s = state(method="VPT", args={}, epochs=1)
    s.start(), s.join(60)
    assert s.status == "done" and s.frame().words == []


def test_words_drift():
    told = iter([[("1", "photo")], [("1", "animal")], [("1", "cat")]])
    s = state(words=lambda m: next(told))
    s.start(), s.join(60)
    assert s.frame().words == [("1", "photo", "cat")]


def test_gpus_are_listed_with_their_free_memory(monkeypatch):
    fake = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 2,
        get_device_name=lambda i: f"Card {i}",
        mem_get_info=lambda i: ((10 + i) * 2**30, 80 * 2**30),
    )
    monkeypatch.setattr(choices_module.torch, "cuda", fake)
    found = choices_module.devices()
    assert [v for v in found.values() if v != "mps"] == ["cuda:0", "cuda:1", "cpu"]
    assert "GPU 1: Card 1, 11 of 80 GiB free" in found


def test_another_device_gets_a_copy_of_the_model(monkeypatch):
    clip = small()
    assert choices_module.moved(clip, "cpu") is clip
    monkeypatch.setattr(type(clip), "device", property(lambda self: torch.device("cuda:0")))  # as if it lived there
    other = choices_module.moved(clip, "cpu")
    assert other is not clip and other.model is not clip.model and other.digest == clip.digest
    assert all(torch.equal(a, b) for a, b in zip(clip.model.parameters(), other.model.parameters(), strict=True))


def test_a_job_reports_an_error_of_whoever_listens():
    def listen(e):
        raise MudptError("the ear fell off: glue it")

    s = state()
    job = Job(lambda: s.build()[0], listen)
    job.start(), job.join(60)
    assert (job.status, job.error[0]) == ("failed", "the ear fell off: glue it")


# ------------------------------------------------------------------------------------------- the view, still no browser


@pytest.fixture
def view():
    pytest.importorskip("ipywidgets")
    pytest.importorskip("anywidget")
    from mudpt.trainer_view import PromptTrainer

    made = []

    def make(s=None, **kw):
        made.append(PromptTrainer(s or state(**kw)))
        return made[-1]

    yield make
    for v in made:
        v.close()
        v.state.join(60)


def press(v, label):
    button = next(b for b in v.buttons.values() if b.description == label)
    button.click()


def bright(v):
    return [b.description for b in v.buttons.values() if "mudpt-dim" not in b._dom_classes]


def shows(v, *buttons):
    "The state changes first, in the thread that trains; what is drawn follows"
    end = time.monotonic() + 60
    while bright(v) != list(buttons) and time.monotonic() < end:
        time.sleep(0.005)
    assert bright(v) == list(buttons)


def test_buttons_do_what_they_say(view):
    v = view(epochs=LONG)
    assert bright(v) == ["Start", "Step"]
    press(v, "Start"), until(v.state, "training")
    shows(v, "Pause", "Step", "Stop")
    press(v, "Pause"), until(v.state, "paused")
    shows(v, "Continue", "Step", "Stop", "Save")
    seen = len(v.state.run.loss)
    press(v, "Continue"), until(v.state, "training")
    while len(v.state.run.loss) <= seen:
        time.sleep(0.01)
    press(v, "Stop"), v.state.join(60)
    shows(v, "Start", "Continue", "Step", "Save")
    each = next(t for t in v.fig.data if t.meta == "1/loss/each")
    assert list(each.y) == list(v.state.run.loss.arrays()[1]) and v.method is v.state.trained


def test_pressing_start_twice_is_answered_on_the_screen(view):
    v = view(epochs=LONG)
    press(v, "Start"), press(v, "Start")
    assert "still at work" in v.status.value


def test_two_views_of_one_state(view):
    a = view(epochs=1)
    b = view(a.state)
    a.side.entries["lr"].widget.value = "0.5"
    assert b.side.entries["lr"].widget.value == "0.5"
    b.side.method.value = "MaPLe"
    assert a.side.method.value == "MaPLe" and "args.depth" in a.side.entries
    press(b, "Start"), a.state.join(60)
    assert a.numbers.value == b.numbers.value and len(a.fig.data) == len(b.fig.data) > 3
    a.close()
    assert b.state.status == "done" and b.status.value


def test_a_wrong_value_is_shown_at_its_field_and_goes_away(view):
    v = view()
    e = v.side.entries["lr"]
    e.widget.value = "<b>fast"
    assert "&lt;b&gt;fast" in e.said.value and "mudpt-wrong" in e.widget._dom_classes
    press(v, "Start")
    assert "give a number" in v.trouble.value and v.state.status == "idle"
    e.widget.value = ""
    assert not e.said.value and "mudpt-wrong" not in e.widget._dom_classes and v.state.lr is None


def test_an_argument_that_cannot_be_is_said_where_the_plan_would_be(view):
    v = view(method="MaPLe", args={})
    assert "<svg" in v.plan.value
    v.side.entries["args.depth"].widget.value = "99"
    assert "<svg" not in v.plan.value and "99" in v.plan.value


def test_closing_stops_the_thread(view):
    v = view(epochs=LONG)
    press(v, "Start"), until(v.state, "training")
    v.close()
    assert v.state.join(60) and v.state.status == "stopped"
    assert "closed" in v._repr_mimebundle_()["text/plain"]


def test_runs_are_hidden_and_removed_with_the_mouse(view):
    v = view(epochs=1)
    press(v, "Start"), v.state.join(60)
    press(v, "Start"), v.state.join(60)
    tick, text, gone = v.rows.rows[1].children
    tick.value = False
    assert {t.visible for t in v.fig.data if t.meta.startswith("1/")} == {False}
    gone.click()
    assert list(v.rows.rows) == [2] and not [t for t in v.fig.data if t.meta.startswith("1/")]


def test_a_method_defined_later_can_be_chosen(view):
    v = view()
    try:

        class Later(Prompts):
            "Zero-shot, under another name"

        v.state.shots = 3
        assert "Later" in v.side.method.options and v.side.method.value == "CoOp"
    finally:
        methods.pop("Later", None)


def test_the_kernel_is_told_of_another_trainer_at_work(view):
    one, two = view(epochs=LONG), view()
    press(one, "Start"), until(one.state, "training")
    two.redraw()
    assert "at work too" in two.notes.value
