"""Looking inside: names of positions, attention in two pieces and in one, rollout, relevance, and maps that follow what moves"""

import copy
import gc
import json
import math
import weakref
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from small import NAMES, TEXT, images, shake, small

from mudpt import emoji
from mudpt.attention import able, draw, heat, look, maps
from mudpt.core import BadInput, NoSlots, Unknown, seed_all
from mudpt.cross import cavpt, coupled, cross
from mudpt.heat import Heat, seen, side_by_side
from mudpt.methods import DCP, DPT, IVLP, MMRL, VPT, CoCoOp, CoOp, MaPLe, MuDPT, ZeroShot
from mudpt.places import text_places
from mudpt.relevance import flow, reader, relevance, rollout, sources, text_relevance, through, word_row, words
from mudpt.sheets import sheet
from mudpt.strip import Strip
from mudpt.text import FullText
from mudpt.towers import load_clip


def bound(m):
    m.bind(NAMES)
    return m


MAKE = {
    "ZeroShot": ZeroShot,
    "CoOp": lambda c: CoOp(c, 4),
    "CoOp, name in the middle": lambda c: CoOp(c, 4, position="middle"),
    "CoOp, class-specific": lambda c: bound(CoOp(c, 3, csc=True)),
    "CoCoOp": CoCoOp,
    "VPT": lambda c: VPT(c, n_ctx=3, depth=2),
    "IVLP": IVLP,
    "MaPLe": MaPLe,
    "MuDPT": MuDPT,
    "MuDPT, transformer": lambda c: MuDPT(c, net="transformer", both=False),
    "DCP": lambda c: DCP(c, 4),
    "DCP per image": lambda c: DCP(c, 4, per="image", shared=False),
    "DCP as released": lambda c: DCP(c, 4, as_released=True),
    "DPT vpt": lambda c: DPT(c, 4, n_image=3, stage="vpt"),
    "DPT vlp": lambda c: DPT(c, 4, n_image=3, stage="vlp"),
    "DPT": lambda c: DPT(c, 4, n_image=3, bottom=2, top_k=3),
    "DPT, class-aware everywhere": lambda c: DPT(c, 4, bottom=1, top_k=2),
    "MMRL": lambda c: bound(MMRL(c, n_rep=3, rep_dim=16, depth=2)),
}


def made(name, clip):
    seed_all(5)
    return shake(MAKE[name](clip))


def matrices(t):
    "Every attention matrix of a look"
    for i in range(t.clip.image.layers):
        yield t.heads("image", i)
    for i, n in product(range(t.clip.text.layers), t.names):
        yield t.heads("text", i, n)


# --- every method on every kind of tower ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vit", "timm", "siglip"])
def test_a_look_changes_nothing_and_rows_sum_to_one(kind):
    clip = small(kind)
    x = images(clip, 1)
    for name in MAKE:
        m = made(name, clip)
        with torch.no_grad():
            free = m(x, NAMES).logits[0]
        t = look(m, x, NAMES)
        torch.testing.assert_close(
            torch.tensor(t.logits), free, atol=1e-5, rtol=1e-5, msg=lambda s, n=name: f"{n}: {s}"
        )
        for w in matrices(t):
            torch.testing.assert_close(w.sum(-1), torch.ones(w.shape[:-1]), atol=1e-5, rtol=0)
        for tower, n in [("image", None), ("text", NAMES[1])]:
            R = through(t, tower, n)
            assert (R >= 0).all() and (R.sum(1) - 1).abs().max() < 1e-5, name
            assert len(sources(t, tower, n)) == R.shape[1], name
        assert clip.image.look is None and clip.text.look is None
        assert not any(w.requires_grad for w in t.parts.values())


@pytest.mark.parametrize("kind", ["custom blocks", "coca text", "wide text, unequal depth"])
def test_unusual_towers_give_every_map(kind):
    clip = small(kind)
    for name in ("VPT", "DCP", "DPT"):
        t = look(made(name, clip), images(clip, 1), NAMES, grad=True)
        for by in able(t):
            h = draw(t, (t.likely or NAMES)[0], by)
            assert h.values.shape == clip.image.grid and np.isfinite(h.values).all() and np.ptp(h.values) > 0
        s = words(t, "fire truck")
        assert {"fire", "truck"} <= set(s.words) and np.isfinite(s.values).all() and s.values.max() > 0


def test_one_forward_pass():
    clip = small("vit")
    passes = []
    handle = clip.model.visual.conv1.register_forward_hook(lambda *_: passes.append(1))
    for name, least in [
        ("MuDPT", 1),
        ("DCP", 1),
        ("CoCoOp", 1),
        ("DPT", 2),
    ]:  # DPT asks plain CLIP first, by its nature
        m = made(name, clip)  # which may ask the towers for their sizes
        passes.clear()
        t = look(m, images(clip, 1), NAMES, grad=True)
        for by in able(t):
            draw(t, (t.likely or NAMES)[0], by)
        words(t, "cat"), words(t, "cat", "raw", layer=0, head=0), t.weights("image", 1, 0)
        assert len(passes) == least, name
    handle.remove()


# --- one matrix out of two pieces ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["ZeroShot", "CoOp", "CoOp, name in the middle", "CoOp, class-specific", "CoCoOp", "MaPLe", "DCP"]
)
def test_text_attention_equals_the_walk_over_whole_sentences(name):
    clip = small("vit")
    whole = copy.copy(clip)
    whole.text = FullText(clip.text.net, clip.text.tokenizer)
    m = made(name, clip)
    other = copy.copy(m)
    other.clip = whole
    x = images(clip, 1)
    a, b = look(m, x, NAMES, grad=True), look(other, x, NAMES, grad=True)
    assert ("prefix", 0) in a.parts and ("prefix", 0) not in b.parts
    for c, n in enumerate(NAMES):
        T = int(a.cl.pool[c]) + 1
        for i in range(clip.text.layers):
            one, all77 = a.heads("text", i, n), b.heads("text", i, n)
            assert all77.shape[-1] == 77 and one.shape[-1] == T
            torch.testing.assert_close(one, all77[:, :T, :T], atol=2e-6, rtol=0)
            ga, gb = a.heads("text", i, n, a.evidence(n)), b.heads("text", i, n, b.evidence(n))
            if (
                name == "DCP"
            ):  # its coupler takes the mean of all sentences' (equal) prefixes, so each copy holds a part
                gb = b.evidence(n)["text", i][0].sum(0)
            torch.testing.assert_close(ga, gb[:, :T, :T], atol=1e-5, rtol=1e-3)
            assert gb[:, :, T:].abs().max() == 0 and gb[:, T:].abs().max() == 0  # padding cannot speak
        assert [p.label for p in a.positions("text", 0, n)] == [p.label for p in b.positions("text", 0, n)][:T]
        if name == "DCP":
            continue
        one, all77 = word_row(a, n), word_row(b, n)  # positions, then later sets of visitors
        torch.testing.assert_close(one, torch.cat([all77[:T], all77[77:]]), atol=1e-5, rtol=1e-3)
        assert all77[T:77].abs().max() == 0


def test_names_encoded_in_chunks_give_the_same_matrices():
    clip = small("vit")
    for name in ("CoOp", "CoOp, class-specific", "MMRL"):
        m = made(name, clip)
        a = look(m, images(clip, 1), NAMES)
        clip.text.chunk = 3
        try:
            b = look(m, images(clip, 1), NAMES)
        finally:
            clip.text.chunk = None
        for u, v in zip(matrices(a), matrices(b), strict=True):
            torch.testing.assert_close(u, v, atol=1e-6, rtol=0)


# --- names of positions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vit", "timm", "siglip"])
def test_visitors_never_shift_the_patches(kind):
    clip = small(kind)
    plain = look(ZeroShot(clip), images(clip, 1), NAMES).positions("image")
    R, C = clip.image.grid
    assert [(p.row, p.col) for p in plain if p.kind == "patch"] == list(product(range(R), range(C)))
    assert [p.label for p in plain if p.kind != "patch"] == ["class token"]
    for name in ("VPT", "MuDPT", "DCP", "MMRL", "DPT"):
        t = look(made(name, clip), images(clip, 1), NAMES)
        for i in range(clip.image.layers):
            here = t.positions("image", i)
            assert here[: len(plain)] == plain and len(here) == t.heads("image", i).shape[-1]
            assert [p.at for p in here] == list(range(len(here)))
            assert [p.k for p in here[len(plain) :]] == list(range(len(here) - len(plain)))
    assert t.positions("image", -1)[-1].label == f"prompt 2 for '{t.likely[2]}'"


@pytest.mark.parametrize("model, first", [("test_vit2", ["register 0"]), ("test_vit3", ["register 0"])])
def test_registers_are_named_and_pooling_by_attention_is_said(model, first):
    seed_all(0)
    vision = dict(
        timm_model_name=model, timm_pool="avg" if model == "test_vit2" else "map", timm_proj="linear", image_size=160
    )
    clip = load_clip(dict(embed_dim=32, vision_cfg=vision, text_cfg=TEXT), device="cpu")
    t = look(VPT(clip, n_ctx=2), images(clip, 1), NAMES, grad=True)
    assert [p.label for p in t.positions("image")[:2]] == [*first, "patch row 0, column 0"]
    r = reader(clip.image)
    assert math.isclose(float(r.sum()), 1, rel_tol=1e-6) and len(r) == 101
    assert (r[0] > 0) == (model == "test_vit3")  # its map head reads the register too
    for by in able(t):
        h = draw(t, "cat", by)
        assert h.values.shape == (10, 10) and np.isfinite(h.values).all()
    assert ("further attention" in h.note) == (model == "test_vit3")


def test_names_in_a_sentence_are_found():
    clip = small("vit")
    for template, name, want in [
        ("a photo of a {}.", "golden retriever", "golden retriever"),
        ("a {}, a type of pet.", "pet", "pet"),
        ("{}", "fire truck", "fire truck"),
        ("the {}", "African_hunting_dog", "African hunting dog".lower()),
    ]:
        cl = clip.text.classes([name, "cat"], 2, template)
        here = text_places(clip.text, cl, 0, template)
        got = {}
        for p in here:
            if p.of_name:
                got[p.word] = got.get(p.word, "") + p.label
        assert " ".join(got.values()) == want
        assert [p.k for p in here if p.kind == "prompt"] == [0, 1]
        assert here[int(cl.pool[0])].label == "end token" and {p.label for p in here[int(cl.pool[0]) + 1 :]} == {
            "padding"
        }


def test_a_position_by_label_number_or_place():
    t = look(made("VPT", small("vit")), images(small("vit"), 1), NAMES)
    row = t.attends("image", 1, 0, "prompt 1")
    place = row[5][0]
    assert place.label == "patch row 1, column 0"
    assert [v for _, v in row] == t.weights("image", 1, 0)[18].tolist()
    column = t.attended_by("image", 1, 0, place)
    assert [v for _, v in column] == t.weights("image", 1, 0)[:, 5].tolist()
    assert t.at("image", 0, 5) == t.at("image", 0, "patch row 1, column 0") == 5


# --- rows that grow on the way -------------------------------------------------------------------------------------


def by_hand(m, name):
    "Attention of each block of open_clip's own text tower, walked over the row as MMRL defines it"
    net, first = m.clip.model, m.clip.text.layers - m.depth
    x = net.token_embedding(m.clip.tokenizer([m.template.format(name)])) + net.positional_embedding
    for i, block in enumerate(net.transformer.resblocks):
        if i >= first:
            late = m.to_text[i - first](m.rep)[None]
            x = torch.cat([x[:, :1], late, x[:, 1 if i == first else 1 + m.n_rep :]], 1)
        y, mask = block.ln_1(x), torch.full((x.shape[1], x.shape[1]), float("-inf")).triu(1)
        yield block.attn(y, y, y, attn_mask=mask, average_attn_weights=False)[1][0].detach()
        x = block(x, attn_mask=mask)


def test_late_prompts_are_seen_where_they_are():
    clip = small("vit")
    m = made("MMRL", clip)
    t = look(m, images(clip, 1), NAMES)
    for n in NAMES:
        for i, want in enumerate(by_hand(m, n)):
            got = t.heads("text", i, n)
            T = len(got[0])
            torch.testing.assert_close(got, want[:, :T, :T], atol=2e-6, rtol=0)
            assert t.positions("text", i, n)[-1].label == "end token" and t.end(n, i) == T - 1


@pytest.mark.parametrize("kind", ["vit", "siglip", "coca text", "wide text, unequal depth"])
def test_late_prompts_never_shift_a_word(kind):
    clip = small(kind)
    m = made("MMRL", clip)
    x, lead, first = images(clip, 1), clip.text.lead, clip.text.layers - m.depth
    t, plain = look(m, x, NAMES, grad=True), look(ZeroShot(clip, m.template), x, NAMES)
    for n in NAMES:
        before = plain.positions("text", 0, n)
        for i in range(clip.text.layers):
            here, late = t.positions("text", i, n), m.n_rep * (i >= first)
            assert [p.at for p in here] == list(range(len(t.heads("text", i, n)[0])))
            assert [p.label for p in here[lead : lead + late]] == [f"late prompt {k}" for k in range(late)]
            rest = here[:lead] + here[lead + late :]
            assert [(p.kind, p.label, p.word, p.of_name) for p in rest] == [
                (p.kind, p.label, p.word, p.of_name) for p in before
            ]
            for by in ("raw", "rollout", "relevance"):
                s = sheet(t, "text", by, i, n)
                assert s.places == here and s.values.shape[1:] == (len(here),) * 2 and np.isfinite(s.values).all()
                assert by == "relevance" or np.allclose(s.values.sum(-1), 1, atol=1e-5)
                assert here[int(s.at(None)[0])].label in ("end token", "class token", "padding")  # siglip reads the last
        assert [p.label for p in sources(t, "text", n)] == [p.label for p in before] + [
            f"late prompt {k} of block {i}" for i in range(first, clip.text.layers) for k in range(m.n_rep)
        ]
        said = words(t, n)
        assert [w for w in said.words if "late" not in w] == words(look(ZeroShot(clip, m.template), x, NAMES, grad=True), n).words


def test_late_prompts_in_whole_sentences():
    clip = small("vit")
    whole = copy.copy(clip)
    whole.text = FullText(clip.text.net, clip.text.tokenizer)
    m = made("MMRL", clip)
    other = copy.copy(m)
    other.clip = whole
    a, b = (look(v, images(clip, 1), NAMES, grad=True) for v in (m, other))
    for n in NAMES:
        for i in range(clip.text.layers):
            T = len(a.positions("text", i, n))
            assert a.positions("text", i, n) == b.positions("text", i, n)[:T]
            torch.testing.assert_close(a.heads("text", i, n), b.heads("text", i, n)[:, :T, :T], atol=2e-6, rtol=0)
        T = len(a.positions("text", 0, n))
        one, all77 = word_row(a, n), word_row(b, n)
        torch.testing.assert_close(one, torch.cat([all77[:T], all77[77:]]), atol=1e-5, rtol=1e-3)
        assert all77[T:77].abs().max() == 0


# --- rollout -------------------------------------------------------------------------------------------------------


def test_identity_attention_rolls_out_to_the_identity():
    t = look(made("MuDPT", small("vit")), images(small("vit"), 1), NAMES)
    eye = torch.eye(19).expand(1, 2, 19, 19)
    t.parts.update({("image", i): eye for i in range(4)})
    R = through(t, "image")
    torch.testing.assert_close(R[:17], torch.eye(17, 17 + 4 * 2))
    assert rollout(t).values.max() == 0  # the class token holds itself alone


def test_rollout_of_constant_positions_is_the_product():
    g = torch.Generator().manual_seed(3)
    blocks = [torch.rand(5, 5, generator=g, dtype=torch.float64).softmax(-1) for _ in range(4)]
    want = np.linalg.multi_dot([(np.eye(5) + b.numpy()) / 2 for b in reversed(blocks)])
    np.testing.assert_allclose(flow(blocks, 5, mix=lambda a, b: (a + b) / 2).numpy(), want, atol=1e-12)


def paths(blocks, base, enters):
    "Rollout with replaced visitors, by walking back from every position at the end along every path"
    L, columns = len(blocks), {}
    for i in sorted(enters):
        for k in range(len(blocks[i]) - base):
            columns[i, k] = base + len(columns)

    def back(i, p):  # position p after block i -> {source: weight}
        if p >= base and i + 1 in enters:
            return {columns[i + 1, p - base]: 1.0}
        if i < 0:
            return {p: 1.0}
        out = {}
        for q in range(len(blocks[i])):
            w = (float(blocks[i][p, q]) + (p == q)) / 2
            for s, v in back(i - 1, q).items():
                out[s] = out.get(s, 0) + w * v
        return out

    def start(p):
        return back(L - 1, p)

    R = np.zeros((len(blocks[-1]), base + len(columns)))
    for p in range(len(R)):
        for s, v in start(p).items():
            R[p, s] = v
    return R


@pytest.mark.parametrize(
    "sizes, enters", [((4, 4, 4), {0}), ((4, 4, 4), {0, 1, 2}), ((3, 5, 4, 4), {1, 2}), ((4, 5, 5), {0, 1})]
)
def test_rollout_forgets_replaced_visitors_along_every_path(sizes, enters):
    g = torch.Generator().manual_seed(1)
    blocks = [torch.randn(n, n, generator=g, dtype=torch.float64).softmax(-1) for n in sizes]
    R = flow(blocks, 3, enters, mix=lambda a, b: (a + b) / 2)
    np.testing.assert_allclose(R.numpy(), paths(blocks, 3, enters), atol=1e-12)
    np.testing.assert_allclose(R.sum(1).numpy(), 1, atol=1e-12)


def test_visitors_that_are_made_carry_their_evidence_on():
    half = lambda a, b: (a + b) / 2
    read = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])  # visitor 0 reads token 1
    ask = torch.tensor([[0.0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])  # token 0 reads visitor 1
    swap = torch.tensor([[0.0, 1], [1, 0]])  # the coupler: each visitor reads the other
    R = flow([read, ask], 2, {0, 1}, {1: swap}, half)
    assert R.shape == (4, 4)
    # token 0: half itself, half visitor 1, who is half itself and half visitor 0, who is half itself and half token 1
    torch.testing.assert_close(R[0], torch.tensor([0.5, 0.125, 0.125, 0.25]))
    look_at = torch.tensor(
        [[0.0, 1, 0], [0, 0, 1]]
    )  # two class-aware prompts: one reads token 1, one a learned extra key
    R = flow(
        [torch.eye(2), torch.tensor([[0.0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])],
        2,
        {1},
        {1: look_at},
        half,
    )
    assert R.shape == (4, 5)  # sources: two tokens, two classes, one extra key
    torch.testing.assert_close(R[0], torch.tensor([0.5, 0.25, 0.25, 0, 0]))
    torch.testing.assert_close(R[3], torch.tensor([0, 0, 0, 0.5, 0.5]))


# --- relevance -----------------------------------------------------------------------------------------------------


def tiny(layers=1, **more):
    seed_all(11)
    vision = dict(image_size=32, layers=layers, width=128, patch_size=8, **more)
    clip = load_clip(
        dict(embed_dim=24, vision_cfg=vision, text_cfg=dict(TEXT, layers=1), quick_gelu=True), device="cpu"
    )
    with torch.no_grad():
        for p in clip.model.visual.transformer.parameters():
            p.mul_(2)
    return clip


def test_relevance_of_one_block_by_an_explicit_formula():
    clip = tiny()
    m, x = ZeroShot(clip), images(clip, 1)
    v, b = clip.model.visual, clip.model.visual.transformer.resblocks[0]
    tokens = v.conv1(x).flatten(2).transpose(1, 2)[0]
    tokens = v.ln_pre(torch.cat([v.class_embedding[None], tokens]) + v.positional_embedding)  # [17, 128]
    q, k, val = (b.ln_1(tokens) @ b.attn.in_proj_weight.T + b.attn.in_proj_bias).chunk(3, -1)
    cut = lambda z: z.reshape(17, 2, 64).transpose(0, 1)
    A = ((cut(q) @ cut(k).transpose(1, 2)) / 8).softmax(-1).detach().requires_grad_()
    with torch.no_grad():
        text = F.normalize(clip.encode_text([f"a photo of a {n}." for n in NAMES]), dim=-1)

    def logit(A, c):
        y = tokens + b.attn.out_proj((A @ cut(val)).transpose(0, 1).reshape(17, 128))
        y = y + b.mlp(b.ln_2(y))
        return clip.scale * F.normalize(v.ln_post(y)[0] @ v.proj, dim=-1) @ text[c]

    t = look(m, x, NAMES, grad=True)
    np.testing.assert_allclose(t.weights("image", 0, 1), A[1].detach().numpy(), atol=1e-6)
    for c, n in enumerate(NAMES):
        (g,) = torch.autograd.grad(logit(A, c), A)
        want = (g * A).clamp(min=0).mean(0)[0, 1:].reshape(4, 4).detach().numpy()  # R = I + mean relu(g A)
        np.testing.assert_allclose(relevance(t, n).values, want, atol=1e-5 * abs(want).max() + 1e-8)
        np.testing.assert_allclose(
            relevance(t, n, layer=0, head=1).values, (g * A)[1, 0, 1:].clamp(min=0).reshape(4, 4).detach(), atol=1e-5
        )
        # the gradient is a derivative: nudge one weight, watch the logit
        h, j, eps = 1, 6, 3e-3
        up, down = A.detach().clone(), A.detach().clone()
        up[h, 0, j] += eps
        down[h, 0, j] -= eps
        slope = (logit(up, c) - logit(down, c)) / (2 * eps)
        got = t.evidence(n)["image", 0][0, h, 0, j] / A[h, 0, j].detach()
        assert math.isclose(float(got), float(slope), rel_tol=0.02, abs_tol=5e-3)


def test_relevance_of_two_blocks_multiplies_up():
    clip = tiny(2)
    t = look(ZeroShot(clip), images(clip, 1), NAMES, grad=True)
    e = t.evidence("cat")
    A1, A2 = (e["image", i][0].clamp(min=0).mean(0) for i in (0, 1))
    I = torch.eye(17)
    R = (I + A2) @ (I + A1)
    np.testing.assert_allclose(relevance(t, "cat").values.ravel(), R[0, 1:], rtol=1e-4, atol=1e-8)
    y = torch.log_softmax(torch.tensor(t.logits), 0)
    assert t.says == NAMES[int(y.argmax())]
    c = t.evidence("cat", contrast=True)["image", 1]
    others = sum(p * t.evidence(n)["image", 1] for p, n in zip(t.probabilities, NAMES))
    torch.testing.assert_close(c, t.evidence("cat")["image", 1] - others.float(), atol=1e-5, rtol=1e-3)


def test_what_cannot_influence_has_no_relevance():
    clip = tiny(3)
    t = look(VPT(clip, n_ctx=2, depth=1), images(clip, 1), NAMES, grad=True)
    last = t.evidence("cat")["image", 2]
    assert last[0, :, 1:].abs().max() == 0 and last[0, :, 0].abs().max() > 0  # only the class token is read
    w = t.heads("text", 0, "cat", t.evidence("cat"))
    assert w.triu(1).abs().max() == 0 and w.abs().max() > 0  # nobody reads what comes after
    with torch.no_grad():
        for b in clip.model.visual.transformer.resblocks:  # values are zero: attention moves nothing
            b.attn.in_proj_weight[256:] = 0
            b.attn.in_proj_bias[256:] = 0
    h = heat(VPT(clip, n_ctx=2, depth=1), images(clip, 1), NAMES, "cat")
    assert np.abs(h.values).max() == 0
    with pytest.raises(BadInput, match="zero everywhere"):
        h.share()


def test_relevance_knows_the_patch_that_matters():
    "A tower whose class token copies patches through one direction of the width: only the bright patch holds it"
    clip = tiny(1, no_ln_pre=True)
    v = clip.model.visual
    b, D = v.transformer.resblocks[0], 128
    with torch.no_grad():
        for p in v.parameters():
            p.zero_()
        for ln in (b.ln_1, v.ln_post):
            ln.weight.fill_(1)
        v.conv1.weight[0] = 1 / 64  # coordinate 0: brightness; the mean is taken off by the norm
        v.conv1.weight[1] = -1 / 64
        v.class_embedding[2], v.class_embedding[3] = 1, -1
        b.attn.in_proj_weight[2 * D :] = torch.eye(
            D
        )  # values: what is there; queries and keys zero: attention is uniform
        b.attn.out_proj.weight.copy_(torch.eye(D))
        v.proj[0, 0], v.proj[2, 1] = 1, 1  # joint space: brightness, and a constant
    m = ZeroShot(clip)
    for r, c in [(0, 0), (0, 3), (2, 1), (3, 0)]:
        x = torch.zeros(3, 32, 32)
        x[:, 8 * r : 8 * r + 8, 8 * c : 8 * c + 8] = 1
        t = look(m, x, NAMES, grad=True)
        np.testing.assert_allclose(t.weights("image", 0)[0], 1 / 17, atol=1e-6)
        signs = set()
        for n in NAMES:
            h = relevance(t, n)
            g = t.evidence(n)["image", 0][0, :, 0, 1:].sum(0).reshape(4, 4)
            off = torch.ones(4, 4, dtype=bool)
            off[r, c] = False
            assert g[off].abs().max() < 1e-6 and g[r, c].abs() > 1e-4
            signs.add(bool(g[r, c] > 0))
            assert (h.peak() == (r, c)) if g[r, c] > 0 else h.values.max() < 1e-6
        assert signs == {True, False}  # brightness speaks for some names and against others


def test_text_relevance_names_every_position():
    clip = small("vit")
    t = look(made("CoOp", clip), images(clip, 1), NAMES, grad=True)
    pairs = text_relevance(t, "golden retriever")
    assert [p.label for p, _ in pairs][:5] == ["start token", "context 0", "context 1", "context 2", "context 3"]
    s = words(t, "golden retriever")
    assert s.words == ["context 0", "context 1", "context 2", "context 3", "golden", "retriever", "."]
    np.testing.assert_allclose(s.values.sum(), sum(v for p, v in pairs if p.kind != "special"), rtol=1e-5)
    assert math.isclose(sum(v for _, v in text_relevance(t, "cat", "rollout")), 1, rel_tol=1e-5)
    assert math.isclose(sum(v for _, v in text_relevance(t, "cat", "raw", layer=1, head=0)), 1, rel_tol=1e-5)
    t = look(made("MaPLe", clip), images(clip, 1), NAMES, grad=True)
    pairs = text_relevance(t, "cat")
    sets = [v for p, v in pairs if p.kind == "prompt" and p.k == 1]
    assert len(sets) == 4 and pairs[-1][0].label == "context 1 of block 3"
    assert math.isclose(words(t, "cat").values[1], sum(sets), rel_tol=1e-5)  # a slot's word counts all its sets


# --- maps follow what moves ----------------------------------------------------------------------------------------

CELLS = {4: [(0, 0), (0, 3), (3, 0), (3, 3), (1, 2), (2, 0)], 10: [(0, 0), (0, 9), (9, 0), (2, 7), (7, 3)]}


@pytest.mark.parametrize("kind", ["vit", "timm", "siglip"])
@pytest.mark.parametrize("name", MAKE)
def test_one_changed_patch_is_found_where_it_is(kind, name):
    "In block 0 a key changes where the picture changed, and nowhere else: weights shift by one common factor, save one"
    clip = small(kind)
    m, V = made(name, clip), clip.image
    R, C = V.grid
    p = clip.image_size // R
    x = 0.1 * images(clip, 1, seed=4)
    base = look(m, x, NAMES)
    visited = base.heads("image", 0).shape[-1] > R * C + V.n_special
    for r, c in CELLS[R]:
        y = x.clone()
        y[..., p * r : p * r + p, p * c : p * c + p] += torch.randn(3, p, p, generator=torch.Generator().manual_seed(0))
        t = look(m, y, NAMES)
        asked = ["raw"] * V.only_first + ["prompt"] * (visited and "everywhere" not in name)
        for by in asked or ["similarity"]:
            if by == "similarity":
                d = np.abs(draw(t, NAMES[0], by, layer=0).values - draw(base, NAMES[0], by, layer=0).values)
            else:
                kw = dict(by=by, layer=0, head=0, **({"slot": 1} if by == "prompt" else {}))
                ratio = np.log(draw(t, **kw).values / draw(base, **kw).values)
                d = np.abs(ratio - np.median(ratio))
                assert np.sort(d.ravel())[-2] < 1e-3 < 10 * d.max()
            assert np.unravel_index(d.argmax(), d.shape) == (r, c), by


def test_the_joint_space_map_of_a_tower_that_cannot_mix_is_exact():
    for kind in ("vit", "timm"):
        clip = copy.copy(small(kind))
        clip.model = copy.deepcopy(clip.model)
        net = clip.model.visual
        with torch.no_grad():
            for n, q in net.named_parameters():
                if n.endswith(("out_proj.weight", "out_proj.bias", "attn.proj.weight", "attn.proj.bias")):
                    q.zero_()
        from mudpt.image import image_tower

        clip.image = image_tower(net)
        R, C = clip.image.grid
        p, x = clip.image_size // R, images(clip, 1)
        for name in ("ZeroShot", "VPT"):
            m = made(name, clip)
            a = draw(look(m, x, NAMES), "cat", "similarity").values
            for r, c in CELLS[R]:
                y = x.clone()
                y[..., p * r : p * r + p, p * c : p * c + p] *= -1
                d = np.abs(draw(look(m, y, NAMES), "cat", "similarity").values - a)
                assert d[r, c] > 1e-3
                d[r, c] = 0
                assert d.max() < 1e-5


def test_the_joint_space_map_of_the_pooled_token_is_the_logit():
    clip = small("vit")
    t = look(made("VPT", clip), images(clip, 1), NAMES)
    e = clip.image.pool(t.tokens[3][None, :17])  # the tower's own pooling of what the look kept
    np.testing.assert_allclose(clip.scale * F.normalize(e, dim=-1)[0].detach().numpy() @ t.text.T, t.logits, atol=1e-4)


def pasted(name, x, y, size=30):
    sprite = emoji.sprite(name, "noto").resize((size, size))
    ground = Image.new("RGB", (64, 64), (120, 150, 120))
    ground.paste(sprite, (x - size // 2, y - size // 2), sprite)
    return ground


@pytest.mark.parametrize(
    "name", ["ZeroShot", "CoOp", "CoCoOp", "VPT", "IVLP", "MaPLe", "MuDPT", "DCP", "DPT vlp", "DPT"]
)
def test_maps_follow_an_emoji(name):
    clip = emoji.clip(device="cpu")
    seed_all(2)
    m = MAKE[name](clip)
    if name == "CoCoOp":  # its network begins at random; here it begins at no shift
        torch.nn.init.zeros_(m.meta[2].weight), torch.nn.init.zeros_(m.meta[2].bias)
    names = ["cat", "rocket", "umbrella"]
    for by in ("raw", "rollout", "relevance", "similarity"):
        at = {}
        for where, (x, y) in dict(left=(17, 32), right=(47, 32), top=(32, 17), bottom=(32, 47)).items():
            h = heat(
                m,
                pasted("umbrella", x, y),
                names,
                "umbrella",
                by,
                **(dict(contrast=True) if by == "similarity" else {}),
            )
            at[where] = Heat(h.values - np.median(h.values), h.picture).centre()
        assert at["right"][1] - at["left"][1] > 5, (by, at)  # the thing moved by 30 pixels
        assert at["bottom"][0] - at["top"][0] > 5, (by, at)


# --- prompts that look ---------------------------------------------------------------------------------------------


def test_the_coupler_by_an_explicit_formula():
    clip = small("vit")
    m = made("DCP", clip)
    t = look(m, images(clip, 1), NAMES)
    assert coupled(t) == [1, 2, 3]
    got = {}
    handle = m.couplers[0].register_forward_pre_hook(lambda _, a: got.setdefault("first", a))
    with torch.no_grad():
        m(images(clip, 1), NAMES)
    handle.remove()
    (text, image), coupler = got["first"], m.couplers[0]
    for to, own, other, block in [
        ("image", image, coupler.t2v(text), coupler.vision),
        ("text", text, coupler.v2t(image), coupler.text),
    ]:
        d, h = own.shape[-1], block.attn.num_heads
        W, b = block.attn.in_proj_weight, block.attn.in_proj_bias
        q = (block.ln_1(other)[0] @ W[:d].T + b[:d]).reshape(4, h, -1).transpose(0, 1)
        k = (block.ln_1(own)[0] @ W[d : 2 * d].T + b[d : 2 * d]).reshape(4, h, -1).transpose(0, 1)
        want = (q @ k.transpose(1, 2) / (d // h) ** 0.5).softmax(-1).detach()
        for head in range(h):
            np.testing.assert_allclose(cross(t, 1, to, head).values, want[head], atol=1e-5)
    assert "dropped" in cross(look(made("DCP as released", clip), images(clip, 1), NAMES), 1, "text").title


@pytest.mark.parametrize("kind", ["vit", "timm"])
def test_class_aware_attention_by_an_explicit_formula(kind):
    clip = small(kind)
    m, x = made("DPT", clip), images(clip, 1)
    t = look(m, x, NAMES)
    assert len(t.likely) == 3 and set(t.likely) <= set(NAMES)
    blocks = range(1, clip.image.layers)
    i = clip.image.layers - 1
    with torch.no_grad():
        raw = m.text_features(NAMES)[0]
        g, tokens = raw[NAMES.index(t.likely[1])], t.tokens[i - 1][: t.clip.image.n_special + math.prod(t.grid)]
        p = m.cavpt[i - blocks[0]]
        w = (p.q(p.meta(g)) @ p.k(torch.cat([tokens, p.extra])).T / 32**0.5).softmax(-1)
    k = clip.image.n_special
    np.testing.assert_allclose(cavpt(t, t.likely[1]).values.ravel(), w[k : k + math.prod(t.grid)], atol=1e-5)
    for layer in blocks:
        assert cavpt(t, t.likely[0], layer).values.shape == t.grid


# --- memory --------------------------------------------------------------------------------------------------------


def test_a_look_holds_attention_once_and_lets_go():
    clip = small("timm")
    V, T = clip.image, clip.text
    t = look(made("VPT", clip), images(clip, 1), NAMES)
    n, P, S = 104, t.cl.P, t.cl.S  # 100 patches, a class token, three visitors
    image, text = V.layers * V.heads * n * n, T.layers * T.heads * (P * P + len(NAMES) * S * (P + S))
    held = {w.untyped_storage().data_ptr(): w.untyped_storage().nbytes() for w in t.parts.values()}
    assert sum(held.values()) == 4 * (image + text)
    assert sum(x.numel() for x in t.tokens.values()) == V.layers * n * V.width
    t = look(made("VPT", clip), images(clip, 1), NAMES, grad=True)
    for name in [*NAMES, "cat"]:
        relevance(t, name)
    assert len(t._memo) <= 4 and not any(w.requires_grad for e in t._memo.values() for w in e.values())
    graph = weakref.ref(t.parts["image", 0])
    gc.disable()
    try:
        t.release()
        assert graph() is None  # without waiting for the collector
    finally:
        gc.enable()
    relevance(t, "cat")


# --- pictures ------------------------------------------------------------------------------------------------------


def test_the_picture_is_what_the_model_saw():
    clip = small("vit")  # 32 pixels
    wide = Image.new("RGB", (200, 100))
    wide.paste("white", (60, 40, 90, 70))
    known = np.zeros((100, 200), bool)
    known[40:70, 60:90] = True
    x, picture, mask = seen(clip, wide, known)
    assert picture.size == (32, 32) and mask.shape == (32, 32) and mask.sum() > 50
    assert ((np.asarray(picture).mean(-1) > 127) == mask).mean() > 0.97
    again, same, none = seen(clip, x[0])
    assert torch.equal(again, x) and same.tobytes() == picture.tobytes() and none is None
    x, _, mask = seen(clip, emoji.scene("cat", key=1))
    assert mask.shape == (32, 32) and abs(mask.mean() - emoji.scene("cat", key=1).mask.mean()) < 0.02


def test_every_source_of_a_picture_gives_the_same_look(tmp_path):
    clip = emoji.clip(device="cpu")
    s = emoji.scene("rocket", key=2)
    s.image().save(tmp_path / "a.png")
    names = ["rocket", "cat"]
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), s.image(), clip.test_transform(s.image())):
        t = look(ZeroShot(clip), source, names)
        np.testing.assert_allclose(t.logits, look(ZeroShot(clip), s, names).logits, atol=1e-5)
        assert t.mask is None
    np.testing.assert_array_equal(look(ZeroShot(clip), s, names).mask, s.mask)


def test_differences_and_shares():
    p = Image.new("RGB", (8, 8))
    a, b = Heat([[1.0, 2], [3, 4]], p, kind="k", method="A"), Heat([[1.0, 1], [1, 7]], p, kind="k", method="B")
    d = a - b
    np.testing.assert_array_equal(d.values, -(b - a).values)
    assert d.signed and d.method == "A − B" and a.share().values.sum() == 1
    assert a.pixels().shape == (8, 8) and a.pixels()[0, 0] == 1 and a.pixels()[7, 7] == 4
    cut = Heat([[0.0, 1]], p, covers=(8, 6)).pixels()  # two cells of three columns; the last two columns are no patch
    assert cut.shape == (8, 8) and cut[0, 0] == 0 and cut[0, 5] == cut[0, 7] == 1
    assert Heat([[0.0, 0], [0, 1]], p).centre() == (6, 6)
    other = Heat(a.values, Image.new("RGB", (8, 8), "red"), kind="k")
    for bad, why in [
        (other, "different pictures"),
        (Heat(np.eye(3), p, kind="k"), "different towers"),
        (Heat(a.values, p, kind="j"), "means nothing"),
    ]:
        with pytest.raises(BadInput, match=why):
            a - bad


def test_figures_hold_all_they_need():
    clip = emoji.clip(device="cpu")
    t = look(VPT(clip, n_ctx=2), emoji.scene("cat"), ["cat", "dog"], grad=True)
    hs = [draw(t, "cat", by) for by in ("raw", "rollout", "relevance")]
    row = side_by_side(hs[2], draw(t, "dog"))
    assert row.common and not side_by_side(*hs).common
    for f in (hs[0], row, side_by_side(*hs), hs[0] - hs[0], words(t, "cat")):
        assert f.png()[:4] == b"\x89PNG" == f._repr_png_()[:4]
        said = f.figure().to_json()
        assert "http" not in said.replace("http://www.w3.org", "") and json.loads(said)["data"]
    fig = row.figure()
    maps_drawn = [d for d in fig.data if d.type == "heatmap"]
    assert maps_drawn[0].text[7][1] == "patch: row 7, column 1" and (maps_drawn[0].x[0], maps_drawn[0].x[-1]) == (
        3.5,
        59.5,
    )
    assert maps_drawn[0].zmax == maps_drawn[1].zmax == max(h.values.max() for h in row.heats)
    assert [d.type for d in fig.data].count("image") == 2 and fig.data[0].source.startswith("data:image/png;base64,")


# --- what cannot be had is said in a sentence ----------------------------------------------------------------------


def test_sentences():
    clip, rn = small("vit"), small("resnet")
    x = images(clip, 1)
    t = look(made("VPT", clip), x, NAMES)
    closed = look(CoOp(rn, 2), images(rn, 1), NAMES, grad=True)
    assert able(closed) == [] and able(t) == ["raw", "rollout", "similarity", "prompt", "received"]
    assert words(closed, "cat").values.max() > 0  # its text tower is open
    for error, why, f in [
        (NoSlots, "image tower .ModifiedResNet. has no attention of its own", lambda: draw(closed, "cat")),
        (NoSlots, "no attention of its own", lambda: closed.attends("image", 0, 0, "class token")),
        (BadInput, "4 blocks, give 0 to 3", lambda: draw(t, by="raw", layer=4)),
        (BadInput, "layer 1.5 does not exist", lambda: t.weights("image", 1.5)),
        (BadInput, "head 2 does not exist: this block has 2", lambda: draw(t, by="raw", head=2)),
        (BadInput, "slot 3 does not exist: block 3 holds 3", lambda: draw(t, by="prompt", slot=3)),
        (Unknown, "unknown class name 'lynx'", lambda: draw(t, "lynx", "similarity")),
        (Unknown, "unknown map 'rollup': did you mean 'rollout'", lambda: heat(t.method, x, NAMES, "cat", "rollup")),
        (Unknown, "unknown tower 'audio'", lambda: t.weights("audio")),
        (BadInput, "made without", lambda: draw(t, "cat")),
        (BadInput, "name one of", lambda: draw(t, by="similarity")),
        (BadInput, "has no slot: it takes layer, head", lambda: draw(t, by="rollout", slot=1)),
        (NoSlots, "ZeroShot puts no prompts", lambda: heat(ZeroShot(clip), x, NAMES, by="received")),
        (NoSlots, "VPT does not couple", lambda: cross(t)),
        (NoSlots, "VPT makes no class-aware prompts", lambda: draw(t, "cat", "cavpt")),
        (BadInput, "look needs a method, got Clip", lambda: look(clip, x, NAMES)),
        (BadInput, "the image tensor is", lambda: look(t.method, images(clip, 2), NAMES)),
        (BadInput, "must be a list", lambda: look(t.method, x, "cat")),
        (BadInput, "occurs 2 times", lambda: look(t.method, x, ["cat", "cat"])),
        (BadInput, "which class' sentence", lambda: t.weights("text")),
        (BadInput, "one number for each word", lambda: Strip(["a"], [])),
    ]:
        with pytest.raises(error, match=why):
            f()
    try:
        clip.text.chunk = 2
        with pytest.raises(BadInput, match="look at 2 or fewer"):
            look(t.method, x, NAMES, grad=True)
    finally:
        clip.text.chunk = None
    assert clip.text.look is None and set(maps) >= {
        "raw",
        "rollout",
        "relevance",
        "similarity",
        "prompt",
        "received",
        "cavpt",
    }


def test_a_look_that_fails_leaves_the_towers_as_they_were():
    clip = small("vit")
    m = made("DPT", clip)
    m.train()
    look(m, images(clip, 1), NAMES)
    assert m.training and all(c.look is None for c in m.cavpt)
    with pytest.raises(BadInput, match="needs its classes first"):
        look(CoOp(clip, 2, csc=True), images(clip, 1), NAMES)
    assert clip.image.look is None and clip.text.look is None
