"""The bench: what it says is what was computed; no test here looks at the clock"""

import json

import pytest
import torch
from small import CONFIGS, images, small
from typer.testing import CliRunner

from mudpt import bench as b
from mudpt.core import BadInput, Unknown
from mudpt.naive import in_pieces, naive
from mudpt.prompts import methods

KEYS = """method model classes batch device threads dtype step_ratio eval_ratio medians peak_gb naive_peak_gb
          max_dlogits""".split()
TRAINED = "CoOp", "CoCoOp", "VPT", "IVLP", "MaPLe", "MuDPT", "DCP", "DPT"


@pytest.mark.parametrize("name", TRAINED)
def test_both_ways_compute_the_same_logits_and_the_same_gradients(name):
    case = b.Case(name, small(), 12, 3)
    ours, _ = case.step(case.m)
    g = {k: p.grad.clone() for k, p in case.m.named_parameters() if p.grad is not None}
    theirs, _ = case.step(case.n)
    assert (ours - theirs).abs().max() < 1e-4
    assert g, "something is trained"
    for k, p in case.n.named_parameters():
        if k in g:
            assert torch.allclose(g[k], p.grad, atol=1e-5, rtol=1e-3), k


def test_a_record_holds_what_its_readers_need():
    one = b.bench(("MaPLe",), (5,), (CONFIGS["vit"],), device="cpu", batch=2, rounds=2, memory=False, quickgelu=False)
    (r,) = one.records
    assert set(KEYS) <= set(r)
    assert r["classes"] == 5 and r["batch"] == 2 and r["device"] == "cpu" and r["dtype"] == "fp32"
    assert r["max_dlogits"] < 1e-4
    m = r["medians"]
    assert r["step_ratio"] == pytest.approx(m["naive_step"] / m["step"])
    assert r["eval_ratio"] == pytest.approx(m["naive_batch"] / (m["text"] * 2 / r["n_test"] + m["batch"]))
    cpu = r["processor"]
    assert cpu["step_ratio"] == pytest.approx(cpu["medians"]["naive_step"] / cpu["medians"]["step"])
    assert "MaPLe" in str(one) and one.markdown().count("\n") == 2


def test_memory_is_measured_in_a_process_of_its_own():
    job = dict(model=CONFIGS["vit"], method="MaPLe", classes=10, batch=2, device="cpu", dtype="fp32", quickgelu=False)
    job |= dict(args={}, naive=False)
    ours, theirs = b.peak_gb(job), b.peak_gb(dict(job, classes=1000, naive=True))
    assert 0.1 < ours < theirs, "a thousand rows of 77 positions take more than ten names"
    assert b.peak_gb(dict(job, method="no such method")) is None


def test_what_does_not_fit_is_extrapolated_and_says_so(monkeypatch):
    monkeypatch.setattr(b, "peak_gb", lambda job: 1 + 0.01 * job["classes"])
    assert b.naive_peak_gb(dict(classes=50), 100) == (1.5, "measured")
    gb, how = b.naive_peak_gb(dict(classes=1000), 100)
    assert gb == pytest.approx(11) and how == "extrapolated from 25 and 50 classes"
    monkeypatch.setattr(b, "peak_gb", lambda job: None)
    assert b.naive_peak_gb(dict(classes=1000), 100) == (None, "not had")


def test_the_naive_step_in_pieces_has_the_logits_of_the_whole():
    case = b.Case("MaPLe", small(), 11, 2)
    whole, _ = case.step(case.n)
    pieces, t = in_pieces(case.n, case.x, case.y, case.names, 4, case.clock)
    assert torch.allclose(whole, pieces, atol=1e-5) and (t > 0).all(), "by the clock and by the processor"


def test_beyond_a_thousand_classes_ours_goes_alone():
    one = b.bench(
        ("MaPLe",),
        (12,),
        (CONFIGS["vit"],),
        device="cpu",
        batch=1,
        rounds=1,
        memory=False,
        quickgelu=False,
        naive_up_to=10,
    )
    (r,) = one.records
    assert r["step_ratio"] is None and r["eval_ratio"] is None and r["max_dlogits"] is None
    assert r["medians"]["step"] > 0 and "naive_step" not in r["medians"]
    assert str(one)


def test_bad_input_is_a_sentence():
    with pytest.raises(Unknown, match="method"):
        b.Case("MaPLee", small(), 5, 2)
    with pytest.raises(BadInput, match="trains nothing"):
        b.Case("ZeroShot", small(), 5, 2)
    with pytest.raises(BadInput, match="towers of its own"):
        b.Case("LoRA", small(), 5, 2)
    with pytest.raises(BadInput, match="2 to 10,000"):
        b.names_for(10_001)
    assert len(set(b.names_for(10_000))) >= 9_900, "names are names, not copies"


def test_naive_leaves_the_method_as_it_was():
    m = methods["MaPLe"](small())
    m.bind(["dog", "cat"])
    x, before = images(small(), 2), m.clip.text
    n = naive(m)
    assert m.clip.text is before and n.clip.text is not before
    assert (m(x, ["dog", "cat"]).logits - n(x, ["dog", "cat"]).logits).abs().max() < 1e-4
    assert all(p is q for p, q in zip(m.parameters(), n.parameters())), "one set of prompts"


def test_the_command_writes_records_as_they_come(tmp_path, monkeypatch):
    from mudpt.cli import app

    monkeypatch.setattr("mudpt.bench.load_clip", lambda *a, **k: small())
    out = tmp_path / "bench.json"
    args = ["bench", "--methods", "MaPLe,CoOp", "--classes", "3,6", "--rounds", "1", "--no-memory", "--json", str(out)]
    r = CliRunner().invoke(app, args)
    assert r.exit_code == 0, r.output
    records = json.loads(out.read_text())
    assert [(x["method"], x["classes"]) for x in records] == [("MaPLe", 3), ("CoOp", 3), ("MaPLe", 6), ("CoOp", 6)]
    assert all(set(KEYS) <= set(x) for x in records)
    assert "MaPLe" in r.output and "processor" in r.output
    bad = CliRunner().invoke(app, ["bench", "--methods", "Nobody", "--classes", "3"])
    assert bad.exit_code and "Nobody" in bad.output
