"""Train the small CLIP that ships with mudpt, on two CPU cores in about an hour.

    python scripts/pretrain_emoji.py run --out pretrain --steps 2000     # call again to continue where it stopped
    python scripts/pretrain_emoji.py export --out pretrain               # weights -> mudpt/assets/emoji

Scenes in the five `pretrain_styles` and phrases with their names; the other styles are never drawn here.
Every batch is a function of its step number alone, and so is every random choice: a run that was killed and
continued ends in the same weights as one that was not (on one machine, with the same number of threads).
With `--minutes` the schedule follows the clock, so that it ends on time on a busy machine; the number of steps
that came out is in the log, and `--steps` with that number repeats the run up to the pace of the schedule.
During the first 85 % of the run the image tower sees a random half of the patches (as in FLIP), then all.
"""

import argparse
import json
import math
import os
import random
import time
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from mudpt.scenes import Scene, concepts, held_out_styles, pretrain_styles, table

ASSETS = Path(__file__).parents[1] / "mudpt/assets/emoji"
CONFIG = dict(
    embed_dim=96,
    quick_gelu=False,
    vision_cfg=dict(image_size=64, layers=4, width=128, head_width=32, patch_size=8),
    text_cfg=dict(context_length=77, vocab_size=49408, width=64, heads=2, layers=4),
)
OPEN = """|a|the|a photo of a|a picture of a|a drawing of a|a drawing of the|an emoji of a|an icon of a|this is a
there is a|a photo of the|a picture of one|a small picture that shows a|look here , it is a|somebody has drawn a|one can see a
in the middle of this little picture there is a|on a coloured ground , among smaller things , one can see a
with a few colours and a steady hand an artist has drawn for all of us a
the largest thing in this scene is the""".replace("\n", "|").split("|")
CLOSE = "||.|.| on a plain ground| among smaller things|, a type of {kind}.|, which is a kind of {kind}.| in a scene| ."
FILLER = "of and in on it is the a with for to as by at one some small large drawn shown here there picture thing x"
FILLER = FILLER.split()
KIND = dict(animals="animal", food="food", nature="plant or weather", places="place", vehicles="vehicle",
            objects="object", activities="game or feast")  # fmt: skip
MEAN, STD = (torch.tensor(x).view(3, 1, 1) for x in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
tokenize = open_clip.SimpleTokenizer(context_length=77)


def caption(name, r):
    "A phrase with the name in it; three in ten put up to 18 loose words first, so that later positions learn too"
    start = r.choice(OPEN)
    if r.random() < 0.3:
        start = " ".join(r.choice(FILLER) for _ in range(r.randint(1, 18)))
    return f"{start} {name}{r.choice(CLOSE.split('|'))}".format(kind=KIND[table["concepts"][name]]).strip()


def vocabulary():
    "Token numbers that can occur: those of every name and every phrase, start and end"
    texts = concepts() + OPEN + FILLER + [c.format(kind=k) for c in CLOSE.split("|") for k in KIND.values()]
    texts += ["a" + c.format(kind=k) for c in CLOSE.split("|") for k in KIND.values()]
    return tokenize(texts).unique()


class Batches(torch.utils.data.Dataset):
    "Batch `i` from the number `i` alone: [B,3,64,64] uint8, tokens [B,77], concept numbers [B]"

    def __init__(self, n, bs, seed):
        self.n, self.bs, self.seed, self.names = n, bs, seed, concepts()

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        r = random.Random(self.seed * 10**9 + i)
        y = [r.randrange(len(self.names)) for _ in range(self.bs)]
        x = torch.stack([pixels(self.scene(c, r)) for c in y])
        return x, tokenize([caption(self.names[c], r) for c in y]), torch.tensor(y)

    def scene(self, c, r):  # keys that no task uses
        return Scene(self.names[c], r.choice(pretrain_styles), 10**12 + r.randrange(10**12), r.randrange(3))


def pixels(scene):
    return torch.frombuffer(bytearray(scene.image().tobytes()), dtype=torch.uint8).view(64, 64, 3).permute(2, 0, 1)


class Net(nn.Module):
    "open_clip's CLIP with two savings: word rows for the vocabulary in use, text cut after the longest end token"

    def __init__(self, ids, seed):
        super().__init__()
        torch.manual_seed(seed)
        cfg = {**CONFIG, "text_cfg": {**CONFIG["text_cfg"], "vocab_size": len(ids)}}
        self.clip, self.blocks = open_clip.CLIP(**cfg), Net.walk  # `run` may put a compiled walk here
        self.register_buffer("where", torch.zeros(49408, dtype=torch.long).scatter_(0, ids, torch.arange(len(ids))))

    @staticmethod
    def walk(blocks, x, mask=None):
        for b in blocks:
            x = b(x, attn_mask=mask)
        return x

    def image(self, x, keep=None):  # keep: how many of the 64 patches are looked at
        v = self.clip.visual
        x = v.conv1((x / 255 - MEAN) / STD).flatten(2).transpose(1, 2) + v.positional_embedding[1:]
        if keep:
            x = x.gather(1, torch.rand(x.shape[:2]).topk(keep, 1).indices[..., None].expand(-1, -1, x.shape[-1]))
        cls = (v.class_embedding + v.positional_embedding[0]).expand(len(x), 1, -1)
        walk = self.blocks if self.training else Net.walk
        x = walk(v.transformer.resblocks, v.ln_pre(torch.cat([cls, x], 1)))
        return F.normalize((v.ln_post(x[:, 0]) @ v.proj).float(), dim=-1)

    def text(self, t, halves=True):
        if halves:  # short phrases need not wait for long ones
            order = t.argmax(-1).argsort(stable=True)
            return torch.cat([self.text(part, False) for part in t[order].chunk(2)])[order.argsort()]
        c, end = self.clip, t.argmax(-1)
        n = int(end.max()) + 1
        x = c.token_embedding(self.where[t[:, :n]]) + c.positional_embedding[:n]
        x = Net.walk(c.transformer.resblocks, x, c.attn_mask[:n, :n])
        return F.normalize((c.ln_final(x[range(len(x)), end]) @ c.text_projection).float(), dim=-1)


def loss_fn(net, x, t, y, keep, bf16):
    "Contrast in both directions; pictures of one concept are no negatives of one another"
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = net.clip.logit_scale.exp() * net.image(x, keep) @ net.text(t).T
    same = (y[:, None] == y).float()
    same = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2


@torch.no_grad()
def watch(net, style, group="animals", each=4):
    "Zero-shot accuracy in %, for watching only: nothing is selected by it"
    net.eval()
    names = concepts(group)
    x = torch.stack([pixels(Scene(n, style, 2 * 10**12 + i)) for n in names for i in range(each)])
    z = torch.cat([net.image(b) for b in x.split(128)]) @ net.text(tokenize([f"a photo of a {n}." for n in names])).T
    net.train()
    return round(100 * (z.argmax(1) == torch.arange(len(names)).repeat_interleave(each)).float().mean().item(), 1)


def optimiser(net):
    flat = [p for p in net.parameters() if p.ndim < 2]
    wide = [p for p in net.parameters() if p.ndim >= 2]
    groups = [dict(params=flat, weight_decay=0.0), dict(params=wide, weight_decay=0.1)]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-6)


def run(a):
    torch.set_num_threads(a.threads)
    a.out.mkdir(parents=True, exist_ok=True)
    kept, ids = a.out / "checkpoint.pt", vocabulary()
    net = Net(ids, a.seed)
    opt, step, spent = optimiser(net), 0, 0.0
    if kept.exists():
        c = torch.load(kept, weights_only=True)
        assert c["plan"] == plan(a), f"{kept} belongs to another plan: {c['plan']}"
        net.clip.load_state_dict(c["net"])
        opt.load_state_dict(c["opt"])
        step, spent = c["step"], c["seconds"]
        forget(a.out / "log.jsonl", step)
    if a.compile:
        net.blocks = torch.compile(Net.walk, dynamic=False)
    data = torch.utils.data.DataLoader(
        Batches(a.steps, a.bs, a.seed), batch_size=None, sampler=range(step, a.steps), num_workers=a.workers,
        prefetch_factor=4 if a.workers else None,
    )  # fmt: skip
    start, saved, total, seen = time.time() - spent, time.time(), 0.0, 0
    for x, t, y in data:
        torch.manual_seed(a.seed * 10**6 + step)
        done = (time.time() - start) / 60 / a.minutes if a.minutes else step / a.steps
        for g in opt.param_groups:
            g["lr"] = a.lr * min(1, (step + 1) / a.warmup) * (1 + math.cos(math.pi * min(done, 1))) / 2
        loss = loss_fn(net, x, t, y, 32 if done < a.half else None, a.bf16)
        opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        opt.step()
        net.clip.logit_scale.data.clamp_(0, math.log(100))
        step, total, seen = step + 1, total + loss.item(), seen + 1
        last = step == a.steps or bool(a.minutes and time.time() - start > 60 * a.minutes)
        if step % a.every == 0 or last:
            row = dict(step=step, images=step * a.bs, seconds=round(time.time() - start), loss=round(total / seen, 4))
            if step % (10 * a.every) == 0 or last:
                row.update({s: watch(net, s) for s in ("noto", *held_out_styles)})
            total, seen = 0.0, 0
            with (a.out / "log.jsonl").open("a", encoding="utf-8") as f:
                f.write(json.dumps(row) + "\n")
        if time.time() - saved > 120 or step == a.stop or last:
            c = dict(net=net.clip.state_dict(), opt=opt.state_dict(), step=step, plan=plan(a), ids=ids)
            torch.save(dict(c, seconds=time.time() - start), kept.with_suffix(".new"))
            os.replace(kept.with_suffix(".new"), kept)
            saved = time.time()
        if step == a.stop or last:
            break


def forget(log, step):
    "Lines written after the checkpoint that a run continues from will be written again"
    if log.exists():
        lines = [line for line in log.read_text().splitlines() if json.loads(line)["step"] <= step]
        log.write_text("".join(line + "\n" for line in lines))


def plan(a):
    "What must be equal for a run to be continued"
    return {k: getattr(a, k) for k in ("steps", "minutes", "bs", "lr", "warmup", "half", "seed", "bf16")}


def export(a):
    "Half-precision weights with the word rows in use and their numbers; the other rows are refilled on loading"
    c = torch.load(a.out / "checkpoint.pt", weights_only=True)
    tensors = {k: v.half().contiguous() for k, v in c["net"].items() if k != "attn_mask"}
    tensors["token_ids"] = c["ids"].int()
    card = dict(c["plan"], step=c["step"], images=c["step"] * c["plan"]["bs"], seconds=round(c["seconds"]))
    card["styles"] = list(pretrain_styles)
    a.to.mkdir(parents=True, exist_ok=True)
    new = a.to / "emoji_clip.safetensors.new"
    save_file(tensors, new, metadata={"card": json.dumps(card)})
    new.chmod(0o644)
    os.replace(new, a.to / "emoji_clip.safetensors")
    (a.to / "emoji_clip.json").write_text(json.dumps(CONFIG, indent=1) + "\n", encoding="utf-8")
    print(card)


def main(args=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=["run", "export"])
    p.add_argument("--out", type=Path, default=Path("pretrain"), help="folder for checkpoint and log")
    p.add_argument("--to", type=Path, default=ASSETS, help="where export writes")
    p.add_argument("--steps", type=int, default=2000)
    p.add_argument("--minutes", type=float, default=0, help="if given: the schedule follows the clock")
    p.add_argument("--stop", type=int, default=-1, help="stop after this step, to be continued")
    p.add_argument("--bs", type=int, default=128)
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--warmup", type=int, default=100)
    p.add_argument("--half", type=float, default=0.85, help="share of the steps with half of the patches")
    p.add_argument("--every", type=int, default=40, help="steps between lines of the log")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--workers", type=int, default=1, help="processes that draw scenes")
    p.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    p.add_argument("--compile", action=argparse.BooleanOptionalAction, default=False, help="needs a C++ compiler")
    a = p.parse_args(args)
    {"run": run, "export": export}[a.what](a)


if __name__ == "__main__":
    main()
