import json
import math
import threading

import pytest
import torch
from fakes import Draws, Explodes, Method, Nothing, clip, task

from mudpt.core import BadInput, MudptError, seed_all
from mudpt.steps import lr_at
from mudpt.train import Bar, Diverged, Event, Log, Trainer

# Learning rates by epoch, recorded from the optimiser and scheduler that the published code bases use.
VECTORS = [
    (0.0035, 5, 1, {0: 1e-5, 1: 0.0035, 2: 0.0031657797401561582, 3: 0.0022907797401561583, 4: 0.001209220259843842}),
    (0.0026, 2, 1, {0: 1e-5, 1: 0.0026}),
    (0.0025, 10, 1, {0: 1e-5, 1: 0.0025, 2: 0.0024388206453689423, 9: 0.00023872875703131582}),
    (0.002, 50, 1, {0: 1e-5, 1: 0.002, 2: 0.0019980267284282717, 26: 0.001, 49: 7.88529868552223e-06}),
    (0.0035, 20, 1, {0: 1e-5, 1: 0.0035, 2: 0.003478454596041491, 19: 8.565109648348134e-05}),
    (0.01, 60, 10, {0: 1e-5, 9: 1e-5, 10: 0.01, 59: 0.0008066471602728801}),
    (0.01, 100, 10, {9: 1e-5, 10: 0.01, 99: 0.00029559615522887296}),
]


@pytest.mark.parametrize("lr,epochs,warmup,want", VECTORS)
def test_schedule_is_the_published_one(lr, epochs, warmup, want):
    for e, v in want.items():
        assert lr_at(e, lr, epochs, warmup) == pytest.approx(v, rel=1e-9)


def make(cls=Method, seed=1, t=None, **kw):
    seed_all(seed)
    return Trainer(cls(clip()), t or task(), **{"seed": seed, "workers": 1, **kw})


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.method.parameters(), b.method.parameters(), strict=True))


def test_the_stream_tells_the_run_in_order():
    t = make(epochs=3, eval_every=0)
    events = list(t.events())
    kinds = [e.kind for e in events]
    assert kinds == ["start"] + (["step"] * 6 + ["epoch"]) * 3 + ["end"]
    assert [e.data["lr"] for e in events if e.kind == "epoch"] == [lr_at(e, 0.5, 3) for e in range(3)]
    assert [e.epoch for e in events if e.kind == "epoch"] == [0, 1, 2]
    assert events[-1].step == 18 and not events[-1].data["stopped"]
    losses = [float(e.data["loss"]) for e in events if e.kind == "step"]
    assert losses == pytest.approx(sum((e.data["losses"] for e in events if e.kind == "epoch"), []))
    assert losses[-1] < losses[0]


def test_omitted_options_come_from_the_recipe():
    t = make()
    assert (t.o["epochs"], t.o["lr"], t.o["bs"], t.o["momentum"], t.o["weight_decay"]) == (4, 0.5, 4, 0.9, 5e-4)
    assert make(bs=2).o["bs"] == 2


def test_same_seed_same_prompts_other_seed_other_prompts():
    assert same(make().fit(), make().fit())
    assert not same(make().fit(), make(seed=2).fit())


@pytest.mark.parametrize("cls", [Method, Draws])
@pytest.mark.parametrize("opt", ["sgd", "adam", "adamw"])
def test_continued_from_an_epoch_is_bit_for_bit_uninterrupted(cls, opt):
    whole = make(cls, opt=opt).fit()
    first = make(cls, opt=opt)
    for e in first.events():
        if e.kind == "epoch" and e.epoch == 1:
            state = first.state_dict()
            break
    torch.rand(7)  # whatever else the process draws in between
    second = make(cls, opt=opt)
    torch.nn.init.zeros_(second.method.w)
    second.load_state_dict(state)
    second.fit()
    assert second.step == whole.step and same(whole, second)
    assert second.history == whole.history


def test_state_survives_a_file(tmp_path):
    t = make()
    it = t.events()
    while next(it).kind != "epoch":
        pass
    torch.save(t.state_dict(), tmp_path / "s.pt")
    u = make()
    u.load_state_dict(torch.load(tmp_path / "s.pt", weights_only=True))
    assert same(t, u) and u.epoch == 1


def test_continuing_a_different_run_is_refused():
    s = make().state_dict()
    with pytest.raises(BadInput, match="lr is 0.1 here and 0.5"):
        make(lr=0.1).load_state_dict(s)
    with pytest.raises(BadInput, match="images"):
        make(t=task(5)).load_state_dict(s)


def test_stopped_in_mid_epoch_goes_on_where_it_stopped():
    whole, t = make().fit(), make()
    t.fit(lambda e: t.stop() if e.step == 9 and e.kind == "step" else None)
    assert (t.step, t.epoch, t.at) == (9, 1, 3)
    kinds = [e.kind for e in t.events()]
    assert kinds[0] == "start" and kinds.count("step") == 24 - 9
    assert same(whole, t) and t.history == whole.history


def test_walking_away_from_the_stream_and_coming_back():
    whole, t = make().fit(), make()
    for e in t.events():
        if e.step == 5:
            break
    assert same(whole, t.fit())


def test_mid_epoch_state_can_be_taken_up_elsewhere():
    whole, t, u = make().fit(), make(), make()
    for e in t.events():
        if e.step == 9:
            break
    u.load_state_dict(t.state_dict())
    u.fit()
    assert same(whole, u) and u.history == whole.history


def test_pause_and_resume_from_another_thread():
    t, seen, paused = make(), [], threading.Event()

    def listen(e):
        seen.append(e.kind)
        if e.step == 7 and e.kind == "step":
            t.pause()
            paused.set()

    job = threading.Thread(target=t.fit, args=(listen,))
    job.start()
    assert paused.wait(20)
    job.join(0.2)
    assert job.is_alive() and t.paused and seen.count("step") == 7
    t.resume()
    job.join(20)
    assert seen[-1] == "end" and same(make().fit(), t)


def test_stop_ends_a_pause():
    t = make()
    t.pause()
    job = threading.Thread(target=t.fit)
    job.start()
    t.stop()
    job.join(20)
    assert not job.is_alive() and t.step <= 1


@pytest.mark.parametrize("accum", [2, 3, 4])
def test_accumulated_batch_equals_the_big_one(accum):
    whole, parts = make().fit(), make(accum=accum).fit()
    assert torch.allclose(whole.method.w, parts.method.w, atol=1e-6)


def test_accumulation_is_refused_where_it_would_change_the_method():
    m = Method(clip())
    m.batch_dependent = True
    with pytest.raises(BadInput, match="accum=2"):
        Trainer(m, task(), accum=2)


def test_infinite_loss_stops_the_run_and_restores_the_prompts():
    good = make(Explodes)
    for e in good.events():
        if e.kind == "epoch" and e.epoch == 1:
            break
    t, kinds = make(Explodes), []
    with pytest.raises(Diverged, match=r"inf at step 13 \(epoch 2, learning rate 0\.\d+\).*lr=0\.05"):
        t.fit(lambda e: kinds.append(e.kind))
    assert kinds[-1] == "error" and t.epoch == 2
    assert same(good, t)
    buffers = [s["momentum_buffer"] for s in t.optimiser.state.values()]
    assert buffers and all(torch.isfinite(b).all() for b in buffers)


def test_rare_looks_find_the_same_step():
    t = make(Explodes)
    t.look = 16  # as on a GPU
    with pytest.raises(Diverged, match="step 13"):
        t.fit()
    assert torch.isfinite(t.method.w).all()


@pytest.mark.parametrize(
    "kw,says",
    [
        (dict(epochs=0), "epochs=0"), (dict(bs=0), "bs=0"), (dict(lr=0.0), "lr=0"), (dict(lr=-1.0), "lr=-1"), (dict(lr=math.nan), "lr=nan"),
        (dict(accum=9), "accum=9"), (dict(opt="adamv"), "did you mean 'adam'"), (dict(sched="cosin"), "did you mean 'cosine'"),
        (dict(amp="fp16"), "needs a CUDA device"), (dict(warmup=-1), "warmup=-1"), (dict(bs=2.5), "bs=2.5"),
    ],
)  # fmt: skip
def test_mistakes_are_found_before_training(kw, says):
    with pytest.raises(MudptError, match=says):
        make(**kw)


def test_unusable_training_images_are_named():
    t = task()
    with pytest.raises(BadInput, match="no training images"):
        t.train = []
        make(t=t)
    t = task()
    t.train[3] = (t.train[3][0], 4)
    with pytest.raises(BadInput, match="training image 3 .* label 4, but there are 4 names"):
        make(t=t)
    t = task()
    t.train = t.train[:6]
    with pytest.raises(BadInput, match="two classes"):
        make(t=t)
    t = task()
    t.val = []
    with pytest.raises(BadInput, match="no validation images"):
        make(t=t, eval_every=1)


def test_a_batch_larger_than_the_set_is_the_set():
    assert make(bs=1000, epochs=3).fit().step == 3


def test_nothing_to_train_passes_through():
    t = Trainer(Nothing(clip()), task())
    assert [e.kind for e in t.events()] == ["start", "end"]
    assert t.state_dict()["place"]["step"] == 0


class PerClass(Method):
    "Has nothing to train until it knows its classes"

    def __init__(self, clip):
        super().__init__(clip)
        self.w, self.args = None, {}

    def bind(self, names):
        super().bind(names)
        self.w = torch.nn.Parameter(torch.randn(len(names), 12) * 0.02)


def test_parameters_that_come_with_the_classes_are_trained():
    t = make(PerClass).fit()
    assert (t.epoch, t.step) == (4, 24) and t.history[-1] < t.history[0]


def test_unaugmented_text_only_training_uses_stored_features():
    m = Method(clip())
    m.prompts_image = False
    calls = []
    m.clip.encode_image, inner = lambda x: (calls.append(len(x)), inner(x))[1], m.clip.encode_image
    Trainer(m, task(), augment=False, workers=1).fit()
    assert sum(calls) == 24  # each image once, not once per epoch


def test_bf16_on_the_cpu():
    t = make(amp="bf16").fit()
    assert t.method.w.dtype == torch.float32 and t.history[-1] < t.history[0]


def test_gradients_are_clipped():
    t = make(clip_grad=1e-3, momentum=0.0, weight_decay=0.0, warmup=0, epochs=1, bs=24)
    before = t.method.w.detach().clone()
    t.fit()
    assert float((t.method.w - before).detach().norm()) <= 0.5 * 1e-3 * 1.001


def test_a_listener_that_fails_ends_the_run_cleanly():
    t = make()
    with pytest.raises(ZeroDivisionError):
        t.fit(lambda e: 1 / 0 if e.step == 3 else None)
    assert t.step == 3 and not t.method.training and same(make().fit(), t.fit())


def test_log_and_bar_listen_together(tmp_path, capsys):
    log = Log(tmp_path / "events.jsonl")
    make(epochs=2).fit(Bar(always=True), log)
    assert [e["kind"] for e in log.read()] == ["start", "epoch", "epoch", "end"]
    assert all(json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines())
    assert "12 steps in 0:0" in capsys.readouterr().err
    assert log.read()[-1]["peak_mib"] > 10


def test_events_are_plain_facts():
    e = Event("step", 1, 0)
    with pytest.raises(AttributeError):
        e.step = 2
