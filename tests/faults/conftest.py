"""A run that nothing befell, and a program that makes processes to which something does."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import Forker, Whole, command, forking, left_by, make_data


@pytest.fixture(scope="session")
def forker(cache: Path) -> Iterator[Forker]:
    """The forking program."""
    with forking() as running:
        yield running


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
