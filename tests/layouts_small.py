"""Small archives in the true layout of each data set: true file names, true addresses, a few classes, tiny pictures"""

import hashlib
import io
import json
import tarfile
import zipfile
from dataclasses import dataclass, field, replace

from PIL import Image

from mudpt.classnames import imagenet
from mudpt.finding import split_digest
from mudpt.sets import OnHub, entry

EACH = 6  # images of a class: 3 to train, 1 to validate, 2 to test


def picture(label, i=0, fmt="jpeg"):
    """A picture whose colour tells its label"""
    Image.new("RGB", (12, 10), colour(label)).save(b := io.BytesIO(), fmt)
    return b.getvalue() + bytes([i])  # a byte more, so that no two are the same


def colour(label):
    return (40 + 60 * (label % 4), 40 + 60 * (label // 4), 128)


def tape(files, mode="w:gz"):
    """A tar of names and contents; a tuple as content is (kind, target) of a link"""
    with tarfile.open(fileobj=(b := io.BytesIO()), mode=mode) as t:
        for name, data in files.items():
            m = tarfile.TarInfo(name)
            if isinstance(data, tuple):
                m.type, m.linkname = data
            else:
                m.size = len(data)
            t.addfile(m, io.BytesIO(data) if isinstance(data, bytes) else None)
    return b.getvalue()


def packed(files):
    with zipfile.ZipFile(b := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as z:
        for name, data in files.items():
            z.writestr(name, data)
    return b.getvalue()


def unzipped(data):
    with zipfile.ZipFile(io.BytesIO(data)) as z:
        return {n: z.read(n) for n in z.namelist()}


@dataclass
class Small:
    """A small data set: what it holds, and the archives that hold it, by address or by (repository, file)"""

    names: list  # as the benchmark has them
    images: dict  # path in the folder of images: content
    parts: dict  # train, val, test: (path, label)
    official: list = field(default_factory=list)  # one archive for each step of the first source that has addresses
    beside: dict = field(default_factory=dict)  # files beside the folder of images
    split: bytes | None = None


def rows_of(small, order):
    return {
        p: [[path, y, small.names[y]] for path, y in sorted(items, key=lambda r: order.index(r[1]))]
        for p, items in small.parts.items()
    }


def classes(path, raw, names, order=None, first=0):
    """A data set with a split file: `path(class, i, part)` names the i-th image of a class"""
    small = Small(list(names), {}, {"train": [], "val": [], "test": []})
    for y, c in enumerate(raw):
        for i in range(EACH):
            part = "train" if i < 3 else "val" if i < 4 else "test"
            p = path(c, y * EACH + i + first, part)
            small.images[p] = picture(y, i)
            small.parts[part].append((p, y))
    order = order or list(range(len(raw)))
    rows = rows_of(small, order)
    small.parts = {p: [(path, y) for path, y, _ in r] for p, r in rows.items()}
    small.split = json.dumps(rows).encode()
    return small


def below(folder, files):
    return {f"{folder}/{k}": v for k, v in files.items()}


def caltech101():
    s = classes(
        lambda c, i, p: f"{c}/image_{i:04}.jpg",
        ["Faces", "Leopards", "Motorbikes", "accordion", "airplanes"],
        ["face", "leopard", "motorbike", "accordion", "airplane"],
        first=1,
    )
    more = {f"{c}/image_0001.jpg": picture(7) for c in ("BACKGROUND_Google", "Faces_easy")}
    inner = tape(below("101_ObjectCategories", s.images | more))
    outer = {
        "101_ObjectCategories.tar.gz": inner,
        "Annotations.tar": tape({"Annotations/accordion/annotation_0001.mat": b"?"}, "w"),
    }
    s.official = [packed(below("caltech-101", outer) | {"__MACOSX/caltech-101/._Annotations.tar": b"?"})]
    return s


def oxford_pets():
    s = classes(
        lambda c, i, p: f"{c}_{i}.jpg",
        ["Abyssinian", "american_bulldog", "yorkshire_terrier"],
        ["abyssinian", "american_bulldog", "yorkshire_terrier"],
        first=9,
    )
    s.official = [tape(below("images", s.images | {"Abyssinian_101.mat": b"?", "._Abyssinian_9.jpg": b"?"}))]
    return s


def stanford_cars():
    names = ["2000 AM General Hummer SUV", "2012 Acura RL Sedan", "2012 Audi TTS Coupe"]
    s = classes(
        lambda c, i, p: f"cars_{'test' if p == 'test' else 'train'}/{i:05}.jpg", names, names, order=[2, 0, 1], first=1
    )
    s.official = [tape({k: v for k, v in s.images.items() if k.startswith(d)}) for d in ("cars_train", "cars_test")]
    s.beside = {"cars_test_annos_withlabels.mat": b"?"}
    return s


def oxford_flowers():
    s = classes(
        lambda c, i, p: f"image_{i:05}.jpg",
        range(4),
        ["pink primrose", "hard-leaved pocket orchid", "canterbury bells", "colt's foot"],
        order=[3, 1, 0, 2],
        first=1,
    )
    s.official = [tape(below("jpg", s.images))]
    s.beside = {"cat_to_name.json": b"{}", "imagelabels.mat": b"?"}
    return s


def food101():
    s = classes(
        lambda c, i, p: f"{c}/{1005649 + i}.jpg",
        ["apple_pie", "baby_back_ribs", "waffles"],
        ["apple_pie", "baby_back_ribs", "waffles"],
    )
    s.official = [
        tape(
            below(
                "food-101",
                below("images", s.images)
                | {"meta/train.json": b"{}", "license_agreement.txt": b"?", "README.txt": b"?"},
            )
        )
    ]
    s.beside = {"meta/classes.txt": b"?"}
    return s


def fgvc_aircraft():
    names = ["707-320", "727-200", "A340-300", "Boeing 717"]
    s = classes(lambda c, i, p: f"{1340192 + i * 7:07}.jpg", names, names, order=[2, 0, 1, 3])
    s.split = None
    lists = {
        f"images_variant_{p}.txt": "".join(f"{k[:-4]} {names[y]}\n" for k, y in items).encode()
        for p, items in s.parts.items()
    }
    s.beside = lists | {
        "variants.txt": "\n".join(names).encode() + b"\n",
        "families.txt": b"Boeing 707\n",
        "images_box.txt": b"?",
    }
    top = {"README.html": b"?", "evaluation.m": b"?", "data/images_family_train.txt": b"?"}
    s.official = [tape(below("fgvc-aircraft-2013b", below("data/images", s.images) | below("data", s.beside) | top))]
    return s


def sun397():
    raw = ["a/abbey", "a/airplane_cabin", "a/apse/indoor", "b/bazaar/outdoor"]
    s = classes(
        lambda c, i, p: f"{c}/sun_{'abcdefghijklmnopqrstuvwxyz'[i]}qkbsi.jpg",
        raw,
        ["abbey", "airplane_cabin", "indoor apse", "outdoor bazaar"],
    )
    s.official = [tape(below("SUN397", s.images | {"ClassName.txt": b"/a/abbey\n"}))]
    s.beside = {"ClassName.txt": b"/a/abbey\n", "Training_01.txt": b"?"}
    return s


def dtd():
    s = classes(
        lambda c, i, p: f"{c}/{c}_{i:04}.jpg",
        ["banded", "dotted", "polka-dotted"],
        ["banded", "dotted", "polka-dotted"],
        first=1,
    )
    s.official = [
        tape(
            below(
                "dtd",
                below("images", s.images | {"waffled/.directory": b"?"})
                | {"imdb/imdb.mat": b"?", "labels/train1.txt": b"?"},
            )
        )
    ]
    return s


def eurosat():
    raw = ["AnnualCrop", "Forest", "Highway", "SeaLake"]
    s = classes(
        lambda c, i, p: f"{c}/{c}_{i}.jpg",
        raw,
        ["Annual Crop Land", "Forest", "Highway or Road", "Sea or Lake"],
        first=1,
    )
    s.official = [packed(below("2750", s.images))]
    return s


def ucf101():
    raw = ["Apply_Eye_Makeup", "Handstand_Pushups", "Yo_Yo"]
    film = {"Handstand_Pushups": "HandStandPushups"}
    return classes(lambda c, i, p: f"{c}/v_{film.get(c, c.replace('_', ''))}_g{1 + i % 25:02}_c01.jpg", raw, raw)


def judged(name, folders, names, top, more=None):
    """A data set for judging only"""
    s = Small(list(names), {}, {"train": [], "val": [], "test": []})
    for y, c in folders:
        for i in range(2):
            p = name(c, i)
            s.images[p] = picture(y % 16, i)
            s.parts["test"].append((p, y))
    s.official = [top(s.images | (more or {}))]
    return s


def imagenetv2():
    s = judged(lambda c, i: f"{c}/{i * 'f'}0a9{c}.jpeg", [(y, y) for y in (0, 1, 2, 10, 999)], imagenet().values(),
               lambda f: tape(below("imagenetv2-matched-frequency-format-val", f), "w"))  # fmt: skip
    s.parts["test"].sort(key=lambda r: (r[1], r[0]))
    return s


SYNSETS = ["n01440764", "n01443537", "n03773504", "n07749582"]  # tench, goldfish, missile, lemon


def imagenet_sketch():
    return judged(
        lambda c, i: f"{c}/sketch_{i}.JPEG",
        list(enumerate(SYNSETS)),
        [imagenet()[w] for w in SYNSETS],
        lambda f: packed(below("sketch", f)),
    )


def imagenet_a():
    return judged(lambda c, i: f"{c}/0.00{i}116_digital clock _ digital clock_0.865662.jpg", list(enumerate(SYNSETS[1:])), [imagenet()[w] for w in SYNSETS[1:]],
                  lambda f: tape(below("imagenet-a", f), "w"), {"README.txt": b"?"})  # fmt: skip


def imagenet_r():
    return judged(lambda c, i: f"{c}/art_{i}.jpg", list(enumerate(SYNSETS[:3])), [imagenet()[w] for w in SYNSETS[:3]],
                  lambda f: tape(below("imagenet-r", f), "w"), {"README.txt": b"?"})  # fmt: skip


MAKERS = {
    f.__name__: f
    for f in (caltech101, oxford_pets, stanford_cars, oxford_flowers, food101, fgvc_aircraft, sun397, dtd, eurosat, ucf101,
              imagenetv2, imagenet_sketch, imagenet_a, imagenet_r)
}  # fmt: skip


def hub_zip(e, s):
    """The archive of the hub repository: CoOp's folder, with the split file"""
    inside = e.places[0].removeprefix(e.folder).strip("/")
    files = below(inside, s.images) if inside else dict(s.images)
    files |= s.beside | (
        {e.split.file: s.split} if e.split else {"classnames.txt": b"?"} if e.kind in ("synsets", "numbered") else {}
    )
    return packed(below(e.folder, files))


def halves(s):
    m = -(-len(s.names) // 2)
    base = sum(y < m for _, y in s.parts["test"])
    return base, len(s.parts["test"]) - base


def served(site, key, tmp, hub_only=False, lost=()):
    """The entry of a small data set, and the data set; its archives are served where a mirror has the true addresses"""
    e, s = entry(key), MAKERS[key]()
    changes = dict(
        sizes=(len(s.names), *(len(s.parts[p]) for p in ("train", "val", "test"))),
        halves=halves(s) if e.halves else None,
    )
    if e.split:
        (tmp / "split for its digest.json").write_bytes(s.split)
        known = dict(sha256=hashlib.sha256(s.split).hexdigest()) if e.split.sha256 else {}
        changes |= dict(
            split=replace(e.split, **known),
            content=split_digest(tmp / "split for its digest.json") if e.content else None,
        )
        if "split" not in lost:
            site.publish(e.split.urls[0], s.split)
    sources = []
    for source in e.sources:
        steps = []
        for k, step in enumerate(source.steps):
            a = step.archive
            if isinstance(a, OnHub):
                body = s.official[k] if a.repo != "zhengli97/prompt_learning_dataset" else hub_zip(e, s)
                if not (hub_only and a.repo != "zhengli97/prompt_learning_dataset"):
                    site.hub(a.repo, {a.file: body}, a.repo_type, at="/huggingface.co")
            else:
                sums = {n: hashlib.new(n, s.official[k]).hexdigest() for n in ("md5", "sha256") if getattr(a, n)}
                a = replace(a, **sums)
                if not hub_only:
                    site.publish(a.urls[0], s.official[k])
            steps.append(replace(step, archive=a))
        sources.append(replace(source, steps=tuple(steps)))
    return replace(e, sources=tuple(sources), **changes), s
