"""`mudpt lab`, and the first tutorial in a real JupyterLab in a real browser, used with mouse and keyboard."""

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
    for name, content in packed.items():
        source = ROOT / "nbs" / "tutorials" / name
        assert content == source.read_bytes(), f"cp nbs/tutorials/{name} mudpt/assets/lab/"


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


@pytest.mark.skipif(not CHROMIUM, reason="no chromium")
def test_the_prompt_trainer_in_jupyterlab(page, lab):
    run_all(page)
    it = page.locator(".mudpt-trainer")
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
