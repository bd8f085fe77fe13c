"""`unraze eval` and `unraze compare`: how good a generator is, and which of several is better."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from cyclopts import Group, Parameter

from unraze.cli.app import (
    DATA,
    LOOK,
    OUTPUT,
    SAMPLING,
    Device,
    Threads,
    app,
    parse_size,
    told_as_options,
)
from unraze.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from unraze.config import SampleConfig
    from unraze.evaluate.evaluation import Evaluation, Part
    from unraze.evaluate.features import FeatureSpace
    from unraze.evaluate.reference import Reference
    from unraze.evaluate.stage import Stage
    from unraze.generate import Model

__all__ = ["compare", "evaluate"]

T = TypeVar("T")
MEASURES = Group("What is measured", sort_key=3)
PartName = Literal["figures", "memorisation", "levels", "bound", "flow"]
NEED_A_NETWORK = ("levels", "bound", "flow")


@app.command(
    name="eval",
    group=LOOK,
    sort_key=0,
    help_epilogue=(
        "Examples:\n\n"
        "  unraze eval runs/00000-fashion-mnist\n"
        "  unraze eval RUN -n 10000 --steps 100\n"
        "  unraze eval RUN --skip bound flow\n"
        "  unraze eval pictures/ --against fashion-mnist\n"
        "  unraze eval RUN --features onnx:inception.onnx"
    ),
)
def evaluate(
    target: Annotated[Path, Parameter(help="A run's folder, or images: folder, zip, array file.")],
    /,
    *,
    against: Annotated[
        str | None,
        Parameter(group=DATA, help="For images: the real ones, a path or a known name."),
    ] = None,
    size: Annotated[
        str | None, Parameter(group=DATA, help="For images: bring both to 32, or 32x48.")
    ] = None,
    channels: Annotated[
        Literal[1, 3] | None, Parameter(group=DATA, help="For images: 1 grey, 3 colour.")
    ] = None,
    features: Annotated[
        str | None,
        Parameter(
            group=MEASURES,
            help="onnx:FILE, a network of your own; where absent two made for the data set.",
        ),
    ] = None,
    skip: Annotated[
        tuple[PartName, ...],
        Parameter(group=MEASURES, negative="", consume_multiple=True, help="Parts to leave out."),
    ] = (),
    n: Annotated[
        int | None, Parameter(name=["-n", "--count"], group=SAMPLING, help="Samples; 2000.")
    ] = None,
    seed: Annotated[int | None, Parameter(group=SAMPLING, help="Of the samples' noise; 0.")] = None,
    steps: Annotated[
        int | None, Parameter(group=SAMPLING, help="Network calls a sample; the run's own.")
    ] = None,
    sampler: Annotated[
        Literal["greedy", "random", "ddim"] | None,
        Parameter(group=SAMPLING, help="The run's own where absent."),
    ] = None,
    guidance: Annotated[
        float | None, Parameter(group=SAMPLING, help="How far towards the class; 1 is none.")
    ] = None,
    raw: Annotated[
        bool,
        Parameter(
            group=SAMPLING, negative="", show_default=False, help="The weights, not their average."
        ),
    ] = False,
    checkpoint: Annotated[
        int | Literal["best"] | None,
        Parameter(group=SAMPLING, help="A training step, or best; the newest if absent."),
    ] = None,
    device: Device = None,
    threads: Threads = None,
    out: Annotated[
        Path | None,
        Parameter(
            group=OUTPUT, help="For images: folder of the report; NAME-evaluation if absent."
        ),
    ] = None,
) -> int:
    """Measure how good samples are, whether they are copies, and what held-out images cost.

    Writes a report page; its path is the last line printed. Stopped, the same command goes on
    where it was.
    """
    from unraze.cli.drawing import set_threads
    from unraze.evaluate.evaluation import PARTS

    if n is not None and n < 1:
        raise InputError(f"-n {n}: give at least 1")
    if seed is not None and seed < 0:
        raise InputError(f"--seed {seed}: give 0 or more")
    of_run = (target / "config.toml").is_file()
    only_images = {"--against": against, "--size": size, "--channels": channels, "--out": out}
    only_runs = {
        "-n": n,
        "--seed": seed,
        "--steps": steps,
        "--sampler": sampler,
        "--guidance": guidance,
        "--raw": raw or None,
        "--checkpoint": checkpoint,
        "--device": device,
    }
    misplaced = only_images if of_run else only_runs
    wrong = [name for name, value in misplaced.items() if value is not None]
    if wrong:
        what = "a run, which knows its own images" if of_run else "no run; these are for runs"
        raise InputError(f"{target} is {what}: leave {' and '.join(wrong)} out")
    parts = tuple(p for p in PARTS if p not in skip and (of_run or p not in NEED_A_NETWORK))
    if not parts:
        raise InputError("--skip: leaves nothing to measure")
    set_threads(threads)
    if of_run:
        return _run(
            target,
            features,
            parts,
            count=2000 if n is None else n,
            seed=seed or 0,
            changes={"steps": steps, "sampler": sampler, "guidance": guidance},
            raw=raw,
            checkpoint=checkpoint,
            device=device or "cpu",
        )
    if against is None:
        raise InputError(
            f"{target}: is no run; to evaluate images, say which real ones to hold them against: "
            "--against fashion-mnist, or a folder"
        )
    return _images(target, against, parse_size(size), channels, features, parts, out)


def _run(
    path: Path,
    features: str | None,
    parts: Sequence[Part],
    *,
    count: int,
    seed: int,
    changes: dict[str, Any],
    raw: bool,
    checkpoint: int | Literal["best"] | None,
    device: str,
) -> int:
    from rich.console import Console

    from unraze import generate
    from unraze.config import updated
    from unraze.evaluate.evaluation import Subject, evaluate_run, key_of
    from unraze.evaluate.reference import of_run

    given = {f"sample.{key}": value for key, value in changes.items() if value is not None}
    with told_as_options({key: f"--{key.split('.')[1]}" for key in given}):
        model = generate.load(path, raw=raw, step=checkpoint, device=device)
        settings = updated(model.config, given).sample
        generate.steps_of(model, settings)
    reference = of_run(model.config)
    console = Console(stderr=True)
    spaces = _spaces(features, reference, console)
    subject = Subject(
        kind="run",
        name=str(path),
        generated=count,
        preset=model.config.preset,
        step=model.step,
        checkpoint=model.checkpoint,
        raw=raw,
        seed=seed,
        trained_seed=model.config.train.seed,
        classes="all in turn" if model.num_classes else None,
        settings=settings.model_dump(mode="json"),
    )
    name = f"step-{model.step:08d}-{key_of(subject, reference, spaces)}"
    folder = path / "eval" / name
    print(_told(subject, reference, spaces), flush=True)
    print(_how_long(model, settings, parts, count), flush=True)
    stages = evaluate_run(
        model,
        reference,
        spaces,
        subject=subject,
        settings=settings,
        classes=None,
        parts=parts,
        folder=folder,
    )
    result = _followed(stages, console)
    samples = _samples_of(folder, count, model.shape) if "figures" in parts else None
    return _finish(result, path / "eval" / f"{name}.json", path / "report.html", samples, reference)


def _images(
    target: Path,
    against: str,
    size: tuple[int, int] | None,
    channels: Literal[1, 3] | None,
    features: str | None,
    parts: Sequence[Part],
    out: Path | None,
) -> int:
    from rich.console import Console

    from unraze.config import DataConfig
    from unraze.data import load
    from unraze.evaluate.evaluation import Subject, evaluate_images, key_of
    from unraze.evaluate.reference import of_source, require_same_shape

    images = load(DataConfig(source=str(target), size=size, channels=channels))
    reference = of_source(DataConfig(source=against, size=size, channels=channels))
    require_same_shape(images, reference)
    console = Console(stderr=True)
    spaces = _spaces(features, reference, console)
    subject = Subject(kind="images", name=str(target), generated=len(images))
    folder = out or Path(f"{target.stem or 'images'}-evaluation")
    name = f"images-{key_of(subject, reference, spaces, images.fingerprint)}"
    print(_told(subject, reference, spaces), flush=True)
    stages = evaluate_images(
        images, reference, spaces, subject=subject, parts=parts, folder=folder / name
    )
    result = _followed(stages, console)
    return _finish(
        result, folder / f"{name}.json", folder / "report.html", images.pixels, reference
    )


@app.command(
    group=LOOK,
    sort_key=1,
    help_epilogue="Example: unraze compare runs/00000-fashion-mnist runs/00001-fashion-mnist",
)
def compare(
    runs: Annotated[
        tuple[Path, ...],
        Parameter(help="Runs that were evaluated, or evaluations' .json files; two or more."),
    ],
    /,
) -> int:
    """Put evaluated runs side by side and say which differences are real.

    Of a run the newest evaluation is taken.
    """
    from rich.console import Console
    from rich.table import Table

    from unraze.evaluate.compare import compared
    from unraze.evaluate.evaluation import EVALUATION
    from unraze.evaluate.kept import read_result
    from unraze.evaluate.report import number

    evaluations = [read_result(_newest(run), EVALUATION) for run in runs]
    found = compared(evaluations)
    console = Console()
    letters = [chr(ord("A") + k) for k in range(len(runs))]
    for letter, evaluation in zip(letters, evaluations, strict=True):
        subject = evaluation.subject
        print(f"{letter}  {subject.name}, {subject.generated} samples, step {subject.step}")
    for place, space in enumerate(evaluations[0].spaces):
        table = Table("figure", *letters, "real differences", title=space.name)
        for row, figure in enumerate(space.figures):
            shown = [e.spaces[place].figures[row] for e in evaluations]
            cells = [f"{number(f.value)} ({number(f.low)} … {number(f.high)})" for f in shown]
            real = [
                f"{letters[p.better]} better than {letters[p.first + p.second - p.better]}"
                for p in found.pairs
                if p.space == space.name and p.figure == figure.name and p.better is not None
            ]
            table.add_row(figure.name, *cells, "\n".join(real) or "none")
        console.print(table)
    for remark in found.remarks:
        print(remark)
    return 0


def _newest(run: Path) -> Path:
    """The newest evaluation of a run, or the file itself."""
    if run.is_file():
        return run
    if not (run / "config.toml").is_file():
        raise InputError(f"{run}: is neither a run nor an evaluation's .json file")
    files = sorted((run / "eval").glob("step-*.json"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise InputError(f"{run}: was not evaluated yet; `unraze eval {run}` does it")
    return files[-1]


def _spaces(
    features: str | None, reference: Reference, console: Console
) -> tuple[FeatureSpace, ...]:
    from unraze.evaluate.features import spaces

    if features is None:
        return _followed(spaces(reference.training, reference.held_out), console)
    kind, _, file = features.partition(":")
    if kind != "onnx" or not file:
        raise InputError(f"--features {features}: give onnx:FILE")
    from unraze.evaluate.onnx_features import onnx_space

    return (onnx_space(Path(file)),)


def _followed(stages: Generator[Stage, None, T], console: Console) -> T:
    from unraze.cli.show import follow_stages

    return follow_stages(stages, console)


def _told(subject: Any, reference: Reference, spaces: Sequence[FeatureSpace]) -> str:
    kinds = "; ".join(f"{space.name}, weights {space.hash[:12]}" for space in spaces)
    return (
        f"{subject.generated} samples against {len(reference.held_out)} held-out images of "
        f"{reference.held_out.source}\nfeatures: {kinds}"
    )


def _how_long(model: Model, settings: SampleConfig, parts: Sequence[Part], count: int) -> str:
    """The time that network calls will take, from one call measured here."""
    import torch

    from unraze.cli.show import clock
    from unraze.evaluate.samples import BATCH
    from unraze.generate import class_of, denoiser_of

    labels = [class_of(model, None, k) for k in range(BATCH)]
    denoise = denoiser_of(model, settings, labels)
    device = next(model.network.parameters()).device
    x = torch.zeros(BATCH, *model.shape, device=device)
    t = model.schedule.times[-1] / 2
    with torch.no_grad():
        denoise(x, t)
        began = time.perf_counter()
        denoise(x, t)
    seconds = (time.perf_counter() - began) / BATCH
    said = []
    if "figures" in parts or "memorisation" in parts:
        said.append(f"sampling about {clock(seconds * count * settings.steps)}")
    from unraze.evaluate import likelihood

    calls = 256 * 2 * 24 if "levels" in parts else 0
    calls += likelihood.BOUND_CALLS if "bound" in parts else 0
    calls += likelihood.FLOW_CALLS if "flow" in parts else 0
    if calls:
        said.append(f"likelihood and noise levels about {clock(seconds * calls)}")
    return ", ".join([*said, "the rest a minute or so"])


def _samples_of(folder: Path, count: int, shape: tuple[int, int, int]) -> np.ndarray:
    import numpy as np

    parts = sorted((folder / "samples").glob("part-*.npy"))
    samples = np.concatenate([np.load(part, allow_pickle=False) for part in parts])
    assert samples.shape == (count, *shape), "every part was drawn or found whole"
    return samples


def _finish(
    result: Evaluation,
    json: Path,
    report: Path,
    samples: np.ndarray | None,
    reference: Reference,
) -> int:
    from rich.console import Console

    from unraze.evaluate.evaluation import EVALUATION
    from unraze.evaluate.kept import write_result
    from unraze.evaluate.report import write_report

    write_result(json, EVALUATION, result)
    command = shlex.join(["unraze", *sys.argv[1:]])
    write_report(result, report, samples=samples, reference=reference, command=command)
    _print(result, Console())
    print(f"as data: {json}")
    print(report)
    return 0


def _print(result: Evaluation, console: Console) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from unraze.evaluate.report import noted, number, summary

    arrows = {"lower": "↓", "higher": "↑"}
    for space in result.spaces:
        halves = max(f.halves for f in space.figures)
        alike = (f"of {halves:,}", f"floor of {halves:,}") if halves else ()
        columns = ("figure", "value", "95 % interval", *alike)
        title = f"{space.name}, weights {space.hash[:12]}; better is ↓ lower, ↑ higher"
        table = Table(*columns, title=title, title_justify="left", box=SIMPLE_HEAD)
        for f in space.figures:
            interval = f"{number(f.low, 3)} … {number(f.high, 3)}"
            beside = (number(f.alike), number(f.floor)) if halves else ()
            table.add_row(f"{arrows[f.better]} {f.name}", number(f.value), interval, *beside)
        console.print(table)
        for line in noted(space.figures):
            print(line)
    for line in (*summary(result), *result.remarks):
        print(line)
