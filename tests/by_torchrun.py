"""What the tests share that start several ranks."""

import atexit
import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

import ranked

TINY = """
preset = "fast"
data = { augment = 0.5, held_out = 0.0 }
network = { fold = 1, widths = [8, 8], blocks = 1, groups = 4, dropout = 0.3 }
schedule = { steps = 50 }
sample = { steps = 4 }

[train]
steps = 12
batch = 16
checkpoint_every = 4
preview_every = 6
clusters = 2
dtype = "float32"
threads = 1
"""

Done = subprocess.CompletedProcess[str]
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}


def torchrun(
    count: int, *command: str, restarts: int = 0, name: str | None = None, **more: str
) -> Done:
    """Ranks as users start them."""
    how = ["-m", "torch.distributed.run", f"--nproc-per-node={count}"]
    how += [f"--max-restarts={restarts}", "--monitor-interval=0.1"]
    if name is None:
        how += ["--standalone"]
    else:  # as --standalone is, but for the name
        how += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", f"--rdzv-id={name}"]
    return subprocess.run(
        [sys.executable, *how, *command],
        env=os.environ | ENVIRONMENT | more,
        capture_output=True,
        text=True,
        timeout=300,
    )


def ranks(count: int, program: str, *words: str) -> Done:
    """Ranks forked from one process, which is faster: of `unraze`, or of a script."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = (Path(folder) / name for name in ("out", "err"))
        job = {"count": count, "program": program, "words": words, "cwd": os.getcwd()}
        forker = _forker()
        assert forker.stdin is not None
        assert forker.stdout is not None
        forker.stdin.write(json.dumps({**job, "out": str(out), "err": str(err)}) + "\n")
        forker.stdin.flush()
        status = int(forker.stdout.readline())
        return subprocess.CompletedProcess(words, status, out.read_text(), err.read_text())


@cache
def _forker() -> subprocess.Popen[str]:
    """forked.py, as long as this process lives."""
    pipe = subprocess.PIPE
    command = [sys.executable, str(Path(__file__).with_name("forked.py"))]
    environment = os.environ | ENVIRONMENT
    program = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
    atexit.register(program.communicate)
    return program


def tiny(folder: Path) -> Path:
    """The folder, with images.npy and a configuration in it, tiny.toml, to train on them."""
    np.save(folder / "images.npy", ranked.images().pixels[:, 0])
    (folder / "tiny.toml").write_text(TINY, encoding="utf-8")
    return folder
