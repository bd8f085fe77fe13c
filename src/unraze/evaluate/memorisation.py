"""Does the model copy its training images?

For a sample x let d₁ be its distance to the nearest training image and d₂ that to the nearest
*other* one; duplicates and mirror images count as one (`unraze.evaluate.nearest_training`). Two
signs are looked for, in pixels and in every feature space:

    single copies    d₁/d₂ < 1/3: near one training image and far from all others
                     (the criterion of Yoon et al. 2023, "Diffusion probabilistic models generalize
                     when they fail to memorize", and of Gu et al. 2023, arXiv:2310.02664)
    close as a whole P(d₁ of a sample < d₁ of a real image), by Mann and Whitney's test
                     (Meehan et al. 2020, arXiv:2004.05675, their Z_U, without cells)

Neither means anything alone: a data set full of near-duplicates has both. So the same is asked of
real images that the model never saw, and of the training images themselves, each against the
others; that second group knows what the first cannot, how alike images of just this training set
are (the held-out part may be by other hands). A model copies where it exceeds both:

    single copies    the share of samples is larger, by Fisher's exact test, one-sided
    close as a whole d₁ and d₁/d₂ are both smaller, one-sided, and by much: in at least 3 of 4 pairs
                     of a sample and a real image. d₁ alone would accuse smooth samples and those
                     of few kinds, as these are near to everything; d₁/d₂ has no scale.

Each test is made at 1 % divided by their number, so that a model that draws as the data do is
accused at most once in 100. Where not even a tenth of copies among the samples would have been
noticed, the answer is that it cannot be told.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy
from PIL import Image

from unraze.data import evenly
from unraze.errors import DataError, InputError
from unraze.evaluate.nearest_training import (
    Nearest,
    Points,
    first_of_kind,
    known_points,
    near,
    near_others,
    numbered,
    pixels_of,
    require_images,
)
from unraze.evaluate.stage import Stage
from unraze.pictures import grid

__all__ = [
    "Memorisation",
    "Pair",
    "SpaceMemorisation",
    "Verdict",
    "memorisation",
    "worst_pairs",
]

Array = np.ndarray[Any, Any]
Verdict = Literal["copies", "no sign of copying", "cannot tell: too few"]

ALPHA = 0.01
"""How often, at most, a model that draws as the data do is accused, over all spaces and tests."""
RATIO = 1 / 3
"""d₁/d₂ below this is the mark of a single copy."""
CLOSE = 0.75
"""The share of pairs in which the sample must be the nearer one, for "close as a whole"."""
BLIND = 0.1
"""A share of copies that must have been noticeable for an acquittal."""
REFERENCES = 5000
"""Real images of each kind that the samples are compared with, at most; taken evenly."""
FEWEST_HELD_OUT = 20
"""Fewer held-out images than this are reported, but do not decide."""
WORST = 32
"""Pairs that are kept of each space."""
BETWEEN = 24
"""White pixels around a pair on the sheet: so many that it is seen which two belong together."""


@dataclass(frozen=True)
class Pair:
    """Sample number `sample` and its nearest training image, number `training`, as `Nearest`."""

    sample: int
    training: int
    mirrored: bool
    distance: float
    ratio: float


@dataclass(frozen=True)
class SpaceMemorisation:
    """What one space says.

    Arguments:
        space: its name, "pixels" for the first.
        share: of samples with d₁/d₂ under the stated ratio.
        share_held_out: the same of held-out images; None where there are none.
        share_training: the same of training images, each against the others.
        p_single: of Fisher's test that the samples' share is larger; the largest over the groups.
        closer: P(d₁ of a sample < d₁ of a real image), ties counted half; the least of the groups.
        closer_ratio: the same for d₁/d₂.
        z: Meehan et al.'s Z_U of d₁ against held-out images (training images where there are
            none): negative where samples are nearer, and below -3 by their rule of thumb a sign.
        detectable: the share of single copies, among samples that are otherwise as the real ones
            are, from which on p_single is expected to show them; None where no share would do.
        verdict: of this space.
        worst: the most suspicious pairs, by d₁/d₂, then d₁, smallest first. A training image that
            many samples are near is named once, with the worst of them.
    """

    space: str
    share: float
    share_held_out: float | None
    share_training: float
    p_single: float
    closer: float
    closer_ratio: float
    z: float
    detectable: float | None
    verdict: Verdict
    worst: tuple[Pair, ...]


@dataclass(frozen=True)
class Memorisation:
    """The verdict, in one word and in a sentence, and what each space says; plain data.

    `ratio` is the stated one; `generated`, `training`, `distinct` (training images that differ),
    `held_out` (those used) and `compared` (training images held against the others) are counts;
    `note` is what must be said beside it, empty where nothing.
    """

    verdict: Verdict
    words: str
    spaces: tuple[SpaceMemorisation, ...]
    ratio: float
    flip: bool
    generated: int
    training: int
    distinct: int
    held_out: int
    compared: int
    note: str = ""


def memorisation(
    generated: Array,
    training: Array,
    held_out: Array | None,
    spaces: Sequence[Points] = (),
    *,
    flip: bool,
    ratio: float = RATIO,
) -> Generator[Stage, None, Memorisation]:
    """Whether the samples hold copies of training images, in pixels and in each of the spaces.

    Arguments:
        generated, training, held_out: uint8 (N, C, H, W), in any numbers; held_out None or empty
            where there is none: then training images against each other are the only measure.
        spaces: the same images as points of feature spaces; pixels are looked at without them.
        flip: training mirrored its images, so that a mirrored copy is a copy.
        ratio: the stated bound of d₁/d₂, between 0 and 1.

    The stages count images looked up. Raises `DataError` for images that do not fit together, too
    few distinct training images, or points that are not those of the images or not finite;
    `InputError` for a ratio outside (0, 1).
    """
    real = training[:0] if held_out is None else held_out
    require_images(training, generated=generated, **({"held_out": real} if len(real) else {}))
    if not 0 < ratio < 1:
        raise InputError(f"ratio = {ratio:g}: give a number between 0 and 1")
    for points in spaces:
        _require_points(points, len(generated), len(training), len(real), flip)
    first = first_of_kind(training, flip)
    few, some = evenly(len(real), REFERENCES), evenly(len(first), REFERENCES)
    level = ALPHA / (2 * (1 + len(spaces)))
    found = []
    for points in (pixels_of(generated, training, real, flip=flip), *spaces):
        known = known_points(points, first)
        name = f"nearest to %s, {points.space}"
        ours = numbered((yield from near(known, points.samples, name % "samples")), first)
        unseen = None
        if len(real):
            unseen = yield from near(known, points.held_out[few], name % "held-out images")
        others = yield from near_others(known, some, name % "training images")
        found.append(_judged(points.space, ours, others, unseen, ratio, level))
    verdict = _overall([one.verdict for one in found])
    return Memorisation(
        verdict=verdict,
        words=_words(verdict, found, ratio),
        spaces=tuple(found),
        ratio=ratio,
        flip=flip,
        generated=len(generated),
        training=len(training),
        distinct=len(first),
        held_out=len(few),
        compared=len(some),
        note=_note(len(few)),
    )


def worst_pairs(
    space: SpaceMemorisation, generated: Array, training: Array, *, count: int = 16
) -> Image.Image:
    """A sheet of a space's most suspicious pairs, each a sample and, right of it, a training image.

    The arrays are those that `memorisation` was given; a mirrored image is shown mirrored. At most
    `count` pairs, and no more than were kept. Raises `InputError` for a count below 1.
    """
    if count < 1:
        raise InputError(f"count = {count}: give at least 1")
    pairs = space.worst[:count]
    ours = generated[[pair.sample for pair in pairs]]
    theirs = training[[pair.training for pair in pairs]]
    turned = np.array([pair.mirrored for pair in pairs])
    theirs[turned] = theirs[turned][..., ::-1]
    gap = np.full((*theirs.shape[:3], 1), 255, dtype=np.uint8)
    sheet = np.concatenate([ours, gap, theirs], axis=3)
    return grid(np.ascontiguousarray(sheet.transpose(0, 2, 3, 1)), padding=BETWEEN)


def _require_points(points: Points, samples: int, training: int, held_out: int, flip: bool) -> None:
    """Raises `DataError` unless there are finite points of all these images."""
    wanted = {"samples": samples, "training": training, "held_out": held_out}
    if flip:
        wanted["mirrored"] = training
    for name, count in wanted.items():
        rows = getattr(points, name)
        if rows is None or rows.ndim != 2 or len(rows) != count or not np.isfinite(rows).all():
            raise DataError(
                f"feature space {points.space}: its points of {name} are "
                f"{None if rows is None else rows.shape} for {count} images, or not finite; "
                f"give ({count}, d) finite numbers"
            )


def _judged(
    name: str,
    ours: Nearest,
    others: Nearest,
    unseen: Nearest | None,
    ratio: float,
    level: float,
) -> SpaceMemorisation:
    groups = [others]
    if unseen is not None and len(unseen.ratio) >= FEWEST_HELD_OUT:
        groups.append(unseen)
    n, hits = len(ours.ratio), int((ours.ratio < ratio).sum())
    counts = [(int((group.ratio < ratio).sum()), len(group.ratio)) for group in groups]
    p_single = max(_fisher(hits, n, *count) for count in counts)
    detectable = _detectable(n, counts, level)
    closeness = [_closer(ours.distance, group.distance) for group in groups]
    closeness_ratio = [_closer(ours.ratio, group.ratio) for group in groups]
    as_a_whole = all(p < level and share >= CLOSE for share, _, p in closeness + closeness_ratio)
    verdict: Verdict = "no sign of copying"
    if p_single < level or as_a_whole:
        verdict = "copies"
    elif detectable is None or detectable > BLIND:
        verdict = "cannot tell: too few"
    return SpaceMemorisation(
        space=name,
        share=hits / n,
        share_held_out=None if unseen is None else float((unseen.ratio < ratio).mean()),
        share_training=counts[0][0] / counts[0][1],
        p_single=p_single,
        closer=min(share for share, _, _ in closeness),
        closer_ratio=min(share for share, _, _ in closeness_ratio),
        z=_closer(ours.distance, (others if unseen is None else unseen).distance)[1],
        detectable=detectable,
        verdict=verdict,
        worst=_worst(ours),
    )


def _worst(near: Nearest) -> tuple[Pair, ...]:
    order = np.lexsort((near.distance, near.ratio))
    _, places = np.unique(near.training[order], return_index=True)
    return tuple(
        Pair(
            sample=int(i),
            training=int(near.training[i]),
            mirrored=bool(near.mirrored[i]),
            distance=float(near.distance[i]),
            ratio=float(near.ratio[i]),
        )
        for i in order[np.sort(places)][:WORST]
    )


def _fisher(hits: int, n: int, their_hits: int, m: int) -> float:
    """P(at least `hits` of the n), given hits + their_hits among n + m: Fisher's one-sided test."""
    return float(scipy.stats.hypergeom.sf(hits - 1, n + m, hits + their_hits, n))


def _detectable(n: int, counts: Sequence[tuple[int, int]], level: float) -> float | None:
    """The share c of copies, with c + (1-c) p of n the least that exceeds all counts by the test.

    p is the largest share of the counts, what honest samples have. The test's p-value falls as the
    hits rise, so the least number of them is found by halving. None where not even n will do.
    """

    def found(hits: int) -> bool:
        return all(_fisher(hits, n, *count) < level for count in counts)

    if not found(n):
        return None
    low, high = 0, n
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if found(middle) else (middle, high)
    honest = max(hits / m for hits, m in counts)
    return float((high / n - honest) / (1 - honest))


def _closer(ours: Array, theirs: Array) -> tuple[float, float, float]:
    """(P(ours < theirs), ties half; Z_U, negative where ours are smaller; the one-sided p)."""
    n, m = len(ours), len(theirs)
    both = np.concatenate([ours, theirs])
    ranks = scipy.stats.rankdata(both)
    above = float(ranks[:n].sum()) - n * (n + 1) / 2  # pairs in which ours is the larger
    ties = np.unique(both, return_counts=True)[1].astype(np.float64)
    total = n + m
    variance = n * m / 12 * (total + 1 - (ties**3 - ties).sum() / (total * (total - 1)))
    z = (above - n * m / 2) / np.sqrt(variance) if variance > 0 else 0.0
    return 1 - above / (n * m), float(z), float(scipy.stats.norm.cdf(z))


def _overall(verdicts: Sequence[Verdict]) -> Verdict:
    for verdict in ("copies", "no sign of copying"):
        if verdict in verdicts:
            return "copies" if verdict == "copies" else "no sign of copying"
    return "cannot tell: too few"


def _words(verdict: Verdict, found: Sequence[SpaceMemorisation], ratio: float) -> str:
    """The verdict as a sentence, with the numbers it rests on."""
    match verdict:
        case "copies":
            worst = min((one for one in found if one.verdict == verdict), key=lambda s: s.p_single)
            where = ", ".join(one.space for one in found if one.verdict == verdict)
            if worst.share_held_out is None:
                real = f"{worst.share_training:.1%} of training images among themselves"
            else:
                real = (
                    f"{worst.share_held_out:.1%} of held-out images and "
                    f"{worst.share_training:.1%} of training images among themselves"
                )
            return (
                f"copies (seen in {where}): {worst.share:.1%} of samples have d₁/d₂ under "
                f"{ratio:.2g}, {real} do; a sample is nearer to the training images than a real "
                f"image is in {worst.closer:.0%} of pairs"
            )
        case "no sign of copying":
            seen = [one for one in found if one.verdict == verdict]
            blind = [one.space for one in found if one.verdict != verdict]
            note = f"; {', '.join(blind)} cannot tell" if blind else ""
            sharpest = min(seen, key=lambda one: 1.0 if one.detectable is None else one.detectable)
            return (
                f"no sign of copying: single copies (d₁/d₂ under {ratio:.2g}) among "
                f"{sharpest.detectable:.1%} of the samples would have shown in "
                f"{sharpest.space}{note}"
            )
        case "cannot tell: too few":
            return (
                f"cannot tell: too few images, or too many near-duplicates among the real ones, to "
                f"notice copies among {BLIND:.0%} of the samples"
            )


def _note(held_out: int) -> str:
    if held_out == 0:
        return "no held-out images: samples are compared with training images among themselves"
    if held_out < FEWEST_HELD_OUT:
        return (
            f"{held_out} held-out image{'s are' if held_out > 1 else ' is'} too few to decide: "
            "samples are compared with training images among themselves"
        )
    return ""
