"""What holds prompts near the frozen model: each loss against a formula of its own, and the run around it"""

import io
import json
import math

import numpy as np
import pytest
import torch
from fakes import patch
from small import images, shake, small

import mudpt.methods  # noqa: F401  (registers them)
from mudpt.cells import as_rows
from mudpt.comparing import cell_key
from mudpt.core import BadInput, MudptError, seed_all
from mudpt.data import Task
from mudpt.pairing import paired
from mudpt.prompts import methods
from mudpt.regularise import Beside, Frozen, KgCoOp, Regulariser, Views, made, regularisers, spelled
from mudpt.runfolder import folder_name
from mudpt.runs import Runs, cell, run
from mudpt.steps import batch_loss
from mudpt.sweep import Sweep, grid
from mudpt.tabulating import tabulate
from mudpt.train import Trainer

NAMES = ["red", "green", "blue", "white"]
BUILT_IN = ["Consistency", "GaussianAverage", "KgCoOp", "ProGrad", "PromptSRC"]
LIGHT = dict(PromptSRC=dict(templates=["a photo of a {}.", "a {} in a video game."]))  # two sentences instead of sixty


def task(n=3, template="a photo of a {}, a kind of colour."):
    part = lambda lo, hi: [(patch(c, i), y) for y, c in enumerate(NAMES) for i in range(lo, hi)]
    return Task("colours", NAMES, part(0, n), part(n, n + 1), part(100, 102), template)


def make(name="IVLP", **kw):
    clip = small("vit")
    seed_all(1)
    m = methods[name](clip, **kw)
    m.bind(NAMES)
    return m


def light(name):
    return {name: LIGHT.get(name, {})}


def trainer(method="IVLP", regulariser=None, t=None, **o):
    clip = small("vit")  # made at the first call, which draws
    seed_all(1)
    m = methods[method](clip)
    return Trainer(m, t or task(), **{**dict(epochs=3, bs=4, lr=0.05, workers=1, regulariser=regulariser), **o})


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.method.parameters(), b.method.parameters(), strict=True))


def unit(a):
    return a / np.linalg.norm(a, axis=-1, keepdims=True)


def words(clip, *templates):
    "The model's own text features, by open_clip's own way"
    raw = [clip.model.encode_text(clip.tokenizer([t.format(n) for n in NAMES])).detach().numpy() for t in templates]
    return unit(np.mean(raw, 0))


def seen(clip, x):
    return unit(clip.model.encode_image(x).detach().numpy())


def log_softmax(z):
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


@pytest.fixture
def at():
    "A method after some training, a batch, and the frozen model beside it"
    m, x = shake(make()), images(small("vit"))
    frozen = Frozen(m, task())
    out = m(x, NAMES)
    frozen.look(out, x)
    return m, x, out, frozen


# ---- each loss by itself -------------------------------------------------------------------------------------------


def test_kgcoop(at):
    m, x, out, frozen = at
    w, u = out.text.detach().numpy(), words(m.clip, task().template)
    want = 8 * np.mean([0.5 * np.sum((a - b) ** 2) for a, b in zip(w, u)])
    got = KgCoOp().loss(out, None, frozen)
    got = got.item()
    assert got == pytest.approx(want, rel=1e-3) and want > 0.01
    assert KgCoOp(2).loss(out, None, frozen).item() == pytest.approx(want / 4, rel=1e-3)


def test_promptsrc(at):
    m, x, out, frozen = at
    sentences = ["a photo of a {}.", "the {}.", "itap of the {}."]
    u, v = words(m.clip, *sentences), seen(m.clip, x)
    p, q = log_softmax(m.clip.scale * v @ u.T), log_softmax(out.logits.detach().numpy())
    terms = dict(
        text=np.abs(out.text.detach().numpy() - u).mean(),
        image=np.abs(out.image.detach().numpy() - v).mean(),
        logits=(np.exp(p) * (p - q)).sum() / q.size,
    )
    none = dict(text=0, image=0, logits=0, templates=sentences)
    for k, want in terms.items():
        got = made({"PromptSRC": {**none, k: 3.0}})[0].loss(out, None, frozen)
        assert float(got) == pytest.approx(3 * want, rel=2e-3, abs=1e-5) and want > 1e-5
    whole = made({"PromptSRC": dict(templates=sentences)})[0].loss(out, None, frozen)
    assert float(whole) == pytest.approx(25 * terms["text"] + 10 * terms["image"] + terms["logits"], rel=2e-3)


def test_promptsrc_has_sixty_different_sentences():
    from mudpt.promptsrc import SIXTY

    assert len(set(SIXTY)) == len(SIXTY) == 60
    for t in (
        "a photo of a {}.",
        "the origami {}.",
        "a {} in a video game.",
        "a photo of the hard to see {}.",
        "itap of the {}.",
    ):
        assert t in SIXTY


def test_consistency_looks_at_the_second_view(at):
    m, x, out, frozen = at
    other = images(m.clip, seed=5)
    frozen.look(out, torch.stack([x, other], 1))
    cos = lambda a, b: np.mean(np.sum(a * b, -1))
    want = (1 - cos(out.text.detach().numpy(), words(m.clip, task().template))) + (
        1 - cos(out.image.detach().numpy(), seen(m.clip, other))
    )
    got = made("Consistency")[0].loss(out, None, frozen)
    assert float(got) == pytest.approx(8 * want, rel=1e-3)
    assert np.allclose(frozen.image().numpy(), seen(m.clip, x), atol=1e-5)


def test_class_features_for_each_image():
    m, x = shake(make("CoCoOp")), images(small("vit"))
    frozen = Frozen(m, task())
    frozen.look(out := m(x, NAMES), x)
    assert out.text.shape == (3, 4, 96)
    u = words(m.clip, task().template)
    want = np.mean([1 - np.dot(out.text[b, c].detach().numpy(), u[c]) for b in range(3) for c in range(4)])
    assert float(KgCoOp(1).loss(out, None, frozen)) == pytest.approx(want, rel=1e-3)
    src = made({"PromptSRC": dict(image=0, logits=0, text=1, templates=[task().template])})[0]
    assert float(src.loss(out, None, frozen)) == pytest.approx(np.abs(out.text.detach().numpy() - u).mean(), rel=1e-3)


@pytest.mark.parametrize("angle", [0.3, 2.0, 3.1])
def test_prograd_against_the_closed_form(angle):
    g, s = np.array([2.0, 0.0]), 5 * np.array([math.cos(angle), math.sin(angle)])
    got = made("ProGrad(lam=0.7)")[0].turn(torch.tensor(g), torch.tensor(s)).numpy()
    want = g if g @ s >= 0 else g - 0.7 * (g @ s) / (s @ s) * s
    assert np.allclose(got, want)
    assert np.allclose(made("ProGrad")[0].turn(torch.tensor(g), torch.zeros(2, dtype=torch.float64)), g)


def by_hand(m, x, y, lam=1.0):
    "Gradients of the loss, turned against those of the divergence, with autograd alone"
    params = [p for p in m.parameters() if p.requires_grad]
    out = m(x, NAMES)
    p = torch.tensor(np.exp(log_softmax(m.clip.scale * seen(m.clip, x) @ words(m.clip, task().template).T)))
    kl = -(p * out.logits.log_softmax(1)).sum(1).mean()
    gs = torch.autograd.grad(m.loss(out, y), params, retain_graph=True)
    ss = torch.autograd.grad(kl, params)
    turned = sum(bool((g * s).sum() < 0) for g, s in zip(gs, ss))
    return [g - lam * (g * s).sum() / (s * s).sum() * s if (g * s).sum() < 0 else g for g, s in zip(gs, ss)], turned


@pytest.mark.parametrize("accum,scale", [(1, 1.0), (3, 1.0), (1, 512.0), (2, 512.0)])
def test_prograd_in_a_batch(accum, scale):
    x, m = images(small("vit"), 6), shake(make("MaPLe"))
    y = torch.tensor(seen(m.clip, x) @ words(m.clip, task().template).T).argmin(1)  # what zero-shot CLIP believes least
    want, turned = by_hand(m, x, y)
    assert 0 < turned
    batch_loss(lambda x: m(x, NAMES), m, x, y, accum, scale=lambda l: l * scale, beside=Beside("ProGrad", m, task()))
    for p, w in zip([p for p in m.parameters() if p.requires_grad], want, strict=True):
        assert torch.allclose(p.grad / scale, w, atol=2e-3 * float(w.abs().max()) + 1e-7)


def test_prograd_does_not_hide_an_overflow():
    g, s = torch.tensor([1.0, 2.0]), torch.tensor([float("inf"), -1.0])
    assert not made("ProGrad")[0].turn(g, s).isfinite().all()  # a gradient scaler finds it, and leaves the step out


# ---- the average -----------------------------------------------------------------------------------------------


def test_weights_by_hand():
    w = made("GaussianAverage")[0].weights
    for T, mu, sd in ((20, 15, 1), (5, 3.75, 1), (40, 30, 2)):  # never narrower than an epoch
        raw = [math.exp(-((e - mu) ** 2) / (2 * sd**2)) for e in range(1, T + 1)]
        assert w(T) == pytest.approx([r / sum(raw) for r in raw])
    assert w(1) == [1.0]
    few = made("GaussianAverage(mean=0.9, std=0.1)")[0].weights(50)
    assert few.index(max(few)) == 44 and few[39] / few[44] == pytest.approx(math.exp(-0.5))


@pytest.mark.parametrize(
    "spec", ["GaussianAverage(mean=0.5, std=0.5)", {"PromptSRC": dict(templates=["{}."], mean=0.5, std=0.5)}]
)
def test_the_average_is_what_is_kept(spec):
    after = []
    plain = trainer(
        regulariser=[spec] if isinstance(spec, str) else {"PromptSRC": {**spec["PromptSRC"], "average": False}},
        epochs=4,
    )
    if isinstance(spec, str):
        plain = trainer(epochs=4)
    plain.fit(
        lambda e: after.append([p.detach().clone() for p in plain.method.parameters()]) if e.kind == "epoch" else None
    )
    raw = [math.exp(-((e - 2) ** 2) / (2 * 2**2)) for e in range(1, 5)]
    t = trainer(regulariser=spec, epochs=4).fit()
    for i, p in enumerate(t.method.parameters()):
        want = sum(w / sum(raw) * a[i] for w, a in zip(raw, after))
        assert torch.allclose(p, want, atol=1e-6)
    assert not same(t, plain) and t.history == plain.history


@pytest.mark.parametrize(
    "spec", ["GaussianAverage", light("PromptSRC"), ["GaussianAverage", "KgCoOp", "ProGrad", "Consistency"]]
)
@pytest.mark.parametrize("where", ["between epochs", "within an epoch"])
def test_put_down_and_taken_up(spec, where):
    whole = trainer(regulariser=spec).fit()
    first = trainer(regulariser=spec)
    if where == "between epochs":
        for e in first.events():
            if e.kind == "epoch" and e.epoch == 1:
                break
    else:
        first.fit(lambda e: first.stop() if e.kind == "step" and e.step == 5 else None)
    torch.save(first.state_dict(), kept := io.BytesIO())
    kept.seek(0)
    torch.rand(5)
    again = trainer(regulariser=spec)
    again.load_state_dict(torch.load(kept, weights_only=True))
    again.fit()
    assert same(again, whole) and again.history == whole.history


def test_a_run_that_blows_up_forgets_the_epoch():
    t = trainer(regulariser="GaussianAverage", epochs=4)
    for e in t.events():
        if e.kind == "epoch" and e.epoch == 1:
            break
    kept = {k: v.clone() for k, v in t.beside.all[0].sum.items()}
    t.method.loss = lambda out, y: out.logits.sum() * float("nan")
    with pytest.raises(MudptError, match="the loss became nan"):
        t.fit()
    assert all(torch.equal(v, kept[k]) for k, v in t.beside.all[0].sum.items())


# ---- nothing changes where nothing is asked for ------------------------------------------------------------------


@pytest.mark.parametrize("spec", [None, "none", "", []])
def test_a_run_without_is_what_it_was(spec):
    t = trainer(regulariser=spec)
    t.begin_epoch()
    seed_all(1)
    m = methods["IVLP"](small("vit"))
    m.bind(NAMES)
    opt = torch.optim.SGD(m.parameters(), lr=1e-5, momentum=0.9, weight_decay=5e-4)
    seed_all(100_003)
    for x, y in t.batches:
        t.one_step(x, y)
        opt.zero_grad()
        m.loss(m(x, NAMES), y).backward()
        opt.step()
    t.batches.set_epoch(0)
    assert all(torch.equal(p, q) for p, q in zip(t.method.parameters(), m.parameters(), strict=True))
    assert t.beside is None and "regularisers" not in t.moment()


def test_older_resume_files_are_read():
    first = trainer()
    for e in first.events():
        if e.kind == "epoch":
            break
    s = first.state_dict()
    s["made_with"].pop("regulariser")  # as it was before there were any
    again = trainer()
    again.load_state_dict(s)
    with pytest.raises(BadInput, match="regulariser is 'KgCoOp' here and None"):
        trainer(regulariser="KgCoOp").load_state_dict(s)
    with pytest.raises(BadInput, match="regulariser.KgCoOp.weight is"):
        a, b = trainer(regulariser="KgCoOp"), trainer(regulariser="KgCoOp")
        s = a.state_dict()
        s["made_with"]["regulariser.KgCoOp.weight"] = 7.0  # of a version with another default
        b.load_state_dict(s)


def test_cell_keys_are_what_they_were():
    t, clip = task(), small("vit")
    plain = cell("IVLP", t, shots=2)
    assert plain["train"] == {} and cell("IVLP", t, shots=2, regulariser="none") == plain
    assert cell_key({k: v for k, v in plain.items() if k != "train"}, clip, t) == cell_key(plain, clip, t)
    held = [
        cell("IVLP", t, shots=2, regulariser=r)
        for r in ("KgCoOp", ["KgCoOp"], {"KgCoOp": {"weight": 8}}, KgCoOp, KgCoOp(8.0))
    ]
    assert all(h == held[0] for h in held) and cell_key(held[0], clip, t) != cell_key(plain, clip, t)
    assert folder_name(plain, "0" * 16) == "IVLP-colours-base-to-new-2shots-seed1-00000000"
    assert folder_name(held[0], "0" * 16) == "IVLP+KgCoOp-colours-base-to-new-2shots-seed1-00000000"


def test_the_method_sees_the_same_crops_beside_a_second_view():
    a, b = trainer(), trainer(regulariser="Consistency")
    for (x, y), (two, same_y) in zip(a.batches, b.batches, strict=True):
        assert torch.equal(x, two[:, 0]) and torch.equal(y, same_y)
        assert two.shape[1] == 2 and not torch.equal(two[:, 0], two[:, 1])
    assert isinstance(b.batches.transform, Views)
    assert not isinstance(trainer("CoOp", "Consistency").batches.transform, Views)  # nobody would look at it


# ---- every method with every regulariser ---------------------------------------------------------------------------


TRAINED = [n for n, c in methods.items() if n != "ZeroShot" and not hasattr(c, "meet")]


@pytest.mark.parametrize("name", TRAINED)
def test_every_method_with_every_regulariser(name):
    for r in BUILT_IN:
        seed_all(1)
        m = methods[name](small("vit"))
        t = Trainer(m, task(1), epochs=1, bs=4, warmup=0, lr=1e-3, workers=1, regulariser=light(r))
        before = [p.detach().clone() for p in m.parameters()]
        if (name, r) == ("VPT", "KgCoOp"):
            with pytest.raises(BadInput, match="nothing to hold in VPT"):
                t.fit()
            continue
        t.fit()
        assert all(math.isfinite(h) for h in t.history)
        assert any(not torch.equal(a, b) for a, b in zip(before, m.parameters(), strict=True))
        assert all(p.grad is None and not p.requires_grad for p in m.clip.model.parameters())


@pytest.mark.parametrize("r", ["KgCoOp", "PromptSRC", "Consistency"])
def test_gradients_reach_the_prompts_and_nothing_else(r, at):
    m, x, out, frozen = at
    loss = made(light(r))[0].loss(out, None, frozen)
    grads = dict(
        zip([k for k, _ in m.named_parameters()], torch.autograd.grad(loss, list(m.parameters()), allow_unused=True))
    )
    moved = {k for k, g in grads.items() if g is not None and g.abs().sum() > 0}
    assert {k for k in grads if "text" in k} <= moved
    assert ({k for k in grads if "image" in k} <= moved) == (r != "KgCoOp")
    assert not frozen.text().requires_grad and not frozen.image().requires_grad and not frozen.logits().requires_grad


def test_the_frozen_image_tower_is_asked_once_a_batch(monkeypatch):
    from mudpt.towers import Clip

    calls, ask = [], Clip.encode_image
    monkeypatch.setattr(Clip, "encode_image", lambda self, x: calls.append(len(x)) or ask(self, x))
    many = [light("PromptSRC"), "ProGrad", "KgCoOp"]
    trainer(regulariser=many, epochs=1, bs=6).fit()
    assert calls == [6, 6]
    trainer("CoOp", many, epochs=1).fit()
    trainer("CoOp", many, epochs=1, augment=False).fit()
    assert len(calls) <= 3  # CoOp's features are the frozen ones; kept features cost one pass over the images at most


def test_a_frozen_sentence_is_encoded_once_for_all_who_ask(monkeypatch):
    from mudpt.text import FullText

    calls, ask = [], FullText.encode

    def encode(self, cl, prompts=None, *a, **k):
        if not prompts:
            calls.append(cl.texts[0])
        return ask(self, cl, prompts, *a, **k)

    monkeypatch.setattr(FullText, "encode", encode)
    t = task()
    m = methods["TCP"](small("vit"), template=t.template)  # stays near the same sentence as KgCoOp
    Trainer(m, t, epochs=2, bs=4, workers=1, regulariser=["KgCoOp", light("PromptSRC")]).fit()
    assert sorted(calls) == ["a photo of a red, a kind of colour.", "a photo of a red.", "a red in a video game."]


def test_half_precision():
    t = trainer(regulariser=[light("PromptSRC"), "ProGrad"], epochs=2, amp="bf16").fit()
    assert all(math.isfinite(h) for h in t.history)
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in t.method.parameters())


# ---- saying which ------------------------------------------------------------------------------------------------


@pytest.fixture
def own():
    "A regulariser of somebody's own; gone after the test"

    class Tether(Regulariser):
        "Prompts stay short"

        def __init__(self, weight: float = 1.0):
            self.weight = weight

        def loss(self, out, y, frozen):
            return self.weight * sum((p**2).sum() for p in frozen.method.parameters())

    yield Tether
    regularisers.pop("Tether")


def test_what_ships_is_known():
    assert sorted(regularisers) == BUILT_IN
    assert all(c.source and c.tier == "A" for c in regularisers.values())
    assert "tier A form" in regularisers["Consistency"].source


def test_one_spelling():
    assert spelled({"PromptSRC": {"text": 25.0}}) == "PromptSRC"
    assert spelled({"PromptSRC": {"text": 10, "templates": ["a {}."]}}) == "PromptSRC(text=10.0, templates=['a {}.'])"
    assert (
        spelled("ProGrad+KgCoOp(weight=4)")
        == spelled(["KgCoOp(weight=4)", "ProGrad"])
        == "KgCoOp(weight=4.0) + ProGrad"
    )
    for s in ("KgCoOp", "PromptSRC(average=False)", "KgCoOp(weight=4.0) + ProGrad"):
        assert spelled(s) == s


@pytest.mark.parametrize(
    "spec,said",
    [
        ("KgCoop", "did you mean 'KgCoOp'"),
        ("KgCoOp(w=3)", "unknown argument of KgCoOp 'w'"),
        ("KgCoOp(3)", "cannot be read"),
        ("__import__('os')", "cannot be read"),
        ("KgCoOp(weight=open('x'))", "cannot be read"),
        ("KgCoOp KgCoOp", "cannot be read"),
        (3, "cannot be read"),
        ({"KgCoOp": 4.0}, "cannot be read"),
        ("KgCoOp(weight='a')", "a number of 0 or more"),
        ("KgCoOp(weight=-1)", "a number of 0 or more"),
        ("GaussianAverage(mean=15)", "share of the run"),
        ("ProGrad(T=0)", "temperature"),
        (["KgCoOp", "KgCoOp"], "asked for twice"),
        ("GaussianAverage + PromptSRC", "only one average can stay"),
    ],
)
def test_mistakes_become_sentences(spec, said):
    with pytest.raises(MudptError) as e:
        trainer(regulariser=spec)
    assert said in str(e.value)


def test_a_classifier_on_features_is_fitted_without():
    m = methods["LinearProbe"](small("vit"))
    m.bind(NAMES)
    with pytest.raises(BadInput, match="LinearProbe is fitted to stored features"):
        Beside("KgCoOp", m, task())


def test_what_cannot_be_held_is_refused():
    with pytest.raises(BadInput, match="ZeroShot has nothing to train"):
        trainer("ZeroShot", "KgCoOp")
    with pytest.raises(BadInput, match="has no '{}' for the class name"):
        trainer(regulariser={"PromptSRC": {"templates": ["a photo"]}})
    t = task()
    t.template = None
    with pytest.raises(BadInput, match="of task 'colours' has no '{}'"):
        trainer(regulariser="KgCoOp", t=t)
    with pytest.raises(BadInput, match="ProGrad turns gradients"):
        trainer(regulariser="ProGrad", opt="lbfgs", bs=12)


# ---- in cells, tables and windows --------------------------------------------------------------------------------


def test_a_sweep_and_its_tables(tmp_path, own):
    t = task(4)
    cells = grid(
        ["CoOp", "IVLP"], "colours", 2, [1, 2], epochs=2, bs=2, regulariser=["none", "KgCoOp", "Tether(weight=0.1)"]
    )
    assert len(cells) == 12 and sum("regulariser" in c["train"] for c in cells) == 8
    s = Sweep(cells, tmp_path, tasks=[t], clip=small("vit")).run(bar=False)
    assert s.counts == dict(done=12)
    assert len(s.find()) == 12 and Sweep(cells, tmp_path, tasks=[t], clip=small("vit")).counts == dict(done=12)
    rows = as_rows(s.runs)
    assert {r["method"] for r in rows} == {
        a + b for a in ("CoOp", "IVLP") for b in ("", " + KgCoOp", " + Tether(weight=0.1)")
    }
    assert as_rows(rows) == rows and {r["method"] for r in as_rows(Runs(tmp_path).frame)} == {r["method"] for r in rows}
    plain = tabulate(s.runs, value="base")
    assert "CoOp + KgCoOp" in str(plain) and "Not alike" not in str(plain)
    two = tabulate(s.runs, rows="regulariser", cols="coupling", value="base")
    assert [l[0] for l in two.lines] == ["none", "KgCoOp", "Tether(weight=0.1)"] and len(two.head) == 3
    assert paired(s.runs, "IVLP + KgCoOp", "IVLP", "base").parts[0].n == 2
    assert "IVLP + KgCoOp" in Runs(tmp_path)._repr_html_()
    card = next(r for r in s.runs if r.cell["method"] == "IVLP" and r.cell["train"]).card
    assert card["recipe"]["regulariser"] == "KgCoOp"


def test_a_run_is_fetched_under_any_spelling(tmp_path):
    t, clip = task(4), small("vit")
    one = run(cell("CoOp", t, 2, epochs=1, bs=2, regulariser="KgCoOp(weight=4)"), clip, t, tmp_path)
    two = run(cell("CoOp", t, 2, epochs=1, bs=2, regulariser={"KgCoOp": {"weight": 4.0}}), clip, t, tmp_path)
    assert one.status == "done" and one.folder == two.folder and len(Runs(tmp_path)) == 1
    assert one.row["recipe"]["regulariser"] == "KgCoOp(weight=4.0)"


def test_at_the_terminal(tmp_path):
    from typer.testing import CliRunner

    from mudpt.cli import app

    at = lambda line: CliRunner().invoke(app, line)
    common = f"--shots 1 --epochs 1 --out {tmp_path}"
    r = at(
        [
            "sweep",
            *f"--methods CoOp --tasks emoji/vehicles --seeds 1 {common}/runs --json --regulariser".split(),
            "none,KgCoOp(weight=4),ProGrad + KgCoOp",
        ]
    )
    assert r.exit_code == 0, r.output
    assert [c["train"].get("regulariser") for c in json.loads(r.stdout)] == [
        None,
        "KgCoOp(weight=4.0)",
        "KgCoOp + ProGrad",
    ]
    r = at(f"train CoOp --task emoji/vehicles {common}/p.safetensors --runs {tmp_path}/t --regulariser KgCoOp".split())
    assert r.exit_code == 0, r.output
    assert Runs(tmp_path / "t")[0].cell["train"] == dict(regulariser="KgCoOp")
    r = at(f"train CoOp --task emoji/vehicles {common}/p.safetensors --runs {tmp_path}/t --regulariser KgCop".split())
    assert r.exit_code == 2 and "did you mean 'KgCoOp'" in r.output


def test_the_widget_offers_them(own):
    from mudpt.choices import Choices

    c = Choices(small("vit"), [task(4)], shots=2, half="all", method="CoOp", epochs=1)
    f = next(f for f in c.fields if f.name == "regulariser")
    assert f.options == ("none", *regularisers) and "Tether" in f.options
    assert c.enter("regulariser", "KgCoOp") and c.build()[0].o["regulariser"] == "KgCoOp"
    assert c.snapshot().regulariser == "KgCoOp"
    assert c.enter("regulariser", "none") and c.build()[0].beside is None
    c.regulariser = "ProGrad+KgCoOp"
    assert next(f for f in c.fields if f.name == "regulariser").options[-1] == "KgCoOp + ProGrad"
    with pytest.raises(MudptError, match="did you mean"):
        c.regulariser = "KgCop"
