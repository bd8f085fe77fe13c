"""Images that are others when a run goes on: what changed is said, and accepted only if asked."""

import base64
import json
import os
import signal
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import Forker, command
from test_told_to_stop import wait_for

from unraze import checkpoint, clusters, generate, run as runs
from unraze.data import Images, record
from unraze.run import Run

pytestmark = pytest.mark.faults

SHAPE = (1, 4, 4)


def images_of(names: dict[str, int], labels: list[int] | None = None) -> Images:
    """Images of one grey level each, by name."""
    levels = np.array(list(names.values()), dtype=np.uint8)
    pixels = np.broadcast_to(levels[:, None, None, None], (len(levels), *SHAPE))
    kinds = None if labels is None else np.array(labels)
    return Images.from_arrays(np.ascontiguousarray(pixels), labels=kinds, names=list(names))


THEN = {"a": 1, "b": 2, "c": 3}


@pytest.mark.parametrize(
    ("now", "says"),
    [
        ({"a": 1, "b": 2}, "3 then, 2 now: 1 (c) gone"),
        ({"a": 1, "b": 2, "c": 3, "d": 4}, "3 then, 4 now: 1 (d) new"),
        ({"a": 1, "b": 9, "c": 3}, "3 then, 3 now: 1 (b) changed"),
        ({"c": 3, "b": 2, "a": 1}, "3 then, 3 now: the same images, in another order"),
        ({"a": 7, "x": 1}, "3 then, 2 now: 1 (a) changed, 2 (b, c) gone, 1 (x) new"),
        (
            {str(n): n for n in range(9)},
            "3 then, 9 now: 3 (a, b, c) gone, 9 (0, 1, 2 and 6 more) new",
        ),
    ],
)
def test_what_changed_is_told(now: dict[str, int], says: str, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(record.written(record.record(images_of(THEN), "run")))
    kept = record.read(tmp_path / "data.json")
    assert kept is not None
    assert record.changes(kept, images_of(now)) == says


def test_another_class_is_a_change() -> None:
    kept = record.record(images_of(THEN, [0, 0, 1]), "run")
    assert "1 (b) changed" in record.changes(kept, images_of(THEN, [0, 1, 1]))


def test_a_record_is_small_and_quick() -> None:
    """20 bytes an image, for names as data sets have them."""
    count = 20_000
    pixels = np.random.default_rng(0).integers(0, 256, (count, *SHAPE)).astype(np.uint8)
    names = [f"train/n{n % 100:08d}/{n:08d}.jpeg" for n in range(count)]
    text = record.written(record.record(Images.from_arrays(pixels, names=names), "run"))
    assert len(text) < 20 * count
    numbered = record.written(record.record(Images.from_arrays(pixels), "run"))
    assert len(numbered) < 6 * count


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b'{"run": 3}'])
def test_a_record_that_is_damaged_is_none(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_bytes(data)
    assert record.read(tmp_path / "data.json") is None


def test_a_record_of_any_size_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "data.json").open("wb") as file:
        file.truncate(2**42)
    assert record.read(tmp_path / "data.json") is None


@pytest.mark.parametrize("names", [None, "bomb"])
def test_a_record_that_claims_more_images_than_it_has(
    names: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "MAX_BYTES", 2**16)
    if names is not None:
        names = base64.b64encode(zlib.compress(b"[" + b" " * 2**20 + b"]")).decode()
    kept = record.record(images_of(THEN), "run")
    hostile = kept.model_copy(update={"names": names, "shape": [10**15, *SHAPE]})
    assert "no longer legible" in record.changes(hostile, images_of({"a": 1}))
    if names is not None:
        bomb = kept.model_copy(update={"names": names})
        assert "no longer legible" in record.changes(bomb, images_of({"a": 1}))


def test_names_are_told_in_a_line(tmp_path: Path) -> None:
    odd = images_of({"\x1b[2J" + "x" * 5000: 1, "b": 2})
    said = record.changes(record.record(odd, "run"), images_of({"b": 2}))
    assert "\x1b" not in said
    assert len(said) < 300


def test_names_that_are_not_legible_are_said_to_be() -> None:
    kept = record.record(images_of(THEN), "run").model_copy(update={"names": "AAAA"})
    assert "no longer legible" in record.changes(kept, images_of({"a": 1}))


def folder_of_images(folder: Path, count: int) -> Path:
    """Pictures that are bright above or below."""
    folder.mkdir()
    chance = np.random.default_rng(0)
    for number in range(count):
        pixels = chance.integers(0, 60, (8, 8)).astype(np.uint8)
        pixels[:4] += 150 * (number % 2)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return folder


def stopped(forker: Forker, data: Path, out: Path, *options: str, clusters: int = 0) -> None:
    """A run that was stopped between its first step and its last."""
    argv = [*command(data, out, eval_every=None, steps=200, clusters=clusters), "--held-out", "0"]
    process = forker.start("cli", argv=[*argv, *options])
    wait_for(lambda: len(runs.read_rows(Run(out).stats)) >= 2, process)
    os.kill(process, signal.SIGTERM)
    assert forker.wait(process) == 130
    config = out / "config.toml"
    last = runs.read_rows(Run(out).stats)[-1]["step"]
    config.write_text(config.read_text().replace("steps = 200", f"steps = {last + 6}"))


@pytest.mark.parametrize("told", [0, 2], ids=["", "clusters"])
def test_they_are_named_and_can_be_accepted(forker: Forker, tmp_path: Path, told: int) -> None:
    data, out, log = tmp_path / "data", tmp_path / "run", tmp_path / "log.txt"
    folder_of_images(data, 220 if told else 40)
    stopped(forker, data, out, clusters=told)
    (data / "003.png").unlink()
    (data / "007.png").write_bytes((data / "008.png").read_bytes())
    (data / "new.png").write_bytes((data / "009.png").read_bytes())
    changed = "1 (007.png) changed, 1 (003.png) gone, 1 (new.png) new"
    before = {p: p.read_bytes() for p in out.rglob("*.safetensors")}
    assert forker.finish("cli", argv=["resume", str(out)], out=str(log)) == 2
    said = log.read_text().splitlines()[-1]
    assert changed in said
    assert "--accept-changed-data" in said
    assert {p: p.read_bytes() for p in out.rglob("*.safetensors")} == before

    # accepted, then killed before the first step: it is accepted once and for all
    accept = ["resume", str(out), "--accept-changed-data"]
    marker = tmp_path / "marker"
    inside, _ = forker.kill_inside("going on", 1, 0, marker, "cli", argv=accept)
    assert inside
    assert forker.finish("cli", argv=["resume", str(out)], out=str(log)) == 0, log.read_text()
    assert "CHANGED images are accepted (" in (out / "log.txt").read_text()
    assert changed in (out / "log.txt").read_text()
    kept = json.loads((out / "data.json").read_text())
    last = checkpoint.read(checkpoint.listing(Run(out).checkpoints)[-1])
    assert last.state["data"] == kept["fingerprint"]
    assert len(kept["accepted"]) == 1
    model = generate.load(out)
    assert (model.clusters is not None) == bool(told)
    if told:
        assert len(clusters.read(Run(out).clusters).labels) == 220
    assert generate.sample(model, 2).shape == (2, 1, 8, 8)

    # and what changes then is told of what was accepted
    (data / "005.png").unlink()
    assert forker.finish("cli", argv=["resume", str(out)], out=str(log)) == 2
    assert "1 (005.png) gone)" in log.read_text().splitlines()[-1]


def test_images_of_another_shape_are_not_accepted(forker: Forker, tmp_path: Path) -> None:
    data, out, log = tmp_path / "data", tmp_path / "run", tmp_path / "log.txt"
    for kind in ("one", "two"):
        (data / kind).mkdir(parents=True)
    folder_of_images(tmp_path / "all", 40)
    for picture in (tmp_path / "all").iterdir():
        picture.rename(data / ("one" if int(picture.stem) % 2 else "two") / picture.name)
    stopped(forker, data, out, "--classes")
    (data / "one").rename(data / "zero")
    accept = ["resume", str(out), "--accept-changed-data"]
    assert forker.finish("cli", argv=accept, out=str(log)) == 2
    assert "of other classes" in log.read_text().splitlines()[-1]
