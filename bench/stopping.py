"""How long a training takes to end after SIGTERM: to save, and to leave.

    python bench/stopping.py [--rounds 5] [--data digits] [--size 16]

Each round begins a run of `fast` and stops it in a training step, in an evaluation and in a
preview; the seconds are those from the signal to the end of the process, which has saved by then.
Slurm and Kubernetes wait 30 seconds before they kill.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from unraze import checkpoint, run as runs
from unraze.run import Run

STEPS = 200
"""From one evaluation to the next, and from one preview to the next, half-way between."""


def seconds_to_end(data: str, size: int, out: Path, until: int, extra: float) -> float:
    """From the signal, `extra` seconds after step `until`, to the end of the process."""
    command = [sys.executable, "-m", "unraze", "train", data, "--size", str(size)]
    command += ["--steps", "100000", "--out", str(out), "--held-out", "0.2", "--clusters", "0"]
    command += ["--eval-every", str(STEPS), "--set", f"train.preview_every={STEPS + STEPS // 2}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    run = Run(out)
    while not (rows := runs.read_rows(run.stats)) or rows[-1]["step"] < until:
        if process.poll() is not None:
            raise SystemExit(f"the training ended with status {process.returncode}")
        time.sleep(0.01)
    time.sleep(extra)
    began = time.perf_counter()
    process.send_signal(signal.SIGTERM)
    status = process.wait()
    seconds = time.perf_counter() - began
    last = runs.read_rows(run.stats)[-1]["step"]
    saved = checkpoint.read(checkpoint.listing(run.checkpoints)[-1]).step
    if status != 130 or saved != last:
        raise SystemExit(f"status {status}, step {last}, but saved is {saved}")
    return seconds


def main() -> None:
    """Parses, trains, stops and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--size", type=int, default=16)
    options = parser.parse_args()
    moments = {"a step": 20, "an evaluation": STEPS, "a preview": STEPS + STEPS // 2}
    chance = random.Random(0)
    for name, step in moments.items():
        found = []
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory() as folder:
                out, extra = Path(folder) / "run", chance.uniform(0.02, 0.2)
                found.append(seconds_to_end(options.data, options.size, out, step, extra))
        print(f"in {name}: {min(found):.2f} … {max(found):.2f} s", flush=True)


if __name__ == "__main__":
    main()
