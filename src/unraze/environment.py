"""What torch and the math libraries read from the environment when they are first imported."""

import os

__all__ = ["prepare_math"]


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
