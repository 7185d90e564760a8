"""docs/pictures/one_picture.svg, what mudpt is about: python docs/one_picture.py

The plans that methods draw of themselves, on the model that comes with the package.
"""

import base64
import io
import re
from pathlib import Path

from mudpt import emoji, open_image
from mudpt.core import write_whole
from mudpt.prompts import methods

SAID = dict(  # in this order
    CoOp="words learned", VPT="visual prompts", IVLP="both, apart", CoCoOp="words that see the picture",
    MaPLe="text prompts, projected", MuDPT="each a view of the other", DCP="attending to each other", DPT="visual prompts that know classes",
)  # fmt: skip
ACROSS, WIDE, TALL, TOP = 4, 268, 170, 142
HEAD = (
    "Which of these names is this a picture of?",
    "Names go through a text tower, the picture through an image tower, and the nearest name wins. Both stay frozen.",
    "Learned are a few vectors that enter before their blocks. Methods differ in who reads whom.",
    "Full colour: so many learned vectors enter here. Pale: they are computed from the other tower's.",
)


def plan(name, clip, i):
    "The plan of a method, at its place among the others"
    svg = methods[name](clip)._repr_html_()
    svg = re.search(r"<svg.*?</svg>", svg, re.S)[0]
    w, h = re.search(r'viewBox="0 0 (\d+) (\d+)"', svg).groups()
    x, y = 24 + i % ACROSS * WIDE, TOP + i // ACROSS * TALL
    svg = re.sub(r"<svg[^>]*>", f'<svg x="{x}" y="{y}" width="{w}" height="{h}" viewBox="0 0 {w} {h}">', svg, count=1)
    svg = re.sub(r'<text[^>]*opacity="\.8">[^<]*</text></svg>', "</svg>", svg)  # how many numbers: not here
    told = f'<tspan font-weight="400" opacity=".75">  {SAID[name]}</tspan></text>'
    return svg.replace(f'font-weight="600">{name}</text>', f'font-weight="600" xml:space="preserve">{name}{told}', 1)


def question(x, names=("cat", "dog", "ladybug", "tiger")):
    "A picture, and names to choose from; x: where"
    task = emoji.task("animals")
    image = next(open_image(source) for source, y in task.test if task.names[y] == names[2])
    kept = io.BytesIO()
    image.convert("RGB").resize((96, 96)).save(kept, "PNG")
    told = "".join(
        f'<text x="{x + 108}" y="{36 + 22 * k}" {look}>{n}</text>'
        for k, (n, look) in enumerate((n, 'font-weight="600"' if n == names[2] else 'opacity=".6"') for n in names)
    )
    return f'<image x="{x}" y="20" width="96" height="96" href="data:image/png;base64,{base64.b64encode(kept.getvalue()).decode()}"/>{told}'


def picture():
    clip = emoji.clip("cpu")
    W, H = 2 * 24 + ACROSS * WIDE - 16, TOP + TALL * -(-len(SAID) // ACROSS)
    look = ('font-size="17" font-weight="600"', *['font-size="14.5"'] * 2, 'font-size="12.5" opacity=".75"')
    lines = "".join(f'<text x="26" y="{36 + 25 * k}" {look[k]}>{line}</text>' for k, line in enumerate(HEAD))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{W}" height="{H}" viewBox="0 0 {W} {H}" role="img" aria-label="Eight ways of prompting two towers"'
        f' font-family="system-ui, sans-serif" font-size="13" fill="#1f2328" color="#1f2328"><rect width="{W}" height="{H}" rx="12" fill="#fff" stroke="#d0d7de"/>'
        + lines
        + question(W - 210)
        + "".join(plan(name, clip, i) for i, name in enumerate(SAID))
        + "</svg>\n"
    )


if __name__ == "__main__":
    write_whole(Path(__file__).parent / "pictures" / "one_picture.svg", picture())
