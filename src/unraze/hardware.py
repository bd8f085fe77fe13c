"""What this machine can do."""

import math
import os
import re
import time
from collections.abc import Sequence

import torch

from unraze.errors import InputError

__all__ = [
    "Moment",
    "has_bfloat16",
    "memory",
    "moment",
    "require_device",
    "require_pictures",
    "seconds_between",
]

DEVICE = re.compile(r"(?:cpu|mps)(?::0)?|cuda(?::\d{1,3})?")
"""What can be asked for: torch knows more names, of which some compute nothing ("meta")."""


def has_bfloat16(kind: str) -> bool:
    """Whether a device of this kind, "cpu" or "cuda", multiplies bfloat16 in hardware."""
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    features = torch.cpu.get_capabilities() if kind == "cpu" else {}
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


def require_device(name: str) -> None:
    """Raises `InputError` where this machine has no such device."""
    remedy = "give cpu, cuda (cuda:1, …) or mps"
    if not DEVICE.fullmatch(name):
        raise InputError(f"device = {name!r}: is not a device to compute on; {remedy}")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(":")[0]
        raise InputError(f"device = {name!r}: cannot be used here ({reason}); {remedy}") from error


def require_pictures(count: int, shape: Sequence[int], device: str = "cpu") -> None:
    """Raises `InputError` where so many pictures (C, H, W) at once cannot be drawn, whatever the
    network: x_t, its noise, and what the network says of both, in float32, are more than there is.
    """
    needed = 16 * count * math.prod(shape)
    if needed > memory(device):
        raise InputError(
            f"{count} pictures of {' x '.join(map(str, shape[1:]))} at once need "
            f"{needed / 2**30:,.0f} GiB and more, this machine has {memory(device) / 2**30:,.0f}; "
            "give a smaller --batch, if the size is what it should be"
        )


def memory(device: str = "cpu") -> int:
    """The device's memory in bytes, free or not: the machine's, or that of a GPU of its own.

    2⁶³ where the system does not say.
    """
    if device.startswith("cuda"):
        return int(torch.cuda.get_device_properties(device).total_memory)
    if os.name != "posix":
        return 2**63
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


Moment = float | torch.cuda.Event


def moment(device: str = "cpu") -> Moment:
    """Now, as the device sees it: when all that it was given so far is done."""
    if not device.startswith("cuda"):
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def seconds_between(earlier: Moment, later: Moment) -> float:
    """Seconds from one moment of a device to another of the same that has passed."""
    if isinstance(earlier, float) or isinstance(later, float):
        assert isinstance(earlier, float)
        assert isinstance(later, float)
        return later - earlier
    return float(earlier.elapsed_time(later)) / 1000
