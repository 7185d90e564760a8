"""CLIP-LoRA and MMRL, recomputed on open_clip's own modules; and that they leave the frozen model alone"""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from small import NAMES, images, shake, small

import mudpt.text
from mudpt.attribution import attribute
from mudpt.core import BadInput, seed_all
from mudpt.keep import load_prompts, tensors_of
from mudpt.looking import look
from mudpt.methods import MMRL, CoOp, LoRA, MaPLe, ZeroShot
from mudpt.steps import options
from mudpt.train import Trainer

Y = torch.tensor([0, 1, 2])


def lora(kind="vit", **kw):
    seed_all(3)
    m = LoRA(small(kind), **kw)
    return shake(m, 0.2)


def weights(model, kind):
    "The packed projections of a plain open_clip model, by tower, block by block"
    net = getattr(model, "text", model)
    text = [b.attn.in_proj_weight for b in net.transformer.resblocks]
    v = model.visual
    image = [b.attn.qkv.weight for b in v.trunk.blocks] if hasattr(v, "trunk") else None
    return dict(text=text, image=image or [b.attn.in_proj_weight for b in v.transformer.resblocks])


@torch.no_grad()
def by_hand(m, x, names, kind):
    "Logits of an open_clip model into whose weights the sum was written, part by part"
    model = copy.deepcopy(m.clip.model)
    s = m.alpha / math.sqrt(m.rank)
    for k, ws in weights(model, kind).items():
        if m.towers not in ("both", k):
            continue
        A, B = getattr(m, f"{k}_A"), getattr(m, f"{k}_B")
        for i, w in enumerate(ws):
            d = len(w) // 3
            for j, c in enumerate(m.params):
                row = "qkv".index(c) * d
                for a in range(m.rank):
                    w[row : row + d] += s * torch.outer(B[i, j, :, a], A[i, j, a])
    ids = m.clip.tokenizer([m.words.format(n) for n in names])
    v, t = F.normalize(model.encode_image(x), dim=-1), F.normalize(model.encode_text(ids), dim=-1)
    return model.logit_scale.exp() * v @ t.T


@pytest.mark.parametrize(
    "kind,kw",
    [
        ("vit", {}),
        ("vit", dict(rank=3, alpha=2.0, params="qv")),
        ("vit", dict(params="vk", towers="text")),
        ("wide text, unequal depth", dict(towers="image")),
        ("custom blocks", {}),
        ("timm", {}),
        ("siglip", {}),
        ("coca text", {}),
    ],
)
def test_lora_is_a_changed_weight(kind, kw):
    m = lora(kind, **kw)
    x, p = images(m.clip), dict(kw).get("params", "qkv")
    m.params = "".join(c for c in "qkv" if c in p)  # companions lie in the order q, k, v, however they were named
    with torch.no_grad():
        ours = m(x, NAMES).logits
        merged = ZeroShot(m.merge())(x, NAMES).logits
    assert (ours - ZeroShot(m.clip)(x, NAMES).logits).abs().max() > 0.01
    scale = max(1, float(ours.abs().max()))
    assert torch.allclose(ours, by_hand(m, x, NAMES, kind), atol=1e-5 * scale)
    assert torch.allclose(ours, merged, atol=1e-5 * scale)


def test_lora_leaves_the_frozen_model_and_its_other_methods_alone():
    clip = small()
    x, digest = images(clip), clip.digest
    seed_all(5)
    others = [ZeroShot(clip), CoOp(clip, n_ctx=2), MaPLe(clip)]
    a, b = lora(), lora(rank=1)
    alone = [m(x, NAMES).logits.detach() for m in (*others, a, b)]
    a.train()
    for m in (a, *others, b):  # in turns, in the middle of each other's graphs
        first, second = a(x, NAMES), m(x, NAMES)
        (a.loss(first, Y) + m.loss(second, Y)).backward()
    with pytest.raises(RuntimeError):
        a(torch.randn(1, 3, 7, 7), NAMES)
    with pytest.raises(BadInput):
        a(x, ["cat", "cat"])
    a.eval()
    for m, want in zip((*others, a, b), alone, strict=True):
        assert torch.equal(m(x, NAMES).logits.detach(), want)
    assert all(p.grad is None and not p.requires_grad for p in clip.model.parameters())
    clip._digest = None
    assert clip.digest == digest
    assert all(type(k).__name__ == "Block" for k in clip.text.blocks + clip.image.blocks)


def test_lora_gradients_reach_every_companion():
    m = lora()
    m.loss(m(images(m.clip), NAMES), Y).backward()
    for k, p in m.named_parameters():
        per = p.grad.flatten(2).abs().sum(-1)  # [block, projection]
        if k.endswith("A") or k.endswith("B"):
            assert (per > 0).all(), k


@pytest.mark.parametrize("kind", ["vit", "siglip"])
def test_lora_noise_is_drawn_while_training_only_and_follows_the_seed(kind):
    m = lora(kind)
    x = images(m.clip)
    assert not m.training and torch.equal(m(x, NAMES).logits, m(x, NAMES).logits)
    m.train()
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(m(x, NAMES).logits.detach())
    assert torch.equal(drawn[0], drawn[1]) and not torch.allclose(drawn[0], drawn[2], atol=1e-3)


def test_lora_noise_drops_the_share_it_says_and_keeps_the_mean():
    from mudpt.methods.lora import Noise

    y = torch.ones(200, 500)
    got = Noise(0.25, "cpu", 1)(y)
    assert set(got.unique().tolist()) == {0.0, float(torch.tensor(1 / 0.75))}
    assert abs((got == 0).float().mean() - 0.25) < 0.01 and abs(got.mean() - 1) < 0.01


def test_lora_names_recomputed_in_the_backward_pass_see_the_same_noise(monkeypatch):
    "Gradients with names in chunks, kept and recomputed, are the same to the last digit that matters"
    m = lora().train()
    x, found = images(m.clip), []
    m.clip.text.chunk = 2
    try:
        for keep in (False, True):
            if keep:
                monkeypatch.setattr(mudpt.text, "checkpoint", lambda f, *a, **k: f(*a))
            m.zero_grad()
            torch.manual_seed(4)
            out = m(x, NAMES)
            m.loss(out, Y).backward()
            found.append([out.logits.detach(), *(p.grad.clone() for p in m.parameters())])
    finally:
        m.clip.text.chunk = None
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, atol=1e-6 * max(1, float(a.abs().max())))


def test_lora_file_holds_the_companions_alone(tmp_path):
    m = lora(params="qv", rank=3)
    assert set(tensors_of(m)) == {"text_A", "text_B", "image_A", "image_B"}
    assert m.image_B.shape == (4, 2, 128, 3) and m.text_A.shape == (4, 2, 3, 64)
    path = m.save(tmp_path / "l.safetensors")
    assert path.stat().st_size < 4 * m.n_trainable + 4000
    assert torch.equal(load_prompts(path, m.clip).image_B, m.image_B)


def test_lora_is_seen_by_those_who_look():
    "Attention, gradients and words of the adapted towers, not of the frozen ones"
    m = lora()
    x = images(m.clip)[0]
    t, plain = look(m, x, NAMES, grad=True), look(ZeroShot(m.clip), x, NAMES)
    assert torch.allclose(torch.tensor(t.logits), m(x[None], NAMES).logits[0].detach(), atol=1e-4)
    for tower, name in (("image", None), ("text", "cat")):
        ours, theirs = t.weights(tower, 2, name=name), plain.weights(tower, 2, name=name)
        assert ours.shape == theirs.shape and abs(ours - theirs).max() > 1e-3
    a, z = (attribute(v, x, NAMES, "cat", "input x gradient", on="words").values for v in (m, ZeroShot(m.clip)))
    assert abs(a - z).max() > 1e-4 * abs(z).max()


def test_lora_standing_at_its_doors_changes_nothing():
    "Verbs of the frozen walker that someone answers for are answered for by the method's own walker"
    from mudpt.doors import own_words, with_words, word_places

    m = lora()
    T = m.clip.text
    cl = own_words(T, m.classes(NAMES))
    places = word_places(T, cl, 1)
    given = T.net.token_embedding.weight.detach()[cl.ids[1, places]]
    with torch.no_grad():
        want = m(images(m.clip), NAMES).logits
        with with_words(T, cl, 1, places, given):
            same = m(images(m.clip), cl).logits
        with with_words(T, cl, 1, places, given * 0):
            other = m(images(m.clip), cl).logits
    assert torch.allclose(same, want, atol=1e-4)
    assert (other[:, 1] - want[:, 1]).abs().max() > 1e-3
    assert torch.allclose(other[:, 0], want[:, 0], atol=1e-4)


def test_lora_epochs_are_the_published_steps_whatever_the_classes():
    for n in (10, 100, 397):
        m = LoRA(small())
        m.bind([f"thing {i}" for i in range(n)])
        o = options(m)
        assert o["epochs"] == round(16000 / n) and (o["opt"], o["lr"], o["bs"], o["warmup"], o["weight_decay"]) == ("adamw", 2e-4, 32, 0, 0.01)  # fmt: skip
        for shots in (1, 16):
            steps = o["epochs"] * max(1, shots * n // 32)
            assert shots < 16 or abs(steps / (500 * shots) - 1) < 0.05
    assert "epochs" not in LoRA.recipe and options(m, epochs=3)["epochs"] == 3


def test_lora_learns():
    from fakes import NAMES as COLOURS
    from fakes import task

    seed_all(1)
    m = LoRA(small())
    t = Trainer(m, task(), epochs=8, bs=8, lr=2e-2, workers=1, augment=False).fit()
    assert not m.training and t.history[-1] < 0.7 * t.history[0]
    assert m.trained_on == COLOURS


# MMRL


def mmrl(kind="vit", **kw):
    seed_all(3)
    m = MMRL(small(kind), **kw)
    m.bind(NAMES)
    return shake(m)


def plain_text(m, names, late):
    "Features of whole sentences through open_clip's own blocks, the row growing on the way"
    net, first = m.clip.model, min(late)
    ids = m.clip.tokenizer([m.template.format(n) for n in names])
    x = net.token_embedding(ids) + net.positional_embedding
    for i, block in enumerate(net.transformer.resblocks):
        if i in late:
            rest = x[:, 1:] if i == first else x[:, 1 + m.n_rep :]
            x = torch.cat([x[:, :1], late[i].expand(len(x), -1, -1), rest], 1)
        x = block(x, attn_mask=torch.full((x.shape[1], x.shape[1]), float("-inf")).triu(1))
    return net.ln_final(x)[torch.arange(len(ids)), ids.argmax(1) + m.n_rep] @ net.text_projection


def plain_image(m, x, late):
    "Class feature and representation feature, tokens behind the class token as in the released code"
    v, first = m.clip.model.visual, min(late)
    x = v.conv1(x).flatten(2).transpose(1, 2)
    x = v.ln_pre(torch.cat([v.class_embedding.expand(len(x), 1, -1), x], 1) + v.positional_embedding)
    for i, block in enumerate(v.transformer.resblocks):
        if i in late:
            rest = x[:, 1:] if i == first else x[:, 1 + m.n_rep :]
            x = torch.cat([x[:, :1], late[i].expand(len(x), -1, -1), rest], 1)
        x = block(x)
    x = v.ln_post(x)
    return x[:, 0] @ v.proj, x[:, 1 : 1 + m.n_rep].mean(1) @ m.proj


@pytest.mark.parametrize("kind,depth", [("vit", 2), ("vit", 4), ("vit", 1), ("wide text, unequal depth", 3)])
def test_mmrl_is_the_plain_walk_with_a_longer_row(kind, depth):
    "Logits, loss and every gradient"
    m, found = mmrl(kind, depth=depth, n_rep=3, rep_dim=32, alpha=0.6, reg=2.0), []
    x, n = images(m.clip), m.clip.model
    for ours in (True, False):
        m.zero_grad()
        if ours:
            out = m(x, NAMES)
            logits, loss = out.logits, m.loss(out, Y)
        else:
            rep = lambda maps, L: {L - depth + j: F.linear(m.rep, w.weight, w.bias) for j, w in enumerate(maps)}
            t = F.normalize(plain_text(m, NAMES, rep(m.to_text, m.clip.text.layers)), dim=-1)
            v, r = (F.normalize(f, dim=-1) for f in plain_image(m, x, rep(m.to_image, m.clip.image.layers)))
            with torch.no_grad():
                v0 = n.encode_image(x)
                t0 = n.encode_text(m.clip.tokenizer([m.template.format(c) for c in NAMES]))
            s = n.logit_scale.exp()
            a, b = s * v @ t.T, s * r @ t.T
            logits = 0.6 * a + 0.4 * b
            far = 2 - F.cosine_similarity(v, v0).mean() - F.cosine_similarity(t, t0).mean()
            loss = 0.6 * F.cross_entropy(a, Y) + 0.4 * F.cross_entropy(b, Y) + 2.0 * far
        loss.backward()
        found.append([logits.detach(), loss.detach(), *(p.grad.clone() for p in m.parameters())])
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, atol=1e-5 * max(1.0, float(b.abs().max())), rtol=1e-4)


def test_mmrl_new_classes_are_judged_by_the_class_token_alone():
    m = mmrl(depth=2)
    x = images(m.clip)
    known, other, turned = m(x, NAMES), m(x, ["okapi", "cat"]), m(x, NAMES[::-1])
    assert torch.allclose(known.logits, 0.7 * known.extra["by_class"] + 0.3 * known.extra["by_rep"], atol=1e-5)
    assert torch.equal(other.logits, other.extra["by_class"]) and torch.equal(turned.logits, turned.extra["by_class"])
    assert (known.extra["by_class"] - known.extra["by_rep"]).abs().max() > 0.1
    m.eval()
    with pytest.raises(BadInput, match="m.train\\(\\) before the forward pass"):
        m.loss(m(x, NAMES), Y)


@pytest.mark.parametrize("kind", ["siglip", "coca text", "custom blocks", "timm"])
def test_mmrl_late_tokens_change_nothing_before_them_and_are_read_after(kind):
    "Towers that the released code does not know: the features are whole, and they read the late tokens"
    from mudpt.methods.mmrl import growing, grown

    T = small(kind).text
    cl = T.classes(NAMES)
    late = {T.layers - 1: torch.randn(3, T.width)}
    with torch.no_grad():
        a, b = T.encode(cl, {}), growing(T, late).encode(cl, {})
        again = growing(T, {T.layers - 1: late[T.layers - 1] * 2}).encode(cl, {})
    assert a.shape == b.shape and b.isfinite().all() and (a - b).abs().max() > 1e-4 and (b - again).abs().max() > 1e-6
    causal = torch.full((5, 5), float("-inf")).triu(1)
    assert torch.equal(grown(causal, 1, 2), torch.full((7, 7), float("-inf")).triu(1))
    assert grown(None, 1, 2) is None


def test_mmrl_counts_and_recipe():
    m = mmrl(depth=2, n_rep=5, rep_dim=16)
    per = 16 * 64 + 64 + 16 * 128 + 128
    assert m.n_trainable == 5 * 16 + 2 * per + 128 * 96
    o = options(m)
    assert (o["lr"], o["epochs"], o["bs"], o["warmup"], o["opt"], o["weight_decay"]) == (1e-3, 10, 4, 1, "adamw", 5e-4)
    assert mmrl().depth == 4 and m.enters()["text"] == {2: (5, False), 3: (5, False)}
