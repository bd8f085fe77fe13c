"""Data sets that the library itself wrote, read by name of column, label and split."""

import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from unraze.cli import main
from unraze.config import DataConfig
from unraze.data import Images, has_test_part, hub, load
from unraze.errors import DataError
from unraze.interop.card import _datasets, source_name

Noise = Callable[..., np.ndarray[Any, Any]]
NAMES = ("cat", "dog")


PROGRAM = """
import sys
from unraze.data import load_images
from unraze.errors import DataError
for source in sys.argv[1:]:
    try:
        print(load_images(source).fingerprint)
    except DataError as error:
        print(error)
"""


class Answer(BaseHTTPRequestHandler):
    """What the library asks of a hub to read the data set me/pets: what there is, and its bytes."""

    protocol_version = "HTTP/1.1"
    files: ClassVar[dict[str, bytes]] = {}

    def log_message(self, *args: Any) -> None:
        pass

    def say(self, value: Any, status: int = 200, **headers: str) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def answer(self) -> None:
        match self.path.partition("?")[0].strip("/").split("/"):
            case [""]:
                self.say({})
            case ["api", "datasets", "me", "pets"] | [
                "api",
                "datasets",
                "me",
                "pets",
                "revision",
                _,
            ]:
                names = [{"rfilename": name} for name in self.files]
                self.say({"id": "me/pets", "sha": "a" * 40, "siblings": names, "tags": []})
            case ["api", "datasets", "me", "pets", "tree", _]:
                there = self.files.items()
                self.say(
                    [{"type": "file", "path": n, "size": len(d), "oid": "b" * 40} for n, d in there]
                )
            case ["datasets", "me", "pets", "resolve", _, name] if name in self.files:
                data, about = self.files[name], {"ETag": '"b"', "X_Repo_Commit": "a" * 40}
                if found := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
                    first, last = int(found[1]), int(found[2])
                    about["Content_Range"] = f"bytes {first}-{last}/{len(data)}"
                    self.say(data[first : last + 1], 206, **about)
                else:
                    self.say(data, **about, Accept_Ranges="bytes")
            case _:
                self.say({"error": "not found"}, 404, X_Error_Code="EntryNotFound")

    do_GET = do_HEAD = do_POST = answer


@pytest.fixture(autouse=True)
def library(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's cache in a folder of the test's own, and no network."""
    folder = tmp_path_factory.mktemp("hf")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


@pytest.fixture
def pixels(noise: Noise) -> np.ndarray[Any, Any]:
    return noise(10, 6, 4, 3)


@pytest.fixture
def rows(pixels: np.ndarray[Any, Any]) -> datasets.Dataset:
    """Ten images with their labels, as numbers with names, as numbers and as names."""
    labels = [i % 2 for i in range(10)]
    return datasets.Dataset.from_dict(
        {
            "image": [Image.fromarray(p) for p in pixels],
            "label": labels,
            "number": labels,
            "name": [NAMES[1 - label] for label in labels],
            "caption": [None, *("text" for _ in labels[1:])],
        },
        features=datasets.Features(
            {
                "image": datasets.Image(),
                "label": datasets.ClassLabel(names=list(NAMES)),
                "number": datasets.Value("int64"),
                "name": datasets.Value("string"),
                "caption": datasets.Value("string"),
            }
        ),
    )


@pytest.fixture
def saved(rows: datasets.Dataset, tmp_path: Path) -> Path:
    rows.save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def read(source: str, split: Any = "train", **options: Any) -> Images:
    return load(DataConfig(source=source, **options), split=split)


def refused(source: str, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        read(source)
    assert "\n" not in str(caught.value)


def same(images: Images, pixels: np.ndarray[Any, Any]) -> None:
    np.testing.assert_array_equal(images.pixels, pixels.transpose(0, 3, 1, 2))


class TestFormats:
    @pytest.mark.parametrize("options", ["", ",stream=yes", ",column=image,label=label"])
    @pytest.mark.parametrize("kind", ["disk", "dict", "parquet", "file"])
    def test_each_has_the_same_images(
        self,
        rows: datasets.Dataset,
        pixels: np.ndarray[Any, Any],
        tmp_path: Path,
        kind: str,
        options: str,
    ) -> None:
        place = tmp_path / "set"
        match kind:
            case "disk":
                rows.save_to_disk(place)
            case "dict":
                datasets.DatasetDict({"train": rows}).save_to_disk(place)
            case "parquet":
                rows.select(range(5)).to_parquet(place / "train-00000-of-00002.parquet")
                rows.select(range(5, 10)).to_parquet(place / "train-00001-of-00002.parquet")
            case "file":
                place = tmp_path / "x.parquet"
                rows.to_parquet(place)
        images = read(f"hf:{place}{options}")
        same(images, pixels)
        assert images.class_names == NAMES
        assert images.labels is not None
        assert images.labels.tolist() == [0, 1] * 5
        assert images.names[3] == "row 3"

    @pytest.mark.parametrize("stream", ["", ",stream=yes"])
    def test_a_folder_of_images(self, tmp_path: Path, noise: Noise, stream: str) -> None:
        for i, name in enumerate(NAMES):
            (tmp_path / "set" / name).mkdir(parents=True)
            Image.fromarray(noise(6, 4, 3, seed=i)).save(tmp_path / "set" / name / "1.png")
        images = read(f"hf:{tmp_path / 'set'}{stream}")
        same(images, np.stack([noise(6, 4, 3, seed=i) for i in range(2)]))
        assert images.class_names == NAMES

    def test_encoded_bytes_in_a_column_of_bytes(
        self, pixels: np.ndarray[Any, Any], tmp_path: Path
    ) -> None:
        files = []
        for p in pixels:
            out = io.BytesIO()
            Image.fromarray(p).save(out, "PNG")
            files.append(out.getvalue())
        datasets.Dataset.from_dict({"png": files}).save_to_disk(tmp_path / "set")
        refused(f"hf:{tmp_path / 'set'}", r"has no column of images; .*\(it has png\)")
        same(read(f"hf:{tmp_path / 'set'},column=png"), pixels)

    def test_the_first_rows(self, saved: Path, pixels: np.ndarray[Any, Any]) -> None:
        for stream in ("yes", "no"):
            same(read(f"hf:{saved},stream={stream},take=3"), pixels[:3])
        assert len(read(f"hf:{saved},take=99")) == 10

    def test_sizes_and_shares_are_as_of_all_sources(self, noise: Noise, tmp_path: Path) -> None:
        many = {"image": [Image.fromarray(p) for p in noise(40, 6, 4, 3)]}
        datasets.Dataset.from_dict(many).save_to_disk(tmp_path / "many")
        source = f"hf:{tmp_path / 'many'}"
        train = read(source, held_out=0.3, size=(4, 4), channels=1)
        held = read(source, "held-out", held_out=0.3, size=(4, 4), channels=1)
        assert train.pixels.shape[1:] == (1, 4, 4)
        assert len(train) + len(held) == 40
        assert train.held_back == len(held) > 0

    def test_from_the_cache_until_it_is_saved_anew(
        self, saved: Path, rows: datasets.Dataset, pixels: np.ndarray[Any, Any], tmp_path: Path
    ) -> None:
        config = DataConfig(source=f"hf:{saved}")
        for _ in range(2):
            same(load(config, memory=0), pixels)
        rows.select(range(9, -1, -1)).save_to_disk(tmp_path / "turned")
        for file in saved.iterdir():
            file.unlink()
        for file in (tmp_path / "turned").iterdir():
            file.rename(saved / file.name)
        same(load(config, memory=0), pixels[::-1])


class TestColumns:
    def test_labels_of_each_kind(self, saved: Path) -> None:
        expected = {
            "": ([0, 1] * 5, NAMES),
            ",label=number": ([0, 1] * 5, ("0", "1")),
            ",label=name": ([1, 0] * 5, NAMES),
        }
        for options, (labels, names) in expected.items():
            images = read(f"hf:{saved}{options}")
            assert images.labels is not None
            assert images.labels.tolist() == labels
            assert images.class_names == names
        assert read(f"hf:{saved},label=").labels is None

    def test_two_columns_of_images(self, rows: datasets.Dataset, tmp_path: Path) -> None:
        masks = rows.select_columns(["image"]).rename_column("image", "mask")
        both = datasets.concatenate_datasets([rows, masks], axis=1)
        both.save_to_disk(tmp_path / "both")
        refused(f"hf:{tmp_path / 'both'}", "2 columns of images, image, mask; say which")
        assert len(read(f"hf:{tmp_path / 'both'},column=mask")) == 10

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (",column=pixels", r"no column pixels for column \(it has image, label, number"),
            (",label=kind", "no column kind for label"),
            (",column=name", "the column name holds .*, not images"),
            (",label=caption", r"empty in 1 of 10 rows \(row 0 is the first\)"),
            (",label=image", "column image holds Image.*; labels are whole numbers or names"),
            (",split=validation", r"has no split validation; .*split=train \(it has train\)"),
            (",column=image,column=image", "column is given twice"),
            (",stream=1", "stream = '1'; give yes or no"),
            (",take=few", "take = 'few'; give a number"),
            (",take=0", "take = '0'; give a number of rows, at least 1"),
            (",colum=image", "colum is no key of such a source; they are split, column"),
            (",config=other", "config = other: a file, or what save_to_disk wrote, has no"),
        ],
    )
    def test_refused(self, saved: Path, options: str, says: str) -> None:
        refused(f"hf:{saved}{options}", says)


class TestSplits:
    def test_the_test_split_is_the_test_part(
        self, rows: datasets.Dataset, pixels: np.ndarray[Any, Any], tmp_path: Path
    ) -> None:
        parts = {"train": rows.select(range(7)), "test": rows.select(range(7, 10))}
        datasets.DatasetDict(parts).save_to_disk(tmp_path / "set")
        source = f"hf:{tmp_path / 'set'}"
        assert has_test_part(source)
        same(read(source, held_out=0.5), pixels[:7])
        same(read(source, "held-out"), pixels[7:])
        same(read(source, "test"), pixels[7:])
        assert not has_test_part(f"{source},split=train")
        same(read(f"{source},split=test"), pixels[7:])
        with pytest.raises(DataError, match="has no test part of its own"):
            read(f"{source},split=train", "test")

    def test_one_of_any_name(self, rows: datasets.Dataset, tmp_path: Path) -> None:
        datasets.DatasetDict({"all": rows}).save_to_disk(tmp_path / "one")
        assert len(read(f"hf:{tmp_path / 'one'}")) == 10
        datasets.DatasetDict({"a": rows, "b": rows}).save_to_disk(tmp_path / "two")
        refused(f"hf:{tmp_path / 'two'}", r"has no split train; .*split=a \(it has a, b\)")


class TestHostile:
    def of(self, values: list[dict[str, Any]], place: Path) -> str:
        """A file as the library would write it, of what it would not write."""
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        about = {"info": {"features": {"image": {"_type": "Image"}}}}
        schema = pa.schema({"image": kind}, metadata={"huggingface": json.dumps(about)})
        table = pa.table({"image": pa.array(values, kind)}, schema=schema)
        parquet.write_table(table, place / "x.parquet")
        return f"hf:{place / 'x.parquet'}"

    def test_damaged_ones_are_named(self, tmp_path: Path, pixels: np.ndarray[Any, Any]) -> None:
        out = io.BytesIO()
        Image.fromarray(pixels[0]).save(out, "PNG")
        values = [out.getvalue(), out.getvalue()[:60], b"no image", b""]
        source = self.of([{"bytes": value, "path": None} for value in values], tmp_path)
        for stream in ("", ",stream=yes"):
            refused(source + stream, "3 of 4 images cannot be read: row 1 ")
            images = read(source + stream, skip_bad=True)
            assert images.skipped == ("row 1", "row 2", "row 3")

    @pytest.mark.parametrize("stream", ["", ",stream=yes"])
    def test_no_other_file_of_this_machine_is_read(self, tmp_path: Path, stream: str) -> None:
        secret = tmp_path / "secret.png"
        Image.new("L", (4, 4)).save(secret)
        (tmp_path / "set").mkdir()
        names = [str(secret), f"{tmp_path}/set/../secret.png", "zip://x.png::/x.zip"]
        source = self.of([{"bytes": None, "path": name} for name in names], tmp_path / "set")
        refused(source + stream, "3 of 3 images cannot be read: row 0 names a file elsewhere")

    def test_what_is_no_data_set(self, tmp_path: Path) -> None:
        (tmp_path / "x.parquet").write_bytes(b"something else")
        refused(f"hf:{tmp_path / 'x.parquet'}", r"x\.parquet: cannot be loaded \(")
        (tmp_path / "empty").mkdir()
        refused(f"hf:{tmp_path / 'empty'}", "cannot be loaded")
        (tmp_path / "state.json").write_text("{")
        refused(f"hf:{tmp_path}", "cannot be loaded")
        refused(f"hf:{tmp_path / 'nowhere'}", "there is no such file or folder")
        refused("hf:", "names no data set")
        refused("hf:http://example.org/x", "there is no such file or folder")


class TestNames:
    def test_are_handed_to_the_library(
        self, rows: datasets.Dataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = []

        def load_dataset(*args: Any, **options: Any) -> Any:
            asked.append((args, options))
            whole = datasets.DatasetDict({"train": rows})
            return {"train": rows.to_iterable_dataset()} if options["streaming"] else whole

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        monkeypatch.setattr(hub, "is_reachable", lambda: True)
        for stream in (True, False):
            source = f"hf:someone/birds,config=small{',stream=yes' * stream}"
            assert len(read(source)) == 10
            assert asked[-1] == (("someone/birds", "small"), {"streaming": stream})
            assert _datasets(source) == ["someone/birds"] == [source_name(source)]

    def test_a_folder_has_none(self, saved: Path) -> None:
        for source in (f"hf:{saved},label=name", "hf:/gone/saved,label=name"):
            assert _datasets(source) == []
            assert source_name(source) == "saved"

    def test_a_name_that_cannot_be_reached(self) -> None:
        refused("hf:someone/pets", r"cannot be loaded \(.*check the name, connect to the network")

    def test_come_from_a_hub_and_then_from_the_cache(
        self, rows: datasets.Dataset, tmp_path: Path
    ) -> None:
        """From a hub of our own on this machine, and again, quickly, when that is gone."""
        rows.to_parquet(tmp_path / "train.parquet")
        server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        Answer.files = {"train.parquet": (tmp_path / "train.parquet").read_bytes()}
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {
            **os.environ,
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(tmp_path / "hf"),
        }

        def process(*sources: str) -> list[str]:
            command = [sys.executable, "-c", PROGRAM, *sources]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            return done.stdout.splitlines()

        rows.save_to_disk(tmp_path / "saved")
        whole = read(f"hf:{tmp_path / 'saved'}").fingerprint
        assert process("hf:me/pets", "hf:me/pets,stream=yes") == [whole, whole]
        server.shutdown()
        server.server_close()
        began = time.monotonic()
        first, second = process("hf:me/pets", "hf:me/others")
        assert time.monotonic() - began < 20  # the library's own tries alone take 23 s
        assert first == whole
        assert second.startswith("hf:me/others: cannot be loaded (")

    def test_where_the_package_is_missing(
        self, saved: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "datasets", None)
        refused(f"hf:{saved}", r'install it: pip install "unraze\[datasets\]"')


def test_a_run_goes_on_from_another_folder(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["--set", "network.widths=[8, 8]", "--set", "network.groups=4", "--batch", "4"]
    small += ["--dtype", "float32", "--threads", "1", "--set", "schedule.steps=20"]
    small += ["--set", "sample.steps=4", "--size", "8", "--classes", "--steps", "2"]
    assert main(["train", "hf:saved,label=name", *small, "--out", "run"]) == 0
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert main(["resume", "../run"]) == 0
    assert main(["data", "stats", "hf:../saved"]) == 0
    assert "class      dog: 5" in capsys.readouterr().out
