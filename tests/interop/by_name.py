"""Weights and noise as a function of a name and a shape alone, the same wherever they are made.

The raw numbers of the counter-based generator Philox are the same in every release of NumPy; what a
release makes of them, as normal numbers, need not be, so the formula is here.
"""

import hashlib
import math

import numpy as np
import torch
from torch import Tensor


def uniform(name: str, shape: tuple[int, ...]) -> Tensor:
    """float32 in [-1, 1), of unit counter steps, keyed by the name's SHA-256."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
    raw = np.random.Philox(key=key).random_raw(math.prod(shape))
    values = (raw >> np.uint64(40)).astype(np.float64) / 2**23 - 1
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


def noise(name: str, shape: tuple[int, ...]) -> Tensor:
    """float32 of mean 0 and variance 1, uniform."""
    return uniform(name, shape) * 3**0.5


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """A weight of that name: gains about 1, biases about 0, filters that keep the variance."""
    values = uniform(name, shape)
    if name.endswith(".g"):
        return 1 + 0.3 * values
    if len(shape) == 1:
        return 0.3 * values
    if name.endswith("mem_kv"):
        return values
    return values * (3 / math.prod(shape[1:])) ** 0.5
