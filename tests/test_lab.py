"""`mudpt lab`, and the first tutorial in a real JupyterLab in a real browser, used with mouse and keyboard."""

import json
import re

import labkit
import pytest
from labkit import CHROMIUM, ROOT, dark, run_all

from mudpt import lab as lab_module
from mudpt.core import Missing

pytestmark = pytest.mark.xdist_group("lab")
IT = ".mudpt-trainer"


def test_the_packaged_tutorials_are_those_of_the_repository():
    packed = lab_module.tutorials()
    assert list(packed)[0] == lab_module.FIRST
    for f in (ROOT / "mudpt" / "assets" / "lab").glob("*.ipynb"):
        ours, theirs = (json.loads(p.read_bytes())["cells"] for p in (f, ROOT / "nbs" / "tutorials" / f.name))
        same = [c["source"] for c in ours] == [c["source"] for c in theirs]
        assert same and not any(c.get("outputs") for c in ours), f"python docs/outputs.py --pack {f.stem}"
        assert f.name in packed


def test_links_of_the_packaged_tutorials_lead_to_notebooks_beside_them():
    packed = lab_module.tutorials()
    for name, content in packed.items():
        links = re.findall(r"\]\((?!\w+:|#)([^)\s]+)\)", content.decode())
        assert set(links) <= set(packed), name


def test_make_opens_the_same_tutorial():
    assert f"/lab/tree/tutorials/{lab_module.FIRST} " in (ROOT / "Makefile").read_text()


def test_missing_jupyterlab_is_said_before_anything_is_written(monkeypatch, tmp_path):
    monkeypatch.setattr(lab_module, "find_spec", lambda name: None if name == "jupyterlab" else object())
    with pytest.raises(Missing, match="pip install"):
        lab_module.start_command(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.fixture
def page(lab):
    with labkit.notebook(lab, lab_module.FIRST) as page:
        yield page


def status(page, *wanted):
    page.wait_for_function("w => w.includes(document.querySelector('.mudpt-chip')?.textContent)", arg=list(wanted))


POINTS = """run => { const g = document.querySelector('.mudpt-trainer .js-plotly-plot');
  const t = g.data.findIndex(t => t.meta === run + '/loss/each');
  const drawn = t < 0 ? 0 : g.querySelectorAll('.scatterlayer .trace').length;
  return t < 0 || !drawn ? 0 : Math.min(g.data[t].x.length, g.querySelectorAll('.scatterlayer .point').length) }"""


def points(page, run=1):
    return page.evaluate(POINTS, run)


def more_than(page, n, run=1):
    page.wait_for_function(f"([run, n]) => ({POINTS})(run) > n", arg=[run, n])


READ = ["h3", "h4", ".widget-label", ".mudpt-side input[type=text]", ".mudpt-side select", ".mudpt-numbers span"]
READ += [".mudpt-numbers b", ".mudpt-run-text b", ".mudpt-quiet", ".mudpt-trouble", ".mudpt-said"]
READ += [".js-plotly-plot .x3tick text", ".js-plotly-plot .annotation-text", "button:not(.mudpt-dim)"]


def legible(page):
    assert labkit.legible(page, IT, READ)


def picture(page, name):
    labkit.picture(page, name, IT)


# The keys of a widget are its own: the notebook would move to another cell
ACTIVE = "() => window.jupyterapp.shell.currentWidget.content.activeCellIndex"


def stays(page, key, what):
    "A key changes `what`, and the notebook stays where it is"
    active, was = page.evaluate(ACTIVE), page.evaluate(what)
    page.keyboard.press(key)
    page.wait_for_function(f"was => ({what})() !== was", arg=was)
    assert page.evaluate(ACTIVE) == active


def see_where_it_looks(page, name):
    page.get_by_role("button", name=re.compile("See where it looks")).click()
    page.wait_for_function("() => document.querySelector('.mudpt-attention')?.dataset.whole")
    it = page.locator(".mudpt-explorer")
    assert it.locator(".mudpt-panel figcaption b").first.inner_text() == name
    drawn = "() => document.querySelector(\"[data-panel='image/0/takes'] canvas\").toDataURL()"
    was = page.evaluate(drawn)
    it.locator("[data-panel='image/0/takes'] .mudpt-pic").hover()
    page.wait_for_function(f"was => ({drawn})() !== was", arg=was)
    assert "takes from" in it.locator("[data-panel='image/0/takes'] figcaption").inner_text()
    it.get_by_label("Block, Picture").focus()
    page.mouse.move(5, 5)
    page.wait_for_function(f"was => ({drawn})() === was", arg=was)
    stays(page, "ArrowLeft", drawn)


def compare(page, names):
    page.get_by_role("button", name=re.compile("Compare where")).click()
    page.wait_for_function(
        "n => document.querySelector('.mudpt-align .mudpt-chip')?.textContent === 'ready' && document.querySelectorAll('.mudpt-align .mudpt-stage canvas:first-child').length === n && +document.querySelector('.mudpt-map').dataset.drawn > 0",
        arg=len(names),
    )
    it = page.locator(".mudpt-align")
    assert [b.split(":")[0] for b in it.locator(".mudpt-pane b").all_inner_texts()] == names
    box = it.locator(".mudpt-stage").first
    box.scroll_into_view_if_needed()
    at = box.bounding_box()
    x, y, r = at["x"] + at["width"] / 2, at["y"] + at["height"] / 2, at["width"] / 3
    page.mouse.move(x - r, y - r)
    page.mouse.down()
    for dx, dy in ((r, -r), (r, r), (-r, r), (-r, -r)):
        page.mouse.move(x + dx, y + dy, steps=4)
    page.mouse.up()
    cards = it.locator(".mudpt-card")
    cards.first.wait_for()
    page.wait_for_function("() => [...document.querySelectorAll('.mudpt-card img')].every(i => i.naturalWidth > 0)")
    page.keyboard.press("Escape")  # the keys go where the hand was
    cards.first.wait_for(state="detached")


@pytest.mark.skipif(not CHROMIUM, reason="no chromium")
def test_the_prompt_trainer_in_jupyterlab(page, lab):
    run_all(page)
    it = page.locator(IT).first
    button = lambda name: it.get_by_role("button", name=re.compile(f"{name}$"))  # an icon stands before the word
    field = lambda name: it.get_by_label(name, exact=True)
    page.wait_for_function("() => document.querySelector('.mudpt-trainer .js-plotly-plot')?.data?.length === 3")
    it.scroll_into_view_if_needed()
    picture(page, "1 idle")

    # by mouse: start, watch the points come, pause
    button("Start").click()
    status(page, "training")
    more_than(page, 4)
    more_than(page, points(page))
    button("Pause").click()
    status(page, "paused")
    page.wait_for_timeout(500)
    seen = points(page)
    page.wait_for_timeout(700)
    assert points(page) == seen
    assert it.get_by_role("progressbar").get_attribute("aria-valuenow") != "0"
    picture(page, "2 paused")

    # by keyboard, from where the focus still is: continue, one step, stop
    focused = "() => document.activeElement.textContent.trim()"
    assert page.evaluate(focused) == "Continue"
    page.keyboard.press("Space")
    status(page, "training")
    more_than(page, seen)
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "Step"
    page.keyboard.press("Enter")  # while it trains: pause after this step
    status(page, "paused")
    page.wait_for_timeout(500)
    step = "() => document.querySelector('.mudpt-numbers').innerText.match(/step\\s+(\\d+) of/)[1]"
    before = int(page.evaluate(step))
    page.keyboard.press("Enter")
    page.wait_for_function(f"n => ({step})() == n", arg=str(before + 1))
    status(page, "paused")
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "Stop"
    page.keyboard.press("Enter")
    status(page, "stopped")

    # a value that makes no sense is said at its field, and where Start was pressed; then it is mended
    field("Learning rate").fill("fast")
    page.keyboard.press("Tab")
    it.locator(".mudpt-said").get_by_text("Learning rate is 'fast'").wait_for()
    button("Start").click()
    it.locator(".mudpt-trouble").get_by_text("give a number").wait_for()
    picture(page, "3 wrong")
    legible(page)
    field("Learning rate").fill("")
    page.keyboard.press("Tab")
    it.locator(".mudpt-said").wait_for(state="detached")

    # another method, trained to the end over the first; the plan follows the choice; the kernel answers meanwhile
    field("Method").select_option("MaPLe")
    it.locator(".mudpt-plan svg[aria-label=MaPLe]").wait_for()
    field("Shots").fill("4")
    field("Epochs").fill("2")
    page.keyboard.press("Tab")
    button("Start").click()
    more_than(page, 1, run=2)
    run_cell = """i => { const nb = window.jupyterapp.shell.currentWidget.content; nb.activeCellIndex = i;
      window.jupyterapp.commands.execute('notebook:run-cell') }"""
    texts = "() => window.jupyterapp.shell.currentWidget.content.widgets.map(c => c.model.sharedModel.source)"
    at = next(i for i, text in enumerate(page.evaluate(texts)) if text.startswith("def told"))
    page.evaluate(run_cell, at)
    answer = "i => JSON.stringify(window.jupyterapp.shell.currentWidget.content.widgets[i].model.outputs.toJSON())"
    page.wait_for_function(f"i => ({answer})(i).includes('MaPLe(')", arg=at)
    status(page, "done")
    assert it.locator(".mudpt-run").count() == 2
    page.wait_for_function(
        "() => document.querySelector('.mudpt-trainer .js-plotly-plot').data.some(t => t.meta === '2/accuracy/new' && t.x.length === 3)"
    )
    assert it.locator(".mudpt-words tr").count() == 1 + 2  # two prompts, and what they are near to
    picture(page, "4 done")

    # what was trained is looked at and compared, by two presses
    see_where_it_looks(page, "2 MaPLe")
    compare(page, ["zero-shot", "1 MuDPT", "2 MaPLe"])
    it.scroll_into_view_if_needed()
    field("Method").focus()
    stays(page, "ArrowUp", "() => document.activeElement.value")

    # hide the first run; save the second
    it.get_by_role("checkbox").last.wait_for()
    it.locator(".mudpt-run input[type=checkbox]").first.uncheck()
    page.wait_for_function(
        "() => document.querySelector('.mudpt-trainer .js-plotly-plot').data.find(t => t.meta === '1/loss/mean').visible === false"
    )
    it.locator(".mudpt-run input[type=checkbox]").first.check()
    button("Save").click()
    it.get_by_role("status").get_by_text("saved as").wait_for()
    assert list(lab.work.glob("MaPLe-emoji-animals-4shots-seed1.safetensors"))

    # a run that fails says why, with the traceback folded away; all of it is legible in the dark theme too
    field("Shots").fill("1000")
    page.keyboard.press("Tab")
    button("Start").click()
    status(page, "failed")
    it.locator(".mudpt-trouble summary").click()
    it.locator(".mudpt-trouble pre").get_by_text("BadInput").first.wait_for()
    field("Learning rate").fill("fast")
    page.keyboard.press("Tab")
    it.locator(".mudpt-said").wait_for()
    dark(page)
    picture(page, "5 dark")
    legible(page)

    # and in a narrow window nothing sticks out
    page.set_viewport_size(dict(width=1000, height=1180))
    page.wait_for_timeout(1500)
    inside = "() => { const g = document.querySelector('.mudpt-trainer .js-plotly-plot'); return g.getBoundingClientRect().right <= g.closest('.mudpt-main').getBoundingClientRect().right + 1 }"
    page.wait_for_function(inside)
    picture(page, "6 narrow")


@pytest.mark.skipif(not CHROMIUM, reason="no chromium")
def test_all_three_in_notebook_7(lab):
    pytest.importorskip("notebook", minversion="7")
    with labkit.notebook(lab, lab_module.FIRST, at=labkit.NOTEBOOK7) as page:
        assert "Notebook" in page.evaluate("() => window.jupyterapp.name")
        run_all(page)
        it = page.locator(IT).first
        field = lambda name: it.get_by_label(name, exact=True)
        page.wait_for_function("() => document.querySelector('.mudpt-trainer .js-plotly-plot')?.data?.length === 3")
        for name, value in (("Shots", "1"), ("Epochs", "1")):
            field(name).fill(value)
            page.keyboard.press("Tab")
        field("Method").focus()
        stays(page, "ArrowUp", "() => document.activeElement.value")
        for name in ("IVLP", "VPT", "CoOp"):  # Start means what stands on the screen, however quick the hand
            field("Method").select_option(name)
        it.get_by_role("button", name=re.compile("Start$")).focus()
        page.keyboard.press("Enter")
        it.locator(".mudpt-plan svg[aria-label=CoOp]").wait_for()
        status(page, "done")
        assert it.locator(".mudpt-run-text b").first.inner_text().startswith("1 CoOp")
        assert points(page) > 1
        labkit.picture(page, "notebook 7 trainer", IT)
        see_where_it_looks(page, "1 CoOp")
        labkit.picture(page, "notebook 7 attention", ".mudpt-explorer")
        compare(page, ["zero-shot", "1 CoOp"])
        labkit.picture(page, "notebook 7 alignment", ".mudpt-align")
        dark(page)
        for of, what in (
            (IT, READ[:3]),
            (".mudpt-explorer", ["h3", ".mudpt-line"]),
            (".mudpt-align", ["h3", ".mudpt-pane b"]),
        ):
            assert labkit.legible(page, of, what)
        labkit.picture(page, "notebook 7 dark")
