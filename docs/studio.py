"""The pictures of docs/studio.md: each view of a studio, in a real browser.

    python docs/studio.py RUNS --run NAME [--compare OTHER] [--out docs/figures]

RUNS is a folder of runs, NAME one of them that is trained. Needs `playwright` and a Chromium.
"""

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

WIDE, NARROW = (1280, 860), (390, 844)


def take(page: Any, out: Path, views: dict[str, str], *, run: str, other: str | None) -> None:
    """Goes through the views by their addresses and takes a picture of each into a folder."""
    out.mkdir(parents=True, exist_ok=True)

    def shot(name: str) -> None:
        page.wait_for_timeout(400)
        page.screenshot(path=out / f"studio-{name}.png", animations="disabled")

    page.goto(views["runs"])
    page.get_by_role("link", name=run, exact=True).wait_for()
    shot("runs")
    page.goto(views["run"])
    page.get_by_text("Checkpoints", exact=True).wait_for()
    shot("run")
    drawn(page, views["sample"])
    shot("sample")
    walked(page, views["destroy"])
    page.evaluate("scrollTo(0, 0)")
    shot("destroy")
    page.evaluate("document.querySelector('.walks').scrollIntoView({block: 'center'})")
    shot("walk")
    filled(page, views["edit"])
    shot("edit")
    if other is not None:
        page.goto(views["compare"])
        page.get_by_role("button", name="Draw all").click()
        page.get_by_role("link", name=re.compile("^Look closer")).nth(1).wait_for(timeout=120_000)
        shot("compare")
    page.goto(views["data"])
    page.get_by_role("button", name="Look at these images").click()
    page.get_by_role("img").first.wait_for()
    shot("data")
    page.set_viewport_size({"width": NARROW[0], "height": NARROW[1]})
    page.goto(views["destroy"])
    page.locator(".equation canvas").first.wait_for()
    page.evaluate("document.querySelector('.equation').scrollIntoView()")
    shot("narrow")


def drawn(page: Any, address: str) -> None:
    """Draws, and waits until all is there."""
    page.goto(address)
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_role("link", name="Save all as PNG").wait_for(timeout=120_000)


def walked(page: Any, address: str) -> None:
    """Slides t to two thirds, and walks back from there."""
    page.goto(address)
    slider = page.get_by_role("slider", name=re.compile("^t, "))
    slider.evaluate(
        """input => { input.value = Math.round(input.max * 0.66);
           input.dispatchEvent(new Event("input", { bubbles: true })); }"""
    )
    page.get_by_role("button", name=re.compile("^Walk back")).click()
    page.locator(".walks").wait_for(timeout=120_000)
    finished(page, lambda: page.get_by_role("button", name=re.compile("^Cancel")).count() == 0)


def filled(page: Any, address: str) -> None:
    """Paints over the middle of an image, and has it filled in."""
    page.goto(address)
    page.get_by_role("radio", name="Fill in").check()
    page.get_by_role("slider", name="Brush").focus()
    page.keyboard.press("End")
    page.get_by_role("application").focus()
    page.keyboard.press("Space")
    page.get_by_role("button", name="Fill it in").click()
    page.get_by_role("link", name="Save all as PNG").wait_for(timeout=120_000)
    page.evaluate("document.querySelector('.edit-split').scrollIntoView()")
    page.evaluate("scrollBy(0, -130)")


def finished(page: Any, is_so: Callable[[], bool]) -> None:
    """Waits, two minutes at most."""
    for _ in range(600):
        if is_so():
            return
        page.wait_for_timeout(200)
    raise SystemExit("the studio does not get done")


def main() -> None:
    from playwright.sync_api import sync_playwright

    from unraze.studio.library import name_of

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--run", required=True)
    parser.add_argument("--compare")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "figures")
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    command = [sys.executable, "-m", "unraze", "studio", str(options.runs), "--no-browser"]
    process = subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        found = re.search(r"(http://\S+)/(#token=\S+)", process.stdout.readline())
        assert found, "the studio does not start"
        run = name_of(options.run)
        both = f"{run}&run={name_of(options.compare)}" if options.compare else run
        views = {
            "runs": "#/runs",
            "run": f"#/runs/{run}",
            "sample": f"#/sample/{run}?count=20",
            "destroy": f"#/destroy/{run}",
            "edit": f"#/edit/{run}?image=1",
            "compare": f"#/compare?run={both}",
            "data": "#/data",
        }
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": WIDE[0], "height": WIDE[1]})
            page.set_default_timeout(60_000)
            page.goto(f"{found[1]}/{found[2]}")
            page.get_by_role("heading", level=1).wait_for()
            addresses = {name: f"{found[1]}/{view}" for name, view in views.items()}
            take(page, options.out, addresses, run=options.run, other=options.compare)
            browser.close()
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
