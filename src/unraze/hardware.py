"""What this machine can do."""

import math
import os
import re
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from unraze.errors import InputError, UnrazeError

__all__ = [
    "Moment",
    "has_bfloat16",
    "memory",
    "memory_told",
    "moment",
    "peak_memory",
    "require_device",
    "require_kept",
    "require_pictures",
    "resident",
    "seconds_between",
]

GROUPS, OWN_GROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
"""Where Linux shows the control groups, and says which is this process's."""

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


def require_kept(count: int, shape: Sequence[int], given: str) -> None:
    """Raises `InputError`, which begins with what was given, where so many pictures (C, H, W), a
    byte a value, are more than the machine's memory."""
    if (needed := count * math.prod(shape)) > memory():
        raise InputError(
            f"{given}: so many pictures are {needed / 2**30:,.0f} GiB, more than this machine's "
            "memory; give fewer"
        )


def memory(device: str = "cpu") -> int:
    """The most bytes that this process may have on the device, free or not.

    A GPU's own memory; else the machine's, or what its control group (a container, a job of Slurm)
    or `ulimit -v` leaves of it. 2⁶³ where the system does not say.
    """
    if device.startswith("cuda"):
        return int(torch.cuda.get_device_properties(device).total_memory)
    if os.name != "posix":
        return 2**63
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(machine, _limit_of_group(), _limit_of_process())


def peak_memory(device: str = "cpu") -> int:
    """The most bytes that this process has had: of a GPU, what tensors took there; else of the
    machine's memory."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident() -> int:
    """Bytes of memory that this process has now, mapped files left out, which take none that others
    need; 0 where the system does not say."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    found = re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
    return 1024 * int(found[1]) if found else 0


@contextmanager
def memory_told(remedy: str) -> Iterator[None]:
    """Memory that could not be had in here is an `UnrazeError`, which ends with the remedy."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise UnrazeError(f"out of memory ({_first_sentence(error)}); {remedy}") from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # torch's of the processor is a plain one
            raise
        raise UnrazeError(f"out of memory ({_first_sentence(error)}); {remedy}") from error


def _first_sentence(error: BaseException) -> str:
    text = str(error).strip() or "no more could be had"
    return re.split(r"\. |\n", text)[0]


def _limit_of_group() -> int:
    """The least that this process's control group and those above it allow; 2⁶³ without one."""
    try:
        told = OWN_GROUP.read_text(encoding="utf-8")
    except OSError:
        return 2**63
    found = [2**63]
    for line in told.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        if number == "0":  # version 2
            top, file = GROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            top, file = GROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        inner = top / name.lstrip("/")
        # in a container the name may be the host's, and not there: then its own group is the top
        for folder in [inner, *inner.parents]:
            found.append(_number_in(folder / file))
            if folder == top:
                break
    return min(found)


def _number_in(file: Path) -> int:
    """2⁶³ where there is no such file, or no number in it ("max")."""
    try:
        text = file.read_text(encoding="ascii").strip()
    except OSError:
        return 2**63
    return int(text) if text.isdecimal() else 2**63


def _limit_of_process() -> int:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return 2**63 if limit == resource.RLIM_INFINITY else limit


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
