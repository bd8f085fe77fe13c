"""How the networks of features are trained: by labels, by contrast, or by filling in.

    labels     cross entropy with a twentieth of the label smoothed away
    contrast   l_i = -log exp(z_i·z_j/τ) / Σ_{k≠i} exp(z_i·z_k/τ), where z_i and z_j come from two
               views of one image (Chen et al. 2020, arXiv:2002.05709, eq. 1)
    fill in    ‖x - decoder(encoder(x with half its places blanked))‖² (He et al. 2021,
               arXiv:2111.06377, with convolutions and one code for the whole image)

The number of steps depends on the number of images alone, never on a clock; every random number is
a function of (seed, step); weights come out rounded to half precision, as they are kept. So the
same images give the same network on the same kind of processor.

Views and shifts move the image by whole pixels, change its contrast and take pieces out; they never
blur it nor add noise, so that features stay sensitive to that.
"""

import math
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import assert_never

from unraze.data import to_float
from unraze.errors import DivergedError
from unraze.evaluate.feature_networks import DIM, Depthwise, Net, Residual
from unraze.evaluate.stage import Stage
from unraze.rng import generator, permutation, torch_seed

__all__ = ["Recipe", "contrast", "encoded", "moved", "network", "steps_of", "trained"]

Array = np.ndarray[Any, Any]

TEMPERATURE = 0.2
SMOOTHING = 0.05
BLANKED = 0.5
"""The share of places that are blanked for filling in; a place is 4 x 4 pixels."""
EPOCHS, FEWEST_STEPS = 20, 200
REPORT = 10
BLOCK = 256


@dataclass(frozen=True)
class Recipe:
    """How one network is made.

    Arguments:
        name: of the feature space.
        objective: what it is trained for.
        design: which network.
        seed: of its first weights and of all that is random in training.
        steps: at most so many; 20 passes over few images are fewer.
        batch: images a step; for contrast each is seen twice.
        lr: the largest learning rate, after 5 % of the steps; it falls to 0 as a cosine.
    """

    name: str
    objective: Literal["labels", "contrast", "fill in"]
    design: Literal["residual", "depthwise"]
    seed: int
    steps: int
    batch: int
    lr: float


def steps_of(recipe: Recipe, count: int) -> int:
    """How many steps `count` images are trained on: EPOCHS passes, within 200 … `recipe.steps`."""
    return min(recipe.steps, max(FEWEST_STEPS, EPOCHS * count // min(recipe.batch, count)))


def network(recipe: Recipe, shape: tuple[int, int, int], classes: int) -> Net:
    """The untrained network for images (C, h, w): the same first weights for the same recipe."""
    channels, height, width = shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(recipe.seed, "evaluate-features-weights"))
        encoder: nn.Module
        match recipe.design:
            case "residual":
                encoder = Residual(channels)
            case "depthwise":
                flat = (height, width) if recipe.objective == "fill in" else None
                encoder = Depthwise(channels, flat_size=flat)
            case _:
                assert_never(recipe.design)
        head: nn.Module
        match recipe.objective:
            case "labels":
                head = nn.Linear(DIM, classes)
            case "contrast":
                head = nn.Sequential(
                    nn.Linear(DIM, 2 * DIM), nn.BatchNorm1d(2 * DIM), nn.ReLU(), nn.Linear(128, DIM)
                )
            case "fill in":
                head = _Decoder(channels, (height, width))
            case _:
                assert_never(recipe.objective)
    for weight in encoder.parameters():
        if weight.dim() == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return Net(encoder, head)


def trained(
    recipe: Recipe,
    pixels: Array,
    labels: Array | None,
    classes: int,
) -> Generator[Stage, None, Net]:
    """Trains a network on uint8 (N, C, h, w), at their working size already.

    `labels` int64 (N,) are needed for the objective of that name. Features are scaled so that a
    component's mean square over the images is 1. Raises `DivergedError` where they are not finite.
    """
    count = len(pixels)
    steps, size = steps_of(recipe, count), min(recipe.batch, count)
    net = network(recipe, pixels.shape[1:], classes)
    net.train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=recipe.lr, weight_decay=0.02)
    per_pass = count // size
    order = np.empty(0, dtype=np.int64)
    for step in range(steps):
        place = step % per_pass
        if place == 0:
            order = permutation(recipe.seed, "evaluate-features-order", count, step // per_pass)
        chosen = order[place * size : (place + 1) * size]
        with _one_thread():
            x = to_float(pixels[chosen])
            y = None if labels is None else torch.from_numpy(labels[chosen])
            random = generator(recipe.seed, "evaluate-features-views", step)
            loss = _loss(recipe, net, x, y, random)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * _warmed_cosine(step, steps)
            optimizer.step()
        if step % REPORT == 0:
            yield Stage(f"features: {recipe.name}", step, steps)
    net.eval().requires_grad_(False)
    _round_to_half(net)
    some = permutation(recipe.seed, "evaluate-features-scale", count)[:4096]
    with _one_thread():
        square = float(np.square(encoded(net, pixels[np.sort(some)]), dtype=np.float64).mean())
    if not math.isfinite(square):
        raise DivergedError(
            f"features: training the {recipe.name} on {count} images gave not-a-number; "
            "evaluate with features by a file (onnx:FILE) instead"
        )
    net.scale.fill_(1 / math.sqrt(max(square, 1e-12)))
    yield Stage(f"features: {recipe.name}", steps, steps)
    return net


def encoded(net: Net, pixels: Array, *, head: bool = False) -> Array:
    """Features float32 (N, 64) of uint8 (N, C, h, w), or what the head makes of them.

    Every call of the network is of 256 images, the last one filled up with black ones, so that an
    image's features do not depend on how many others there are.
    """
    out: list[Array] = []
    for first in range(0, len(pixels), BLOCK):
        part = pixels[first : first + BLOCK]
        whole = np.zeros((BLOCK, *pixels.shape[1:]), dtype=np.uint8)
        whole[: len(part)] = part
        with torch.inference_mode():
            x = to_float(whole)
            h = net(x) if head else net.features(x)
        out.append(h[: len(part)].numpy().astype(np.float32))
    return np.concatenate(out)


def moved(x: Tensor, random: np.random.Generator, *, strong: bool) -> Tensor:
    """Images (B, C, h, w) shifted by a pixel or so (a 24th of a side); where `strong`, by up to
    twice as much, of other contrast and brightness, and with a rectangle taken out.

    Shifts are by whole pixels; what comes in from outside repeats the border.
    """
    count, _, height, width = x.shape
    numbers = 7 if strong else 10  # as many as were drawn for the weights that come with unraze
    draw = torch.from_numpy(random.uniform(-1, 1, (count, numbers)).astype(np.float32))
    share = 12 if strong else 24
    rows = (draw[:, 0] * (height / share)).round().long()
    columns = (draw[:, 1] * (width / share)).round().long()
    i = (torch.arange(height)[None] + rows[:, None]).clamp(0, height - 1)
    j = (torch.arange(width)[None] + columns[:, None]).clamp(0, width - 1)
    b = torch.arange(count)[:, None, None]
    x = x.permute(0, 2, 3, 1)[b, i[:, :, None], j[:, None, :]].permute(0, 3, 1, 2)
    if not strong:
        return x
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    x = mean + (x - mean) * torch.exp(draw[:, 2])[:, None, None, None]
    x = x + 0.5 * draw[:, 3][:, None, None, None]
    return x * _kept(draw[:, 4:], height, width)


def contrast(z: Tensor) -> Tensor:
    """The mean of l_i over z (2B, d), brought to length 1; i and i + B are views of one image."""
    z = F.normalize(z, dim=1)
    likeness = (z @ z.T / TEMPERATURE).fill_diagonal_(-math.inf)
    other = torch.arange(len(z)).roll(len(z) // 2)
    return F.cross_entropy(likeness, other)


def _kept(draw: Tensor, height: int, width: int) -> Tensor:
    """(B, 1, h, w), 0 within a rectangle of a quarter to 3/8 of each side and 1 elsewhere."""
    half = 0.25 + 0.125 * (draw[:, 2] + 1) / 2
    y, x = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
    inside_y = (y[None] - draw[:, :1]).abs() < half[:, None]
    inside_x = (x[None] - draw[:, 1:2]).abs() < half[:, None]
    return (~(inside_y[:, :, None] & inside_x[:, None, :])).float()[:, None]


def _loss(
    recipe: Recipe, net: Net, x: Tensor, y: Tensor | None, random: np.random.Generator
) -> Tensor:
    match recipe.objective:
        case "labels":
            assert y is not None, "a classifier is trained where there are labels"
            out = net(moved(x, random, strong=False))
            return F.cross_entropy(out, y, label_smoothing=SMOOTHING)
        case "contrast":
            views = [moved(x, random, strong=True), moved(x, random, strong=True)]
            return contrast(net(torch.cat(views)))
        case "fill in":
            x = moved(x, random, strong=False)
            height, width = x.shape[2:]
            places = random.random((len(x), 1, -(-height // 4), -(-width // 4))) >= BLANKED
            shown = torch.from_numpy(places).float()
            shown = F.interpolate(shown, scale_factor=4.0)[:, :, :height, :width]
            error: Tensor = (net(x * shown) - x).square().mean()
            return error
        case _:
            assert_never(recipe.objective)


class _Decoder(nn.Module):
    """A code (B, 64) -> an image (B, C, h, w), from a quarter of its size."""

    def __init__(self, channels: int, size: tuple[int, int], width: int = 32) -> None:
        super().__init__()
        self.size, self.small = size, (-(-size[0] // 4), -(-size[1] // 4))
        self.spread = nn.Linear(DIM, width * self.small[0] * self.small[1])
        self.layers = nn.Sequential(
            nn.GELU(),
            nn.ConvTranspose2d(width, width, 4, stride=2, padding=1),
            nn.GELU(),
            nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1),
        )

    def forward(self, code: Tensor) -> Tensor:
        image: Tensor = self.layers(self.spread(code).unflatten(1, (-1, *self.small)))
        out: Tensor = image[:, :, : self.size[0], : self.size[1]]
        return out


def _warmed_cosine(step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / max(1.0, 0.05 * steps))
    return warm * 0.5 * (1 + math.cos(math.pi * step / steps))


def _round_to_half(net: Net) -> None:
    """Rounds matrices and filters, which are most of the bytes, to half precision in place."""
    for value in net.state_dict().values():
        if value.dim() >= 2:
            value.copy_(value.half().float())


@contextmanager
def _one_thread() -> Iterator[None]:
    """The order in which sums are added up depends on the threads; one is never waited for."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
