"""A run as a page that draws in the browser: a folder for any static host, or to be looked at.

    index.html, style.css, app.js    the page
    sampler.js                       the samplers, in plain JavaScript
    network.onnx, model.json         the network, and what the samplers need to know of it
    ort/                             onnxruntime-web, which computes the network

Nothing outside the folder is asked for. The runtime is the npm package onnxruntime-web, whose three
files are copied from a folder that holds it, or fetched once by npm and kept in the cache.
"""

import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any

from unraze import files, generate, untrusted
from unraze.config import SampleConfig
from unraze.data.cache import cache_folder
from unraze.errors import InputError, UnrazeError
from unraze.generate import Model
from unraze.interop import graphs, onnx_files
from unraze.interop.exports import Checked, checked, require_packages
from unraze.interop.folder import whole_folder
from unraze.walk import order_of

__all__ = ["RUNTIME", "VERSION", "about", "export", "is_export", "runtime_in", "served"]

VERSION = "1.30.0"
"""The version of onnxruntime-web that is fetched, which the page was tried with."""
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
"""Its files that the page needs, of its folder `dist`."""
PAGE = ("index.html", "style.css", "app.js", "sampler.js")
SAMPLERS, SPACINGS = ("ddim", "adams"), ("time", "angle", "karras")
"""What the page has of ours."""
OTHERWISE_STEPS, OTHERWISE_ORDER = 20, 2
"""Of Adams for a run whose sampler the page has not."""
MOST_STEPS = 50


def export(
    model: Model, out: Path, *, settings: SampleConfig, runtime: Path, title: str
) -> tuple[Checked, tuple[str, ...]]:
    """Writes the page into a new folder; what the network's file was found to be, and what the page
    does otherwise than these settings.

    `runtime` is a folder with the files of onnxruntime-web. Raises `InputError` where a package is
    missing, the folder exists, or the page cannot draw so, `UnrazeError` where the network differs
    from the original by more than `unraze.interop.graphs.BOUNDS`, or where it cannot be written.
    """
    require_packages("onnx")
    graph = graphs.network_graph(model)
    found, notes = about(model, settings, graph.about, title)
    with whole_folder(out) as folder:
        file = folder / "network.onnx"
        files.write_and_flush(file, onnx_files.network_file(graph).SerializeToString())
        made = checked(graph, onnx_files.running(file), [file])
        text = json.dumps(found, ensure_ascii=False, allow_nan=False)
        files.write_and_flush(folder / "model.json", text.encode())
        page = resources.files("unraze.interop") / "page"
        for name in PAGE:
            files.write_and_flush(folder / name, (page / name).read_bytes())
        (folder / "ort").mkdir()
        for name in RUNTIME:
            files.write_and_flush(folder / "ort" / name, (runtime / name).read_bytes())
    return made, notes


def about(
    model: Model, settings: SampleConfig, network: dict[str, Any], title: str
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What model.json holds beside what it says of the `network`, and what is drawn otherwise than
    by these settings. Raises `InputError` where the page cannot draw so."""
    if settings.clip == "dynamic":
        raise InputError(
            "sample.clip = dynamic: the page clips to [-1, 1], or not at all; this run can't be "
            "drawn there"
        )
    loss = model.config.loss
    said = network | {
        "title": title,
        "self_conditioning": loss.self_conditioning,
        "whole": not loss.continuous,
        "clip": settings.clip == "clip",
        "keeps_noise": settings.clip == "x0-only",
        "guidance": settings.guidance,
        "guidance_interval": list(settings.guidance_interval),
        "steps": settings.steps,
        "sampler": settings.sampler,
        "order": order_of(settings),
        "spacing": settings.spacing,
        "times": None,
        "borders": None,
    }
    if loss.parametrisation == "eps_step":
        said["step_ratio"] = model.schedule.step_ratio(model.schedule.times).tolist()
    if loss.borders is not None:
        times = generate.plan_of(model, settings).chain.times.tolist()
        told = {"times": times, "borders": list(loss.borders), "can_be_guided": False}
        return said | told, ()
    lacking = _lacking(settings)
    if not lacking:
        return said, ()
    own = settings.sampler in SAMPLERS and not settings.eta
    steps = min(settings.steps if own else OTHERWISE_STEPS, MOST_STEPS, model.schedule.steps)
    said |= {"spacing": "karras", "steps": steps}
    if not own or (settings.sampler != "adams" and settings.steps > MOST_STEPS):
        said |= {"sampler": "adams", "order": OTHERWISE_ORDER}
    note = (
        f"the page draws by {said['sampler']} in {steps} steps with spacing karras, as it has no "
        f"{' and no '.join(lacking)}"
    )
    return said, (note,)


def _lacking(settings: SampleConfig) -> list[str]:
    """What these settings ask for and the page has not."""
    lacking = []
    if settings.sampler not in SAMPLERS:
        lacking.append(f"sampler {settings.sampler}")
    if settings.eta:
        lacking.append(f"eta {settings.eta:g}")
    if not isinstance(settings.spacing, str):
        lacking.append("times of its own")
    elif settings.spacing not in SPACINGS:
        lacking.append(f"spacing {settings.spacing}")
    if settings.steps > MOST_STEPS:
        lacking.append(f"{settings.steps} steps (at most {MOST_STEPS})")
    return lacking


def is_export(folder: Path, model: Model, settings: SampleConfig, title: str | None) -> bool:
    """Whether a folder holds the page of this model with these settings, of any title where that
    is None."""
    names = ("network.onnx", *PAGE, *(f"ort/{name}" for name in RUNTIME))
    try:
        found = untrusted.json_of(folder / "model.json")
    except (OSError, ValueError):
        return False
    if not isinstance(found, dict) or not all((folder / name).is_file() for name in names):
        return False
    told = str(found.get("title")) if title is None else title
    wanted, _ = about(model, settings, graphs.about_network(model), told)
    same: bool = found == json.loads(json.dumps(wanted))
    return same


def runtime_in(given: Path | None) -> Path:
    """The folder with the files of onnxruntime-web: `given`, its `dist`, or the cache's, where npm
    puts them the first time.

    Raises `InputError` where they are not in the given folder, or npm is not there to fetch them;
    `UnrazeError` where that does not work.
    """
    if given is not None:
        for place in (given, given / "dist", given / "package" / "dist"):
            if all((place / name).is_file() for name in RUNTIME):
                return place
        raise InputError(
            f"--runtime {given}: does not hold {', '.join(RUNTIME)}; give the folder of the npm "
            "package onnxruntime-web"
        )
    kept = cache_folder() / f"onnxruntime-web-{VERSION}"
    if not all((kept / name).is_file() for name in RUNTIME):
        _fetch(kept)
    return kept


def _fetch(kept: Path) -> None:
    """Puts the runtime's files into a folder, whole or not at all, by `npm pack`."""
    if shutil.which("npm") is None:
        raise InputError(
            "npm is not installed, which fetches onnxruntime-web; install it, or give the folder "
            f"of that package, version {VERSION}: --runtime FOLDER"
        )
    with tempfile.TemporaryDirectory(prefix="unraze-") as at:
        command = ["npm", "pack", "--silent", f"onnxruntime-web@{VERSION}"]
        done = subprocess.run(command, cwd=at, capture_output=True, text=True)
        archives = list(Path(at).glob("*.tgz"))
        if done.returncode or len(archives) != 1:
            why = " ".join(done.stderr.split())[-200:] or f"exit status {done.returncode}"
            raise UnrazeError(
                f"npm could not fetch onnxruntime-web ({why}); try again online, or give the "
                "folder of that package: --runtime FOLDER"
            )
        try:
            kept.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UnrazeError(files.cannot_make(kept, error)) from error
        with tarfile.open(archives[0]) as archive:
            for name in RUNTIME:
                member = archive.extractfile(f"package/dist/{name}")
                assert member is not None
                try:
                    files.write_whole(kept / name, member.read())
                except OSError as error:
                    raise UnrazeError(files.cannot_write(kept / name, error)) from error


class _Handler(SimpleHTTPRequestHandler):
    """Files as they are, isolated as a browser wants it of pages with threads, and in silence."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | {
        ".mjs": "text/javascript",
        ".js": "text/javascript",
        ".wasm": "application/wasm",
        ".onnx": "application/octet-stream",
    }

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: who looks at the page sees it."""


@contextmanager
def served(folder: Path, port: int = 0) -> Iterator[ThreadingHTTPServer]:
    """A server of the folder's files for this machine alone, at a port of its own where it is 0.

    Raises `InputError` where the port is taken.
    """

    def handler(*args: Any) -> _Handler:
        return _Handler(*args, directory=str(folder))

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        raise InputError(f"--port {port}: {error.strerror or error}; give another") from error
    with server:
        yield server
