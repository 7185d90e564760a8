"What the emoji pages promise: equal pixels everywhere, true masks, parts without overlap, credits, a resumable script"

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mudpt import emoji
from mudpt.core import BadInput, Unknown, digest
from mudpt.scenes import Scene, ground, place, table

root = Path(__file__).parents[1]
scenes = st.builds(
    Scene,
    st.sampled_from(emoji.concepts()),
    st.sampled_from(emoji.styles),
    st.integers(0, 10**13),
    st.integers(0, 3),
)


def script(name):
    spec = importlib.util.spec_from_file_location(name, root / f"scripts/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@settings(max_examples=30, deadline=None)
@given(scenes)
def test_a_scene_is_its_recipe(s):
    again = Scene(s.name, s.style, s.key, s.crowd)
    assert s.image().tobytes() == again.image().tobytes() and (s.mask == again.mask).all()
    assert s.image().size == (64, 64) and s.image().mode == "RGB" and s.mask.shape == (64, 64)
    assert hash(s) == hash(again) and s == again


def test_pixels_do_not_depend_on_the_process():
    code = "from mudpt.scenes import *; from mudpt.core import digest\n"
    code += "print(digest(b''.join(scene('fox', s, k, 2).image().tobytes() for s in styles for k in range(4))))"
    got = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": h},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for h in ("1", "2")
    }
    here = digest(b"".join(emoji.scene("fox", s, k, 2).image().tobytes() for s in emoji.styles for k in range(4)))
    assert got == {here + "\n"}


@settings(max_examples=30, deadline=None)
@given(scenes)
def test_the_mask_is_where_the_thing_was_drawn(s):
    "Colours off: with a black thing on a white ground the mask is the dark part"
    out, thing = s._draw()
    shown = Image.new("RGB", (64, 64), "white")
    shown.paste("black", mask=thing.getchannel("A"))
    assert ((np.asarray(shown)[..., 0] < 128) == s.mask).all() and 0.02 < s.mask.mean() < 0.9
    solid = np.asarray(thing)[..., 3] == 255
    assert (np.asarray(out)[solid] == np.asarray(thing)[solid][:, :3]).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_grounds_are_dark_or_light_as_asked(seed):
    dark, light = (np.asarray(ground(np.random.RandomState(seed), d)) for d in (True, False))
    assert dark.max() <= 0.41 * 255 and light.mean() > 60


def test_place_centres():
    alpha = np.asarray(place(Image.new("RGBA", (64, 64), "red"), 20, 0.3, 40, 24))[..., 3] > 127
    y, x = np.nonzero(alpha)
    assert abs(x.mean() + 0.5 - 40) < 0.5 and abs(y.mean() + 0.5 - 24) < 0.5 and abs(alpha.sum() - 400) < 30


@pytest.mark.parametrize("name", emoji.tasks())
def test_every_ready_task(name):
    t = emoji.task(name.removeprefix("emoji/"))
    assert t.name == name and len(t.names) <= 80 and not t.check()
    assert len({s for s, _ in t.train + t.val + t.test}) == len(t.train) + len(t.val) + len(t.test)
    assert all(s.name == t.names[y] for s, y in t.train[:: len(t.names)])
    assert len(t.few_shot(16, 1).base.train) == 16 * len(t.base.names)


def test_animals_halve_into_40_and_40():
    t = emoji.task()
    assert len(t.base.names) == len(t.new.names) == 40 and not set(t.base.names) & set(t.new.names)


def test_seeds_give_other_pictures_and_equal_seeds_equal_tasks():
    a, b, c = (emoji.task("food", seed=s) for s in (0, 0, 1))
    assert a.fingerprint == b.fingerprint != c.fingerprint
    assert not {s for s, _ in a.train + a.val + a.test} & {s for s, _ in c.train + c.val + c.test}


def test_held_out_styles_are_held_out():
    assert set(emoji.held_out_styles) == {"twemoji", "fluent-emoji-high-contrast"}
    assert not set(emoji.held_out_styles) & set(emoji.pretrain_styles)
    assert set(emoji.held_out_styles) | set(emoji.pretrain_styles) == set(emoji.styles)
    assert set(emoji.card()["styles"]) == set(emoji.pretrain_styles)
    pre = script("pretrain_emoji")
    r = __import__("random").Random(0)
    assert {pre.Batches(1, 1, 0).scene(0, r).style for _ in range(200)} == set(emoji.pretrain_styles)
    assert min(pre.Batches(1, 1, 0).scene(0, r).key for _ in range(200)) >= 10**12


def test_wrong_names_are_answered_with_the_nearest():
    for call, near in [
        (lambda: emoji.task("animls"), "animals"),
        (lambda: emoji.task("animals", style="notto"), "noto"),
        (lambda: emoji.scene("foxs"), "fox"),
        (lambda: emoji.sprite("fox", "twemojy"), "twemoji"),
        (lambda: emoji.concepts("vehicle"), "vehicles"),
    ]:
        with pytest.raises(Unknown, match=near):
            call()
    with pytest.raises(BadInput):
        emoji.task(n_train=-1)


def test_credits():
    notice = (root / "NOTICE").read_text(encoding="utf-8")
    for style, c in table["styles"].items():
        part = notice.split(f"\n{style}.webp\n")[1].split("\n\n")[0]
        for fact in (c["title"], c["author"], c["url"], c["license"], c["package"]):
            assert fact in part, (style, fact)
    drawn = {f.name.removesuffix(".webp") for f in emoji.assets.iterdir() if f.name.endswith(".webp")}
    assert drawn == set(table["styles"]) == set(emoji.styles)


def test_assets_stay_small():
    assert sum(f.stat().st_size for f in Path(str(emoji.assets)).iterdir()) < 15e6


def test_the_model():
    c = emoji.clip()
    towers = c.model.visual.transformer, c.model.transformer
    assert [len(t.resblocks) for t in towers] == [4, 4] and len({t.width for t in towers} | {c.embed_dim}) == 3
    assert c.digest == emoji.clip().digest and c.image_size == 64
    x = torch.stack([c.test_transform(emoji.scene(n).image()) for n in ("fox", "pizza", "guitar")])
    assert c.encode_image(x).shape == c.encode_text(["a fox", "a pizza", "a guitar"]).shape == (3, c.embed_dim)


def test_the_script_stops_and_continues_to_identical_weights(tmp_path):
    pre, threads = script("pretrain_emoji"), torch.get_num_threads()
    common = "--steps 4 --bs 8 --every 9 --warmup 2 --threads 1 --workers 0 --no-bf16".split()
    pre.watch = lambda *a, **k: 0.0
    try:
        pre.main(["run", "--out", str(tmp_path / "one"), *common])
        pre.main(["run", "--out", str(tmp_path / "two"), *common, "--stop", "2"])
        pre.main(["run", "--out", str(tmp_path / "two"), *common])
    finally:
        torch.set_num_threads(threads)
    a, b = (torch.load(tmp_path / d / "checkpoint.pt", weights_only=True) for d in ("one", "two"))
    assert a["step"] == b["step"] == 4 and all(torch.equal(v, b["net"][k]) for k, v in a["net"].items())
    pre.main(["export", "--out", str(tmp_path / "one"), "--to", str(tmp_path / "out")])
    assert {f.name for f in (tmp_path / "out").iterdir()} == {"emoji_clip.safetensors", "emoji_clip.json"}
    with pytest.raises(AssertionError, match="another plan"):
        pre.main(["run", "--out", str(tmp_path / "one"), *common, "--lr", "1"])
