"""Changes of place and shape of training images that the network is told of, so that its samples
show none of them.

Seen from the centre, a pixel at x = (column, row) comes to y:

    y = exp(k E) R_φ 2^(a_3/5) diag(1 - 2 a_1, 1 - 2 a_2) x + d,   k = (ln 2)/5

    a_1, a_2           0 or 1      mirrored left to right, upside down
    a_3                N(0, 1)     larger, where above 0
    φ                  U(-π, π)    turned, from columns to rows
    E = (e_1  e_2)     e = n (cos 2ψ, sin 2ψ), n of N(0, 1), ψ of U(0, π):
        (e_2 -e_1)     2^(n/5) as long in the direction ψ, as much shorter across
    d = (W d_1, H d_2)/8     d_1, d_2 of N(0, 1), then d rounded to whole pixels

Each of the six is made with a chance p, whether the others are or not (a mirror with p/2, as a fair
coin is thrown besides). The label tells the network what was done, and is 0 for an image as it is:

    a = (a_1, a_2, a_3, cos φ - 1, sin φ, e_1, e_2, d_1, d_2)

Samples are drawn with a = 0, so that what is learned from the changed images is not drawn. Source:
Karras et al. 2022, arXiv:2206.00364, appendix F.2 and table 6; after Jun et al. 2020 and Karras et
al. 2020, arXiv:2006.06676. Otherwise than there, the angle ψ is doubled, by which a stretching has
one label and not two, and shifts are whole: mirrors and shifts alone resample nothing.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from unraze.config import Config, LeanConfig, UNetConfig

__all__ = ["DRAWS", "VALUES", "augmented", "chance_for", "drawn"]

VALUES = 9
"""The length of a label."""
DRAWS = 12
"""Uniform numbers that the label of an image is made from."""
FEW = 10_000
"""Fewer images than these are changed where it goes by their number."""
USUAL = 0.12
"""The chance that they are with: Karras et al.'s for CIFAR-10, their table 6."""
STEP = math.log(2) / 5
"""k: what a_3 = 1 or |e| = 1 does, as the logarithm of a length."""


def chance_for(config: Config, images: int) -> float:
    """The chance p for so many images to train on: what the configuration says, or where that is
    "auto" what their number does, and 0 for networks that cannot be told."""
    if config.data.augment != "auto":
        return config.data.augment
    can_be_told = isinstance(config.network, LeanConfig | UNetConfig)
    return USUAL if can_be_told and images < FEW else 0.0


def drawn(u: Tensor, p: float, size: tuple[int, int]) -> Tensor:
    """The labels a (B, 9), float64, for uniform numbers u (B, 12) in [0, 1).

    `p` is the chance of each change, `size` height and width in pixels. Raises `ValueError` for a
    chance that is none and for another shape of u.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p = {p}: a chance is from 0 to 1")
    if u.ndim != 2 or u.shape[1] != DRAWS:
        raise ValueError(f"u has shape {tuple(u.shape)}: give (B, {DRAWS})")
    u = u.double()
    mirrors = u[:, :2] < p / 2
    scaled, turned, stretched, shifted = (u[:, 2:6] < p).hsplit(4)
    phi, psi = 2 * torch.pi * u[:, 6:7] - torch.pi, torch.pi * u[:, 7:8]
    normal = torch.special.ndtri(u[:, 8:].clamp(1e-12, 1 - 1e-12))
    eighths = torch.tensor([size[1], size[0]], dtype=torch.float64) / 8
    return torch.cat(
        (
            mirrors,
            scaled * normal[:, :1],
            turned * torch.cat((phi.cos() - 1, phi.sin()), dim=1),
            stretched * normal[:, 1:2] * torch.cat(((2 * psi).cos(), (2 * psi).sin()), dim=1),
            shifted * (normal[:, 2:] * eighths).round() / eighths,
        ),
        dim=1,
    )


def augmented(x: Tensor, a: Tensor) -> Tensor:
    """Images x (B, C, H, W) in [-1, 1], changed as their labels a (B, 9) say.

    Pixels are interpolated once, for all changes together, by a bicubic filter, and cut off at -1
    and 1; what comes from beyond the border is mirrored at it. Mirrors and whole shifts are exact,
    and a label of 0 gives the image itself. An image does not depend on the others. Raises
    `ValueError` for labels of another shape.
    """
    if a.shape != (len(x), VALUES):
        raise ValueError(f"a has shape {tuple(a.shape)}: give ({len(x)}, {VALUES})")
    height, width = x.shape[2:]
    a = a.double()
    shift = a[:, 7:] * torch.tensor([width, height], dtype=torch.float64) / 8
    exact = (a[:, 2:7] == 0).all(1) & ((shift - shift.round()).abs() < 1e-6).all(1)
    out = x.clone()
    for rows, mode in ((exact & a.any(1), "nearest"), (~exact, "bicubic")):
        places = _sources(a[rows], shift[rows], height, width).to(x)
        changed = F.grid_sample(
            x[rows], places, mode=mode, padding_mode="reflection", align_corners=False
        )
        out[rows] = changed.clamp(-1, 1)
    return out


def _sources(a: Tensor, shift: Tensor, height: int, width: int) -> Tensor:
    """Where each pixel comes from, (B, H, W, 2), the picture being [-1, 1]².

    x = diag(…) 2^(-a_3/5) R_φᵀ exp(-k E) (y - d),   exp(-k E) = cosh(k|e|) - E sinh(k|e|)/|e|
    """
    mirror, c, s = 1 - 2 * a[:, :2], 1 + a[:, 3], a[:, 4]
    turn_back = torch.stack((c, s, -s, c), dim=1).reshape(-1, 2, 2, 1)
    e_1, e_2 = a[:, 5], a[:, 6]
    r = torch.hypot(e_1, e_2).clamp(min=1e-9)
    even, odd = torch.cosh(STEP * r), torch.sinh(STEP * r) / r
    shrink = torch.stack((even - odd * e_1, -odd * e_2, -odd * e_2, even + odd * e_1), dim=1)
    # not `@`, whose last bit may depend on how many there are
    m = (turn_back * shrink.reshape(-1, 1, 2, 2)).sum(2)
    m = (mirror * torch.exp(-STEP * a[:, 2:3]))[:, :, None] * m
    columns = torch.arange(width, dtype=torch.float64) - (width - 1) / 2 - shift[:, :1]
    rows = torch.arange(height, dtype=torch.float64) - (height - 1) / 2 - shift[:, 1:]
    x = m[:, :, 0, None, None] * columns[:, None, None, :]
    x = x + m[:, :, 1, None, None] * rows[:, None, :, None]
    return torch.stack((x[:, 0] * (2 / width), x[:, 1] * (2 / height)), dim=3)
