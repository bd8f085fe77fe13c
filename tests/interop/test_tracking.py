"""A track, as its tool's own reader sees it: each step once, whatever happened on the way."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from processes import Forker, wait_for
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

os.environ["TRACKIO_DIR"] = tempfile.mkdtemp()  # which trackio reads when it is imported
from trackio.sqlite_storage import SQLiteStorage
from trackio.utils import MEDIA_DIR

from stopping import after_step
from unraze import run as runs
from unraze.cli import main
from unraze.config import Config, updated
from unraze.data import Images
from unraze.errors import InputError
from unraze.interop.trackers.tensorboard import FOLDER
from unraze.interop.trackers.trackio import FILE, PROJECT
from unraze.interop.tracking import NAMES, Name, tracked, tracks
from unraze.run import Run
from unraze.train import Report, prepare, train

TINY = [
    *["--set", "network.widths=[8, 8]", "--set", "network.blocks=1", "--set", "network.groups=4"],
    *["--set", "network.heads=1", "--set", "schedule.steps=20", "--set", "sample.steps=4"],
    *["--dtype", "float32", "--threads", "1", "--batch", "8"],
]


@pytest.fixture
def run(tiny_config: Config, tiny_images: Images, tmp_path: Path) -> Run:
    """Twelve steps, a preview every three, a checkpoint every four."""
    changes = {"train.preview_every": 3, "train.checkpoint_every": 4}
    return runs.create(prepare(updated(tiny_config, changes), tiny_images), out=tmp_path / "run")


class InTensorBoard:
    """What TensorBoard reads in a run's track."""

    def __init__(self, run: Run) -> None:
        self.read = EventAccumulator(
            str(run.path / FOLDER), size_guidance={"images": 0, "scalars": 0}
        )
        self.read.Reload()

    def scalars(self, tag: str) -> list[tuple[int, float]]:
        return [(event.step, event.value) for event in self.read.Scalars(tag)]

    @property
    def pictures(self) -> dict[int, np.ndarray[Any, Any]]:
        found = {}
        there = "preview" in self.read.Tags()["images"]  # not yet, where it was stopped before one
        for event in self.read.Images("preview") if there else ():
            assert event.step not in found
            with Image.open(io.BytesIO(event.encoded_image_string)) as picture:
                found[event.step] = np.asarray(picture)
        return found


class InTrackio:
    """What trackio reads of a run's track: of the one run that it has of this."""

    def __init__(self, run: Run) -> None:
        said = json.loads((run.path / FILE).read_text())
        [record] = [r for r in SQLiteStorage.get_run_records(PROJECT) if r["id"] == said["id"]]
        assert record["name"] == run.path.name
        self.rows = SQLiteStorage.get_logs(PROJECT, record["name"], run_id=record["id"])

    def scalars(self, tag: str) -> list[tuple[int, float]]:
        return [(row["step"], row[tag]) for row in self.rows if tag in row]

    @property
    def pictures(self) -> dict[int, np.ndarray[Any, Any]]:
        found = {}
        for row in self.rows:
            if "preview" in row:
                assert row["step"] not in found
                with Image.open(MEDIA_DIR / row["preview"]["file_path"]) as picture:
                    found[row["step"]] = np.asarray(picture.convert("RGB"))
        return found


Seen = {"tensorboard": InTensorBoard, "trackio": InTrackio}


@pytest.fixture(params=NAMES)
def tracker(request: pytest.FixtureRequest) -> Name:
    return request.param


def is_whole(run: Run, tracker: Name) -> None:
    """Asserts that the track has what the run's own files have: each thing once, in order."""
    seen, rows = Seen[tracker](run), runs.read_rows(run.stats)
    for name in ("loss", "grad_norm", "lr"):
        of_rows = [(row["step"], row[name]) for row in rows if name in row]
        steps, values = zip(*seen.scalars(name), strict=True)
        assert list(steps) == [step for step, _ in of_rows]
        assert list(values) == pytest.approx([value for _, value in of_rows], rel=1e-6)
    assert [step for step, _ in seen.scalars("images_per_second")] == [row["step"] for row in rows]
    pictures = seen.pictures
    assert set(pictures) == {int(p.stem[5:]) for p in run.samples.glob("*.png")}
    for step, pixels in pictures.items():
        with Image.open(run.samples / f"step-{step:08d}.png") as picture:
            np.testing.assert_array_equal(pixels, np.asarray(picture.convert("RGB")))


def until(run: Run, images: Images, step: int) -> Iterator[Report]:
    """The reports of a training that is killed after that step, before it saves."""
    reports = train(run, images)
    for report in reports:
        yield report
        if report.phase == "training" and report.step == step:
            reports.close()  # type: ignore[attr-defined]
            return


def test_all_that_is_logged(run: Run, tiny_images: Images, tracker: Name) -> None:
    plain = [r.phase for r in tracked(train(run, tiny_images), run, tracker)]
    assert plain[-1] == "done"
    is_whole(run, tracker)
    assert [step for step, _ in Seen[tracker](run).scalars("loss")] == list(range(1, 13))
    assert sorted(Seen[tracker](run).pictures) == [3, 6, 9, 12]


@pytest.mark.parametrize("killed_after", [1, 3, 7, 10])
def test_killed_and_resumed(
    run: Run, tiny_images: Images, killed_after: int, tracker: Name
) -> None:
    list(tracked(until(run, tiny_images, killed_after), run, tracker))
    assert Seen[tracker](run).scalars("loss")[-1][0] == killed_after
    list(tracked(train(run, tiny_images), run, tracker))
    is_whole(run, tracker)


def test_stopped_and_resumed_twice(run: Run, tiny_images: Images, tracker: Name) -> None:
    for stop_at in (3, 6):
        reports = train(run, tiny_images, stop=after_step(run, stop_at))
        assert list(tracked(reports, run, tracker))[-1].phase == "stopped"
        is_whole(run, tracker)
        assert Seen[tracker](run).scalars("loss")[-1][0] == stop_at
    list(tracked(train(run, tiny_images), run, tracker))
    is_whole(run, tracker)


def test_of_a_run_that_was_not_tracked_for_a_while(
    run: Run, tiny_images: Images, tracker: Name
) -> None:
    list(tracked(until(run, tiny_images, 5), run, tracker))
    list(until(run, tiny_images, 9))
    list(tracked(train(run, tiny_images), run, tracker))
    is_whole(run, tracker)


def test_of_one_that_is_done(run: Run, tiny_images: Images, tracker: Name) -> None:
    list(train(run, tiny_images))
    list(tracked(train(run, tiny_images), run, tracker))
    is_whole(run, tracker)
    list(tracked(train(run, tiny_images), run, tracker))  # and nothing is written twice
    is_whole(run, tracker)


def test_a_file_that_a_crash_cut_off(run: Run, tiny_images: Images) -> None:
    list(tracked(until(run, tiny_images, 7), run, "tensorboard"))
    [file] = (run.path / FOLDER).iterdir()
    file.write_bytes(file.read_bytes()[:-150])  # the last scalars
    list(tracked(train(run, tiny_images), run, "tensorboard"))
    is_whole(run, "tensorboard")


def test_a_copy_of_a_run_has_a_track_of_its_own(run: Run, tiny_images: Images) -> None:
    list(tracked(until(run, tiny_images, 7), run, "trackio"))
    copy = Run(run.path.with_name("copy"))
    shutil.copytree(run.path, copy.path)
    list(tracked(train(copy, tiny_images), copy, "trackio"))
    is_whole(copy, "trackio")
    assert [step for step, _ in InTrackio(run).scalars("loss")] == list(range(1, 8))


def test_training_that_goes_back(run: Run, tracker: Name) -> None:
    def reports() -> Iterator[Report]:
        for step, loss in ((1, 1.0), (2, float("nan")), (3, 3.0), (2, 0.2), (3, 0.3)):
            runs.truncate_rows(run, step - 1)
            runs.append_row(run.stats, {"step": step, "loss": loss})
            yield Report("training", step, 3, loss, 1.0, 0.1, 10.0)
        yield Report("done", 3, 3)

    list(tracked(reports(), run, tracker))
    steps, values = zip(*Seen[tracker](run).scalars("loss"), strict=True)
    assert steps == (1, 2, 3)
    assert values == pytest.approx((1.0, 0.2, 0.3))


def test_quality_with_its_interval(run: Run, tracker: Name) -> None:
    def row(step: int) -> dict[str, Any]:
        return {"step": step, "kid": step / 10, "low": step / 10 - 0.05, "high": step / 10 + 0.05}

    def reports(*steps: int) -> Iterator[Report]:
        for step in steps:
            yield Report("training", step, 4, 1.0, 1.0, 0.1, 10.0)
            runs.append_row(run.quality, row(step))
            yield Report("evaluated", step, 4, 1.0, 1.0, 0.1, 10.0, message="said")

    list(tracked(reports(1, 2), run, tracker))
    runs.append_row(run.quality, row(3))  # evaluated, but not tracked
    list(tracked(reports(4), run, tracker))
    seen = Seen[tracker](run)
    for name in ("kid", "low", "high"):
        expected = [(step, pytest.approx(row(step)[name])) for step in (1, 2, 3, 4)]
        assert seen.scalars(f"quality/{name}") == expected


def test_a_track_that_cannot_be_written_does_not_end_the_training(
    run: Run, tiny_images: Images, tracker: Name
) -> None:
    if tracker == "tensorboard":
        (run.path / FOLDER).write_text("in the way")
    else:
        (run.path / FILE).mkdir()
    reports = list(tracked(train(run, tiny_images), run, tracker))
    told = [r.message for r in reports if r.message and "goes on without the track" in r.message]
    assert len(told) == 1
    assert reports[-1].phase == "done"
    assert [r.step for r in reports if r.phase == "training" and r.step] == list(range(1, 13))


class TestCommand:
    @pytest.fixture(autouse=True)
    def here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)

    def test_killed_by_the_system_and_resumed(self, tracker: Name, forker: Forker) -> None:
        """A real process; that the track goes on needs no option then."""
        command = ["train", "digits", "--steps", "60", *TINY]
        for setting in ("train.checkpoint_every=10", "train.preview_every=25"):
            command += ["--set", setting]
        command += ["--track", tracker, "--out", "run"]
        run, place = Run(Path("run")), {"cwd": str(Path.cwd()), "env": dict(os.environ)}
        with forker.running("cli", argv=command, **place) as process:
            wait_for(lambda: len(runs.read_rows(run.stats)) >= 25)
            os.kill(process, signal.SIGKILL)
            forker.wait(process)
        lines = len(runs.read_rows(run.stats))
        assert lines < 60
        assert main(["resume", "run"]) == 0
        is_whole(run, tracker)
        assert len(Seen[tracker](run).scalars("loss")) == 60

    def test_without_it_there_is_none(self, capsys: Any) -> None:
        assert main(["train", "digits", "--steps", "1", *TINY, "--out", "run"]) == 0
        run = Run(Path("run"))
        assert tracks(run) == ()
        assert main(["resume", "run", "--track", "tensorboard"]) == 0
        assert "tensorboard --logdir run/tensorboard" in capsys.readouterr().out
        assert InTensorBoard(run).scalars("loss")[0][0] == 1
        assert main(["resume", "run", "--track", "trackio"]) == 0  # and the other goes on
        said = capsys.readouterr().out
        assert "tensorboard --logdir" in said
        assert "trackio show --project unraze" in said
        assert "* " not in said  # what trackio says itself
        assert InTrackio(run).scalars("loss") == InTensorBoard(run).scalars("loss")

    def test_what_is_distilled_is_tracked_too(self, capsys: Any) -> None:
        v = ["--set", "loss.parametrisation=v"]
        assert main(["train", "digits", "--steps", "2", *TINY, *v, "--out", "run"]) == 0
        track = ["--track", "tensorboard"]
        assert main(["distill", "run", "--steps", "3", *track, "--out", "two"]) == 0
        assert "tensorboard --logdir two/tensorboard" in capsys.readouterr().out
        assert len(InTensorBoard(Run(Path("two"))).scalars("loss")) == 3

    def test_a_track_that_would_leave_this_machine_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        monkeypatch.setenv("TRACKIO_SERVER_URL", "http://127.0.0.1:9")
        assert main(["train", "digits", "--track", "trackio"]) == 2
        assert "TRACKIO_SERVER_URL = http://127.0.0.1:9" in capsys.readouterr().err
        assert not Path("runs").exists()

    def test_a_data_base_that_is_none_is_told_of(self) -> None:
        """Of which trackio itself only warns, in a thread."""
        folder = Path("data base").resolve()
        folder.mkdir()
        (folder / f"{PROJECT}.db").write_bytes(b"no data base, but a text\n" * 200)
        command = [sys.executable, "-m", "unraze", "train", "digits", "--steps", "3", *TINY]
        command += ["--track", "trackio", "--out", "run"]
        environment = {**os.environ, "TRACKIO_DIR": str(folder)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0
        assert len(runs.read_rows(Run(Path("run")).stats)) == 3
        assert "trackio: its track cannot be written" in done.stdout
        assert "training goes on without the track" in done.stdout.replace("\n", " ")

    def test_where_the_package_is_missing(
        self, monkeypatch: pytest.MonkeyPatch, capsys: Any, tracker: Name
    ) -> None:
        assert main(["train", "digits", "--steps", "1", *TINY, "--out", "run"]) == 0
        if tracker == "tensorboard":
            (Path("run") / FOLDER).mkdir()
        else:
            (Path("run") / FILE).write_text("{}")
        monkeypatch.setitem(sys.modules, tracker, None)
        for name in [n for n in sys.modules if n.startswith("torch.utils.tensorboard")]:
            monkeypatch.delitem(sys.modules, name)
        before = json.dumps(sorted(map(str, Path().rglob("*"))))
        capsys.readouterr()
        for command, says in (
            (["train", "digits", "--track", tracker], f"--track {tracker}: needs the"),
            (["resume", "run"], f"this run is tracked: needs the package {tracker}"),
        ):
            assert main(command) == 2
            error = capsys.readouterr().err
            assert says in error
            assert f'pip install "unraze[{tracker}]"' in error
        with pytest.raises(InputError, match=rf"unraze\[{tracker}\]"):
            next(tracked(iter(()), Run(Path("run")), tracker))
        assert json.dumps(sorted(map(str, Path().rglob("*")))) == before

    def test_another_tracker_is_unknown(self, capsys: Any) -> None:
        assert main(["train", "digits", "--track", "nothing"]) == 2
        assert "nothing" in capsys.readouterr().err
