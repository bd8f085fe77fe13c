"""What the page asks, asked without a page."""

import io
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from evaluated import Small
from studios import Ended
from unraze import drawing, generate, pictures
from unraze.cli import main
from unraze.data import load, to_float, to_uint8
from unraze.process import destroy_at
from unraze.run import Run, read_config
from unraze.studio import held, looks
from unraze.studio.app import Studio
from unraze.studio.library import name_of
from unraze.studio.routes.session import UPLOAD
from unraze.studio.tasks import walking


def job(browser: TestClient, kind: str, **asked: Any) -> dict[str, Any]:
    answer = browser.post(f"/api/jobs/{kind}", json={"client": "tab", **asked})
    assert answer.status_code == 201, answer.text
    told: dict[str, Any] = answer.json()
    return told


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture)


def test_about_names_what_can_be_chosen(browser: TestClient) -> None:
    about = browser.get("/api/about").json()
    samplers = {each["name"]: each for each in about["samplers"]}
    assert samplers["random"]["keys"] == ["sigma", "final_noise", "sigma_share"]
    assert samplers["ddim"]["keys"] == ["eta"]
    assert samplers["unipc"]["order"] == 3
    assert {"fast", "literal"} <= {preset["name"] for preset in about["presets"]}


def test_a_run_is_told_with_all_that_its_folder_says(
    browser: TestClient, folder: Path, ids: dict[str, str]
) -> None:
    told = browser.get(f"/api/runs/{ids['classy']}").json()
    assert told["class_names"] == [str(n) for n in range(10)]
    assert (told["num_classes"], told["clusters"]) == (10, 0)
    assert told["guidable"]
    assert told["checkpoints"] == [30]
    assert told["T"] == 50
    assert told["config"] == (folder / "classy" / "config.toml").read_text(encoding="utf-8")
    assert told["can_sample"]
    assert not told["can_stop"]
    assert not told["can_resume"]
    assert (
        browser.get(f"/api/runs/{ids['run']}/previews/30.png").content
        == (folder / "run" / "samples" / "step-00000030.png").read_bytes()
    )


def test_what_is_not_there_is_said_so(browser: TestClient, ids: dict[str, str]) -> None:
    gone = "0" * 16
    for address in (
        f"/api/runs/{gone}",
        f"/api/runs/{gone}/curves",
        f"/api/runs/{gone}/thumbnail.png",
        f"/api/runs/{ids['run']}/previews/7.png",
        f"/api/jobs/{gone}",
        f"/api/jobs/{gone}/grid.png",
        "/api/nothing",
    ):
        answer = browser.get(address)
        assert answer.status_code == 404, address
        assert answer.json()["error"]
    for address in ("/api/runs/..", "/api/runs/run", "/api/runs/%2e%2e%2fetc"):
        assert browser.get(address).status_code in (404, 422)


def test_a_drawing_is_that_of_the_command_line_byte_for_byte(
    browser: TestClient, ended: Ended, folder: Path, ids: dict[str, str], tmp_path: Path
) -> None:
    run = folder / "classy"
    out = tmp_path / "drawn"
    options = ["-n", "5", "--seed", "3", "--film", "--sampler", "random", "--sigma-share", "0.5"]
    assert main(["sample", str(run), *options, "--steps", "6", "--out", str(out)]) == 0

    settings = {"sampler": "random", "sigma_share": 0.5, "steps": 6}
    asked = {"run": ids["classy"], "count": 5, "seed": 3, "settings": settings}
    made = ended(job(browser, "sample", **asked))
    assert made["state"] == "done", made["error"]
    result, address = made["result"], f"/api/jobs/{made['id']}"
    assert (result["count"], result["frames"], result["times"][-1]) == (5, 7, 0.0)
    assert result["labels"] == ["0", "1", "2", "3", "4"]
    for number in range(5):
        mine = browser.get(f"{address}/images/{number}.png").content
        assert mine == (out / f"{number:05d}.png").read_bytes()
    # theirs are drawn in a batch of at most 64, which these five are alone
    film = pictures.read_recipe(out / "film.gif")
    assert film["batch"] == [0, 5]
    assert browser.get(f"{address}/film.gif").content == (out / "film.gif").read_bytes()

    kept = browser.post(f"{address}/keep").json()["result"]["folder"]
    assert Path(kept).parent == run
    for number in range(5):
        assert (Path(kept) / f"{number:05d}.png").read_bytes() == (
            out / f"{number:05d}.png"
        ).read_bytes()
    again = browser.post(f"{address}/keep").json()["result"]["folder"]
    assert again == kept  # once


def test_two_drawings_that_are_kept_at_once_are_in_folders_of_their_own(
    browser: TestClient, ended: Ended, ids: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [ended(job(browser, "sample", run=ids["run"], count=2, seed=seed)) for seed in (1, 2)]
    fresh, both, found = drawing.fresh_folder, threading.Barrier(2), list[Path]()

    def same(run: Path, kind: str) -> Path:
        """The same folder for the first two who ask."""
        folder = fresh(run, kind)
        found.append(folder)
        if len(found) <= 2:
            both.wait(10)
        return folder

    monkeypatch.setattr(drawing, "fresh_folder", same)
    with ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(lambda m: browser.post(f"/api/jobs/{m['id']}/keep"), made))
    folders = [Path(answer.json()["result"]["folder"]) for answer in answers]
    assert found[0] == found[1]
    assert folders[0] != folders[1]
    for each, folder in zip(made, folders, strict=True):
        assert {file.name for file in folder.iterdir()} == {"00000.png", "00001.png", "grid.png"}
        for number in range(2):
            mine = browser.get(f"/api/jobs/{each['id']}/images/{number}.png").content
            assert (folder / f"{number:05d}.png").read_bytes() == mine


def test_a_drawing_that_is_kept_twice_at_once_is_kept_once(
    browser: TestClient, ended: Ended, ids: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = ended(job(browser, "sample", run=ids["run"], count=1))
    fresh, second = drawing.fresh_folder, threading.Event()

    def slowly(run: Path, kind: str) -> Path:
        second.wait(0.3)
        return fresh(run, kind)

    monkeypatch.setattr(drawing, "fresh_folder", slowly)
    with ThreadPoolExecutor(2) as threads:
        keep = [threads.submit(browser.post, f"/api/jobs/{made['id']}/keep") for _ in range(2)]
    first, again = (Path(each.result().json()["result"]["folder"]) for each in keep)
    assert first == again
    assert [path.name for path in first.parent.iterdir() if path.name.startswith("samples-")] == [
        first.name
    ]


def test_what_the_studio_drew_is_drawn_again_by_its_recipe(
    browser: TestClient, ended: Ended, folder: Path, ids: dict[str, str], tmp_path: Path
) -> None:
    made = ended(job(browser, "sample", run=ids["run"], count=4, seed=1))
    for name in ("images/2.png", "grid.png", "film.gif"):
        file = tmp_path / Path(name).name
        answer = browser.get(f"/api/jobs/{made['id']}/{name}?download=true")
        assert "attachment" in answer.headers["content-disposition"]
        file.write_bytes(answer.content)
        command = ["sample", str(folder / "run"), "--like", str(file)]
        assert main([*command, "--out", str(tmp_path / "again")]) == 0  # to the same bytes

    told = browser.post("/api/recipes", content=(tmp_path / "2.png").read_bytes()).json()
    assert (told["run"], told["same_weights"], told["words"]) == (ids["run"], True, None)
    once_more = ended(job(browser, "sample", **told["sample"]))
    again = browser.get(f"/api/jobs/{once_more['id']}/images/2.png").content
    assert again == (tmp_path / "2.png").read_bytes()


def test_frames_are_the_states_and_estimates_on_the_way(
    browser: TestClient, ended: Ended, ids: dict[str, str], studio: Studio
) -> None:
    made = ended(job(browser, "sample", run=ids["run"], count=3, seed=2))
    model = generate.load(studio.library.run(ids["run"]).path)
    steps = list(generate.generate(model, 3, seed=2, batch=3))
    states = [generate.start(model, 2, range(3)), *(step.x for step in steps)]
    estimates = [*(step.estimate for step in steps), steps[-1].x]  # of each state, a call later
    assert made["result"]["frames"] == made["result"]["estimates"] == len(states)
    assert made["result"]["times"] == [model.schedule.times[-1], *(step.t for step in steps)]
    for number, of_both in enumerate(zip(states, estimates, strict=True)):
        for of, x in zip(("state", "estimate"), of_both, strict=True):
            address = f"/api/jobs/{made['id']}/frames/{number}.png?of={of}"
            found = pixels(browser.get(address).content)
            wanted = np.zeros((16, 16), dtype=np.uint8)  # two columns, two rows, one left black
            for place, one in enumerate(to_uint8(x)):
                top, left = place // 2 * 8, place % 2 * 8
                wanted[top : top + 8, left : left + 8] = one[0]
            np.testing.assert_array_equal(found, wanted)


def test_the_nearest_training_image_of_a_training_image_is_itself(
    browser: TestClient, ended: Ended, ids: dict[str, str], studio: Studio, made: Small
) -> None:
    drawn = ended(job(browser, "sample", run=ids["run"], count=2))
    config = read_config(Run(made.run)).data
    training = load(config, split="train")
    shown = studio.queue.get(drawn["id"])
    assert shown is not None
    shown.shown.final = training.pixels[[5, 17]].transpose(0, 2, 3, 1)
    near = ended(job(browser, "nearest", job=drawn["id"], image=1, count=4))["result"]
    first = near["neighbours"][0]
    assert first["distance"] == 0
    np.testing.assert_array_equal(training.pixels[first["number"]], training.pixels[17])
    away = [each["distance"] for each in near["neighbours"]]
    assert away == sorted(away)
    other = training.pixels[near["neighbours"][3]["number"]].astype(float)
    rms = np.sqrt(np.mean((other - training.pixels[17]) ** 2)) / 127.5
    assert away[3] == pytest.approx(rms)
    assert "training images" in near["words"]


def test_a_moment_is_x_t_the_noise_in_it_and_what_the_network_says(
    browser: TestClient, ids: dict[str, str], studio: Studio
) -> None:
    model = generate.load(studio.library.run(ids["run"]).path)
    images = load(model.config.data, split="held-out")
    x0 = to_float(images.pixels[4:5])
    asked = {"image": {"kind": "example", "number": 4}, "t": 20, "seed": 7}
    told = browser.post(f"/api/runs/{ids['run']}/destroy", json=asked).json()
    eps, t = looks.noise_of(model, 7), torch.tensor([20.0], dtype=torch.float64)
    alpha_bar, beta_bar = model.schedule.at(t)
    x_t = destroy_at(alpha_bar, beta_bar, x0, eps)
    assert told["values"]["alpha_bar"] == pytest.approx(float(alpha_bar))
    assert told["values"]["alpha_bar"] ** 2 + told["values"]["beta_bar"] ** 2 == pytest.approx(1)
    assert told["values"]["beta"] == pytest.approx(float(model.schedule.beta[20]))
    said = looks.estimate(model, x_t, t, None)
    assert told["error"]["eps"] == pytest.approx(float((said.eps - eps).square().mean()), rel=1e-4)
    import base64

    row = pixels(base64.b64decode(told["sprite"].partition(",")[2]))
    assert row.shape == (8, 40)
    np.testing.assert_array_equal(row[:, :8], images.pixels[4, 0])
    np.testing.assert_array_equal(row[:, 8:16], to_uint8(x_t)[0, 0])


def test_at_t_0_nothing_is_destroyed_and_at_T_nothing_is_left(
    browser: TestClient, ids: dict[str, str]
) -> None:
    asked = {"image": {"kind": "example", "number": 0}, "t": 0}
    told = browser.post(f"/api/runs/{ids['run']}/destroy", json=asked).json()
    assert told["values"]["alpha_bar"] == 1
    assert told["error"] is None
    last = browser.post(f"/api/runs/{ids['run']}/destroy", json=asked | {"t": 50}).json()
    assert last["values"]["alpha_bar"] < 0.01
    beyond = browser.post(f"/api/runs/{ids['run']}/destroy", json=asked | {"t": 51})
    assert beyond.status_code == 400
    assert "0 to 50" in beyond.json()["error"]


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_walk_begins_at_one_x_t_and_is_greedy_where_eta_is_0(
    browser: TestClient, ended: Ended, ids: dict[str, str], eta: float
) -> None:
    image = {"kind": "example", "number": 3}
    asked = {"run": ids["classy"], "image": image, "t": 30, "steps": 10, "class": 3, "eta": eta}
    made = ended(job(browser, "walk", **asked))
    assert made["state"] == "done", made["error"]
    result = made["result"]
    assert result["frames"] == 11
    assert result["times"] == [30, 27, 24, 21, 18, 15, 12, 9, 6, 3, 0]
    frames = [
        pixels(browser.get(f"/api/jobs/{made['id']}/frames/{k}.png").content) for k in range(11)
    ]
    greedy, random = ([f[:, s : s + 8] for f in frames] for s in (0, 8))
    np.testing.assert_array_equal(greedy[0], random[0])
    alike = all(np.array_equal(a, b) for a, b in zip(greedy, random, strict=True))
    assert alike == (eta == 0)
    assert result["sigma_t"][-1] == 0  # no noise in the last step
    for alpha, beta, sigma in zip(
        result["alpha_t"][1:-1], result["beta_t"][1:-1], result["sigma_t"][1:-1], strict=True
    ):
        assert alpha**2 + beta**2 == pytest.approx(1)
        assert sigma == pytest.approx(eta * beta)


def test_of_a_walk_of_large_pictures_some_frames_are_kept_with_the_first_and_the_last(
    browser: TestClient, ended: Ended, ids: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = {"kind": "example", "number": 3}
    asked = {"run": ids["run"], "image": image, "t": 30, "steps": 30, "eta": 1.0}
    most = 5

    def walked() -> tuple[dict[str, Any], list[np.ndarray]]:
        made = ended(job(browser, "walk", **asked))
        assert made["state"] == "done", made["error"]
        address = f"/api/jobs/{made['id']}/frames"
        frames = range(made["result"]["frames"])
        return made["result"], [pixels(browser.get(f"{address}/{k}.png").content) for k in frames]

    whole, all_frames = walked()
    assert whole["frames"] == 31
    monkeypatch.setattr(walking, "MOST_BYTES", most * all_frames[0].size + 1)
    thinned, frames = walked()
    assert thinned["frames"] == 1 + most  # and that which it begins with
    assert thinned["times"] == [30, 24, 18, 12, 6, 0]
    for at, frame in zip(thinned["times"], frames, strict=True):
        np.testing.assert_array_equal(frame, all_frames[whole["times"].index(at)])
        for key in ("sigma_t", "alpha_t", "beta_t", "alpha_bar"):
            kept = thinned[key][thinned["times"].index(at)]
            assert kept == whole[key][whole["times"].index(at)]
    monkeypatch.setattr(walking, "MOST_BYTES", 1)  # a picture larger than all that is kept
    ends, _ = walked()
    assert ends["times"] == [30, 0]


def test_a_dropped_picture_is_destroyed_at_the_run_s_size(
    browser: TestClient, ids: dict[str, str]
) -> None:
    file = io.BytesIO()
    Image.new("RGBA", (40, 30), (255, 0, 0, 128)).save(file, "PNG")
    kept = browser.post("/api/images", content=file.getvalue()).json()
    assert (kept["width"], kept["height"]) == (40, 30)
    image = {"kind": "upload", "id": kept["id"]}
    told = browser.post(f"/api/runs/{ids['run']}/destroy", json={"image": image, "t": 5})
    assert told.status_code == 200
    assert told.json()["shape"] == [1, 8, 8]


@pytest.mark.parametrize(
    "data",
    [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(100), b"GIF89a" + bytes(50)],
)
def test_what_is_no_picture_is_refused_in_words(browser: TestClient, data: bytes) -> None:
    for address in ("/api/images", "/api/recipes"):
        answer = browser.post(address, content=data)
        assert answer.status_code == 400
        assert "picture" in answer.json()["error"]


def test_a_picture_without_a_recipe_and_one_of_another_run(
    browser: TestClient, ended: Ended, ids: dict[str, str], folder: Path, made: Small
) -> None:
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "PNG")
    answer = browser.post("/api/recipes", content=file.getvalue())
    assert answer.status_code == 400
    assert "no recipe" in answer.json()["error"]

    drawn = ended(job(browser, "sample", run=ids["run"], count=1))
    data = browser.get(f"/api/jobs/{drawn['id']}/images/0.png").content
    (folder / "run").rename(folder / "elsewhere")
    told = browser.post("/api/recipes", content=data).json()
    assert told["run"] is None
    assert "not here" in told["words"]
    assert told["recipe"]["seed"] == 0
    (folder / "other").rename(folder / "run")  # one of the same name, and of other weights
    told = browser.post("/api/recipes", content=data).json()
    assert told["same_weights"] is False
    assert "other weights" in told["words"]


def test_a_huge_upload_and_a_huge_request_are_refused(browser: TestClient) -> None:
    answer = browser.post("/api/images", content=bytes(UPLOAD + 1))
    assert answer.status_code == 413
    assert "larger" in answer.json()["error"]

    def endless() -> Any:
        for _ in range(UPLOAD // 2**20 + 2):
            yield bytes(2**20)

    assert browser.post("/api/images", content=endless()).status_code == 413
    large = {"client": "tab", "run": "0" * 16, "settings": {"sampler": "x" * 10**6}}
    assert browser.post("/api/jobs/sample", json=large).status_code == 413


def test_uploads_are_kept_up_to_a_number(browser: TestClient, ids: dict[str, str]) -> None:
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "PNG")
    names = [
        browser.post("/api/images", content=file.getvalue()).json()["id"]
        for _ in range(held.PICTURES + 1)
    ]
    asked = {"image": {"kind": "upload", "id": names[0]}, "t": 1}
    answer = browser.post(f"/api/runs/{ids['run']}/destroy", json=asked)
    assert answer.status_code == 404
    assert "drop it again" in answer.json()["error"]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"count": 0}, "count"),
        ({"count": 65}, "count"),
        ({"seed": -1}, "seed"),
        ({"more": 1}, "more"),
        ({"client": ""}, "client"),
        ({"run": "../run"}, "run"),
        ({"checkpoint": "worst"}, "checkpoint"),
    ],
)
def test_a_request_outside_of_its_bounds_is_refused(
    browser: TestClient, ids: dict[str, str], asked: dict[str, Any], says: str
) -> None:
    answer = browser.post("/api/jobs/sample", json={"client": "a", "run": ids["run"]} | asked)
    assert answer.status_code == 422
    assert says in answer.json()["error"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"steps": 51}, "steps"),
        ({"sampler": "heum"}, "heun"),
        ({"sampler": "ddim", "sigma_share": 0.5}, "sigma_share"),
        ({"guidance": 2.0}, "without classes"),
        ({"eta": 3}, "eta"),
        ({"stepps": 3}, "stepps"),
        ({"sigma": "learned", "sampler": "random"}, "learned no variance"),
    ],
)
def test_settings_that_a_run_cannot_be_drawn_with_fail_in_words(
    browser: TestClient, ended: Ended, ids: dict[str, str], settings: dict[str, Any], says: str
) -> None:
    made = ended(job(browser, "sample", run=ids["run"], settings=settings))
    assert made["state"] == "failed"
    assert says in made["error"]


def test_no_number_is_infinite(browser: TestClient, ids: dict[str, str]) -> None:
    body = json.dumps({"image": {"kind": "example", "number": 0}, "t": 1}).replace("1}", "NaN}")
    answer = browser.post(
        f"/api/runs/{ids['run']}/destroy",
        content=body,
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code == 422


def test_data_is_looked_at_by_an_identifier(browser: TestClient, ended: Ended, made: Small) -> None:
    sources = browser.get("/api/sources").json()["sources"]
    given = [source for source in sources if source["detail"] == str(made.data)]
    assert [source["kind"] for source in given] == ["given"]
    assert {"digits", "fashion-mnist"} <= {source["title"] for source in sources}
    looked = ended(job(browser, "data", source=given[0]["id"]))
    stats = looked["result"]["stats"]
    assert (stats["count"], stats["held_out"]) == (150, 60)
    assert (stats["height"], stats["width"], stats["channels"]) == (8, 8, 1)
    assert sum(stats["classes"].values()) == 150
    kinds = [finding["kind"] for finding in looked["result"]["findings"]]
    assert "few" in kinds
    for sheet in ("sheet", "held-out"):
        address = f"/api/jobs/{looked['id']}/{sheet}.png"
        assert browser.get(address).headers["content-type"] == "image/png"
    refused = browser.post("/api/jobs/data", json={"client": "a", "source": "etc"})
    assert refused.status_code == 404
    assert "--data" in refused.json()["error"]


def test_quality_is_measured_by_calls(
    browser: TestClient, ended: Ended, ids: dict[str, str]
) -> None:
    asked = {"run": ids["run"], "calls": [2, 1], "count": 100}
    made = ended(job(browser, "calls", **asked))
    assert made["state"] == "done", made["error"]
    points = made["result"]["points"]
    assert [point["calls"] for point in points] == [1, 2]
    assert all(point["low"] <= point["value"] <= point["high"] for point in points)
    assert made["result"]["floor"]["value"] is not None


def test_an_evaluation_is_that_of_the_command_line(
    browser: TestClient, ended: Ended, ids: dict[str, str], folder: Path
) -> None:
    assert browser.get(f"/api/runs/{ids['run']}/evaluations").json() == {
        "evaluations": [],
        "tuned": {},
    }
    for name in ("run", "other"):
        made = ended(job(browser, "evaluate", run=ids[name], count=100))
        assert made["state"] == "done", made["error"]
        assert made["keep"]
    (file,) = (folder / "run" / "eval").glob("step-*.json")
    written = json.loads(file.read_text(encoding="utf-8"))
    (told,) = browser.get(f"/api/runs/{ids['run']}/evaluations").json()["evaluations"]
    assert told["name"] == file.stem
    assert told["spaces"][0]["figures"][0]["value"] == written["spaces"][0]["figures"][0]["value"]
    assert (folder / "run" / "report.html").is_file()
    before = file.read_bytes()
    # made anew from what was kept
    assert main(["eval", str(folder / "run"), "-n", "100"]) == 0
    after = json.loads(file.read_text(encoding="utf-8"))
    assert after["spaces"] == json.loads(before)["spaces"]

    query = f"run={ids['run']}&run={ids['other']}"
    both = browser.get(f"/api/compare?{query}").json()
    assert both["error"] is None
    assert any("really better" in line for line in both["words"])
    three = browser.get(f"/api/compare?{query}&run={ids['classy']}").json()
    assert three["runs"][2]["evaluation"] is None


def test_a_training_is_estimated_before_it_starts(
    browser: TestClient, ended: Ended, made: Small
) -> None:
    sources = browser.get("/api/sources").json()["sources"]
    source = next(each["id"] for each in sources if each["title"] == "digits")
    made_job = ended(job(browser, "estimate", source=source, steps=100, batch=8))
    assert made_job["state"] == "done", made_job["error"]
    result = made_job["result"]
    assert (result["images"], result["steps"], result["shape"]) == (1500, 100, [1, 8, 8])
    assert result["memory_bytes"] < result["memory_there"]
    # a share of it is for previews
    assert result["seconds"] == pytest.approx(100 * 8 / result["images_per_second"] / 0.96)
    assert "TOO SHORT: 100 steps" in result["words"]
    annotated = {"preset": "annotated", "size": "7x5"}
    wrong = ended(job(browser, "estimate", source=source, steps=100, **annotated))
    assert wrong["state"] == "failed"
    assert "does not suit the network" in wrong["error"]
    refused = browser.post(
        "/api/jobs/estimate", json={"client": "a", "source": source, "steps": 1, "minutes": 1}
    )
    assert refused.status_code == 400
    assert "one of them" in refused.json()["error"]


def test_a_cancelled_drawing_ends_and_the_next_one_begins(
    browser: TestClient, ended: Ended, ids: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, whole = threading.Event(), generate.generate

    def slowly(*args: Any, **how: Any) -> Any:
        for moment in whole(*args, **how):
            gate.wait(5)
            yield moment

    monkeypatch.setattr(generate, "generate", slowly)
    first = job(browser, "sample", run=ids["run"])
    second = job(browser, "sample", run=ids["run"])
    assert browser.delete(f"/api/jobs/{first['id']}").status_code == 204
    gate.set()
    assert ended(first)["state"] == "cancelled"
    assert ended(second)["state"] == "done"


def test_a_run_without_a_checkpoint_says_so(
    browser: TestClient, ended: Ended, ids: dict[str, str], folder: Path
) -> None:
    for weights in (folder / "run" / "checkpoints").rglob("*"):
        if weights.is_file():
            weights.write_bytes(b"")
    told = browser.get(f"/api/runs/{ids['run']}").json()
    assert not told["can_sample"]
    assert told["error"]
    made = ended(job(browser, "sample", run=ids["run"]))
    assert made["state"] == "failed"
    asked = {"image": {"kind": "example", "number": 0}, "t": 1}
    answer = browser.post(f"/api/runs/{ids['run']}/destroy", json=asked)
    assert answer.status_code == 400
    assert browser.get("/api/runs").status_code == 200  # the server is unharmed


def test_a_folder_whose_name_no_encoding_has_is_drawn_from_and_told_of(
    browser: TestClient, ended: Ended, folder: Path
) -> None:
    odd = os.fsdecode(b"odd-\xff")
    (folder / "run").rename(folder / odd)
    made = ended(job(browser, "sample", run=name_of(odd), count=1))
    assert (made["state"], made["title"]) == ("done", "Draw 1 from odd-?")
    assert [each["id"] for each in browser.get("/api/jobs").json()["jobs"]] == [made["id"]]
    kept = browser.post(f"/api/jobs/{made['id']}/keep").json()["result"]["folder"]
    assert "odd-?" in kept
    wrong = browser.post(f"/api/runs/{name_of(odd)}/stop")
    assert wrong.status_code == 400
    assert wrong.json()["error"].startswith("odd-?: no process of this machine")


def test_texts_that_json_cannot_say_harm_nothing(
    browser: TestClient, ended: Ended, ids: dict[str, str], tmp_path: Path
) -> None:
    asked = json.dumps({"client": "a", "run": ids["run"], "settings": {"clip": "x"}})
    for wrong in (asked.replace('"x"', '"\\ud800"'), asked.replace('"x"', "[" * 300 + "]" * 300)):
        headers = {"Content-Type": "application/json"}
        answer = browser.post("/api/jobs/sample", content=wrong, headers=headers)
        assert answer.status_code == 422
        assert browser.get("/api/jobs").status_code == 200
    made = ended(job(browser, "sample", run=ids["run"], count=1))
    picture = tmp_path / "p.png"
    picture.write_bytes(browser.get(f"/api/jobs/{made['id']}/images/0.png").content)
    recipe = pictures.read_recipe(picture) | {"more": "\ud800"}
    with Image.open(picture) as opened:
        pictures.write_png(opened.copy(), picture, recipe)
    told = browser.post("/api/recipes", content=picture.read_bytes())
    assert told.status_code == 200
    assert told.json()["recipe"]["more"] == "?"
