"""Checkpoints are whole or not at all, and carry no code."""

import errno
import hashlib
import json
import os
import pickle
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from divided import STATE, divide, name_of, shard, tell
from unraze import checkpoint
from unraze.errors import CheckpointError, Elsewhere, UnrazeError, UnreadableError
from unraze.ranks import ALONE, Ranks


def tensors(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {"weight": torch.randn(3, 4), "bias": torch.randn(3)}


def save(folder: Path, step: int, keep: int = 2, periodic: bool = True) -> Path:
    return checkpoint.save(
        folder,
        step,
        model=tensors(step),
        ema=tensors(step + 1000),
        optim={"weight/exp_avg": torch.ones(3, 4)},
        state=STATE | {"updates": step, "periodic": periodic},
        keep=keep,
    )


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    path = save(tmp_path, 7)
    found = checkpoint.read(path)
    assert found.step == 7
    assert found.state["updates"] == 7
    for name, value in tensors(7).items():
        assert torch.equal(found.model[name], value)
    for name, value in tensors(1007).items():
        assert torch.equal(found.ema[name], value)


def test_the_same_tensors_make_the_same_bytes(tmp_path: Path) -> None:
    a, b = save(tmp_path / "a", 3), save(tmp_path / "b", 3)
    for file in a.iterdir():
        assert file.read_bytes() == (b / file.name).read_bytes()


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10):
        save(tmp_path, step)
    assert [p.name for p in checkpoint.listing(tmp_path)] == ["step-00000003", "step-00000010"]


@pytest.mark.parametrize("part", ["model", "ema", "optim"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_newest_is_named_and_the_one_before_is_found(
    tmp_path: Path, part: str, damage: str
) -> None:
    save(tmp_path, 1)
    file = save(tmp_path, 2) / f"{part}.safetensors"
    data = bytearray(file.read_bytes())
    match damage:
        case "flip":
            data[-1] ^= 1
            file.write_bytes(data)
        case "cut":
            file.write_bytes(data[:-5])
        case "gone":
            file.unlink()
    found, problems = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.step == 1
    assert len(problems) == 1
    assert str(file) in problems[0]


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    (path / "state.json").write_text('{"step": 1', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"state\.json: is damaged"):
        checkpoint.read(path)


@pytest.mark.parametrize("key", STATE)
def test_a_state_without_what_a_resume_needs_is_named(tmp_path: Path, key: str) -> None:
    file = save(tmp_path, 1) / "state.json"
    state = json.loads(file.read_text(encoding="utf-8"))
    del state[key]
    file.write_text(json.dumps(state | {"hash": None}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=key):
        checkpoint.read(file.parent)


def test_a_save_that_was_cut_off_is_not_a_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    half = tmp_path / ".step-00000002.123.part"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    found, problems = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.step == 1
    assert problems == []
    save(tmp_path, 3)
    assert not half.exists()


def test_a_full_disk_is_an_error_and_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UnrazeError, match="disk is full"):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    assert checkpoint.read(tmp_path / "step-00000001").step == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the kernel's own full disk is Linux")
def test_the_kernels_own_full_disk(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old", encoding="utf-8")
    (tmp_path / f".file.{os.getpid()}.part").symlink_to("/dev/full")
    with pytest.raises(UnrazeError, match="disk is full"):
        checkpoint.write_atomically(target, "new")
    assert target.read_text(encoding="utf-8") == "old"


def test_a_pickle_is_refused_unopened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (os.system, (f"touch {tmp_path / 'ran'}",))

    folder = tmp_path / "step-00000001"
    folder.mkdir()
    (folder / "model.pt").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match="pickle"):
        checkpoint.read(folder)
    shutil.copy(folder / "model.pt", folder / "model.safetensors")
    (folder / "state.json").write_text(
        json.dumps(STATE | {"step": 1, "sha256": dict.fromkeys(("model", "ema", "optim"), "")})
    )
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        checkpoint.read(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("name", ["ema.safetensors", "ema.pt"])
@pytest.mark.parametrize("known", [True, False])
def test_a_pickle_in_the_place_of_weights_is_called_one(
    tmp_path: Path, new: bool, name: str, known: bool
) -> None:
    folder = save(tmp_path, 1)
    (folder / "ema.safetensors").unlink()
    torch.save(tensors(0), folder / name, _use_new_zipfile_serialization=new)
    if known:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        state["sha256"]["ema"] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        (folder / "state.json").write_text(json.dumps(state | {"hash": None}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=rf"{name}: a pickle can run code"):
        checkpoint.read(folder)


def test_weights_of_another_dtype_are_refused(tmp_path: Path) -> None:
    wide = {name: value.double() for name, value in tensors(0).items()}
    with pytest.raises(CheckpointError, match=r"holds torch\.float64.*torch\.float32"):
        checkpoint.fill(nn.Linear(4, 3), wide, tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"weight": torch.zeros(3, 5)}, r"weight has shape \(3, 5\).*needs \(3, 4\)"),
        ({"extra": torch.zeros(1)}, "has extra besides"),
        ({"bias": None}, "lacks bias"),
    ],
)
def test_weights_of_another_network_are_refused(
    tmp_path: Path, change: dict[str, torch.Tensor | None], says: str
) -> None:
    network = nn.Linear(4, 3)
    before = network.weight.clone()
    wrong = {k: v for k, v in (tensors(0) | change).items() if v is not None}
    with pytest.raises(CheckpointError, match=says):
        checkpoint.fill(network, wrong, tmp_path)
    assert torch.equal(network.weight, before)


def test_the_newest_periodic_one_is_kept_besides_and_they_are_in_order_of_number(
    tmp_path: Path,
) -> None:
    for step, periodic in ((5, True), (10, True), (11, False), (12, False), (100_000_000, False)):
        save(tmp_path, step, periodic=periodic)
    (tmp_path / "step-odd").mkdir()
    assert [int(p.name[5:]) for p in checkpoint.listing(tmp_path)] == [10, 12, 100_000_000]
    save(tmp_path, 100_000_010)
    assert [int(p.name[5:]) for p in checkpoint.listing(tmp_path)] == [100_000_000, 100_000_010]
    checkpoint.remove_after(tmp_path, 100_000_000)
    assert [int(p.name[5:]) for p in checkpoint.listing(tmp_path)] == [100_000_000]


def test_a_hash_is_that_of_the_file(tmp_path: Path) -> None:
    found = checkpoint.read(save(tmp_path, 1))
    assert checkpoint.hash_of(found.ema) == found.hash


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"step": "x"}, "step: "),
        ({"step": -1}, "step: "),
        ({"step": 8}, "is of step 8"),
        ({"sha256": []}, "sha256: "),
        ({"sha256": {"ema": 3}}, "sha256.model is missing"),
        ({"model": None}, "model: "),
        ({"model": STATE["model"] | {"shape": [1, 8]}}, "model.shape: "),
        ({"model": STATE["model"] | {"shape": [10**9, 8, 8]}}, "model: 1000000000 channels"),
        ({"model": STATE["model"] | {"shape": ["1", 8, 8]}}, "model.shape.0: "),
        ({"model": STATE["model"] | {"num_classes": 2}}, "model: 0 names of 2 classes"),
        ({"model": STATE["model"] | {"num_classes": 10**12}}, "model.num_classes: "),
        ({"model": STATE["model"] | {"sigma_data": None}}, "model.sigma_data: "),
        ({"data": 3}, "data: "),
        ({"config": []}, "config: "),
        ({"updates": 1.5}, "updates: "),
        ({"bad": None}, "bad: "),
        ({"lr_factor": float("nan")}, "lr_factor: "),
        ({"lr_factor": 0}, "lr_factor: "),
        ({"rolled_back": 1}, "rolled_back: "),
        ({"periodic": "yes"}, "periodic: "),
    ],
)
def test_a_state_that_was_edited_is_named_with_its_key(
    tmp_path: Path, change: dict[str, object], says: str
) -> None:
    file = save(tmp_path, 7) / "state.json"
    state = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(state | {"hash": None} | change), encoding="utf-8")
    with pytest.raises(CheckpointError, match=re.escape(says)) as caught:
        checkpoint.read(file.parent)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "3", "null", "{", "[" * 100_000])
def test_a_state_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    file = save(tmp_path, 7) / "state.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=re.escape(f"{file}: is damaged")):
        checkpoint.read(file.parent)


SPARSE = 2**42
"""Bytes of a file that takes no room on the disk: four terabytes."""


@pytest.mark.parametrize("part", ["ema.safetensors", name_of(0)])
def test_what_does_not_fit_in_memory_is_no_damage_and_is_not_read(
    tmp_path: Path, part: str
) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    if part == name_of(0):
        divide(path)
    os.truncate(path / part, SPARSE)
    began = time.monotonic()
    for how in ({}, {"whole": False}, {"tensors": False}):
        with pytest.raises(UnreadableError, match=r"has 4,398,.* does not fit in memory"):
            checkpoint.newest(tmp_path, **how)
    assert time.monotonic() - began < 5
    assert [p.name for p in checkpoint.listing(tmp_path)] == ["step-00000001", "step-00000002"]


@pytest.mark.parametrize("divided", [False, True])
def test_one_that_is_only_verified_has_no_tensors(tmp_path: Path, divided: bool) -> None:
    path = save(tmp_path, 2)
    if divided:
        divide(path)
    found = checkpoint.read(path, tensors=False)
    assert (found.step, found.model, found.ema, found.optim) == (2, {}, {}, {})
    file = max(path.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match=f"{file.name}: is damaged"):
        checkpoint.read(path, tensors=False)


class TestShards:
    def test_they_are_what_they_are_of(self, tmp_path: Path) -> None:
        path = save(tmp_path, 7)
        before = checkpoint.read(path)
        divide(path)
        after, shapes = checkpoint.read(path), checkpoint.read(path, whole=False)
        for part in ("model", "ema", "optim"):
            there = getattr(before, part)
            assert getattr(after, part).keys() == there.keys()
            for name, value in getattr(after, part).items():
                assert torch.equal(value, there[name])
            for name, value in getattr(shapes, part).items():
                assert (value.shape, value.dtype) == (there[name].shape, there[name].dtype)
                assert value.is_meta
        assert after.hash == before.hash
        assert after.state["sha256"].keys() == {"model", "ema"}  # the optimiser's is asked by none

    @pytest.mark.parametrize(
        ("pieces", "says"),
        [
            ([([10**30], 2)], "no place"),
            ([([-1], 2), ([1], 1)], "no place"),
            ([([0], 2), ([0], 2), ([4], 2)], "do not make a whole"),
            ([([0], 2), ([3], 2)], "do not make a whole"),
            ([([2**61], 0), ([0], 2)], "do not make a whole"),
            ([([0, 0], 2)], "2 offsets of 1 dimensions"),
            ([("0", 2)], "no place"),
            ([(None, 2)], "TypeError"),
            ([([0], 2), ([[]], 2)], "no place"),
        ],
    )
    def test_pieces_that_make_no_whole(
        self, tmp_path: Path, pieces: list[tuple[Any, int]], says: str
    ) -> None:
        path = save(tmp_path, 1)
        for file in path.glob("*.safetensors"):
            file.unlink()
        given = {
            name_of(number): shard(path / name_of(number), {"ema/x": (offsets, torch.ones(count))})
            for number, (offsets, count) in enumerate(pieces)
        }
        tell(path, given)
        for whole in (True, False):
            with pytest.raises(CheckpointError, match=says):
                checkpoint.read(path, whole=whole)

    def test_blocks_that_overlap_in_some_dimensions(self, tmp_path: Path) -> None:
        """Two halves of the rows, one of them in two halves of the columns, and others."""
        path, value = save(tmp_path, 1), torch.arange(24.0).reshape(4, 6)
        for file in path.glob("*.safetensors"):
            file.unlink()

        def saved(*boxes: tuple[int, int, int, int]) -> torch.Tensor:
            files = {}
            for number, (top, left, bottom, right) in enumerate(boxes):
                piece = {"ema/x": ([top, left], value[top:bottom, left:right])}
                files[name_of(number)] = shard(path / name_of(number), piece)
            tell(path, files)
            return checkpoint.read(path).ema["x"]

        assert torch.equal(saved((0, 0, 2, 3), (2, 0, 4, 6), (0, 3, 2, 6)), value)
        with pytest.raises(CheckpointError, match="do not make a whole"):
            saved((0, 0, 2, 3), (2, 0, 4, 6), (0, 2, 2, 5))
        with pytest.raises(CheckpointError, match="do not make a whole"):
            saved((0, 0, 4, 3), (0, 0, 2, 6), (3, 0, 4, 6))

    def test_a_tensor_of_too_many_dimensions(self, tmp_path: Path) -> None:
        path = save(tmp_path, 1)
        divide(path, 1)
        piece = ([0] * 9, torch.ones([1] * 9))
        tell(path, {name_of(0): shard(path / name_of(0), {"ema/x": piece})})
        with pytest.raises(CheckpointError, match="ema/x has 9 dimensions"):
            checkpoint.read(path)

    def test_a_file_beside_those_that_are_named(self, tmp_path: Path) -> None:
        """Nobody asked for its hash, and ranks would have read it."""
        path = save(tmp_path, 1)
        divide(path)
        shutil.copy(path / name_of(0), path / name_of(7))
        for whole in (True, False):
            with pytest.raises(CheckpointError, match=f"{name_of(7)}: is not of this checkpoint"):
                checkpoint.read(path, whole=whole)

    @pytest.mark.filterwarnings("ignore:torch.distributed is")
    def test_what_is_not_of_the_network_is_named_before_it_is_filled(self, tmp_path: Path) -> None:
        path = save(tmp_path, 1)
        divide(path)
        saved = checkpoint.read(path, whole=False)
        shapes = {part: getattr(saved, part) for part in ("model", "ema", "optim")}
        own = {
            part: {name: torch.zeros_like(value, device="cpu") for name, value in values.items()}
            for part, values in shapes.items()
        }
        for change, says in (
            ({"optim": {}}, "has optim/weight/exp_avg besides"),
            ({"ema": {"weight": torch.zeros(3, 4)}}, "has ema/bias besides"),
            ({"ema": own["ema"] | {"bias": torch.zeros(4)}}, r"ema/bias has shape \(3,\)"),
            ({"ema": own["ema"] | {"bias": torch.zeros(3).double()}}, "ema/bias holds"),
        ):
            with pytest.raises(CheckpointError, match=says):
                checkpoint.read_into(saved, **(own | change))
            assert all(not value.any() for values in own.values() for value in values.values())
        checkpoint.read_into(saved, **own)
        for name, value in tensors(1001).items():
            assert torch.equal(own["ema"][name], value)

    def test_gathered_they_keep_what_was_found_for_them(self, tmp_path: Path) -> None:
        path = save(tmp_path, 1)
        before = checkpoint.read(path)
        divide(path)
        (path / "engines").mkdir()
        (path / "engines" / "x.onnx").write_bytes(b"engine")
        (path / "sampling.json").write_text("{}")
        assert checkpoint.gather(path) == path
        assert sorted(p.name for p in path.iterdir()) == [
            *("ema.safetensors", "engines", "model.safetensors", "optim.safetensors"),
            *("sampling.json", "state.json"),
        ]
        assert (path / "engines" / "x.onnx").read_bytes() == b"engine"
        assert checkpoint.read(path).hash == before.hash
        assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_one_that_was_to_be_replaced_has_its_name_again(tmp_path: Path) -> None:
    """Of what was killed between two renamings; else it goes."""
    path = save(tmp_path, 1)
    path.rename(tmp_path / ".step-00000001.replaced.part")
    (tmp_path / ".step-00000001.7.part").mkdir()
    checkpoint.remove_left_over(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert checkpoint.read(path).step == 1
    shutil.copytree(path, tmp_path / ".step-00000001.replaced.part")
    checkpoint.remove_left_over(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system refuses to write a longer one, as a disk without room does."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.filterwarnings("ignore:torch.distributed is")
class TestSaving:
    """Of shards, by one process, while it does other things."""

    def begun(self, folder: Path, step: int, ranks: Ranks = ALONE) -> checkpoint.Saving:
        return checkpoint.save_sharded(
            folder,
            step,
            model=tensors(step),
            ema=tensors(step + 1000),
            optim={"weight/exp_avg": torch.ones(3, 4), "weight/step": torch.tensor(3.0)},
            state=STATE,
            keep=1,
            ranks=ranks,
            group=None,
        )

    def test_it_is_one_when_it_is_finished(self, tmp_path: Path) -> None:
        save(tmp_path, 1)
        saving = self.begun(tmp_path, 2)
        saving.written.result()
        assert [p.name for p in checkpoint.listing(tmp_path)] == ["step-00000001"]
        saving.finish()
        assert [p.name for p in tmp_path.iterdir()] == ["step-00000002"]
        found = checkpoint.read(saving.path)
        assert torch.equal(found.ema["weight"], tensors(1002)["weight"])
        assert found.optim["weight/step"] == 3

    def test_without_room_nothing_of_it_is_left(self, tmp_path: Path) -> None:
        save(tmp_path, 1)
        with files_of_at_most(500):
            saving = self.begun(tmp_path, 2)
            with pytest.raises(UnrazeError, match=r"step-00000002: cannot be written \(File too"):
                saving.finish()
        assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]

    def test_where_a_rank_s_part_is_not_seen_no_other_one_is_removed(self, tmp_path: Path) -> None:
        """The second rank's of one."""
        save(tmp_path, 1)
        with pytest.raises(Elsewhere, match="is without some of what was to be written"):
            self.begun(tmp_path, 2, Ranks(number=1)).finish()
        assert [p.name for p in checkpoint.listing(tmp_path)] == ["step-00000001"]

    def test_an_error_comes_after_what_was_being_written(self, tmp_path: Path) -> None:
        def diverging(step: int) -> None:
            with checkpoint.Pending(ALONE) as pending:
                pending.begin(self.begun(tmp_path, step))
                raise ValueError("diverged")

        def ending(step: int) -> None:
            with checkpoint.Pending(ALONE) as pending:
                pending.begin(self.begun(tmp_path, step))

        with pytest.raises(ValueError, match="diverged"):
            diverging(2)
        assert checkpoint.read(tmp_path / "step-00000002").step == 2
        with files_of_at_most(500), pytest.raises(ValueError, match="diverged"):
            diverging(3)
        assert [p.name for p in tmp_path.iterdir()] == ["step-00000002"]
        with files_of_at_most(500), pytest.raises(UnrazeError, match="cannot be written"):
            ending(3)
