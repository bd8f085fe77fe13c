"""A disk that is full, or may not be written, and checkpoints that it does not give back whole."""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from processes import Forker, Whole, command, command_for, half_made, left_by

from unraze import checkpoint
from unraze.run import Run

pytestmark = pytest.mark.faults


def goes_on(forker: Forker, whole: Whole, out: Path) -> None:
    """Once there is room the run ends as the whole one did."""
    log = out.parent.with_suffix(".log")
    assert forker.finish("cli", argv=command_for(whole.data, out), out=str(log)) == 0, (
        log.read_text()
    )
    assert left_by(out) == whole.left
    assert half_made(out) == []


def is_told(log: Path, *words: str) -> None:
    """The error is one line, the last, with these words, and no traceback is above it."""
    text = log.read_text()
    *above, last = text.splitlines()
    assert last.startswith("unraze: error: "), text
    for word in words:
        assert word in last, last
    assert not any("error" in line or "Traceback" in line for line in above), text


@pytest.mark.parametrize("some", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_full_from_some_change_on(forker: Forker, whole: Whole, tmp_path: Path, some: int) -> None:
    """Whatever needs room is refused from then on: files, folders, what is flushed."""
    fault = {"full from change": 10**9, "below": str(tmp_path / "counted")}
    count, counted = tmp_path / "count", tmp_path / "counted" / "run"
    argv = command(whole.data, counted)
    assert forker.finish("cli", argv=argv, faults=[fault], count=str(count)) == 0
    changes = int(count.read_text())
    assert changes > 50
    # the first ones are those before there is a run
    for at in [2, *random.Random(some).sample(range(3, changes + 1), some - 1)]:
        out, log = tmp_path / str(at) / "run", tmp_path / f"{at}.txt"
        fault = {"full from change": at, "below": str(out.parent)}
        job = {"argv": command(whole.data, out), "out": str(log)}
        assert forker.finish("cli", faults=[fault], **job) == 1, log.read_text()
        is_told(log, str(out), "the disk is full")
        goes_on(forker, whole, out)


@contextmanager
def small_disk(place: Path, kib: int) -> Iterator[None]:
    """A file system of so many KiB; skips where none may be mounted."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(place)]
    try:
        made = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if made.returncode:
        pytest.skip(f"no file system may be mounted here: {made.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system")
@pytest.mark.parametrize("some", [1, pytest.param(30, marks=pytest.mark.slow)])
def test_a_small_disk(forker: Forker, whole: Whole, tmp_path: Path, some: int) -> None:
    """A real one, of sizes from almost nothing to almost enough: it may be full within a line."""
    needed = sum(p.stat().st_size for p in whole.path.rglob("*") if p.is_file()) // 1024
    refused = 0
    for kib in random.Random(some).sample(range(4, needed, 4), some):
        place, log = tmp_path / str(kib), tmp_path / f"{kib}.txt"
        with small_disk(place, kib):
            out = place / "run"
            job = {"argv": command(whole.data, out), "out": str(log)}
            if forker.finish("cli", **job) == 1:
                refused += 1
                is_told(log, str(out), "the disk is full")
            subprocess.run(["mount", "-o", "remount,size=64m", str(place)], check=True)
            goes_on(forker, whole, out)
    assert refused


@pytest.mark.skipif(sys.platform != "linux", reason="root is bound by nothing elsewhere")
@pytest.mark.parametrize("which", [".", "checkpoints", "samples"])
def test_a_folder_that_may_not_be_written(
    forker: Forker, whole: Whole, tmp_path: Path, which: str
) -> None:
    out, log = tmp_path / "run", tmp_path / "log.txt"
    shutil.copytree(whole.path, out)
    shutil.rmtree(checkpoint.listing(Run(out).checkpoints)[-1])  # there is something to do
    (out / "samples" / "step-00000016.png").unlink()
    before = {p: p.read_bytes() for p in out.rglob("checkpoints/*/*")}
    (out / which).chmod(0o555)
    job = {"argv": ["resume", str(out)], "out": str(log), "bound by permissions": True}
    ended = forker.finish("cli", **job)
    (out / which).chmod(0o755)
    assert ended == 1, log.read_text()
    is_told(log, str(out / which), "Permission denied")
    assert {p: p.read_bytes() for p in out.rglob("checkpoints/*/*")} == before
    goes_on(forker, whole, out)


@pytest.mark.skipif(sys.platform != "linux", reason="root is bound by nothing elsewhere")
@pytest.mark.parametrize("which", ["ema.safetensors", "state.json"])
def test_a_checkpoint_that_cannot_be_read_now(
    forker: Forker, whole: Whole, tmp_path: Path, which: str
) -> None:
    """It is no damaged one: the run ends and leaves it as it is."""
    out, log = tmp_path / "run", tmp_path / "log.txt"
    shutil.copytree(whole.path, out)
    *_, newest = checkpoint.listing(Run(out).checkpoints)
    place = newest / which
    before = {p: p.read_bytes() for p in out.rglob("checkpoints/*/*")}
    mode = place.stat().st_mode
    place.chmod(0)
    job = {"argv": ["resume", str(out)], "out": str(log), "bound by permissions": True}
    ended = forker.finish("cli", **job)
    place.chmod(mode)
    assert ended == 1, log.read_text()
    is_told(log, str(place), "cannot be read now", "Permission denied")
    assert {p: p.read_bytes() for p in out.rglob("checkpoints/*/*")} == before
    goes_on(forker, whole, out)


@pytest.mark.skipif(sys.platform != "linux", reason="root is bound by nothing elsewhere")
def test_a_run_is_not_begun_where_nothing_may_be_written(
    forker: Forker, whole: Whole, tmp_path: Path
) -> None:
    place, log = tmp_path / "place", tmp_path / "log.txt"
    place.mkdir(mode=0o555)
    job = {"argv": command(whole.data, place / "run"), "out": str(log)}
    assert forker.finish("cli", **job, **{"bound by permissions": True}) in (1, 2)
    is_told(log, str(place), "choose another place")
    place.chmod(0o755)


@pytest.fixture(scope="module")
def another(forker: Forker, whole: Whole, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of another seed."""
    out = tmp_path_factory.mktemp("another") / "run"
    assert forker.finish("cli", argv=command(whole.data, out, seed=1)) == 0
    return out


FILES = ["model.safetensors", "ema.safetensors", "optim.safetensors", "state.json"]


def spoil(folder: Path, how: str, other: Path, chance: random.Random) -> str:
    """Damages a checkpoint; what is to be named."""
    file = folder / chance.choice(FILES)
    data = bytearray(file.read_bytes())
    match how:
        case "cut off":
            file.write_bytes(data[: chance.randrange(1, len(data))])
        case "flipped":
            place = chance.randrange(len(data))
            data[place] ^= 1 << chance.randrange(8)
            file.write_bytes(data)
        case "emptied":
            file.write_bytes(b"")
        case "part of another":
            file = folder / chance.choice(FILES[:3])
            shutil.copy(other / file.name, file)
        case "another's":
            shutil.rmtree(folder)
            shutil.copytree(other, folder)
            return f"{folder}: is a checkpoint of another run"
        case _:
            raise ValueError(how)
    return str(file)


@pytest.mark.parametrize("times", [1, pytest.param(25, marks=pytest.mark.slow)])
@pytest.mark.parametrize("how", ["cut off", "flipped", "emptied", "part of another", "another's"])
def test_a_checkpoint_that_is_not_whole(
    forker: Forker, whole: Whole, another: Path, tmp_path: Path, how: str, times: int
) -> None:
    """It is named, and the one before is gone on from, to the same bytes."""
    chance = random.Random(f"{how} {times}")
    for number in range(times):
        out = tmp_path / str(number) / "run"
        shutil.copytree(whole.path, out)
        newest = checkpoint.listing(Run(out).checkpoints)[-1]
        other = checkpoint.listing(Run(another).checkpoints)[-1]
        named = spoil(newest, how, other, chance)
        goes_on(forker, whole, out)
        said = (out / "log.txt").read_text()
        assert f"DAMAGED: {named}" in said, said
        assert "continuing from step 15 of 16" in said
        assert [p.name for p in Run(out).checkpoints.glob("damaged-*")] == [
            f"damaged-{newest.name}"
        ]
