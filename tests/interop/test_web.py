"""The page that draws in a browser: its samplers beside ours, its folder, and a real browser."""

import json
import os
import shutil
import subprocess
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from oracle import gaussian
from unraze import generate, schedule as schedules
from unraze.cli import main
from unraze.config import preset, updated
from unraze.data import Images
from unraze.denoiser import predict
from unraze.errors import InputError, UnrazeError
from unraze.interop import web
from unraze.samplers import adams, ddim, even_angles, even_times, karras
from unraze.train import fit
from unraze.walk import walk

PAGE = Path(web.__file__).parent / "page"
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed")


def in_javascript(code: str, given: Any) -> Any:
    """What `code`, an expression over `s` (sampler.js) and `given`, is worth."""
    assert NODE is not None
    program = f"""
    import * as s from {json.dumps((PAGE / "sampler.js").as_uri())};
    import {{ readFileSync }} from "node:fs";
    const given = JSON.parse(readFileSync(0, "utf8"));
    const result = await ({code});
    process.stdout.write(JSON.stringify(result));
    """
    done = subprocess.run(
        [NODE, "--input-type=module", "-e", program],
        input=json.dumps(given),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


SCHEDULES = {
    "angle": schedules.angle(1000),
    "linear": schedules.linear(),
    "cosine": schedules.cosine(300),
}
SPACINGS = {"evenAngles": even_angles, "karras": karras, "evenTimes": even_times}


@needs_node
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_steps_are_ours(name: str, spacing: str, whole: bool) -> None:
    schedule = SCHEDULES[name]
    counts = [1, 2, 7, 20]
    code = f"""given.counts.map((n) => {{
        const c = s.{spacing}(s.scheduleOf(given.alphaBar), n, given.whole);
        return [c.times, c.alphaBar];
    }})"""
    given = {"alphaBar": schedule.alpha_bar.tolist(), "counts": counts, "whole": whole}
    for count, (times, alpha_bar) in zip(counts, in_javascript(code, given), strict=True):
        ours = SPACINGS[spacing](schedule, count, whole=whole)
        # 0.002 is a float32 in ours
        assert times == pytest.approx(ours.times.tolist(), rel=1e-7, abs=1e-9)
        assert alpha_bar == pytest.approx(ours.alpha_bar.tolist(), rel=1e-7, abs=1e-12)


@needs_node
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_samplers_are_ours_on_an_exact_denoiser(name: str, order: int) -> None:
    """Standard deviations of 0.2, 0.6 and 1.5 along the axes: x̂_0 = ᾱ s² x/(ᾱ² s² + β̄²)."""
    schedule = SCHEDULES[name]
    chain = karras(schedule, 9)
    mean, spread = torch.zeros(3, dtype=torch.float64), torch.tensor([0.2, 0.6, 1.5]).double()
    exact = gaussian(schedule, mean, torch.diag(spread**2))
    x = torch.tensor([[0.7, -1.2, 0.4]], dtype=torch.float64)
    code = """(async () => {
        const whole = s.scheduleOf(given.alphaBar);
        const chain = s.karras(whole, 9);
        const denoise = async (x, t) => {
            const [a, b] = [Math.cos(s.thetaAt(whole, t)), Math.sin(s.thetaAt(whole, t))];
            const x0 = x.map((v, i) => (a * given.s2[i] * v) / (a * a * given.s2[i] + b * b));
            return { x0, eps: x.map((v, i) => (v - a * x0[i]) / b) };
        };
        const out = [];
        const walks = [s.ddim(denoise, given.x, chain)];
        walks.push(s.adams(denoise, given.x, chain, given.order));
        for (const walk of walks) {
            const states = [];
            for await (const step of walk) states.push([...step.x]);
            out.push(states);
        }
        return out;
    })()"""
    given = {
        "alphaBar": schedule.alpha_bar.tolist(),
        "s2": (spread**2).tolist(),
        "x": x[0].tolist(),
        "order": order,
    }
    ours = (list(ddim(exact, x, chain)), list(adams(exact, x, chain, order=order)))
    for steps, theirs in zip(ours, in_javascript(code, given), strict=True):
        expected = [step.x[0].tolist() for step in steps]
        # states are float32 in the page, as its network's are
        assert np.array(theirs) == pytest.approx(np.array(expected), rel=1e-5, abs=1e-5)


@needs_node
@pytest.mark.parametrize("kind", ["eps", "eps_step", "x0", "v", "edm"])
def test_what_a_network_says_means_the_same(kind: str) -> None:
    schedule = schedules.linear()
    raw, x = torch.randn(2, 5, generator=torch.Generator().manual_seed(0)).unbind()
    t = torch.tensor([400.0], dtype=torch.float64)
    a, b = (float(value) for value in schedule.at(t[0]))
    ours = predict(kind, raw[None], x[None], schedule, t, sigma_data=0.4)
    code = """(() => {
        const about = { sigmaData: 0.4, stepRatio: given.ratio };
        const p = s.predict(given.kind, given.raw, given.x, given.a, given.b, about);
        return [[...p.x0], [...p.eps]];
    })()"""
    given = {"kind": kind, "raw": raw.tolist(), "x": x.tolist(), "a": a, "b": b}
    given["ratio"] = float(schedule.step_ratio(t[0]))
    x0, eps = in_javascript(code, given)
    assert x0 == pytest.approx(ours.x0[0].tolist(), rel=1e-4, abs=1e-5)
    assert eps == pytest.approx(ours.eps[0].tolist(), rel=1e-4, abs=1e-5)


@needs_node
def test_noise_is_normal_and_a_function_of_seed_and_number() -> None:
    code = """[[...s.normals(5, 0, 20000)], [...s.normals(5, 1, 20000)],
        [...s.normals(6, 0, 20000)], [...s.normals(5, 0, 20000)]]"""
    drawn = np.array(in_javascript(code, None))
    assert np.array_equal(drawn[0], drawn[3])
    few = drawn[:3]
    assert few.mean(1) == pytest.approx(np.zeros(3), abs=0.04)
    assert few.std(1) == pytest.approx(np.ones(3), abs=0.03)
    assert (few**4).mean(1) == pytest.approx(np.full(3, 3.0), abs=0.3)
    assert np.abs(np.corrcoef(few) - np.eye(3)).max() < 0.04


@needs_node
def test_clusters_are_drawn_as_often_as_they_are() -> None:
    code = """Array.from({ length: 1000 }, (_, k) => s.classOf(given, k, 7))"""
    about = {"num_classes": 3, "shares": [0.1, 0.3, 0.6]}
    counts = np.bincount(in_javascript(code, about)) / 1000
    assert counts == pytest.approx([0.1, 0.3, 0.6], abs=0.005)
    in_turn = in_javascript(code, {"num_classes": 3})
    assert in_turn[:4] == [0, 1, 2, 0]


# ------------------------------------------------------------------------------------ the folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> generate.Model:
    """Of the preset, small, with classes."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
    labels = np.arange(40) % 2
    images = Images.from_arrays(pixels, labels=labels, class_names=("<even>", "odd"))
    small = {
        "network.fold": 1,
        "network.widths": (8, 8),
        "network.heads": 2,
        "train.steps": 3,
        "train.batch": 8,
        "train.threads": 1,
        "train.classes": True,
        "train.dtype": "float32",
    }
    return fit(images, updated(preset("fast"), small), out=tmp_path_factory.mktemp("web") / "run")


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    """In place of onnxruntime-web, where nothing is computed."""
    folder = tmp_path / "ort" / "dist"
    folder.mkdir(parents=True)
    for name in web.RUNTIME:
        (folder / name).write_text("// nothing")
    return folder.parent


def test_a_folder_holds_all_that_the_page_asks_for(
    model: generate.Model, runtime: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page"
    command = ["export", "web", model.run, "--out", str(out), "--runtime", str(runtime)]
    assert main([*command, "--title", "Zwei Arten"]) == 0
    assert capfd.readouterr().out.splitlines()[-1] == str(out)
    about = json.loads((out / "model.json").read_text())
    assert (about["title"], about["sampler"], about["steps"]) == ("Zwei Arten", "adams", 10)
    assert (about["num_classes"], about["class_names"]) == (2, ["<even>", "odd"])
    assert len(about["alpha_bar"]) == 1001
    for name in (*web.PAGE, "network.onnx", *(f"ort/{name}" for name in web.RUNTIME)):
        assert (out / name).is_file(), name
    text = "".join((out / name).read_text() for name in web.PAGE)
    assert "http:" not in text.replace("http://www.w3.org", "")
    assert "https:" not in text
    assert main(command) == 2
    assert "exists" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("adams", "karras", 10)),
        ({"sampler": "ddim", "spacing": "angle", "steps": 7}, ("ddim", "angle", 7)),
        ({"sampler": "dpmpp_2m_sde", "steps": 30}, ("adams", "karras", 20)),
        ({"sampler": "ddim", "steps": 500}, ("adams", "karras", 50)),
        ({"sampler": "ddim", "eta": 0.5}, ("adams", "karras", 20)),
    ],
)
def test_a_sampler_that_the_page_has_not_is_said(
    model: generate.Model, changes: dict[str, Any], expected: tuple[str, str, int]
) -> None:
    settings = generate.changed(model.config.sample, changes)
    about, notes = web.about(model, settings, {}, "")
    assert (about["sampler"], about["spacing"], about["steps"]) == expected
    same = (settings.sampler, settings.spacing, settings.steps) == expected
    assert (notes == ()) == same


def test_a_distilled_run_makes_its_jumps(model: generate.Model) -> None:
    loss = model.config.loss.model_copy(update={"borders": (0.0, 600.0, 1000.0)})
    jumping = replace(model, config=model.config.model_copy(update={"loss": loss}))
    about, notes = web.about(jumping, model.config.sample, {}, "")
    assert (about["sampler"], about["times"], about["steps"]) == ("ddim", [0.0, 600.0, 1000.0], 2)
    assert notes == ()


def test_what_cannot_be_a_page(
    model: generate.Model, runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dynamic = generate.changed(model.config.sample, {"clip": "dynamic"})
    place = web.runtime_in(runtime)
    with pytest.raises(InputError, match=r"sample\.clip = dynamic"):
        web.export(model, tmp_path / "page", settings=dynamic, runtime=place, title="")
    with pytest.raises(InputError, match="does not hold ort"):
        web.runtime_in(tmp_path)
    monkeypatch.setenv("UNRAZE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"npm is not installed.*--runtime FOLDER"):
        web.runtime_in(None)
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho no network >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    with pytest.raises(UnrazeError, match=r"could not fetch onnxruntime-web \(no network\)"):
        web.runtime_in(None)
    assert not (tmp_path / "page").exists()


def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    with (
        web.served(tmp_path) as server,
        pytest.raises(InputError, match=f"--port {server.server_port}: "),
        web.served(tmp_path, server.server_port),
    ):
        pass


# ------------------------------------------------------------------------------ in a real browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def onnxruntime_web() -> Path:
    """The runtime itself, as npm gives it."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    try:
        return web.runtime_in(None)
    except UnrazeError as error:
        pytest.skip(f"{error}")


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_draws_the_run_s_pictures(
    model: generate.Model, onnxruntime_web: Path, tmp_path: Path
) -> None:
    """Offline but for the folder; from the page's noise our sampler draws the same picture."""
    playwright = pytest.importorskip("playwright.sync_api")
    folder = tmp_path / "page"
    settings = generate.settings_of(model)
    web.export(model, folder, settings=settings, runtime=onnxruntime_web, title="<b>odd")
    wrong: list[str] = []
    with web.served(folder) as server, playwright.sync_playwright() as driver:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}/"
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        page = browser.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda asked: wrong.extend(_elsewhere(asked.url, base)))
        page.goto(f"{base}#seed=5&count=1&class=1&steps=6&guidance=2.5")
        page.wait_for_selector("body[data-drawn='1']", timeout=120_000)
        assert "1 picture in 6 steps" in page.inner_text("#state")
        assert page.inner_text("h1") == "<b>odd"
        assert page.inner_text("#class option:checked") == "odd"
        drawn = _canvas(page)
        noise = page.evaluate("import('./sampler.js').then((s) => [...s.normals(5, 0, 64)])")

        page.fill("#seed", "6")
        page.click("#draw")
        page.wait_for_selector("body[data-drawn='2']")
        assert not np.array_equal(_canvas(page), drawn)
        page.fill("#seed", "5")
        page.click("#draw")
        page.wait_for_selector("body[data-drawn='3']")
        assert np.array_equal(_canvas(page), drawn)
        page.fill("#moment", "0")
        assert np.abs(_canvas(page) - _bytes(noise)).max() <= 1
        assert page.text_content("#signal") == "0.000"
        page.fill("#seed", "-1")
        page.click("#draw")
        assert "Seed: give a whole number" in page.inner_text("#state")
        browser.close()
        server.shutdown()
    assert wrong == []
    wanted = generate.changed(settings, {"steps": 6, "guidance": 2.5, "dtype": "float32"})
    chain = generate.plan_of(model, wanted).chain
    denoise = generate.denoiser_of(model, wanted, [1])
    x = torch.tensor(noise, dtype=torch.float32).reshape(1, 1, 8, 8)
    with torch.no_grad():
        *_, end = walk(denoise, x, chain, wanted, lambda _: x)
    assert np.abs(drawn - _bytes(end.x.flatten().tolist())).max() <= 1


def _elsewhere(address: str, base: str) -> list[str]:
    return [] if address.startswith((base, "data:", "blob:")) else [address]


def _canvas(page: Any) -> np.ndarray:
    """The red of its pixels."""
    code = """() => { const c = document.getElementById("picture");
        return [...c.getContext("2d").getImageData(0, 0, c.width, c.height).data]; }"""
    return np.array(page.evaluate(code), dtype=float)[::4]


def _bytes(values: list[float]) -> np.ndarray:
    return np.clip(np.round((np.array(values) + 1) * 127.5), 0, 255)
