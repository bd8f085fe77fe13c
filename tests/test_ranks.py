"""Several ranks train the run that one alone would train: real processes, by torchrun; forked from
one where it is not about how they are started."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.distributed import HashStore

import ranked
import saved_by_ranks
from by_torchrun import Done, ranks, tiny, torchrun
from unraze import checkpoint, pictures, ranks as meeting, run as runs
from unraze.cli import main
from unraze.config import Config, from_toml, updated
from unraze.data import Images, load_images
from unraze.errors import UnrazeError
from unraze.generate import load, sample
from unraze.interop.publish import write_shared
from unraze.ranks import ALONE, Ranks, attempt, launch
from unraze.train import prepare, train as training

DYING = """
import os, signal, sys
from unraze import train as training
from unraze.__main__ import main
real = training.gradients
def gradients(trainee, step, **told):
    first_try = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if step == 7 and first_try and os.environ["RANK"] == os.environ["VICTIM"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(trainee, step, **told)
training.gradients = gradients
sys.exit(main())
"""


@pytest.mark.parametrize("count", [2, 3, 4])
def test_places_are_shared_as_evenly_as_can_be(count: int) -> None:
    for total in range(12):
        shares = [Ranks(k, count).share(total) for k in range(count)]
        assert [i for share in shares for i in share] == list(range(total))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_what_torchrun_says_of_itself() -> None:
    assert (attempt({}), launch("", {})) == (0, "")
    once_more = {"TORCHELASTIC_RESTART_COUNT": "2", "TORCHELASTIC_RUN_ID": "job 7"}
    assert (attempt(once_more), launch("a call", once_more)) == (2, "job 7\na call")
    assert str(os.getppid()) in launch("", once_more)
    assert str(os.getppid()) in launch("a call", {"TORCHELASTIC_RUN_ID": "none"})


@pytest.mark.parametrize("lacking", ["RANK", "MASTER_PORT", "MASTER_ADDR"])
def test_half_of_what_a_rank_is_to_be_told(
    lacking: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29411"}
    for key, value in told.items():
        monkeypatch.setenv(key, "" if key == lacking else value)
    assert main(["train", "digits"]) != 0
    assert f"{lacking} = ''" in capsys.readouterr().err


def test_ranks_wait_for_one_that_has_long_to_do() -> None:
    """Not in gloo, whose patience ends."""
    store, order = HashStore(), []

    def rank(number: int) -> None:
        own = Ranks(number, 3, store=store)
        for turn in range(3):
            time.sleep(0.3 * (number == turn))  # each is once the one that is waited for
            order.append(("came", turn))
            own._meet()
            order.append(("went", turn))

    threads = [threading.Thread(target=rank, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for turn in range(3):
        last_came = max(i for i, said in enumerate(order) if said == ("came", turn))
        assert last_came < order.index(("went", turn))


def test_one_that_is_not_heard_of_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "PATIENCE", timedelta(seconds=0.5))
    monkeypatch.setattr(meeting, "BEAT", 0.05)
    store, ended = HashStore(), threading.Event()

    def beat() -> None:
        while not ended.wait(0.05):
            store.add("beat/1", 1)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(UnrazeError, match="rank 0 of 3: has not heard of rank 2"):
            Ranks(0, 3, store=store)._meet()
    finally:
        ended.set()
        thread.join()


def test_a_run_is_known_by_the_launch_that_made_it(
    tiny_config: Config, tiny_images: Images, tmp_path: Path
) -> None:
    command, out = ["unraze", "train", "a folder"], tmp_path / "run"
    assert runs.of_launch("one", command, out=out) is None
    made = runs.create(prepare(tiny_config, tiny_images), out=out, command=command, launch="one")
    assert runs.of_launch("one", command, out=out) == made
    assert runs.of_launch("one", command, out=None, runs=tmp_path) is None  # it has no number
    assert runs.of_launch("two", command, out=out) is None
    assert runs.of_launch("one", [*command, "--seed=1"], out=out) is None
    (out / "config.toml").rename(out / "config.toml.broken")  # what was trained stays
    (out / "checkpoints" / "step-00000004").mkdir()
    assert runs.of_launch("one", command, out=out) is None
    assert (out / "checkpoints" / "step-00000004").is_dir()
    shutil.rmtree(out)
    out.mkdir()  # as if it had been killed before it was a run
    (out / "launch.txt").write_text("one\n")
    (out / ".config.toml.99.part").touch()
    assert runs.of_launch("two", command, out=out) is None
    assert out.is_dir()
    assert runs.of_launch("one", command, out=out) is None
    assert not out.exists()


@pytest.mark.parametrize("what", ["a pipe", "no text", "too large"])
def test_what_is_no_name_of_a_launch_is_none(tmp_path: Path, what: str) -> None:
    file = tmp_path / "00000-mine" / "launch.txt"
    file.parent.mkdir()
    if what == "a pipe":
        os.mkfifo(file)
    else:
        file.write_bytes(b"\xff")
        os.truncate(file, 1 if what == "no text" else 2**42)
    for out in (None, file.parent):
        assert runs.of_launch("one", ["unraze"], out=out, runs=tmp_path) is None
    assert file.parent.is_dir()


def test_a_later_call_of_the_same_name_makes_a_run_of_its_own(
    tiny_config: Config, tiny_images: Images, tmp_path: Path
) -> None:
    command, ready = ["unraze", "train"], prepare(tiny_config, tiny_images)
    made = runs.create(ready, out=None, runs=tmp_path, command=command, launch="job\nfirst")
    assert runs.of_launch("job\nsecond", command, out=None, runs=tmp_path) is None
    assert runs.of_launch("job\nfirst", command, out=None, runs=tmp_path) == made
    assert runs.of_launch("job\nsecond", command, out=made.path) == made  # it is named


LOST_EARLY = """
import os, signal, sys
from unraze.__main__ import main
from unraze.cli import train as commands
real = commands.read_images
def read_images(*given):
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*given)
if os.environ["LOST"] == "early":
    commands.read_images = read_images
sys.exit(main())
"""


@pytest.mark.slow
def test_two_calls_of_one_name_make_two_runs_though_one_is_started_anew(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second loses a process before its run has a folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lost.py").write_text(LOST_EARLY)
    command = [str(tmp_path / "lost.py"), "train", str(data / "images.npy")]
    command += [f"--config={data / 'tiny.toml'}", "--steps=2"]
    for lost in ("", "early"):
        done = torchrun(2, *command, restarts=1, name="unraze", LOST=lost)
        assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "runs").iterdir())) == 2


@pytest.fixture(scope="module")
def alone() -> dict[str, torch.Tensor]:
    return ranked.computed(ALONE)


@pytest.mark.parametrize(("count", "ways"), [(2, ("whole", "divided")), (4, ("whole",))])
def test_a_step_is_the_same_whatever_the_number_of_ranks(
    count: int, ways: tuple[str, ...], alone: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    done = ranks(count, str(Path(ranked.__file__)), str(tmp_path), *ways)
    assert done.returncode == 0, done.stderr
    for way in ways:
        found = safetensors.torch.load_file(tmp_path / way)
        assert found.keys() == alone.keys()
        for name, value in alone.items():
            bound = 1e-10 if name.startswith("gradient") else 1e-6
            assert found[name].dtype == value.dtype
            assert (found[name] - value).abs().max() <= bound, (way, name)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("ranks"))


def command(data: Path, *more: str) -> list[str]:
    return ["train", str(data / "images.npy"), f"--config={data / 'tiny.toml'}", *more]


def trained(done: Done, out: Path) -> runs.Run:
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(out)
    assert done.stdout.count("img/s") == done.stdout.count("step ")  # said once, by the first
    return runs.Run(out)


@pytest.fixture(scope="module")
def by_two(data: Path) -> runs.Run:
    out = data / "two"
    return trained(torchrun(2, "-m", "unraze", *command(data, f"--out={out}")), out)


def weights(run: runs.Run) -> dict[str, bytes]:
    last = checkpoint.listing(run.checkpoints)[-1]
    return {p.name: p.read_bytes() for p in sorted(last.glob("*.safetensors"))}


def gathered(run: runs.Run) -> dict[str, str]:
    """The hashes of what the newest checkpoint holds, gathered where it is divided."""
    last, _ = checkpoint.newest(run.checkpoints)
    assert last is not None
    return {part: checkpoint.hash_of(getattr(last, part)) for part in ("model", "ema", "optim")}


def losses(run: runs.Run) -> list[float]:
    return [row["loss"] for row in runs.read_rows(run.stats)]


def images(data: Path) -> Images:
    return load_images(data / "images.npy")


def test_a_run_of_two_is_that_of_one(by_two: runs.Run, data: Path, tmp_path: Path) -> None:
    config = updated(from_toml(data / "tiny.toml"), {"data.source": str(data / "images.npy")})
    one = runs.create(prepare(config, images(data)), out=tmp_path / "one")
    assert list(training(one, images(data)))[-1].phase == "done"
    assert losses(by_two) == pytest.approx(losses(one), rel=1e-4)
    assert json.loads((by_two.path / "env.json").read_text())["ranks"] == 2
    assert len(list(by_two.samples.glob("*.png"))) == len(list(one.samples.glob("*.png")))


@pytest.mark.parametrize(
    ("victim", "named"), [("0", False), pytest.param("1", True, marks=pytest.mark.slow)]
)
def test_a_rank_that_dies_is_started_again_and_nothing_is_lost(
    by_two: runs.Run,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    victim: str,
    named: bool,
) -> None:
    """Whether the run's folder was named by the command or has the next number."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dying.py").write_text(DYING)
    words = command(data, *(["--out=runs/mine"] if named else []))
    done = torchrun(2, str(tmp_path / "dying.py"), *words, restarts=1, VICTIM=victim)
    assert done.returncode == 0, done.stderr
    assert "continuing from step 4 of 12" in done.stdout
    (path,) = (tmp_path / "runs").iterdir()
    assert weights(runs.Run(path)) == weights(by_two)
    assert losses(runs.Run(path)) == losses(by_two)


def test_it_goes_on_with_another_number_of_ranks_mid_epoch(
    by_two: runs.Run, data: Path, tmp_path: Path
) -> None:
    run = runs.Run(shutil.copytree(by_two.path, tmp_path / "run"))
    checkpoint.remove_after(run.checkpoints, 8)  # 8 steps of 16 of 37 images: 3 epochs and a half
    said = [report.message for report in training(run, images(data)) if report.message]
    assert any("ranks is None, was 2" in text for text in said)
    assert "continuing from step 8 of 12" in said
    assert losses(run)[:8] == losses(by_two)[:8]
    assert losses(run) == pytest.approx(losses(by_two), rel=1e-4)


@pytest.fixture(scope="module")
def divided(data: Path) -> runs.Run:
    out = data / "divided"
    return trained(ranks(2, "unraze", *command(data, f"--out={out}", "--shard")), out)


class TestDivided:
    """Weights divided over the ranks, in memory and on disk."""

    def test_it_is_the_run_that_is_not_divided(
        self, divided: runs.Run, by_two: runs.Run, tmp_path: Path
    ) -> None:
        assert losses(divided) == pytest.approx(losses(by_two), rel=1e-4)
        last = checkpoint.listing(divided.checkpoints)[-1]
        assert sorted(p.name[:11] for p in last.glob("*.safetensors")) == [
            "shard-00001",
            "shard-00002",
        ]
        (of_two, _), (whole, _) = map(checkpoint.newest, (by_two.checkpoints, divided.checkpoints))
        assert of_two is not None
        assert whole is not None
        for part in ("model", "ema", "optim"):
            there, here = getattr(of_two, part), getattr(whole, part)
            assert {k: v.shape for k, v in here.items()} == {k: v.shape for k, v in there.items()}
        for name, value in of_two.ema.items():
            assert (whole.ema[name] - value).abs().max() < 1e-3
        assert sample(load(divided.path), 2).isfinite().all()

    @pytest.mark.parametrize(
        "count",
        [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.slow)],
    )
    def test_it_goes_on_to_the_same_bytes_and_with_other_numbers_of_ranks(
        self, divided: runs.Run, tmp_path: Path, count: int
    ) -> None:
        run = runs.Run(shutil.copytree(divided.path, tmp_path / "run"))
        checkpoint.remove_after(run.checkpoints, 8)
        done = ranks(count, "unraze", "resume", str(run.path))
        assert done.returncode == 0, done.stderr
        assert "continuing from step 8 of 12" in done.stdout
        assert losses(run) == pytest.approx(losses(divided), rel=1e-4)
        if count == 2:  # the header of such a file has its entries in any order
            assert gathered(run) == gathered(divided)

    def test_gathered_it_has_the_files_of_one_that_never_was(
        self, divided: runs.Run, tmp_path: Path
    ) -> None:
        run = runs.Run(shutil.copytree(divided.path, tmp_path / "run"))
        before, _ = checkpoint.newest(run.checkpoints)
        assert before is not None
        assert main(["gather", str(run.path)]) == 0
        assert sorted(weights(run)) == ["ema.safetensors", "model.safetensors", "optim.safetensors"]
        after, problems = checkpoint.newest(run.checkpoints)
        assert after is not None
        assert not problems
        assert after.hash == before.hash
        for name, value in before.optim.items():
            assert torch.equal(after.optim[name], value)

    def test_as_it_is_published_it_is_whole(self, divided: runs.Run, tmp_path: Path) -> None:
        own = load(divided.path)
        write_shared(own, tmp_path / "shared")
        assert not [name for name in weights(runs.Run(tmp_path / "shared")) if "shard" in name]
        assert load(tmp_path / "shared").checkpoint == own.checkpoint

    @pytest.mark.parametrize("damage", ["cut off", "missing", "another's"])
    def test_one_that_is_damaged_is_named_and_the_one_before_it_taken(
        self, divided: runs.Run, tmp_path: Path, damage: str
    ) -> None:
        run = runs.Run(shutil.copytree(divided.path, tmp_path / "run"))
        before, last = checkpoint.listing(run.checkpoints)
        shard = min(last.glob("shard-*"))
        match damage:
            case "cut off":
                shard.write_bytes(shard.read_bytes()[:-1])
            case "missing":
                shard.unlink()
            case _:
                shutil.copy(before / shard.name, shard)
        found, (problem,) = checkpoint.newest(run.checkpoints)
        assert found is not None
        assert found.path == before
        assert str(shard) in problem


@pytest.mark.slow
def test_all_ranks_wait_until_it_is_a_checkpoint_and_all_end_where_one_cannot_write(
    tmp_path: Path,
) -> None:
    done = torchrun(2, str(Path(saved_by_ranks.__file__)), str(tmp_path))
    assert done.returncode == 0, done.stderr


def test_pictures_are_drawn_by_all_and_are_those_of_one(by_two: runs.Run, tmp_path: Path) -> None:
    words = ["sample", str(by_two.path), "-n", "20", "--batch=8", "--threads=1"]
    done = ranks(2, "unraze", *words, f"--out={tmp_path / 'by two'}", "--film")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / "by two")
    assert main([*words, f"--out={tmp_path / 'by one'}", "--film"]) == 0
    one, two = tmp_path / "by one", tmp_path / "by two"
    names = {f"{k:05d}.png" for k in range(20)} | {"grid.png", "film.gif"}
    assert {p.name for p in one.iterdir()} == {p.name for p in two.iterdir()} == names
    for name in sorted(names):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


UNLIKE = """
import os, sys
from unraze.__main__ import main
from unraze.interop import engines
fast = "onnx" if os.environ["RANK"] == "0" else "torch"
engines._seconds = lambda model, how, batch: 1.0 if model.engine == fast else 2.0
sys.exit(main())
"""


@pytest.mark.slow
def test_all_ranks_draw_by_the_engine_that_the_first_one_found(
    by_two: runs.Run, tmp_path: Path
) -> None:
    """Though another is the fastest where the other rank is."""
    run = shutil.copytree(by_two.path, tmp_path / "run")
    (tmp_path / "unlike.py").write_text(UNLIKE)
    out = tmp_path / "drawn"
    command = ["sample", str(run), "-n=4", "--batch=2", "--engine=auto", f"--out={out}"]
    done = torchrun(2, str(tmp_path / "unlike.py"), *command)
    assert done.returncode == 0, done.stderr
    recipes = [pictures.read_recipe(file) for file in sorted(out.glob("0*.png"))]
    assert [recipe["engine"] for recipe in recipes] == ["onnx"] * 4


@pytest.mark.slow
def test_samples_that_are_measured_are_drawn_by_all(data: Path, tmp_path: Path) -> None:
    """Two parts, one of each rank; what is drawn and measured is what one process draws."""
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(command(data, f"--out={one}", "--held-out=0.3", "--steps=2")) == 0
    shutil.copytree(one, two)
    more = ["-n", "103", "--threads=1", "--skip=memorisation"]
    more += ["--skip=levels", "--skip=bound", "--skip=flow"]
    done = ranks(2, "unraze", "eval", str(two), *more)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report.html") == 1
    assert main(["eval", str(one), *more]) == 0
    drawn = [sorted((run / "eval").rglob("images-*.npz")) for run in (one, two)]
    assert [[p.name for p in files] for files in drawn] == [
        ["images-00000-00099.npz", "images-00100-00102.npz"]
    ] * 2
    for ours, theirs in zip(*drawn, strict=True):
        with np.load(ours) as a, np.load(theirs) as b:
            assert np.array_equal(a["pixels"], b["pixels"])


def test_ctrl_c_reaches_every_process_and_is_one(data: Path, tmp_path: Path) -> None:
    """A terminal sends it to torchrun and the ranks, to which torchrun sends it again."""
    how = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = command(data, f"--out={tmp_path / 'run'}", "--steps=1000000")
    with subprocess.Popen(
        [*how, "-m", "unraze", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step "):
                break
        os.killpg(process.pid, signal.SIGINT)
        said = process.stdout.read()
    assert "saved at step" in said
    run = runs.Run(tmp_path / "run")
    saved, problems = checkpoint.newest(run.checkpoints)
    assert saved is not None
    assert not problems
    assert f"stopped at step {saved.step}" in (run.path / "log.txt").read_text()


MIXED = """
import os, sys
from datetime import timedelta
from unraze import ranks
from unraze.__main__ import main
ranks.PATIENCE = timedelta(seconds=20)
if os.environ["RANK"] == os.environ["SAYS_RESUME"]:
    sys.argv[1:] = ["resume", os.environ["RUN"]]
sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", ["0", "1"])
def test_a_machine_that_says_resume_where_the_others_say_train(
    by_two: runs.Run, data: Path, tmp_path: Path, number: str
) -> None:
    """So does one that is started anew while the others' torchrun starts theirs again."""
    out = tmp_path / "run"
    command = ["train", str(data / "images.npy"), f"--config={data / 'tiny.toml'}", f"--out={out}"]
    (tmp_path / "dying.py").write_text(DYING)
    assert torchrun(2, str(tmp_path / "dying.py"), *command, VICTIM="0").returncode != 0
    (tmp_path / "mixed.py").write_text(MIXED)
    done = torchrun(2, str(tmp_path / "mixed.py"), *command, RUN=str(out), SAYS_RESUME=number)
    if number == "0":  # the first knows of the run
        assert done.returncode == 0, done.stderr
        assert weights(runs.Run(out)) == weights(by_two)
    else:  # the first begins another, and is refused the folder
        assert done.returncode != 0
        assert "start all alike" in done.stderr


LONG = """
import sys, time
from datetime import timedelta
from unraze import ranks, train
from unraze.__main__ import main
ranks.PATIENCE = timedelta(seconds=5)
real = train._newest
def slowly(*args, **kwargs):
    time.sleep(9)
    return real(*args, **kwargs)
train._newest = slowly
sys.exit(main())
"""


@pytest.mark.slow
def test_what_one_rank_does_longer_than_gloo_waits(
    by_two: runs.Run, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "long.py").write_text(LONG)
    command = ["train", str(data / "images.npy"), f"--config={data / 'tiny.toml'}"]
    done = torchrun(2, str(tmp_path / "long.py"), *command, f"--out={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert weights(runs.Run(tmp_path / "run")) == weights(by_two)


class TestBadInput:
    def test_more_ranks_than_images_a_step(self, data: Path, tmp_path: Path) -> None:
        words = command(data, f"--out={tmp_path / 'run'}", "--batch=1")
        done = ranks(2, "unraze", *words)
        assert done.returncode != 0
        assert "is less than an image for each of 2 ranks" in done.stderr

    def test_what_one_rank_refuses_ends_all(self, data: Path, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "mine").touch()
        done = ranks(2, "unraze", "train", str(data / "images.npy"), f"--out={tmp_path / 'run'}")
        assert done.returncode != 0
        assert done.stderr.count("unraze: error:") == 1
        assert "exists and is not a run" in done.stderr

    def test_a_picture_is_made_again_by_one_process(
        self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert main(["sample", "--like", "any.png"]) == 2
        assert "one process makes it again; leave torchrun out" in capfd.readouterr().err

    def test_a_rank_says_all_it_has_to_say_and_ends_at_once(self) -> None:
        """Threads of torch may outlive its group, and abort an interpreter that ends."""
        program = "import atexit, sys; from unraze.__main__ import main; " + (
            "atexit.register(print, 'ending'); sys.exit(main())"
        )
        said = {}
        for count in ("1", "2"):
            command = [sys.executable, "-c", program, "runs", "--nonsense"]
            env = os.environ | {"WORLD_SIZE": count}
            said[count] = subprocess.run(command, env=env, capture_output=True, text=True)
        assert [done.returncode for done in said.values()] == [2, 2]
        assert "--nonsense" in said["1"].stderr
        assert "without torchrun" in said["2"].stderr
        assert [done.stdout for done in said.values()] == ["ending\n", ""]

    def test_a_command_of_one_process(self) -> None:
        done = ranks(2, "unraze", "runs")
        assert "unraze runs: is of one process; call it without torchrun" in done.stderr
