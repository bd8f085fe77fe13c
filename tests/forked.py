"""A program that forks ranks, for tests of what ranks compute.

It reads jobs from its standard input, one JSON object a line, and answers each with the first exit
status that is not 0. Its ranks begin with all of the package imported: torchrun and every rank that
it starts import for seconds, each for itself. A job's program is `unraze` or a script, and all its
ranks are to end by themselves.
"""

import json
import os
import runpy
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

torch.set_num_threads(1)

import torch._dynamo  # by optimizers, when they are made
import torch.distributed.fsdp

from small_pictures import small_pictures
from unraze import __main__ as unraze
from unraze.cli import drawing, sample, train  # noqa: F401  (imported once, for all)

PATIENCE = 240


def warm() -> None:
    """Has imported what is imported by what is computed; no other thread is begun."""
    with torch.device("meta"):
        torch.arange(3)


def work(program: str, words: list[str]) -> int:
    """What one rank does; its exit status."""
    sys.argv = [program, *words]
    if program == "unraze":
        return unraze.main()
    sys.path.insert(0, str(Path(program).parent))
    try:
        runpy.run_path(program, run_name="__main__")
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def rank(number: int, port: int, job: dict[str, Any]) -> int:
    """Forks a rank; its process."""
    if process := os.fork():
        return process
    status = 70
    try:
        for handle, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND), handle)
        os.chdir(job["cwd"])
        place = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": job["count"]}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in place.items()})
        with small_pictures():
            status = work(job["program"], job["words"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def ended(job: dict[str, Any]) -> int:
    """Does a job; those of its ranks that have not ended in time are killed."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    processes = [rank(k, port, job) for k in range(job["count"])]

    def give_up(*_: object) -> None:
        for process in processes:
            os.kill(process, signal.SIGKILL)

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(PATIENCE)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
    signal.alarm(0)
    return next((status for status in statuses if status), 0)


def main() -> None:
    """Takes jobs until there are no more."""
    warm()
    for line in sys.stdin:
        print(ended(json.loads(line)), flush=True)


if __name__ == "__main__":
    main()
