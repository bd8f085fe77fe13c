"""Which rank is late or slow: said with its number, its process and where it is."""

import re
from pathlib import Path

from by_torchrun import ranks, tiny
from unraze.watch import Beat, late, slow

PROGRAM = """
import os, signal, subprocess, sys, time
from unraze import step, train as training, watch
from unraze.__main__ import main

watch.LATE, watch.BEAT, watch.STEPS = 2.0, 0.1, 3
real = step._losses

seen = set()

def dawdling():
    time.sleep(4)

def losses(trainee, x0, t, places, number, **more):
    began = time.perf_counter()
    found = real(trainee, x0, t, places, number, **more)
    if trainee.ranks.number == 1 and "begun" in seen:
        time.sleep(0.1 + 4 * (time.perf_counter() - began))
        if number == 6:
            dawdling()
        if number == 10:
            subprocess.Popen(["sh", "-c", f"sleep 4; kill -CONT {os.getpid()}"])
            os.kill(os.getpid(), signal.SIGSTOP)
    seen.add("begun")  # with the step that is thrown away
    return found

step._losses = losses
sys.exit(main())
"""


def beat(
    number: int, doing: str = "", seconds: float = 0.0, own: float = 1.0, at: str = ""
) -> Beat:
    return Beat(number, f"process {number}", doing, seconds, 60.0, [at], own)


def test_nothing_is_said_of_ranks_that_go_on() -> None:
    beats = [beat(k, "step 3", 59.0, 1.0 + 0.1 * k) for k in range(4)]
    assert late(beats, dict.fromkeys(range(4), 0.5)) == []
    assert slow(beats) == []


def test_the_one_that_is_late_is_the_one_elsewhere() -> None:
    beats = [beat(k, "step 3", 70.0, at="waiting" if k != 2 else "reading") for k in range(4)]
    (words,) = late(beats, dict.fromkeys(range(4), 1.0))
    assert words.splitlines() == [
        "LATE, step 3: has taken 71 s so far",
        "rank 2 (process 2) at",
        "reading",
        "ranks 0, 1, 3 at",
        "waiting",
    ]


def test_one_that_is_stopped_says_nothing_and_is_named_for_that() -> None:
    beats = [beat(0, "step 3", 70.0, at="waiting"), beat(1, "step 3", 2.0, at="anywhere")]
    (words,) = late(beats, {0: 1.0, 1: 68.0})
    assert "rank 1 (process 1) has not been heard of for 68 s" in words
    assert "anywhere" not in words


def test_a_slow_rank_is_held_against_the_middle_one() -> None:
    (words,) = slow([beat(k, own=2.0 if k == 1 else 1.0) for k in range(3)])
    assert words.startswith("SLOW, rank 1: computes 2 s a step (process 1)")
    assert slow([beat(0, own=float("nan")), beat(1, own=9.0)]) == []


def test_a_rank_that_is_slow_hangs_and_stops(tmp_path: Path) -> None:
    data = tiny(tmp_path)
    (tmp_path / "late.py").write_text(PROGRAM)
    command = ["train", str(data / "images.npy"), f"--config={data / 'tiny.toml'}"]
    done = ranks(2, str(tmp_path / "late.py"), *command, f"--out={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "run" / "log.txt").read_text()
    of_one = r"rank 1 \(process \d+ on .*\)"
    for said in (
        r"SLOW, rank 1: computes 0\.\d+ s a step",
        rf"LATE, step 6: .*{of_one} at.*in dawdling",
        rf"LATE, step 10: .*{of_one} has not been heard of for",
    ):
        assert re.search(said, done.stderr, re.DOTALL), said
        assert re.search(said, log, re.DOTALL), said
