"""Editing with the model of a run: which denoiser, which steps, which noise, in batches.

Each function yields the steps of every batch as `unraze.generate` does, the results last. Result k
of a seed depends on seed and k alone.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from typing_extensions import assert_never

from unraze import generate
from unraze.config import SampleConfig
from unraze.denoiser import Denoiser
from unraze.edit.composition import composed
from unraze.edit.inpainting import repaint, repaint_calls, repaint_steps, replaced
from unraze.edit.inversion import edit_friendly, invert
from unraze.edit.operators import Observed, only, shape_seen
from unraze.edit.restoration import diffpir, dps, held, mmps, pigdm
from unraze.edit.variation import below, slerp, varied_from
from unraze.errors import InputError
from unraze.generate import Model, Progress
from unraze.hardware import require_pictures
from unraze.samplers import Step, ddim, random
from unraze.schedule import Schedule
from unraze.walk import plan, walk

__all__ = [
    "INPAINTING",
    "METHODS",
    "Inpainting",
    "Inverted",
    "Method",
    "Walk",
    "Wish",
    "change_class",
    "inpaint",
    "interpolate",
    "inverted",
    "knows_unlabelled",
    "restore",
    "settings_for",
    "settings_to_inpaint",
    "settings_to_vary",
    "vary",
]

Method = Literal["mmps", "pigdm", "diffpir", "dps"]
METHODS: tuple[Method, ...] = get_args(Method)
"""Of restoration, `unraze.edit.restoration` says what each is."""
Inpainting = Literal[Method, "repaint", "replace"]
INPAINTING: tuple[Inpainting, ...] = get_args(Inpainting)

Walk = Literal["flow", "posterior", "repaint", "class"]
"""How an edit goes: along the flow; drawing from a posterior; as RePaint; with the noise found for
another class."""
WALKS: dict[Walk, dict[str, Any]] = {
    "flow": {"sampler": "ddim", "eta": 0.0},
    "posterior": {"sampler": "ddim", "eta": 1.0},
    "repaint": {
        "sampler": "random",
        "sigma": "beta_tilde",
        "sigma_share": None,
        "final_noise": False,
    },
    "class": {"sampler": "random", "sigma": "beta", "sigma_share": None, "final_noise": True},
}

REPEATS = 5
"""How often RePaint makes a step."""
STEPS = 50
"""Network calls where nothing is asked: posterior sampling needs more than pure drawing does."""
LEAST_SIGMA = 0.01
"""What a byte cannot tell, about 1/255 of [-1, 1] and some: less noise than that is not believed,
for no picture of a network's is that exact."""


@dataclass(frozen=True)
class Wish:
    """What all edits take: `count` results of a seed, as `settings` say, `batch` at once.

    `classes`: none, one, or several that are to hold together (`composed`), by number.
    """

    settings: SampleConfig
    count: int = 1
    seed: int = 0
    classes: tuple[int, ...] = ()
    batch: int = 64


@dataclass(frozen=True)
class Inverted:
    """What an inversion found: x_T (1, C, H, W), the picture made again from it, and the root of
    the mean squared difference between that and the picture, in units of [-1, 1]."""

    noise: Tensor
    again: Tensor
    error: float


def settings_for(model: Model, changes: dict[str, Any], *, by: Walk = "flow") -> SampleConfig:
    """How to edit with a model where nothing else is asked; raises `InputError`.

    In 50 calls, even in θ, unguided: by DDIM, which draws from a posterior with η = 1, or as the
    walk is.
    """
    usual: dict[str, Any] = WALKS[by] if "sampler" not in changes else {}
    usual = usual | {
        "steps": min(STEPS, model.schedule.steps),
        "spacing": "angle",
        "guidance": 1.0,
        "dtype": "float32",
    }
    return generate.changed(model.config.sample, usual | changes)


def settings_to_inpaint(
    model: Model, changes: dict[str, Any], *, method: Inpainting
) -> SampleConfig:
    """How to fill in by a method where nothing else is asked; raises `InputError`."""
    return settings_for(model, changes, by="repaint" if method == "repaint" else "posterior")


NOTHING = 1e-6
"""β̄ of a noise that is none: the picture in [-1, 1] has the same float32 numbers but for the last
few bits, and between it and 0 there is hardly another ᾱ."""


def settings_to_vary(model: Model, changes: dict[str, Any], *, guided: bool) -> SampleConfig:
    """How to vary an image with these changes: as the run samples, guided only where there is a
    class to be guided to, or guidance is asked for. Raises `InputError`."""
    settings = generate.asked(model, changes)
    if guided or "guidance" in changes:
        return settings
    return generate.changed(settings, {"guidance": 1.0})


@torch.no_grad()
def vary(model: Model, image: Tensor, wish: Wish, *, strength: float) -> Iterator[Progress]:
    """Variations of an image (C, H, W): destroyed to t = strength·T, and reconstructed from there.

    Strength 0 gives the image itself, 1 a picture that knows nothing of it. Raises `InputError` for
    another strength, or what the run cannot do.
    """
    if not 0 <= strength <= 1:
        raise InputError(f"strength = {strength:g}: give a number from 0, the image itself, to 1")
    _require(model, wish, image)
    image = image.to(generate.device_of(model))
    end = _end(model, strength)
    if _is_nothing(model, end):
        batches = _batches(wish)
        for done, numbers in enumerate(batches, 1):
            x = image.expand(len(numbers), -1, -1, -1).clone()
            yield Progress(numbers, 0.0, x, x, done, len(batches), finished=True)
        return
    (chain, states), borders = _part(model, wish.settings, end), _borders(model, end)

    def walked(numbers: range) -> Iterator[Step]:
        x = varied_from(model.schedule, image, end, generate.start(model, wish.seed, numbers))
        denoise = _denoiser(model, wish, len(numbers))
        noise = generate.noise_of(model, wish.seed, numbers)
        return walk(denoise, x, chain, wish.settings, noise, borders=borders)

    yield from _told(wish, states, walked)


@torch.no_grad()
def restore(
    model: Model, seen: Observed, wish: Wish, *, method: Method = "pigdm"
) -> Iterator[Progress]:
    """Pictures that may have been behind what is seen, y (1, …) = A(x_0) + σ n.

    Raises `InputError` where A does not fit the run's images, or gives another shape than y.
    """
    _require_no_jumps(model)
    _require(model, wish)
    _require_operator(model, seen)
    way = generate.plan_of(model, wish.settings)
    y = seen.y.to(generate.device_of(model))
    believed = Observed(y, seen.operator, max(seen.sigma, LEAST_SIGMA))

    def walked(numbers: range) -> Iterator[Step]:
        bare = _denoiser(model, wish, len(numbers), clipped=False)
        denoise = _given(method, model, way.chain, wish.settings, bare, believed, as_published=True)
        x = generate.start(model, wish.seed, numbers)
        noise = generate.noise_of(model, wish.seed, numbers)
        return walk(denoise, x, way.chain, wish.settings, noise)

    yield from _told(wish, way.states, walked)


@torch.no_grad()
def inpaint(
    model: Model,
    image: Tensor,
    unknown: Tensor,
    wish: Wish,
    *,
    method: Inpainting = "pigdm",
    repeats: int = REPEATS,
) -> Iterator[Progress]:
    """The image (C, H, W) with what is `unknown`, bool (H, W), drawn anew; the rest as it is.

    Known pixels are equal to the given ones to the bit, whatever the method. RePaint makes all
    steps but the last `repeats` times, and so fewer of them for its calls. Raises `InputError` for
    a mask of another size, or one that leaves nothing to draw or nothing known.
    """
    _require_no_jumps(model)
    _require(model, wish, image)
    if unknown.shape != image.shape[1:]:
        sizes = " and ".join(" x ".join(map(str, s)) for s in (unknown.shape, image.shape[1:]))
        raise InputError(f"mask: is of {sizes} pixels, mask and image: give one of the image's")
    if not bool(unknown.any()):
        raise InputError("mask: is empty, nothing is to be drawn; mark it white")
    if bool(unknown.all()):
        raise InputError("mask: covers the whole image, nothing is known; draw with unraze sample")
    image, known = (x.to(generate.device_of(model)) for x in (image, ~unknown))
    settings = wish.settings
    if method == "repaint":
        if not 1 <= repeats < settings.steps:
            raise InputError(
                f"repeats = {repeats}: give at least 1, and fewer than the {settings.steps} calls"
            )
        steps = repaint_steps(settings.steps, repeats=repeats)
        settings = generate.changed(settings, {"steps": steps})
    way = generate.plan_of(model, settings)
    chain, states = way.chain, way.states
    if method == "repaint":
        states = repaint_calls(chain.steps, repeats=repeats)

    def walked(numbers: range) -> Iterator[Step]:
        given = image.expand(len(numbers), -1, -1, -1)
        x = generate.start(model, wish.seed, numbers)
        noise = generate.noise_of(model, wish.seed, numbers)
        if method == "repaint":
            denoise = _denoiser(model, wish, len(numbers))
            how: dict[str, Any] = {"known": given, "mask": known, "repeats": repeats}
            return repaint(denoise, x, chain, noise=noise, **how)
        bare = _denoiser(model, wish, len(numbers), clipped=False)
        if method == "replace":
            denoise = generate.bounded(model, settings, bare)
        else:
            seen = Observed(given * known, only(known), LEAST_SIGMA)
            denoise = _given(method, model, chain, settings, bare, seen, as_published=False)
        denoise = replaced(denoise, model.schedule, given, known)
        return walk(denoise, x, chain, settings, noise)

    for moment in _told(wish, states, walked):
        x = torch.where(known, image, moment.x) if moment.finished else moment.x
        yield replace(moment, x=x)


@torch.no_grad()
def inverted(
    model: Model, image: Tensor, wish: Wish, *, iterations: int = 3
) -> Iterator[Progress | Inverted]:
    """The noise that DDIM takes to an image (C, H, W), and the picture that it makes of it.

    Yields the steps up and down, and what was found last.
    """
    _require_no_jumps(model)
    _require(model, wish, image)
    chain = _chain_of_inversion(model, wish)
    denoise = _alone(_denoiser(model, wish, 1))
    image = image.to(generate.device_of(model))
    steps, numbers, x = chain.steps, range(1), image[None]
    for done, step in enumerate(invert(denoise, x, chain, iterations=iterations), 1):
        x = step.x
        yield Progress(numbers, step.t, x, step.prediction.x0, done, 2 * steps, finished=False)
    noise = x
    for done, step in enumerate(ddim(denoise, noise, chain), steps + 1):
        x, end = step.x, step.t == 0
        yield Progress(numbers, step.t, x, step.prediction.x0, done, 2 * steps, finished=end)
    yield Inverted(noise, x, float((x - image[None]).square().mean().sqrt()))


@torch.no_grad()
def change_class(
    model: Model, image: Tensor, wish: Wish, *, of: tuple[int, ...], strength: float = 1.0
) -> Iterator[Progress]:
    """The image (C, H, W), of the classes `of`, as one of the wish's classes, its layout kept.

    The noise of random sampling that leads to it is found with its own classes (`edit_friendly`),
    and walked again with the others, from t = strength·T down, both side by side: two calls for
    each step. With the same classes, and the same guidance, it is the image again.
    """
    if not 0 < strength <= 1:
        raise InputError(f"strength = {strength:g}: give a number above 0, at most 1")
    _require_no_jumps(model)
    _require(model, wish, image)
    _require(model, replace(wish, classes=of))
    image = image.to(generate.device_of(model))
    end = _end(model, strength)
    end = end if model.config.loss.continuous else max(1.0, end)
    if _is_nothing(model, end):
        raise InputError(f"strength = {strength:g}: leaves the image as it is; give more")
    chain, _ = _part(model, wish.settings, end)

    def walked(numbers: range) -> Iterator[Step]:
        given = image.expand(len(numbers), -1, -1, -1)
        noise = generate.noise_of(model, wish.seed, numbers)
        denoise = _denoiser(model, replace(wish, classes=of), len(numbers))
        top, own = edit_friendly(denoise, given, chain, noise=noise)
        denoise = _denoiser(model, wish, len(numbers))
        return random(denoise, top, chain, noise=own, sigma="beta", final_noise=True)

    yield from _told(wish, chain.steps, walked)


@torch.no_grad()
def interpolate(
    model: Model,
    ends: tuple[Tensor, Tensor] | tuple[int, int],
    wish: Wish,
    *,
    iterations: int = 3,
) -> Iterator[Progress]:
    """`wish.count` pictures from one to the other: two images (C, H, W), or the drawings of two
    seeds.

    Their noise, of images the one that DDIM takes to them, is blended on the sphere, and
    reconstructed by DDIM.
    """
    if wish.count < 2:
        raise InputError(f"count = {wish.count}: give at least 2, the two ends")
    _require_no_jumps(model)
    _require(model, wish)
    chain = _chain_of_inversion(model, wish)
    found, made = [], 0
    total = chain.steps * (sum(isinstance(end, Tensor) for end in ends) + len(_batches(wish)))
    for end in ends:
        if isinstance(end, int):
            found.append(generate.start(model, end, range(1)))
            continue
        _require(model, wish, end)
        x = end[None].to(generate.device_of(model))
        denoise = _alone(_denoiser(model, wish, 1))
        for step in invert(denoise, x, chain, iterations=iterations):
            x, made = step.x, made + 1
            yield Progress(range(1), step.t, x, step.prediction.x0, made, total, finished=False)
        found.append(x)

    def walked(numbers: range) -> Iterator[Step]:
        shares = [k / (wish.count - 1) for k in numbers]
        x = torch.cat([slerp(found[0], found[1], share) for share in shares])
        denoise = _denoiser(model, wish, len(numbers))
        return ddim(_alone(denoise) if made else denoise, x, chain)

    yield from _told(wish, chain.steps, walked, made=made)


def _batches(wish: Wish) -> list[range]:
    return [range(k, min(k + wish.batch, wish.count)) for k in range(0, wish.count, wish.batch)]


def _told(
    wish: Wish, states: int, walked: Callable[[range], Iterator[Step]], *, made: int = 0
) -> Iterator[Progress]:
    """The steps of all batches, of so many states each, after so many that were made before."""
    batches = _batches(wish)
    total = made + states * len(batches)
    for numbers in batches:
        for step in walked(numbers):
            made += 1
            x, estimate = step.x, step.prediction.x0
            yield Progress(numbers, step.t, x, estimate, made, total, finished=step.t == 0)


def _denoiser(model: Model, wish: Wish, count: int, *, clipped: bool = True) -> Denoiser:
    """The network with the wish's classes, or with no label."""
    bare = generate.changed(wish.settings, {"clip": "none"})
    unguided = generate.changed(bare, {"guidance": 1.0})
    match wish.classes:
        case ():
            found = generate.denoiser_of(model, unguided, [None] * count)
        case (one,):
            found = generate.denoiser_of(model, bare, [one] * count)
        case several:
            each = [generate.denoiser_of(model, unguided, [one] * count) for one in several]
            nothing = generate.denoiser_of(model, unguided, [None] * count)
            scales = [wish.settings.guidance] * len(each)
            acts = generate.guided_between(model, wish.settings)
            found = composed(each, nothing, scales, interval=acts)
    return generate.bounded(model, wish.settings, found) if clipped else found


def _alone(denoise: Denoiser) -> Denoiser:
    """Without the estimate of the step before (self-conditioning), which on the way up is not that
    of the way down, so that neither would be the other's inverse."""
    return lambda x_t, t, *, previous=None: denoise(x_t, t)


def _given(
    method: Inpainting,
    model: Model,
    chain: Schedule,
    settings: SampleConfig,
    bare: Denoiser,
    seen: Observed,
    *,
    as_published: bool,
) -> Denoiser:
    """The `bare` denoiser, given what is seen, in the bounds of the settings; `as_published` is the
    weight of ΠGDM, which comes nearer to what is to be restored, and less near to what is to be
    filled in.

    What ΠGDM gives so, and DPS, moves the step, and is no estimate: what they begin from is held in
    the bounds. σ_data², a pixel's mean square, stands for its variance, which it is not below.
    """
    schedule, variance = model.schedule, model.sigma_data**2
    bound = partial(generate.bounded, model, settings)
    match method:
        case "mmps":
            return bound(mmps(bare, schedule, seen, variance=variance))
        case "pigdm" if as_published:
            return pigdm(held(bare, bound), schedule, seen, variance=variance, chain=chain)
        case "pigdm":
            return bound(pigdm(bare, schedule, seen, variance=variance))
        case "diffpir":
            return bound(diffpir(bare, schedule, seen, variance=variance))
        case "dps":
            return dps(held(bare, bound), chain, seen)
        case "repaint" | "replace":
            raise ValueError(f"method = {method}: is of inpainting alone")
        case _:
            assert_never(method)


def _end(model: Model, strength: float) -> float:
    """The training time t = strength·T, a whole one for a network that knows no other."""
    end = round(strength * float(model.schedule.times[-1]), 9)  # 0.07·300 is a little above 21
    return end if model.config.loss.continuous else float(round(end))


def _is_nothing(model: Model, t: float) -> bool:
    """Whether nothing of an image is destroyed at t."""
    _, beta_bar = model.schedule.at(torch.tensor(t, dtype=torch.float64))
    return bool(beta_bar < NOTHING)


def _part(model: Model, settings: SampleConfig, end: float) -> tuple[Schedule, int]:
    """The steps from the training time `end` down, and how many states: as many calls as of the
    whole way, but where the times are given those of them that are below."""
    loss, whole = model.config.loss, not model.config.loss.continuous
    if isinstance(settings.spacing, tuple) or loss.borders:
        chain = below(generate.plan_of(model, settings).chain, end)
        return chain, chain.steps
    lower = below(model.schedule, end)
    steps = min(settings.steps, lower.steps)
    found = plan(lower, generate.changed(settings, {"steps": steps}), whole=whole)
    return found.chain, found.states


def _chain_of_inversion(model: Model, wish: Wish) -> Schedule:
    """The steps up and down; raises `InputError` for one alone, which leaves nothing to invert."""
    chain = generate.plan_of(model, wish.settings).chain
    if chain.steps < 2:
        raise InputError("steps = 1: one step up leaves nothing of a picture; give 2 or more")
    return chain


def _borders(model: Model, end: float) -> tuple[float, ...]:
    """The times that a distilled network jumps to, from `end` down; else 0 alone."""
    borders = model.config.loss.borders
    return (0.0,) if not borders else (*(b for b in borders if b < end), end)


def _require(model: Model, wish: Wish, image: Tensor | None = None) -> None:
    """Raises `InputError` for what the run cannot do, or an image of another shape."""
    if wish.count < 1 or wish.batch < 1 or wish.seed < 0:
        raise InputError(
            f"count = {wish.count}, batch = {wish.batch}, seed = {wish.seed}: count and batch are "
            "at least 1, seed at least 0"
        )
    generate.check(model, wish.settings)
    require_pictures(min(wish.batch, wish.count), model.shape, str(generate.device_of(model)))
    if image is not None and image.shape != model.shape:
        raise InputError(f"image: is {_size(image.shape)}, the run's are {_size(model.shape)}")
    for one in wish.classes:
        generate.class_of(model, one, 0, wish.seed)
    if len(wish.classes) != 1 and not knows_unlabelled(model):
        named = ", ".join(map(str, wish.classes)) or "none"
        raise InputError(
            f"class = {named}: this run saw a label with every image (train.label_dropout = 0), so "
            "it does not know images without one; name one class"
        )
    if wish.settings.guidance != 1 and not wish.classes:
        raise InputError(
            f"guidance = {wish.settings.guidance:g}: name the class that it is to lead to"
        )


def knows_unlabelled(model: Model) -> bool:
    """Whether a model knows images that it is told nothing of."""
    return not model.num_classes or generate.can_be_guided(model)


def _require_no_jumps(model: Model) -> None:
    if model.config.distilled is not None:
        raise InputError(
            "this run was distilled: it says a picture of x_t, not the mean of those that it may "
            f"be, which this needs; edit with {model.config.distilled.run}, or use edit vary"
        )


def _require_operator(model: Model, seen: Observed) -> None:
    """Raises `InputError` where A does not take the run's images, or y is not of what it gives."""
    try:
        shape = shape_seen(seen.operator, model.shape)
    except ValueError as error:
        raise InputError(f"operator: {error}") from error
    if seen.y.shape[1:] != shape:
        raise InputError(
            f"image: is {_size(seen.y.shape[1:])}; of the run's images, {_size(model.shape)}, the "
            f"operator makes {_size(shape)}"
        )


def _size(shape: torch.Size | tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
