"""The runs of a folder: what is told of them, while they are written and when they are damaged."""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from studios import PORT, unprivileged
from unraze import run as runs
from unraze.errors import UnrazeError
from unraze.run import Run
from unraze.studio.app import app_of, studio_of
from unraze.studio.guard import Keys
from unraze.studio.library import POINTS, Curves, Library, Missing, name_of


def rows(file: Path, *steps: int, loss: float = 0.5) -> None:
    with file.open("a", encoding="utf-8") as opened:
        for step in steps:
            row = {"step": step, "steps": 10**6, "loss": loss, "lr": 1e-3}
            opened.write(json.dumps(row | {"images_per_second": 100.0}) + "\n")


def test_runs_are_listed_with_what_their_folders_say(folder: Path) -> None:
    library = Library(folder)
    told = {run.name: run for run in library.all()}
    assert set(told) == {"run", "other", "classy"}
    for name, run in told.items():
        assert run.id == name_of(name)
        assert (run.state, run.step, run.steps) == ("done", 30, 30)
        assert run.shape == (1, 8, 8)
        assert run.loss is not None
        summary = runs.summary(Run(folder / name))
        assert (run.state, run.loss) == (summary.state, pytest.approx(summary.loss))
        assert run.thumbnail is not None
        assert library.thumbnail(run.id).startswith(b"\x89PNG")


def test_a_folder_that_is_not_there_has_no_runs_yet(tmp_path: Path) -> None:
    library = Library(tmp_path / "none")
    assert library.all() == []
    with pytest.raises(Missing, match="no such run"):
        library.told(name_of("run"))


def test_only_what_has_changed_is_told_again(folder: Path) -> None:
    library = Library(folder)
    changed, gone = library.news()
    assert (len(changed), gone) == (3, [])
    assert library.news() == ([], [])
    rows(folder / "run" / "stats.jsonl", 31, loss=0.25)
    library.all()  # whoever looks, the news is for those who ask for it
    (told,), gone = library.news()
    assert (told.name, told.step, told.loss) == ("run", 31, 0.25)
    os.rename(folder / "run", folder / "moved")
    library.all()
    (told,), gone = library.news()
    assert (told.name, gone) == ("moved", [name_of("run")])


def test_a_run_that_is_damaged_is_told_with_the_reason_and_the_others_too(folder: Path) -> None:
    (folder / "run" / "config.toml").write_text("steps = [", encoding="utf-8")
    (folder / "other" / "stats.jsonl").write_bytes(b"\xff\xfe{broken")
    told = {run.name: run for run in Library(folder).all()}
    assert told["run"].state == "unreadable"
    assert "config.toml" in str(told["run"].error)
    assert told["other"].state == "done"
    assert told["other"].loss is None
    assert told["classy"].error is None


@pytest.fixture
def shared(folder: Path) -> Iterator[Path]:
    """A copy of the runs at a place that every user reaches, all of them of this one."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        yield Path(shutil.copytree(folder, Path(place) / "runs"))


def test_what_must_not_be_read_is_told_with_the_reason_and_the_others_too(shared: Path) -> None:
    (shared / "other" / "config.toml").chmod(0)
    (shared / "run").chmod(0)
    library = Library(shared)
    with unprivileged():
        told = {run.name: run for run in library.all()}
        again = library.told(name_of("run"))
        assert library.news()[1] == []
    assert {name: run.state for name, run in told.items()} == {
        "run": "unreadable",
        "other": "unreadable",
        "classy": "done",
    }
    for name in ("run", "other"):
        error = str(told[name].error)
        assert str(shared / name / "config.toml") in error
        assert "Permission denied" in error
    assert again == told["run"]
    (shared / "run").chmod(0o755)
    with unprivileged():
        assert library.told(name_of("run")).state == "done"


def test_of_a_run_that_must_not_be_read_all_is_answered_in_words(shared: Path) -> None:
    rooms = studio_of(shared, keys=Keys(PORT))
    address = f"/api/runs/{name_of('run')}"
    parts = (
        "",
        "/curves",
        "/evaluations",
        "/examples",
        "/schedule",
        "/reals.png",
        "/thumbnail.png",
    )
    with TestClient(app_of(rooms), raise_server_exceptions=False) as client:
        assert all(client.get(address + part).status_code == 200 for part in parts)
        (shared / "run").chmod(0)
        with unprivileged():
            answers = {part: client.get(address + part) for part in parts}
    rooms.queue.close()
    page = answers.pop("")
    assert (page.status_code, page.json()["state"]) == (200, "unreadable")
    said = [page, *answers.values()]
    assert all(answer.status_code in (400, 404) for answer in said[1:])
    assert all("Permission denied" in answer.json()["error"] for answer in said)


def test_a_folder_that_must_not_be_looked_into_is_told_and_is_not_taken_for_an_empty_one(
    shared: Path,
) -> None:
    library = Library(shared)
    assert len(library.news()[0]) == 3
    shared.chmod(0)
    with unprivileged(), pytest.raises(UnrazeError, match="runs: cannot be looked into"):
        library.all()
    shared.chmod(0o755)
    assert library.news() == ([], [])


def test_a_training_of_another_user_is_seen(shared: Path) -> None:
    with runs.locked(Run(shared / "run")), unprivileged():
        told = {run.name: run.state for run in Library(shared).all()}
    assert told == {"run": "running", "other": "done", "classy": "done"}


def test_a_run_that_failed_says_why(folder: Path) -> None:
    (folder / "run" / "failed.txt").write_text("the loss is not finite\n", encoding="utf-8")
    told = {run.name: run for run in Library(folder).all()}["run"]
    assert told.state == "failed"
    assert told.error is not None
    assert "the loss is not finite" in told.error


def test_the_thumbnail_of_a_damaged_picture_is_missing(folder: Path) -> None:
    library = Library(folder)
    for picture in (folder / "run").rglob("*.png"):
        picture.write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(Missing, match="damaged"):
        library.thumbnail(name_of("run"))


def test_no_identifier_leads_out_of_the_folder(folder: Path) -> None:
    library = Library(folder)
    for name in ("..", "../runs/run", "/etc", "run", "", "%2e%2e"):
        with pytest.raises(Missing):
            library.run(name)


def test_curves_are_read_as_they_are_written(tmp_path: Path) -> None:
    file = tmp_path / "stats.jsonl"
    curves = Curves(file)
    assert curves.read(0) == ({c: [] for c in Curves.columns}, 0, False)
    rows(file, 1, 2, 3)
    told, step, anew = curves.read(0)
    assert (told["step"], step, anew) == ([1, 2, 3], 3, False)
    with file.open("a", encoding="utf-8") as opened:
        opened.write('{"step": 4, "loss":')  # it is being written
    assert curves.read(3)[:2] == ({c: [] for c in Curves.columns}, 3)
    with file.open("a", encoding="utf-8") as opened:
        opened.write(' 0.25, "lr": 1, "images_per_second": 2}\n')
    told, step, anew = curves.read(3)
    assert (told["step"], told["loss"], step, anew) == ([4], [0.25], 4, False)


def test_curves_begin_anew_where_the_run_went_back(tmp_path: Path) -> None:
    file = tmp_path / "stats.jsonl"
    rows(file, 1, 2, 3, 4)
    curves = Curves(file)
    curves.read(0)
    other = tmp_path / "other.jsonl"  # as a resume does it: another file in its place
    rows(other, 1, 2)
    other.replace(file)
    told, step, anew = curves.read(4)
    assert (told["step"], step, anew) == ([1, 2], 2, True)
    assert curves.read(2) == ({c: [] for c in Curves.columns}, 2, False)
    assert curves.read(9)[1:] == (2, True)  # asked by a page that knew more
    file.unlink()
    assert curves.read(2) == ({c: [] for c in Curves.columns}, 0, True)


def test_long_curves_are_thinned_to_means(tmp_path: Path) -> None:
    file = tmp_path / "stats.jsonl"
    count = 10 * POINTS + 7
    rows(file, *range(1, count + 1))
    told, step, _ = Curves(file).read(0)
    steps = told["step"]
    assert len(steps) <= POINTS
    assert steps[-1] == step == count
    assert steps == sorted(steps)  # type: ignore[type-var]
    assert told["loss"] == pytest.approx([0.5] * len(steps))


def test_two_hundred_runs_are_asked_for_their_dates_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(197):
        (folder / f"run-{number}").mkdir()
        text = (folder / "run" / "config.toml").read_text(encoding="utf-8")
        (folder / f"run-{number}" / "config.toml").write_text(text, encoding="utf-8")
    library = Library(folder)
    assert len(library.all()) == 200

    def never(run: Run) -> None:
        raise AssertionError(f"{run} was looked at again")

    monkeypatch.setattr(runs, "summary", never)
    assert len(library.all()) == 200


def test_the_last_row_is_found_from_the_end(tmp_path: Path) -> None:
    file = tmp_path / "stats.jsonl"
    assert runs.last_row(file, "loss") is None
    rows(file, *range(1, 3000))
    assert file.stat().st_size > runs.TAIL
    found = runs.last_row(file, "loss")
    assert found is not None
    assert found["step"] == 2999
    assert runs.last_row(file, "kid") is None
    with file.open("a", encoding="utf-8") as opened:
        opened.write('{"step": 3000, "lo')
    found = runs.last_row(file, "loss")
    assert found is not None
    assert found["step"] == 2999


def test_the_process_that_trains_here_is_known_and_a_dead_one_is_not(folder: Path) -> None:
    run = Run(folder / "run")
    assert runs.trainer_here(run) is None
    with runs.locked(run):
        assert runs.trainer_here(run) == os.getpid()
        told = {each.name: each for each in Library(folder).all()}
        assert told["run"].state == "running"
    said = {"process": 2**22 - 1, "machine": os.uname().nodename, "begun": "then"}
    run.trainer.write_text(json.dumps(said), encoding="utf-8")
    assert runs.trainer_here(run) is None


def test_what_changes_first_is_listed_first(folder: Path) -> None:
    library = Library(folder)
    library.all()
    later = time.time() + 60
    os.utime(folder / "classy" / "stats.jsonl", (later, later))
    assert library.all()[0].name == "classy"


def test_what_is_no_run_and_cannot_be_looked_into_is_passed_over(folder: Path) -> None:
    (folder / "loop").symlink_to("loop")
    (folder / "file").write_text("", encoding="utf-8")
    odd = os.fsdecode(b"odd-\xff")
    (folder / "run").rename(folder / odd)
    names = {run.name for run in Library(folder).all()}
    assert names == {"odd-?", "other", "classy"}


def test_a_failure_is_forgotten_once_somebody_went_on_with_the_run(folder: Path) -> None:
    library = Library(folder)
    name = name_of("run")
    library.failures[name] = "it was killed"
    with (folder / "run" / "config.toml").open("a", encoding="utf-8"):
        pass
    assert library.told(name).error is None  # it is done
    assert library.failures == {}
