"""Numbers computed by the authors' own code, compared with ours:  python tests/oracle.py DIR

DIR holds `<method>/<case>.npz` and `.json`: weights of a small CLIP, learnable tensors, inputs, logits, loss, gradients.
For every case the CLIP is built through open_clip, the method gets the case's parameters, and one training step's
numbers are compared: token rows, features, logits, loss, every gradient, and what else the case holds.
"""

import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from mudpt.core import seed_all
from mudpt.methods import DCP, DPT, IVLP, VPT, CoCoOp, CoOp, MaPLe, MuDPT, ZeroShot
from mudpt.methods.zeroshot import SEVEN
from mudpt.towers import Clip, _tokenizer, build, infer_config

ATOL = dict(logits=2e-4, loss=1e-4, grad=1e-3)  # absolute, absolute, relative to the tensor's largest entry


def frozen_clip(z):
    "The case's CLIP, with NaN in every row of the vocabulary that no case text needs"
    sd = {k[5:]: torch.from_numpy(np.array(z[k])) for k in z.files if k.startswith("clip/")}
    rows, ids = sd.pop("token_embedding.rows"), sd.pop("token_embedding.row_ids").long()
    sd["token_embedding.weight"] = torch.full((49408, rows.shape[1]), float("nan"))
    sd["token_embedding.weight"][ids] = rows
    cfg = infer_config(sd)
    model = build(cfg)
    model.load_state_dict(sd)
    return Clip(model, _tokenizer(None, cfg), device="cpu")


def make(meta, clip, z):
    "The method a case describes"
    m, c, names = meta["method"], meta["config"], meta["classnames"]
    init, text_n, vis_n = c.get("ctx_init") or None, c.get("n_ctx_text"), c.get("n_ctx_vision")
    csc = c.get("csc", False) and not init  # the reference ignores it beside a phrase
    place = dict(csc=csc, position=c.get("class_token_position", "end"))
    template = meta.get("template") or "a photo of a {}."
    match m:
        case "zeroshot":
            return ZeroShot(clip, template)
        case "zeroshot_ensemble":
            own = [t for t in template if t not in SEVEN]
            return ZeroShot(clip, own[0] if own else None, ensemble=True)
        case "coop":
            return CoOp(clip, c["n_ctx"], init, **place)
        case "cocoop":
            return CoCoOp(clip, c["n_ctx"], init)
        case "vpt_shallow" | "vpt_deep" | "vpt_mudpt_repo":
            return VPT(clip, c["n_ctx"], c["depth"], template)
        case "ivlp" | "mpt":
            return IVLP(clip, text_n, vis_n, c["depth_text"], c["depth_vision"], init)
        case "maple":
            return MaPLe(clip, c["n_ctx"], c["depth"], init)
        case "mudpt" | "umudpt" | "uumudpt":
            net = "linear" if m == "mudpt" else "transformer"
            return MuDPT(clip, c["n_ctx"], c["depth"], init, net=net, both=m != "umudpt")
        case "cmpa" | "cmpa_paper":
            shared, depth = c.get("parameter_sharing", True), len(meta["coupled_layers"])
            return DCP(clip, c["n_ctx"], depth, init, c.get("fusing", "mean"), shared, as_released=m == "cmpa")
        case "dpt_vpt":
            return DPT(clip, n_image=c["n_ctx"], stage="vpt", template=template)
        case "dpt_vlp":
            return DPT(clip, text_n, vis_n, "vlp", beta=c["beta"], warm_up=1, template=template, ctx_init=init, **place)
        case "dpt":
            extra = z["param/cavpt.ctx"].shape[1]
            return DPT(
                clip,
                text_n,
                vis_n,
                "cavpt",
                c["bottom_limit"],
                c["class_prompt_num"],
                extra,
                c["alpha"],
                c["beta"],
                1,
                template,
                init,
                **place,
            )
    raise KeyError(f"no method for oracle case '{m}' ({names})")


RENAME = {  # neutral name -> ours, tried in order
    "coop": [("text.ctx", "ctx")],
    "cocoop": [("text.ctx", "ctx"), ("meta_net.linear1", "meta.0"), ("meta_net.linear2", "meta.2")],
    "vpt": [("vision.ctx", "ctx"), ("vision.deep", "deep")],
    "ivlp": [
        ("text.ctx", "text_ctx"),
        ("text.deep", "text_deep"),
        ("vision.ctx", "image_ctx"),
        ("vision.deep", "image_deep"),
    ],
    "maple": [("text.ctx", "ctx"), ("text.deep", "deep"), ("t2v.input", "proj"), ("t2v.deep", "deep_proj.*")],
    "mudpt": [
        ("text.ctx", "text_ctx"),
        ("text.deep", "text_deep"),
        ("vision.ctx", "image_ctx"),
        ("vision.deep", "image_deep"),
        ("t2v.input", "t2v_input"),
        ("t2v.deep", "t2v"),
        ("v2t.deep", "v2t"),
    ],
    "umudpt": [
        ("text.ctx", "text_ctx"),
        ("text.deep", "text_deep"),
        ("vision.ctx", "image_ctx"),
        ("vision.deep", "image_deep"),
    ],
    "cmpa": [("text.ctx", "text_ctx"), ("vision.ctx", "image_ctx"), ("coupler", "couplers")],
    "dpt": [("text.ctx", "ctx"), ("vision.layers", "layers"), ("cavpt.ctx", "cavpt.*.extra")],
}
SAME = dict(
    vpt_shallow="vpt",
    vpt_deep="vpt",
    vpt_mudpt_repo="vpt",
    mpt="ivlp",
    uumudpt="umudpt",
    cmpa_paper="cmpa",
    dpt_vpt="dpt",
    dpt_vlp="dpt",
)


def ours(meta, name):
    "Our parameter for a neutral name; '*' stands for a leading axis that we keep as a list"
    method = SAME.get(meta["method"], meta["method"])
    for a, b in RENAME[method]:
        if name == a or name.startswith(a + "."):
            name = b + name[len(a) :]
            break
    if method == "cmpa":
        name = re.sub(r"^couplers\.(\d+)\.", lambda k: f"couplers.{int(k[1]) - 1}.", name)
        name = re.sub(r"^couplers\.(?=[tv])", "couplers.0.", name)
    if method == "dpt":
        name = re.sub(r"^cavpt\.(\d+)\.classifier", r"heads.\1", name)
    return name


def each(meta, name, m):
    "(our tensors, does the case stack them?) for a neutral name"
    key, params = ours(meta, name), dict(m.named_parameters())
    if "*" not in key:
        return [params[key]], False
    pat = re.compile(re.escape(key).replace(r"\*", r"\d+") + "$")
    hits = sorted(filter(pat.match, params), key=lambda k: [int(d) for d in re.findall(r"\d+", k)])
    return [params[k] for k in hits], True


def unused(meta, name):
    "Couplers of blocks that the reference creates and never runs; we do not create them"
    block = re.match(r"coupler\.(\d+)\.", name)
    return bool(block) and int(block[1]) not in meta["coupled_layers"]


def put(meta, m, z):
    "Give the method the case's learnable tensors; every tensor of ours must be set"
    left = {id(p) for p in m.parameters() if p.numel()}
    for k in (k for k in z.files if k.startswith("param/")):
        value = torch.from_numpy(np.array(z[k]))
        if not value.numel() or unused(meta, k[6:]):
            continue
        params, stacked = each(meta, k[6:], m)
        for p, v in zip(params, value if stacked else [value], strict=True):
            assert p.shape == v.shape, f"{k}: {tuple(v.shape)} in the case, {tuple(p.shape)} here"
            p.data.copy_(v)
            left.discard(id(p))
    assert not left, f"{len(left)} of our tensors are not in the case"


@dataclass
class Case:
    "What was found"

    name: str
    logits: float = 0.0
    loss: float = 0.0
    grad: float = 0.0
    wrong: list = field(default_factory=list)

    def close(self, what, a, b, tol, rel=False):
        b = torch.from_numpy(np.array(b)).to(a.dtype)
        if a.shape != b.shape:
            self.wrong.append(f"{what}: shape {tuple(a.shape)}, oracle {tuple(b.shape)}")
            return float("inf")
        d = float((a.detach() - b).abs().max()) if b.numel() else 0.0
        d = d / max(float(b.abs().max()), 1e-12) if rel and b.numel() else d
        if not d <= tol:
            self.wrong.append(f"{what}: off by {d:.2e}")
        return d

    def __str__(self):
        line = f"dlogits {self.logits:.1e}  dloss {self.loss:.1e}  dgrad {self.grad:.1e}"
        wrong = "".join(f"\n       {w}" for w in self.wrong)
        return f"{'FAIL' if self.wrong else 'ok  '} {self.name:<34} {line}{wrong}"


def same_rows(case, m, cl, tokens):
    "The frozen tokens of our rows are those the reference tokenised behind its placeholders"
    skip = cl.lead + cl.n_ctx
    ours = (t.tolist() for t in (cl.ids, cl.slot, cl.pool))
    for c, (row, ids, slot, end) in enumerate(zip(np.array(tokens).tolist(), *ours, strict=True)):
        frozen = [i for i, s in zip(ids[: end + 1], slot[: end + 1], strict=True) if s < 0]
        if row.index(max(row)) != end or row[: cl.lead] + row[skip : end + 1] != frozen:
            case.wrong.append(f"tokens of class {c} differ")


def gradients(case, meta, m, loss, z, prefix):
    "Every gradient the case holds, and none where the reference has none"
    m.zero_grad()
    if loss.requires_grad:
        loss.backward()
    for k in (k for k in z.files if k.startswith(prefix + "/")):
        params, stacked = each(meta, k[len(prefix) + 1 :], m)
        g = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
        case.grad = max(case.grad, case.close(k, torch.stack(g) if stacked else g[0], z[k], ATOL["grad"], rel=True))
    for name in meta["no_grad"].get(prefix, []):
        if unused(meta, name):
            continue
        params, _ = each(meta, name, m)
        if any(p.grad is not None and p.grad.abs().sum() > 0 for p in params):
            case.wrong.append(f"{prefix}/{name}: a gradient where the reference has none")


def run_case(path):
    "One case"
    path = Path(path)
    z, meta = np.load(path), json.loads(path.with_suffix(".json").read_text())
    case, names = Case(f"{path.parent.name}/{path.stem}"), meta["classnames"]
    seed_all(0)
    m = make(meta, frozen_clip(z), z)
    m.bind(names)
    put(meta, m, z)
    if m.n_trainable != meta["n_trainable"] and not meta.get("trainable_but_never_used_blocks"):
        case.wrong.append(f"{m.n_trainable} trainable numbers, the reference has {meta['n_trainable']}")
    x, y = torch.from_numpy(z["images"]), torch.from_numpy(z["labels"])
    cl = m.classes(names)
    if "tokens" in z.files and z["tokens"].ndim == 2:
        same_rows(case, m, cl, z["tokens"])
    m.epoch, m.epochs = 10**6, None
    out = m(x, names)
    case.logits = case.close("logits", out.logits, z["logits"], ATOL["logits"])
    case.close("image_features", out.image, z["image_features"], 1e-4)
    case.close("text_features", out.text, z["text_features"], 1e-4)
    loss = m.loss(out, y)
    case.loss = case.close("loss", loss, z["loss"], ATOL["loss"])
    gradients(case, meta, m, loss, z, "grad")
    extras(case, meta, m, x, y, names, z)
    return case


def extras(case, meta, m, x, y, names, z):
    "What only some cases hold"
    out, got = m(x, names), set(z.files)
    if "logits_first_image_alone" in got:
        case.close("logits_first_image_alone", m(x[:1], names).logits, z["logits_first_image_alone"], ATOL["logits"])
    if "logits_text_only" in got:
        text_only, image_only = m.partial_logits(out)
        case.close("logits_text_only", text_only, z["logits_text_only"], ATOL["logits"])
        case.close("logits_image_only", image_only, z["logits_image_only"], ATOL["logits"])
    if "topk_indices" in got and not np.array_equal(out.extra["chosen"].numpy(), z["topk_indices"]):
        case.wrong.append("topk_indices differ")
    if "layer_logits" in got:
        case.close("layer_logits", torch.stack(out.extra["class_logits"], 1), z["layer_logits"], ATOL["logits"])
    if "loss_warmup" in got:
        m.epoch = 0
        loss = m.loss(m(x, names), y)
        case.loss = max(case.loss, case.close("loss_warmup", loss, z["loss_warmup"], ATOL["loss"]))
        gradients(case, meta, m, loss, z, "grad_warmup")
    injected(case, m, z)


def stack(d, first):
    return torch.stack([d[i] for i in sorted(d) if i >= first])


def injected(case, m, z):
    "Prompts as they enter the towers"
    for key, prompts, first in (
        ("text_prompts", m.text, 0),
        ("vision_prompts", m.image, 0),
        ("text_deep_effective", m.text, 1),
        ("vision_deep_effective", m.image, 1),
    ):
        if f"aux/{key}" in z.files and z[f"aux/{key}"].size:
            case.close(f"aux/{key}", stack(prompts(), first), z[f"aux/{key}"], 1e-4)


def main(folder):
    "All cases under a folder; the exit status says whether all passed"
    paths = sorted(Path(folder).rglob("*.npz"))
    if not paths:
        print(f"oracle: no cases under '{folder}': give a folder with <method>/<case>.npz")
        return 2
    cases = []
    for p in paths:
        try:
            cases.append(run_case(p))
        except Exception as e:
            cases.append(Case(f"{p.parent.name}/{p.stem}", wrong=[f"{type(e).__name__}: {e}"]))
        print(cases[-1], flush=True)
    bad = sum(bool(c.wrong) for c in cases)
    worst = max(c.logits for c in cases), max(c.grad for c in cases)
    print(f"oracle: {len(cases)} cases, {bad} failed, max |dlogits| {worst[0]:.2e}, max rel dgrad {worst[1]:.2e}")
    return bad > 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tests/oracle.py DIR")
    sys.exit(main(sys.argv[1]))
