"""How the process computes, and whether it is one of several; asked without torch."""

import os
import sys
from collections.abc import Mapping

__all__ = ["are_several", "keep_freed_memory", "prepare_math"]

OPTIONS = {"MALLOC_TRIM_THRESHOLD_": -1, "MALLOC_MMAP_THRESHOLD_": -3}
"""What glibc gives back, by its variables in the environment and by its malloc.h."""
KEPT = 2**30
"""Bytes that are kept for what is asked for next."""


def are_several(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun, or what sets the same variables, started more than one process."""
    return environment.get("WORLD_SIZE", "") not in ("", "0", "1")


def prepare_math() -> None:
    """Asks the math libraries for the same bits at every call, and for threads that wait asleep.

    To be called before torch is first imported: MKL reads its environment once. Strict conditional
    numerical reproducibility makes results independent of how arrays lie in memory; a fixed number
    of threads makes them independent of what else the machine does. Threads that wait asleep cost
    a little on a quiet machine; threads that wait spinning made training three to eight times
    slower beside one other busy program on two cores. What the user has set stays.
    """
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
    os.environ.setdefault("MKL_DYNAMIC", "FALSE")
    os.environ.setdefault("OMP_DYNAMIC", "FALSE")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def keep_freed_memory() -> None:
    """Has glibc keep memory that is freed, up to `KEPT`, for what is asked for next; what the user
    chose stays.

    What a layer says is freed and asked for again in every step. Given back in between, its pages
    are emptied and mapped anew each time: thousands a step, tens of thousands for large pictures.
    """
    if sys.platform == "linux":
        import ctypes  # not needed to import the package

        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # other C libraries have none
            for variable, option in OPTIONS.items():
                if variable not in os.environ:
                    libc.mallopt(option, KEPT)
