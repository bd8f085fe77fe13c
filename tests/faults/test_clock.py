"""Nothing depends on the time of day, which may jump."""

import os
from pathlib import Path

import pytest
from processes import Forker, Whole, command, left_by

from unraze import files
from unraze.data import cache
from unraze.evaluate.kept import write_bytes

pytestmark = pytest.mark.faults

LONG_AGO = 10 * 86400


def test_a_run_does_not_see_it(forker: Forker, whole: Whole, tmp_path: Path) -> None:
    """It jumps an hour on and a day back, further every time."""
    out = tmp_path / "run"
    assert forker.finish("cli", argv=command(whole.data, out), faults=[{"clock": "jumps"}]) == 0
    assert left_by(out) == whole.left


def test_a_set_that_is_being_made_is_left_alone_however_old_it_seems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNRAZE_CACHE", str(tmp_path))
    with cache.making("a" * 32, 1) as first:
        (first / "pixels").write_bytes(b"1")
        for path in (first, *first.iterdir()):
            os.utime(path, (LONG_AGO, LONG_AGO))
        with cache.making("b" * 32, 1) as second:
            (second / "pixels").write_bytes(b"2")
        assert (first / "pixels").exists()
    made = sorted((tmp_path / "images").iterdir())
    assert [path.name[0] for path in made] == ["a", "b"]
    assert [[file.name for file in path.iterdir()] for path in made] == [["pixels"]] * 2


def test_a_file_that_is_being_written_is_left_alone_however_old_it_seems(tmp_path: Path) -> None:
    part = files.temporary(tmp_path / "features.npz")
    part.write_bytes(b"half")
    os.utime(part, (LONG_AGO, LONG_AGO))
    write_bytes(tmp_path / "other.npz", b"whole")
    assert part.exists()
