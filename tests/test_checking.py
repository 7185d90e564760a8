"""What a check finds, and pictures that are decoded once."""

import io
import json
import pickle
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms as tv

from mudpt import emoji
from mudpt.batches import Augment, direct, loader
from mudpt.cache import key as cache_key
from mudpt.checking import check
from mudpt.core import BadFile, BadInput
from mudpt.data import folder
from mudpt.fewshot import Task
from mudpt.judging import score
from mudpt.methods import ZeroShot
from mudpt.pictures import open_image, source_key
from mudpt.rows import Cells, Row
from mudpt.scanning import FACT, dhash, groups, look, near, scan
from mudpt.smallcache import Album, Seen, Shorter, small, steps_for

quiet = dict(say=lambda s: None)


def picture(i, size=(40, 32)):
    "Smooth enough to survive compression"
    coarse = np.random.default_rng(i).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def fill(root, n=6, classes=("cat", "dog"), ext="png", size=(40, 32), start=0):
    for y, c in enumerate(classes):
        (root / c).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            picture(start + 100 * y + i, size).save(root / c / f"{i:02}.{ext}")
    return root


def split(root):
    fill(root / "train")
    fill(root / "test", 3, start=50)
    return root


def bytes_of(im, form, **kw):
    im.save(b := io.BytesIO(), form, **kw)
    return b.getvalue()


# ---- the check ------------------------------------------------------------------------------------------------------


def test_a_sound_folder_has_no_problems(tmp_path):
    r = check(split(tmp_path / "pets"))
    assert (r.name, r.names, r.counts) == ("pets", ["cat", "dog"], dict(train=[6, 6], test=[3, 3]))
    assert (r.problems, r.notes, r.ok, r.status) == ([], [], True, 0)
    assert r.sizes["width"] == dict(min=40, median=40, max=40) and r.kinds == {"RGB PNG": 18}
    assert r.bytes == sum(p.stat().st_size for p in tmp_path.rglob("*.png"))
    assert "No problems found" in r.text and "pets" in r._repr_html_()


def as_other_file(root):
    open_image(root / "train/cat/00.png").save(root / "test/cat/again.bmp")


def turned(root):
    exif = Image.Exif()
    exif[0x0112] = 3
    open_image(root / "train/cat/00.png").rotate(180).save(root / "test/cat/again.png", exif=exif)


def two_labels(root):
    shutil.copy(root / "train/cat/00.png", root / "train/dog/again.png")


def emptied(root):
    for f in (root / "test/dog").iterdir():
        f.unlink()


def cut(root):
    f = root / "train/cat/00.png"
    f.write_bytes(f.read_bytes()[:-200])


@pytest.mark.parametrize(
    "spoil,said,what",
    [
        (as_other_file, "1 image of test is in train too", "parts"),
        (turned, "1 image of test is in train too", "parts"),
        (two_labels, "1 picture has more than one label", "labels"),
        (emptied, "1 class without an image that can be read in test: dog", None),
        (cut, "1 image cannot be read (1 cut off)", "unread"),
        (lambda r: (r / "train/cat/x.jpg").touch(), "1 image cannot be read (1 empty)", "unread"),
        (lambda r: (r / "train/cat/x.jpg").write_text("meow"), "(1 not an image)", "unread"),
        (lambda r: [shutil.rmtree(r / p / "dog") for p in ("train", "test")], "1 class: a task needs two", None),
        (lambda r: [shutil.rmtree(r / p / c) for p in ("train", "test") for c in ("cat", "dog")], "there are no images", None),
    ],
)  # fmt: skip
def test_problems_are_found_one_by_one(tmp_path, spoil, said, what):
    root = split(tmp_path / "pets")
    spoil(root)
    r = check(root)
    assert any(said in p for p in r.problems), r.problems
    assert r.status == 1 and not r.ok
    assert what is None or len(r.examples[what]) == 1
    json.dumps(r.to_dict())


def test_a_picture_in_all_parts_counts_for_each_pair(tmp_path):
    root = split(tmp_path)
    fill(root / "val", 2, start=70)
    for n in range(2):
        shutil.copy(root / "train/cat/00.png", root / f"test/cat/x{n}.png")
    shutil.copy(root / "train/cat/00.png", root / "val/cat/x.png")
    said = [p.split(" (")[0] for p in check(root).problems]
    assert said == [
        "1 image of val is in train too",
        "2 images of test are in train too",
        "2 images of test are in val too",
    ]


def test_notes(tmp_path):
    root = fill(tmp_path / "pets", 3)
    fill(root, 30, ("dog",), start=300)
    shutil.copy(root / "dog/00.png", root / "dog/more.png")
    picture(1, (20, 16)).save(root / "cat/tiny.png")
    picture(2, (400, 40)).save(root / "cat/long.png")
    for f in (".DS_Store", "cat/.hidden.png", "notes.txt", "stray.png", "__MACOSX/x.png"):
        (root / f).parent.mkdir(exist_ok=True)
        (root / f).write_bytes(b"x")
    r = check(root)
    assert r.problems == []
    text = "\n".join(r.notes)
    for said in (
        "1 image repeats another of the same class and part: a random split may put them on both sides",
        "1 image smaller than 32",
        "1 image more than 4 times as long",
        "hidden: 3",
        "notes: 1",
        "outside of the class folders: 1",
    ):
        assert said in text, (said, text)
    assert list(r.counts) == ["all"] and r.examples["tiny"][0].endswith("tiny.png (cat, all)")
    fill(root, 60, ("dog",), start=500)
    assert any("all is uneven: 5 images of 'cat', 61 of 'dog'" in n for n in check(root).notes)


def test_lists_tasks_shards_and_tables(tmp_path):
    fill(tmp_path)
    rows = [f"{c}/{i:02}.png,{c},{'train' if i < 4 else 'test'}" for c in ("cat", "dog") for i in range(6)]
    (tmp_path / "list.csv").write_text("\n".join(["path,name,split", *rows, "cat/none.png,cat,test"]))
    r = check(tmp_path / "list.csv")
    assert "1 image cannot be read (1 missing)" in r.problems[0] and r.counts == dict(train=[4, 4], test=[2, 2])
    assert check(folder(tmp_path, val=0, test=0.5)).counts == dict(train=[3, 3], test=[3, 3])
    cells = [bytes_of(picture(i), "jpeg") for i in (0, 1, 2, 0)] + [b"?"]
    store = Cells(cells)
    items = [(Row(store, i), i % 2) for i in range(5)]
    r = check(Task("t", ["a", "b"], items[:3], [], items[3:]))
    assert [p.split(" (")[0] for p in r.problems[:3]] == ["1 image cannot be read", "1 image of test is in train too", "1 picture has more than one label"]  # fmt: skip
    assert r.bytes == sum(map(len, cells))
    with pytest.raises(BadInput):
        check(tmp_path / "nothing")


def test_validation_images_that_stand_in_for_a_test_are_no_leak(tmp_path):
    fill(tmp_path / "train")
    fill(tmp_path / "val", 2, start=50)
    task = folder(tmp_path)
    assert task.val == task.test and check(task).problems == []


def test_a_set_of_the_papers_by_its_split_file(tmp_path):
    root = tmp_path / "dtd"
    fill(root / "images", 6)
    rows = lambda lo, hi: [[f"{c}/{i:02}.png", y, c] for y, c in enumerate(("cat", "dog")) for i in range(lo, hi)]
    (root / "split_zhou_DescribableTextures.json").write_text(
        json.dumps(dict(train=rows(0, 3), val=rows(3, 4), test=rows(4, 7)))
    )
    r = check(root)
    assert r.name == "DescribableTextures" and r.counts == dict(train=[3, 3], val=[1, 1], test=[2, 2])
    assert any("2 images cannot be read (2 missing)" in p for p in r.problems) and len(r.problems) >= 2


def test_stopping_reports_on_what_was_read(tmp_path, monkeypatch):
    fill(tmp_path, 40)

    def tell(n, of):
        if n >= 20:
            raise KeyboardInterrupt

    r = check(tmp_path, workers=1, tell=tell)
    assert 0 < r.images < r.of == 80 and r.status == 130 and not r.ok and f"stopped after {r.images} of 80" in r.text
    assert threading.active_count() < 20


def test_memory_does_not_hold_pictures():
    class Big:
        alive = most = 0

        def __init__(self, i):
            self.i = i

        def image(self):
            Big.alive += 1
            Big.most = max(Big.most, Big.alive)
            im = Image.new("RGB", (64, 64), (self.i % 256, self.i // 256, 0))
            Big.alive -= 1
            return im

    s = scan(((Big(i), 0, 0) for i in range(500)), workers=2)
    assert len(s) == 500 and Big.most <= 2 and s.facts.nbytes == 500 * FACT.itemsize


# ---- sameness -------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 12), max_size=60), st.integers(0, 2**31))
def test_groups_are_those_of_a_dictionary(keys, seed):
    ok = np.random.default_rng(seed).random(len(keys)) < 0.8
    want = {}
    for i, k in enumerate(keys):
        if ok[i]:
            want.setdefault(k, []).append(i)
    got = groups(np.array(keys, np.uint64), ok)
    assert sorted(map(list, got)) == sorted(g for g in want.values() if len(g) > 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 8), st.integers(0, 2**31))
def test_all_pairs_within_some_bits_are_found(bits, seed):
    rng = np.random.default_rng(seed)
    facts = np.zeros(40, FACT)
    facts["ok"], facts["pixels"] = True, np.arange(40)
    base = rng.integers(0, 2**63, 8, dtype=np.uint64)[rng.integers(0, 8, 40)]
    for i in range(40):
        for b in rng.choice(64, rng.integers(0, 10), replace=False):
            base[i] ^= np.uint64(1) << np.uint64(b)
    facts["alike"] = base
    ints = base.tolist()
    want = {(i, j) for i in range(40) for j in range(i + 1, 40) if (ints[i] ^ ints[j]).bit_count() <= bits}
    got = near(facts, bits)
    assert {(i, j) for i, j, _ in got} == want
    assert all((ints[i] ^ ints[j]).bit_count() == d for i, j, d in got)


def test_alike_is_a_hint_and_not_a_problem(tmp_path):
    root = split(tmp_path)
    im = open_image(root / "train/cat/00.png").resize((80, 64))
    im.save(root / "test/cat/again.jpg", quality=70)
    r = check(root, alike=4)
    assert (
        r.problems == []
        and "1 pair of pictures that look alike" in r.notes[0]
        and "again.jpg" in r.examples["alike"][0]
    )
    assert (dhash(im) ^ dhash(picture(9))).bit_count() > 10


def test_the_same_pixels_with_other_sides_are_not_the_same():
    a, b = (look(Image.new("RGB", s))[0]["pixels"] for s in ((8, 4), (4, 8)))
    assert a != b


# ---- the loader's short cut -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("edge", [16, 33])
@pytest.mark.parametrize("tail", ["open_clip", "torchvision", "inplace"])
def test_the_short_cut_is_the_transform_to_the_last_bit(edge, tail):
    from open_clip.transform import PreprocessCfg, image_transform_v2

    norm = tv.Normalize((0.48, 0.46, 0.41), (0.27, 0.26, 0.28), inplace=tail == "inplace")
    t = tv.Compose([tv.Resize((edge, edge + 3)), tv.ToTensor(), norm])
    if tail == "open_clip":
        t = image_transform_v2(PreprocessCfg(size=edge), is_train=False)
    items = [(picture(i, (40 + i, 30)), i % 3) for i in range(23)]
    assert direct(t) is not None
    for w in (1, 3):
        x = torch.cat([x for x, _ in loader(items, t, bs=5, workers=w)])
        assert torch.equal(x, torch.stack([t(im) for im, _ in items])) and x.is_contiguous()


@pytest.mark.parametrize(
    "t",
    [
        tv.Compose([tv.ToTensor()]),
        tv.Compose([tv.ToTensor(), tv.Normalize((0.5,), (0.5,))]),
        tv.Compose([tv.ToTensor(), tv.Normalize((0.5,) * 3, (0.5,) * 3), tv.RandomErasing()]),
        lambda im: tv.functional.to_tensor(im),
    ],
    ids=["no norm", "grey", "more", "function"],
)
def test_other_transforms_take_the_long_way(t):
    assert direct(t) is None
    items = [(picture(i), 0) for i in range(5)]
    torch.manual_seed(0)
    assert len(torch.cat([x for x, _ in loader(items, t, bs=2)])) == 5


def test_pictures_of_other_modes_and_sizes():
    norm = tv.Normalize((0.5,) * 3, (0.5,) * 3)
    t = tv.Compose([lambda im: im.convert("HSV"), tv.ToTensor(), norm])
    x, _ = next(iter(loader([(picture(1), 0)], t)))
    assert torch.equal(x[0], t(picture(1)))
    mixed = [(picture(1), 0), (picture(2, (50, 32)), 0)]
    with pytest.raises(BadInput, match="one size"):
        list(loader(mixed, tv.Compose([tv.ToTensor(), norm])))


def test_training_with_others_transforms_still_draws_from_the_lent_generator():
    t = tv.Compose([tv.RandomCrop(16), tv.ToTensor(), tv.Normalize((0.5,) * 3, (0.5,) * 3)])
    items = [(picture(i), 0) for i in range(12)]
    runs = [torch.cat([x for x, _ in loader(items, t, bs=4, train=True, seed=3, workers=w)]) for w in (1, 4)]
    assert torch.equal(*runs)


# ---- decoded once ---------------------------------------------------------------------------------------------------


def photos(root, n=12, size=(90, 70)):
    fill(root, n // 2, ext="jpg", size=size)
    return [(str(p), y) for y, c in enumerate(("cat", "dog")) for p in sorted((root / c).iterdir())]


def batch(items, t):
    return torch.cat([x for x, _ in loader(items, t, bs=5, keep=0)])


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(90, 70), (70, 90), (300, 40), (20, 30), (48, 48)])
def test_test_images_are_equal_to_the_last_bit(tmp_path, mode, size):
    from types import SimpleNamespace

    from open_clip.transform import PreprocessCfg, image_transform_v2

    t = image_transform_v2(PreprocessCfg(size=48, resize_mode=mode), is_train=False)
    items = photos(tmp_path / "p", 4, size)
    clip = SimpleNamespace(test_transform=t, image_size=48, name="x")
    kept = small(items, clip, tmp_path / "k", **quiet)
    assert torch.equal(batch(kept, t), batch(items, t))
    assert all(s.image().width * s.image().height <= size[0] * size[1] for s, _ in kept)


def test_scores_are_the_same_and_features_are_kept_under_another_name(tmp_path):
    clip = emoji.clip(device="cpu")
    items = photos(tmp_path / "p")
    kept = small(items, clip, tmp_path / "k", **quiet)
    a, b = (score(ZeroShot(clip), i, ["cat", "dog"]) for i in (items, kept))
    assert torch.equal(a.confusion, b.confusion) and torch.equal(a.bins, b.bins)
    assert cache_key(clip, [s for s, _ in items], None) != cache_key(clip, [s for s, _ in kept], None)


def test_a_task_keeps_more_of_its_training_images(tmp_path):
    photos(tmp_path / "p", 20)
    task = folder(tmp_path / "p")
    kept = small(task, 32, tmp_path / "k", **quiet)
    assert (kept.names, len(kept.train), len(kept.val), len(kept.test)) == (
        task.names,
        len(task.train),
        len(task.val),
        len(task.test),
    )
    assert {s.image().size for s, _ in kept.test} == {(32, 32)} and {min(s.image().size) for s, _ in kept.train} == {48}
    assert kept.fingerprint != task.fingerprint == folder(tmp_path / "p").fingerprint
    assert small(task, 32, tmp_path / "k", **quiet).fingerprint == kept.fingerprint
    x, _ = next(iter(loader(kept.few_shot(2).train, Augment(32, (0.5,) * 3, (0.5,) * 3), bs=4, train=True)))
    assert x.shape == (4, 3, 32, 32)
    assert small(task, 32, tmp_path / "k", train=0, **quiet).train[0][0].image().size == (32, 32)


def test_nothing_is_made_twice_and_changes_are_noticed(tmp_path):
    items, said = photos(tmp_path / "p"), []
    first = small(items, 32, tmp_path / "k", say=said.append)
    assert len(said) == 1 and said[0].startswith("12 pictures")
    small(items + items[:3], 32, tmp_path / "k", say=said.append)
    assert len(said) == 1
    Image.new("RGB", (90, 70), "red").save(items[4][0])
    second = small(items, 32, tmp_path / "k", say=said.append)
    assert said[1].startswith("1 pictures") and [a[0].i == b[0].i for a, b in zip(first, second)] == [
        i != 4 for i in range(12)
    ]
    assert second[4][0].image().getpixel((3, 3))[0] > 200
    assert source_key(second[4][0], exact=True) != source_key(first[4][0], exact=True)


def test_known_by_content(tmp_path):
    items = photos(tmp_path / "p")
    small(items, 32, tmp_path / "k", content=True, **quiet)
    shutil.copytree(tmp_path / "p", tmp_path / "moved")
    moved = [(s.replace(str(tmp_path / "p"), str(tmp_path / "moved")), y) for s, y in items]
    said = []
    kept = small(moved, 32, tmp_path / "k", content=True, say=said.append)
    assert said == [] and kept[2][0].image().size == (32, 32)


def test_other_sizes_and_other_sources_have_albums_of_their_own(tmp_path):
    items = photos(tmp_path / "p")
    assert (
        small(items, 32, tmp_path / "k", **quiet)[0][0].album.folder
        != small(items, 24, tmp_path / "k", **quiet)[0][0].album.folder
    )
    rows = [(Row(Cells([Path(s).read_bytes() for s, _ in items]), i), y) for i, (_, y) in enumerate(items)]
    in_memory = [(open_image(s), y) for s, y in items]
    want = [s.image().tobytes() for s, _ in small(items, 32, tmp_path / "k", **quiet)]
    for other in (rows, in_memory):
        assert [s.image().tobytes() for s, _ in small(other, 32, tmp_path / "k", **quiet)] == want


@pytest.mark.parametrize("lost", [0, 1, 51, 52, 60, 200])
def test_work_that_was_cut_off_goes_on(tmp_path, lost):
    items = photos(tmp_path / "p")
    album = small(items, 32, tmp_path / "k", **quiet)[0][0].album
    index = (album.folder / "index.bin").read_bytes()
    (album.folder / "index.bin").write_bytes(index[: len(index) - lost])
    said = []
    again = small(items, 32, tmp_path / "k", say=said.append)
    assert [int(s.split()[0]) for s in said] == ([-(-lost // 52)] if lost else [])
    assert again[0][0].album.damaged() == [] and len({s.i for s, _ in again}) == 12
    assert again[0][0].album.end == (album.folder / "pixels.bin").stat().st_size


def test_pixels_that_never_reached_the_disk_are_made_again(tmp_path):
    items = photos(tmp_path / "p")
    album = small(items, 32, tmp_path / "k", **quiet)[0][0].album
    with open(album.folder / "pixels.bin", "r+b") as f:
        f.truncate(32 * 32 * 3 * 5 + 7)
    said = []
    again = small(items, 32, tmp_path / "k", say=said.append)
    assert said[0].startswith("7 pictures") and again[0][0].album.damaged() == []


def test_a_broken_image_stops_the_work_and_keeps_what_was_done(tmp_path):
    items = photos(tmp_path / "p", 40)
    Path(items[9][0]).write_bytes(b"?")
    with pytest.raises(BadFile, match=Path(items[9][0]).name):
        small(items, 32, tmp_path / "k", **quiet)
    album = Album(tmp_path / "k", Seen(tuple(steps_for(32))))
    assert len(album.records) == 9 and album.damaged() == []
    picture(9).save(items[9][0])
    said = []
    small(items, 32, tmp_path / "k", say=said.append)
    assert said[0].startswith("31 pictures")


def test_damage_is_found_when_asked_for(tmp_path):
    items = photos(tmp_path / "p")
    album = small(items, 32, tmp_path / "k", **quiet)[0][0].album
    with open(album.folder / "pixels.bin", "r+b") as f:
        f.seek(4000)
        f.write(b"\0\1\2")
    assert album.damaged() == [1]
    with pytest.raises(BadFile, match="delete that folder"):
        small(items, 32, tmp_path / "k", verify=True, **quiet)


def test_too_little_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
    from types import SimpleNamespace

    items = photos(tmp_path / "p")
    monkeypatch.setattr("mudpt.smallcache.shutil.disk_usage", lambda p: SimpleNamespace(free=1000))
    with pytest.raises(BadInput, match="need about 0 MB, and .* has 0 MB free"):
        small(items, 32, tmp_path / "k", **quiet)
    assert not list((tmp_path / "k").rglob("pixels.bin"))


def test_processes_share_an_album(tmp_path):
    items = photos(tmp_path / "p", 40)
    (tmp_path / "items.pkl").write_bytes(pickle.dumps(items))
    code = (
        "import sys, pickle; from mudpt.smallcache import small; import hashlib\n"
        "items = pickle.load(open(sys.argv[1], 'rb'))\n"
        "kept = small(items, 32, sys.argv[2], say=lambda s: None)\n"
        "print(hashlib.sha256(b''.join(s.image().tobytes() for s, _ in kept)).hexdigest(), len(kept[0][0].album.records))"
    )
    run = [sys.executable, "-c", code, tmp_path / "items.pkl", tmp_path / "k"]
    both = [subprocess.Popen(run, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outs = {p.communicate(timeout=300)[0] for p in both}
    assert len(outs) == 1 and outs.pop().split()[1] == "40"
    kept = pickle.loads(pickle.dumps(small(items, 32, tmp_path / "k", **quiet)))
    assert kept[3][0].album._map is None and kept[3][0].image().size == (32, 32)


def test_transforms_that_cannot_be_kept(tmp_path):
    from types import SimpleNamespace

    items = photos(tmp_path / "p", 2)
    other = SimpleNamespace(test_transform=lambda im: im, image_size=32, name="other")
    with pytest.raises(BadInput, match="pass the input's size"):
        small(items, other, tmp_path / "k", **quiet)
    norm = [tv.ToTensor(), tv.Normalize((0.5,) * 3, (0.5,) * 3)]
    blur = SimpleNamespace(test_transform=tv.Compose([tv.GaussianBlur(3, 1.0), *norm]), image_size=32, name="blur")
    with pytest.raises(BadInput, match="changes its own result"):
        small(items, blur, tmp_path / "k", **quiet)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 200))
def test_what_training_keeps_is_never_enlarged_and_keeps_its_shape(w, h, edge):
    im = Shorter(edge)(Image.new("RGB", (w, h)))
    assert min(im.size) == min(edge, w, h)
    assert abs(im.width * h - im.height * w) <= max(w, h) * 1.01
