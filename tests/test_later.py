"""TCP, HiCroPL and ATPrompt against a second, naive writing of each: open_clip's own modules, all 77 positions, no sharing"""

import math

import pytest
import torch
from small import NAMES, images, shake, small

from mudpt.core import BadInput, Unknown, seed_all
from mudpt.keep import load_prompts
from mudpt.methods.atprompt import KEPT, ATPrompt, published
from mudpt.methods.hicropl import HiCroPL
from mudpt.methods.tcp import TCP

Y = torch.tensor([0, 1, 2])
unit = lambda t: t / t.norm(dim=-1, keepdim=True)  # noqa: E731


def text(clip, rows, first, sets):
    "Rows of words as the tokenizer gives them; vectors `first` from position 1 on; before block i, positions a.. hold `sets[i]`"
    net, ids = clip.model, clip.tokenizer(rows)
    x = net.token_embedding(ids).clone()
    x[:, 1 : 1 + len(first)] = first
    x = x + net.positional_embedding
    for i, block in enumerate(net.transformer.resblocks):
        if i in sets:
            a, p = sets[i]
            p = p.expand(len(rows), *p.shape[-2:])
            x = torch.cat([x[:, :a], p, x[:, a + p.shape[1] :]], 1)
        x = block(x, attn_mask=net.attn_mask)
    x = net.ln_final(x)[torch.arange(len(rows)), ids.argmax(-1)]
    return unit(x @ net.text_projection)


def image(clip, pixels, sets):
    "Image prompts behind the patches: in front of `ln_pre` at the input, overwritten before the blocks named"
    v = clip.model.visual
    x = v.conv1(pixels).flatten(2).transpose(1, 2)
    x = torch.cat([v.class_embedding.expand(len(x), 1, -1), x], 1) + v.positional_embedding
    T = x.shape[1]
    if 0 in sets:
        x = torch.cat([x, sets[0].expand(len(x), -1, -1)], 1)
    x = v.ln_pre(x)
    for i, block in enumerate(v.transformer.resblocks):
        if i and i in sets:
            x = torch.cat([x[:, :T], sets[i].expand(len(x), -1, -1)], 1)
        x = block(x)
    return unit(v.ln_post(x[:, 0]) @ v.proj)


def heads(attn, q, k, v):
    "Multi-head attention written out"
    d, h = q.shape[-1], attn.num_heads
    (wq, wk, wv), (bq, bk, bv) = attn.in_proj_weight.chunk(3), attn.in_proj_bias.chunk(3)
    q, k, v = q @ wq.T + bq, k @ wk.T + bk, v @ wv.T + bv
    s, out = d // h, []
    for j in range(h):
        c = slice(j * s, (j + 1) * s)
        out.append(torch.softmax(q[:, c] @ k[:, c].T / math.sqrt(s), -1) @ v[:, c])
    return torch.cat(out, -1) @ attn.out_proj.weight.T + attn.out_proj.bias


def normed(ln, x):
    return (x - x.mean(-1, keepdim=True)) / (
        x.var(-1, unbiased=False, keepdim=True) + ln.eps
    ).sqrt() * ln.weight + ln.bias


def ce(logits, y):
    return -torch.stack([row[c] - row.exp().sum().log() for row, c in zip(logits.double(), y, strict=True)]).mean()


def made(cls, *a, kind="vit", **kw):
    seed_all(3)
    return shake(cls(small(kind), *a, **kw))


def agree(m, want_image, want_text):
    "Features to 1e-5, logits to 1e-5 of their scale"
    with torch.no_grad():
        out = m(images(m.clip), NAMES)
    assert torch.allclose(out.text, want_text, atol=1e-5) and torch.allclose(out.image, want_image, atol=1e-5)
    assert torch.allclose(out.logits / m.clip.scale, want_image @ want_text.T, atol=1e-5)
    return out


# TCP


def tcp_by_hand(m):
    net, tok, n = m.clip.model, m.clip.tokenizer, m.n_ctx
    frozen = unit(net.encode_text(tok([m.template.format(c) for c in NAMES])))
    h = frozen @ m.meta[0].weight.T + m.meta[0].bias
    h = h / (1 + torch.exp(-1.702 * h))
    own = (h @ m.meta[2].weight.T + m.meta[2].bias).reshape(len(NAMES), n, -1)
    rows = [" ".join(["X"] * n) + " " + m.words.format(c) for c in NAMES]
    return frozen, text(m.clip, rows, m.ctx, {m.block: (1, own)})


@pytest.mark.parametrize("kw", [{}, dict(n_ctx=2, block=3), dict(template="a photo of a {}, a type of pet.", block=1)])
@torch.no_grad()
def test_tcp_forward(kw):
    m = made(TCP, **kw)
    frozen, want = tcp_by_hand(m)
    out = agree(m, unit(m.clip.model.encode_image(images(m.clip))), want)
    assert torch.allclose(out.extra["anchor"], frozen, atol=1e-5)
    cos = (want * frozen).sum(1) / (want.norm(dim=1) * frozen.norm(dim=1))
    assert float(m.loss(out, Y)) == pytest.approx(float(ce(out.logits, Y) + 8 * (1 - cos.mean())), abs=1e-4)


def test_tcp_gradients_are_those_of_the_hand_written_form():
    m = made(TCP)
    x = images(m.clip)
    m.loss(m(x, NAMES), Y).backward()
    ours = [p.grad.clone() for p in m.parameters()]
    m.zero_grad()
    frozen, t = tcp_by_hand(m)
    logits = m.clip.scale * unit(m.clip.model.encode_image(x)) @ t.T
    (ce(logits, Y) + 8 * (1 - (t * frozen).sum(1).mean())).backward()
    for a, b in zip(ours, m.parameters(), strict=True):
        assert torch.allclose(a, b.grad, atol=1e-4 * max(1.0, float(a.abs().max())))


@torch.no_grad()
def test_tcp_classes_are_alone():
    "A class' feature does not depend on which others are asked about"
    m = made(TCP)
    every, one = m.text_features(NAMES)[0], m.text_features(NAMES[2:3])[0]
    assert torch.allclose(every[2:3], one, atol=1e-5)


def test_tcp_adam_as_released():
    from mudpt import emoji
    from mudpt.train import Trainer

    t = Trainer(TCP(emoji.clip()), emoji.task("animals").few_shot(1, 1).base)
    assert type(t.optimiser) is torch.optim.Adam and [g["eps"] for g in t.optimiser.param_groups] == [1e-3]
    assert {k: t.o[k] for k in ("lr", "epochs", "bs", "warmup", "weight_decay")} == dict(lr=0.002, epochs=50, bs=32, warmup=1, weight_decay=5e-4)  # fmt: skip


@pytest.mark.parametrize("block", [0, 4, 2.0])
def test_tcp_block_outside(block):
    with pytest.raises(BadInput, match="block is"):
        TCP(small(), block=block)


def test_tcp_is_watched_as_it_predicts():
    "The frozen pass by the way leaves no trace; each class' sentence has its own prefix from the block on"
    from mudpt.looking import look

    m = made(TCP)
    seen = look(m, images(m.clip)[0], NAMES)
    for i in range(m.clip.text.layers):
        for name in NAMES:
            w = seen.weights("text", i, 0, name)
            assert abs(w.sum(-1) - 1).max() < 1e-4
    low, high = (
        seen.weights("text", i, 0, NAMES[0])[:5, :5] - seen.weights("text", i, 0, NAMES[1])[:5, :5]
        for i in (0, m.block)
    )
    assert abs(low).max() < 1e-6 < abs(high).max()


# HiCroPL


def proxy_by_hand(f, p):
    t = f.token + heads(f.attn, normed(f.ln_1, f.token), normed(f.ln_1, p), normed(f.ln_1, p))
    return normed(f.ln_2, t)[0]


def mapped_by_hand(f, own, told):
    n = own.shape[1]
    lin = lambda w, x: x @ w.weight.T + w.bias  # noqa: E731
    q, k, v = lin(f.q, torch.cat(list(own))), lin(f.k, told), lin(f.v, told)
    q = q + heads(f.attn, normed(f.ln_1, q), normed(f.ln_1, k), normed(f.ln_1, v))
    h = lin(f.mlp[0], normed(f.ln_2, q))
    q = q + lin(f.mlp[2], h * torch.sigmoid(1.702 * h))
    return [q[i * n : (i + 1) * n] for i in range(len(own))]


def hicropl_by_hand(m, said):
    k, J, clip = m.turn, m.depth, m.clip
    T, V = m.text_ctx, m.image_ctx
    low = mapped_by_hand(m.t2v, V[:k], torch.stack([proxy_by_hand(f, T[i]) for i, f in enumerate(m.text_proxy)]))
    high = mapped_by_hand(m.v2t, T[k:], torch.stack([proxy_by_hand(f, V[k + i]) for i, f in enumerate(m.image_proxy)]))
    rows = [" ".join(["X"] * m.n_ctx) + " " + m.words.format(c) for c in NAMES]
    t = text(clip, rows, T[0], {i: (1, T[i] if i < k else high[i - k]) for i in range(1, J)})
    v = image(clip, images(clip), {i: low[i] if i < k else V[i] for i in range(J)})
    fixed = unit(torch.stack([unit(clip.model.encode_text(clip.tokenizer(ss))).mean(0) for ss in said]))
    plain = unit(clip.model.encode_image(images(clip)))
    return unit(v + plain), unit(t + fixed), plain, fixed


HAND = ["itap of a {}.", "a bad photo of the {}.", "a origami {}.", "a photo of the large {}.", "a {} in a video game.", "art of the {}.", "a photo of the small {}."]  # fmt: skip
WROTE = {
    n: [f"{n}, which is nice.", f"one may see a {n}.", f"{n}, which is nice."][: 1 + i % 3] for i, n in enumerate(NAMES)
}


@pytest.mark.parametrize(
    "kw", [dict(n_ctx=6), dict(n_ctx=2, depth=3, turn=2), dict(n_ctx=3, turn=1, texts=WROTE, ctx_init=None)], ids=str
)
@torch.no_grad()
def test_hicropl_forward(kw):
    m = made(HiCroPL, **kw)
    said = (
        [WROTE[n] for n in NAMES]
        if "texts" in kw
        else [[s.format(n) for s in (*HAND, "a photo of a {}.")] for n in NAMES]
    )
    v, t, plain, fixed = hicropl_by_hand(m, said)
    out = agree(m, v, t)
    assert torch.allclose(out.extra["fixed"], fixed, atol=1e-5) and torch.allclose(out.extra["plain"], plain, atol=1e-5)
    want = ce(out.logits, Y) + 12 * (2 - (t * fixed).sum(1).mean() - (v * plain).sum(1).mean())
    assert float(m.loss(out, Y)) == pytest.approx(float(want), abs=1e-4)
    assert m.tier == ("B" if "texts" in kw else "A")


def test_hicropl_forward_changes_nothing():
    "Two passes, one answer; everything is trained"
    m = made(HiCroPL, n_ctx=2)
    before = {k: v.clone() for k, v in m.state_dict().items()}
    a, b = (m(images(m.clip), NAMES) for _ in range(2))
    assert torch.equal(a.logits, b.logits) and all(torch.equal(v, before[k]) for k, v in m.state_dict().items())
    m.loss(b, Y).backward()
    assert all(p.grad.abs().sum() > 0 for p in m.parameters())


def test_hicropl_starts_as_released():
    seed_all(0)
    m = HiCroPL(small(), n_ctx=4)
    assert all(torch.equal(p, m.image_ctx[0]) for p in m.image_ctx) and not torch.equal(m.text_ctx[1], m.text_ctx[2])
    for a, b in zip(m.text_proxy[0].parameters(), m.text_proxy[1].parameters(), strict=True):
        assert torch.equal(a, b) and a is not b
    first = m.clip.model.token_embedding(m.clip.tokenizer(["a photo of a"]))[0, 1:5]
    assert torch.equal(m.text_ctx[0].data, first) and HiCroPL(small(), n_ctx=5).text_ctx[0].std() < 0.04


def test_hicropl_numbers_on_vit_b16():
    J, n, t, v = 12, 16, 512, 768
    ln, mha = lambda d: 2 * d, lambda d: 4 * d * d + 4 * d
    proxy = lambda d: d + mha(d) + 2 * ln(d)  # noqa: E731
    mapper = lambda d, e: d * d + d + 2 * (e * d + d) + mha(d) + 2 * ln(d) + 8 * d * d + 5 * d  # noqa: E731
    count = lambda J, k, n, t, v: J * n * (t + v) + k * proxy(t) + (J - k) * proxy(v) + mapper(v, t) + mapper(t, v)  # noqa: E731
    assert HiCroPL(small(), n_ctx=3).n_trainable == count(4, 2, 3, 64, 128)
    assert count(J, 6, n, t, v) == 33_431_040


def test_hicropl_texts_travel_and_are_asked_for(tmp_path):
    m = made(HiCroPL, n_ctx=2, texts=WROTE)
    again = load_prompts(m.save(tmp_path / "m.safetensors"), m.clip)
    x = images(m.clip)
    assert again.tier == "B" and torch.equal(again.predict(x, NAMES), m.predict(x, NAMES))
    with pytest.raises(Unknown, match="okapi"):
        m.predict(x, ["cat", "okapi"])


@pytest.mark.parametrize("turn", [0, 4])
def test_hicropl_turn_outside(turn):
    with pytest.raises(BadInput, match="turn is"):
        HiCroPL(small(), turn=turn)


# ATPrompt


@pytest.mark.parametrize("kw", [dict(attributes=["color"]), dict(attributes=["pattern", "color", "design"], n_ctx=3), dict(on="MaPLe"),
                                dict(on="MaPLe", attributes=["habitat"], n_ctx=1, depth=2)], ids=str)  # fmt: skip
@torch.no_grad()
def test_atprompt_forward(kw):
    m = made(ATPrompt, **kw)
    n, ctx = m.n_ctx, m.inner.ctx
    assert all(len(m.clip.tokenizer.encode(a)) == 1 for a in m.planted)
    X = " ".join(["X"] * n)
    rows = [" ".join(f"{X} {a}" for a in m.planted) + f" {X} {c}." for c in NAMES]
    words = m.clip.model.token_embedding(m.clip.tokenizer([" ".join(m.planted)]))[0, 1:]
    first = torch.cat([v for i in range(len(m.planted)) for v in (m.att[i], words[i : i + 1])] + [ctx])
    deep = getattr(m.inner, "deep", [])
    t = text(m.clip, rows, first, {i: (1 + len(m.planted) * (n + 1), p) for i, p in enumerate(deep, 1)})
    if m.on == "CoOp":
        v = unit(m.clip.model.encode_image(images(m.clip)))
    else:
        lin = lambda w, x: x @ w.weight.T + w.bias  # noqa: E731
        v = image(
            m.clip,
            images(m.clip),
            {
                0: lin(m.inner.proj, ctx),
                **{i: lin(w, p) for i, (w, p) in enumerate(zip(m.inner.deep_proj, deep, strict=True), 1)},
            },
        )
    out = agree(m, v, t)
    assert float(m.loss(out, Y)) == pytest.approx(float(ce(out.logits, Y)), abs=1e-4)


def test_atprompt_trains_vectors_alone():
    m = made(ATPrompt, on="MaPLe")
    m.loss(m(images(m.clip), NAMES), Y).backward()
    assert {k.split(".")[0] for k, _ in m.named_parameters()} == {"att", "inner"} and all(
        p.grad.abs().sum() > 0 for p in m.parameters()
    )
    assert all("word" not in k for k in m.state_dict())


def test_atprompt_starts_as_released():
    seed_all(0)
    m = ATPrompt(small(), ["color"], n_ctx=40)
    assert float(m.att.detach().std()) == pytest.approx(0.01, rel=0.1) and float(
        m.inner.ctx.detach().std()
    ) == pytest.approx(0.02, rel=0.1)
    assert ATPrompt(small(), on="MaPLe").recipe["epochs"] == 5 and m.recipe["epochs"] == 100


def test_atprompt_published_lists():
    from mudpt.sets import ORDER

    assert set(KEPT) == set(ORDER) and published("oxford_flowers") == "color habitat growth"


def test_atprompt_attribute_of_several_tokens():
    m = made(ATPrompt, ["watercourse side"], n_ctx=1)
    k = len(m.clip.tokenizer.encode("watercourse side"))
    assert k > 1 and m.n_slots == 1 + k + 1 and m(images(m.clip), NAMES).logits.isfinite().all()


# all three learn


@pytest.mark.parametrize(
    "cls,kw,shots,epochs",
    [(TCP, {}, 2, 4), (HiCroPL, dict(n_ctx=4), 2, 4), (ATPrompt, {}, 4, 6), (ATPrompt, dict(on="MaPLe"), 4, 6)],
    ids=str,
)
def test_a_short_training_lowers_the_loss(cls, kw, shots, epochs):
    from mudpt import emoji
    from mudpt.train import Trainer

    seed_all(1)
    t = Trainer(
        cls(emoji.clip(), **kw), emoji.task("animals", classes=4).few_shot(shots, 1), epochs=epochs, bs=4, augment=False
    ).fit()
    assert t.history[-1] < t.history[0]
