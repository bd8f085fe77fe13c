"""When a training is to stop, for tests."""

from collections.abc import Callable

from unraze import run as runs
from unraze.run import Run


def after_step(run: Run, step: int) -> Callable[[], bool]:
    """The stop question of a run, which says yes once it has made this step."""

    def asked() -> bool:
        rows = runs.read_rows(run.stats)
        return bool(rows) and rows[-1]["step"] >= step

    return asked
