"""Randomness as a function of (seed, purpose, index): no state, so nothing depends on history.

Each stream is Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"):
the key is a hash of seed and purpose, the upper half of the counter is the index. Whatever the
micro-batch, the worker, the rank or the interruption, the numbers of (seed, purpose, index) are
the same.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

__all__ = ["generator", "normal", "permutation", "torch_seed", "uniform"]


WORTH_A_THREAD = 2**17
"""As many numbers take a millisecond; to begin a thread takes a tenth of that."""


def generator(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """The stream of (seed, purpose, index), from its beginning.

    `index` is at most two non-negative integers below 2⁶⁴ (an image and a step, say), one left out
    is 0; raises `ValueError` otherwise. Different arguments give statistically independent streams.
    """
    _check(*index)
    counter = np.zeros(4, dtype=np.uint64)
    counter[2 : 2 + len(index)] = index
    return np.random.Generator(np.random.Philox(key=_key(seed, purpose), counter=counter))


def normal(
    seed: int, purpose: str, samples: Sequence[int], step: int, shape: Sequence[int]
) -> torch.Tensor:
    """Standard normal float32 noise (len(samples), *shape); row i is that of samples[i] alone.

    Much of it is drawn by several threads, as many as torch has, which changes no number.
    """
    _check(step)
    out = np.empty((len(samples), *shape), dtype=np.float32)
    key = _key(seed, purpose)

    def fill(rows: slice) -> None:
        # one generator set to the beginning of each stream: to make one takes ten times as long
        bits = np.random.Philox(key=key)
        drawing, beginning = np.random.Generator(bits), bits.state
        # of shape () a row is no number
        for row, sample in zip(out[rows, ..., None], samples[rows], strict=True):
            _check(sample)
            beginning["state"]["counter"][2:] = sample, step
            bits.state = beginning
            drawing.standard_normal(dtype=np.float32, out=row)

    threads = min(torch.get_num_threads(), out.size // WORTH_A_THREAD, len(samples))
    if threads < 2:
        fill(slice(None))
        return torch.from_numpy(out)
    ends = [k * len(samples) // threads for k in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:  # numpy leaves the interpreter to others meanwhile
        list(pool.map(fill, map(slice, ends, ends[1:])))
    return torch.from_numpy(out)


def uniform(seed: int, purpose: str, count: int, *index: int) -> torch.Tensor:
    """`count` float64 numbers, uniform in [0, 1)."""
    return torch.from_numpy(generator(seed, purpose, *index).random(count))


def permutation(seed: int, purpose: str, count: int, *index: int) -> np.ndarray:
    """A uniformly drawn order of 0 … count-1, int64."""
    return generator(seed, purpose, *index).permutation(count)


def torch_seed(seed: int, purpose: str, *index: int) -> int:
    """A seed for dropout, or for torch's generator where a library draws from it (weights)."""
    return int(generator(seed, purpose, *index).integers(2**63))


def _check(*index: int) -> None:
    if len(index) > 2 or any(not 0 <= i < 2**64 for i in index):
        raise ValueError(f"index = {index}: at most two integers from 0 to 2⁶⁴ - 1")


def _key(seed: int, purpose: str) -> np.ndarray:
    digest = hashlib.blake2b(f"{seed}:{purpose}".encode(), digest_size=16).digest()
    return np.frombuffer(digest, dtype=np.uint64)
