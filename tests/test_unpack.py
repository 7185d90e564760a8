"""Archives that are what they should be, and archives that are not."""

import bz2
import gzip
import io
import lzma
import os
import random
import stat
import struct
import tarfile
import warnings
import zipfile
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mudpt.unpack as mu
from mudpt.core import BadFile, BadInput
from mudpt.entries import parts_of
from mudpt.fetch import done, mark, staged
from mudpt.unpack import unpack

REG, SYM, LNK, DIR = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE
FILES = {"set/cats/1.jpg": b"miaow" * 999, "set/cats/2.jpg": b"", "set/dogs/ü 1.jpg": os.urandom(70_000), "set/notes.txt": b"n"}


def tar(path, members, mode="w", **kw):
    "Members are (name, type, link target or bytes)"
    with tarfile.open(path, mode, **kw) as t:
        for name, type, what in members:
            m = tarfile.TarInfo(name)
            m.type, m.mode = type, 0o7777
            if isinstance(what, bytes):
                m.size = len(what)
            elif what:
                m.linkname = what
            t.addfile(m, io.BytesIO(what) if isinstance(what, bytes) else None)
    return path


def zipped(path, files, how=zipfile.ZIP_DEFLATED, mode=0o100644, system=3):
    with zipfile.ZipFile(path, "w", how) as z, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of two files with a name
        for name, data in files:
            i = zipfile.ZipInfo(name)
            i.filename, i.external_attr, i.create_system, i.compress_type = name, mode << 16, system, how
            z.writestr(i, data)
    return path


def made(kind, path, files=FILES):
    if kind == "zip":
        return zipped(path, files.items())
    return tar(path, [(k, REG, v) for k, v in files.items()], "w" + kind.removeprefix("tar"))


def content(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(path, tmp_path, said, error=BadFile, **kw):
    "The archive is refused with a sentence, and nothing of it is anywhere"
    before = {p: p.is_file() and p.read_bytes() for p in tmp_path.rglob("*")}
    with pytest.raises(error, match=said) as e:
        unpack(path, tmp_path / "out", **kw)
    assert {p: p.is_file() and p.read_bytes() for p in tmp_path.rglob("*")} == before
    assert str(path) in str(e.value) or error is BadInput
    return str(e.value)


KINDS = ["zip", "tar", "tar:gz", "tar:bz2", "tar:xz"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_goes_in_comes_out(kind, tmp_path):
    out = unpack(made(kind, tmp_path / "archive"), tmp_path / "new" / "out")
    assert content(out) == FILES and [p.name for p in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("kind", KINDS)
def test_part_of_it(kind, tmp_path):
    path = made(kind, tmp_path / "archive")
    assert set(content(unpack(path, tmp_path / "a", strip=1))) == {k[4:] for k in FILES}
    assert set(content(unpack(path, tmp_path / "b", strip=2))) == {"1.jpg", "2.jpg", "ü 1.jpg"}
    assert set(content(unpack(path, tmp_path / "c", only="*cats*"))) == {"set/cats/1.jpg", "set/cats/2.jpg"}
    assert set(content(unpack(path, tmp_path / "d", strip=1, only=["notes.txt", "dogs/*"]))) == {"notes.txt", "dogs/ü 1.jpg"}
    assert set(content(unpack(path, tmp_path / "e", only=lambda n: n.endswith("2.jpg")))) == {"set/cats/2.jpg"}
    refused(path, tmp_path, "4 entries and no file that is wanted", only="*.png")
    refused(path, tmp_path, "no file that is wanted after strip=7", strip=7)


def test_files_are_ordinary(tmp_path):
    out = unpack(tar(tmp_path / "a.tar", [("x", REG, b"#!/bin/sh"), ("d", DIR, None), ("d/y", REG, b"")]), tmp_path / "out")
    umask = os.umask(0)
    os.umask(umask)
    for p in out.rglob("*"):
        assert p.is_dir() or stat.S_IMODE(p.stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE(out.stat().st_mode) == 0o777 & ~umask


def test_progress_ends_at_the_end(tmp_path):
    path, seen = made("tar:gz", tmp_path / "a.tgz"), []
    unpack(path, tmp_path / "out", tell=lambda n, total: seen.append((n, total)))
    size = path.stat().st_size
    assert seen[-1] == (size, size) and seen == sorted(seen) and all(n < size for n, _ in seen[:-1])


# Names

OUT = ["/etc/x", "../x", "a/../../x", "a/..", "..", "C:/x", "c:x", "\\x", "..\\x", "a\\..\\..\\x", "\\\\host\\x", "a\nb", "./../x", "//x"]


@pytest.mark.parametrize("name", OUT)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_that_lead_out(kind, name, tmp_path):
    files = {"ok.jpg": b"", name: b"x"}
    said = refused(made(kind, tmp_path / "a", files), tmp_path, "is refused: its ")
    assert name.replace("\n", "") in said.replace("\n", "")
    refused(made(kind, tmp_path / "a", files), tmp_path, "is refused", only="ok.jpg")


@given(st.lists(st.sampled_from(["..", ".", "", "a", "b", "\\", "/", "C:", "\0", "...", "~"]), max_size=6).map("/".join))
def test_names_that_are_accepted_lead_inward(name):
    try:
        parts = parts_of(name)
    except ValueError:
        return
    assert not {"..", ".", ""} & set(parts) and not any("/" in p or "\\" in p or "\0" in p for p in parts)
    assert os.path.normpath(os.path.join("/root", *parts)).startswith("/root")


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("names, said", [(["A.jpg", "a.jpg"], "upper and lower"), (["a/1", "A/2"], "upper and lower"),
                                         (["ü", "u\u0308"], "upper and lower"), (["a", "a"], "there twice"), (["a", "a/b"], "both a file and a folder"),
                                         (["a/b", "a"], "both a file and a folder"), (["a", "./a"], "there twice")])  # fmt: skip
def test_names_that_clash(kind, names, said, tmp_path):
    path = tmp_path / "a"
    made_ = [(n, REG, n.encode()) for n in names]
    tar(path, made_) if kind == "tar" else zipped(path, [(n, b) for n, _, b in made_])
    assert names[1] in refused(path, tmp_path, said)


def test_a_folder_may_come_twice(tmp_path):
    path = tar(tmp_path / "a.tar", [("./", DIR, None), ("d/", DIR, None), ("d", DIR, None), ("./d/x", REG, b"x")])
    assert content(unpack(path, tmp_path / "out")) == {"d/x": b"x"}


def test_two_files_that_become_one(tmp_path):
    refused(made("zip", tmp_path / "a.zip", {"a/1": b"1", "b/1": b"2"}), tmp_path, "'b/1' .* there twice", strip=1)
    refused(made("zip", tmp_path / "a.zip", {"a/x": b"1", "b/X": b"2"}), tmp_path, "'b/X' .* upper and lower", strip=1)
    refused(made("zip", tmp_path / "a.zip", {"a/1": b"1", "b/1/2": b"2"}), tmp_path, "'1' is both", strip=1)
    assert content(unpack(made("zip", tmp_path / "b.zip", {"a/1": b"1", "A/2": b"2"}), tmp_path / "ok", strip=1)) == {"1": b"1", "2": b"2"}


# Links and worse


@pytest.mark.parametrize("members", [
    [("x", SYM, "/etc/passwd")], [("x", SYM, "../../etc")], [("d/x", SYM, "../../x")], [("x", SYM, "..")], [("x", SYM, "C:\\x")], [("x", SYM, "..\\y")],
    [("x", LNK, "/etc/passwd")], [("x", LNK, "../y")], [("d/x", LNK, "d/../../y")],
], ids=str)  # fmt: skip
def test_links_that_lead_out(members, tmp_path):
    refused(tar(tmp_path / "a.tar", [("ok", REG, b"ok"), *members]), tmp_path, "outside|absolute|has '..'")


def test_a_file_behind_a_link(tmp_path):
    refused(tar(tmp_path / "a.tar", [("d", SYM, "."), ("d/x", REG, b"x")]), tmp_path, "'d' is both a file and a folder")
    refused(tar(tmp_path / "a.tar", [("d", REG, b""), ("x", REG, b""), ("d", SYM, "x")]), tmp_path, "'d' .* there twice")


@pytest.mark.parametrize("type", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE], ids=str)
def test_devices(type, tmp_path):
    refused(tar(tmp_path / "a.tar", [("ok", REG, b"ok"), ("null", type, None)]), tmp_path, "'null' .* it is a device")


def test_links_inside_become_copies(tmp_path):
    path = tar(tmp_path / "a.tar", [("s/b", SYM, "../r/a"), ("r/a", REG, b"a"), ("r/c", LNK, "r/a"), ("s/d", SYM, "b"), ("e", SYM, "r/./c"),
                                    ("s/gone", SYM, "nothing"), ("s/dir", SYM, "../r"), ("me", SYM, "me")])  # fmt: skip
    with pytest.warns(UserWarning, match="3 links .* lead to a folder or to nothing .*'s/gone'"):
        out = unpack(path, tmp_path / "out")
    assert content(out) == {k: b"a" for k in ("s/b", "r/a", "r/c", "s/d", "e")}
    assert not any(p.is_symlink() or p.is_file() and p.stat().st_nlink > 1 for p in out.rglob("*"))
    assert content(unpack(path, tmp_path / "s", strip=1, only=["a", "b"])) == {"a": b"a", "b": b"a"}


def test_links_of_zips(tmp_path):
    def link(to, mode=0o120777):
        path = zipped(tmp_path / "a.zip", [("x", to)], mode=mode)
        with zipfile.ZipFile(path, "a") as z:
            z.writestr("y", b"y")
        return path

    assert content(unpack(link(b"y"), tmp_path / "in")) == {"x": b"y", "y": b"y"}
    refused(link(b"/etc/passwd"), tmp_path, "'x' .* outside")
    refused(link(b"y" * 5000), tmp_path, "'x' .* device")
    refused(link(b"", 0o020666), tmp_path, "'x' .* device")


# Too much


@pytest.mark.parametrize("kind", KINDS)
def test_bombs(kind, tmp_path):
    path = made(kind, tmp_path / "bomb", {"zeros": bytes(5_000_000)})
    refused(path, tmp_path, "unfolds into more than 4,999,999 bytes", limit=4_999_999)
    assert len(content(unpack(path, tmp_path / "big", limit=5_000_000))) == 1
    many = made(kind, tmp_path / "many", {f"{i}.txt": b"" for i in range(50)})
    refused(many, tmp_path, "more than 49 entries", files=49)
    assert len(content(unpack(many, tmp_path / "fifty", files=50))) == 50


def test_bombs_by_default(tmp_path, monkeypatch):
    "Two hundred times the archive, but a gibibyte at least: here with a small gibibyte"
    path = made("tar:xz", tmp_path / "a", {"zeros": bytes(3_000_000)})
    monkeypatch.setattr(mu, "max", lambda a, b: b, raising=False)
    refused(path, tmp_path, "unfolds into more than")


def test_bombs_by_links(tmp_path):
    path = tar(tmp_path / "a.tar", [("a", REG, bytes(10_000)), *((f"l{i}", LNK, "a") for i in range(20))])
    refused(path, tmp_path, "unfolds into more than", limit=100_000)


def test_a_zip_that_lies_about_its_size(tmp_path):
    path = made("zip", tmp_path / "a.zip", {"x": bytes(100_000)})
    raw = path.read_bytes().replace(struct.pack("<I", 100_000), struct.pack("<I", 100))
    path.write_bytes(raw)
    refused(path, tmp_path, "damaged|cut short", limit=1000)


def test_names_of_gigabytes(tmp_path):
    path = tar(tmp_path / "a.tar.gz", [("n" * 2_000_000, REG, b"x")], "w:gz", format=tarfile.PAX_FORMAT)
    refused(path, tmp_path, "damaged or cut short .a name of 2,000,")


def test_a_sparse_file_counts_in_full(tmp_path):
    "A header of 512 bytes that promises a gigabyte of holes"
    m = tarfile.TarInfo("holes")
    m.type, m.size = tarfile.GNUTYPE_SPARSE, 512
    buf = bytearray(m.tobuf(tarfile.GNU_FORMAT))
    buf[386:398], buf[398:410] = b"%011o\0" % (10**9 - 512), b"%011o\0" % 512
    buf[483:495] = b"%011o\0" % 10**9
    buf[148:156] = b" " * 8
    buf[148:156] = b"%06o\0 " % sum(buf)
    (tmp_path / "a.tar").write_bytes(bytes(buf) + b"x" * 512 + bytes(1024))
    with tarfile.open(tmp_path / "a.tar") as t:
        assert t.getmembers()[0].size == 10**9
    refused(tmp_path / "a.tar", tmp_path, "unfolds into more than", limit=10**6)


# Damage


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(KINDS), share=st.floats(0.01, 0.999))
def test_whatever_was_cut_short_is_refused(kind, share, tmp_path):
    path = made(kind, tmp_path / "a")
    if kind == "tar":  # without the padding at the end, which nobody would miss
        path.write_bytes(path.read_bytes().rstrip(b"\0"))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    refused(path, tmp_path, "damaged or cut short")


def test_a_tar_cut_between_two_files(tmp_path):
    path = tar(tmp_path / "a.tar", [(f"{i}", REG, bytes(512)) for i in range(4)])
    assert path.stat().st_size > 4096
    path.write_bytes(path.read_bytes()[:2048])
    refused(path, tmp_path, "damaged or cut short")


@pytest.mark.parametrize("kind", KINDS[2:] + ["zip"])
@pytest.mark.parametrize("seed", range(5))
def test_bits_that_fell_over(kind, seed, tmp_path):
    path, rng = made(kind, tmp_path / "a"), random.Random(seed)
    raw = bytearray(path.read_bytes())
    for _ in range(3):
        raw[rng.randrange(100, len(raw) - 400)] ^= 1 << rng.randrange(8)
    path.write_bytes(raw)
    refused(path, tmp_path, "damaged|is refused")


def test_a_header_that_fell_over(tmp_path):
    path = tar(tmp_path / "a.tar", [(f"{i}.txt", REG, b"") for i in range(5)])
    raw = bytearray(path.read_bytes())
    raw[1024 + 3] ^= 64
    path.write_bytes(raw)
    assert len(tarfile.open(path).getnames()) == 2, "Python's own reader says nothing"
    refused(path, tmp_path, "damaged or cut short .bad checksum")


def locked(path):
    "A zip whose entry says that it is encrypted"
    raw = bytearray(made("zip", path, {"secret.txt": b"x"}).read_bytes())
    raw[6] |= 1
    raw[raw.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(raw)
    return path


def test_what_is_no_archive(tmp_path):
    a = tmp_path / "a"
    for data, said in [(b"", "damaged"), (b"hello" * 999, "damaged"), (b"<!DOCTYPE html><p>Sign in", "web page"), (b"PK\3\4", "damaged"),
                       (gzip.compress(b"one file" * 99), "damaged"), (bz2.compress(b"x"), "damaged"), (lzma.compress(b"x"), "damaged"),
                       (bytes(10240), "no file that is wanted"), (zlib.compress(b"x" * 999), "damaged")]:  # fmt: skip
        a.write_bytes(data)
        refused(a, tmp_path, said)
    refused(locked(tmp_path / "b"), tmp_path, "'secret.txt' .* is encrypted")
    refused(tmp_path / "nothing", tmp_path, "no archive at", BadInput)
    refused(tmp_path, tmp_path, "no archive at", BadInput)


# Folders


def test_a_folder_that_holds_something_is_not_touched(tmp_path):
    path = made("zip", tmp_path / "a.zip")
    (tmp_path / "out").mkdir()
    unpack(path, tmp_path / "out")
    refused(path, tmp_path, "nothing says that it is complete", BadInput)
    mark(tmp_path / "out")
    assert unpack(path, tmp_path / "out") == tmp_path / "out" and done(tmp_path / "out")["files"] == 4
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot write"):
        unpack(path, tmp_path / "file" / "out")


def test_a_set_of_several_archives(tmp_path):
    one, two = made("zip", tmp_path / "a.zip"), made("tar:gz", tmp_path / "b.tgz")
    with staged(tmp_path / "pets") as new:
        unpack(one, new / "images", strip=1)
        unpack(two, new / "annotations", strip=1, only="*.txt")
        mark(new)
    assert done(tmp_path / "pets")["files"] == 5 and sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "b.tgz", "pets"]
    with staged(tmp_path / "cats") as new:
        unpack(one, new, strip=2, only="*.jpg")
        mark(new)
    assert done(tmp_path / "cats")["files"] == 3
    with pytest.raises(BadFile), staged(tmp_path / "dogs") as new:
        unpack(one, new / "images")
        unpack(made("zip", tmp_path / "evil.zip", {"../x": b""}), new / "more")
    assert not (tmp_path / "dogs").exists() and not list(tmp_path.glob(".*"))


def test_a_full_disk(tmp_path, monkeypatch):
    path = made("tar:gz", tmp_path / "a.tgz")
    monkeypatch.setattr(mu.shutil, "disk_usage", lambda p: mu.shutil._ntuple_diskusage(10**6, 10**6, 1000))
    refused(path, tmp_path, "is full", BadInput)
