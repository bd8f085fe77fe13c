"""A run that nothing befell."""

import time
from pathlib import Path

import pytest
from processes import Forker, Whole, command, left_by, make_data


@pytest.fixture(scope="session")
def whole(forker: Forker, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    data, out = make_data(folder), folder / "run"
    # once for the features, which are kept from then on
    for path in (folder / "first" / "run", out):
        began = time.monotonic()
        log = str(folder / "log.txt")
        assert forker.finish("cli", argv=command(data, path), out=log) == 0, Path(log).read_text()
        seconds = time.monotonic() - began
    return Whole(data, out, left_by(out), seconds)
