"""The page that draws in a browser: its samplers beside ours, its folder, and a real browser."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from oracle import gaussian
from test_cli import refused
from unraze import generate, schedule as schedules
from unraze.cli import main
from unraze.config import SampleConfig, preset, updated
from unraze.data import Images
from unraze.denoiser import predict
from unraze.errors import InputError, UnrazeError
from unraze.interop import web
from unraze.samplers import adams, consistency, ddim, even_angles, even_times, karras
from unraze.train import fit
from unraze.walk import walk

pytestmark = pytest.mark.usefixtures("files_made_once")

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
@pytest.mark.parametrize("borders", [(0.0,), (0.0, 400.0), (0.0, 250.0, 600.0)])
def test_jumps_are_ours_on_an_exact_denoiser(borders: tuple[float, ...]) -> None:
    """With the same noise, and asked for at the same steps."""
    schedule, spread = schedules.linear(), torch.tensor([0.2, 0.6, 1.5]).double()
    chain = schedule.keep(torch.tensor(sorted({0.0, 100.0, *borders, 800.0, 1000.0})).double())
    exact = gaussian(schedule, torch.zeros(3, dtype=torch.float64), torch.diag(spread**2))
    x = torch.tensor([[0.7, -1.2, 0.4]], dtype=torch.float64)
    noise = torch.randn(10, 1, 3, generator=torch.Generator().manual_seed(0)).double()
    asked = []

    def drawn(step: int) -> torch.Tensor:
        asked.append(step)
        return noise[step]

    ours = [
        step.x[0].tolist() for step in consistency(exact, x, chain, noise=drawn, borders=borders)
    ]
    code = """(async () => {
        const whole = s.scheduleOf(given.alphaBar);
        const denoise = async (x, t) => {
            const [a, b] = [Math.cos(s.thetaAt(whole, t)), Math.sin(s.thetaAt(whole, t))];
            const x0 = x.map((v, i) => (a * given.s2[i] * v) / (a * a * given.s2[i] + b * b));
            return { x0, eps: x.map((v, i) => (v - a * x0[i]) / b) };
        };
        const [states, asked] = [[], []];
        const noise = (step) => (asked.push(step), given.noise[step][0]);
        const chain = s.keep(whole, given.times);
        for await (const step of s.consistency(denoise, given.x, chain, noise, given.borders)) {
            states.push([...step.x]);
        }
        return [states, asked];
    })()"""
    given = {
        "alphaBar": schedule.alpha_bar.tolist(),
        "s2": (spread**2).tolist(),
        "x": x[0].tolist(),
        "times": chain.times.tolist(),
        "noise": noise.tolist(),
        "borders": borders,
    }
    states, steps = in_javascript(code, given)
    assert steps == asked
    assert np.array(states) == pytest.approx(np.array(ours), rel=1e-9, abs=1e-9)


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
def test_the_step_s_ratio_between_steps_is_the_schedule_s() -> None:
    schedule = schedules.linear()
    times = torch.tensor([0.0, 1.0, 1.4, 37.25, 999.5, 1000.0], dtype=torch.float64)
    given = {"ratios": schedule.step_ratio(schedule.times).tolist(), "times": times.tolist()}
    found = in_javascript("given.times.map((t) => s.between(given.ratios, t))", given)
    assert found == pytest.approx(schedule.step_ratio(times).tolist())


@needs_node
def test_noise_is_normal_and_a_function_of_seed_number_and_step() -> None:
    code = """[[...s.normals(5, 0, 20000)], [...s.normals(5, 1, 20000)],
        [...s.normals(6, 0, 20000)], [...s.normals(5, 0, 20000, 1)], [...s.normals(5, 0, 20000)]]"""
    drawn = np.array(in_javascript(code, None))
    assert np.array_equal(drawn[0], drawn[4])
    few = drawn[:4]
    assert few.mean(1) == pytest.approx(np.zeros(4), abs=0.04)
    assert few.std(1) == pytest.approx(np.ones(4), abs=0.03)
    assert (few**4).mean(1) == pytest.approx(np.full(4, 3.0), abs=0.3)
    assert np.abs(np.corrcoef(few) - np.eye(4)).max() < 0.04


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


@pytest.fixture(scope="module")
def distilled(model: generate.Model) -> generate.Model:
    """The same network, taken for one that jumps."""
    changes = {
        "loss.objective": "consistency",
        "loss.weighting": None,
        "loss.target": None,
        "loss.distance": "l2",
        "loss.borders": (0.0, 600.0, 1000.0),
        "sample.sampler": "consistency",
        "sample.order": None,
        "sample.steps": 2,
        "sample.spacing": "angle",
        "sample.guidance": 1.0,
        "distilled": {"run": "teacher", "checkpoint": ""},
    }
    return replace(model, config=updated(model.config, changes))


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
    ("changes", "expected", "lacking"),
    [
        ({}, ("adams", "karras", 10), None),
        ({"sampler": "ddim", "spacing": "angle", "steps": 7}, ("ddim", "angle", 7), None),
        (
            {"sampler": "dpmpp_2m_sde", "steps": 30},
            ("adams", "karras", 20),
            "no sampler dpmpp_2m_sde",
        ),
        (
            {"sampler": "ddim", "steps": 500},
            ("adams", "karras", 50),
            "no 500 steps (at most 50)",
        ),
        ({"sampler": "ddim", "eta": 0.5}, ("adams", "karras", 20), "no eta 0.5"),
        ({"spacing": "log_snr"}, ("adams", "karras", 10), "no spacing log_snr"),
        (
            {"sampler": "ddim", "spacing": "log_snr", "steps": 8},
            ("ddim", "karras", 8),
            "no spacing log_snr",
        ),
        (
            {"sampler": "heun", "spacing": "log_snr"},
            ("adams", "karras", 20),
            "no sampler heun and no spacing log_snr",
        ),
        (
            {"spacing": (0.0, 200.0, 1000.0), "steps": 2},
            ("adams", "karras", 2),
            "no times of its own",
        ),
    ],
)
def test_a_way_that_the_page_has_not_is_said(
    model: generate.Model,
    changes: dict[str, Any],
    expected: tuple[str, str, int],
    lacking: str | None,
) -> None:
    settings = generate.changed(model.config.sample, changes)
    about, notes = web.about(model, settings, {}, "")
    assert (about["sampler"], about["spacing"], about["steps"]) == expected
    sampler, spacing, steps = expected
    said = (
        f"the page draws by {sampler} in {steps} steps with spacing {spacing}, as it has {lacking}"
    )
    assert notes == (() if lacking is None else (said,))


@pytest.mark.parametrize("spacing", ["karras", "log_snr"])
@pytest.mark.parametrize("order", [None, 1, 2, 3])
def test_the_page_draws_with_the_order_of_the_run(
    model: generate.Model, order: int | None, spacing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"sampler": "adams", "order": order, "spacing": spacing}
    settings = generate.changed(model.config.sample, changes)
    taken = list[int]()

    def looked_at(*of: Any, order: int) -> Iterator[None]:
        taken.append(order)
        return iter(())

    monkeypatch.setattr("unraze.walk.adams", looked_at)
    chain, x = generate.plan_of(model, settings).chain, torch.zeros(1)
    list(walk(lambda *of, **told: None, x, chain, settings, lambda _: x))
    assert web.about(model, settings, {}, "")[0]["order"] == taken[0]


@pytest.mark.parametrize("steps", [2, 3, 4, 7])
def test_a_distilled_run_makes_its_jumps(distilled: generate.Model, steps: int) -> None:
    settings = generate.changed(distilled.config.sample, {"steps": steps})
    about, notes = web.about(distilled, settings, {}, "")
    assert (about["sampler"], about["steps"], len(about["times"])) == (
        "consistency",
        steps,
        steps + 1,
    )
    assert about["times"] == generate.plan_of(distilled, settings).chain.times.tolist()
    assert about["borders"] == [0.0, 600.0, 1000.0]
    assert set(about["borders"]) <= set(about["times"])
    assert notes == ()


def test_a_distilled_run_makes_no_fewer_jumps(distilled: generate.Model) -> None:
    settings = generate.changed(distilled.config.sample, {"steps": 1})
    with pytest.raises(InputError, match=r"steps = 1: .* distilled to 2 calls"):
        web.about(distilled, settings, {}, "")


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
    npm.write_text("#!/bin/sh\ntouch made.tgz\n")
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UnrazeError, match="cannot be made"):
        web.runtime_in(None)
    assert not (tmp_path / "page").exists()


def test_a_page_that_is_there_is_looked_at(
    model: generate.Model,
    runtime: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the command says, in a process of its own, until it is interrupted."""
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "the page"
    command = ["export", "web", model.run, "--out", str(out)]
    how = ["--sampler", "ddim", "--steps", "6", "--guidance", "1.5", "--checkpoint", "3"]
    assert main([*command, *how, "--runtime", str(runtime), "--title", "mine"]) == 0
    hint = next(line for line in capfd.readouterr().out.splitlines() if "to look at it" in line)
    (said,) = re.findall(r"to look at it: (.*), or python -m http.server -d '.*/the page'$", hint)
    program, *words = shlex.split(said)
    assert program == "unraze"
    written = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    with subprocess.Popen(
        [sys.executable, "-m", "unraze", *words], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == str(out)
        (address,) = re.findall(r"^(http://\S+) \(Ctrl-C ends it\)$", process.stdout.readline())
        with urllib.request.urlopen(f"{address}model.json") as answer:
            assert json.load(answer)["title"] == "mine"
        with urllib.request.urlopen(f"{address}ort/{web.RUNTIME[0]}") as answer:
            assert answer.headers["Content-Type"] == "text/javascript"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*")} == written

    other = ("is not the page of these weights and settings", "give another, or remove it")
    for more in (how[2:], [*how, "--spacing", "time"], [*how, "--raw"], [*how, "--title", "yours"]):
        refused(capfd, [*command, *more, "--serve"], f"--out {out}: exists", *other)
    (out / "app.js").unlink()
    refused(capfd, [*command, *how, "--serve"], *other)
    (out / "model.json").write_text("{")
    refused(capfd, [*command, *how, "--serve"], *other)


def test_a_port_is_of_serve(
    model: generate.Model,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["export", "web", model.run, "--out", str(tmp_path / "page")]
    refused(capfd, [*command, "--port", "8000"], "--port 8000: is of --serve")
    for port in ("-1", "0", "65536"):
        refused(capfd, [*command, "--serve", "--port", port], f"--port {port}: give 1 to 65535")
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
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage"]
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(scope="module")
def onnxruntime_web() -> Path:
    """The runtime itself, as npm gives it."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    try:
        return web.runtime_in(None)
    except UnrazeError as error:
        pytest.skip(f"{error}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One for all: each test has a page of its own in it."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@needs_browser
def test_a_browser_draws_the_run_s_pictures(
    model: generate.Model, onnxruntime_web: Path, browser: Any, tmp_path: Path
) -> None:
    """Offline but for the folder; from the page's noise our sampler draws the same picture."""
    folder = tmp_path / "page"
    settings = generate.settings_of(model)
    web.export(model, folder, settings=settings, runtime=onnxruntime_web, title="<b>odd")
    with looking(browser, folder) as (page, base):
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
    wanted = generate.changed(settings, {"steps": 6, "guidance": 2.5})
    assert np.abs(drawn - _ours(model, wanted, [noise])).max() <= 1


@needs_browser
def test_a_browser_draws_with_the_guidance_and_order_of_the_run(
    model: generate.Model, onnxruntime_web: Path, browser: Any, tmp_path: Path
) -> None:
    """Any number, from the run or in the address; the address asks for what there is alone."""
    for number, guidance in enumerate((7.25, 1 / 3)):
        folder = tmp_path / str(number)
        settings = generate.changed(
            generate.settings_of(model), {"guidance": guidance, "order": None, "steps": 4}
        )
        web.export(model, folder, settings=settings, runtime=onnxruntime_web, title="")
        with looking(browser, folder) as (page, base):
            page.goto(f"{base}#seed=x&count=7&class=nine&steps=many&guidance=&moment=3&draw=no")
            page.wait_for_selector("body[data-drawn='1']", timeout=120_000)
            assert "9 pictures in 4 steps" in page.inner_text("#state")
            assert page.input_value("#seed") == "0"
            assert page.inner_text("#class option:checked") == "all in turn"
            assert float(page.input_value("#guidance")) == pytest.approx(guidance, rel=1e-14)
            assert float(page.inner_text("#guidance-out")) == pytest.approx(guidance, abs=1e-4)
            page.select_option("#count", "1")
            page.select_option("#class", "1")
            page.click("#draw")
            page.wait_for_selector("body[data-drawn='2']")
            drawn = _canvas(page)
            noise = page.evaluate("import('./sampler.js').then((s) => [...s.normals(0, 0, 64)])")
            page.goto("about:blank")
            page.goto(f"{base}#guidance=9.125&count=1")
            page.wait_for_selector("body[data-drawn='1']", timeout=120_000)
            assert page.input_value("#guidance") == page.inner_text("#guidance-out") == "9.125"
        assert np.abs(drawn - _ours(model, settings, [noise])).max() <= 1


@needs_browser
def test_a_browser_draws_more_steps_of_a_distilled_run(
    distilled: generate.Model, onnxruntime_web: Path, browser: Any, tmp_path: Path
) -> None:
    """With noise between the jumps, that of the page."""
    settings = generate.changed(distilled.config.sample, {"steps": 4})
    folder = tmp_path / "page"
    web.export(distilled, folder, settings=settings, runtime=onnxruntime_web, title="")
    with looking(browser, folder) as (page, base):
        page.goto(f"{base}#seed=5&count=1&class=1&steps=9&guidance=3")
        page.wait_for_selector("body[data-drawn='1']", timeout=120_000)
        assert "1 picture in 4 steps" in page.inner_text("#state")
        assert page.inner_text("#steps-out") == "4"
        assert page.is_hidden("#guidance-label")
        drawn = _canvas(page)
        noise = page.evaluate(
            "import('./sampler.js')"
            ".then((s) => [0, 1, 2, 3, 4].map((t) => [...s.normals(5, 0, 64, t)]))"
        )
    assert np.abs(drawn - _ours(distilled, settings, noise)).max() <= 1


@needs_browser
def test_a_page_that_is_opened_as_a_file_says_how_to_serve_it(browser: Any, tmp_path: Path) -> None:
    folder = tmp_path / "my page"
    shutil.copytree(PAGE, folder)
    page = browser.new_page()
    page.goto((folder / "index.html").as_uri())
    said = page.inner_text("#state")
    page.close()
    assert "has to be served" in said
    assert f'python -m http.server -d "{folder}"' in said


@contextmanager
def looking(browser: Any, folder: Path) -> Iterator[tuple[Any, str]]:
    """A page of a browser and the address of the folder, of which alone anything may be asked."""
    wrong: list[str] = []
    with web.served(folder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}/"
        page = browser.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda asked: wrong.extend(_elsewhere(asked.url, base)))
        yield page, base
        page.close()
        server.shutdown()
    assert wrong == []


def _ours(model: generate.Model, settings: SampleConfig, noise: list[list[float]]) -> np.ndarray:
    """The bytes of one picture of class 1 that our sampler draws from the page's noise."""
    exact = settings.model_copy(update={"dtype": "float32"})
    z = torch.tensor(noise, dtype=torch.float32).reshape(-1, 1, 1, 8, 8)
    chain = generate.plan_of(model, exact).chain
    denoise = generate.denoiser_of(model, exact, [1])
    borders = model.config.loss.borders or (0.0,)
    with torch.no_grad():
        *_, end = walk(denoise, z[0], chain, exact, lambda step: z[step], borders=borders)
    return _bytes(end.x.flatten().tolist())


def _elsewhere(address: str, base: str) -> list[str]:
    return [] if address.startswith((base, "data:", "blob:")) else [address]


def _canvas(page: Any) -> np.ndarray:
    """The red of its pixels."""
    code = """() => { const c = document.getElementById("picture");
        return [...c.getContext("2d").getImageData(0, 0, c.width, c.height).data]; }"""
    return np.array(page.evaluate(code), dtype=float)[::4]


def _bytes(values: list[float]) -> np.ndarray:
    return np.clip(np.round((np.array(values) + 1) * 127.5), 0, 255)
