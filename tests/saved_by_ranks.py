"""Two ranks save what they have divided, for `test_ranks`; as a script it is one of them."""

import resource
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from divided import STATE
from unraze import checkpoint
from unraze.errors import Elsewhere, UnrazeError
from unraze.ranks import Ranks, joined

SLOW = 2.0


def value() -> Tensor:
    """Of so many rows that both ranks have some, and one of which the second has none."""
    return torch.arange(5000.0).reshape(5, 1000)


def main(folder: Path) -> None:
    """Where it is written, all go on once it is a checkpoint; where one cannot, all end."""
    with joined() as ranks:
        mesh = init_device_mesh("cpu", (ranks.count,))
        divided = distribute_tensor(value(), mesh, [Shard(0)])
        row = distribute_tensor(value()[:1], mesh, [Shard(0)])
        apart = ranks.group()

        def begun(step: int) -> checkpoint.Saving:
            given: dict[str, Any] = {"model": {"x": divided}, "ema": {"x": divided, "row": row}}
            given |= {"optim": {"x/step": torch.tensor(1.0)}, "state": STATE, "keep": 1}
            return checkpoint.save_sharded(folder, step, **given, ranks=ranks, group=apart)

        is_one(begun(1), ranks)
        is_none(begun, ranks)


def is_one(saving: checkpoint.Saving, ranks: Ranks) -> None:
    """The first rank takes its time; the others wait for it."""
    complete = saving.complete

    def slowly(hashes: dict[str, str]) -> None:
        time.sleep(SLOW)
        complete(hashes)

    object.__setattr__(saving, "complete", slowly)
    pending = checkpoint.Pending(ranks)
    pending.begin(saving)
    while pending.saving is not None:
        assert not saving.path.exists()
        pending.finish(wait=False)
    found = checkpoint.read(saving.path)
    assert torch.equal(found.ema["x"], value())
    assert torch.equal(found.ema["row"], value()[:1])
    assert len(found.state["shards"]) == ranks.count
    ranks.each(lambda: None)


def is_none(begun: Any, ranks: Ranks) -> None:
    """The second rank has no room; the first one says so, and what there was stays."""
    if not ranks.is_first:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, resource.RLIM_INFINITY))
    pending = checkpoint.Pending(ranks)
    pending.begin(begun(2))
    expected = UnrazeError if ranks.is_first else Elsewhere
    with pytest.raises(expected, match=r"step-00000002: cannot be written \(File too large\)"):
        pending.finish()
    assert [p.name for p in sorted(Path(sys.argv[1]).iterdir())] == ["step-00000001"]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
