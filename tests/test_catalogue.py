"""The catalogue: every data set from small archives of its true layout, through the real download, unpacking and checks"""

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from layouts_small import MAKERS, SYNSETS, below, colour, hub_zip, packed, picture, served, tape, unzipped
from PIL import Image
from serve import serving

from mudpt.catalogue import prepare, subset, task, tasks, where, with_entries
from mudpt.classnames import imagenet, words
from mudpt.core import BadFile, BadInput
from mudpt.fetch import NotHere
from mudpt.fewshot import templates
from mudpt.imagenet import layout as imagenet_layout
from mudpt.imagenet import synset_order
from mudpt.layouts import home_of, read_split
from mudpt.pictures import open_image
from mudpt.sets import ENTRIES, OnHub, entry
from mudpt.shots import digest_of

FIXTURE = json.loads((Path(__file__).parent / "fixtures" / "subsets.json").read_text())
QUIET = dict(tell=lambda *_: None, say=lambda s: None, retries=1, pause=0.01)
SPLIT = [k for k in MAKERS if entry(k).split]
OFFICIAL = [k for k in MAKERS if k != "ucf101"]


@pytest.fixture
def site():
    with serving() as s:
        os.environ["MUDPT_MIRROR"] = s.url
        yield s


def agree(t, e, s):
    """A task is the small data set: names, sentence, labels, sizes, and every image shows its class"""
    assert t.name == e.name and t.template == templates[e.name]
    assert t.names == [n.replace("_", " ") for n in s.names]
    for part, items in s.parts.items():
        have = [("/".join(Path(p).parts), y) for p, y in getattr(t, part)]
        assert [y for _, y in have] == [y for _, y in items]
        assert all(h.endswith("/" + p) for (h, _), (p, _) in zip(have, items, strict=True))
    for p, y in t.train[::2] + t.test:
        near = max(abs(a - b) for a, b in zip(open_image(p).getpixel((5, 5)), colour(y % 16), strict=True))
        assert near < 12, (p, y)


# ---- every data set -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", MAKERS)
def test_every_data_set_from_its_first_source(key, site, tmp_path):
    e, s = served(site, key, tmp_path)
    with with_entries(e):
        agree(task(key, root=tmp_path / "data", **QUIET), e, s)
        asked = len(site.log)
        os.environ["MUDPT_OFFLINE"] = "1"
        agree(task(e.name, root=tmp_path / "data", download=False), e, s)
        assert prepare(key, tmp_path / "data") == where(key, tmp_path / "data").images
    assert len(site.log) == asked
    assert where(e, tmp_path / "data").state == "ready"
    stamp = json.loads((tmp_path / "data" / e.folder / "mudpt-ready.json").read_text())
    assert stamp["source"] == e.sources[0].name and stamp["counts"] == list(e.sizes)
    assert not any(p.is_file() for p in (tmp_path / "data" / "archives").rglob("*"))


@pytest.mark.parametrize("key", [k for k in OFFICIAL if k != "stanford_cars"])
def test_every_data_set_from_the_hub_when_its_own_server_is_gone(key, site, tmp_path):
    e, s = served(site, key, tmp_path, hub_only=True)
    said = []
    with with_entries(e):
        agree(task(key, root=tmp_path / "data", **QUIET | dict(say=said.append)), e, s)
    assert (tmp_path / "data" / e.places[0]).is_dir()
    assert any("could not be downloaded" in x or "on the hub" in x for x in said) and said[-1].startswith(
        f"{e.name}: from hub repository zhengli97"
    )


WRAPS = {
    "nothing around it": lambda folder, k: k.removeprefix(f"{folder}/"),
    "another folder around it": lambda folder, k: k.replace(folder, "my copy", 1),
    "two folders around it": lambda folder, k: f"upload/{k}",
    "itself around it": lambda folder, k: f"{folder}/{k}",
    "a Mac's litter beside it": lambda folder, k: k,
}


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize(
    "key", ["ucf101", "stanford_cars", "fgvc_aircraft", "imagenet_a", "imagenet_sketch", "imagenetv2"]
)
def test_whatever_an_archive_of_the_hub_wraps_around_a_data_set(key, wrap, site, tmp_path):
    e, s = served(site, key, tmp_path, hub_only=True)
    files = {WRAPS[wrap](e.folder, k): v for k, v in unzipped(hub_zip(e, s)).items()}
    files |= {f"__MACOSX/{e.folder}/._x": b"?"} if "Mac" in wrap else {}
    source = next(x for x in e.sources if x.name.endswith("prompt_learning_dataset"))
    a = source.steps[0].archive
    site.hub(a.repo, {a.file: packed(files)}, at="/huggingface.co")
    with with_entries(replace(e, sources=(source,))):
        agree(task(key, root=tmp_path / "data", **QUIET), e, s)
        agree(task(key, root=tmp_path / "data", download=False), e, s)


def test_the_cars_from_their_own_server_should_it_come_back(site, tmp_path):
    e, s = served(site, "stanford_cars", tmp_path)
    with with_entries(replace(e, sources=e.sources[::-1])):
        agree(task("cars", root=tmp_path / "data", **QUIET), e, s)
    assert site.given("/ai.stanford.edu/~jkrause/car196/cars_test.tgz")


@pytest.mark.parametrize("key", MAKERS)
@pytest.mark.parametrize("how", ["coop", "torchvision", "root"])
def test_every_data_set_where_people_have_it(key, how, tmp_path):
    e, s = served(FakeSite(), key, tmp_path)
    places = dict(coop=e.places[0], torchvision=e.places[-1], root=e.places[0])
    images = tmp_path / "data" / places[how]
    lay(images, s.images)
    lay(images if key == "stanford_cars" else images.parent, s.beside)
    if e.split:
        (tmp_path / "data" / e.folder).mkdir(exist_ok=True)
        (tmp_path / "data" / e.folder / e.split.file).write_bytes(s.split)
    root = tmp_path / "data" / (e.folder if how == "root" else "")
    before = sorted(tmp_path.rglob("*"))
    with with_entries(e):
        agree(task(key, root=root, download=False), e, s)
    assert sorted(tmp_path.rglob("*")) == before  # what people have is not touched


class FakeSite:
    def publish(self, *a, **k):
        pass

    hub = publish


def lay(folder, files):
    for k, v in files.items():
        (folder / k).parent.mkdir(parents=True, exist_ok=True)
        (folder / k).write_bytes(v)


# ---- bad lines, bad archives, bad splits ------------------------------------------------------------------------------


@pytest.mark.parametrize("key", MAKERS)
def test_a_connection_that_is_cut_is_continued(key, site, tmp_path):
    e, s = served(site, key, tmp_path)
    a = e.sources[0].steps[0].archive
    body = hub_zip(e, s) if isinstance(a, OnHub) and not s.official[:1] or key == "stanford_cars" else s.official[0]
    part = f"/store/{hashlib.sha256(body).hexdigest()}" if isinstance(a, OnHub) else "/" + a.urls[0].split("://")[1]
    big = site.things[part]
    big.cuts = [len(big.body) // 3, len(big.body) // 3]
    with with_entries(e):
        agree(task(key, root=tmp_path / "data", **QUIET | dict(retries=3)), e, s)
    asked = [x.range for x in site.log if x.path == part and x.method == "GET"]
    assert asked == [None, f"bytes={len(big.body) // 3}-", f"bytes={2 * (len(big.body) // 3)}-"]
    assert site.given(part) == len(big.body)


@pytest.mark.parametrize("key", [k for k in MAKERS if not isinstance(entry(k).sources[0].steps[0].archive, OnHub)])
def test_a_wrong_checksum_is_never_unpacked(key, site, tmp_path):
    e, s = served(site, key, tmp_path)
    step = e.sources[0].steps[0]
    bad = replace(step.archive, **{k: "0" * len(v) for k in ("md5", "sha256") if (v := getattr(step.archive, k))})
    e = replace(e, sources=(replace(e.sources[0], steps=(replace(step, archive=bad), *e.sources[0].steps[1:])),))
    with with_entries(e), pytest.raises(NotHere, match="000000000000… was expected"):
        prepare(key, tmp_path / "data", **QUIET)
    assert not (tmp_path / "data" / e.folder).exists()
    assert where(e, tmp_path / "data").state == "absent"


def test_a_wrong_checksum_at_the_first_source_sends_us_to_the_second(site, tmp_path):
    e, s = served(site, "dtd", tmp_path)
    site.things["/" + e.sources[0].steps[0].archive.urls[0].split("://")[1]].body = tape(
        {"dtd/images/x.jpg": picture(9)}
    )
    with with_entries(e):
        agree(task("dtd", root=tmp_path / "data", **QUIET), e, s)


@pytest.mark.parametrize("key", SPLIT)
def test_a_missing_split_file_is_a_sentence(key, site, tmp_path):
    e, s = served(site, key, tmp_path, lost=("split",))
    lay(tmp_path / "data" / e.places[0], s.images)
    with with_entries(e):
        with pytest.raises(
            NotHere, match=f"'{e.split.file}' could not be downloaded(.|\n)*download it by hand from .* and put it at"
        ):
            prepare(key, tmp_path / "data", **QUIET)
        os.environ["MUDPT_OFFLINE"] = "1"
        with pytest.raises(NotHere, match="switched off"):
            prepare(key, tmp_path / "data", **QUIET)
        with pytest.raises(NotHere, match=f"split file is missing: .*'{e.split.file}' from https://raw"):
            prepare(key, tmp_path / "data", download=False)
        lay(tmp_path / "data" / "splits", {e.split.file: s.split})
        agree(task(key, root=tmp_path / "data"), e, s)


@pytest.mark.parametrize("key", [k for k in SPLIT if len(entry(k).sources) > 1 and k != "stanford_cars"])
def test_without_a_split_the_hub_archive_which_has_one_is_taken(key, site, tmp_path):
    e, s = served(site, key, tmp_path, lost=("split",))
    with with_entries(e):
        agree(task(key, root=tmp_path / "data", **QUIET), e, s)


ESCAPES = {
    "up": {"../../escaped.jpg": b"x"},
    "absolute": {"/tmp/escaped.jpg": b"x"},
    "link": {"dtd/out": (b"2", "../../.."), "dtd/out/escaped.jpg": b"x"},
    "hard link": {"dtd/images/hard.jpg": (b"1", "../../secret")},
}


@pytest.mark.parametrize("how", ESCAPES)
@pytest.mark.parametrize("key", [k for k in MAKERS if k in ("dtd", "oxford_pets", "imagenet_a")])
def test_an_archive_that_tries_to_escape_leaves_nothing(key, how, site, tmp_path):
    e, s = served(site, key, tmp_path)
    (tmp_path / "secret").write_text("secret")
    step = e.sources[0].steps[0]
    inside = {"dtd": "dtd/images", "oxford_pets": "images", "imagenet_a": "imagenet-a"}[key]
    evil = tape(below(inside, s.images) | ESCAPES[how], "w" if key == "imagenet_a" else "w:gz")
    site.publish(step.archive.urls[0], evil)
    known = dict(md5=hashlib.md5(evil).hexdigest())
    e = replace(e, sources=(replace(e.sources[0], steps=(replace(step, archive=replace(step.archive, **known)),)),))
    with with_entries(e), pytest.raises(BadFile, match="is refused"):
        prepare(key, tmp_path / "data" / "deep" / "er", **QUIET)
    assert not list(tmp_path.rglob("*escaped*")) and not Path("/tmp/escaped.jpg").exists()
    assert not (tmp_path / "data" / "deep" / "er" / e.folder).exists()


def test_a_zip_of_the_hub_that_tries_to_escape(site, tmp_path):
    e, s = served(site, "ucf101", tmp_path)
    site.hub(
        e.sources[0].steps[0].archive.repo,
        {"ucf101.zip": packed({"ucf101/a.jpg": b"x", "ucf101/../../escaped.jpg": b"x"})},
        at="/huggingface.co",
    )
    with with_entries(e), pytest.raises(BadFile, match="'..'"):
        prepare("ucf101", tmp_path / "data", **QUIET)
    assert not list(tmp_path.rglob("*escaped*"))


# ---- whole or not ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [k for k in MAKERS if entry(k).kind in ("split", "aircraft")])
def test_an_archive_that_lacks_a_file_is_not_taken_for_the_data_set(key, site, tmp_path):
    e, s = served(site, key, tmp_path)
    gone = s.parts["test"][-1][0]
    short = replace_images(s, {k: v for k, v in s.images.items() if k != gone})
    site.hub(
        "zhengli97/prompt_learning_dataset",
        {e.sources[-1].steps[0].archive.file if key != "stanford_cars" else "stanford_cars.zip": hub_zip(e, short)},
        at="/huggingface.co",
    )
    hub_source = next(x for x in e.sources if isinstance(x.steps[0].archive, OnHub))
    e = replace(e, sources=(hub_source,))
    with with_entries(e), pytest.raises(BadFile, match=f"1 files of {e.name} are missing in .*{Path(gone).name}"):
        prepare(key, tmp_path / "data", **QUIET)
    assert not (tmp_path / "data" / e.folder).exists()


def replace_images(s, images):
    s.images = images
    return s


@pytest.mark.parametrize("key", MAKERS)
def test_counts_are_held_against_the_papers(key, site, tmp_path):
    e, s = served(site, key, tmp_path)
    with with_entries(e):
        prepare(key, tmp_path / "data", **QUIET)
    real = entry(key)
    off = replace(e, sizes=(*e.sizes[:3], real.sizes[3]))
    with with_entries(off):
        with pytest.raises(BadFile, match=f"{e.sizes[3]} test images .expected {real.sizes[3]:,}."):
            task(key, root=tmp_path / "data", download=False)
        agree(task(key, root=tmp_path / "data", download=False, check=False), e, s)
    if e.halves:
        with (
            with_entries(replace(e, halves=(e.halves[0] - 1, e.halves[1] + 1))),
            pytest.raises(BadFile, match="base and .* new test images"),
        ):
            task(key, root=tmp_path / "data", download=False)


def test_a_folder_that_is_half_there_is_left_alone(site, tmp_path):
    e, s = served(site, "dtd", tmp_path)
    half = {k: v for k, v in s.images.items() if "banded" in k}
    lay(tmp_path / "data" / "dtd" / "images", half)
    with with_entries(e), pytest.raises(BadFile, match="12 files of DescribableTextures are missing"):
        prepare("dtd", tmp_path / "data", **QUIET)
    assert sorted(p.name for p in (tmp_path / "data/dtd").rglob("*.jpg")) == sorted(Path(k).name for k in half)


def test_a_folder_with_other_things_in_it_does_not_get_in_the_way(site, tmp_path):
    e, s = served(site, "dtd", tmp_path)
    lay(tmp_path / "data" / "dtd", {"notes.txt": b"mine"})
    with with_entries(e):
        agree(task("dtd", root=tmp_path / "data", **QUIET), e, s)
        agree(task("dtd", root=tmp_path / "data", download=False), e, s)
    assert [p.name for p in (tmp_path / "data/dtd").iterdir()] == ["notes.txt"]


def test_archives_brought_on_a_stick_need_no_network_and_stay(site, tmp_path):
    e, s = served(site, "caltech101", tmp_path)
    archives = {"caltech-101.zip": s.official[0]}
    lay(tmp_path / "data" / "archives", archives)
    lay(tmp_path / "data" / "splits", {e.split.file: s.split})
    os.environ["MUDPT_OFFLINE"] = "1"
    with with_entries(e):
        agree(task("caltech101", root=tmp_path / "data", **QUIET), e, s)
    assert not site.log and [p.name for p in (tmp_path / "data/archives").iterdir()] == list(archives)


def test_offline_and_nothing_there_is_a_sentence(site, tmp_path):
    e, s = served(site, "dtd", tmp_path)
    os.environ["MUDPT_OFFLINE"] = "1"
    with with_entries(e), pytest.raises(NotHere, match="network is switched off"):
        prepare("dtd", tmp_path / "data", **QUIET)
    with with_entries(e), pytest.raises(NotHere, match="is not in .*: pass download=True"):
        prepare("dtd", tmp_path / "data", download=False)
    assert not site.log


def test_an_interrupted_unpacking_is_started_again(site, tmp_path, monkeypatch):
    e, s = served(site, "eurosat", tmp_path)
    move = Path.rename

    def ctrl_c(self, to):
        if self.name.endswith(".new") and "eurosat" in Path(to).name:
            raise KeyboardInterrupt
        return move(self, to)

    with with_entries(e):
        monkeypatch.setattr(Path, "rename", ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            prepare("eurosat", tmp_path / "data", **QUIET)
        monkeypatch.undo()
        assert where("eurosat", tmp_path / "data").state == "absent"
        agree(task("eurosat", root=tmp_path / "data", **QUIET), e, s)
    assert (
        len([a for a in site.log if a.path.endswith("EuroSAT.zip") and a.method == "GET"]) == 1
    )  # the archive was still there


@pytest.mark.parametrize("key", [k for k in SPLIT if entry(k).content])
def test_a_split_that_a_program_drew_for_itself_is_refused(key, site, tmp_path):
    e, s = served(site, key, tmp_path)
    own = json.loads(s.split)
    own["train"][0], own["test"][0] = own["test"][0], own["train"][0]
    lay(tmp_path / "data" / e.folder, {e.split.file: json.dumps(own).encode()})
    with with_entries(e):
        with pytest.raises(BadFile, match="is not CoOp's split"):
            prepare(key, tmp_path / "data", **QUIET)
        assert not site.log  # before anything is downloaded
        lay(tmp_path / "data" / e.folder, {e.split.file: json.dumps(json.loads(s.split), indent=3).encode()})
        agree(task(key, root=tmp_path / "data", **QUIET), e, s)  # only the spaces differ


@pytest.mark.parametrize("key", [k for k in SPLIT if not entry(k).content])
def test_a_split_with_other_names_is_refused(key, site, tmp_path):
    e, s = served(site, key, tmp_path)
    lay(tmp_path / "data" / e.folder, {e.split.file: s.split.replace(f'"{s.names[-1]}"'.encode(), b'"something else"')})
    with with_entries(e), pytest.raises(BadFile, match=f"CoOp calls it '{s.names[-1]}'"):
        prepare(key, tmp_path / "data", **QUIET)


# ---- ImageNet -------------------------------------------------------------------------------------------------------


def train_files():
    return {f"{w}/{w}_{i}.JPEG": picture(y, i) for y, w in enumerate(SYNSETS) for i in range(3)}


VAL = [f"ILSVRC2012_val_{i:08}.JPEG" for i in range(1, 9)]
VAL_LABELS = [2, 0, 1, 3, 3, 1, 2, 0]
KINDS = [
    "coop",
    "torchvision",
    "flat with the devkit's folder",
    "flat with its archive",
    "kaggle",
    "tars",
    "other name",
]


def devkit(order):
    np, sio = pytest.importorskip("numpy"), pytest.importorskip("scipy.io")
    import io

    fields = "ILSVRC2012_ID WNID words gloss num_children children wordnet_height num_train_images".split()
    a = np.zeros((len(order), 1), dtype=[(f, object) for f in fields])
    for i, w in enumerate(order):
        a[i, 0] = (i + 1, w, "kit fox, Vulpes", "a small grey fox", 0, np.zeros(0), 0, 1300)
    sio.savemat(b := io.BytesIO(), {"synsets": a}, do_compression=True)
    return b.getvalue()


def given(base, kind):
    order = [SYNSETS[i] for i in (3, 1, 0, 2)]
    truth = "".join(f"{order.index(SYNSETS[y]) + 1}\n" for y in VAL_LABELS).encode()
    kit = {
        "ILSVRC2012_devkit_t12/data/meta.mat": devkit([*order, "n00001740"]),
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": truth,
    }
    flat = {f: picture(y) for f, y in zip(VAL, VAL_LABELS, strict=True)}
    sorted_val = {f"{SYNSETS[y]}/{f}": picture(y) for f, y in zip(VAL, VAL_LABELS, strict=True)}
    below_images = dict(coop="images", kaggle="ILSVRC/Data/CLS-LOC").get(kind, ".")
    if kind != "tars":
        lay(base / below_images / "train", train_files())
        lay(base / below_images / "val", flat if "flat" in kind or kind == "kaggle" else sorted_val)
    if kind == "kaggle":
        text = "ImageId,PredictionString\n" + "".join(
            f"{f[:-5]},{SYNSETS[y]} 1 2 3 4 {SYNSETS[y]} 5 6 7 8\n" for f, y in zip(VAL, VAL_LABELS, strict=True)
        )
        lay(base, {"LOC_val_solution.csv": text.encode()})
    if "folder" in kind:
        lay(base, kit)
    if kind == "tars":
        inner = {
            f"{w}.tar": tape({k.split("/")[1]: v for k, v in train_files().items() if k.startswith(w)}, "w")
            for w in SYNSETS
        }
        lay(base, {"ILSVRC2012_img_train.tar": tape(inner, "w"), "ILSVRC2012_img_val.tar": tape(flat, "w")})
    if "archive" in kind or kind == "tars":
        lay(base, {"ILSVRC2012_devkit_t12.tar.gz": tape(kit)})


@pytest.fixture
def four_classes(monkeypatch):
    few = {w: imagenet()[w] for w in SYNSETS}
    monkeypatch.setattr("mudpt.imagenet.official", lambda: few)
    return replace(entry("imagenet"), sizes=(4, 12, 0, 8), halves=(4, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_imagenet_as_people_have_it(kind, four_classes, tmp_path):
    base = tmp_path / ("ILSVRC2012" if kind == "other name" else "imagenet")
    given(base, kind)
    with with_entries(four_classes):
        t = task("ImageNet", root=tmp_path, download=False, say=lambda s: None)
        assert task("imagenet", root=base, download=False).fingerprint == t.fingerprint
        few = task("imagenet", shots=2, seed=3, root=tmp_path)
    assert t.names == ["tench", "goldfish", "missile", "lemon"] and not t.val
    assert {Path(p).name: y for p, y in t.test} == dict(zip(VAL, VAL_LABELS, strict=True))
    assert [y for _, y in t.train] == [y for y in range(4) for _ in range(3)]
    assert len(few.train) == 8 and not few.val and len(few.test) == 8
    for p, y in t.train + t.test:
        assert max(abs(a - b) for a, b in zip(open_image(p).getpixel((5, 5)), colour(y), strict=True)) < 12


def test_imagenet_for_judging_needs_no_training_images(four_classes, tmp_path):
    given(tmp_path / "imagenet", "torchvision")
    shutil.rmtree(tmp_path / "imagenet" / "train")
    with with_entries(four_classes):
        with pytest.raises(BadFile, match="0 training images .expected 12."):
            task("imagenet", root=tmp_path)
        assert len(task("imagenet", root=tmp_path, check=False).test) == 8


def test_what_to_do_about_imagenet(site, tmp_path):
    for download in True, False:
        with pytest.raises(NotHere, match="image-net.org(.|\n)*train/ and val/(.|\n)*ILSVRC2012_img_train.tar"):
            task("imagenet", root=tmp_path, download=download)
    assert not site.log
    assert where("imagenet", tmp_path).state == "absent"


def test_flat_validation_images_without_a_devkit(four_classes, tmp_path):
    given(tmp_path / "imagenet", "flat with its archive")
    (tmp_path / "imagenet" / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    with (
        with_entries(four_classes),
        pytest.raises(BadFile, match="nothing says what they show: put ILSVRC2012_devkit_t12.tar.gz"),
    ):
        task("imagenet", root=tmp_path)


def test_a_matlab_file_is_read_with_or_without_compression():
    assert synset_order(devkit(SYNSETS)) == SYNSETS


def test_imagenets_names_are_a_thousand():
    names = imagenet()
    assert len(names) == len(set(names.values())) == 1000 and list(names) == sorted(names)
    assert (names["n01440764"], names["n02012849"], names["n03126707"]) == ("tench", "crane bird", "construction crane")
    assert len(imagenet_layout(Path(__file__).parent).names) == 0


# ---- names, entries, tables -----------------------------------------------------------------------------------------


def test_fifteen_data_sets_and_the_papers_counts():
    assert set(ENTRIES) == {*MAKERS, "imagenet"} and len(ENTRIES) == 15
    paper = dict(
        eurosat=(4200, 3900), dtd=(864, 828), ucf101=(1934, 1849), oxford_pets=(1881, 1788), caltech101=(1549, 916), oxford_flowers=(1053, 1410),
        fgvc_aircraft=(1666, 1667), stanford_cars=(4002, 4039), food101=(15300, 15000), sun397=(9950, 9900), imagenet=(25000, 25000),
    )  # fmt: skip
    assert {k: e.halves for k, e in ENTRIES.items() if e.halves} == paper
    assert all(sum(e.halves) == e.sizes[3] for e in ENTRIES.values() if e.halves)
    assert {e.name for e in ENTRIES.values()} == set(templates)


def test_every_download_can_be_verified_and_nothing_is_on_a_drive():
    for e in ENTRIES.values():
        for s in e.sources:
            for a in (x.archive for x in s.steps):
                assert isinstance(a, OnHub) or a.md5 or a.sha256, e
                assert "drive.google" not in str(a)
        assert e.terms and e.cite and (e.sources or e.key == "imagenet")
        assert not e.split or (e.split.sha256 and e.content) or e.key in ("food101", "sun397")


@pytest.mark.parametrize(
    "said,key",
    [("DTD", "dtd"), ("DescribableTextures", "dtd"), ("OxfordPets", "oxford_pets"), ("Flowers102", "oxford_flowers"), ("OXFORD-flowers", "oxford_flowers"),
     ("caltech-101", "caltech101"), ("food-101", "food101"), ("ImageNet-V2", "imagenetv2"), ("imagenet_adversarial", "imagenet_a"), ("ImageNetR", "imagenet_r"),
     ("Stanford Cars", "stanford_cars"), ("FGVCAircraft", "fgvc_aircraft"), ("UCF101", "ucf101"), ("SUN397", "sun397"), ("EuroSAT", "eurosat"), ("ImageNet", "imagenet")],
)  # fmt: skip
def test_names_are_tolerated(said, key):
    assert entry(said).key == key


def test_the_table_of_tasks(tmp_path):
    (tmp_path / "dtd" / "images").mkdir(parents=True)
    every = tasks(tmp_path)
    table = every.table()
    assert list(table.index) == list(ENTRIES) and table.loc["dtd", "here"] and not table.loc["sun397", "here"]
    assert table.loc["imagenet", "source"] == "by hand" and "39" in every._repr_html_() and "ucf101" in repr(every)


def test_data_sets_for_judging_have_no_shots():
    with pytest.raises(BadInput, match="for judging only"):
        task("imagenet-sketch", shots=4)


def test_names_are_cleaned_as_the_benchmark_cleans_them():
    said = [("Caltech101", "Leopards", "leopard"), ("EuroSAT", "PermanentCrop", "Permanent Crop Land"), ("StanfordCars", "Acura TL Type-S 2008", "2008 Acura TL Type-S"),
            ("SUN397", "/o/outdoor_hotel_pool/outdoor", "outdoor outdoor_hotel_pool"), ("SUN397", "z/zen_garden", "zen_garden"), ("UCF101", "YoYo", "Yo_Yo"),
            ("OxfordPets", "Egyptian_Mau", "egyptian_mau"), ("Food101", "beef_carpaccio", "beef_carpaccio")]  # fmt: skip
    for d, raw, want in said:
        assert words(d, raw) == want


# ---- the official subsets -------------------------------------------------------------------------------------------


def lists(name):
    form = "{}_{:04}.jpg" if name == "DescribableTextures" else "{}_{}.jpg"
    return {
        part: [
            [form.format(stem, int(i)), y, stem]
            for y, (stem, *numbers) in enumerate(FIXTURE["sets"][name])
            for i in numbers[k].split()
        ]
        for k, part in enumerate(("train", "val"))
    }


@pytest.mark.parametrize("name", FIXTURE["sets"])
def test_the_published_digests_come_out(name, tmp_path):
    rows, every = lists(name), FIXTURE["digests"][name]
    (tmp_path / "split.json").write_text(json.dumps(rows))
    assert len(every) == 15 and [len(rows["train"]), len(rows["val"])] == list(
        next(e for e in ENTRIES.values() if e.name == name).sizes[1:3]
    )
    parts = read_split(tmp_path / "split.json")
    for which, digests in every.items():
        shots, seed = map(int, which.split("/"))
        few = subset(parts, shots, seed)
        assert [digest_of(few["train"]), digest_of(few["val"])] == digests, which
    assert [digest_of(r) for r in subset(parts, 16, 4).values()] not in every.values()
    assert subset(tmp_path / "split.json", shots, seed) == few


def test_halves_of_a_subset_are_cut_after_it_was_drawn(tmp_path):
    (tmp_path / "split.json").write_text(json.dumps(lists("OxfordPets")))
    few, base, new = (subset(tmp_path / "split.json", 4, 2, h) for h in (None, "base", "new"))
    for part in "train", "val":
        assert base[part] == [r for r in few[part] if r[1] < 19]
        assert new[part] == [[p, y - 19, n] for p, y, n in few[part] if y >= 19]


def test_a_task_draws_what_subset_draws(site, tmp_path):
    e, s = served(site, "oxford_flowers", tmp_path)
    with with_entries(e):
        few = task("flowers102", shots=2, seed=2, root=tmp_path / "data", **QUIET)
    rows = subset(tmp_path / "data" / "oxford_flowers" / e.split.file, 2, 2)
    assert [(Path(p).name, y) for p, y in few.train + few.val] == [(p, y) for p, y, _ in rows["train"] + rows["val"]]
    assert digest_of(few.train) == digest_of(rows["train"])
    assert [y for _, y in few.train] == [3, 3, 1, 1, 0, 0, 2, 2]  # in order of appearance, not of the labels


@pytest.mark.parametrize(
    "text,said",
    [("nonsense", "cannot be read"), ("[]", "is no split file"), ('{"train": []}', "is empty"), ('{"train": [["a.jpg", 0]]}', "entry 0 of train"),
     ('{"train": [["a.jpg", 0, "x"], ["b.jpg", 2, "y"]]}', "none has label 1"), ('{"train": [["a.jpg", 0, "x"], ["b.jpg", 0, "y"]]}', "label 0 is 'y'"),
     ('{"train": [["/a.jpg", 0, "x"]]}', "leads out"), ('{"train": [["C:/a.jpg", 0, "x"]]}', "leads out"), ('{"train": [["..\\\\a.jpg", 0, "x"]]}', "leads out")],
)  # fmt: skip
def test_splits_that_cannot_be_used(text, said, tmp_path):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises((BadFile, BadInput), match=said):
        subset(tmp_path / "s.json", 1)


def test_images_are_found_near_by_and_not_far_away(tmp_path):
    lay(tmp_path / "a" / "b" / "c", {"x/1.jpg": b""})
    assert home_of(tmp_path, ["x/1.jpg"]) == tmp_path / "a" / "b" / "c"
    assert home_of(tmp_path, ["y/1.jpg"]) is None
    lay(tmp_path / "1" / "2" / "3" / "4" / "5", {"y/1.jpg": b""})
    assert home_of(tmp_path, ["y/1.jpg"]) is None
    with pytest.raises(BadInput, match="no split file"):
        read_split(tmp_path / "none.json")


def test_pictures_of_the_fixture_are_what_they_say():
    import io

    near = Image.open(io.BytesIO(picture(5))).getpixel((5, 5))
    assert max(abs(a - b) for a, b in zip(near, colour(5), strict=True)) < 12 and colour(5) != colour(6)
