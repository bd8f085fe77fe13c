"""Two machines train one run: two network namespaces of this one, each with a name and an address
of its own and a cable between them. Only root may make such."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from by_torchrun import tiny, torchrun
from unraze import checkpoint, run as runs

ROOT = Path(__file__).parents[1]
NAMES = ("unraze-one", "unraze-two")
ADDRESSES = ("10.77.0.1", "10.77.0.2")

IMPATIENT = """
import sys
from datetime import timedelta
from unraze import ranks, watch
from unraze.__main__ import main

ranks.PATIENCE, ranks.BEAT = timedelta(seconds=25), 0.5
watch.LATE, watch.BEAT = 4.0, 0.5
sys.exit(main())
"""


def ip(*words: str, check: bool = True) -> bool:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    assert done.returncode == 0 or not check, done.stderr
    return done.returncode == 0


def are_possible() -> bool:
    """Whether namespaces may be made here; nothing is left of the trial."""
    if os.name != "posix" or os.geteuid() != 0 or not all(map(shutil.which, ("ip", "unshare"))):
        return False
    made = ip("netns", "add", "unraze-trial", check=False)
    return made and ip("netns", "delete", "unraze-trial", check=False)


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not are_possible(), reason="network namespaces are for root"),
]


@pytest.fixture
def cable() -> Iterator[None]:
    """Two machines on one network."""
    hosts = "".join(f"{a} {n}\n" for a, n in zip(ADDRESSES, NAMES, strict=True))
    places = [Path("/etc/netns", name) for name in NAMES]
    try:
        for name, place in zip(NAMES, places, strict=True):
            ip("netns", "delete", name, check=False)
            ip("netns", "add", name)
            place.mkdir(parents=True, exist_ok=True)
            (place / "hosts").write_text(f"127.0.0.1 localhost\n{hosts}")
        ip(
            "link",
            "add",
            "one",
            "netns",
            NAMES[0],
            "type",
            "veth",
            "peer",
            "two",
            "netns",
            NAMES[1],
        )
        for name, link, address in zip(NAMES, ("one", "two"), ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", link)
            ip("-n", name, "link", "set", link, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        for name, place in zip(NAMES, places, strict=True):
            ip("netns", "delete", name, check=False)
            shutil.rmtree(place, ignore_errors=True)


@contextmanager
def on(machine: int, *command: str, **more: str) -> Iterator[subprocess.Popen[str]]:
    """A command on one of the machines; it ends with the block."""
    name = NAMES[machine]
    paths = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    with subprocess.Popen(
        [
            *("ip", "netns", "exec", name, "unshare", "--uts"),
            *("sh", "-c", f'hostname {name}; exec "$0" "$@"', *command),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | paths | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def weights(run: Path) -> dict[str, bytes]:
    last = checkpoint.listing(runs.Run(run).checkpoints)[-1]
    return {p.name: p.read_bytes() for p in sorted(last.glob("*.safetensors"))}


@pytest.mark.usefixtures("cable")
def test_a_run_is_that_of_two_ranks_on_one(tmp_path: Path) -> None:
    data = tiny(tmp_path)
    command = [str(data / "images.npy"), f"--config={data / 'tiny.toml'}"]
    told = {"HEAD": NAMES[0], "NODES": "2", "GPUS": "1", "RESTARTS": "0"}
    script = str(ROOT / "docs" / "launch" / "nodes.sh")
    words = [*command, "--out", str(tmp_path / "apart")]
    with on(0, script, *words, **told) as first, on(1, script, *words, **told) as second:
        said, complained = first.communicate(timeout=240)
        second.communicate(timeout=60)
    assert first.returncode == 0, complained
    assert second.returncode == 0
    assert said.splitlines()[-1] == str(tmp_path / "apart")
    done = torchrun(2, "-m", "unraze", "train", *command, f"--out={tmp_path / 'together'}")
    assert done.returncode == 0, done.stderr
    assert weights(tmp_path / "apart") == weights(tmp_path / "together")


@pytest.mark.usefixtures("cable")
def test_a_cable_that_is_cut_is_told_and_ends_the_run(tmp_path: Path) -> None:
    """Nothing comes from the other machine any more, not even that it is gone. It may wait for the
    first one, in a step or at a checkpoint; the other ends when its system gives the connection up,
    after a quarter of an hour."""
    data = tiny(tmp_path)
    (tmp_path / "impatient.py").write_text(IMPATIENT)
    how = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    how += [f"--master-addr={NAMES[0]}", "--master-port=29411", "--monitor-interval=0.2"]
    command = [str(tmp_path / "impatient.py"), "train", str(data / "images.npy")]
    command += [f"--config={data / 'tiny.toml'}", "--steps=1000000", f"--out={tmp_path / 'run'}"]

    def machine(number: int) -> list[str]:
        return [sys.executable, *how, f"--node-rank={number}", *command]

    with on(0, *machine(0)) as first, on(1, *machine(1)) as second:
        assert first.stdout is not None
        for line in first.stdout:
            if line.startswith("step 2"):
                break
        ip("-n", NAMES[1], "link", "set", "two", "down")
        _, complained = first.communicate(timeout=240)
        second.kill()
    assert first.returncode != 0
    assert "LATE" in complained
    assert f"on {NAMES[1]}) has not been heard of for" in complained
    waited = "waited 0:00:25 for another, from which nothing came"
    assert waited in complained or "has not heard of rank 1 for 0:00:25" in complained
    saved, problems = checkpoint.newest(runs.Run(tmp_path / "run").checkpoints)
    assert saved is not None
    assert not problems
