"""The page in a real browser: each view, by mouse and by keyboard alone, wide and narrow.

Screenshots go to the folder that UNRAZE_SCREENSHOTS names, where it names one.
"""

import base64
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from PIL import Image
from processes import wait_for

from evaluated import Small
from scripts import as_module
from unraze import generate, pictures
from unraze.data import load
from unraze.studio.app import Studio, app_of, studio_of
from unraze.studio.front import Front, guarded
from unraze.studio.guard import Keys
from unraze.studio.library import name_of
from unraze.studio.server import _bound

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage"]
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

VIEWS = ("runs", "run", "train", "sample", "destroy", "edit", "compare", "data")
ASSERTS = 20_000.0
"""Milliseconds that the page is waited for."""


@dataclass(frozen=True)
class Live:
    """A studio that serves: its rooms, where it is, and the folder of runs."""

    studio: Studio
    address: str
    folder: Path

    @property
    def entrance(self) -> str:
        return f"{self.address}/#token={self.studio.keys.token}"

    def view(self, name: str, run: str = "classy") -> str:
        of_run = {"run": "runs", "sample": "sample", "destroy": "destroy", "edit": "edit"}
        if name in of_run:
            return f"{self.address}/#/{of_run[name]}/{name_of(run)}"
        if name == "compare":
            return f"{self.address}/#/compare?run={name_of('run')}&run={name_of('other')}"
        return f"{self.address}/#/{name}"


def serving(folder: Path, data: tuple[str, ...] = ()) -> Iterator[Live]:
    """A studio in this process, at a port of its own."""
    bound = _bound("127.0.0.1", 0)
    keys = Keys(bound.getsockname()[1])
    studio = studio_of(folder, data=data, keys=keys)
    front = Front(lambda: (studio, app_of(studio)))
    config = uvicorn.Config(
        guarded(front, keys, ("127.0.0.1",)),
        log_level="error",
        ws="none",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        yield Live(studio, f"http://127.0.0.1:{keys.port}", folder)
    finally:  # or the tests would not end where one fails
        front.leave()
        server.should_exit = True
        thread.join(20)
        bound.close()


@pytest.fixture(scope="module")
def live(made: Small, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("studio") / "runs"
    for run in (made.run, made.other, made.classy):
        shutil.copytree(run, folder / run.name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNRAZE_CACHE", str(made.cache))
        yield from serving(folder, (str(made.data),))


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=ASSERTS)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def opened(chromium: Any, live: Live, *, width: int = 1280, scheme: str = "light") -> Any:
    """A tab of a new browser, with a session; `wrong` has what goes wrong in it."""
    context = chromium.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
    )
    return entered(context, live)


def entered(context: Any, live: Live) -> Any:
    page = context.new_page()
    page.set_default_timeout(ASSERTS)
    page.wrong = []
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on(
        "console",
        lambda said: page.wrong.append(said.text) if said.type == "error" else None,
    )
    page.on(
        "request",
        lambda asked: (
            None
            if asked.url.startswith((live.address, "data:", "blob:"))
            else page.wrong.append(asked.url)
        ),
    )
    page.goto(live.entrance)
    page.get_by_role("heading", level=1).wait_for()
    return page


@pytest.fixture
def page(chromium: Any, live: Live) -> Iterator[Any]:
    tab = opened(chromium, live)
    yield tab
    wrong = tab.wrong
    tab.context.close()
    assert wrong == []


def until(page: Any, holds: str, arg: Any = None) -> None:
    """Waits until an expression holds; `wait_for_function` would have the page itself evaluate it
    each time but the first, which its policy forbids."""
    wait_for(lambda: page.evaluate(holds, arg), ASSERTS / 1000)


def shown(page: Any, name: str) -> None:
    folder = os.environ.get("UNRAZE_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def axe_finds(page: Any) -> list[str]:
    """What axe-core finds that keeps people out of a page."""
    from axe_playwright_python.sync_playwright import Axe

    # the policy of the page lets no script in but its own: axe comes by the debugger, as tests do
    found = Axe().run(page).response["violations"]
    return [f"{one['id']}: {[node['html'][:120] for node in one['nodes']]}" for one in found]


def settled(page: Any, name: str) -> None:
    """Waits until a view is there, with its pictures."""
    page.get_by_role("heading", level=1).wait_for()
    page.wait_for_load_state("networkidle") if name == "none" else page.wait_for_timeout(600)


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (320, "dark"),
        (1280, "light"),
        pytest.param(320, "light", marks=pytest.mark.slow),
        pytest.param(1280, "dark", marks=pytest.mark.slow),
        pytest.param(2560, "light", marks=pytest.mark.slow),
        pytest.param(2560, "dark", marks=pytest.mark.slow),
    ],
)
def test_each_view_is_whole_at_every_width_and_keeps_nobody_out(
    chromium: Any, live: Live, width: int, scheme: str
) -> None:
    tab = opened(chromium, live, width=width, scheme=scheme)
    for name in VIEWS:
        tab.goto(live.view(name))
        settled(tab, name)
        wide = tab.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert wide <= 0, f"{name} scrolls sideways at {width}"
        assert tab.title().endswith("Unraze studio")
        shown(tab, f"{name}-{width}-{scheme}")
        assert axe_finds(tab) == [], name
    assert tab.wrong == []
    tab.context.close()


def test_pictures_form_are_looked_at_saved_and_drawn_again_by_their_recipe(
    page: Any, live: Live, tmp_path: Path
) -> None:
    from playwright.sync_api import expect

    page.goto(live.view("sample"))
    page.get_by_label("Seed").fill("7")
    page.get_by_role("spinbutton", name="Pictures").fill("4")
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.get_by_role("link", name="Save all as PNG")).to_be_visible()
    expect(page.get_by_role("button", name=re.compile("^Picture [0-9]"))).to_have_count(4)
    assert canvas_of(page, ".tile canvas").std() > 0

    page.get_by_role("button", name=re.compile("^Picture 2")).click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Seed")
    dialog.get_by_role("button", name="Find the nearest training images").click()
    expect(dialog).to_contain_text("training images differs")
    shown(page, "picture")
    assert axe_finds(page) == []
    with page.expect_download() as saving:
        dialog.get_by_role("link", name="Save PNG").click()
    file = tmp_path / "saved.png"
    saving.value.save_as(file)
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)

    page.goto(live.view("sample", "run"))  # another run's view: the recipe leads to its own
    expect(page).to_have_title(re.compile("^Sample, run"))
    page.locator("input[type=file]").set_input_files(file)
    expect(page.get_by_text("The recipe is taken")).to_be_visible()
    expect(page).to_have_title(re.compile("^Sample, classy"))
    expect(page.get_by_label("Seed")).to_have_value("7")
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.get_by_role("link", name="Save all as PNG")).to_be_visible()
    with page.expect_download() as saving:
        page.get_by_role("button", name=re.compile("^Picture 2")).click()
        page.get_by_role("dialog").get_by_role("link", name="Save PNG").click()
    saving.value.save_as(tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == file.read_bytes()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Keep in the run's folder").click()
    expect(page.get_by_text(re.compile("Kept in .*samples-"))).to_be_visible()


DRAWN = """[...document.querySelector(".equation canvas").getContext("2d")
    .getImageData(0, 0, 999, 999).data].reduce((sum, v, i) => i % 4 ? sum : sum + v, 0)"""
"""The sum of the grey levels of the first canvas of the equation, beyond its edge nothing."""


def canvas_of(page: Any, selector: str) -> np.ndarray:
    """The grey levels of the first canvas that fits, once it is painted: until then all of it is
    transparent, and its picture comes only after the page has laid it out."""
    canvas = page.locator(selector).first
    wait_for(lambda: channel(canvas, 3).any(), ASSERTS / 1000)
    return channel(canvas, 0)


def channel(canvas: Any, number: int) -> np.ndarray:
    values = canvas.evaluate(
        """(canvas, number) => [...canvas.getContext("2d")
           .getImageData(0, 0, canvas.width, canvas.height)
           .data].filter((_, i) => i % 4 === number)""",
        number,
    )
    return np.array(values)


def test_t_slides_by_keys_and_the_walk_goes_back_from_there(page: Any, live: Live) -> None:
    from playwright.sync_api import expect

    page.goto(live.view("destroy"))
    slider = page.get_by_role("slider", name=re.compile("^t, "))
    slider.focus()
    page.keyboard.press("Home")
    expect(page.get_by_text("0 of 50")).to_be_visible()
    until(page, f"{DRAWN} > 0")
    clean = canvas_of(page, ".equation canvas")
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    expect(page.get_by_text("20 of 50")).to_be_visible()
    model = generate.load(live.folder / "classy")
    amount = float(model.schedule.alpha_bar[20])
    expect(page.locator(".equation")).to_contain_text(f"{amount:.3f}")
    until(page, f"before => {DRAWN} !== before", arg=int(clean.sum()))

    page.get_by_role("button", name=re.compile("^Walk back")).click()
    expect(page.locator(".walk")).to_have_count(2)
    expect(page.get_by_role("heading", name=re.compile("^Greedy"))).to_be_visible()
    expect(page.locator(".walks")).to_be_visible()
    shown(page, "walk")
    assert axe_finds(page) == []
    page.reload()  # in the middle: the address has it all
    expect(page.get_by_text("20 of 50")).to_be_visible()
    expect(page.locator(".walks")).to_be_visible()


def test_a_dropped_picture_takes_the_image_s_place(page: Any, live: Live, tmp_path: Path) -> None:
    file = tmp_path / "mine.png"
    Image.new("RGB", (40, 30), "white").save(file)
    page.goto(live.view("destroy"))
    page.locator("canvas").first.wait_for()
    page.locator("input[type=file]").set_input_files(file)
    until(
        page,
        """() => { const c = document.querySelectorAll(".equation canvas")[1];
           return c && c.getContext("2d").getImageData(0, 0, 1, 1).data[0] === 255; }""",
    )
    wrong = tmp_path / "wrong.png"
    wrong.write_bytes(b"no picture")
    from playwright.sync_api import expect

    page.locator("input[type=file]").set_input_files(wrong)
    expect(page.get_by_text(re.compile("in no image format"))).to_be_visible()
    page.wrong.clear()  # the browser notes that a request was answered with 400


def test_an_image_is_varied_and_a_result_edited_again(page: Any, live: Live) -> None:
    from playwright.sync_api import expect

    page.goto(live.view("edit"))
    strength = page.get_by_role("slider", name="Strength")
    strength.focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_text("t = 26 of 50")).to_be_visible()
    model = generate.load(live.folder / "classy")
    expect(page.locator(".formula-now").first).to_contain_text(
        f"{float(model.schedule.alpha_bar[26]):.3f}"
    )
    page.get_by_label("Class", exact=True).select_option("4")
    page.get_by_label("Results").fill("3")
    page.get_by_role("button", name="Vary it").click()
    expect(page.get_by_role("link", name="Save all as PNG")).to_be_visible()
    expect(page.get_by_role("button", name=re.compile("^Result [0-9]"))).to_have_count(3)
    assert canvas_of(page, ".tile canvas").std() > 0
    assert canvas_of(page, ".before canvas").std() > 0
    shown(page, "varied")
    page.get_by_role("button", name=re.compile("^Result 1")).click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Strength0.51")
    shown(page, "varied-one")
    assert axe_finds(page) == []
    dialog.get_by_role("link", name="Edit this one").click()
    expect(page.get_by_text("Picture 1 of a drawing is shown.")).to_be_visible()
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.get_by_role("button", name=re.compile("^Queue")).click()
    page.get_by_role("link", name=re.compile("Vary an image with classy")).click()
    expect(page.get_by_role("button", name=re.compile("^Result [0-9]"))).to_have_count(3)
    expect(strength).to_have_value("0.51")


def test_a_finger_paints(chromium: Any, live: Live) -> None:
    from playwright.sync_api import expect

    context = chromium.new_context(viewport={"width": 320, "height": 844}, has_touch=True)
    tab = entered(context, live)
    tab.goto(f"{live.view('edit')}?do=inpaint")
    tab.get_by_role("slider", name="Brush").focus()
    tab.keyboard.press("Home")
    easel = tab.get_by_role("application")
    easel.tap(position={"x": 10, "y": 10})
    expect(tab.get_by_text("2% is drawn anew")).to_be_visible()
    tab.get_by_role("radio", name="Erase").check()
    easel.tap(position={"x": 10, "y": 10})
    expect(tab.get_by_text("Nothing is marked yet")).to_be_visible()
    for name in ("Blend", "Fill in"):
        tab.get_by_role("radio", name=name).check()
        shown(tab, f"{name}-narrow")
        assert tab.evaluate("document.documentElement.scrollWidth") <= 320, name
        assert axe_finds(tab) == []
    assert tab.wrong == []
    context.close()


def test_a_mask_is_painted_by_mouse_and_by_keyboard_and_filled_in(
    page: Any, live: Live, tmp_path: Path
) -> None:
    from playwright.sync_api import expect

    page.goto(live.view("edit"))
    page.get_by_role("radio", name="Fill in").check()
    page.get_by_role("button", name="Fill it in").click()
    expect(page.get_by_text(re.compile("^Nothing is marked yet"))).to_have_count(2)  # and refused
    easel = page.get_by_role("application")
    brush = page.get_by_role("slider", name="Brush")
    brush.focus()
    page.keyboard.press("Home")
    box = easel.bounding_box()
    pixel = box["width"] / 8

    def at(x: int, y: int) -> tuple[float, float]:
        return box["x"] + (x + 0.5) * pixel, box["y"] + (y + 0.5) * pixel

    page.mouse.move(*at(1, 6))
    page.mouse.down()
    page.mouse.move(*at(5, 6))  # all between are painted, however few places are told
    page.mouse.up()
    expect(page.get_by_text("8% is drawn anew")).to_be_visible()
    easel.focus()
    for key in ("ArrowUp", "ArrowUp", "ArrowLeft", " "):
        page.keyboard.press(key)
    expect(page.locator("#announcer")).to_have_text("Column 5, row 5: drawn anew")
    painted = np.zeros((8, 8), dtype=np.uint8)
    painted[6, 1:6] = painted[4, 4] = 1
    until(page, "location.hash.includes('mask=')")
    shown(page, "painted")
    assert axe_finds(page) == []

    page.reload()  # in the middle: the address has it
    expect(page.get_by_text("9% is drawn anew")).to_be_visible()
    page.get_by_role("button", name="Invert").click()
    expect(page.get_by_text("91% is drawn anew")).to_be_visible()
    page.get_by_role("button", name="Undo").click()
    page.get_by_role("button", name="Clear").click()
    easel.focus()
    page.keyboard.press("Control+z")
    expect(page.get_by_text("9% is drawn anew")).to_be_visible()
    page.get_by_label("Results").fill("2")
    page.get_by_label("Steps").fill("5")
    page.get_by_role("button", name="Fill it in").click()
    expect(page.get_by_role("link", name="Save all as PNG")).to_be_visible()
    shown(page, "filled")
    assert axe_finds(page) == []

    page.get_by_role("button", name=re.compile("^Result 1")).click()
    with page.expect_download() as saving:
        page.get_by_role("dialog").get_by_role("link", name="Save PNG").click()
    file = tmp_path / "filled.png"
    saving.value.save_as(file)
    recipe = pictures.read_recipe(file)
    assert (recipe["kind"], recipe["edit"], recipe["result"]) == ("edit", "inpaint", 1)
    assert np.packbits(painted).tobytes() == base64.b64decode(recipe["mask"]["bits"])
    given = load(generate.load(live.folder / "classy").config.data, split="held-out").pixels[0, 0]
    with Image.open(file) as picture:
        known = painted == 0
        np.testing.assert_array_equal(np.asarray(picture)[known], given[known])


def test_two_images_are_blended_and_the_way_is_gone_by_hand(page: Any, live: Live) -> None:
    from playwright.sync_api import expect

    page.goto(live.view("edit"))
    page.get_by_role("radio", name="Blend").check()
    other = page.get_by_role("region", name="The other image")
    other.get_by_role("radio").nth(3).check()
    page.get_by_label("Pictures on the way").fill("5")
    page.get_by_role("button", name="Blend them").click()
    expect(page.get_by_role("link", name="Save the strip as PNG")).to_be_visible()
    until(page, "document.querySelectorAll('.way canvas').length === 5")
    way = page.get_by_role("slider", name="Picture")
    way.focus()
    page.keyboard.press("End")
    expect(page.get_by_text("5 of 5")).to_be_visible()
    wait_for(
        lambda: np.array_equal(
            canvas_of(page, ".blend canvas"), canvas_of(page, ".way button:last-child canvas")
        ),
        ASSERTS / 1000,
    )
    shown(page, "blended")
    assert axe_finds(page) == []
    page.reload()
    expect(page.get_by_role("link", name="Save the strip as PNG")).to_be_visible()
    expect(other.get_by_role("radio").nth(3)).to_be_checked()


def test_a_training_from_its_start_to_its_end(page: Any, live: Live) -> None:
    from playwright.sync_api import expect

    page.goto(live.view("train"))
    page.get_by_label("Images", exact=True).select_option(label="digits")
    page.get_by_role("radio", name="Steps").check()
    page.get_by_role("spinbutton", name="Steps").fill("12")
    page.get_by_role("button", name="Estimate time and memory").click()
    expect(page.get_by_text(re.compile("^12 steps of "))).to_be_visible()
    shown(page, "estimate")
    page.get_by_role("button", name="Start training").click()
    expect(page).to_have_url(re.compile("#/runs/[0-9a-f]{16}$"))
    expect(page.get_by_text("12 of 12", exact=True)).to_be_visible(timeout=120_000)
    expect(page.get_by_text("done").locator("visible=true").first).to_be_visible()
    expect(page.get_by_role("button", name="Go on training")).to_have_count(0)
    shown(page, "trained")
    page.get_by_role("link", name="Runs").first.click()
    expect(page.get_by_role("link", name=re.compile("-digits$"))).to_be_visible()


def test_a_long_drawing_is_cancelled_seen_after_a_reload_and_ends_with_its_tab(
    chromium: Any, live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    from playwright.sync_api import expect

    whole = generate.generate

    def slowly(*args: Any, **how: Any) -> Any:
        for moment in whole(*args, **how):
            time.sleep(1.0)
            yield moment

    monkeypatch.setattr(generate, "generate", slowly)
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    first, second = entered(context, live), entered(context, live)
    first.goto(live.view("sample", "run"))
    first.get_by_role("spinbutton", name="Steps").fill("50")
    first.get_by_role("button", name="Draw", exact=True).click()
    expect(first.get_by_role("button", name=re.compile("^Picture 0"))).to_be_visible()
    first.reload()
    expect(first.get_by_role("button", name=re.compile("^Picture 0"))).to_be_visible()

    second.get_by_role("button", name=re.compile("^Queue")).click()
    queue = second.get_by_role("complementary", name="Queue")
    expect(queue).to_contain_text("Draw 16 from run")
    shown(second, "queue")
    assert axe_finds(second) == []
    queue.get_by_role("button", name=re.compile("^Cancel Draw 16 from run")).click()
    expect(first.get_by_text("Cancelled.", exact=True)).to_be_visible()

    first.get_by_role("button", name="Draw", exact=True).click()
    expect(queue.get_by_role("button", name=re.compile("^Cancel Draw"))).to_be_visible()
    first.close()  # what was only looked at ends
    expect(queue.get_by_role("button", name=re.compile("^Cancel Draw"))).to_have_count(0)
    assert second.wrong == []
    context.close()


def test_work_that_is_asked_for_stands_in_the_address_at_once(page: Any, live: Live) -> None:
    """A change of the settings may wait, for browsers refuse to be told too often."""
    page.goto(live.view("sample"))
    page.get_by_role("button", name="Draw", exact=True).wait_for()
    said = page.evaluate(
        """async () => {
          const { note } = await import("./router.js");
          const rest = () => new Promise((done) => setTimeout(done, 500));
          const said = () => location.hash.split("?")[1];
          const after = (query) => { note(new URLSearchParams(query)); return said(); };
          await rest();
          const heard = ["steps=3", "steps=4", "steps=5&job=a", "steps=6&job=a"].map(after);
          await rest();
          return [...heard, said()];
        }"""
    )
    at_once, waits = ["steps=3", "steps=3"], ["steps=5&job=a", "steps=5&job=a"]
    assert said == [*at_once, *waits, "steps=6&job=a"]


def test_a_tab_that_nobody_sees_gives_its_line_back_and_listens_again_once_it_is_seen(
    page: Any, live: Live
) -> None:
    from playwright.sync_api import expect

    def turn(hidden: str) -> None:
        page.evaluate(
            f"""() => {{ Object.defineProperty(document, "hidden", {{ value: {hidden},
                configurable: true }}); document.dispatchEvent(new Event("visibilitychange")); }}"""
        )

    client = page.evaluate("sessionStorage.getItem('unraze-client')")

    def listens(is_so: bool) -> bool:
        for _ in range(150):
            if any(tab.client == client for tab in live.studio.hub._tabs) == is_so:
                return True
            page.wait_for_timeout(100)
        return False

    page.goto(live.view("runs"))
    assert listens(True)
    turn("true")
    assert listens(False)
    turn("false")
    assert listens(True)
    (live.folder / "other").rename(live.folder / "another")
    try:
        expect(page.get_by_role("link", name="another", exact=True)).to_be_visible()
        until(page, "[...document.images].every(image => image.complete)")  # of it too
    finally:  # or the tests after this one would have no such run
        (live.folder / "another").rename(live.folder / "other")
    expect(page.get_by_role("link", name="other", exact=True)).to_be_visible()


def test_by_keyboard_alone_from_the_top_to_a_drawing(page: Any, live: Live) -> None:
    from playwright.sync_api import expect

    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.textContent.trim()"))
        if reached[-1] == "classy":
            break
    assert reached[0] == "Skip to the content"
    assert {"Runs", "Sample", "Data"} <= set(reached)
    assert reached[-1] == "classy"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1, name="classy")).to_be_visible()
    page.get_by_role("link", name="Skip to the content").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "view"
    page.get_by_role("link", name="Sample").last.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1, name="Sample")).to_be_focused()
    page.get_by_label("Seed").focus()
    page.keyboard.press("Enter")  # sends the form
    expect(page.get_by_role("link", name="Save all as PNG")).to_be_visible()


def test_data_and_evaluations_are_shown(page: Any, live: Live) -> None:
    from playwright.sync_api import expect

    page.goto(live.view("data"))
    page.get_by_label("Images", exact=True).select_option(label="digits.npz")
    page.get_by_role("button", name="Look at these images").click()
    expect(page.get_by_role("heading", name="Contact sheets")).to_be_visible()
    expect(page.get_by_text("Trained on: 150 images", exact=True)).to_be_visible()
    expect(page.get_by_role("img").first).to_be_visible()
    shown(page, "data-looked-at")
    assert axe_finds(page) == []

    for run in ("run", "other"):
        page.goto(live.view("run", run))
        page.get_by_label("Samples").fill("100")
        page.get_by_role("button", name="Evaluate").click()
        expect(page.get_by_role("table").first).to_be_visible(timeout=60_000)
    page.goto(live.view("compare"))
    better = page.get_by_text(re.compile("really better")).locator("visible=true")
    expect(better.first).to_be_visible()
    shown(page, "compared")
    assert axe_finds(page) == []


@pytest.mark.slow
def test_the_pictures_of_the_documents_are_taken(page: Any, live: Live, tmp_path: Path) -> None:
    views = {name: live.view(name) for name in VIEWS if name != "train"}
    with as_module(Path(__file__).parents[2] / "docs" / "studio.py") as script:
        script.take(page, tmp_path, views, run="classy", other="other")
    taken = {file.stem.removeprefix("studio-") for file in tmp_path.iterdir()}
    views_shown = {"runs", "run", "sample", "destroy", "edit", "compare", "data"}
    assert taken == views_shown | {"walk", "narrow"}
    text = (Path(__file__).parents[2] / "docs" / "studio.md").read_text(encoding="utf-8")
    assert set(re.findall(r"figures/studio-([a-z]+)\.png", text)) == taken


def test_an_empty_folder_says_what_to_do(chromium: Any, tmp_path: Path) -> None:
    for empty in serving(tmp_path / "none"):
        tab = opened(chromium, empty)
        for name in ("runs", "compare", "data"):
            tab.goto(empty.view(name) if name != "compare" else f"{empty.address}/#/compare")
            settled(tab, name)
            shown(tab, f"empty-{name}")
            assert axe_finds(tab) == []
        tab.goto(empty.view("runs"))
        assert "unraze train fashion-mnist" in tab.locator("main").inner_text()
        assert tab.wrong == []
        tab.context.close()


def test_a_folder_that_cannot_be_looked_into_is_told_with_the_reason(
    chromium: Any, tmp_path: Path
) -> None:
    from playwright.sync_api import expect

    (tmp_path / "runs").write_text("", encoding="utf-8")
    for live in serving(tmp_path / "runs"):
        tab = opened(chromium, live)
        expect(tab.get_by_role("status").get_by_text("cannot be looked into")).to_be_visible()
        (tmp_path / "runs").unlink()
        expect(tab.get_by_text("No runs yet")).to_be_visible()
        expect(tab.get_by_text("cannot be looked into")).to_have_count(0)
        tab.context.close()


def test_without_the_token_the_page_says_where_it_is(chromium: Any, live: Live) -> None:
    context = chromium.new_context()
    for hash_ in ("", "#/runs", "#token=wrong"):
        tab = context.new_page()
        tab.goto(f"{live.address}/{hash_}")
        tab.get_by_role("heading", name="This studio is locked").wait_for()
        assert "unraze studio" in tab.locator("main").inner_text()
        tab.close()
    context.close()


def test_a_studio_that_stops_is_told_and_the_token_is_not_in_the_history(
    chromium: Any, made: Small, tmp_path: Path
) -> None:
    from playwright.sync_api import expect

    shutil.copytree(made.run, tmp_path / "runs" / "run")
    studios = serving(tmp_path / "runs")
    live = next(studios)
    tab = opened(chromium, live)
    expect(tab).to_have_url(re.compile("#/runs$"))
    assert live.studio.keys.token not in tab.evaluate("location.href")
    tab.go_back()
    assert live.studio.keys.token not in tab.evaluate("location.href")
    tab.goto(live.view("runs"))
    expect(tab.get_by_role("link", name="run", exact=True)).to_be_visible()
    assert next(studios, None) is None  # it is stopped
    expect(tab.get_by_text(re.compile("does not answer"))).to_be_visible()
    tab.context.close()


def test_a_damaged_run_is_shown_with_the_reason(chromium: Any, made: Small, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    shutil.copytree(made.run, tmp_path / "runs" / "run")
    (tmp_path / "runs" / "run" / "config.toml").write_text("steps = [", encoding="utf-8")
    for live in serving(tmp_path / "runs"):
        tab = opened(chromium, live)
        expect(tab.get_by_role("cell", name="cannot be read")).to_be_visible()
        tab.goto(live.view("run", "run"))
        why = tab.get_by_text(re.compile("config.toml")).locator("visible=true")
        expect(why.first).to_be_visible()
        tab.context.close()
