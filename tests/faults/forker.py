"""A program that forks: each process it makes begins with all of the package imported.

It reads jobs from its standard input, one JSON object a line, and answers each with the number of
the process that does it; `{"wait": number}` is answered with how that ended. A hundred processes
that each import torch would take minutes; these are as real, and die as well.
"""

import fcntl
import json
import os
import resource
import signal
import sys
import termios
import traceback
from pathlib import Path
from typing import Any

import torch
from PIL import Image

torch.set_num_threads(1)

import injected
import memory

from unraze import __main__ as program, checkpoint, generate, plots, preview
from unraze.cli import show, train as commands  # noqa: F401  (imported once, for all)
from unraze.config import DataConfig
from unraze.data import load
from unraze.evaluate import during, feature_training
from unraze.interop import tracking  # noqa: F401


def work(job: dict[str, Any]) -> int:
    """Does a job in this process; the exit status."""
    out = job.get("out", os.devnull)
    for number, file in ((1, out), (2, job.get("err", out))):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    if "terminal" in job:  # a session of its own, which the terminal's end is the end of
        os.setsid()
        handle = os.open(job["terminal"], os.O_RDWR)
        fcntl.ioctl(handle, termios.TIOCSCTTY, 0)
        for number in (0, 1, 2):
            os.dup2(handle, number)
    for name in job.get("ignored", []):
        signal.signal(signal.Signals[name], signal.SIG_IGN)
    os.environ.update(job.get("env", {}))
    os.chdir(job.get("cwd", "."))
    if "address space" in job:
        resource.setrlimit(resource.RLIMIT_AS, (job["address space"],) * 2)
    if job.get("bound by permissions"):
        injected.lose_privilege()
    for fault in job.get("faults", []):
        injected.install(fault)
    match job["do"]:
        case "cli":
            sys.argv = ["unraze", *job["argv"]]
            return program.main()
        case "map":  # as sets are that are too large for memory
            images = load(DataConfig(source=job["source"]), memory=0)
            print(images.fingerprint, flush=True)
            return 0
        case "steps":
            print(json.dumps(memory.of_steps(Path(job["run"]), job["counts"])))
            return 0
        case "samples":
            print(json.dumps(memory.of_samples(Path(job["run"]), job["counts"])))
            return 0
        case _:
            raise ValueError(job["do"])


def quick() -> None:
    """Features are trained for few steps, few samples are worth an evaluation, and the curves at
    the end are not drawn."""
    feature_training.FEWEST_STEPS = 12
    feature_training.EPOCHS = 1
    during.FEWEST = 10
    during.FORWARD = 0.01
    during.CALLS = 4
    preview.quick = lambda config, _: generate.quick(config, 4)
    plots.loss_figure = plots.quality_figure = lambda *_: None
    plots.save = lambda _, path, __: checkpoint.write_atomically(path, "")


def warm() -> None:
    """Has imported what is only imported when it is used; no other thread is begun."""
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    torch.optim.AdamW([weight]).step()
    Image.init()


def main() -> None:
    """Takes jobs until there are no more."""
    quick()
    warm()
    for line in sys.stdin:
        job = json.loads(line)
        if "wait" in job:
            _, status = os.waitpid(job["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        if pid := os.fork():
            print(pid, flush=True)
            continue
        status = 70
        try:
            status = work(job)
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                try:
                    stream.flush()
                except OSError:
                    status = status or 71
            if "count" in job:
                Path(job["count"]).write_text(str(injected.seen))
            os._exit(status)


if __name__ == "__main__":
    main()
