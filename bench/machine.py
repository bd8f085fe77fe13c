"""What a measurement was made on and with."""

import os
import platform
import resource
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from unraze import __version__, environment  # isort: skip  (before torch, which reads it once)
import torch

environment.keep_freed_memory()  # as `unraze` does; what is measured beside it has it too

__all__ = ["forget_peak", "machine", "peak", "start", "versions"]

PACKAGES = ("torch", "numpy", "scipy", "diffusers", "azula", "denoising-diffusion-pytorch")


def machine() -> dict[str, Any]:
    """Processor, what of it torch uses, cores, memory, system, and versions."""
    lines = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    models = [line.split(":")[1].strip() for line in lines.splitlines() if "model name" in line]
    return {
        "processor": models[0] if models else platform.processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "memory, GiB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": platform.system(),
        "torch": torch.__version__,
        "unraze": __version__,
    }


def start() -> str:
    """What tells this machine, since it started, from others of the same name; "" where the system
    does not say."""
    file = Path("/proc/sys/kernel/random/boot_id")
    return file.read_text() if file.is_file() else ""


def versions() -> dict[str, str]:
    """Of Python and of the packages that are measured, or measured with; "" where there is none."""
    found = {"python": platform.python_version(), "unraze": __version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = ""
    return found


def peak() -> int:
    """Bytes that this process had in memory at most."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage begins with the peak of the process that made this one
        (line,) = (x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def forget_peak() -> None:
    """From now on `peak` is that of what follows; on Linux, elsewhere it stays."""
    file = Path("/proc/self/clear_refs")
    if file.exists():
        file.write_text("5")
