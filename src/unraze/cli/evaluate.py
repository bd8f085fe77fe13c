"""`unraze eval` and `unraze compare`: how good a generator is, and which of several is better."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from cyclopts import Group, Parameter

from unraze.cli.app import (
    DATA,
    INTERRUPTED,
    LOOK,
    OUTPUT,
    SAMPLING,
    Checkpoint,
    Device,
    Guidance,
    Raw,
    Sampler,
    Spacing,
    Steps,
    Threads,
    app,
    parse_size,
    told_as_options,
)
from unraze.environment import are_several
from unraze.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from unraze.config import SampleConfig
    from unraze.data import Images
    from unraze.evaluate.compare import Comparison
    from unraze.evaluate.evaluation import Evaluation, Part, Subject
    from unraze.evaluate.features import FeatureSpace
    from unraze.evaluate.places import Places
    from unraze.evaluate.reference import Reference
    from unraze.evaluate.stage import Stage
    from unraze.generate import Model
    from unraze.ranks import Ranks

__all__ = ["compare", "evaluate"]

T = TypeVar("T")
MEASURES = Group("What is measured", sort_key=3)
PartName = Literal["figures", "memorisation", "levels", "bound", "flow"]
NEED_A_NETWORK = ("levels", "bound", "flow")
COUNT = 2000
"""Samples that are drawn where -n is not given."""
OURS = re.compile(r"report\.html|kept|images-[0-9a-f]{8}\.json|\..*\.part")
"""What an evaluation of images leaves in its folder."""
ARROWS = {"lower": "↓", "higher": "↑"}
WIDTH = 120
"""Columns of a table that no terminal bounds."""


@app.command(
    name="eval",
    group=LOOK,
    sort_key=0,
    usage="Usage: unraze eval TARGET [OPTIONS]",
    help_epilogue=(
        "Examples:\n\n"
        "  unraze eval runs/00000-fashion-mnist\n"
        "  unraze eval RUN -n 10000 --steps 100\n"
        "  unraze eval RUN --skip bound --skip flow\n"
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
        Parameter(
            group=DATA,
            help="For images, and for runs of other programs' models: the real ones, a path or a "
            "known name; of a folder one half is held against them, features are learned from the "
            "other.",
        ),
    ] = None,
    size: Annotated[
        str | None, Parameter(group=DATA, help="For images: bring both to 32, or 32x48.")
    ] = None,
    channels: Annotated[
        Literal[1, 3] | None, Parameter(group=DATA, help="For images: 1 grey, 3 colour.")
    ] = None,
    skip_bad: Annotated[
        bool,
        Parameter(
            group=DATA,
            negative="",
            show_default=False,
            help="With --against: leave unreadable files out.",
        ),
    ] = False,
    features: Annotated[
        str | None,
        Parameter(
            group=MEASURES,
            help="onnx:FILE, a network of your own; absent: two that learn from the data set.",
        ),
    ] = None,
    skip: Annotated[
        tuple[PartName, ...],
        Parameter(
            group=MEASURES,
            negative="",
            show_default=False,
            help="A part not to measure, for each part again; one that was measured before stays.",
        ),
    ] = (),
    n: Annotated[
        int | None,
        Parameter(name=["-n", "--count"], group=SAMPLING, help="Samples; 2000 if absent."),
    ] = None,
    seed: Annotated[
        int | None, Parameter(group=SAMPLING, help="Of the samples' noise; 0 if absent.")
    ] = None,
    steps: Steps = None,
    sampler: Sampler = None,
    spacing: Spacing = None,
    guidance: Guidance = None,
    raw: Raw = False,
    checkpoint: Checkpoint = None,
    device: Device = None,
    threads: Threads = None,
    out: Annotated[
        Path | None,
        Parameter(
            group=OUTPUT,
            help="For images: folder of the report; NAME-evaluation if absent, of a run's pictures "
            "RUN-NAME-evaluation.",
        ),
    ] = None,
) -> int:
    """Measure how good samples are, whether they are copies, and what held-out images cost.

    Samples of a run are drawn and held against its held-out images; images from any program against
    those that --against names. The parts are figures (Fréchet distance, KID, precision, recall,
    density, coverage; in two feature spaces, with intervals), memorisation, levels (the loss by
    noise level), bound and flow (likelihood, in bits a dimension); the last three are of runs that
    were not distilled.

    Writes a report page, whose path is the last line printed. Stopped, the same command goes on
    where it was.
    """
    from unraze import run as runs
    from unraze.cli.drawing import MOST_PICTURES, set_threads
    from unraze.cli.train import spoken_for
    from unraze.evaluate.evaluation import PARTS

    for name, value, least in (("-n", n, 1), ("--seed", seed, 0)):
        if value is not None and value < least:
            raise InputError(f"{name} {value}: give at least {least}")
    if n is not None and n > MOST_PICTURES:
        raise InputError(f"-n {n}: give at most {MOST_PICTURES:,}")
    of_run = runs.is_run(target)
    only_images = {
        "--size": size,
        "--channels": channels,
        "--out": out,
        # a run of one's own says itself whether its images are all to be read
        "--skip-bad": (skip_bad and against is None) or None,
    }
    only_runs = {
        "-n": n,
        "--seed": seed,
        "--steps": steps,
        "--sampler": sampler,
        "--spacing": spacing,
        "--guidance": guidance,
        "--raw": raw or None,
        "--checkpoint": checkpoint,
        "--device": device,
    }
    if not of_run and against is None:
        raise InputError(_no_run(target))
    misplaced = only_images if of_run else only_runs
    wrong = [name for name, value in misplaced.items() if value is not None]
    if wrong:
        what = "a run, and these are for images" if of_run else "no run, and these are for runs"
        raise InputError(f"{target}: is {what}; leave {' and '.join(wrong)} out")
    parts = tuple(p for p in PARTS if p not in skip and (of_run or p not in NEED_A_NETWORK))
    if not parts:
        raise InputError("--skip: leaves nothing to measure; leave less out")
    with told_as_options({"train.threads": "--threads"}):
        set_threads(threads)
    try:
        if not of_run:
            assert against is not None
            if are_several():
                raise InputError(
                    f"{target}: images are evaluated by one process; leave torchrun out"
                )
            return _images(
                target, against, parse_size(size), channels, skip_bad, features, parts, out
            )
        with told_as_options({"device": "--device"}), spoken_for(device or "cpu") as ranks:
            return _run(
                target,
                features,
                parts,
                count=COUNT if n is None else n,
                seed=seed or 0,
                against=against,
                skip_bad=skip_bad,
                changes={
                    "steps": steps,
                    "sampler": sampler,
                    "spacing": spacing,
                    "guidance": guidance,
                },
                raw=raw,
                checkpoint=checkpoint,
                device=device or "cpu",
                ranks=ranks,
            )
    except KeyboardInterrupt:
        print(
            f"unraze: interrupted; what is done is kept, go on with: {_command()}", file=sys.stderr
        )
        return INTERRUPTED


def _no_run(target: Path) -> str:
    from unraze.data import NAMES

    if str(target) not in NAMES and not os.path.exists(target):
        return f"{target}: there is no such run, nor such images; `unraze runs` lists the runs"
    return (
        f"{target}: is no run; to evaluate images, say which real ones to hold them against: "
        "--against fashion-mnist, or a folder"
    )


def _command() -> str:
    return shlex.join(["unraze", *sys.argv[1:]])


def _run(
    path: Path,
    features: str | None,
    parts: Sequence[Part],
    *,
    count: int,
    seed: int,
    against: str | None,
    skip_bad: bool,
    changes: dict[str, Any],
    raw: bool,
    checkpoint: int | Literal["best"] | None,
    device: str,
    ranks: Ranks,
) -> int:
    from rich.console import Console

    from unraze import generate
    from unraze.cli.drawing import require_place
    from unraze.cli.show import follow_reading
    from unraze.evaluate.evaluation import Subject, evaluate_run, require_enough
    from unraze.evaluate.places import places_of_run
    from unraze.evaluate.reference import of_run, of_run_against
    from unraze.evaluate.samples import classes_drawn, draw_share, in_proportion
    from unraze.evaluate.stage import finish
    from unraze.hardware import require_kept
    from unraze.untrusted import require_no_links

    given = {key: value for key, value in changes.items() if value is not None}
    names = {name: f"--{key}" for key in given for name in (key, f"sample.{key}")}
    with told_as_options(names | {"device": "--device"}):
        model = generate.load(path, raw=raw, step=checkpoint, device=device)
        settings = generate.asked(model, given)
        next(generate.generate(model, 1, seed=seed, settings=settings))  # refuses what will not do
    require_kept(count, model.shape, f"-n {count}")
    if model.config.distilled is not None:
        # a jump along the flow is no mean of x_0, which these are about
        parts = tuple(part for part in parts if part not in NEED_A_NETWORK)
        if not parts:
            raise InputError("--skip: leaves nothing to measure of a distilled run; leave less out")
    ranks.first(require_no_links, path)
    ranks.first(require_place, path / "eval", str(path))
    console = Console(stderr=True)
    show = follow_reading(console) if ranks.is_first else None

    def held_against() -> Reference:
        if against is None:
            return of_run(model, progress=show)
        return of_run_against(model, against, skip_bad=skip_bad, progress=show)

    reference = ranks.in_turn(held_against)
    require_enough(f"-n {count}", count, reference, parts)
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
        classes=classes_drawn(model),
        settings=settings.model_dump(mode="json"),
    )
    places = places_of_run(
        path / "eval", model, reference, settings=settings, count=count, seed=seed
    )
    print(_told(subject, reference), flush=True)
    _tell_skipped(reference.held_out)
    if ranks.count > 1 and ("figures" in parts or "memorisation" in parts):
        shared = draw_share(
            model,
            settings,
            count=count,
            seed=seed,
            classes=in_proportion(model, reference.held_out),
            folder=places.samples,
            ranks=ranks,
        )
        ranks.each(lambda: _followed(shared, console) if ranks.is_first else finish(shared))
    if not ranks.is_first:  # what is left is measured by one
        return 0
    spaces = _spaces(features, reference, parts, places, subject, console, (model, settings))
    stages = evaluate_run(
        model,
        reference,
        spaces,
        subject=subject,
        settings=settings,
        parts=parts,
        places=places,
    )
    result, samples = _followed(stages, console)
    file = places.result(spaces, f"step-{model.step:08d}")
    return _finish(result, file, path / "report.html", samples, reference)


def _images(
    target: Path,
    against: str,
    size: tuple[int, int] | None,
    channels: Literal[1, 3] | None,
    skip_bad: bool,
    features: str | None,
    parts: Sequence[Part],
    out: Path | None,
) -> int:
    from rich.console import Console

    from unraze.cli.drawing import require_ours, require_place
    from unraze.cli.show import follow_reading
    from unraze.config import DataConfig
    from unraze.data import load
    from unraze.evaluate.evaluation import Subject, evaluate_images, require_enough
    from unraze.evaluate.places import places_of_images
    from unraze.evaluate.reference import of_source, require_same_shape

    folder = out or Path(f"{_name_of(target)}-evaluation")
    require_ours(folder, OURS)
    require_place(folder, f"--out {folder}")
    ours, theirs = (
        DataConfig(source=source, size=size, channels=channels, skip_bad=skip_bad)
        for source in (str(target), against)
    )
    console = Console(stderr=True)
    show = follow_reading(console)
    images, reference = load(ours, progress=show), of_source(theirs, progress=show)
    require_same_shape(images, reference)
    require_enough(f"{target}: {len(images)} images", len(images), reference, parts)
    subject = Subject(kind="images", name=str(target), generated=len(images))
    places = places_of_images(folder, images, reference)
    print(_told(subject, reference), flush=True)
    _tell_skipped(images, reference.held_out)
    spaces = _spaces(features, reference, parts, places, subject, console, None)
    stages = evaluate_images(images, reference, spaces, subject=subject, parts=parts, places=places)
    result = _followed(stages, console)
    file = places.result(spaces, "images")
    return _finish(result, file, folder / "report.html", images.pixels, reference)


def _name_of(images: Path) -> str:
    """What images are called, in one word: of those in a run's folder with that of the run."""
    from unraze import run as runs

    place = images.resolve()
    name = place.name or "images"
    return f"{place.parent.name}-{name}" if runs.is_run(place.parent) else name


@app.command(
    group=LOOK,
    sort_key=1,
    usage="Usage: unraze compare RUN RUN …",
    help_epilogue=(
        "Examples:\n\n"
        "  unraze compare runs/00000-fashion-mnist runs/00001-fashion-mnist\n"
        "  unraze compare RUN/eval/step-00002000-0a1b2c3d.json RUN"
    ),
)
def compare(
    runs: Annotated[
        tuple[Path, ...],
        Parameter(
            help="Evaluated runs, folders of evaluated images, or evaluations' .json files; two or "
            "more."
        ),
    ],
    /,
) -> int:
    """Put evaluations side by side and say which differences are real.

    Of a run the newest evaluation is taken. They must be of as many samples, in the same feature
    spaces, against the same real images.
    """
    from unraze.evaluate.compare import compared, letter
    from unraze.evaluate.evaluation import EVALUATION
    from unraze.evaluate.kept import read_result

    chosen = [_newest(run) for run in runs]
    evaluations = [read_result(file, EVALUATION) for file, _ in chosen]
    found = compared(evaluations)
    for number, (evaluation, (file, count)) in enumerate(zip(evaluations, chosen, strict=True)):
        newest = f", the newest of {count}" if count > 1 else ""
        print(f"{letter(number)}  {_described(evaluation)}: {file}{newest}")
    _print_comparison(evaluations, found)
    return 0


def _described(evaluation: Evaluation) -> str:
    subject, copies = evaluation.subject, evaluation.memorisation
    said = [subject.name]
    if subject.kind == "run":
        said.append(f"step {subject.step}{' as trained' if subject.raw else ''}")
        said.append(f"seed {subject.seed}")
    said.append(f"{subject.generated} {'samples' if subject.kind == 'run' else 'images'}")
    if copies is not None:
        said.append(copies.verdict.partition(":")[0])
    return ", ".join(said)


def _print_comparison(evaluations: Sequence[Evaluation], found: Comparison) -> None:
    from unraze.evaluate.compare import letter
    from unraze.evaluate.report import number

    letters = [letter(k) for k in range(len(evaluations))]
    for place, space in enumerate(evaluations[0].spaces):
        table = _table(f"{space.name}, weights {space.hash[:12]}")
        table.add_column("figure", no_wrap=True)
        for name in letters:
            table.add_column(name, justify="right", no_wrap=True)
        for name in ("of", "difference", "95 % interval", "really better"):
            table.add_column(
                name, justify="right" if name == "difference" else "left", no_wrap=True
            )
        for row, figure in enumerate(space.figures):
            values = [number(e.spaces[place].figures[row].value) for e in evaluations]
            pairs = [p for p in found.pairs if (p.space, p.figure) == (space.name, figure.name)]
            columns: list[list[str]] = [[], [], [], []]
            for pair in pairs:
                d = pair.difference
                better = "–" if pair.better is None else letters[pair.better]
                cells = (
                    f"{letters[pair.first]} − {letters[pair.second]}",
                    number(d.value, 3) if d else "–",
                    f"{number(d.low, 3)} … {number(d.high, 3)}" if d else "not measured",
                    better,
                )
                for column, cell in zip(columns, cells, strict=True):
                    column.append(cell)
            joined = ["\n".join(column) for column in columns]
            table.add_row(f"{ARROWS[figure.better]} {figure.name}", *values, *joined)
        _wide().print(table)
    for line in (*found.words, *found.remarks):
        print(line)


def _newest(place: Path) -> tuple[Path, int]:
    """The newest evaluation of a run or of images, of how many; or the file itself, of one."""
    if place.is_file():
        return place, 1
    files = [*(place / "eval").glob("step-*.json"), *place.glob("images-*.json")]
    if not files:
        from unraze import run as runs

        if runs.is_run(place):
            raise InputError(f"{place}: was not evaluated yet; `unraze eval {place}` does it")
        raise InputError(f"{place}: is neither an evaluated run nor an evaluation's .json file")
    from unraze.evaluate.kept import newest_first

    return newest_first(files)[0], len(files)


def _spaces(
    features: str | None,
    reference: Reference,
    parts: Sequence[Part],
    places: Places,
    subject: Subject,
    console: Console,
    run: tuple[Model, SampleConfig] | None,
) -> tuple[FeatureSpace, ...]:
    """The feature spaces, trained where need be; says first how long all of it will take."""
    from unraze.evaluate import forecast
    from unraze.evaluate.features import spaces, to_train

    recipes = () if features is not None else to_train(reference.training)
    found = () if recipes else _at_hand(features, reference, console)
    if not {"figures", "memorisation"} & set(parts):
        recipes = ()  # nor are there figures of before in features that are yet to be trained
    count = subject.generated
    seconds = {
        "training feature networks, once": forecast.features_time(recipes, reference.training),
        # of two networks one may be there already, which costs what the other does
        "figures and memorisation": forecast.samples_time(
            found or (*recipes, *recipes)[:2], reference, parts, places, count=count
        ),
    }
    if run is not None:
        model, settings = run
        if "figures" in parts or "memorisation" in parts:
            seconds["sampling"] = forecast.sampling_time(
                model, settings, count=count, places=places
            )
        seconds["noise levels and likelihood"] = forecast.network_time(
            model, reference, parts, places
        )
    print(_how_long(seconds), flush=True)
    if recipes:
        found = _followed(spaces(reference.training, reference.held_out), console)
    if found:
        kinds = "; ".join(f"{space.name}, weights {space.hash[:12]}" for space in found)
        print(f"features: {kinds}", flush=True)
    return found


def _at_hand(
    features: str | None, reference: Reference, console: Console
) -> tuple[FeatureSpace, ...]:
    """Spaces that need no training."""
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


def _told(subject: Subject, reference: Reference) -> str:
    if subject.kind == "run":
        weights = "as trained" if subject.raw else "averaged"
        what = (
            f"{subject.name}, step {subject.step}, weights {weights}: {subject.generated} samples"
        )
    else:
        what = f"{subject.name}: {subject.generated} images"
    return (
        f"{what} against {len(reference.held_out)} held-out images of {reference.held_out.source}"
    )


def _tell_skipped(*sets: Images) -> None:
    for images in sets:
        if images.skipped:
            print(f"{images.source}: {len(images.skipped)} left out as unreadable", flush=True)


def _how_long(seconds: dict[str, float]) -> str:
    from unraze.cli.show import clock

    said = [f"{what} {clock(took)}" for what, took in seconds.items() if took >= 1]
    if not said:
        return "this takes seconds"
    return f"this takes about {clock(sum(seconds.values()))}: {', '.join(said)}"


def _finish(
    result: Evaluation,
    json: Path,
    report: Path,
    samples: np.ndarray | None,
    reference: Reference,
) -> int:
    from unraze.evaluate.evaluation import EVALUATION
    from unraze.evaluate.kept import write_result
    from unraze.evaluate.report import write_report

    write_result(json, EVALUATION, result)
    write_report(result, report, samples=samples, reference=reference, command=_command())
    _print(result)
    print(f"as data: {json}")
    print(report)
    return 0


def _print(result: Evaluation) -> None:
    from unraze.evaluate.report import noted, number, summary

    for space in result.spaces:
        halves = max(f.halves for f in space.figures)
        alike = (f"of {halves:,}", f"floor of {halves:,}") if halves else ()
        table = _table(f"{space.name}, weights {space.hash[:12]}; better is ↓ lower, ↑ higher")
        table.add_column("figure", no_wrap=True)
        for name in ("value", "95 % interval", *alike):
            table.add_column(name, justify="right", no_wrap=True)
        for f in space.figures:
            interval = f"{number(f.low, 3)} … {number(f.high, 3)}"
            beside = (number(f.alike), number(f.floor)) if halves else ()
            table.add_row(f"{ARROWS[f.better]} {f.name}", number(f.value), interval, *beside)
        _wide().print(table)
        for line in noted(space.figures):
            print(line)
    for line in (*summary(result), *result.remarks):
        print(line)


def _table(title: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)


def _wide() -> Console:
    """As wide as the terminal; where there is none, wide enough for a table."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)
