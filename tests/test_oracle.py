"""The authors' own numbers, through the walk that training uses; `python tests/oracle.py DIR` runs more cases"""

from pathlib import Path

import oracle
import pytest

CASES = sorted((Path(__file__).parent / "oracle_cases").rglob("*.npz"))


@pytest.mark.parametrize("path", CASES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_case(path):
    case = oracle.run_case(path)
    assert not case.wrong, str(case)


def test_a_wrong_number_is_noticed(monkeypatch):
    "The comparison can fail: one block more or less in the image tower's prompts, and the case does not pass"
    make = oracle.make

    def shifted(meta, clip, z):
        m = make(meta, clip, z)
        m.after_ln = not m.after_ln
        return m

    monkeypatch.setattr(oracle, "make", shifted)
    assert oracle.run_case(next(p for p in CASES if p.parent.name == "maple")).wrong


def test_summary_line(tmp_path, capsys):
    case = next(p for p in CASES if p.parent.name == "vpt_deep")
    (tmp_path / "vpt_deep").mkdir()
    for suffix in ".npz", ".json":
        (tmp_path / "vpt_deep" / f"a{suffix}").write_bytes(case.with_suffix(suffix).read_bytes())
    assert oracle.main(tmp_path) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("oracle: 1 cases, 0 failed, max |dlogits| ")
