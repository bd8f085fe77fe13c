"""`unraze export onnx|openvino|torch|web`: a network and its sampler, for other runtimes."""

from __future__ import annotations

import os
import shlex
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from unraze.cli.app import (
    OUTPUT,
    Checkpoint,
    Guidance,
    Raw,
    Sampler,
    Spacing,
    Steps,
    Threads,
    option_of,
    told_as_options,
)
from unraze.cli.exporting import exporting
from unraze.errors import InputError

if TYPE_CHECKING:
    from unraze.config import SampleConfig
    from unraze.generate import Model
    from unraze.interop.exports import Format

__all__ = ["to_onnx", "to_openvino", "to_torch", "to_web"]

RunFolder = Annotated[Path, Parameter(help="The run's folder.")]
Out = Annotated[
    Path | None, Parameter(group=OUTPUT, help="A new folder; the format's name in RUN if absent.")
]


@Parameter(name="*")
@dataclass(frozen=True)
class Way:
    """What is exported of a run: its weights, and how they draw."""

    steps: Steps = None
    sampler: Sampler = None
    spacing: Spacing = None
    guidance: Guidance = None
    raw: Raw = False
    checkpoint: Checkpoint = None

    def given(self) -> dict[str, Any]:
        """The keys of `sample` that were given."""
        keys = ("sampler", "steps", "spacing", "guidance")
        return {key: value for key in keys if (value := getattr(self, key)) is not None}

    def words(self) -> tuple[str, ...]:
        """The options that say the same."""
        told = self.given()
        if self.checkpoint is not None:
            told["checkpoint"] = self.checkpoint
        words = [word for key, value in told.items() for word in (option_of(key), str(value))]
        return (*words, "--raw") if self.raw else tuple(words)


WAY = Way()
"""The run's own."""


def _dtype(words: str) -> Parameter:
    return Parameter(group=OUTPUT, help=f"What the network computes in{words}.")


@exporting.command(
    name="onnx",
    usage="Usage: unraze export onnx RUN [OPTIONS]",
    help_epilogue=(
        "Examples:\n\n"
        "  unraze export onnx RUN --out FOLDER\n"
        "  unraze export onnx RUN --sampler ddim --steps 10 --dtype float16 --out FOLDER\n"
        "  python FOLDER/sample_onnx.py 64\n\n"
        "A sampler that guides takes the guidance as an input."
    ),
)
def to_onnx(
    run: RunFolder,
    /,
    *,
    way: Way = WAY,
    threads: Threads = None,
    dtype: Annotated[
        Literal["float32", "float16"], _dtype("; float16 halves the files, for GPUs and browsers")
    ] = "float32",
    out: Out = None,
) -> int:
    """Write network.onnx, sampler.onnx (noise in, pictures out) and sample_onnx.py.

    The script draws with the sampler; it needs numpy and onnxruntime, neither torch nor Unraze.
    Both files are run and compared with the original first.
    """
    return _export("onnx", run, way, threads, dtype, out)


@exporting.command(
    name="openvino",
    usage="Usage: unraze export openvino RUN [OPTIONS]",
    help_epilogue="Example:\n\n  unraze export openvino RUN --steps 10 --out FOLDER",
)
def to_openvino(
    run: RunFolder,
    /,
    *,
    way: Way = WAY,
    threads: Threads = None,
    dtype: Annotated[
        Literal["float32", "float16"], _dtype("; float16 halves the files")
    ] = "float32",
    out: Out = None,
) -> int:
    """Write network.xml and sampler.xml (noise in, pictures out), each with its .bin, for OpenVINO.

    Both are run and compared with the original first.
    """
    return _export("openvino", run, way, threads, dtype, out)


@exporting.command(
    name="torch",
    usage="Usage: unraze export torch RUN [OPTIONS]",
    help_epilogue=(
        "Example:\n\n"
        "  unraze export torch RUN --steps 10 --out FOLDER\n\n"
        "In Python, without Unraze:\n\n"
        "  network = torch.export.load('FOLDER/network.pt2').module()"
    ),
)
def to_torch(
    run: RunFolder,
    /,
    *,
    way: Way = WAY,
    threads: Threads = None,
    dtype: Annotated[Literal["float32", "float16", "bfloat16"], _dtype("")] = "float32",
    out: Out = None,
) -> int:
    """Write network.pt2 and sampler.pt2 (noise in, pictures out), programs of torch.export.

    Both are read again, run and compared with the original first.
    """
    return _export("torch", run, way, threads, dtype, out)


@exporting.command(
    name="web",
    usage="Usage: unraze export web RUN [OPTIONS]",
    help_epilogue=(
        "Examples:\n\n"
        "  unraze export web RUN --serve\n"
        "  unraze export web RUN --out FOLDER --title Clothing\n\n"
        "FOLDER goes to any static host as it is."
    ),
)
def to_web(
    run: RunFolder,
    /,
    *,
    way: Way = WAY,
    title: Annotated[
        str | None, Parameter(group=OUTPUT, help="The page's; the run's folder's name if absent.")
    ] = None,
    runtime: Annotated[
        Path | None,
        Parameter(
            group=OUTPUT,
            help="The folder of the npm package onnxruntime-web; if absent, npm fetches it once.",
        ),
    ] = None,
    serve: Annotated[
        bool,
        Parameter(
            group=OUTPUT,
            negative="",
            show_default=False,
            help="Show the page on this machine at once, until Ctrl-C; one that is there as it is.",
        ),
    ] = False,
    port: Annotated[
        int | None, Parameter(group=OUTPUT, help="Of --serve; one that is free if absent.")
    ] = None,
    out: Out = None,
) -> int:
    """Write a page that draws in the browser, without a server: choose, and watch it form.

    The network is computed by onnxruntime-web; the samplers around it are plain JavaScript.
    """
    from unraze import generate
    from unraze.interop import exports, web

    if port is not None and not serve:
        raise InputError(f"--port {port}: is of --serve; give that too, or leave it out")
    if port is not None and not 0 < port < 2**16:
        raise InputError(f"--port {port}: give 1 to 65535")
    folder = run / "web" if out is None else out
    with _told_as_options(way):
        model, settings = _way_of(run, way)
        generate.check(model, settings)
        if serve and os.path.lexists(folder):
            if not web.is_export(folder, model, settings, title):
                raise InputError(
                    f"--out {folder}: exists, and is not the page of these weights and settings; "
                    "give another, or remove it"
                )
        else:
            _require_free_place(folder)
            exports.require_packages("onnx")  # before its runtime is fetched
            print("exporting the network, to be compared with the original", flush=True)
            found, notes = web.export(
                model,
                folder,
                settings=settings,
                runtime=web.runtime_in(runtime),
                title=run.resolve().name if title is None else title,
            )
            size, far = found.size / 1e6, found.difference
            print(f"network.onnx: {size:.1f} MB, {far:.2g} from the original")
            for note in notes:
                print(f"note: {note}")
    if not serve:
        place = () if out is None else ("--out", str(out))
        command = shlex.join(("unraze", "export", "web", str(run), *way.words(), *place, "--serve"))
        host = shlex.join(("python", "-m", "http.server", "-d", str(folder)))
        print(f"to look at it: {command}, or {host}")
    print(folder, flush=True)
    if serve:
        with web.served(folder, port or 0) as server:
            print(f"http://127.0.0.1:{server.server_port}/ (Ctrl-C ends it)", flush=True)
            with suppress(KeyboardInterrupt):
                server.serve_forever()
    return 0


def _export(
    to: Format,
    run: Path,
    way: Way,
    threads: int | None,
    dtype: Literal["float32", "float16", "bfloat16"],
    out: Path | None,
) -> int:
    from unraze.cli.drawing import set_threads
    from unraze.interop import exports

    folder = run / to if out is None else out
    with _told_as_options(way):
        exports.require_packages(to)
        set_threads(threads)
        model, settings = _way_of(run, way)
        _require_free_place(folder)
        print("exporting network and sampler, to be compared with the original", flush=True)
        made = exports.export(model, to, folder, settings=settings, dtype=dtype)
    print(f"{settings.sampler}, {dtype}; greatest differences to the original:")
    for file in made:
        calls = f" of {file.calls} network calls" if file.calls else ""
        print(f"  {file.name:<14} {file.difference:.2g}  ({file.size / 1e6:.1f} MB{calls})")
    print(folder)
    return 0


def _told_as_options(way: Way) -> AbstractContextManager[None]:
    """Errors within name the options of these keys."""
    names = {key: option_of(key) for key in (*way.given(), "dtype")}
    of_config = {f"sample.{key}": option for key, option in names.items()}
    return told_as_options({"train.threads": "--threads"} | of_config | names)


def _way_of(run: Path, way: Way) -> tuple[Model, SampleConfig]:
    """The model, and how it is asked to draw."""
    from unraze import generate

    model = generate.load(run, raw=way.raw, step=way.checkpoint)
    return model, generate.asked(model, way.given())


def _require_free_place(folder: Path) -> None:
    from unraze.cli.drawing import require_place
    from unraze.interop.folder import require_free

    require_free(folder)
    require_place(folder, f"--out {folder}")
