"""The page of `unraze export web`: how long after it is opened the first pictures stand.

    python bench/page.py RUN [--rounds 5] [--counts 1,9,16] [--runtime FOLDER]

The run is exported into a temporary folder and served; a new Chromium opens the page in each round,
with nothing kept of the round before, and draws the run's own way. The seconds are those from
asking for the address to the last step of its first pictures: page, runtime, network, drawing.

Chromium is that of the system, driven by playwright; npm fetches onnxruntime-web once where
--runtime names no folder of it.
"""

import argparse
import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from unraze.generate import load, settings_of
from unraze.interop.web import export, runtime_in, served

DRAWN = "body[data-drawn='1']"


def seconds_to_pictures(browser: str, address: str) -> float:
    """From asking a new browser for the address to its first pictures."""
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page()
        began = time.perf_counter()
        page.goto(address)
        page.locator(DRAWN).wait_for(timeout=120_000)
        seconds = time.perf_counter() - began
        chromium.close()
    return seconds


def main() -> None:
    """Parses, exports, opens and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--counts", default="1,9,16", help="pictures, of those the page offers")
    parser.add_argument("--runtime", type=Path, help="the npm package onnxruntime-web")
    options = parser.parse_args()
    browser = shutil.which("chromium")
    if browser is None:
        parser.error("chromium is not installed")
    model = load(options.run)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "page"
        runtime = runtime_in(options.runtime)
        export(model, folder, settings=settings_of(model), runtime=runtime, title="page")
        with served(folder) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            for count in options.counts.split(","):
                address = f"http://127.0.0.1:{server.server_port}/#count={count}"
                took = [seconds_to_pictures(browser, address) for _ in range(options.rounds)]
                middle = statistics.median(took)
                print(f"{count:>3} pictures: {middle:.1f} s ({min(took):.1f} … {max(took):.1f})")
            server.shutdown()


if __name__ == "__main__":
    main()
