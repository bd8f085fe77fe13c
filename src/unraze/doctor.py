"""What this machine is, and how fast the two operations are that training consists of.

GFLOP/s count a multiplication and an addition as two: 2 n³ for the product of two n x n matrices,
2 · 9 · C_in · C_out · H · W · B for a 3 x 3 convolution.
"""

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from unraze import __version__
from unraze.config import LeanConfig
from unraze.nn import build

__all__ = [
    "Speed",
    "conv_speed",
    "flops_an_image",
    "gflops",
    "matmul_speed",
    "measure",
    "versions",
]

PACKAGES = ("torch", "numpy", "pydantic", "Pillow", "safetensors")


@dataclass(frozen=True)
class Speed:
    """GFLOP/s of a product of matrices and of a 3 x 3 convolution in one dtype."""

    dtype: str
    matmul: float
    conv: float


def versions() -> dict[str, str]:
    """Package and machine, in words."""
    return {
        "unraze": __version__,
        "python": platform.python_version(),
        **{name.lower(): version(name) for name in PACKAGES},
        "torch": str(torch.__version__),  # with the platform it is built for, as +cu130
        "system": platform.platform(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "MKL_CBWR": os.environ.get("MKL_CBWR", "not set"),
        "devices": ", ".join(["cpu", *_accelerators()]),
    }


def measure(device: str = "cpu", *, seconds: float = 0.4) -> list[Speed]:
    """Both operations in float32 and bfloat16, each measured for about `seconds`."""
    return [
        Speed(
            name,
            matmul_speed(dtype, device=device, seconds=seconds),
            conv_speed(dtype, device=device, seconds=seconds),
        )
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
    ]


def matmul_speed(
    dtype: torch.dtype, *, device: str = "cpu", size: int = 1024, seconds: float = 0.4
) -> float:
    """GFLOP/s of the product of two size x size matrices."""
    a = torch.ones(size, size, dtype=dtype, device=device)
    b = torch.ones(size, size, dtype=dtype, device=device)
    return gflops(lambda: a @ b, 2.0 * size**3, seconds=seconds)


def conv_speed(
    dtype: torch.dtype,
    *,
    device: str = "cpu",
    batch: int = 32,
    channels: int = 64,
    side: int = 14,
    seconds: float = 0.4,
) -> float:
    """GFLOP/s of a 3 x 3 convolution, channels last, of the shape that `fast` has at its finest."""
    x = torch.ones(batch, channels, side, side, dtype=dtype, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    conv = nn.Conv2d(channels, channels, 3, padding=1, device=device, dtype=dtype)
    conv = conv.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    work = 2.0 * 9 * channels**2 * side**2 * batch
    with torch.no_grad():
        return gflops(lambda: conv(x), work, seconds=seconds)


def gflops(operation: Callable[[], Tensor], work: float, *, seconds: float) -> float:
    """Billions of operations a second: `work` each time over the median time of one."""
    times: list[float] = []
    operation()
    started = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - started < seconds:
        before = time.perf_counter()
        last = operation()
        if last.device.type != "cpu":
            torch.accelerator.synchronize()
        times.append(time.perf_counter() - before)
    return work / sorted(times)[len(times) // 2] / 1e9


def flops_an_image(*, channels: int = 1, side: int = 28) -> float:
    """Operations to train the default network on one image: forward and backward, counted."""
    network = build(LeanConfig(), channels=channels, size=(side, side))
    x, t = torch.zeros(1, channels, side, side), torch.zeros(1)
    counter = FlopCounterMode(display=False)
    with counter:
        network(x, t).sum().backward()
    return float(counter.get_total_flops())


def _accelerators() -> list[str]:
    found = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    return found + (["mps"] if torch.backends.mps.is_available() else [])
