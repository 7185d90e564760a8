"""How long from click to picture, and how much is sent, in a real JupyterLab in a headless Chromium.

    python scripts/measure_explorers.py attention   # ViT-B/16 at 224 px with random weights, 12 blocks x 12 heads
    python scripts/measure_explorers.py alignment   # 10,000 pictures x 2 methods x 11 epochs

Needs what the tests need: jupyterlab, playwright, a chromium on the PATH.
"""

import json
import math
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
import labkit  # noqa: E402

ATTENTION = """from mudpt import MaPLe, ZeroShot, emoji, load_clip, seed_all
from mudpt.attention_view import AttentionExplorer
seed_all(0)
clip = load_clip('ViT-B-16', device='cpu')
scenes = [emoji.scene(n) for n in ('owl', 'fox', 'ant')]
explorer = AttentionExplorer([MaPLe(clip), ZeroShot(clip)], scenes)
explorer"""


def notebook_of(source, where):
    cell = dict(cell_type="code", id="a", metadata={}, source=source, outputs=[], execution_count=None)
    kernel = dict(display_name="Python 3", language="python", name="python3")
    page = dict(cells=[cell], metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)
    where.write_text(json.dumps(page))


def told(what, ms):
    low, mid, high = min(ms), statistics.median(ms), max(ms)
    print(f"{what:<58} median {mid:7.1f} ms, {low:.1f} to {high:.1f} ({len(ms)} times)", flush=True)


# From the event to the frame after the picture was drawn. `act` moves something; the canvas must then differ.
CLICK = """async ([act, args]) => {
  const canvas = document.querySelector("[data-panel='image/0/takes'] canvas"), was = canvas.toDataURL(), t0 = performance.now();
  eval(act)(...args);
  while (canvas.toDataURL() === was) { if (performance.now() - t0 > 60000) throw Error('nothing was drawn'); await new Promise(r => setTimeout(r)); }
  await new Promise(r => requestAnimationFrame(() => setTimeout(r)));
  return performance.now() - t0 }"""
SLIDE = """(label, v) => { const e = document.querySelector(`[aria-label='${label}']`); e.value = v; e.dispatchEvent(new Event('input')) }"""
HOVER = """(r, c) => { const p = document.querySelector("[data-panel='image/0/takes'] .mudpt-pic"), b = p.getBoundingClientRect();
  p.dispatchEvent(new PointerEvent('pointermove', { clientX: b.left + (c + .5) * b.width / 14, clientY: b.top + (r + .5) * b.height / 14 })) }"""


def attention(page):
    clock = "() => performance.now()"
    labkit.run_all(page)
    t0 = page.evaluate(clock)
    page.wait_for_function("() => +document.querySelector('.mudpt-attention')?.dataset.bytes > 0")
    first = page.evaluate("() => +document.querySelector('.mudpt-attention').dataset.bytes")

    def click(act, *args):
        return page.evaluate(CLICK, [act, args])

    told("block not sent yet: asked for, made, sent, drawn", [click(SLIDE, "Block, Picture", 2)])
    page.wait_for_function("() => document.querySelector('.mudpt-attention').dataset.whole")
    size = page.evaluate("() => +document.querySelector('.mudpt-attention').dataset.bytes")
    print(
        f"all blocks of both towers and methods: {size / 1e6:.1f} MB, there after {(page.evaluate(clock) - t0) / 1000:.0f} s"
    )
    print(f"(the first to come: {first / 1e6:.2f} MB)")
    told("another block", [click(SLIDE, "Block, Picture", i % 12) for i in range(20)])
    told("another head", [click(SLIDE, "Head, Picture", i % 12) for i in range(20)])
    told("pointing at another patch", [click(HOVER, i % 14, (3 * i) % 14) for i in range(1, 60)])
    drawing = "() => +document.querySelector('.mudpt-tower').dataset.ms"
    told("of which drawing six panels", [page.evaluate(drawing)])


CLOUDS = """import numpy as np
from mudpt.align_view import AlignmentExplorer

def space(shift, N=10_000, C=20, E=64):
    r = np.random.default_rng(0)
    t, y = r.normal(size=(C, E)), np.arange(N) % C
    return (t[y] + .8*r.normal(size=(N, E)) + shift).astype('f4'), t.astype('f4'), y

explorer = AlignmentExplorer({n: {e: space(1 + k*e/20) for e in range(11)} for n, k in (('one', -1), ('two', 1))}, measures=['gap', 'margin'])
explorer.state.join()
explorer"""
MAP = "document.querySelector('.mudpt-align .mudpt-map')"
# From the input event, by the browser's own clock, to the frame after `what` has another value; null: after the event.
AFTER = """([kind, what]) => { const now = () => what && String(eval(what)), was = now();
  window.measured = new Promise(done => window.addEventListener(kind, e => {
    const look = () => what && now() === was ? setTimeout(look) : requestAnimationFrame(() => setTimeout(() => done(performance.now() - e.timeStamp)));
    look(); }, { once: true })) }"""


def busy():  # by others too
    used = [list(map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])), time.sleep(2)]
    used.append(list(map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])))
    d = [b - a for a, b in zip(used[0], used[2])]
    cores = os.cpu_count() or 1
    print(f"before it began, the {cores} processors were {100 * (1 - (d[3] + d[4]) / sum(d)):.0f} % in use by others")


def alignment(page):
    labkit.run_all(page)
    page.wait_for_function(f"() => {MAP}?.dataset.whole !== undefined && {MAP}.spots(1).length === 20000")
    page.locator(".mudpt-map").evaluate("e => e.scrollIntoView({ block: 'start' })")
    page.wait_for_timeout(2000)
    print(f"sent for 11 epochs of two methods: {int(page.evaluate(f'() => {MAP}.dataset.bytes')) / 1e6:.1f} MB")
    box = page.locator(".mudpt-stage").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def timed(kind, what, act, times):
        ms = []
        for k in range(times):
            page.evaluate(AFTER, [kind, what])
            act(k)
            ms.append(page.evaluate("() => window.measured"))
            page.wait_for_timeout(40)
        return ms

    def hover(k):
        page.mouse.move(x + 3 * (k % 40) - 60, y + 2 * (k % 30) - 30)

    page.mouse.move(x - 100, y - 100)
    told("pointing at another picture: ring in both, words", timed("pointermove", None, hover, 40))

    def lassos(r):
        page.mouse.move(x - r, y - r)
        page.mouse.down()
        path = [(r * math.cos(a / 8), r * math.sin(a / 8)) for a in range(50)]
        ms = timed("pointermove", None, lambda k: page.mouse.move(x + path[k][0], y + path[k][1]), 50)
        return ms

    moves, marks, cards = [], [], []
    for k in range(7):
        moves += lassos(40 + 9 * k)
        page.evaluate(AFTER, ["pointerup", f"{MAP}.dataset.marked"])
        page.evaluate("() => { window.first = window.measured }")
        page.evaluate(AFTER, ["pointerup", "document.querySelector('.mudpt-caught').textContent"])
        page.mouse.up()
        marks.append(page.evaluate("() => window.first"))
        cards.append(page.evaluate("() => window.measured"))
        page.wait_for_timeout(500)
    told("a mouse move of a lasso", moves)
    told("lasso let go, marked in both", marks)
    told("lasso let go, gallery and numbers", cards)
    print(page.locator(".mudpt-caught").inner_text())
    page.locator(".mudpt-time input").focus()

    def step(k):
        page.keyboard.press("ArrowLeft" if k % 20 < 10 else "ArrowRight")

    told("an epoch by arrow key, all points moved", timed("keydown", f"{MAP}.dataset.drawn", step, 40))
    told("of which drawing 20,000 dots", [float(page.evaluate(f"() => {MAP}.dataset.ms"))])
    pick = page.get_by_label("Select", exact=True)

    def named(k):
        pick.select_option(index=4 + k)

    told("a class by name, marked in both", timed("change", f"{MAP}.dataset.marked + {MAP}.dataset.drawn", named, 7))


WHAT = dict(attention=(ATTENTION, attention), alignment=(CLOUDS, alignment))


def main(name):
    busy()
    source, measure = WHAT[name]
    with tempfile.TemporaryDirectory() as home, labkit.jupyterlab(Path(home)) as lab:
        notebook_of(source, lab.work / "measure.ipynb")
        with labkit.notebook(lab, "measure.ipynb") as page:
            measure(page)


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in WHAT:
        sys.exit(f"usage: python scripts/measure_explorers.py {' | '.join(WHAT)}")
    main(sys.argv[1])
