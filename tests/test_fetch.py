"""Downloads over a real socket, from a server that behaves as servers do."""

import errno
import hashlib
import multiprocessing
import os
import random
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serve import serving

import mudpt.fetch as mf
import mudpt.stream as ms
from mudpt.core import BadInput
from mudpt.fetch import Archive, Meter, NotHere, data_dir, done, fetch, mark, mirrored, offline, staged
from mudpt.hub import hub
from mudpt.stream import Failed, pull

BODY = b"PK\3\4" + random.Random(0).randbytes(299_996)
SHA, MD5 = hashlib.sha256(BODY).hexdigest(), hashlib.md5(BODY).hexdigest()
HTML = b"<!DOCTYPE html><html><title>Google Drive - Virus scan warning</title></html>"


@pytest.fixture(scope="module")
def site():
    with serving() as site:
        yield site


@pytest.fixture(autouse=True)
def clean(site):
    site.things.clear(), site.log.clear(), site.repos.clear()
    for k in "MUDPT_MIRROR", "MUDPT_OFFLINE", "HF_HUB_OFFLINE", "MUDPT_DATA":
        os.environ.pop(k, None)
    yield
    for k in "MUDPT_MIRROR", "MUDPT_OFFLINE", "HF_HUB_OFFLINE", "MUDPT_DATA":
        os.environ.pop(k, None)


def get(urls, folder, file="a.zip", retries=5, **kw):
    known = {k: kw.pop(k) for k in ("sha256", "md5", "size", "page") if k in kw}
    return fetch(Archive(urls, file, **known), folder, pause=0.001, retries=retries, **kw)


def names(folder):
    return sorted(p.name for p in Path(folder).iterdir())


# What goes well


def test_a_file_arrives_whole_and_alone(site, tmp_path):
    seen = []
    path = get(site.put("/a.zip", BODY), tmp_path / "new" / "folder", sha256=SHA, md5=MD5, size=len(BODY),
               tell=lambda n, total: seen.append((n, total)))  # fmt: skip
    assert path.read_bytes() == BODY and names(path.parent) == ["a.zip"]
    assert seen[-1] == (len(BODY), len(BODY)) and seen == sorted(seen)
    assert get(site.url + "/a.zip", path.parent, sha256=SHA) == path and len(site.log) == 1


@pytest.mark.parametrize("known", [dict(sha256=SHA.upper()), dict(md5=MD5), dict(size=len(BODY)), {}], ids=str)
def test_whatever_is_known_is_enough(site, known, tmp_path):
    assert get(site.put("/a.zip", BODY), tmp_path, **known).read_bytes() == BODY


def test_a_file_in_a_folder_of_its_own(site, tmp_path):
    assert get(site.put("/a.zip", BODY), tmp_path, file="raw/a.zip") == tmp_path / "raw" / "a.zip"


def test_an_address_on_a_disk(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "with space.zip").write_bytes(BODY)
    url = (tmp_path / "disk" / "with space.zip").as_uri()
    os.environ["MUDPT_OFFLINE"] = "1"
    assert get(url, tmp_path / "x", sha256=SHA).read_bytes() == BODY
    with pytest.raises(NotHere, match="no such file"):
        get(url.replace("space", "spice"), tmp_path / "y")


def test_redirects_are_followed_and_the_token_stays_at_home(site, tmp_path):
    with serving() as other:
        there = other.put("/store", BODY)
        url = site.put("/a.zip", location=there, token="secret")
        assert get(url, tmp_path, sha256=SHA, token="secret").read_bytes() == BODY
        assert [a.auth for a in site.log] == ["Bearer secret"] and [a.auth for a in other.log] == [None]
    with pytest.raises(NotHere, match="401"):
        get(url, tmp_path / "x")


def test_a_proxy_of_the_environment_is_used(site, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", site.url)
    site.things["http://example.invalid/a.zip"] = site.things[site.put("/a.zip", BODY) and "/a.zip"]
    assert get("http://example.invalid/a.zip", tmp_path, sha256=SHA).read_bytes() == BODY


def test_a_mirror_stands_for_all_hosts(site, tmp_path):
    os.environ["MUDPT_MIRROR"] = site.url + "/sets/"
    site.put("/sets/example.org/x/a.zip", BODY)
    assert get("https://example.org/x/a.zip?download=1", tmp_path, sha256=SHA).read_bytes() == BODY
    with pytest.raises(NotHere, match="/sets/example.org/y.zip: 404.*\n.*from https://example.org/y.zip"):
        get("https://example.org/y.zip", tmp_path, "y.zip")
    assert mirrored(site.url + "/sets/example.org/x") == site.url + "/sets/example.org/x"
    os.environ["MUDPT_MIRROR"] = tmp_path.as_uri()
    (tmp_path / "example.org").mkdir()
    (tmp_path / "example.org" / "b.zip").write_bytes(BODY)
    os.environ["MUDPT_OFFLINE"] = "1"
    assert get("https://example.org/b.zip", tmp_path / "new", "b.zip", sha256=SHA).read_bytes() == BODY


def test_a_mirror_that_is_no_address(tmp_path):
    os.environ["MUDPT_MIRROR"] = "nas.lab/sets"
    with pytest.raises(BadInput, match="MUDPT_MIRROR is 'nas.lab/sets'"):
        get("https://example.org/a.zip", tmp_path)


def test_addresses_with_odd_letters(site, tmp_path):
    site.put("/ü b/50%/a.zip", BODY)
    assert get(site.url + "/ü b/50%25/a.zip?x=[1]&y='2'", tmp_path, sha256=SHA).read_bytes() == BODY


# Lines that break


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 150_000), max_size=4), version=st.sampled_from(["etag", "date", "sha only"]), length=st.booleans())
def test_no_byte_is_asked_for_twice(site, cuts, version, length, tmp_path):
    shutil.rmtree(tmp_path), site.log.clear()
    how = dict(etag={}, date=dict(etag=None, modified="Sun, 01 Jan 2023 00:00:00 GMT")).get(version, dict(etag=None))
    known = dict(sha256=SHA) if version == "sha only" else dict(size=len(BODY))
    url = site.put("/a.zip", BODY, cuts=list(cuts), length=length, **how)
    assert get(url, tmp_path, **known).read_bytes() == BODY
    unsure = version == "sha only" and not length  # an end that comes too early cannot be told from the end
    assert (site.given() == len(BODY) or unsure) and names(tmp_path) == ["a.zip"]


def test_a_line_that_always_breaks_but_moves_is_not_given_up(site, tmp_path):
    body = b"PK\3\4" + bytes(5 << 20)
    url = site.put("/a.zip", body, cuts=[1 << 20] * 5)
    assert get(url, tmp_path, size=len(body), retries=1).read_bytes() == body and site.given() == len(body)


def test_a_part_of_an_earlier_process_is_continued(site, tmp_path):
    url = site.put("/a.zip", BODY, cuts=[100_000])
    with pytest.raises(NotHere, match="broke after 100,000 of 300,000 bytes(.|\n)*0.1 MB that arrived are kept"):
        get(url, tmp_path, sha256=SHA, retries=0)
    assert names(tmp_path) == ["a.zip.part", "a.zip.part.json"]
    assert get(url, tmp_path, sha256=SHA).read_bytes() == BODY
    assert [a.range for a in site.log] == [None, "bytes=100000-"] and site.log[1].if_range


def test_a_part_that_is_already_the_whole(site, tmp_path):
    url = site.put("/a.zip", BODY, cuts=[100_000])
    with pytest.raises(Failed):
        pull(url, tmp_path / "a.zip.part")
    (tmp_path / "a.zip.part").write_bytes(BODY)
    assert get(url, tmp_path, sha256=SHA).read_bytes() == BODY and site.log[-1].given == 0


def test_a_server_that_cannot_begin_in_the_middle(site, tmp_path):
    url = site.put("/a.zip", BODY, cuts=[100_000, 200_000], ranges=False)
    assert get(url, tmp_path, sha256=SHA).read_bytes() == BODY
    assert site.given() == 600_000


@pytest.mark.parametrize("heed", [True, False])
@pytest.mark.parametrize("known", [{}, dict(sha256=hashlib.sha256(BODY[::-1]).hexdigest())], ids=["", "sha"])
def test_a_file_that_changes_is_begun_anew(site, heed, known, tmp_path):
    new = BODY[::-1]
    url = site.put("/a.bin", BODY, cuts=[100_000])
    with pytest.raises(NotHere, match="broke"):
        get(url, tmp_path, "a.bin", retries=0)
    site.put("/a.bin", new, heed=heed)
    assert get(url, tmp_path, "a.bin", **known).read_bytes() == new


def test_a_file_that_became_shorter_is_begun_anew(site, tmp_path):
    url = site.put("/a.zip", BODY, cuts=[200_000])
    with pytest.raises(NotHere, match="broke"):
        get(url, tmp_path, retries=0)
    site.put("/a.zip", BODY[:1000], heed=False)
    assert get(url, tmp_path).read_bytes() == BODY[:1000]


def test_without_a_version_or_a_checksum_nothing_is_glued(site, tmp_path):
    url = site.put("/a.zip", BODY, etag=None, cuts=[100_000])
    assert get(url, tmp_path).read_bytes() == BODY
    assert [a.range for a in site.log] == [None, None]


def test_with_a_checksum_the_next_address_continues(site, tmp_path):
    urls = site.put("/a.zip", BODY, cuts=[100_000], codes=[]), site.put("/b/a.zip", BODY)
    with pytest.raises(NotHere):
        get(urls[0], tmp_path, sha256=SHA, retries=0)
    site.put("/a.zip", codes=[404] * 9)
    assert get(urls, tmp_path, sha256=SHA).read_bytes() == BODY
    assert site.log[-1].range == "bytes=100000-" and site.given() == len(BODY)


def test_a_wrong_seam_is_found_and_mended(site, tmp_path):
    "The part is of something else, which only the checksum can tell"
    url = site.put("/a.zip", BODY, etag=None)
    (tmp_path / "a.zip.part").write_bytes(b"x" * 1000)
    assert get(url, tmp_path, sha256=SHA).read_bytes() == BODY
    assert [a.range for a in site.log] == ["bytes=1000-", None]


@pytest.mark.parametrize("code", [500, 502, 503, 504, 429, 408])
def test_a_busy_server_is_asked_again(site, code, tmp_path):
    url = site.put("/a.zip", BODY, codes=[code, code])
    assert get(url, tmp_path, sha256=SHA).read_bytes() == BODY and len(site.log) == 3


def test_retry_after_is_heeded(site, tmp_path, monkeypatch):
    slept = []
    monkeypatch.setattr(mf.time, "sleep", slept.append)
    fetch(Archive(site.put("/a.zip", BODY, codes=[503], headers={"Retry-After": "7"}), "a.zip"), tmp_path)
    assert slept == [7]


def test_waits_double(site, tmp_path, monkeypatch):
    slept = []
    monkeypatch.setattr(mf.time, "sleep", slept.append)
    with pytest.raises(NotHere, match="503"):
        fetch(Archive(site.put("/a.zip", codes=[503] * 9), "a.zip"), tmp_path, retries=4)
    assert slept == [0.5, 1, 2, 4]


def test_a_silent_server_is_a_failure(site, tmp_path):
    url = site.put("/a.zip", BODY, delay=0.6)
    with pytest.raises(NotHere, match="no answer in time"):
        get(url, tmp_path, timeout=0.1, retries=0)


# Addresses that do not have it


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_the_next_address_is_tried(site, code, tmp_path):
    bad, good = site.put("/bad.zip", codes=[code] * 9), site.put("/a.zip", BODY)
    assert get((bad, good), tmp_path, sha256=SHA).read_bytes() == BODY and len(site.log) == 2


def test_hosts_that_are_not_there(site, tmp_path):
    nobody = "http://127.0.0.1:9/a.zip"
    with pytest.raises(NotHere) as e:
        get(("http://no-such-host.invalid/a.zip", nobody), tmp_path)
    assert "no-such-host.invalid/a.zip: the host is not known" in str(e.value) and "9/a.zip: the connection broke" in str(e.value)
    assert get((nobody, site.put("/a.zip", BODY)), tmp_path, sha256=SHA).read_bytes() == BODY


def test_a_wrong_checksum_then_a_good_mirror(site, tmp_path):
    bad, good = site.put("/bad.zip", BODY[:-1] + b"x"), site.put("/a.zip", BODY)
    assert get((bad, good), tmp_path, sha256=SHA).read_bytes() == BODY
    assert [a.path for a in site.log] == ["/bad.zip", "/a.zip"]


@pytest.mark.parametrize("how", [dict(sha256=SHA), dict(md5=MD5), dict(size=299_999), dict(size=300_001)], ids=str)
def test_a_wrong_file_is_never_used(site, how, tmp_path):
    url = site.put("/a.zip", BODY[:-1] + b"x")
    with pytest.raises(NotHere, match="was expected|were expected"):
        get(url, tmp_path, retries=1, **how)
    assert "a.zip" not in names(tmp_path)


@pytest.mark.parametrize("type", ["text/html; charset=utf-8", "application/octet-stream"])
def test_a_web_page_is_no_archive(site, type, tmp_path):
    url = site.put("/uc?id=1".split("?")[0], HTML, type=type)
    with pytest.raises(NotHere, match="it sends a web page"):
        get(url + "?id=1", tmp_path)
    assert names(tmp_path) == []
    with pytest.raises(NotHere, match="it sends a web page"):
        get(site.put("/b", b"Quota exceeded", type="text/html"), tmp_path)
    assert get(url, tmp_path, "notes.html").read_bytes() == HTML


def test_a_web_page_does_not_cost_the_part(site, tmp_path):
    url = site.put("/a.zip", BODY, cuts=[100_000])
    with pytest.raises(NotHere):
        get(url, tmp_path, retries=0)
    site.put("/a.zip", HTML, type="text/html")
    with pytest.raises(NotHere, match="web page"):
        get(url, tmp_path)
    site.put("/a.zip", BODY)
    get(url, tmp_path)
    assert site.log[-1].range == "bytes=100000-"


def test_a_zip_under_the_name_of_a_tar(site, tmp_path):
    with pytest.raises(NotHere, match="zip, not gzip"):
        get(site.put("/a.tgz", BODY), tmp_path, "a.tgz")


def test_more_than_is_wanted(site, tmp_path):
    with pytest.raises(NotHere, match="sends more than 1,000"):
        get(site.put("/a.zip", BODY, length=False), tmp_path, limit=1000)
    with pytest.raises(NotHere, match="300,000 bytes are more than the limit of 1,000"):
        get(site.put("/a.zip", BODY), tmp_path / "x", limit=1000)
    assert site.given() < 1.2e6


def test_nothing_at_all(site, tmp_path):
    with pytest.raises(NotHere, match="something else, not zip|empty"):
        get(site.put("/a.zip", b""), tmp_path)
    with pytest.raises(NotHere, match="empty"):
        get(site.put("/a.bin", b""), tmp_path, "a.bin")


def test_the_error_says_everything(site, tmp_path):
    bad = site.put("/bad.zip", HTML)
    with pytest.raises(NotHere) as e:
        get((site.url + "/a.zip", bad), tmp_path, sha256=SHA, size=len(BODY), page="https://example.org/terms")
    for said in ("'a.zip' could not be downloaded", f"{site.url}/a.zip: 404", f"{bad}: it has 76 bytes there, 300,000 were expected",
                 "by hand from https://example.org/terms or ", f"put it at '{tmp_path / 'a.zip'}'", "300,000 bytes", SHA):  # fmt: skip
        assert said in str(e.value), (said, str(e.value))


# By hand, and offline


def test_a_file_put_there_by_hand(site, tmp_path):
    (tmp_path / "a.zip").write_bytes(BODY)
    os.environ["MUDPT_OFFLINE"] = "1"
    assert get((), tmp_path, sha256=SHA).read_bytes() == get(site.url + "/nothing", tmp_path, sha256=SHA).read_bytes() == BODY
    assert not site.log


def test_a_wrong_file_put_there_by_hand(site, tmp_path, capsys):
    (tmp_path / "a.zip").write_bytes(BODY[:1000])
    with pytest.raises(NotHere, match="(?s)a.zip': its sha256 is .*by hand"):
        get((), tmp_path, sha256=SHA)
    with pytest.raises(NotHere, match="(?s)a.zip': its sha256 is .*404"):
        get(site.url + "/nothing", tmp_path, sha256=SHA)
    assert (tmp_path / "a.zip").read_bytes() == BODY[:1000], "the user's file is kept until there is a better one"
    assert get(site.put("/a.zip", BODY), tmp_path, sha256=SHA).read_bytes() == BODY
    assert "is not the right file" in capsys.readouterr().err


def test_what_no_program_may_download(tmp_path):
    with pytest.raises(NotHere) as e:
        get((), tmp_path, "val.tar", page="https://image-net.org/download")
    assert "may not be downloaded by a program" in str(e.value) and "from https://image-net.org/download and put it at" in str(e.value)


@pytest.mark.parametrize("name", ["MUDPT_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_is_a_sentence(site, name, tmp_path):
    url = site.put("/a.zip", BODY)
    for off in "", "0", "no":
        os.environ[name] = off
        assert not offline()
    os.environ[name] = "1"
    with pytest.raises(NotHere) as e:
        get(url, tmp_path)
    said = str(e.value)
    assert "\n" not in said and url in said and str(tmp_path / "a.zip") in said and name in said and not site.log
    assert isinstance(e.value, FileNotFoundError)


@pytest.mark.parametrize("wrong", [dict(urls="ftp://x/a"), dict(urls="a.zip"), dict(file="../a.zip"), dict(file="/a.zip"),
                                   dict(file=""), dict(sha256="1" * 63), dict(md5="g" * 32), dict(file="x\\..\\a")], ids=str)  # fmt: skip
def test_descriptions_that_make_no_sense(wrong):
    with pytest.raises(BadInput):
        Archive(**(dict(urls="https://x/a.zip", file="a.zip") | wrong))


def test_where_data_is_kept(monkeypatch, tmp_path):
    monkeypatch.delenv("MUDPT_DATA", raising=False)
    monkeypatch.setenv("MUDPT_CACHE", str(tmp_path))
    assert data_dir() == tmp_path / "data"
    monkeypatch.setenv("MUDPT_DATA", "~/sets")
    assert data_dir() == Path.home() / "sets" and data_dir(tmp_path) == tmp_path


# Disks


def test_a_folder_that_cannot_be(site, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot write in .*MUDPT_DATA"):
        get(site.put("/a.zip", BODY), tmp_path / "file" / "x")
    assert not site.log


def test_a_disk_that_is_too_small_is_seen_before(site, tmp_path, monkeypatch):
    monkeypatch.setattr(ms.shutil, "disk_usage", lambda p: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    with pytest.raises(BadInput, match="is full .*MUDPT_DATA"):
        get((site.put("/a.zip", BODY), site.put("/b.zip", BODY)), tmp_path)
    assert len(site.log) == 1, "another mirror does not make room"


def test_a_disk_that_fills_up_keeps_what_came(site, tmp_path, monkeypatch):
    class Full:
        def __init__(self, path, mode):
            self.f, self.name = real(path, mode), str(path)

        def write(self, b):
            if self.f.tell() + len(b) > 100_000:
                self.f.write(b[: 100_000 - self.f.tell()])
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.f.write(b)

        def __enter__(self):
            return self

        def __exit__(self, *a):
            self.f.close()

        def flush(self):
            self.f.flush()

    real, url = open, site.put("/a.zip", BODY)
    monkeypatch.setattr(ms, "open", Full, raising=False)
    with pytest.raises(BadInput, match="full"):
        get(url, tmp_path)
    monkeypatch.undo()
    assert (tmp_path / "a.zip.part").stat().st_size == 100_000
    assert get(url, tmp_path).read_bytes() == BODY and site.log[-1].range == "bytes=100000-"


# Processes

# forked where that is safe, because a new process that imports torch takes seconds
mp = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


def in_a_process(fn, *args):
    p = mp.Process(target=fn, args=args)
    p.start()
    return p


def download(url, folder, out):
    fetch(Archive(url, "a.zip", sha256=SHA), folder, tell=lambda n, total: out.put(n), say=out.put)


def stage_and_die(folder):
    with staged(folder) as new:
        (new / "half").write_text("x")
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


def test_a_process_that_is_killed_leaves_a_part(site, tmp_path):
    url = site.put("/a.zip", BODY, delay=0.02)
    out = mp.SimpleQueue()
    p = in_a_process(download, url, tmp_path, out)
    while (n := out.get()) < 40_000:
        pass
    p.kill(), p.join()
    part = (tmp_path / "a.zip.part").stat().st_size
    assert n <= part < len(BODY) and (tmp_path / "a.zip.part").read_bytes() == BODY[:part]
    site.put("/a.zip", BODY)
    assert get(url, tmp_path, sha256=SHA).read_bytes() == BODY
    assert site.log[-1].range == f"bytes={part}-" and names(tmp_path) == ["a.zip"]


def test_an_interrupt_leaves_a_part(site, tmp_path):
    def stop(n, total):
        if n > 100_000:
            raise KeyboardInterrupt

    url = site.put("/a.zip", BODY, delay=0.0001)
    with pytest.raises(KeyboardInterrupt):
        get(url, tmp_path, tell=stop)
    part = (tmp_path / "a.zip.part").stat().st_size
    assert get(url, tmp_path).read_bytes() == BODY and site.log[-1].range == f"bytes={part}-"


def test_two_processes_do_the_work_once(site, tmp_path):
    url = site.put("/a.zip", BODY, delay=0.02)
    outs = mp.SimpleQueue(), mp.SimpleQueue()
    one = in_a_process(download, url, tmp_path, outs[0])
    outs[0].get()
    two = in_a_process(download, url, tmp_path, outs[1])
    assert "another process is working on" in outs[1].get()
    one.join(60), two.join(60)
    assert (one.exitcode, two.exitcode) == (0, 0) and outs[1].empty()
    assert site.given() == len(BODY) and names(tmp_path) == ["a.zip"]


def test_many_threads_do_the_work_once(site, tmp_path):
    url, got = site.put("/a.zip", BODY, delay=0.0005), []
    work = [threading.Thread(target=lambda: got.append(get(url, tmp_path, sha256=SHA, say=lambda s: None))) for _ in range(6)]
    [t.start() for t in work], [t.join() for t in work]
    assert got == [tmp_path / "a.zip"] * 6 and site.given() == len(BODY)


# What is shown


class Out:
    def __init__(self, tty):
        self.text, self.isatty, self.flush = "", lambda: tty, lambda: None

    def write(self, s):
        self.text += s


def test_a_bar_on_a_terminal_and_lines_in_a_log():
    now = iter(range(0, 1000, 10))
    term, log = Out(True), Out(False)
    for out in term, log:
        meter = Meter("a.zip", out=out, clock=lambda: next(now))
        for n in range(0, 11):
            meter(n * 10**7, 10**8)
    assert term.text.count("\r") == 10 and term.text.endswith("\n") and "100.0 of 100.0 MB" in term.text
    assert "\r" not in log.text and log.text.count("\n") == 3 and "MB/s" in log.text and "left" in log.text
    meter = Meter("a.zip", out=term, clock=lambda: next(now))
    meter(5 * 10**6, None)
    assert "of" not in meter.text


# The stamp


def test_a_stamp_is_of_what_is_there(tmp_path):
    for i in range(5):
        (tmp_path / "x" / str(i)).mkdir(parents=True)
        (tmp_path / "x" / str(i) / "a.jpg").write_text("a")
    assert done(tmp_path / "x") is None
    stamp = mark(tmp_path / "x", urls=["https://…"], sha256={"a": "b"})
    assert done(tmp_path / "x") == stamp and stamp["files"] == 5 and stamp["version"] and stamp["urls"] == ["https://…"]
    for litter in ".DS_Store", "3/Thumbs.db", "3/desktop.ini", ".git":
        (tmp_path / "x" / litter).write_text("")
    assert done(tmp_path / "x") == stamp
    for change in (tmp_path / "x" / "3" / "b.jpg").write_text, (tmp_path / "x" / "mudpt-ready.json").write_text:
        change("[]")
        assert done(tmp_path / "x") is None
        mark(tmp_path / "x")
        assert done(tmp_path / "x")
    (tmp_path / "x" / "0" / "a.jpg").unlink()
    assert done(tmp_path / "x") is None and done(tmp_path / "nowhere") is None


def test_a_killed_preparation_is_no_preparation(tmp_path):
    set_, other = tmp_path / "pets [1]", tmp_path / ".pets [1].5~abc.new"
    other.mkdir()
    p = in_a_process(stage_and_die, set_)
    p.join()
    assert p.exitcode and not set_.exists() and len(names(tmp_path)) == 3, "what it had, its lock, and another's"
    with staged(set_) as new:
        (new / "whole").write_text("x")
        mark(new)
    assert names(tmp_path) == [other.name, "pets [1]"] and done(set_)["files"] == 1


def test_two_preparations_are_one(tmp_path):
    made, said = [], []

    def work():
        with staged(tmp_path / "pets", said.append) as new:
            if new:
                time.sleep(0.2)
                made.append(mark(new))

    both = [threading.Thread(target=work) for _ in range(2)]
    [t.start() for t in both], [t.join() for t in both]
    assert len(made) == len(said) == 1 and done(tmp_path / "pets")


# The hub


@pytest.fixture
def at_hub(site, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", site.url)
    monkeypatch.setenv("MUDPT_DATA", str(tmp_path))
    return site


COMMIT = "c0ffee" * 6 + "beef"


@pytest.mark.parametrize("repo_type", ["model", "dataset"])
def test_files_of_a_repository(at_hub, repo_type, tmp_path):
    at_hub.hub("zoo/pets", {"data/a.zip": BODY, "split.json": b"{}"}, repo_type, cuts=[100_000, 50_000])
    path = hub("zoo/pets", "data/a.zip", repo_type, pause=0.001)
    assert path.read_bytes() == BODY and path.is_relative_to(tmp_path) and path.name == "a.zip"
    assert at_hub.given() == len(BODY), "continued, not repeated"
    assert hub("zoo/pets", "split.json", repo_type).read_bytes() == b"{}"
    n = len(at_hub.log)
    assert hub("zoo/pets", "data/a.zip", repo_type) == path and at_hub.log[n].method == "HEAD" and len(at_hub.log) == n + 1
    os.environ["MUDPT_OFFLINE"] = "1"
    assert hub("zoo/pets", "data/a.zip", repo_type) == path and len(at_hub.log) == n + 1


def test_a_commit_is_asked_about_once(at_hub, tmp_path):
    at_hub.hub("zoo/pets", {"a.zip": BODY})
    path = hub("zoo/pets", "a.zip", revision=COMMIT, folder=tmp_path / "here")
    n = len(at_hub.log)
    assert path == hub("zoo/pets", "a.zip", revision=COMMIT, folder=tmp_path / "here") == tmp_path / "here" / "a.zip"
    assert len(at_hub.log) == n


@pytest.mark.parametrize("body", [BODY, b"small"], ids=["large", "small"])
def test_bytes_that_are_not_what_was_announced(at_hub, body, tmp_path):
    at_hub.hub("zoo/pets", {"a.bin": body})
    for thing in at_hub.things.values():
        if thing.body == body:
            thing.etag, thing.body = thing.tag, body[:-1] + b"?"
    with pytest.raises(NotHere, match="was expected|not what the hub announced"):
        hub("zoo/pets", "a.bin", retries=1, pause=0.001, folder=tmp_path / "x")
    assert "a.bin" not in names(tmp_path / "x")


@pytest.mark.parametrize("size", [1000, 10], ids=["large", "small"])
def test_a_file_that_was_replaced_on_the_hub(at_hub, size, tmp_path):
    for body in b"1" * size, b"2" * size:
        at_hub.hub("zoo/pets", {"a.bin": body})
        assert hub("zoo/pets", "a.bin").read_bytes() == body


def test_a_busy_hub_is_asked_again(at_hub):
    at_hub.hub("zoo/pets", {"a.zip": BODY})
    at_hub.things["/zoo/pets/resolve/main/a.zip"].codes = [503, 429]
    at_hub.things[f"/zoo/pets/resolve/{COMMIT}/a.zip"].codes = [503]
    assert hub("zoo/pets", "a.zip", pause=0.001).read_bytes() == BODY
    at_hub.things["/zoo/pets/resolve/main/a.zip"].codes = [500] * 9
    assert hub("zoo/pets", "a.zip", pause=0.001).read_bytes() == BODY, "what is on the disk is used"


@pytest.mark.parametrize("error, said", [((403, "GatedRepo"), "accept.*hf auth login"), ((401, "RepoNotFound"), "private.*log in"),
                                         ((404, "RevisionNotFound"), "no revision 'main'"), ((404, "EntryNotFound"), "no such file")])  # fmt: skip
def test_what_the_hub_refuses(at_hub, error, said):
    at_hub.hub("zoo/pets", {"a.zip": BODY}, error=error)
    with pytest.raises(NotHere, match=said) as e:
        hub("zoo/pets", "a.zip")
    assert "https://huggingface.co/zoo/pets" in str(e.value) and "\n" not in str(e.value)


def test_a_hub_that_is_not_there(at_hub, monkeypatch, tmp_path):
    at_hub.hub("zoo/pets", {"a.zip": BODY})
    path = hub("zoo/pets", "a.zip")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert hub("zoo/pets", "a.zip") == path
    with pytest.raises(NotHere, match="was not reached.*by hand from https://huggingface.co/zoo/pets/resolve/main/b.zip and put"):
        hub("zoo/pets", "b.zip")
    path.write_bytes(BODY[:-1])
    os.environ["MUDPT_OFFLINE"] = "1"
    with pytest.raises(NotHere, match="damaged"):
        hub("zoo/pets", "a.zip")
    with pytest.raises(NotHere, match="network is switched off"):
        hub("zoo/pets", "b.zip")
    path.with_name("b.zip").write_bytes(BODY)
    assert hub("zoo/pets", "b.zip").read_bytes() == BODY


def test_the_hub_behind_a_mirror_and_a_token(site, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.setenv("MUDPT_MIRROR", site.url + "/in")
    monkeypatch.setenv("HF_TOKEN", "secret")
    site.hub("zoo/pets", {"a.zip": BODY}, token="secret", at="/in/huggingface.co")
    assert hub("zoo/pets", "a.zip", folder=tmp_path).read_bytes() == BODY
    assert {a.auth for a in site.log if a.path.startswith("/store")} == {None}, "a store of another host never sees the token"


def test_what_the_package_of_the_hub_has_cached(at_hub, monkeypatch, tmp_path):
    import huggingface_hub

    at_hub.hub("zoo/pets", {"a.zip": BODY})
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    huggingface_hub.hf_hub_download("zoo/pets", "a.zip", cache_dir=tmp_path / "cache", endpoint=at_hub.url)
    n = at_hub.given()
    os.environ["MUDPT_OFFLINE"] = "1"
    assert hub("zoo/pets", "a.zip").read_bytes() == BODY
    os.environ.pop("MUDPT_OFFLINE")
    assert hub("zoo/pets", "a.zip", folder=tmp_path / "mine") == tmp_path / "mine" / "a.zip" and at_hub.given() == n


@pytest.mark.parametrize("wrong", [dict(repo="zoo/pets/cats"), dict(repo_type="space"), dict(file="../a.zip")], ids=str)
def test_names_the_hub_cannot_have(at_hub, wrong):
    with pytest.raises(BadInput):
        hub(**(dict(repo="zoo/pets", file="a.zip") | wrong))
