"""Data: images of every kind, folders and lists of every kind, the official subsets, and seeded batches."""

import json
import random
import shutil
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as F

from mudpt.cache import features
from mudpt.core import BadFile, BadInput
from mudpt.data import Augment, Still, Task, folder, listing, loader, open_image, templates
from mudpt.data import deal as split
from mudpt.pictures import as_rgb, source_key, unreadable

HALF = (0.5, 0.5, 0.5)
VECTORS = json.loads((Path(__file__).parent / "fixtures" / "protocol.json").read_text())


# ---- the official subsets -------------------------------------------------------------------------------------------


def items(ids):
    return [(i, int(i.split("_")[0])) for i in ids]


def made_up():
    return Task("made up", [f"class {y}" for y in range(7)], items(VECTORS["train"]), items(VECTORS["val"]))


@pytest.mark.parametrize("s", VECTORS["samples"], ids=lambda s: f"{s['shots']} shots, seed {s['seed']}")
def test_subsets_are_those_of_the_reference_code(s):
    few = made_up().few_shot(s["shots"], s["seed"], strict=False)
    assert [i for i, _ in few.train] == s["train"]
    assert [i for i, _ in few.val] == s["val"]


@pytest.mark.parametrize("half", ["base", "new"])
def test_halves_are_those_of_the_reference_code(half):
    task = getattr(made_up(), half)
    for part in ("train", "val"):
        assert [list(i) for i in getattr(task, part)] == VECTORS["halves"][half][part]


def test_sentences_are_those_of_the_reference_code():
    assert templates == VECTORS["templates"]


def test_base_images_of_few_shots_are_those_of_all_classes():
    few = made_up().few_shot(2, 1)
    assert few.base.train == [i for i in few.train if i[1] < 4]
    assert few.base.names + few.new.names == few.names


labels = st.lists(st.integers(0, 5), min_size=12, max_size=80).filter(lambda ys: len(set(ys)) > 1)


@settings(max_examples=50, deadline=None)
@given(labels, st.integers(1, 16), st.integers(0, 2**32))
def test_few_shot_draws_k_of_each_class_and_leaves_pythons_generator_alone(ys, shots, seed):
    task = Task("t", [f"n{i}" for i in range(6)], [(f"{i}.jpg", y) for i, y in enumerate(ys)])
    state, have = random.getstate(), Counter(ys)
    few = task.few_shot(shots, seed, strict=False)
    assert random.getstate() == state
    assert Counter(y for _, y in few.train) == {y: min(n, shots) for y, n in have.items()}
    assert set(few.train) <= set(task.train) and len(set(few.train)) == len(few.train)
    assert few.fingerprint == task.few_shot(shots, seed, strict=False).fingerprint
    if min(have.values()) < shots:
        with pytest.raises(BadInput, match="strict=False"):
            task.few_shot(shots, seed)


@settings(max_examples=50, deadline=None)
@given(labels)
def test_halves_part_the_task(ys):
    task = Task("t", [f"n{i}" for i in range(6)], [(f"{i}.jpg", y) for i, y in enumerate(ys)])
    back = [(s, y) for s, y in task.base.train] + [(s, y + 3) for s, y in task.new.train]
    assert sorted(back) == sorted(task.train)


@pytest.mark.parametrize(
    "wrong",
    [lambda t: t.few_shot(0), lambda t: t.base.base, lambda t: t.base.few_shot(1), lambda t: t.few_shot(1).few_shot(1)],
)
def test_requests_that_make_no_sense(wrong):
    with pytest.raises(BadInput):
        wrong(made_up())


@settings(max_examples=50, deadline=None)
@given(labels, st.floats(0, 0.45), st.floats(0, 0.45), st.integers(0, 99))
def test_a_split_loses_and_repeats_nothing_and_leaves_every_class_to_learn_from(ys, val, test, seed):
    every = [(f"{i}.jpg", y) for i, y in enumerate(ys)]
    parts = split(every, val, test, seed)
    assert sorted(sum(parts, [])) == sorted(every)
    assert {y for _, y in parts[0]} == set(ys)
    if test:
        assert {y for _, y in parts[2]} == {y for y, n in Counter(ys).items() if n > 1}
    assert split(every, val, test, seed) == parts


@pytest.mark.parametrize("val,test", [(-0.1, 0.3), (0.5, 0.5), (0, 1)])
def test_a_split_that_leaves_nothing_to_train_on(val, test):
    with pytest.raises(BadInput, match="leave nothing to train on"):
        split([("a", 0), ("b", 1)], val, test)


@pytest.mark.parametrize(
    "kw,said",
    [
        (dict(names=["a", ""]), "empty name"),
        (dict(names=["a b", "a_b"]), "occurs twice"),
        (dict(names=["a", "b"], train=[("x.jpg", -1)]), "label -1"),
        (dict(names=["a", "b"], test=[("x.jpg", 2)]), "label 2"),
        (dict(names=["a", "b"], template="a photo"), "no {}"),
    ],
)
def test_tasks_that_cannot_be(kw, said):
    with pytest.raises(BadInput, match=said):
        Task(**{"name": "t", "train": [], **kw})


# ---- images ---------------------------------------------------------------------------------------------------------


def ramp(mode, edge=64):
    a = np.tile(np.linspace(0, 1, edge), (edge, 1))
    if mode == "I;16":
        return Image.fromarray((a * 65535).astype(np.uint16))
    if mode == "I":
        return Image.fromarray((a * 65535).astype(np.int32))
    if mode == "F":
        return Image.fromarray(a.astype(np.float32))
    grey = Image.fromarray((a * 255).astype(np.uint8))
    return grey.convert("RGB").convert(mode) if mode in ("CMYK", "YCbCr") else grey.convert(mode)


KINDS = [
    ("L", "png"), ("L", "jpg"), ("LA", "png"), ("P", "png"), ("P", "gif"), ("RGB", "png"), ("RGB", "jpg"), ("RGB", "webp"), ("RGB", "bmp"),
    ("RGBA", "png"), ("RGBA", "webp"), ("CMYK", "jpg"), ("CMYK", "tiff"), ("YCbCr", "tiff"), ("I;16", "png"), ("I;16", "tiff"), ("I", "tiff"), ("F", "tiff"),
]  # fmt: skip


@pytest.mark.parametrize("mode,ext", KINDS)
def test_a_grey_ramp_opens_as_a_grey_ramp(mode, ext, tmp_path):
    ramp(mode).save(tmp_path / f"x.{ext}")
    im = open_image(tmp_path / f"x.{ext}")
    got = np.asarray(im, dtype=float)
    assert im.mode == "RGB" and im.size == (64, 64)
    assert np.abs(got - np.linspace(0, 255, 64)[None, :, None]).mean() < 6
    assert not unreadable([tmp_path / f"x.{ext}"])


@pytest.mark.parametrize("mode", ["1", "I;16B", "RGBa", "La", "HSV", "LAB"])
def test_modes_that_live_in_memory(mode):
    im = Image.new(mode, (8, 6))
    assert (as_rgb(im).mode, as_rgb(im).size) == ("RGB", (8, 6))


@pytest.mark.parametrize("mode", ["LA", "RGBA", "PA"])
def test_nothing_is_white(mode):
    im = Image.new("RGBA", (4, 4), (200, 0, 0, 0)).convert(mode)
    assert as_rgb(im).getpixel((0, 0)) == (255, 255, 255)


def test_a_transparent_palette_entry_is_white(tmp_path):
    im = Image.new("P", (4, 4), 0)
    im.putpalette([10, 20, 30, 200, 0, 0])
    im.putpixel((1, 1), 1)
    im.save(tmp_path / "x.png", transparency=0)
    got = open_image(tmp_path / "x.png")
    assert got.getpixel((0, 0)) == (255, 255, 255) and got.getpixel((1, 1)) == (200, 0, 0)


@pytest.mark.parametrize("ext", ["gif", "webp", "png", "tiff"])
def test_the_first_frame_of_an_animation(ext, tmp_path):
    frames = [Image.new("RGB", (16, 16), c) for c in ("red", "lime", "blue")]
    frames[0].save(tmp_path / f"x.{ext}", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / f"x.{ext}") as im:
        assert im.n_frames == 3
        im.seek(2)
        assert open_image(im).getpixel((8, 8))[0] > 240
    assert open_image(tmp_path / f"x.{ext}").getpixel((8, 8))[0] > 240


@pytest.mark.parametrize("turn", range(1, 9))
def test_photos_are_stood_up(turn, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.new("RGB", (32, 16), "teal").save(tmp_path / "x.jpg", exif=exif)
    assert open_image(tmp_path / "x.jpg").size == ((16, 32) if turn > 4 else (32, 16))


def test_a_source_may_draw_itself():
    class Scene:
        def image(self):
            return Image.new("RGBA", (8, 8), (0, 0, 255, 255))

    assert open_image(Scene()).getpixel((0, 0)) == (0, 0, 255)
    assert source_key(Scene()) == source_key(Scene())


@pytest.mark.parametrize("ext", ["jpg", "png", "gif", "webp", "tiff", "bmp"])
@pytest.mark.parametrize("share", [0, 0.02, 0.5, 0.9])
def test_broken_files_are_found_and_named(ext, share, tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (120, 90, 3), dtype=np.uint8))
    path = tmp_path / f"broken off.{ext}"
    noise.save(path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(BadFile, match="broken off"):
        open_image(path)
    assert [s for s, _ in unreadable([path])] == [path]


def test_other_peoples_programs_are_not_run(tmp_path):
    (tmp_path / "x.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n")
    with pytest.raises(BadFile):
        open_image(tmp_path / "x.eps")


def test_what_cannot_be_opened_says_so(tmp_path):
    with pytest.raises(BadInput, match="no image at"):
        open_image(tmp_path / "none.png")
    with pytest.raises(BadInput, match="is a folder"):
        open_image(tmp_path)
    with pytest.raises(BadInput, match="cannot open a float"):
        open_image(1.0)


# ---- folders and lists ----------------------------------------------------------------------------------------------


def fill(root, counts, ext="png"):
    for name, n in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(n):
            Image.new("RGB", (8, 8), (i, len(name) % 200, 90)).save(root / name / f"{i:02}.{ext}")
    return root


def test_one_call_and_what_it_makes_of_a_folder(tmp_path):
    fill(tmp_path / "pets", {"guinea_pig": 10, "Ähre  3": 10, "cat": 7})
    for stray in ("pets/.DS_Store", "pets/cat/.hidden.png", "pets/cat/Thumbs.db", "pets/notes.txt"):
        (tmp_path / stray).write_bytes(b"?")
    (tmp_path / "pets" / "__MACOSX").mkdir()
    (tmp_path / "pets" / "cat" / "deeper").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "pets" / "cat" / "deeper" / "X.JPEG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task = folder(tmp_path / "pets")
    assert (task.name, task.names) == ("pets", ["cat", "guinea pig", "Ähre 3"])
    assert [len(p) for p in (task.train, task.val, task.test)] == [14, 6, 8]
    assert folder(tmp_path / "pets").fingerprint == task.fingerprint != folder(tmp_path / "pets", seed=2).fingerprint
    assert task.check() == [] and "guinea pig" in task._repr_html_()


def test_a_fingerprint_survives_a_move(tmp_path):
    fill(tmp_path / "a" / "set", {"x": 4, "y": 4})
    shutil.copytree(tmp_path / "a" / "set", tmp_path / "b" / "set")
    assert folder(tmp_path / "a" / "set").fingerprint == folder(tmp_path / "b" / "set").fingerprint


@pytest.mark.parametrize(
    "val,test,sizes", [("val", "test", (8, 4, 6)), ("Validation", None, (8, 4, 4)), (None, "TEST", (8, 0, 6))]
)
def test_a_split_that_is_there_is_kept(tmp_path, val, test, sizes):
    for part, n in (("train", 4), (val, 2), (test, 3)):
        if part:
            fill(tmp_path / part, {"cat": n, "dog": n})
    task = folder(tmp_path)
    assert (len(task.train), len(task.val), len(task.test)) == sizes
    assert all("train" in s for s, _ in task.train)


def test_a_lone_train_folder_is_split(tmp_path):
    fill(tmp_path / "train", {"cat": 10, "dog": 10})
    assert [len(p) for p in (folder(tmp_path).train, folder(tmp_path).val, folder(tmp_path).test)] == [10, 4, 6]


def test_train_may_be_a_class(tmp_path):
    assert folder(fill(tmp_path, {"train": 4, "bus": 4})).names == ["bus", "train"]


def test_broken_images_are_listed_and_left_out(tmp_path):
    fill(tmp_path, {"cat": 6, "dog": 6})
    (tmp_path / "cat" / "00.png").write_bytes(b"")
    (tmp_path / "dog" / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.warns(UserWarning, match="2 of 13 images .*00.png.*photo.heic"):
        task = folder(tmp_path)
    assert [Path(s).name for s, _ in task.skipped] == ["00.png", "photo.heic"]
    assert len(task.train + task.val + task.test) == 11
    assert "2 images could not be read" in task.check()[0]


def empty(root):
    fill(root, {"cat": 2})
    (root / "dog").mkdir()


def all_broken(root):
    for f in fill(root, {"cat": 2, "dog": 2}).rglob("*.png"):
        f.write_bytes(b"?")


def one_class_broken(root):
    for f in (fill(root, {"cat": 2, "dog": 2}) / "dog").glob("*"):
        f.write_bytes(b"?")


@pytest.mark.filterwarnings("ignore:.*left out")
@pytest.mark.parametrize(
    "make,said",
    [
        (lambda p: None, "no class folders"),
        (lambda p: fill(p, {"cat": 3}), r"has 1 class \('cat'\)"),
        (empty, "class 'dog' .* has no image"),
        (all_broken, "none of the 4 images"),
        (one_class_broken, "class 'dog' .* has no image that can be read"),
        (lambda p: fill(p, {"big_cat": 3, "big cat": 3}), "'big cat' occurs twice"),
        (lambda p: fill(p, {"cat": 1, "dog": 3}), "class 'cat' .* has one image"),
        (lambda p: shutil.rmtree(p), "no folder at"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path, make, said):
    root = tmp_path / "set"
    root.mkdir()
    make(root)
    with pytest.raises(BadInput, match=said):
        folder(root)


ROWS = [
    (f"{c}/{i:02}.png", c, "train" if i < 4 else "valid" if i < 5 else "test") for c in ("cat", "dog") for i in range(6)
]


def as_json(rows):
    return json.dumps([dict(path=p, name=n, split=s) for p, n, s in rows])


def as_table(rows, sep=",", head=("Path", "Label", "Split")):
    return "\ufeff" + "\r\n".join(sep.join(r) for r in [head, *rows])


@pytest.mark.parametrize(
    "name,text",
    [
        ("a.csv", as_table(ROWS)),
        ("a.tsv", as_table(ROWS, "\t")),
        ("a.json", as_json(ROWS)),
        ("a.csv", as_table(ROWS, head=("path", "class", "split"))),
    ],
)
def test_lists_in_every_form(tmp_path, name, text):
    fill(tmp_path, {"cat": 6, "dog": 6})
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    task = listing(tmp_path / name)
    assert task.names == ["cat", "dog"]
    assert [len(p) for p in (task.train, task.val, task.test)] == [8, 2, 2]
    assert [s for s, _ in task.train] == [str(tmp_path / p) for p, _, s in ROWS if s == "train"]


def test_numbers_beside_names_give_the_order_of_classes(tmp_path):
    fill(tmp_path, {"cat": 6, "dog": 6})
    (tmp_path / "a.csv").write_text("path,label,name\n" + "\n".join(f"{p},{1 - (n == 'dog')},{n}" for p, n, _ in ROWS))
    assert listing(tmp_path / "a.csv").names == ["dog", "cat"]
    (tmp_path / "a.csv").write_text("path,label\n" + "\n".join(f"{p},{1 - (n == 'dog')}" for p, n, _ in ROWS))
    assert listing(tmp_path / "a.csv", names=["hund", "katze"]).names == ["hund", "katze"]


@pytest.mark.parametrize(
    "name,text,said",
    [
        ("a.csv", "", "has no rows"),
        ("a.csv", "file,name\nx.png,cat", "line 2: no path"),
        ("a.csv", "path,name\nx.png,", "line 2: no class"),
        ("a.csv", "path,name,split\nx.png,cat,holdout", "split 'holdout'"),
        ("a.csv", "path,label\nx.png,0\ny.png,1", "CLIP reads words"),
        ("a.csv", "path,label,name\nx.png,0,cat\ny.png,1,cat", "line 3: 'cat' has label 1 here and 0"),
        ("a.csv", "path,name\nx.png,cat\ny.png,dog", "none of the 2 images"),
        ("a.csv", "path,name\nx.png,cat\ny.png,cat", "has 1 class"),
        ("a.json", "{not json", "not valid JSON"),
        ("a.json", "3", "neither"),
        ("a.json", '{"train": [["x.png", 0]]}', "entry"),
        ("a.json", '["x.png"]', "entry 0"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises((BadInput, BadFile), match=said):
        listing(tmp_path / name)


def test_a_list_that_is_not_there(tmp_path):
    with pytest.raises(BadInput, match="no list at"):
        listing(tmp_path / "a.csv")


# ---- batches --------------------------------------------------------------------------------------------------------


def noise(n, edge=40):
    rng = np.random.default_rng(0)
    return [(Image.fromarray(rng.integers(0, 255, (edge, edge + i % 5, 3), dtype=np.uint8)), i % 3) for i in range(n)]


PIX = noise(23)


def run(bs=5, epoch=0, seed=1, **kw):
    dl = loader(PIX, kw.pop("transform", Augment(16, HALF, HALF)), bs=bs, train=True, seed=seed, **kw)
    dl.set_epoch(epoch)
    xs, ys = zip(*dl, strict=True)
    return torch.cat(xs), torch.cat(ys)


@pytest.mark.parametrize("transform", [None, RandomResizedCrop(16)], ids=["Augment", "torchvision"])
def test_workers_batches_ahead_and_memory_change_nothing(transform):
    t = transform and (lambda im: F.to_tensor(transform(im)))
    t = t or Augment(16, HALF, HALF)
    x, y = run(transform=t, workers=1)
    for kw in (
        dict(workers=4),
        dict(workers=3, ahead=0),
        dict(workers=2, keep=0),
        dict(workers=7, keep=40 * 40 * 3 * 4),
    ):
        for _ in range(2):
            assert all(map(torch.equal, run(transform=t, **kw), (x, y)))


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 30), st.integers(0, 5), st.integers(0, 2**31))
def test_an_epoch_is_an_order_of_its_own(bs, epoch, seed):
    dl = loader(PIX, Still(F.to_tensor), bs=bs, train=True, seed=seed)
    order = dl.order(epoch)
    assert sorted(order) == list(range(23)) and order != dl.order(epoch + 1)
    assert len(dl) == max(1, 23 // bs)
    test = loader(PIX, F.to_tensor, bs=bs)
    assert test.order(epoch) == list(range(23)) and len(test) == -(-23 // bs)


def test_passes_go_on_from_epoch_to_epoch_and_can_go_back():
    dl = loader(PIX, Augment(16, HALF, HALF), bs=5, train=True, seed=3)
    first, second = ([y.tolist() for _, y in dl] for _ in range(2))
    assert dl.epoch == 2 and first != second
    dl.set_epoch(0)
    assert [y.tolist() for _, y in dl] == first


def test_leaving_early_stops_the_work_and_a_broken_image_stops_the_epoch(tmp_path):
    asked = []

    class Scene:
        def image(self):
            asked.append(1)
            return Image.new("RGB", (4, 4))

    for _ in loader([(Scene(), 0)] * 400, F.to_tensor, bs=4, ahead=2, workers=1, keep=0):
        break
    assert len(asked) <= 4 * 4
    (tmp_path / "x.png").write_bytes(b"?")
    with pytest.raises(BadFile, match="x.png"):
        list(loader([*PIX, (tmp_path / "x.png", 0)], Augment(16, HALF, HALF), bs=5))


def test_only_what_fits_is_kept():
    dl = loader(PIX, Augment(16, HALF, HALF), bs=5, keep=40 * 40 * 3 * 3.5)
    list(dl)
    assert 1 <= len(dl._kept) <= 3


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 500), st.integers(1, 500), st.integers(0, 10**6))
def test_a_crop_lies_in_its_image(w, h, seed):
    left, top, right, bottom = Augment(16, HALF, HALF).box(w, h, random.Random(seed))
    assert 0 <= left < right <= w and 0 <= top < bottom <= h


def test_crops_are_spread_as_torchvisions_are():
    ours, theirs, rng = Augment(16, HALF, HALF), RandomResizedCrop(16), random.Random(0)
    torch.manual_seed(0)
    im = Image.new("RGB", (120, 90))
    a = np.array([(b - t, r - l, t, l) for l, t, r, b in (ours.box(120, 90, rng) for _ in range(4000))])
    i, j, h, w = np.array([theirs.get_params(im, theirs.scale, theirs.ratio) for _ in range(4000)]).T
    b = np.stack([h, w, i, j], 1)
    assert np.abs(a.mean(0) - b.mean(0)).max() < 1.5 and np.abs(a.std(0) - b.std(0)).max() < 1.5


def test_a_crop_is_torchvisions_crop():
    aug, im = Augment(24, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), flip=0), PIX[3][0]
    left, top, right, bottom = aug.box(*im.size, random.Random(5))
    theirs = F.resized_crop(im, top, left, bottom - top, right - left, [24, 24], InterpolationMode.BICUBIC)
    theirs = F.normalize(F.to_tensor(theirs), aug.mean, aug.std)
    assert torch.allclose(aug(im, random.Random(5)), theirs, atol=1e-5)


# ---- features kept --------------------------------------------------------------------------------------------------


class Tower:
    "As much of a CLIP as the cache asks for"

    name, pretrained, precision, digest, calls = "tower", None, "fp32", "0" * 16, 0
    test_transform = Still(F.to_tensor)

    def encode_image(self, x):
        self.calls += 1
        return x.mean((2, 3))


def files(root):
    return sorted(root.rglob("*.safetensors"))


def test_features_are_computed_once_and_again_when_anything_changes(tmp_path):
    tower, square = Tower(), [(im.crop((0, 0, 40, 40)), y) for im, y in PIX]
    first = features(tower, square, store=tmp_path)
    assert torch.equal(features(tower, [(s, 0) for s, _ in square], store=tmp_path), first) and tower.calls == 1
    for change in (
        dict(name="other"),
        dict(pretrained="x"),
        dict(precision="fp16"),
        dict(digest="1" * 16),
        dict(test_transform=Still(F.hflip)),
    ):
        other = Tower()
        vars(other).update(change)
        if "test_transform" in change:
            other.test_transform = Still(lambda im: F.to_tensor(im))
        features(other, square, store=tmp_path)
        assert other.calls == 1, change
    assert len(files(tmp_path)) == 6
    with pytest.raises(BadInput, match="no images to encode"):
        features(tower, [], store=tmp_path)


def test_an_edited_picture_is_a_new_picture(tmp_path):
    fill(tmp_path / "set", {"cat": 2})
    tower, two = Tower(), [(str(p), 0) for p in sorted((tmp_path / "set" / "cat").iterdir())]
    before = features(tower, two, store=tmp_path)
    Image.new("RGB", (8, 8), "white").save(two[0][0])
    after = features(tower, two, store=tmp_path)
    assert tower.calls == 2 and not torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])


@pytest.mark.parametrize(
    "damage",
    [lambda b: b"", lambda b: b[:20], lambda b: b[:-5], lambda b: b"x" * len(b), lambda b: b[:-4] + b"\xff" * 4],
)
def test_damaged_features_are_computed_again_with_a_word(tmp_path, damage):
    tower, square = Tower(), [(im.crop((0, 0, 40, 40)), y) for im, y in PIX]
    good = features(tower, square, store=tmp_path)
    (f,) = files(tmp_path)
    f.write_bytes(damage(f.read_bytes()))
    with pytest.warns(UserWarning, match="damaged"):
        assert torch.equal(features(tower, square, store=tmp_path), good)
    assert torch.equal(features(tower, square, store=tmp_path), good) and tower.calls == 2
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [f]
