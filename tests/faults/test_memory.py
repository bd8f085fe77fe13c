"""Memory does not grow, and what would not fit is refused before the system kills for it."""

import json
from pathlib import Path

import pytest
from processes import Forker, Whole, command

from unraze import hardware
from unraze.errors import UnrazeError

pytestmark = pytest.mark.faults

MIB = 2**20


def measured(forker: Forker, tmp_path: Path, do: str, run: Path, counts: list[int]) -> list[int]:
    out = tmp_path / "out.txt"
    assert forker.finish(do, run=str(run), counts=counts, out=str(out)) == 0, out.read_text()
    found = json.loads(out.read_text().splitlines()[-1])
    assert len(found) == len(counts)
    return list(found)


@pytest.mark.parametrize("steps", [100, pytest.param(10_000, marks=pytest.mark.slow)])
def test_steps_do_not_grow(forker: Forker, whole: Whole, tmp_path: Path, steps: int) -> None:
    out, log = tmp_path / "run", str(tmp_path / "log.txt")
    rare = {"eval_every": None, "preview_every": steps, "checkpoint_every": steps // 8}
    fault = {"die at change": 30, "below": str(tmp_path)}  # it is only to be begun
    argv = command(whole.data, out, steps=steps, batch=4, **rare)
    forker.finish("cli", argv=argv, faults=[fault], out=log)
    warm, end = measured(forker, tmp_path, "steps", out, [steps // 4, steps - 1])
    print(f"{warm / MIB:.1f} MiB, then {end / MIB:.1f} MiB")
    assert end - warm < 8 * MIB


@pytest.mark.parametrize("calls", [20, pytest.param(1000, marks=pytest.mark.slow)])
def test_sampling_does_not_grow(forker: Forker, whole: Whole, tmp_path: Path, calls: int) -> None:
    warm, end = measured(forker, tmp_path, "samples", whole.path, [calls // 4, calls])
    print(f"{warm / MIB:.1f} MiB, then {end / MIB:.1f} MiB")
    assert end - warm < 8 * MIB


def test_what_cannot_fit_is_refused_before_the_start(
    forker: Forker, whole: Whole, tmp_path: Path
) -> None:
    """By `ulimit -v`, so that it is a real limit; of control groups see below."""
    out, log = tmp_path / "run", tmp_path / "log.txt"
    job = {"argv": command(whole.data, out, batch=65536, width=256), "out": str(log)}
    assert forker.finish("cli", **job, **{"address space": 8 * 2**30}) == 2, log.read_text()
    last = log.read_text().splitlines()[-1]
    assert "GiB" in last
    assert "smaller" in last
    assert not out.exists()


GROUPS = {
    "version 2": (
        "0::/slurm/job_7\n",
        {"slurm/memory.max": "max", "slurm/job_7/memory.max": str(3 * MIB)},
    ),
    "version 2, above": (
        "0::/slurm/job_7\n",
        {"slurm/memory.max": str(3 * MIB), "slurm/job_7/memory.max": "max"},
    ),
    "version 1": (
        "5:cpu:/\n4:memory:/slurm/job_7\n0::/\n",
        {"memory/slurm/job_7/memory.limit_in_bytes": str(3 * MIB)},
    ),
    "a container's, which shows itself as the top": (
        "4:cpu,memory:/docker/abc\n",
        {"memory/memory.limit_in_bytes": str(3 * MIB)},
    ),
}


@pytest.mark.parametrize("name", GROUPS)
def test_the_limit_of_a_control_group_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    own, limits = GROUPS[name]
    (tmp_path / "own").write_text(own)
    for file, limit in limits.items():
        (tmp_path / "groups" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / file).write_text(limit + "\n")
    before = hardware.memory()
    monkeypatch.setattr(hardware, "OWN_GROUP", tmp_path / "own")
    monkeypatch.setattr(hardware, "GROUPS", tmp_path / "groups")
    assert hardware.memory() == 3 * MIB
    monkeypatch.setattr(hardware, "OWN_GROUP", tmp_path / "none")
    assert hardware.memory() >= before


def test_memory_that_cannot_be_had_is_told() -> None:
    import torch

    said = r"^out of memory \(.*\); give less$"
    with pytest.raises(UnrazeError, match=said), hardware.memory_told("give less"):
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="another"), hardware.memory_told("give less"):
        raise RuntimeError("another")
