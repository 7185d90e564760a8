"""Render the emoji sprites that ship with mudpt.

    npm install --ignore-scripts --prefix sets @iconify-json/noto@1.2.9 @iconify-json/noto-v1@1.2.5 \\
        @iconify-json/fluent-emoji@1.2.7 @iconify-json/fluent-emoji-flat@1.2.6 \\
        @iconify-json/fluent-emoji-high-contrast@1.2.6 @iconify-json/twemoji@1.2.5 \\
        @iconify-json/emojione@1.2.3 unicode-emoji-json@0.9.0
    python scripts/make_sprites.py sets/node_modules            # needs resvg-py and pillow

Writes `sprites.json` (names, groups, licences) and one WebP atlas per style into `mudpt/assets/emoji`.
A concept is kept when every artist has drawn it, when its name is a thing one can see, and when a mirror
image of it keeps its name.
"""

import argparse
import io
import json
import re
import unicodedata
from pathlib import Path

import resvg_py
from PIL import Image

STYLES = ["noto", "noto-v1", "fluent-emoji", "fluent-emoji-flat", "emojione", "twemoji", "fluent-emoji-high-contrast"]
PX, COLUMNS = 64, 25

# Unicode's groups, cut at these names: {first concept of the run: our group}
RUNS = {
    "Animals & Nature": [("monkey face", "animals"), ("bouquet", "nature")],
    "Food & Drink": [("grapes", "food")],
    "Travel & Places": [
        ("globe showing Europe-Africa", "places"),
        ("locomotive", "vehicles"),
        ("bellhop bell", "objects"),
        ("new moon", "nature"),
    ],
    "Activities": [("jack-o-lantern", "activities")],
    "Objects": [("glasses", "objects")],
}
MOVE = {
    "spider web": "nature", "spiral shell": "nature", "carousel horse": "places", "ferris wheel": "places",
    "thermometer": "objects", "closed umbrella": "objects", "umbrella": "objects", "umbrella on ground": "objects",
    "umbrella with rain drops": "objects", "barber pole": "places", "circus tent": "places",
    "roller coaster": "places", "station": "places", "bus stop": "places", "motorway": "places",
    "railway track": "places", "oil drum": "objects", "fuel pump": "objects", "police car light": "objects",
    "horizontal traffic light": "objects", "vertical traffic light": "objects", "stop sign": "objects",
    "construction": "objects", "anchor": "objects", "seat": "objects",
}  # fmt: skip
RENAME = {
    "globe showing Europe-Africa": "globe", "hourglass done": "hourglass",
    "magnifying glass tilted left": "magnifying glass", "closed mailbox with raised flag": "mailbox",
    "speaker high volume": "speaker", "ballot box with ballot": "ballot box", "twelve o’clock": "clock",
    "1st place medal": "gold medal", "2nd place medal": "silver medal", "3rd place medal": "bronze medal",
    "hot beverage": "cup of coffee", "chart increasing": "rising chart", "chart decreasing": "falling chart",
    "woman’s clothes": "blouse", "man’s shoe": "shoe", "woman’s sandal": "sandal", "woman’s boot": "boot",
    "woman’s hat": "sun hat", "rescue worker’s helmet": "helmet", "T-shirt": "t-shirt", "pool 8 ball": "billiard ball",
    "couch and lamp": "couch", "lady beetle": "ladybug", "articulated lorry": "lorry", "ear of corn": "corn",
    "kiwi fruit": "kiwi", "baguette bread": "baguette", "fish cake with swirl": "fish cake",
    "bottle with popping cork": "champagne bottle", "tumbler glass": "tumbler", "custard": "custard pudding",
    "sheaf of rice": "rice plant", "flag in hole": "golf flag", "video game": "game controller",
    "spiral notepad": "notepad", "dvd": "DVD", "linked paperclips": "chain of paperclips",
}  # fmt: skip
DROP = re.compile(
    r"""globe\ showing|tilted\ right|o’clock|-thirty|speaker\ (low|medium)|with\ (raised|lowered)\ flag
    |^(oncoming|incoming)|hourglass\ not|quarter\ moon|(waxing|waning)|\ suit$|^kaaba|love\ hotel|^map\ of|paw\ prints
    |pig\ nose|front-facing|chart\ increasing\ with|^mobile\ phone\ with|(closed|open)\ mailbox|^e-mail
    |telephone\ receiver|cigarette|coffin|funeral|cityscape\ at|^foggy|hot\ springs|level\ slider|^mahjong|^dizzy
    |japanese\ (post|dolls)|arrival|outbox|green\ book|orange\ book|envelope\ with|bell\ with|locked\ with|^unlocked
    |muted|cricket\ game|clinking\ glasses|open\ file""",
    re.X | re.I,
)


def slug(name):
    plain = unicodedata.normalize("NFKD", name.replace("’", "").replace("&", "and")).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")


def icon(data, key):
    "Follow aliases to the drawing; turned or mirrored aliases are not followed"
    while key not in data["icons"]:
        alias = data.get("aliases", {}).get(key)
        if not alias or set(alias) - {"parent"}:
            return None
        key = alias["parent"]
    return data["icons"][key]


def render(data, key):
    one = icon(data, key)
    box = [one.get(k, data.get(k, d)) for k, d in (("left", 0), ("top", 0), ("width", 16), ("height", 16))]
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{" ".join(map(str, box))}" width="{box[2]}" height="{box[3]}" color="#111">{one["body"]}</svg>'
    )
    side = {"width": PX} if box[2] >= box[3] else {"height": PX}
    image = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, **side)))).convert("RGBA")
    out = Image.new("RGBA", (PX, PX))
    image = image.crop(image.getbbox())  # artists leave different margins: fill the square alike
    scale = PX / max(image.size)
    image = image.resize([max(1, round(s * scale)) for s in image.size], Image.Resampling.LANCZOS)
    out.paste(image, ((PX - image.width) // 2, (PX - image.height) // 2))
    return out


def concepts(emoji, sets):
    group, where = {}, None
    for v in emoji.values():
        runs = RUNS.get(v["group"])
        if not runs:
            continue
        where = dict(runs).get(v["name"], where)
        name = RENAME.get(v["name"], v["name"])
        if v["name"] == name and DROP.search(name):
            continue
        if all(icon(s, slug(v["name"])) for s in sets.values()):
            group[name] = (MOVE.get(v["name"], where), slug(v["name"]))
    return dict(sorted(group.items(), key=lambda kv: (kv[1][0], kv[0].lower())))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("modules", type=Path, help="node_modules folder with the icon sets")
    p.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "mudpt/assets/emoji")
    p.add_argument("--quality", type=int, default=82)
    a = p.parse_args()
    sets = {s: json.loads((a.modules / f"@iconify-json/{s}/icons.json").read_text(encoding="utf-8")) for s in STYLES}
    emoji = json.loads((a.modules / "unicode-emoji-json/data-by-emoji.json").read_text(encoding="utf-8"))
    kept = concepts(emoji, sets)
    a.out.mkdir(parents=True, exist_ok=True)
    credits = {}
    for s, data in sets.items():
        info = json.loads((a.modules / f"@iconify-json/{s}/info.json").read_text(encoding="utf-8"))
        version = json.loads((a.modules / f"@iconify-json/{s}/package.json").read_text(encoding="utf-8"))["version"]
        credits[s] = dict(
            title=info["name"], author=info["author"]["name"], url=info["author"]["url"],
            license=info["license"]["spdx"],
            package=f"@iconify-json/{s}@{version}",
        )  # fmt: skip
        rows = -(-len(kept) // COLUMNS)
        atlas = Image.new("RGBA", (COLUMNS * PX, rows * PX))
        for i, (_, key) in enumerate(kept.values()):
            atlas.paste(render(data, key), (i % COLUMNS * PX, i // COLUMNS * PX))
        atlas.save(a.out / f"{s}.webp", quality=a.quality, method=6, exact=False)
        print(f"{s:28} {(a.out / f'{s}.webp').stat().st_size / 1e6:.2f} MB")
    table = dict(px=PX, columns=COLUMNS, styles=credits, concepts={n: g for n, (g, _) in kept.items()})
    (a.out / "sprites.json").write_text(json.dumps(table, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")
    print(len(kept), "concepts")


if __name__ == "__main__":
    main()
