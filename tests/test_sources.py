"""Data sets of other libraries become tasks: the real libraries, in every form they give, and what is wrong with them."""

import http.server
import io
import json
import pickle
import subprocess
import sys
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import datasets as tvd

from mudpt.batches import Still, loader
from mudpt.cache import key
from mudpt.core import BadFile, BadInput, Missing
from mudpt.fewshot import Task
from mudpt.pictures import open_image, source_key
from mudpt.rows import Cells, Row, numbered, opened, parts_of
from mudpt.shards import Shards, braces, from_shards
from mudpt.sources import as_task, from_torchvision
from mudpt.tables import from_frame, from_hf

NAMES = ["cat", "dog", "guinea pig"]
HF = datasets.Features(dict(image=datasets.Image(), label=datasets.ClassLabel(names=NAMES)))


def picture(i, size=(20, 16)):
    rng = np.random.default_rng(i)
    return Image.fromarray(rng.integers(0, 255, (*size[::-1], 3), dtype=np.uint8))


def encoded(i, form="png"):
    picture(i).save(b := io.BytesIO(), form)
    return b.getvalue()


PAIRS = [(i, i % 3) for i in range(18)]


def table(pairs=PAIRS, features=HF):
    return datasets.Dataset.from_dict(
        dict(image=[dict(bytes=encoded(i), path=None) for i, _ in pairs], label=[y for _, y in pairs]), features
    )


def same(task, part, pairs):
    "The items of a part are these pictures with these labels"
    items = getattr(task, part)
    assert [y for _, y in items] == [y for _, y in pairs]
    for (s, _), (i, _) in zip(items, pairs, strict=True):
        assert open_image(s).tobytes() == picture(i).tobytes()


def fill(root, pairs=PAIRS):
    for i, y in pairs:
        (root / NAMES[y]).mkdir(parents=True, exist_ok=True)
        picture(i).save(root / NAMES[y] / f"{i:02}.png")
    return root


# ---- cells and labels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cell",
    [
        encoded(1),
        bytearray(encoded(1)),
        memoryview(encoded(1)),
        picture(1),
        dict(bytes=encoded(1), path="elsewhere.png"),
        np.asarray(picture(1)),
        torch.from_numpy(np.array(picture(1))).permute(2, 0, 1),
        np.asarray(picture(1)).tolist(),
    ],
    ids=lambda c: type(c).__name__,
)
def test_a_cell_may_hold_a_picture_in_many_ways(cell):
    assert opened(cell).tobytes() == picture(1).tobytes()


@pytest.mark.parametrize("shape", [(8, 6), (8, 6, 1), (1, 8, 6)])
def test_grey_arrays(shape):
    assert opened(np.full(shape, 7, np.uint8)).getpixel((0, 0)) == (7, 7, 7)


@pytest.mark.parametrize(
    "cell,said",
    [
        (None, "row 5 holds no picture"),
        (b"", "'row 5' is empty"),
        (b"not a picture", "'row 5' cannot be read"),
        (encoded(1)[:90], "'row 5' cannot be read"),
        (np.zeros((4, 4, 3)), "row 5 is an array float64"),
        (np.zeros((4, 4, 7), np.uint8), r"row 5 is an array uint8 \(4, 4, 7\)"),
        ("no/such.png", "no image at"),
        (3.5, "cannot open a float"),
    ],
)
def test_cells_that_hold_none(cell, said):
    with pytest.raises((BadFile, BadInput), match=said):
        opened(cell, "row 5")


@pytest.mark.parametrize(
    "labels,names,said",
    [
        ({None: [0, 1]}, None, "CLIP reads words"),
        ({"train": [0], "test": [None]}, NAMES, "image 0 of x, test has no label"),
        ({None: [0, float("nan")]}, NAMES, "image 1 of x has no label"),
        ({None: [0, "cat"]}, NAMES, "partly numbers and partly words"),
        ({None: ["cat", "cow"]}, NAMES, "class 'cow' of x is not among"),
        ({None: [0, 1.5]}, NAMES, "neither a number nor a word"),
    ],
)
def test_labels_that_cannot_be_used(labels, names, said):
    with pytest.raises(BadInput, match=said):
        numbered(labels, names, "x")


def test_numbers_of_every_library():
    got, _ = numbered({None: [np.int64(1), torch.tensor(2), True, 2.0, np.float32(1)]}, NAMES, "x")
    assert got == {None: [1, 2, 1, 2, 1]} and all(isinstance(y, int) for y in got[None])


def test_parts_under_other_names():
    assert parts_of(dict(Training=1, valid=2, TEST=3), None, "x") == dict(train=1, val=2, test=3)
    assert parts_of(dict(a=1, b=2), dict(train="b", test="a"), "x") == dict(train=2, test=1)
    for splits, which in (
        (dict(val=1, validation=2), None),
        (dict(a=1), dict(train="b")),
        (dict(a=1), dict(learn="a")),
    ):
        with pytest.raises(BadInput):
            parts_of(splits, which, "x")


def test_a_key_is_the_content():
    a, b = Cells([encoded(i) for i in range(5)]), Cells([encoded(i) for i in range(5)])
    assert [source_key(Row(a, i)) for i in range(5)] == [source_key(Row(b, i)) for i in range(5)]
    assert len({source_key(Row(a, i)) for i in range(5)}) == 5
    c = Cells([encoded(i) for i in range(4)] + [encoded(9)])
    assert source_key(Row(c, 0)) != source_key(Row(a, 0))
    assert source_key(Row(c, 0), exact=True) == source_key(Row(a, 0), exact=True)
    long = [encoded(i % 7) for i in range(300)]
    assert Cells(long).sign() != Cells([*long[:150], long[150] + b"\0", *long[151:]]).sign()


# ---- Hugging Face ---------------------------------------------------------------------------------------------------


def test_a_dict_of_tables_keeps_its_split():
    ds = datasets.DatasetDict(train=table(PAIRS[:9]), validation=table(PAIRS[9:12]), test=table(PAIRS[12:]))
    task = from_hf(ds, name="pets", template="a {} at home.")
    assert (task.name, task.names, task.template) == ("pets", NAMES, "a {} at home.")
    for part, pairs in (("train", PAIRS[:9]), ("val", PAIRS[9:12]), ("test", PAIRS[12:])):
        same(task, part, pairs)


def test_one_table_is_split_class_by_class():
    task = from_hf(table())
    assert [len(p) for p in (task.train, task.val, task.test)] == [9, 3, 6]
    assert from_hf(table(), seed=2).fingerprint != task.fingerprint == from_hf(table()).fingerprint
    assert len(from_hf(table(), val=0, test=0).train) == 18


def test_without_a_test_part_the_validation_images_are_tested_on():
    same(from_hf(dict(train=table(PAIRS[:9]), validation=table(PAIRS[9:]))), "test", PAIRS[9:])


@pytest.mark.parametrize("how", ["disk", "parquet", "files", "shuffled", "formatted", "pil"])
def test_tables_in_every_state(tmp_path, how):
    ds, pairs = table(), PAIRS
    if how == "disk":
        ds.save_to_disk(tmp_path / "set")
        ds = datasets.load_from_disk(tmp_path / "set")
    elif how == "parquet":
        ds.to_parquet(tmp_path / "x.parquet")
        ds = datasets.Dataset.from_parquet(str(tmp_path / "x.parquet"), cache_dir=str(tmp_path / "cache"))
    elif how == "files":
        fill(tmp_path)
        ds = datasets.load_dataset(
            "imagefolder", data_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"), split="train"
        )
        pairs = sorted(PAIRS, key=lambda p: (p[1], p[0]))
    elif how == "shuffled":
        order = np.random.default_rng(0).permutation(18).tolist()
        ds, pairs = ds.select(order), [PAIRS[i] for i in order]
    elif how == "formatted":
        ds = ds.with_transform(lambda b: 1 / 0)
    elif how == "pil":
        ds = datasets.Dataset.from_dict(dict(image=[picture(i) for i, _ in PAIRS], label=[y for _, y in PAIRS]), HF)
    task = from_hf(ds, val=0, test=0)
    same(task, "train", pairs)
    assert task.fingerprint == from_hf(ds, val=0, test=0).fingerprint


def test_the_same_content_is_the_same_table_wherever_it_lies(tmp_path):
    table().save_to_disk(tmp_path / "set")
    table().to_parquet(tmp_path / "x.parquet")
    there = datasets.Dataset.from_parquet(str(tmp_path / "x.parquet"), cache_dir=str(tmp_path / "c"))
    keys = {from_hf(d).fingerprint for d in (table(), datasets.load_from_disk(tmp_path / "set"), there)}
    code = "import sys, datasets; from mudpt.tables import from_hf; print(from_hf(datasets.load_from_disk(sys.argv[1])).fingerprint)"
    out = subprocess.run([sys.executable, "-c", code, tmp_path / "set"], capture_output=True, text=True, check=True)
    assert keys == {out.stdout.strip()}
    assert from_hf(table([(99, 0), *PAIRS[1:]])).fingerprint not in keys


@pytest.mark.parametrize(
    "column,feature,cells",
    [
        ("photo", datasets.Value("binary"), [encoded(i) for i, _ in PAIRS]),
        ("file", datasets.Value("string"), None),
        ("image", dict(bytes=datasets.Value("binary"), path=datasets.Value("string")), [dict(bytes=encoded(i), path="x") for i, _ in PAIRS]),
        ("image", datasets.Array3D((16, 20, 3), "uint8"), [np.asarray(picture(i)) for i, _ in PAIRS]),
    ],
    ids=["bytes", "paths", "struct", "array"],
)  # fmt: skip
def test_columns_without_the_feature_of_an_image(tmp_path, column, feature, cells):
    cells = cells or [str(fill(tmp_path) / NAMES[y] / f"{i:02}.png") for i, y in PAIRS]
    ds = datasets.Dataset.from_dict(
        {column: cells, "species": [NAMES[y] for _, y in PAIRS]},
        datasets.Features({column: feature, "species": datasets.Value("string")}),
    )
    with pytest.raises(BadInput, match="label"):
        from_hf(ds)
    task = from_hf(ds, label="species", val=0, test=0)
    assert task.names == NAMES
    same(task, "train", PAIRS)
    pickle.loads(pickle.dumps(task)).train[0][0] if column == "file" else pickle.loads(pickle.dumps(task)).train[0][
        0
    ].image()


def test_several_columns_are_asked_about():
    two = (
        table()
        .add_column("coarse", [y > 0 for _, y in PAIRS])
        .cast_column("coarse", datasets.ClassLabel(names=["a", "b"]))
    )
    with pytest.raises(BadInput, match="several label columns.*label.*coarse.*pass label="):
        from_hf(two)
    assert from_hf(two, label="coarse").names == ["a", "b"]
    with pytest.raises(BadInput, match="no column 'colour'"):
        from_hf(two, label="colour")
    with pytest.raises(BadInput, match="no image column"):
        from_hf(table().remove_columns("image"))


def test_names_given_and_names_owned():
    renamed = from_hf(table(), names=["Katze", "Hund", "Meerschweinchen"])
    assert renamed.names[2] == "Meerschweinchen"
    with pytest.raises(BadInput, match="has 3 classes, and 2 names"):
        from_hf(table(), names=["a", "b"])
    plain = table(features=datasets.Features(dict(image=datasets.Image(), label=datasets.Value("int64"))))
    with pytest.raises(BadInput, match="CLIP reads words"):
        from_hf(plain)
    assert from_hf(plain, names=NAMES).names == NAMES
    other = datasets.Features(dict(image=datasets.Image(), label=datasets.ClassLabel(names=NAMES[::-1])))
    with pytest.raises(BadInput, match="number their classes differently"):
        from_hf(dict(train=table(), test=table(features=other)))


def test_streams():
    stream = table().to_iterable_dataset()
    with pytest.raises(BadInput, match="is a stream"):
        from_hf(stream)
    same(from_hf(stream, take=12, val=0, test=0), "train", PAIRS[:12])
    both = datasets.IterableDatasetDict(train=stream, test=table(PAIRS[:3]).to_iterable_dataset())
    assert len(from_hf(both, take=99).test) == 3
    blind = datasets.IterableDataset.from_generator(
        lambda: ({"image": picture(i), "label": NAMES[y]} for i, y in PAIRS)
    )
    same(from_hf(blind, take=18, val=0, test=0), "train", PAIRS)


def test_unreadable_rows_are_named_and_left_out():
    ds = datasets.Dataset.from_dict(
        dict(image=[dict(bytes=b"?", path=None), *table()["image"]], label=[0, *table()["label"]]), HF
    )
    task = from_hf(ds, val=0, test=0, verify=True)
    assert len(task.train) == 18 and "train[0]" in str(task.skipped[0][0]) and "cannot be read" in task.skipped[0][1]


def test_threads_and_loader():
    task = from_hf(table([(i, i % 3) for i in range(200)]), val=0, test=0)
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda it: open_image(it[0]).tobytes(), task.train * 3))
    assert got == [picture(i).tobytes() for i in range(200)] * 3
    tf = Still(lambda im: torch.from_numpy(np.array(im)).permute(2, 0, 1))
    a, b = (torch.cat([x for x, _ in loader(task.train, tf, bs=7, workers=w, keep=0)]) for w in (1, 5))
    assert torch.equal(a, b)


def test_without_the_library_it_says_what_to_install(monkeypatch):
    ds = table()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(Missing, match="pip install"):
        from_hf(ds)


# ---- torchvision ----------------------------------------------------------------------------------------------------


def folder_pair(tmp_path):
    fill(tmp_path / "train", PAIRS[:12])
    fill(tmp_path / "test", PAIRS[12:])
    return tvd.ImageFolder(tmp_path / "train", transform=lambda im: 1 / 0), tvd.ImageFolder(tmp_path / "test")


def test_image_folders_give_paths(tmp_path):
    task = from_torchvision(*folder_pair(tmp_path), name="pets")
    assert all(isinstance(s, str) for s, _ in task.train)
    same(task, "train", sorted(PAIRS[:12], key=lambda p: (p[1], p[0])))
    assert len(task.test) == 6 and task.fingerprint == as_task(folder_pair(tmp_path), name="pets").fingerprint


def test_subsets_of_subsets(tmp_path):
    train, _ = folder_pair(tmp_path)
    cut = torch.utils.data.Subset(torch.utils.data.Subset(train, [5, 4, 3, 2]), [3, 0])
    assert [s for s, _ in from_torchvision(cut, val=None, shares=(0, 0)).train] == [train.samples[i][0] for i in (2, 5)]


def named(kind, **attributes):
    ds = kind.__new__(kind)
    ds.__dict__.update(attributes)
    return ds


@pytest.mark.parametrize(
    "kind", ["DTD", "Food101", "FGVCAircraft", "Flowers102", "OxfordIIITPet", "SUN397", "StanfordCars", "Country211"]
)
def test_torchvisions_own_sets_by_the_attributes_they_have(tmp_path, kind):
    fill(tmp_path)
    files = [tmp_path / NAMES[y] / f"{i:02}.png" for i, y in PAIRS]
    labels = [y for _, y in PAIRS]
    own = dict(transform=None, target_transform=None, transforms=None, classes=NAMES)
    if kind in ("StanfordCars", "Country211"):
        own |= dict(_samples=list(zip(map(str, files), labels)), samples=list(zip(map(str, files), labels)))
    elif kind == "OxfordIIITPet":
        own |= dict(_images=files, _labels=labels, _target_types=["category"])
    else:
        own |= dict(_image_files=files, _labels=labels)
    task = from_torchvision(named(getattr(tvd, kind), **own), shares=(0, 0))
    same(task, "train", PAIRS)
    assert task.names == NAMES and task.name == kind and isinstance(task.train[0][0], str)


@pytest.mark.parametrize("kind", ["CIFAR10", "MNIST", "SVHN", "STL10"])
def test_torchvisions_sets_of_arrays(kind):
    hwc = np.stack([np.asarray(picture(i, (16, 16))) for i, _ in PAIRS])
    labels = [y for _, y in PAIRS]
    own = dict(transform=lambda im: 1 / 0, target_transform=lambda y: 1 / 0)
    own |= dict(
        CIFAR10=dict(data=hwc, targets=labels, classes=NAMES),
        MNIST=dict(data=torch.from_numpy(hwc[..., 0].copy()), targets=torch.tensor(labels)),
        SVHN=dict(data=hwc.transpose(0, 3, 1, 2), labels=np.array(labels)),
        STL10=dict(data=hwc.transpose(0, 3, 1, 2), labels=np.array(labels), classes=NAMES),
    )[kind]
    task = from_torchvision(named(getattr(tvd, kind), **own), names=NAMES, shares=(0, 0))
    want = hwc[..., :1].repeat(3, 3) if kind == "MNIST" else hwc
    assert [y for _, y in task.train] == labels
    for (s, _), a in zip(task.train, want, strict=True):
        assert np.array_equal(open_image(s), a)
    assert task.fingerprint == pickle.loads(pickle.dumps(from_torchvision(named(getattr(tvd, kind), **(own | dict(transform=None, target_transform=None))), names=NAMES, shares=(0, 0)))).fingerprint  # fmt: skip


class Pairs:
    "A data set of one's own, as torch asks for it"

    def __init__(self, pairs, give=picture):
        self.pairs, self.give = pairs, give

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, i):
        return self.give(self.pairs[i][0]), self.pairs[i][1]


def test_a_data_set_of_ones_own():
    same(from_torchvision(Pairs(PAIRS[:9]), Pairs(PAIRS[9:]), names=NAMES), "test", PAIRS[9:])
    same(as_task(Pairs(PAIRS), names=NAMES, shares=(0, 0)), "train", PAIRS)
    words = [(i, NAMES[y]) for i, y in PAIRS]
    assert as_task(Pairs(words)).names == NAMES


@pytest.mark.parametrize(
    "make,said",
    [
        (lambda: from_torchvision(Pairs(PAIRS)), "CLIP reads words"),
        (lambda: from_torchvision(Pairs(PAIRS, str), names=NAMES), "gives a str where a picture"),
        (lambda: from_torchvision(Pairs([]), names=NAMES), "has no images"),
        (lambda: from_torchvision(Pairs(PAIRS), names=["a", "b"]), "labels go from 0 to 1"),
        (lambda: from_torchvision(3), "cannot make a task from a int"),
        (lambda: as_task([("a.png", 0)]), "class names"),
        (lambda: as_task("no/such/thing"), "no/such/thing"),
    ],
)
def test_what_cannot_become_a_task(make, said):
    with pytest.raises(BadInput, match=said):
        make()


def test_parts_with_other_classes(tmp_path):
    fill(tmp_path / "a")
    fill(tmp_path / "b", [p for p in PAIRS if p[1]])
    with pytest.raises(BadInput, match="different classes"):
        from_torchvision(tvd.ImageFolder(tmp_path / "a"), tvd.ImageFolder(tmp_path / "b"))


# ---- frames ---------------------------------------------------------------------------------------------------------


def frame(**more):
    return pd.DataFrame(
        dict(path=[f"{NAMES[y]}/{i:02}.png" for i, y in PAIRS], name=[NAMES[y] for _, y in PAIRS], **more)
    )


def test_frames_are_lists(tmp_path):
    fill(tmp_path)
    split = ["train"] * 9 + ["valid"] * 3 + ["Test"] * 6
    task = from_frame(frame(split=split), tmp_path, name="pets")
    for part, pairs in (("train", PAIRS[:9]), ("val", PAIRS[9:12]), ("test", PAIRS[12:])):
        same(task, part, pairs)
    frame(split=split).to_csv(tmp_path / "pets.csv", index=False)
    assert as_task(tmp_path / "pets.csv").fingerprint == task.fingerprint
    parts = as_task(dict(train=frame()[:9], val=frame()[9:12], test=frame()[12:]), root=tmp_path)
    assert parts.fingerprint == task.fingerprint


@pytest.mark.parametrize(
    "cell",
    [lambda i: encoded(i), lambda i: dict(bytes=encoded(i), path=None), picture, lambda i: np.asarray(picture(i))],
)
def test_frames_with_pictures_in_them(cell):
    df = pd.DataFrame(
        dict(image=[cell(i) for i, _ in PAIRS], label=[np.int64(y) for _, y in PAIRS]), index=range(50, 68)
    )
    same(from_frame(df, names=NAMES, val=0, test=0), "train", PAIRS)


def test_categories_have_an_order(tmp_path):
    fill(tmp_path)
    df = frame().drop(columns="name").assign(label=pd.Categorical([NAMES[y] for _, y in PAIRS], NAMES[::-1]))
    assert from_frame(df, tmp_path).names == NAMES[::-1]


@pytest.mark.parametrize(
    "change,said",
    [
        (lambda d: d[:0], "no rows"),
        (lambda d: d.rename(columns={"path": "where"}), "none is the path"),
        (lambda d: d.assign(PATH=d.path), "two are called path"),
        (lambda d: d.assign(split="holdout"), "row 0: split 'holdout'"),
        (lambda d: d.assign(name=[None, *d.name[1:]]), "row 0: no class"),
        (lambda d: d.assign(path=[*d.path[:-1], float("nan")]), "row 17: no path"),
        (lambda d: d.assign(name="cat"), "has 1 class"),
        (lambda d: d, "none of the 18 images"),
    ],
)
def test_frames_that_cannot_be_used(change, said):
    with pytest.raises(BadInput, match=said):
        from_frame(change(frame()), "nowhere")


# ---- shards ---------------------------------------------------------------------------------------------------------


def written(tmp_path, parts=None, kinds=("jpg", "cls"), **more):
    "Shards by the real writer"
    for name, pairs in (parts or {"pets-000": PAIRS[:10], "pets-001": PAIRS[10:]}).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        with webdataset.TarWriter(str(tmp_path / f"{name}.tar")) as w:
            for i, y in pairs:
                said = dict(cls=y, json=dict(label=y, name=NAMES[y], id=i), txt=NAMES[y])
                w.write(
                    {"__key__": f"{i:05}", **{k: encoded(i) if k in ("png", "jpg") else said[k] for k in kinds}, **more}
                )
    return tmp_path


@pytest.mark.parametrize(
    "kinds,names",
    [
        (("png", "cls"), NAMES),
        (("jpg", "txt"), None),
        (("png", "json"), None),
        (("cls", "json", "png"), None),
        (("jpg", "cls"), NAMES),
    ],
)
def test_shards_of_the_real_writer(tmp_path, kinds, names):
    written(tmp_path, kinds=kinds)
    task = from_shards(f"{tmp_path}/pets-{{000..001}}.tar", names=names, val=0, test=0)
    assert (task.name, task.names) == ("pets", NAMES)
    same(task, "train", PAIRS)
    back = pickle.loads(pickle.dumps(task))
    same(back, "train", PAIRS)
    assert back.fingerprint == task.fingerprint


def test_shards_in_a_folder_of_parts_with_names_beside_them(tmp_path):
    written(tmp_path, {"train/0": PAIRS[:6], "train/1": PAIRS[6:12], "test/0": PAIRS[12:]})
    (tmp_path / "classnames.txt").write_text("\n".join(NAMES) + "\n")
    for task in (from_shards(tmp_path), as_task(tmp_path)):
        same(task, "train", PAIRS[:12])
        same(task, "test", PAIRS[12:])


def test_parts_in_the_names_of_shards_and_in_a_dict(tmp_path):
    written(tmp_path, {"pets-train-0": PAIRS[:9], "pets-val-0": PAIRS[9:12], "pets-test-0": PAIRS[12:]})
    by_name = from_shards(tmp_path / "*.tar", names=NAMES)
    by_hand = as_task({p: str(tmp_path / f"pets-{p}-0.tar") for p in ("train", "val", "test")}, names=NAMES)
    assert by_name.name == "pets" and by_name.fingerprint == by_hand.fingerprint
    for part, pairs in (("train", PAIRS[:9]), ("val", PAIRS[9:12]), ("test", PAIRS[12:])):
        same(by_name, part, pairs)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 120), st.integers(0, 30), st.integers(1, 4))
def test_braces_count(lo, n, width):
    assert braces(f"a{{{lo:0{width}}..{lo + n}}}b") == [
        f"a{i:0{len(f'{lo:0{width}}')}}b" for i in range(lo, lo + n + 1)
    ]


def tar(path, *files):
    with tarfile.open(path, "w") as t:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    return path


GOOD = (("a.png", encoded(1)), ("a.cls", b"0"), ("b.png", encoded(2)), ("b.cls", b"1"))


@pytest.mark.parametrize(
    "files,said",
    [
        ([*GOOD, ("c.png", b"")], "sample 'c' has no label, only .png"),
        ([*GOOD, ("c.cls", b"1")], "sample 'c' has no pictures"),
        ([*GOOD, ("b.cls", b"1")], "holds 'b.cls' twice"),
        ([*GOOD, ("a.json", b"{}")], "sample 'a' lie apart"),
        ([*GOOD, ("c.png", b""), ("c.jpg", b""), ("c.cls", b"0")], "has 2 pictures"),
        ([("a.png", b""), ("a.json", b"{no")], "is not JSON"),
        ([("a.png", b""), ("a.json", b'{"id": 3}')], "neither 'label' nor 'name'"),
        ([("a.png", b""), ("a.cls", b"\xff\xfe")], "not text"),
        (GOOD, "CLIP reads words"),
    ],
)
def test_shards_that_are_not_well_formed(tmp_path, files, said):
    with pytest.raises((BadFile, BadInput), match=said):
        from_shards(tar(tmp_path / "x.tar", *files))


@pytest.mark.parametrize("cut", [0.1, 0.4, 0.6, 0.9])
def test_shards_that_were_cut_off(tmp_path, cut):
    whole = tar(tmp_path / "x.tar", *GOOD).read_bytes()
    end = len(whole.rstrip(b"\0"))
    (tmp_path / "x.tar").write_bytes(whole[: int(cut * end)])
    with pytest.raises(BadFile, match="cut off|not a tar"):
        from_shards(tmp_path / "x.tar", names=NAMES)


def test_shards_cut_off_between_two_files(tmp_path):
    whole = tar(tmp_path / "x.tar", *GOOD).read_bytes()
    (tmp_path / "x.tar").write_bytes(whole[: -(-len(whole.rstrip(b"\0")) // 512) * 512])
    with pytest.raises(BadFile, match="no end mark"):
        from_shards(tmp_path / "x.tar", names=NAMES)


def test_packed_shards_and_folders_are_turned_down(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w:gz") as t:
        t.add(fill(tmp_path / "f"), "f")
    with pytest.raises(BadInput, match="compressed"):
        from_shards([tmp_path / "x.tar"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="no .tar files"):
        from_shards(tmp_path / "empty")


def test_captions_are_not_classes(tmp_path):
    files = [f for i in range(60) for f in ((f"{i}.png", encoded(1)), (f"{i}.txt", f"a photo of thing {i}".encode()))]
    with pytest.raises(BadInput, match="captions, not classes"):
        from_shards(tar(tmp_path / "x.tar", *files))


def test_a_shard_that_changed_is_noticed(tmp_path):
    store = Shards([tar(tmp_path / "x.tar", *GOOD)])
    assert Row(store, 1).image().tobytes() == picture(2).tobytes()
    exact = Row(store, 1).key(exact=True)
    tar(tmp_path / "x.tar", *GOOD, ("c.png", encoded(3)), ("c.cls", b"0"))
    with pytest.raises(BadFile, match="has changed"):
        Row(store, 1).image()
    assert Row(Shards([tmp_path / "x.tar"]), 1).key(exact=True) != exact
    (tmp_path / "x.tar").unlink()
    with pytest.raises(BadInput, match="any more"):
        Row(store, 1).image()


def test_long_names_and_other_writers(tmp_path):
    deep = "a/" * 60 + "ünïcode-" + "x" * 80
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as t:
        t.add(tmp_path, "a", recursive=False)
        for name, data in (
            (f"{deep}.png", encoded(1)),
            (f"{deep}.cls", b"cat"),
            ("._b.png", b"?"),
            *GOOD[2:3],
            ("b.cls", b"dog"),
        ):
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(data), {"comment": "x" * 600}
            t.addfile(info, io.BytesIO(data))
    task = from_shards(tmp_path / "x.tar", val=0, test=0)
    assert task.names == ["cat", "dog"]
    same(task, "train", [(1, 0), (2, 1)])


def test_shards_from_the_web(tmp_path, monkeypatch):
    written(tmp_path / "site", kinds=("png", "json"))
    monkeypatch.setenv("MUDPT_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("MUDPT_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "site"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/pets-{{000..001}}.tar"
    try:
        task = from_shards(url, val=0, test=0)
    finally:
        server.shutdown()
        server.server_close()
    same(task, "train", PAIRS)
    assert from_shards(url, val=0, test=0).fingerprint == task.fingerprint  # from the disk now


# ---- the door -------------------------------------------------------------------------------------------------------


def test_one_door_for_all(tmp_path):
    fill(tmp_path / "pets")
    written(tmp_path / "tars", kinds=("png", "json"))
    made = Task("t", NAMES, [(picture(i), y) for i, y in PAIRS])
    assert as_task(made) is made
    for x, kw in [
        (table(), dict(name="pets")),
        ({"train": table(), "test": table()}, {}),
        (tvd.ImageFolder(tmp_path / "pets"), {}),
        (frame(), dict(root=tmp_path / "pets")),
        (tmp_path / "tars", {}),
        ([str(p) for p in sorted((tmp_path / "tars").glob("*.tar"))], {}),
        (tmp_path / "pets", {}),
        (str(tmp_path / "pets"), dict(name="pets", seed=3)),
    ]:
        assert as_task(x, **kw).names == NAMES
    assert as_task("emoji/animals").name == "emoji/animals"


def test_features_are_kept_under_the_content(tmp_path):
    from types import SimpleNamespace

    clip = SimpleNamespace(name="x", pretrained=None, digest="0", precision="fp32")
    sources = [
        [s for s, _ in from_hf(t, val=0, test=0).train] for t in (table(), table(), table([(99, 0), *PAIRS[1:]]))
    ]
    a, b, c = (json.dumps(key(clip, s, None)) for s in sources)
    assert a == b != c
