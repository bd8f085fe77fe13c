"""What several ranks compute and one alone does too, for `test_ranks`; as a script it is a rank."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from unraze import rng, step
from unraze.config import Config, from_dict
from unraze.data import Images
from unraze.errors import Elsewhere, InputError
from unraze.ranks import Ranks, joined
from unraze.sharded import whole
from unraze.train import prepare

LEAN: dict[str, Any] = {"kind": "lean", "fold": 1, "widths": [8, 8], "groups": 4, "finish": 8}
CASES: dict[str, dict[str, Any]] = {
    "plain": {"network": LEAN},
    "classes, flips, parts": {
        "network": LEAN,
        "data": {"flip": True},
        "train": {"classes": True, "accumulate": 2},
    },
    "dropout, augmentation": {"network": LEAN | {"dropout": 0.3}, "data": {"augment": 0.5}},
    "second look, learned variance": {
        "network": {"kind": "unet", "dim": 8, "multipliers": [1, 2], "blocks": 1},
        "loss": {"self_conditioning": True, "variance": "learned"},
    },
}


DESCENDED = ("plain", "dropout, augmentation")
"""Those that 8 steps are made of."""


def config(case: str, *, shard: bool = False) -> Config:
    """A tiny run of 16 images a step, of each kind of noise that a step may have."""
    begun: dict[str, Any] = {
        "schedule": {"steps": 50},
        "sample": {"steps": 4},
        "train": {"steps": 30, "batch": 16, "dtype": "float32", "threads": 1, "shard": shard},
    }
    changes = CASES[case]
    sections = {k: begun.get(k, {}) | changes.get(k, {}) for k in begun | changes}
    return from_dict({"preset": "tiny", **sections})


def images() -> Images:
    """37 images of 8 x 8 in two classes: epochs end in the middle of a batch."""
    pixels = np.random.default_rng(0).integers(0, 256, (37, 1, 8, 8)).astype(np.uint8)
    return Images.from_arrays(pixels, labels=np.arange(37) % 2, source="noise")


@contextmanager
def in_float64() -> Iterator[None]:
    """Steps of training are computed in float64: networks, images and noise."""
    normal, assemble = rng.normal, step.assemble
    with (
        mock.patch.object(rng, "normal", lambda *given: normal(*given).double()),
        mock.patch.object(step, "assemble", lambda *given: assemble(*given).double()),
    ):
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)


def _begun(case: str, ranks: Ranks, shard: bool) -> step.Trainee:
    return step.begin(prepare(config(case, shard=shard), images()), images(), ranks=ranks)


def gradient(case: str, ranks: Ranks, *, shard: bool = False) -> dict[str, Tensor]:
    """That of the third step in float64, and its loss."""
    with in_float64():
        trainee = _begun(case, ranks, shard)
        loss = step.gradients(trainee, 3)
        found = {"loss": torch.tensor(loss, dtype=torch.float64)}
        for name, p in trainee.network.named_parameters():
            assert p.grad is not None
            found[name] = p.grad.clone()
        return whole(found)


def descended(case: str, ranks: Ranks, *, shard: bool = False) -> dict[str, Tensor]:
    """The weights after 8 steps of plain gradient descent in float32."""
    trainee = _begun(case, ranks, shard)
    parameters = trainee.network.parameters()
    trainee = replace(trainee, optimizer=torch.optim.SGD(parameters, lr=0.1))
    for number in range(1, 9):
        step.gradients(trainee, number)
        trainee.optimizer.step()
    return whole({name: p.detach().clone() for name, p in trainee.network.named_parameters()})


def agree(ranks: Ranks) -> None:
    """Asserts what ranks tell each other."""
    assert ranks.first(lambda: f"from {ranks.number}") == "from 0"
    assert ranks.each(lambda: ranks.number) == list(range(ranks.count))
    assert ranks.total(1.5) == 1.5 * ranks.count
    assert ranks.any(ranks.number == 1)
    assert not ranks.any(False)
    for total in (0, 1, 7):
        rows = torch.arange(2.0 * total).reshape(total, 2)
        own = ranks.share(total)
        assert torch.equal(ranks.joint(rows[own.start : own.stop], total), rows)

    def refuse(number: int) -> int:
        if ranks.number == number:
            raise InputError("will not do")
        return ranks.number

    for number, together in ((0, ranks.first), (0, ranks.each), (1, ranks.each)):
        expected = InputError if ranks.number == number else Elsewhere
        with pytest.raises(expected, match="will not do"):
            together(lambda number=number: refuse(number))
    order: list[int] = []
    ranks.in_turn(lambda: order.append(ranks.local))
    assert order == [ranks.local]


def computed(ranks: Ranks, *, shard: bool = False) -> dict[str, Tensor]:
    """Gradients of all cases, and the weights of those that steps are made of."""
    found = {}
    for case in CASES:
        of_case = gradient(case, ranks, shard=shard)
        found |= {f"gradient/{case}/{k}": v for k, v in of_case.items()}
        if case in DESCENDED:
            of_case = descended(case, ranks, shard=shard)
            found |= {f"weights/{case}/{k}": v for k, v in of_case.items()}
    return found


def main(folder: Path, *ways: str) -> None:
    """Computes it all as one of the ranks, "whole" or "divided"; the first writes what they have
    into a file a way."""
    torch.set_num_threads(1)
    with joined() as ranks:
        agree(ranks)
        for way in ways:
            found = computed(ranks, shard=way == "divided")
            everywhere = ranks.each(
                lambda found=found: {k: v.sum().item() for k, v in found.items()}
            )
            assert all(sums == everywhere[0] for sums in everywhere), "ranks differ"
            if ranks.is_first:
                parts = {k: v.contiguous() for k, v in found.items()}
                safetensors.torch.save_file(parts, folder / way)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
