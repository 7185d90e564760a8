"""TCP against a second, naive writing of each: open_clip's own modules, all 77 positions, no sharing"""

import pytest
import torch
from small import NAMES, images, shake, small

from mudpt.core import BadInput, seed_all
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


# it learns


@pytest.mark.parametrize("cls,kw", [(TCP, {})], ids=str)
def test_a_short_training_lowers_the_loss(cls, kw):
    from mudpt import emoji
    from mudpt.train import Trainer

    seed_all(1)
    t = Trainer(
        cls(emoji.clip(), **kw), emoji.task("animals", classes=4).few_shot(2, 1), epochs=4, bs=4, augment=False
    ).fit()
    assert t.history[-1] < t.history[0]
