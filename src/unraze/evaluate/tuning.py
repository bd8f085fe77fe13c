"""Which sampler, steps and guidance give the best pictures in few network calls.

For each number of calls, candidates draw the same noise, and are held against training images in
the first feature space. Held-out images are kept for what is said of the winner: it draws new noise
there, beside the run's own settings. Only which number of calls is the default is chosen by that.
Every score is kept as a file, so that a search that was stopped goes on.
"""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from unraze.config import SampleConfig
from unraze.data import evenly
from unraze.errors import InputError
from unraze.evaluate.during import FEWEST_REAL as FEWEST
from unraze.evaluate.features import FeatureSpace
from unraze.evaluate.figures import Figure
from unraze.evaluate.gaussian import FEWEST_PER_FEATURE, frechet
from unraze.evaluate.kept import features_of_images, kept_part, key_of
from unraze.evaluate.kernel import kid
from unraze.evaluate.reference import Reference
from unraze.evaluate.samples import BATCH, as_bytes, in_proportion
from unraze.evaluate.stage import Stage
from unraze.generate import (
    Classes,
    Model,
    Tuning,
    calls_of,
    can_be_guided,
    changed,
    class_of,
    denoiser_of,
    generate,
    start,
    within,
)
from unraze.samplers import cheapest, even_angles, jump_errors
from unraze.schedule import Schedule

__all__ = [
    "CALLS",
    "Search",
    "Searched",
    "calls_to_make",
    "require_enough",
    "search",
    "tuned",
]

Array = np.ndarray[Any, Any]

CALLS = (4, 6, 8, 10, 15, 20)
SEARCH_SEED, REPORT_SEED = 101, 202
MOST_REAL = 10_000
GRID, PROBES = 60, 96
"""Steps of the way that jumps are taken from, and how many images go it."""
DISCOUNTS = (0.8, 0.85, 0.9, 0.95, 1.0)
SPACINGS = ("angle", "karras")
SOLVERS: tuple[dict[str, Any], ...] = (
    {"sampler": "adams", "order": 2},
    {"sampler": "adams", "order": 3},
    {"sampler": "dpmpp_2m"},
    {"sampler": "unipc", "order": 2},
    {"sampler": "dpmpp_2m_sde", "eta": 1.0},
    {"sampler": "dpmpp_2m_sde", "eta": 0.5},
    {"sampler": "dpmpp_3m_sde", "eta": 1.0},
)
GUIDANCE: tuple[tuple[float, tuple[float, float]], ...] = (
    (1.0, (0.0, 1.0)),
    *(
        (scale, interval)
        for scale in (1.25, 1.5, 2.0, 3.0)
        for interval in ((0.0, 1.0), (0.0, 0.7), (0.2, 0.8))
    ),
)
"""Scales and the parts of t/T in which they act: Kynkäänniemi et al. 2024, arXiv:2404.07724."""
WORTH = 0.05
"""How much worse than the best number of calls a smaller one may be to be the default."""


@dataclass(frozen=True)
class Searched:
    """What was found for one number of calls.

    Arguments:
        settings: the winner's.
        found: the measure against held-out images, of noise that it was not chosen by.
        tried: how many settings were scored.
    """

    settings: SampleConfig
    found: Figure
    tried: int


SCORE = TypeAdapter(float)
FIGURE = TypeAdapter(Figure)


@dataclass(frozen=True)
class Search:
    """What is searched for, and by what: the `measure` of `count` samples in one feature space.

    That is the Fréchet distance, or KID where images or samples are too few for it. `folder` keeps
    the scores; `classes` are what samples are asked to be of (`in_proportion`).
    """

    model: Model
    reference: Reference
    space: FeatureSpace
    measure: Callable[[Array, Array], Figure]
    count: int
    folder: Path
    classes: Classes


def search(
    model: Model, reference: Reference, space: FeatureSpace, *, count: int, folder: Path
) -> Search:
    """What `tuned` takes; raises as `require_enough` does."""
    require_enough(reference, count)
    counts = (len(reference.training), len(reference.held_out), count)
    measure = frechet if min(counts) >= FEWEST_PER_FEATURE * space.dim else kid
    classes = in_proportion(model, reference.held_out)
    return Search(model, reference, space, measure, count, folder, classes)


def require_enough(reference: Reference, count: int) -> None:
    """Raises `InputError` where there are too few images, or samples (`count`), to choose by."""
    for name, images in (("training", reference.training), ("held-out", reference.held_out)):
        if len(images) < FEWEST:
            raise InputError(
                f"{images.source}: {len(images)} {name} images are too few to choose by, which "
                f"takes {FEWEST}; choose by eye, with `unraze sample RUN --sampler adams --order 2 "
                "--spacing angle --steps 10`"
            )
    if count < FEWEST:
        raise InputError(f"-n {count}: too few samples to choose by; give at least {FEWEST}")


def calls_to_make(model: Model, calls: Sequence[int], count: int) -> int:
    """Network calls, an image each, of a whole search: at most."""
    guided = len(GUIDANCE) if can_be_guided(model) else 0
    each = len(SPACINGS) + len(DISCOUNTS) + 2 * (len(SOLVERS) - 1) + guided + 1
    own = calls_of(model, model.config.sample)
    way = GRID * PROBES * (1 if model.config.sample.guidance == 1 else 2)
    return count * (each * sum(calls) + own) + way


def tuned(
    of: Search, calls: Sequence[int]
) -> Generator[Stage, None, tuple[Tuning, Figure, dict[int, Searched]]]:
    """What is to be kept, the figure of the run's own settings, and what was found for each number
    of calls.

    The default is the least number of calls whose figure is at most 5 % above the best one's.
    Raises `InputError` as `generate` does.
    """
    errors = yield from _jumps(of)
    found = {}
    for n in calls:
        found[n] = yield from _searched(of, n, errors)
    own = yield from _figure(of, of.model.config.sample, "the run's own settings")
    best = min(one.found.value for one in found.values())
    most = max(best, (1 + WORTH) * best)  # KID may be below 0
    default = min(n for n, one in found.items() if one.found.value <= most)
    settings = {n: one.settings for n, one in found.items()}
    return Tuning(checkpoint=of.model.checkpoint, default=default, settings=settings), own, found


def _grid(model: Model) -> Schedule:
    """The times that kept ones are chosen from."""
    steps, whole = min(GRID, model.schedule.steps), not model.config.loss.continuous
    return even_angles(model.schedule, steps, whole=whole)


def _jumps(of: Search) -> Generator[Stage, None, Array]:
    """What jumps between the times of the grid cost (`jump_errors`)."""
    yield Stage("the way that steps are chosen from", 0, 1)
    labels = [class_of(of.model, of.classes, k, SEARCH_SEED) for k in range(PROBES)]
    denoise = denoiser_of(of.model, of.model.config.sample, labels)
    return jump_errors(denoise, start(of.model, SEARCH_SEED, range(PROBES)), _grid(of.model))


def _searched(of: Search, n: int, errors: Array) -> Generator[Stage, None, Searched]:
    """The best settings of n calls: first the steps, then the solver, then the guidance.

    A guided step takes two calls, so with guidance there are fewer steps.
    """
    scores: dict[str, tuple[float, SampleConfig, Candidate]] = {}

    def tried(candidates: Iterable[Candidate]) -> Generator[Stage, None, None]:
        for candidate in candidates:
            settings = _settings(of, n, candidate)
            if str(settings) not in scores:
                name = f"{n} calls, candidate {len(scores) + 1}"
                score = yield from _score(of, settings, name)
                scores[str(settings)] = score, settings, candidate

    def ranked() -> list[tuple[float, SampleConfig, Candidate]]:
        return sorted(scores.values(), key=lambda one: one[0])

    own = {key: getattr(of.model.config.sample, key) for key in ("guidance", "guidance_interval")}
    spacings = _spacings(of, n, errors)
    yield from tried(Candidate(SOLVERS[0], spacing, own) for spacing in spacings)
    ways = [candidate.spacing for _, _, candidate in ranked()[:2]]
    yield from tried(Candidate(solver, way, own) for way in ways for solver in SOLVERS[1:])
    if can_be_guided(of.model):
        _, _, winner = ranked()[0]
        yield from tried(
            replace(winner, guidance={"guidance": scale, "guidance_interval": interval})
            for scale, interval in GUIDANCE
        )
    _, best, _ = ranked()[0]
    figure = yield from _figure(of, best, f"{n} calls, the best of {len(scores)}")
    return Searched(best, figure, len(scores))


@dataclass(frozen=True)
class Candidate:
    """What may be the best: a solver, a spacing for any number of steps, and guidance."""

    solver: Mapping[str, Any]
    spacing: Callable[[int], Any]
    guidance: Mapping[str, Any]


def _settings(of: Search, n: int, candidate: Candidate) -> SampleConfig:
    """The candidate's settings of n calls."""

    def of_steps(steps: int) -> SampleConfig:
        way = {"steps": steps, "spacing": candidate.spacing(steps)}
        return changed(of.model.config.sample, {**candidate.solver, **way, **candidate.guidance})

    return within(of.model, n, of_steps)


def _spacings(of: Search, n: int, errors: Array) -> list[Callable[[int], Any]]:
    """The spacings tried: each a name, or the cheapest times, for a number of steps."""
    times = _grid(of.model).times

    def searched(gamma: float, steps: int) -> tuple[float, ...]:
        return tuple(float(times[k]) for k in cheapest(errors, steps, gamma))

    def named(name: str, steps: int) -> str:
        return name

    ways: list[Callable[[int], Any]] = [partial(named, name) for name in SPACINGS]
    if n < len(errors):
        ways += [partial(searched, gamma) for gamma in DISCOUNTS]
    return ways


def _score(of: Search, settings: SampleConfig, name: str) -> Generator[Stage, None, float]:
    """The measure against training images, of the search's noise."""

    def make() -> Generator[Stage, None, float]:
        training = of.reference.training
        real = yield from features_of_images(of.space, training, "features of training images")
        features = yield from _features(of, settings, SEARCH_SEED, name)
        return of.measure(real[evenly(len(real), MOST_REAL)], features).value

    return (yield from kept_part(_file(of, "score", settings), SCORE, make))


def _figure(of: Search, settings: SampleConfig, name: str) -> Generator[Stage, None, Figure]:
    """The measure against held-out images, of other noise."""

    def make() -> Generator[Stage, None, Figure]:
        held_out = of.reference.held_out
        real = yield from features_of_images(of.space, held_out, "features of held-out images")
        features = yield from _features(of, settings, REPORT_SEED, name)
        return of.measure(real, features)

    return (yield from kept_part(_file(of, "figure", settings), FIGURE, make))


def _features(
    of: Search, settings: SampleConfig, seed: int, name: str
) -> Generator[Stage, None, Array]:
    """Features of the samples that these settings draw; the stages count steps of a batch."""
    pixels = []
    moments = generate(
        of.model, of.count, seed=seed, settings=settings, classes=of.classes, batch=BATCH
    )
    for moment in moments:
        yield Stage(name, moment.done, moment.total)
        if moment.finished:
            pixels.append(as_bytes(moment.x, moment.numbers))
    return of.space.extract(np.concatenate(pixels))


def _file(of: Search, what: str, settings: SampleConfig) -> Path:
    """Where a score is kept: under a name that says what it depends on."""
    key = key_of(
        settings=settings.model_dump(mode="json"),
        checkpoint=of.model.checkpoint,
        config=of.model.config.model_dump(mode="json"),
        count=of.count,
        measure=of.measure.__name__,
        space=of.space.hash,
        training=of.reference.training.fingerprint,
        held_out=of.reference.held_out.fingerprint,
    )
    return of.folder / f"{what}-{key}.json"
