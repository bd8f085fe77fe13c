"""Tar shards against what tar, bash and tarfile make of them; and tars that mean harm."""

import gzip
import io
import os
import random
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st
from PIL import Image
from range_server import Site, serving

from unraze.cli import main
from unraze.config import DataConfig
from unraze.data import Images, check, load, shards
from unraze.errors import DataError, InputError

Noise = Callable[..., np.ndarray[Any, Any]]
Files = Sequence[tuple[str, bytes]]


def read(source: Path | str, **options: Any) -> Images:
    return load(DataConfig(source=str(source), **options))


def png(pixels: np.ndarray[Any, Any]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def pack(path: Path, files: Files, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def level(value: int) -> bytes:
    """A grey image of 3 × 2, all of one level."""
    return png(np.full((3, 2), value, np.uint8))


def levels(images: Images) -> list[int]:
    return [int(v) for v in images.pixels[:, 0, 0, 0]]


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """A folder of the shards 0 … 2, of two images each, in class 0 and 1."""
    for shard in range(3):
        files: list[tuple[str, bytes]] = []
        for i in range(2):
            key = f"{9 - i:04d}"  # not the order of the names
            files += [(f"{key}.png", level(10 * shard + i)), (f"{key}.cls", str(i).encode())]
        pack(tmp_path / "shards" / f"s-{shard:03d}.tar", files)
    return tmp_path / "shards"


class TestOrder:
    def test_by_index(self, three: Path) -> None:
        images = read(three)
        assert levels(images) == [0, 1, 10, 11, 20, 21]
        assert tuple(images.names[:3]) == (
            "s-000.tar/0009.png",
            "s-000.tar/0008.png",
            "s-001.tar/0009.png",
        )
        assert images.labels is not None
        assert images.labels.tolist() == [0, 1] * 3
        assert images.class_names == ("0", "1")

    def test_shards_of_more_than_ten(self, tmp_path: Path) -> None:
        for i in range(12):
            pack(tmp_path / f"s-{i}.tar", [("a.png", level(i))])
        assert levels(read(tmp_path)) == list(range(12))

    @pytest.mark.parametrize("pattern", ["s-{000..002}.tar", "s-00{0..2}.tar", "*.tar", ""])
    def test_named_in_several_ways(self, three: Path, pattern: str) -> None:
        assert read(three / pattern).fingerprint == read(three).fingerprint

    def test_on_a_web_server_they_are_the_same(self, three: Path) -> None:
        with serving(Site(files={f"/{p.name}": p.read_bytes() for p in three.iterdir()})) as site:
            source = f"{site.address}/s-{{000..002}}.tar?key=SECRET"
            images = read(source)
            first, site.asked = site.asked, []
            again = read(source)

            # first all are asked for their versions, then each is read to find the images, their
            # sizes, and the pixels; where the images lie is kept
            def versions(asked: list[tuple[str, str]]) -> int:
                return sum(wanted == "bytes=0-0" for _, wanted in asked)

            assert (versions(first), versions(site.asked)) == (3, 3)
            assert len(first) - len(site.asked) >= 3
            site.files["/s-002.tar"] = site.files["/s-001.tar"]
            assert levels(read(source)) == [0, 1, 10, 11, 10, 11]
        assert images.fingerprint == again.fingerprint == read(three).fingerprint
        assert images.names == read(three).names
        assert "SECRET" not in images.source
        assert images.origin is not None
        assert images.origin.source == source

    def test_one_of_them(self, three: Path) -> None:
        images = read(three / "s-001.tar")
        assert levels(images) == [10, 11]
        assert list(images.names) == ["0009.png", "0008.png"]
        assert levels(read(three / "s-{001..001}.tar")) == [10, 11]

    @pytest.mark.skipif(shutil.which("bash") is None, reason="bash is what it is held against")
    @pytest.mark.parametrize(
        "pattern", ["a-{000..012}.tar", "{7..11}.tar", "x{0..1}-{08..10}.tar", "{1..03}.tar"]
    )
    def test_ranges_are_those_of_a_shell(self, pattern: str) -> None:
        out = subprocess.run(["bash", "-c", f"echo {pattern}"], capture_output=True, check=True)
        assert [str(p) for p in shards.named(pattern) or ()] == out.stdout.decode().split()

    def test_what_tar_packs_is_what_the_folder_holds(self, folder: Path) -> None:
        subprocess.run(["tar", "-cf", "../all.tar", "-C", folder.parent, "pictures"], cwd=folder)
        ours, theirs = read(folder.parent / "all.tar"), read(folder)
        by_name = {name.split("/")[-1]: i for i, name in enumerate(ours.names)}
        order = [by_name[name] for name in theirs.names]
        np.testing.assert_array_equal(ours.pixels[order], theirs.pixels)

    @pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
    def test_names_of_any_length(self, tmp_path: Path, form: int) -> None:
        name = f"{'long/' * 80}ü.jpg.png"
        pack(tmp_path / "x.tar", [(name, level(3))], format=form)
        assert list(read(tmp_path / "x.tar").names) == [name]

    def test_a_folder_with_images_beside_a_tar_is_a_folder(self, folder: Path) -> None:
        pack(folder / "x.tar", [("a.png", level(1))])
        assert len(read(folder)) == 12

    def test_from_the_cache_until_a_shard_is_another(self, three: Path) -> None:
        config = DataConfig(source=str(three))
        for _ in range(2):
            assert levels(load(config, memory=0)) == [0, 1, 10, 11, 20, 21]
        pack(three / "s-002.tar", [("a.png", level(7)), ("a.cls", b"1")])
        assert levels(load(config, memory=0)) == [0, 1, 10, 11, 7]


class TestLabels:
    def of(self, path: Path, kind: str, *texts: str) -> Images:
        files: list[tuple[str, bytes]] = []
        for i, text in enumerate(texts):
            files += [(f"{i}.{kind}", text.encode()), (f"{i}.png", level(i))]
        return read(pack(path / "x.tar", files))

    @pytest.mark.parametrize(
        ("kind", "texts", "labels", "names"),
        [
            ("cls", ("1", "0", " 2\n"), [1, 0, 2], ("0", "1", "2")),
            ("cls", ("dog", "cat", "dog"), [1, 0, 1], ("cat", "dog")),
            ("txt", ("b10\n", "b9", "b9"), [1, 0, 0], ("b9", "b10")),
            ("json", ('{"label": 1}', '{"cls": 0, "x": []}', '{"class": "1"}'), [1, 0, 1], None),
            ("json", ('"dog"', '"cat"', '{"label": "cat"}'), [1, 0, 0], ("cat", "dog")),
            ("TXT", ("a", "b"), [0, 1], ("a", "b")),
        ],
    )
    def test_by_kind(
        self, tmp_path: Path, kind: str, texts: Any, labels: list[int], names: Any
    ) -> None:
        images = self.of(tmp_path, kind, *texts)
        assert images.labels is not None
        assert images.labels.tolist() == labels
        assert images.class_names == (names or ("0", "1"))

    def test_captions_are_no_classes(self, tmp_path: Path) -> None:
        images = self.of(tmp_path, "txt", *(f"a picture of number {i}" for i in range(30)))
        assert images.labels is None
        [left] = [f for f in check(DataConfig(source=str(tmp_path))) if f.kind == "left out"]
        assert len(left.names) == 30

    def test_other_json_is_left_out(self, tmp_path: Path) -> None:
        assert self.of(tmp_path, "json", '{"width": 2}', "[1]").labels is None

    def test_the_number_goes_before_the_caption(self, tmp_path: Path) -> None:
        files = [("a.png", level(1)), ("a.txt", b"a cat"), ("a.cls", b"0"), ("a.json", b"{}")]
        assert read(pack(tmp_path / "x.tar", files)).class_names == ("0",)

    def test_folders_are_classes_where_nothing_else_says(self, tmp_path: Path) -> None:
        files = [("all/dogs/1.png", level(1)), ("all/cats/1.png", level(2))]
        images = read(pack(tmp_path / "x.tar", files))
        assert images.class_names == ("cats", "dogs")
        assert images.labels is not None
        assert images.labels.tolist() == [1, 0]

    @pytest.mark.parametrize(
        ("files", "says"),
        [
            ([("a.cls", b"0"), ("a.png", level(0)), ("b.png", level(1))], "1 of 2 images have no"),
            ([("a.cls", b"\xff\xfe\x00"), ("a.png", level(0))], "a.cls is no text"),
            ([("a.json", b"{"), ("a.png", level(0))], "a.json is not JSON"),
            ([("a.json", b"[" * 100_000), ("a.png", level(0))], "a.json is not JSON"),
            ([("a.cls", b"-1"), ("a.png", level(0))], "labels run from -1"),
            ([("a.cls", b"7" * 2_000_000), ("a.png", level(0))], "2000000 bytes, too many"),
        ],
    )
    def test_refused(self, tmp_path: Path, files: Files, says: str) -> None:
        with pytest.raises(DataError, match=says):
            read(pack(tmp_path / "x.tar", files))


class TestHostile:
    def refused(self, path: Path | str, says: str) -> None:
        with pytest.raises(DataError, match=says) as caught:
            read(path)
        assert "\n" not in str(caught.value)

    def test_what_is_cut_off_anywhere(self, three: Path, tmp_path: Path) -> None:
        shard = three / "s-000.tar"
        data = shard.read_bytes()
        with tarfile.open(shard) as tar:
            end = max(m.offset_data + -(-m.size // 512) * 512 for m in tar)
        for length in {0, 1, 100, 511, 512, 600, 1024, 1100, end - 512, end - 1, end}:
            (tmp_path / "cut.tar").write_bytes(data[:length])
            self.refused(tmp_path / "cut.tar", r"cut\.tar: is no whole tar archive")
        (tmp_path / "cut.tar").write_bytes(data[: end + 512])
        assert levels(read(tmp_path / "cut.tar")) == [0, 1]

    def test_a_damaged_header_does_not_end_it_quietly(self, three: Path) -> None:
        shard = three / "s-000.tar"
        with tarfile.open(shard) as tar:
            third = tar.getmembers()[2].offset
        data = bytearray(shard.read_bytes())
        data[third + 150] ^= 0xFF
        shard.write_bytes(data)
        self.refused(
            three, rf"s-000\.tar: is no whole tar archive \(there is no header at byte {third}"
        )

    def test_no_tar(self, tmp_path: Path) -> None:
        (tmp_path / "x.tar").write_bytes(b"something else" * 100)
        self.refused(tmp_path / "x.tar", "is no whole tar archive")
        (tmp_path / "x.tar").write_bytes(gzip.compress(b"x"))
        self.refused(tmp_path / "x.tar", r"is compressed \(gzip\)")
        (tmp_path / "x.tar").write_bytes(bytes(10240))
        self.refused(tmp_path / "x.tar", "holds no images")
        (tmp_path / "x.tar").unlink()
        os.mkfifo(tmp_path / "x.tar")
        self.refused(tmp_path / "x.tar", "is neither a file nor a folder")

    def test_missing_shards(self, three: Path) -> None:
        self.refused(three / "s-{000..003}.tar", r"s-003\.tar: there is no such file")
        self.refused(three / "t-*.tar", r"t-\*\.tar: there is no such file")
        self.refused(three / "s-{002..000}.tar", "give the lower first")
        self.refused(three / "s-{0..99999}-{0..99999}.tar", "names 10000000000 files")
        self.refused(three / "t.tar", "there is no such file or folder")

    def test_damaged_images_are_named_and_can_be_left_out(self, three: Path) -> None:
        pack(three / "s-003.tar", [("x.png", level(5)[:45]), ("x.cls", b"0"), ("y.png", b"")])
        self.refused(three, "1 of 8 images have no label")
        pack(three / "s-003.tar", [("x.png", level(5)[:45]), ("x.cls", b"0")])
        self.refused(three, r"1 of 7 images cannot be read: s-003\.tar/x\.png is damaged")
        assert read(three, skip_bad=True).skipped == ("s-003.tar/x.png",)

    def test_nothing_is_unpacked_and_no_link_followed(self, tmp_path: Path) -> None:
        secret = tmp_path / "secret.png"
        secret.write_bytes(level(9))
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            for name, kind in (("a.png", tarfile.SYMTYPE), ("b.png", tarfile.LNKTYPE)):
                info = tarfile.TarInfo(name)
                info.type, info.linkname = kind, str(secret)
                tar.addfile(info)
            for name in ("/abs.png", "../../up.png", "c.png"):
                info = tarfile.TarInfo(name)
                info.size = len(level(1))
                tar.addfile(info, io.BytesIO(level(1)))
        before = sorted(tmp_path.rglob("*"))
        assert list(read(tmp_path / "x.tar").names) == ["/abs.png", "c.png"]
        assert sorted(tmp_path.rglob("*")) == before

    def test_too_large(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shards, "MAX_BYTES", 60)
        pack(tmp_path / "x.tar", [("a.png", level(1))])
        self.refused(tmp_path / "x.tar", "bytes, more than 60")

    def test_stored_with_holes(self, tmp_path: Path) -> None:
        headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a.png"}
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            info = tarfile.TarInfo("GNUSparseFile.0/a.png")
            info.pax_headers = headers | {"GNU.sparse.realsize": "4"}
            data = b"1\n0\n4\n".ljust(512, b"\0") + b"abcd"
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        self.refused(tmp_path / "x.tar", "is stored with holes")

    @pytest.mark.parametrize("size", ["-1024", "-1000000", "99999999999999999999", "1.5"])
    def test_sizes_that_lead_back_or_nowhere(self, tmp_path: Path, size: str) -> None:
        with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            for name in ("a.png", "b.png"):
                info = tarfile.TarInfo(name)
                info.pax_headers = {"size": size}
                info.size = len(level(1))
                tar.addfile(info, io.BytesIO(level(1)))
        self.refused(tmp_path / "x.tar", r"x\.tar: is no whole tar archive")

    def test_long_and_deep_headers(self, tmp_path: Path) -> None:
        header = tarfile.TarInfo("x")
        header.type, header.size = tarfile.XHDTYPE, 2**33
        with (tmp_path / "x.tar").open("wb") as file:
            file.write(header.tobuf(tarfile.GNU_FORMAT))
            file.truncate(2**33 + 4096)  # takes no room on the disk
        self.refused(tmp_path / "x.tar", "a header of 8589934592 bytes")
        header.size = 0
        (tmp_path / "x.tar").write_bytes(header.tobuf() * 5000 + bytes(1024))
        self.refused(tmp_path / "x.tar", "is no whole tar archive")

    def test_twice_the_same_and_two_of_a_key(self, tmp_path: Path) -> None:
        pack(tmp_path / "x.tar", [("a.png", level(1)), ("a.png", level(2))])
        self.refused(tmp_path / "x.tar", r"holds a\.png twice")
        pack(tmp_path / "x.tar", [("a.png", level(1)), ("a.jpg", level(2))])
        self.refused(tmp_path / "x.tar", r"2 images of the key a \(a\.png, a\.jpg\)")

    def test_whatever_is_changed_in_it(self, three: Path) -> None:
        """Any damage is told in one line, or does no harm; nothing else is raised."""
        shard, chance = three / "s-000.tar", random.Random(0)
        whole = shard.read_bytes()[:5000]
        outcomes = set()
        for _ in range(300):
            data = bytearray(whole + bytes(1024))
            for _ in range(chance.choice((1, 3, 30))):
                data[chance.randrange(len(data))] = chance.choice((0, 32, 48, 55, 128, 255))
            shard.write_bytes(data)
            try:
                read(shard)
                outcomes.add("read")
            except InputError as error:
                outcomes.add("refused" if "\n" not in str(error) else str(error))
        assert outcomes == {"read", "refused"}


def test_a_run_on_shards_goes_on_from_another_folder(
    tmp_path: Path, noise: Noise, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for shard in range(2):
        pixels = noise(20, 8, 8, seed=shard)
        files = [(f"{i}.png", png(p)) for i, p in enumerate(pixels)]
        files += [(f"{i}.cls", str(i % 2).encode()) for i in range(20)]
        pack(tmp_path / "data" / f"s-{shard}.tar", files)
    monkeypatch.chdir(tmp_path)
    small = ["--set", "network.widths=[8, 8]", "--set", "network.groups=4", "--batch", "8"]
    small += ["--dtype", "float32", "--threads", "1", "--set", "schedule.steps=20"]
    command = ["train", "data/s-{0..1}.tar", "--steps", "3", "--classes", "--out", "run"]
    assert main([*command, *small, "--set", "sample.steps=4"]) == 0
    assert "40 images" not in capsys.readouterr().out  # of 40, a tenth is held out
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert main(["resume", "../run"]) == 0
    assert main(["data", "check", "../data"]) == 0


NAMES = st.text(st.sampled_from("ab./é0_-"), min_size=1, max_size=130).filter(
    lambda name: name.strip("/.") and not name.endswith("/")
)


@given(
    st.lists(st.tuples(NAMES, st.integers(0, 1500)), min_size=1, max_size=8),
    st.lists(st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])),
    st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=3),
)
def test_headers_are_read_as_tarfile_reads_them(
    files: list[tuple[str, int]], forms: list[int], damage: list[tuple[int, int]]
) -> None:
    """The plainest are read by ourselves; among others, and where bytes are damaged, all the same,
    or nothing is told of what follows."""
    whole = bytearray()
    for number, (name, size) in enumerate(files):
        info = tarfile.TarInfo(name)
        info.size = size
        form = forms[number % len(forms)] if forms else tarfile.USTAR_FORMAT
        try:
            whole += info.tobuf(form)
        except (ValueError, UnicodeError):  # too long a name for ustar
            whole += info.tobuf(tarfile.PAX_FORMAT)
        whole += bytes(size + -size % 512)
    whole += bytes(1024)
    for place, byte in damage:
        whole[place % len(whole)] = byte
    try:
        with tarfile.open(fileobj=io.BytesIO(whole), mode="r:") as tar:
            wanted = [(m.name, m.offset_data, m.size) for m in tar if m.isreg()]
    except tarfile.TarError:
        wanted = []
    found = []
    try:
        for member in shards._walk("x.tar", 0, io.BytesIO(whole), []):
            found.append((member.name, member.offset, member.size))
    except (tarfile.TarError, DataError, ValueError, OverflowError):
        assert damage
        assert found[: len(wanted)] == wanted[: len(found)]
        return
    assert found == wanted
