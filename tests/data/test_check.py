"""Each fault of a set is found and named."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unraze.config import DataConfig
from unraze.data import Finding, check


def findings(folder: Path, **options: Any) -> dict[str, Finding]:
    found = check(DataConfig(source=str(folder), **options))
    assert all(f.count == len(f.names) for f in found if f.kind != "few")
    assert all(f.remedy for f in found)
    return {f.kind: f for f in found}


def test_a_good_set_is_only_small(folder: Path) -> None:
    found = findings(folder)
    assert set(found) == {"few"}
    assert found["few"].count == 12


def test_nothing_is_wrong_with_a_large_set(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1000, 8, 8)).astype(np.uint8)
    np.savez(tmp_path / "x.npz", images=pixels, labels=np.arange(1000) % 10)
    assert findings(tmp_path / "x.npz") == {}


def test_unreadable_files(folder: Path) -> None:
    (folder / "3.png").write_bytes(b"")
    (folder / "4.png").write_bytes((folder / "4.png").read_bytes()[:60])
    unreadable = findings(folder)["unreadable"]
    assert unreadable.severity == "error"
    assert unreadable.names[0] == "3.png (is empty, 0 bytes)"
    assert unreadable.names[1].startswith("4.png (is damaged")
    assert "--skip-bad" in unreadable.remedy
    skipped = findings(folder, skip_bad=True)["unreadable"]
    assert (skipped.severity, skipped.names) == ("warning", unreadable.names)
    for file in folder.iterdir():
        file.write_bytes(b"")
    assert findings(folder, skip_bad=True)["unreadable"].severity == "error"


def test_duplicates_by_their_pixels(folder: Path) -> None:
    Image.open(folder / "2.png").save(folder / "copy.bmp")
    duplicates = findings(folder)["duplicates"]
    assert duplicates.names == ("copy.bmp (the same as 2.png)",)


def test_odd_sizes_stop_a_run_unless_one_is_given(folder: Path) -> None:
    Image.new("RGB", (9, 9)).save(folder / "odd.png")
    sizes = findings(folder)["sizes"]
    assert (sizes.severity, sizes.names) == ("error", ("odd.png (9 x 9)",))
    assert "--size 6x4" in sizes.remedy
    found = findings(folder, size=(5, 5))
    assert found["sizes"].severity == "note"
    assert found["small"].count == 12


def test_odd_modes(folder: Path) -> None:
    Image.new("L", (4, 6), 3).save(folder / "grey.png")
    Image.new("RGBA", (4, 6), (1, 2, 3, 0)).save(folder / "clear.png")
    Image.new("CMYK", (4, 6), (1, 2, 3, 0)).save(folder / "press.tif")
    assert set(findings(folder)["modes"].names) == {
        "grey.png (grey)",
        "clear.png (colour with transparency)",
        "press.tif (CMYK)",
    }


def test_classes_out_of_balance(tmp_path: Path) -> None:
    levels = np.arange(46, dtype=np.uint8)
    pixels = np.broadcast_to(levels[:, None, None], (46, 8, 8))
    labels = np.repeat([0, 1, 2], [40, 4, 2])
    np.savez(tmp_path / "x.npz", images=pixels, labels=labels, class_names=["a", "b", "c"])
    balance = findings(tmp_path / "x.npz")["balance"]
    assert balance.names == ("c (2)",)
    assert "a (40)" in balance.what


def test_the_worst_comes_first_and_nothing_is_written(folder: Path, own_cache: Path) -> None:
    (folder / "3.png").write_bytes(b"")
    (folder / "notes.txt").write_text("")
    before = sorted(folder.rglob("*"))
    found = check(DataConfig(source=str(folder)))
    assert [f.severity for f in found] == ["error", "warning", "note"]
    assert sorted(folder.rglob("*")) == before
    assert not list(own_cache.iterdir())
