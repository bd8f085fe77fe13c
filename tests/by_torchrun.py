"""What the tests share that start several processes by torchrun."""

import os
import subprocess
import sys
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
clusters = 2
dtype = "float32"
threads = 1
"""

Done = subprocess.CompletedProcess[str]


def torchrun(
    count: int, *command: str, restarts: int = 0, name: str | None = None, **more: str
) -> Done:
    how = ["-m", "torch.distributed.run", f"--nproc-per-node={count}"]
    how += [f"--max-restarts={restarts}", "--monitor-interval=0.1"]
    if name is None:
        how += ["--standalone"]
    else:  # as --standalone is, but for the name
        how += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", f"--rdzv-id={name}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, *how, *command],
        env=environment | more,
        capture_output=True,
        text=True,
        timeout=300,
    )


def tiny(folder: Path) -> Path:
    """The folder, with images.npy and a configuration in it, tiny.toml, to train on them."""
    np.save(folder / "images.npy", ranked.images().pixels[:, 0])
    (folder / "tiny.toml").write_text(TINY, encoding="utf-8")
    return folder
