"""A run that is killed, whenever that is, goes on and ends with the bytes of one that was not."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from injected import CHANGES, PHASES
from PIL import Image
from processes import KILLED, Forker, Whole, command_for, half_made, left_by

from divided import divide
from unraze import checkpoint, run as runs
from unraze.run import Run

pytestmark = pytest.mark.faults


def finish(forker: Forker, whole: Whole, out: Path) -> None:
    """Goes on with a run to its end, which is to be the end of the whole one."""
    log = out.parent.with_suffix(".log")
    argv = command_for(whole.data, out)
    assert forker.finish("cli", argv=argv, out=str(log)) == 0, log.read_text()
    found = left_by(out)
    assert found.keys() == whole.left.keys()
    for what, expected in whole.left.items():
        assert found[what] == expected, what
    assert half_made(out) == []


@pytest.mark.parametrize("kills", [4, pytest.param(100, marks=pytest.mark.slow)])
def test_at_random_moments(forker: Forker, whole: Whole, tmp_path: Path, kills: int) -> None:
    moments = random.Random(kills)
    killed = number = 0
    while killed < kills:
        out = tmp_path / str(number) / "run"
        number += 1
        status = KILLED
        while status == KILLED and killed < kills:
            job = {"argv": command_for(whole.data, out), "out": str(tmp_path / "log.txt")}
            status = forker.kill_after(moments.uniform(0, whole.seconds), "cli", **job)
            assert status in (0, KILLED), (tmp_path / "log.txt").read_text()
            killed += status == KILLED
        finish(forker, whole, out)


@pytest.mark.parametrize("hits", [1, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("phase", [name for name in PHASES if name != "making the cache"])
def test_inside(forker: Forker, whole: Whole, tmp_path: Path, phase: str, hits: int) -> None:
    """Of some entries into that part of a run one is chosen, and a moment in it."""
    moments = random.Random(f"{phase} {hits}")
    long = {"checkpoint": 0.05, "going on": 0.005}.get(phase, 0.1)
    hit = number = 0
    while hit < hits:
        out = tmp_path / str(number) / "run"
        number += 1
        assert number < 20 * hits, f"{hit} hits of {number} attempts"
        log = str(tmp_path / "log.txt")
        if phase == "going on":  # there has to be something to go on with
            forker.kill_inside(
                "checkpoint", 2, 0, tmp_path / "in", "cli", argv=command_for(whole.data, out)
            )
        at = 1 if phase == "going on" else moments.choice([1, 2])
        inside, ended = forker.kill_inside(
            phase,
            at,
            moments.uniform(0, long),
            tmp_path / "marker",
            "cli",
            argv=command_for(whole.data, out),
            out=log,
        )
        assert ended in (0, KILLED), Path(log).read_text()
        hit += inside
        if inside:
            finish(forker, whole, out)


def changes_of(forker: Forker, whole: Whole, folder: Path) -> int:
    """How often a run changes the disk."""
    fault = {"die at change": 10**9, "below": str(folder)}
    job = {"argv": command_for(whole.data, folder / "run"), "out": str(folder) + ".txt"}
    count = Path(f"{folder}.count")
    assert forker.finish("cli", faults=[fault], count=str(count), **job) == 0
    return int(count.read_text())


@pytest.mark.parametrize("some", [2, pytest.param(60, marks=pytest.mark.slow)])
def test_before_any_change_of_the_disk(
    forker: Forker, whole: Whole, tmp_path: Path, some: int
) -> None:
    """Before a file is opened, made, flushed, renamed or removed, or a folder is."""
    changes = changes_of(forker, whole, tmp_path / "counted")
    assert changes > 100
    for at in random.Random(some).sample(range(1, changes + 1), some):
        out = tmp_path / str(at) / "run"
        fault = {"die at change": at, "below": str(out.parent)}
        job = {"argv": command_for(whole.data, out), "out": str(tmp_path / "log.txt")}
        assert forker.finish("cli", faults=[fault], **job) == KILLED
        finish(forker, whole, out)


@pytest.mark.parametrize(
    "events", [["os.rename"], pytest.param(list(CHANGES), marks=pytest.mark.slow)]
)
def test_while_shards_are_gathered(
    forker: Forker, whole: Whole, tmp_path: Path, events: list[str]
) -> None:
    """Before any change of the disk, or any renaming: the checkpoint is there afterwards, as it was
    or gathered, and what `unraze tune` had found beside it."""
    begun, count = tmp_path / "begun", tmp_path / "count"
    shutil.copytree(whole.path, begun)
    newest = checkpoint.listing(Run(begun).checkpoints)[-1]
    divide(newest)
    (newest / "sampling.json").write_text("{}")
    expected, _ = checkpoint.newest(Run(begun).checkpoints)
    assert expected is not None
    at, status = 0, KILLED
    while status == KILLED:
        at += 1
        out = tmp_path / str(at)
        shutil.copytree(begun, out)
        fault = {"die at change": at, "below": str(out), "of": events}
        job = {"argv": ["gather", str(out)], "out": str(tmp_path / "log.txt")}
        status = forker.finish("cli", faults=[fault], count=str(count), **job)
        with runs.locked(Run(out)):
            found, problems = checkpoint.newest(Run(out).checkpoints)
        assert problems == []
        assert found is not None
        assert (found.path.name, found.hash) == (newest.name, expected.hash)
        assert (found.path / "sampling.json").read_text() == "{}"
        assert forker.finish("cli", **job) == 0
        after = checkpoint.read(found.path)
        assert "shards" not in after.state
        assert after.hash == expected.hash
        assert half_made(out) == []
        shutil.rmtree(out)
    assert status == 0
    assert at - 1 == int(count.read_text()) >= 3


@pytest.mark.parametrize("some", [1, pytest.param(29, marks=pytest.mark.slow)])
def test_half_way_in_a_write(forker: Forker, whole: Whole, tmp_path: Path, some: int) -> None:
    for at in random.Random(some).sample(range(1, 30), some):
        out = tmp_path / str(at) / "run"
        fault = {"die half-way in write": at}
        job = {"argv": command_for(whole.data, out), "out": str(tmp_path / "log.txt")}
        assert forker.finish("cli", faults=[fault], **job) == KILLED
        finish(forker, whole, out)


@pytest.mark.parametrize("hits", [1, pytest.param(30, marks=pytest.mark.slow)])
def test_while_the_data_cache_is_made(forker: Forker, tmp_path: Path, hits: int) -> None:
    """It is made anew, the same, and of what was half-made nothing stays."""
    folder, cache = tmp_path / "images", tmp_path / "cache"
    folder.mkdir()
    grey = np.random.default_rng(0).integers(0, 256, (600, 24, 24)).astype(np.uint8)
    for number, pixels in enumerate(grey):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    out, env = tmp_path / "out.txt", {"UNRAZE_CACHE": str(cache)}
    job = {"source": str(folder), "env": env, "out": str(out)}
    assert forker.finish("map", **job) == 0
    (made,) = (cache / "images").iterdir()
    pixels, told = (made / "pixels").read_bytes(), out.read_text()
    moments = random.Random(hits)
    hit = attempts = 0
    while hit < hits:
        attempts += 1
        assert attempts < 20 * hits
        for file in made.iterdir():
            file.unlink()
        made.rmdir()
        inside, ended = forker.kill_inside(
            "making the cache", 1, moments.uniform(0, 0.1), tmp_path / "marker", "map", **job
        )
        assert ended in (0, KILLED), out.read_text()
        hit += inside
        if inside:
            assert [p for p in (cache / "images").iterdir() if p.name.startswith(".making-")]
        out.unlink(missing_ok=True)
        assert forker.finish("map", **job) == 0
        assert out.read_text() == told
        assert list((cache / "images").iterdir()) == [made]
        assert (made / "pixels").read_bytes() == pixels
        assert sorted(p.name for p in made.iterdir()) == ["about.json", "pixels"]
