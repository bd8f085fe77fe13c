"""The evaluator evaluated: samples known to be perfect are spoilt on purpose, and measured.

python docs/ruler.py           measures Fashion-MNIST, prints tables, draws docs/figures/ruler*.png
python docs/ruler.py draw      the same from docs/figures/ruler.json, without measuring
python docs/ruler.py expected  prints what was expected, and why
python docs/ruler.py intervals how often intervals hold what they are for, on real images

`EXPECTED` was written down before anything was measured, and is not changed by what was. A figure
is said to go up or down where `unraze.evaluate.metrics.difference` calls its difference from the
undisturbed samples real, beyond the 95 % interval. An expectation is met

    up, down     where the figure went there at the largest strength, and at none the other way
    unchanged    where at no strength the difference is real
    copies       where the largest strength is called copies;  none  where no strength is
    either       by whatever is found: theory does not say, and the reason says why
"""

import argparse
import hashlib
import sys
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from pydantic import TypeAdapter
from scipy import ndimage

from unraze import data, plots, rng
from unraze.config import DataConfig
from unraze.data import Images
from unraze.data.cache import cache_folder, key
from unraze.errors import UnrazeError
from unraze.evaluate import metrics
from unraze.evaluate.features import FeatureSpace, spaces
from unraze.evaluate.figures import Figure
from unraze.evaluate.gaussian import FRECHET, FRECHET_INFINITY
from unraze.evaluate.kept import kept_part, read_result, write_result
from unraze.evaluate.memorisation import memorisation
from unraze.evaluate.nearest_training import Points
from unraze.evaluate.stage import Stage, finish

Array = np.ndarray[Any, Any]

Direction = Literal["up", "down", "unchanged", "either"]
Expectation = Literal["up", "down", "unchanged", "either", "none", "copies"]

FIGURES = ("FD", "FD∞", "KID", "precision", "recall", "density", "coverage")
MEMORISATION = "memorisation"
HEADS = (*FIGURES, MEMORISATION)
FOLDER = Path(__file__).parent / "figures"

# ---------------------------------------------------------------- written before measuring

_LEAVES = "the samples leave the real images' neighbourhoods in features"
_NOT_TRAINING = "no sample is made from a training image"
_ALIKE = (
    "training images are drawn as the held-out ones are, and the networks saw each only a few "
    "times: to figures that compare distributions, copies are as good as new images"
)
_AWAY = "the features move away from those of real images, all to the same side"

EXPECTED: dict[str, dict[str, tuple[Expectation, str]]] = {
    "blur": {
        "FD": ("up", _AWAY),
        "FD∞": ("up", _AWAY),
        "KID": ("up", _AWAY),
        "precision": ("down", _LEAVES),
        "recall": (
            "down",
            "blurred images are more alike: their balls shrink and reach fewer reals",
        ),
        "density": ("down", _LEAVES),
        "coverage": ("down", _LEAVES),
        MEMORISATION: ("none", f"{_NOT_TRAINING}; d₁ falls, but d₂ with it"),
    },
    "noise": {
        "FD": ("up", _AWAY),
        "FD∞": ("up", _AWAY),
        "KID": ("up", _AWAY),
        "precision": ("down", _LEAVES),
        "recall": (
            "either",
            "noise drives samples apart as well as away: it adds 2σ² to their squared distances "
            "from each other, the balls' radii, and only σ² to those from real images",
        ),
        "density": ("down", _LEAVES),
        "coverage": ("down", _LEAVES),
        MEMORISATION: ("none", f"{_NOT_TRAINING}; d₁/d₂ comes closer to 1"),
    },
    "shift": {
        "FD": ("up", "the networks were taught to overlook a pixel or so, not four"),
        "FD∞": ("up", "as FD"),
        "KID": ("up", "as FD"),
        "precision": ("down", _LEAVES),
        "recall": (
            "either",
            "what is no longer recognised lies between the classes: displaced, which lowers "
            "recall, and scattered, which widens the balls and raises it",
        ),
        "density": ("down", _LEAVES),
        "coverage": ("down", _LEAVES),
        MEMORISATION: ("none", _NOT_TRAINING),
    },
    "dropped classes": {
        "FD": ("up", "mean and covariance are those of a part of the data"),
        "FD∞": ("up", "as FD"),
        "KID": ("up", "the distributions differ"),
        "precision": (
            "either",
            "each sample is judged by itself, so it becomes the precision of the classes that are "
            "left, which may be above or below that of the others",
        ),
        "recall": ("down", "the dropped classes' images are out of reach"),
        "density": ("either", "as precision"),
        "coverage": ("down", "the dropped classes' images have no sample in their balls"),
        MEMORISATION: ("none", _NOT_TRAINING),
    },
    "duplicates": {
        "FD": ("up", "its bias is that of the distinct images, and they are fewer"),
        "FD∞": (
            "up",
            "it is extrapolated to infinitely many draws from the same few images, which stay "
            "some way from the data's distribution",
        ),
        "KID": ("up", "pairs of equal images count, k(x, x) is more than k(x, x') on average"),
        "precision": (
            "unchanged",
            "each distinct image is as real as before; with the 100 of the largest strength "
            "chance may still exceed an interval that takes the samples for 3,000",
        ),
        "recall": (
            "down",
            "from four equal images on the third neighbour is the image itself: balls of radius 0",
        ),
        "density": ("unchanged", "as precision, with the same caution"),
        "coverage": ("down", "it counts real images near a sample, and the places are fewer"),
        MEMORISATION: ("none", f"{_NOT_TRAINING}, however often it is repeated"),
    },
    "copies": {
        "FD": ("unchanged", _ALIKE),
        "FD∞": ("unchanged", _ALIKE),
        "KID": ("unchanged", _ALIKE),
        "precision": ("unchanged", _ALIKE),
        "recall": ("unchanged", _ALIKE),
        "density": ("unchanged", _ALIKE),
        "coverage": ("unchanged", _ALIKE),
        MEMORISATION: ("copies", "d₁ = 0"),
    },
    "noisy copies": {
        "FD": ("either", "two grey levels of noise may or may not be seen in features"),
        "FD∞": ("either", "as FD"),
        "KID": ("either", "as FD"),
        "precision": ("unchanged", "as copies; so little noise leaves few neighbourhoods"),
        "recall": ("unchanged", "as copies"),
        "density": ("unchanged", "as precision"),
        "coverage": ("unchanged", "as copies"),
        MEMORISATION: ("copies", "two grey levels are little beside the distance to other images"),
    },
    "mirrored copies": {
        "FD": ("up", "real shoes all point the same way, mirrored ones the other"),
        "FD∞": ("up", "as FD"),
        "KID": ("up", "as FD"),
        "precision": ("down", "mirrored shoes are like no real ones"),
        "recall": ("down", "real shoes are like no mirrored ones"),
        "density": ("down", "as precision"),
        "coverage": ("down", "as recall"),
        MEMORISATION: ("copies", "looked for where training mirrored its images, as is said here"),
    },
}
"""What was expected of each figure, and why: corruption -> figure -> (expectation, reason)."""

FIGURE_NAMES = (FRECHET, FRECHET_INFINITY, "KID", "precision", "recall", "density", "coverage")
"""What `unraze eval` calls them, in the order of FIGURES."""

STRENGTHS: dict[str, tuple[float, ...]] = {
    "blur": (0.4, 0.6, 1, 2),
    "noise": (2, 4, 8, 16, 32),
    "shift": (1, 2, 3, 4),
    "dropped classes": (1, 2, 3, 5),
    "duplicates": (2, 3, 5, 10, 30),
    "copies": (0.005, 0.01, 0.03, 0.1, 1),
    "noisy copies": (0.005, 0.01, 0.03, 0.1, 1),
    "mirrored copies": (0.005, 0.01, 0.03, 0.1, 1),
}
UNITS = {
    "blur": "σ in pixels",
    "noise": "σ in grey levels",
    "shift": "pixels to the right",
    "dropped classes": "classes left out",
    "duplicates": "times each image",
    "copies": "% of samples",
    "noisy copies": "% of samples",
    "mirrored copies": "% of samples",
}
COPY_NOISE = 2.0
"""Grey levels of noise on a noisy copy."""
UNDISTURBED = "undisturbed"
CLEAR = "no sign of copying"
REAL, SAMPLES = 3000, 3000
"""Held-out images, and samples; these are drawn from the 7,000 test images that are left."""
PAIRS, PAIR_SIZE = 30, 1000
"""Pairs of sets of training images on which intervals are tried, and the images in each set."""


@dataclass(frozen=True, eq=False)
class Material:
    """What is measured with: real images in three parts that share none, and feature spaces.

    Arguments:
        training: uint8 (M, C, H, W), what the feature networks have learned.
        held_out: (N, C, H, W), the real images of every figure.
        pool, labels: (P, C, H, W) and (P,), in random order; samples are the first `count` of them.
        spaces: of features.
        count: how many samples.
    """

    training: Array
    held_out: Array
    pool: Array
    labels: Array
    spaces: tuple[FeatureSpace, ...]
    count: int

    @staticmethod
    def of(
        training: Images, rest: Images, spaces: tuple[FeatureSpace, ...], real: int, count: int
    ) -> "Material":
        """From training images and others with labels, of which `real` become the held-out ones."""
        assert rest.labels is not None
        order = rng.permutation(0, "ruler", len(rest))
        pool = order[real:]
        return Material(
            training.pixels,
            rest.pixels[order[:real]],
            rest.pixels[pool],
            rest.labels[pool],
            tuple(_Remembered(space) for space in spaces),
            count,
        )


@dataclass(frozen=True)
class Measured:
    """One strength of one corruption.

    Arguments:
        corruption, strength: which; strength 0 for the undisturbed samples.
        spaces: for each feature space the figures, in the order of FIGURES.
        verdict: of the memorisation test; `words` its sentence.
        shares: of samples with d₁/d₂ under 1/3, in pixels and in each space.
    """

    corruption: str
    strength: float
    spaces: tuple[tuple[Figure, ...], ...]
    verdict: str
    words: str
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Results:
    """All that was measured; `spaces` are the feature spaces' names and hashes."""

    spaces: tuple[tuple[str, str], ...]
    training: int
    real: int
    samples: int
    rows: tuple[Measured, ...]


RESULTS = TypeAdapter(Results)


# ---------------------------------------------------------------------------------- spoiling


def spoilt(material: Material, corruption: str, strength: float) -> Array:
    """The samples uint8 (count, C, H, W), spoilt; the same ones more the larger the strength."""
    count = material.count
    honest = material.pool[:count]
    match corruption:
        case "undisturbed":
            return honest
        case "blur":
            around = (0.0, 0.0, strength, strength)
            return _bytes(ndimage.gaussian_filter(honest.astype(float), around, mode="nearest"))
        case "noise":
            return _noisy(honest, strength)
        case "shift":
            columns = np.arange(honest.shape[3]) - int(strength)
            return honest[..., np.maximum(columns, 0)]
        case "dropped classes":
            left = np.flatnonzero(material.labels >= int(strength))
            assert len(left) >= count, "the pool holds enough images of the other classes"
            return material.pool[left[:count]]
        case "duplicates":
            return np.resize(honest[: -(-count // int(strength))], honest.shape)
    share = round(strength * count)
    places = rng.permutation(0, "ruler places", count)[:share]
    copied = material.training[rng.permutation(0, "ruler copies", len(material.training))[:share]]
    match corruption:
        case "noisy copies":
            copied = _noisy(copied, COPY_NOISE)
        case "mirrored copies":
            copied = copied[..., ::-1]
        case "copies":
            pass
        case _:
            raise ValueError(f"there is no corruption {corruption}")
    mixed = honest.copy()
    mixed[places] = copied
    return mixed


def _noisy(pixels: Array, sigma: float) -> Array:
    noise = rng.generator(0, "ruler noise").standard_normal(pixels.shape)
    return _bytes(pixels + sigma * noise)


def _bytes(values: Array) -> Array:
    return np.rint(values).clip(0, 255).astype(np.uint8)


# --------------------------------------------------------------------------------- measuring


def measured(material: Material, corruption: str, strength: float) -> Measured:
    """The spoilt samples by every figure in every space, and what the memorisation test says."""
    samples = spoilt(material, corruption, strength)
    turned = material.training[..., ::-1].copy() if corruption == "mirrored copies" else None
    points = [
        Points(
            space.name,
            *(space.extract(x) for x in (samples, material.training, material.held_out)),
            None if turned is None else space.extract(turned),
        )
        for space in material.spaces
    ]
    found = [all_of(one.held_out, one.samples) for one in points]
    copies = finish(
        memorisation(samples, material.training, material.held_out, points, flip=turned is not None)
    )
    shares = tuple(one.share for one in copies.spaces)
    return Measured(corruption, float(strength), tuple(found), copies.verdict, copies.words, shares)


def all_of(real: Array, generated: Array) -> tuple[Figure, ...]:
    """The figures of features (N, d) and (N', d), in the order of FIGURES."""
    return (
        metrics.frechet(real, generated),
        metrics.frechet_infinity(real, generated),
        metrics.kid(real, generated),
        *metrics.precision_recall(real, generated),
        *metrics.density_coverage(real, generated),
    )


def repeated(features: Array, *, pairs: int, size: int) -> list[tuple[Figure, ...]]:
    """The figures of disjoint pairs of disjoint sets of `size` images, of features (N, d)."""
    order = rng.permutation(0, "ruler pairs", len(features))[: 2 * pairs * size]
    sets = features[order].reshape(pairs, 2, size, -1)
    return [all_of(real, generated) for real, generated in sets]


class _Remembered:
    """A feature space that knows the features of what it has seen: the real images come often."""

    def __init__(self, space: FeatureSpace) -> None:
        self.name, self.hash, self._extract = space.name, space.hash, space.extract
        self._known: dict[bytes, Array] = {}

    def extract(self, pixels: Array) -> Array:
        """uint8 (N, C, H, W) -> (N, dim)."""
        key = hashlib.sha256(np.ascontiguousarray(pixels)).digest()
        if key not in self._known:
            self._known[key] = self._extract(pixels)
        return self._known[key]


# ----------------------------------------------------------------------------------- judging


def direction(figure: Figure, undisturbed: Figure) -> Direction:
    """Where a figure went: up or down where the difference is real, or unchanged."""
    found = metrics.difference(figure, undisturbed)
    if not found.real:
        return "unchanged"
    return "up" if found.value > 0 else "down"


def met(expected: Expectation, seen: Sequence[str]) -> bool:
    """Whether what was seen, from the smallest strength to the largest, is what was expected."""
    match expected:
        case "up":
            return seen[-1] == "up" and "down" not in seen
        case "down":
            return seen[-1] == "down" and "up" not in seen
        case "unchanged":
            return set(seen) == {"unchanged"}
        case "none":
            return set(seen) == {CLEAR}
        case "copies":
            return seen[-1] == "copies"
        case "either":
            return True


def seen(undisturbed: Measured, rows: Sequence[Measured], space: int, name: str) -> tuple[str, ...]:
    """What was seen of a figure, or of the verdict, at each strength."""
    if name == MEMORISATION:
        return tuple(row.verdict for row in rows)
    place = FIGURES.index(name)
    before = undisturbed.spaces[space][place]
    return tuple(direction(row.spaces[space][place], before) for row in rows)


def disagreements(
    undisturbed: Measured, rows: Sequence[Measured]
) -> list[tuple[str, str, int, Expectation, tuple[str, ...]]]:
    """(corruption, figure, space, expected, seen) wherever the expectation is not met."""
    found = []
    for corruption, expectations in EXPECTED.items():
        ours = [row for row in rows if row.corruption == corruption]
        for name, (expected, _) in expectations.items():
            for space in range(len(undisturbed.spaces) if name != MEMORISATION else 1):
                what = seen(undisturbed, ours, space, name)
                if not met(expected, what):
                    found.append((corruption, name, space, expected, what))
    return found


# ------------------------------------------------------------------------------------ tables

SIGNS = {"up": "↑", "down": "↓", "unchanged": "=", "either": "?", CLEAR: "–", "copies": "c"}
"""A sign for every expectation and everything seen; "t" for "cannot tell"."""


def expected_table() -> str:
    """Rows are corruptions, columns figures, as they were expected."""
    rows = [
        [name, *(SIGNS.get(cells[figure][0], cells[figure][0]) for figure in HEADS)]
        for name, cells in EXPECTED.items()
    ]
    return _table(["", *HEADS], rows)


def seen_table(results: Results, space: int) -> str:
    """The same, as it was measured in one space: a sign a strength, bold where not as expected."""
    undisturbed = results.rows[0]
    rows = []
    for corruption, cells in EXPECTED.items():
        ours = [row for row in results.rows if row.corruption == corruption]
        line = [f"{corruption}, {_range(corruption)}"]
        for figure in HEADS:
            what = seen(undisturbed, ours, space, figure)
            signs = "".join(SIGNS.get(one, "t") for one in what)
            line.append(signs if met(cells[figure][0], what) else f"**{signs}**")
        rows.append(line)
    return _table(["", *HEADS], rows)


def value_table(results: Results, space: int) -> str:
    """The figures at every strength; the undisturbed ones with their intervals."""
    rows = []
    for row in results.rows:
        cells = []
        for name, figure in zip(FIGURES, row.spaces[space], strict=True):
            times, digits = (1000, 2) if name == "KID" else (1, 3)
            shown = f"{times * figure.value:.{digits}f}"
            if row.corruption == UNDISTURBED:
                shown += f" ({times * figure.low:.{digits}f} … {times * figure.high:.{digits}f})"
            cells.append(shown)
        strength = ""
        if row.corruption != UNDISTURBED:
            per_cent = " %" if UNITS[row.corruption] == "% of samples" else ""
            strength = f" {_shown(row.corruption, row.strength)}{per_cent}"
        cells.append(f"{100 * row.shares[0]:.1f} %, {100 * row.shares[space + 1]:.1f} %")
        rows.append([row.corruption + strength, *cells])
    heads = ["KID × 1000" if name == "KID" else name for name in FIGURES]
    return _table(["", *heads, "under 1/3"], rows)


def interval_table(measured: Sequence[tuple[Figure, ...]]) -> str:
    """Of repeated measurements: mean, spread, the intervals' mean half-width over 1.96 of it, and
    how many of the intervals hold the mean."""
    rows = []
    for name, figures in zip(FIGURES, zip(*measured, strict=True), strict=True):
        values = np.array([figure.value for figure in figures])
        mean, spread = values.mean(), values.std(ddof=1)
        half = np.mean([(figure.high - figure.low) / 2 for figure in figures])
        held = sum(figure.low <= mean <= figure.high for figure in figures)
        ratio = half / 1.96 / spread
        rows.append([name, f"{mean:.4f}", f"{spread:.4f}", f"{ratio:.2f}", f"{held}/{len(values)}"])
    return _table(["", "mean", "spread", "width", "held"], rows)


def reasons() -> str:
    """Every expectation with its reason, those that share one together."""
    lines = []
    for corruption, cells in EXPECTED.items():
        lines.append(f"{corruption}")
        by_reason: dict[tuple[str, str], list[str]] = {}
        for figure, (expected, because) in cells.items():
            by_reason.setdefault((expected, because), []).append(figure)
        for (expected, because), names in by_reason.items():
            lines.append(f"  {', '.join(names)} {expected}: {because}")
    return "\n".join(lines)


def _shown(corruption: str, strength: float) -> str:
    return f"{100 * strength:g}" if UNITS[corruption] == "% of samples" else f"{strength:g}"


def _range(corruption: str) -> str:
    per_cent = " %" if UNITS[corruption] == "% of samples" else ""
    return ", ".join(_shown(corruption, s) for s in STRENGTHS[corruption]) + per_cent


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    marks = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, marks, *rows)) + "\n"


# ----------------------------------------------------------------------------------- drawing

PAGES = {
    "ruler.png": ("blur", "noise", "shift", "dropped classes"),
    "ruler-copies.png": ("duplicates", "copies", "noisy copies", "mirrored copies"),
}
SHARE = "share under 1/3"


def draw(results: Results, out: Path) -> list[Path]:
    """A picture for each of PAGES: a row of panels a figure, a column a corruption."""
    files = []
    for name, corruptions in PAGES.items():
        figure = plots.figure(9.0, 11.4)
        panels = figure.subplots(len(FIGURES) + 1, len(corruptions), sharex="col", sharey="row")
        for column, corruption in enumerate(corruptions):
            ours = [row for row in results.rows if row.corruption == corruption]
            for row in range(len(FIGURES)):
                _figure_panel(panels[row, column], results, ours, row)
            _share_panel(panels[-1, column], results, ours)
            panels[0, column].set_title(corruption, loc="left", fontsize=11)
            panels[-1, column].set_xlabel(UNITS[corruption], color=plots.INK)
            panels[-1, column].set_xticks(
                range(len(ours) + 1), ["0", *(_shown(corruption, row.strength) for row in ours)]
            )
        for row, label in enumerate((*FIGURES, SHARE)):
            panels[row, 0].set_ylabel(label, color=plots.INK)
        figure.align_ylabels(panels[:, 0])
        figure.legend(
            *panels[-1, 0].get_legend_handles_labels(),
            loc="outside upper center",
            ncols=4,
            frameon=False,
            labelcolor=plots.INK,
        )
        plots.save(figure, out / name, {"figure": name})
        files.append(out / name)
    return files


def _figure_panel(axes: Axes, results: Results, rows: Sequence[Measured], place: int) -> None:
    """One figure by strength, in both spaces, with intervals; dashed: the undisturbed one."""
    plots.bare(axes)
    x = range(len(rows) + 1)
    for space in range(len(results.spaces)):
        line = [row.spaces[space][place] for row in (results.rows[0], *rows)]
        colour = plots.COLOURS[space]
        axes.fill_between(
            x, [f.low for f in line], [f.high for f in line], color=colour, alpha=0.25, lw=0
        )
        axes.plot(x, [f.value for f in line], "o-", color=colour, ms=3, lw=1.6)
        axes.axhline(line[0].value, color=colour, linestyle=(0, (5, 2)), lw=0.9)
    if FIGURES[place] in SCALES:
        axes.set_yscale("symlog", linthresh=SCALES[FIGURES[place]], linscale=0.5)


SCALES = {"FD": 0.1, "FD∞": 0.1, "KID": 0.001}
"""Distances: logarithmic above these."""


def _share_panel(axes: Axes, results: Results, rows: Sequence[Measured]) -> None:
    """The share of samples with d₁/d₂ under 1/3, in every space; a ring where they are called
    copies."""
    plots.bare(axes)
    every = (results.rows[0], *rows)
    names = [*(name for name, _ in results.spaces), "pixels"]
    for number, name in enumerate(names):
        place = 0 if name == "pixels" else number + 1
        share = [row.shares[place] for row in every]
        axes.plot(share, "o-", color=plots.COLOURS[number], ms=3, lw=1.6, label=name)
    called = [i for i, row in enumerate(every) if row.verdict == "copies"]
    at = [max(every[i].shares) for i in called]
    axes.plot(called, at, "o", mfc="none", mec=plots.INK, ms=9, label="called copies")
    axes.set_yscale("symlog", linthresh=0.001, linscale=0.3)
    axes.set_ylim(0, 1.5)
    axes.set_yticks([0, 0.001, 0.01, 0.1, 1], ["0", "0.1 %", "1 %", "10 %", "100 %"])


# --------------------------------------------------------------------------------- the script


def fashion_mnist() -> Material:
    """Fashion-MNIST: its training images, and its test images for all the rest."""
    source = DataConfig(source="fashion-mnist")
    training, rest = data.load(source), data.load(source, split="held-out")
    return Material.of(training, rest, finish(spaces(training, rest)), REAL, SAMPLES)


def measure(material: Material, told: Callable[[str], object]) -> Results:
    """All strengths of all corruptions; what was measured before is kept in the cache."""
    jobs = [(UNDISTURBED, 0.0)]
    jobs += [(name, strength) for name, every in STRENGTHS.items() for strength in every]
    hashes = [space.hash for space in material.spaces]
    folder = cache_folder() / "ruler" / key("ruler", hashes, len(material.held_out), material.count)
    rows = []
    for number, (name, strength) in enumerate(jobs, start=1):
        began = time.monotonic()
        file = folder / f"{name.replace(' ', '-')}-{strength:g}.json"

        def made(name: str = name, strength: float = strength) -> Generator[Stage, None, Measured]:
            yield Stage(name, 0, 1)
            return measured(material, name, strength)

        rows.append(finish(kept_part(file, TypeAdapter(Measured), made)))
        told(f"{number}/{len(jobs)} {name} {strength:g}: {time.monotonic() - began:.0f} s")
    return Results(
        spaces=tuple((space.name, space.hash) for space in material.spaces),
        training=len(material.training),
        real=len(material.held_out),
        samples=material.count,
        rows=tuple(rows),
    )


def tables(results: Results) -> str:
    """All that the page shows as tables, one after the other."""
    parts = [f"expected\n\n{expected_table()}"]
    for space, (name, digest) in enumerate(results.spaces):
        parts.append(f"seen in the {name} ({digest[:12]})\n\n{seen_table(results, space)}")
    for space, (name, _) in enumerate(results.spaces):
        parts.append(f"values in the {name}\n\n{value_table(results, space)}")
    return "\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "what", nargs="?", choices=("measure", "draw", "expected", "intervals"), default="measure"
    )
    parser.add_argument("--out", type=Path, default=FOLDER, help="another folder for the files")
    options = parser.parse_args(arguments)
    if options.what == "expected":
        print(f"{expected_table()}\n{reasons()}")
        return 0
    file = options.out / "ruler.json"
    try:
        if options.what == "intervals":
            material = fashion_mnist()
            for space in material.spaces:
                found = repeated(space.extract(material.training), pairs=PAIRS, size=PAIR_SIZE)
                print(f"{space.name}\n\n{interval_table(found)}")
            return 0
        if options.what == "measure":
            results = measure(fashion_mnist(), lambda line: print(line, file=sys.stderr))
            options.out.mkdir(parents=True, exist_ok=True)
            write_result(file, RESULTS, results)
        results = read_result(file, RESULTS)
        files = draw(results, options.out)
    except UnrazeError as error:
        print(f"{error}", file=sys.stderr)
        return error.exit_status
    print(tables(results))
    for corruption, figure, space, expected, what in disagreements(results.rows[0], results.rows):
        where = "" if figure == MEMORISATION else f" in the {results.spaces[space][0]}"
        print(f"not as expected: {corruption}, {figure}{where}: {expected}, {' '.join(what)}")
    for path in (file, *files):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
