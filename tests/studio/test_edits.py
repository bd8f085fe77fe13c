"""Editing: what the studio makes of a picture is what `unraze edit` writes of it, byte for byte."""

import base64
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from studios import Ended
from unraze import generate
from unraze.cli import main
from unraze.config import DistilledConfig
from unraze.data import load
from unraze.studio.app import Studio
from unraze.studio.tasks import editing

PAINTED = np.zeros((8, 8), dtype=np.uint8)
PAINTED[2:5, 1:4] = PAINTED[6, 7] = 1  # no rectangle
LOWER = np.zeros((8, 8), dtype=np.uint8)
LOWER[4:] = 1


def bits(mask: np.ndarray) -> str:
    return base64.b64encode(np.packbits(mask).tobytes()).decode()


def example(number: int) -> dict[str, Any]:
    return {"kind": "example", "number": number}


def job(browser: TestClient, **asked: Any) -> dict[str, Any]:
    answer = browser.post("/api/jobs/edit", json={"client": "tab", **asked})
    assert answer.status_code == 201, answer.text
    told: dict[str, Any] = answer.json()
    return told


@pytest.fixture
def files(folder: Path, tmp_path: Path) -> Path:
    """Two images of the held-out part, under the names that the studio gives them, and masks."""
    images = load(generate.load(folder / "classy").config.data, split="held-out")
    for number in (2, 5):
        Image.fromarray(images.pixels[number, 0]).save(tmp_path / f"held-out-{number:05d}.png")
    Image.fromarray(PAINTED * 255).save(tmp_path / "mask.png")
    return tmp_path


TWO, FIVE = "held-out-00002.png", "held-out-00005.png"
EDITS: dict[str, tuple[str, dict[str, Any]]] = {
    "vary": (
        f"vary RUN {TWO} --strength 0.4 -n 3 --seed 7",
        {"edit": "vary", "strength": 0.4, "count": 3, "seed": 7},
    ),
    "nothing is varied": (
        f"vary RUN {TWO} --strength 0 -n 2",
        {"edit": "vary", "strength": 0, "count": 2},
    ),
    "a class": (
        f"vary RUN {TWO} --class 3 --guidance 2 --steps 9",
        {"edit": "vary", "class": 3, "guidance": 2, "steps": 9},
    ),
    "another class": (
        f"vary RUN {TWO} --of 1 --class 4 --strength 0.8 --steps 6",
        {"edit": "vary", "of": 1, "class": 4, "strength": 0.8, "steps": 6},
    ),
    "inpaint": (
        f"inpaint RUN {TWO} --mask mask.png -n 2 --seed 1 --steps 6",
        {"edit": "inpaint", "mask": bits(PAINTED), "count": 2, "seed": 1, "steps": 6},
    ),
    "a rectangle": (
        f"inpaint RUN {TWO} --mask 0,4,8,4 --method mmps --class 2 --steps 4",
        {"edit": "inpaint", "mask": bits(LOWER), "method": "mmps", "class": 2, "steps": 4},
    ),
    "repaint": (
        f"inpaint RUN {TWO} --mask mask.png --method repaint --repeats 2 --steps 9",
        {
            "edit": "inpaint",
            "mask": bits(PAINTED),
            "method": "repaint",
            "repeats": 2,
            "steps": 9,
        },
    ),
    "interpolate": (
        f"interpolate RUN {TWO} {FIVE} -n 5 --steps 6",
        {"edit": "interpolate", "to": example(5), "count": 5, "steps": 6},
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_that_of_the_command_line_byte_for_byte(
    name: str,
    browser: TestClient,
    ended: Ended,
    folder: Path,
    files: Path,
    ids: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words, asked = EDITS[name]
    monkeypatch.chdir(files)
    line = [str(folder / "classy") if word == "RUN" else word for word in words.split()]
    assert main(["edit", *line, "--film", "--out", "out"]) == 0

    made = ended(job(browser, run=ids["classy"], image=example(2), **asked))
    assert made["state"] == "done", made["error"]
    address, whole = f"/api/jobs/{made['id']}", "strip" if "to" in asked else "grid"
    count = len([file for file in Path("out").iterdir() if file.stem.isdigit()])
    assert made["result"]["count"] == count
    for number in range(count):
        mine = browser.get(f"{address}/images/{number}.png").content
        assert mine == Path(f"out/{number:05d}.png").read_bytes()
    assert browser.get(f"{address}/images/{count}.png").status_code == 404
    assert browser.get(f"{address}/grid.png").content == Path(f"out/{whole}.png").read_bytes()
    assert browser.get(f"{address}/film.gif").content == Path("out/film.gif").read_bytes()
    last = made["result"]["frames"] - 1
    with Image.open(io.BytesIO(browser.get(f"{address}/frames/{last}.png").content)) as sprite:
        shown = np.asarray(sprite)
    with Image.open("out/00000.png") as first:
        np.testing.assert_array_equal(shown[:8, :8], np.asarray(first))
    assert made["result"]["times"][-1] == 0


def test_a_dropped_picture_and_a_result_are_edited_under_the_names_of_their_files(
    browser: TestClient, ended: Ended, files: Path, ids: dict[str, str]
) -> None:
    data = (files / TWO).read_bytes()
    kept = browser.post("/api/images?file=mine.png", content=data).json()
    upload = {"kind": "upload", "id": kept["id"]}
    asked = {"run": ids["run"], "edit": "inpaint", "mask": bits(LOWER), "count": 2, "steps": 3}
    first = ended(job(browser, image=upload, **asked))
    told = first["result"]["recipe"]["image"]
    assert told["name"] == "mine.png"
    held_out = ended(job(browser, image=example(2), **asked))
    assert held_out["result"]["recipe"]["image"]["pixels"] == told["pixels"]

    drawn = {"kind": "drawn", "job": first["id"], "image": 1}
    again = ended(job(browser, run=ids["run"], edit="vary", strength=0, image=drawn, count=1))
    assert again["result"]["recipe"]["image"]["name"] == "00001.png"
    with Image.open(io.BytesIO(browser.get(f"/api/jobs/{again['id']}/images/0.png").content)) as it:
        mine = np.asarray(it)
    with Image.open(files / TWO) as given:
        np.testing.assert_array_equal(mine[:4], np.asarray(given)[:4])  # it was known


def test_of_a_long_edit_some_frames_are_kept_with_the_last(
    browser: TestClient, ended: Ended, ids: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"run": ids["run"], "edit": "vary", "image": example(1), "strength": 1, "steps": 40}
    whole = ended(job(browser, count=2, **asked))["result"]
    assert whole["frames"] == 40
    monkeypatch.setattr(editing, "MOST_BYTES", 5 * 2 * 64)
    thinned = ended(job(browser, count=2, **asked))["result"]
    assert thinned["frames"] == 5
    assert thinned["times"][-1] == 0
    assert set(thinned["times"]) <= set(whole["times"])


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"edit": "inpaint", "mask": bits(LOWER * 0)}, "mask: is empty"),
        ({"edit": "inpaint", "mask": bits(LOWER * 0 + 1)}, "mask: covers the whole image"),
        ({"edit": "inpaint", "mask": bits(LOWER[:6])}, "mask: is not of the run's images, 8 x 8"),
        ({"edit": "inpaint", "mask": "AAA"}, "mask: is no base64"),
        ({"edit": "vary", "class": 10}, "class"),
        ({"edit": "vary", "of": 1}, "say with class"),
        ({"edit": "vary", "of": 1, "class": 2, "strength": 0}, "strength"),
        ({"edit": "vary", "guidance": 3}, "guidance"),
        ({"edit": "vary", "steps": 51}, "steps"),
        ({"edit": "vary", "image": example(60)}, "there is no image 60"),
        ({"edit": "interpolate", "to": {"kind": "upload", "id": "gone"}}, "not kept any more"),
    ],
)
def test_what_cannot_be_is_said_in_words(
    browser: TestClient, ended: Ended, ids: dict[str, str], asked: dict[str, Any], words: str
) -> None:
    made = ended(job(browser, **{"run": ids["classy"], "image": example(0), **asked}))
    assert made["state"] == "failed"
    assert words in made["error"]
    assert "defect" not in made["error"]
    assert browser.get(f"/api/jobs/{made['id']}/images/0.png").status_code == 404


@pytest.mark.parametrize(
    "asked",
    [
        {"edit": "restore"},
        {"edit": "vary", "strength": 1.5},
        {"edit": "vary", "count": 65},
        {"edit": "vary", "mask": bits(LOWER)},
        {"edit": "inpaint", "mask": "0,4,8,4"},
        {"edit": "inpaint"},
        {"edit": "inpaint", "mask": bits(LOWER), "method": "magic"},
        {"edit": "interpolate", "to": example(1), "count": 1},
        {"edit": "interpolate"},
    ],
)
def test_what_is_out_of_bounds_is_refused(
    browser: TestClient, ids: dict[str, str], asked: dict[str, Any]
) -> None:
    said = {"client": "tab", "run": ids["run"], "image": example(0), **asked}
    answer = browser.post("/api/jobs/edit", json=said)
    assert answer.status_code == 422
    assert answer.json()["error"]


@pytest.mark.parametrize("asked", [EDITS["inpaint"][1], EDITS["interpolate"][1]])
def test_a_distilled_run_is_refused_with_the_run_that_can(
    browser: TestClient,
    ended: Ended,
    ids: dict[str, str],
    studio: Studio,
    monkeypatch: pytest.MonkeyPatch,
    asked: dict[str, Any],
) -> None:
    model = studio.held.model(studio.library.run(ids["run"]))
    distilled = DistilledConfig(run="teacher", checkpoint="0" * 64)
    jumps = replace(model, config=model.config.model_copy(update={"distilled": distilled}))
    monkeypatch.setattr(studio.held, "model", lambda *of, **which: jumps)
    made = ended(job(browser, run=ids["run"], image=example(0), **asked))
    assert "this run was distilled" in made["error"]
    assert "edit with teacher" in made["error"]
