"""What a stranger's file can cost is known before it is paid."""

import errno
import gzip
import json
import os
import struct
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from unraze import checkpoint, generate, nn as networks, pictures, untrusted, weights
from unraze.config import Config, LeanConfig, UNetConfig, from_dict, from_toml, to_toml
from unraze.data import images, load_images
from unraze.data.stats import stats
from unraze.errors import CheckpointError, DataError, InputError
from unraze.hardware import require_pictures
from unraze.interop import from_diffusers, lucidrains
from unraze.schedule import Schedule

SPARSE = 2**42
"""Bytes of a file that takes no room on the disk: four terabytes."""


def sparse(file: Path, begin: bytes = b"[") -> Path:
    file.write_bytes(begin)
    os.truncate(file, SPARSE)
    return file


class TestRead:
    def test_a_file_is_refused_from_its_size(self, tmp_path: Path) -> None:
        file = sparse(tmp_path / "x.json")
        began = time.monotonic()
        with pytest.raises(ValueError, match=r"has 4,398,046,511,104 bytes, more than 16,777,216"):
            untrusted.json_of(file)
        with pytest.raises(ValueError, match="more than"):
            untrusted.toml_of(file)
        with pytest.raises(ValueError, match="more than"):
            weights.read(file)
        assert time.monotonic() - began < 1

    def test_a_file_of_just_that_size_is_read(self, tmp_path: Path) -> None:
        (tmp_path / "x").write_bytes(b"12345")
        assert untrusted.read(tmp_path / "x", 5) == b"12345"
        with pytest.raises(ValueError, match="has 5 bytes, more than 4"):
            untrusted.read(tmp_path / "x", 4)

    @pytest.mark.skipif(os.name != "posix", reason="pipes have names on posix alone")
    def test_what_need_not_end_is_no_file(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        for file in (tmp_path / "pipe", Path("/dev/zero")):
            with pytest.raises(OSError, match="is not a plain file") as caught:
                untrusted.read(file, 100)
            assert caught.value.errno == errno.EINVAL

    def test_a_configuration_of_terabytes(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"config\.toml: is not TOML \(has 4,398,"):
            from_toml(sparse(tmp_path / "config.toml"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('ab"\\[]{}'),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('a"\\[]'), inner),
    max_leaves=30,
)


def depth(value: Any) -> int:
    match value:
        case dict():
            return 1 + max(map(depth, value.values()), default=0)
        case list():
            return 1 + max(map(depth, value), default=0)
        case _:
            return 0


class TestDepth:
    @settings(deadline=None, max_examples=40)
    @given(value=JSON, extra=st.integers(0, 40))
    def test_json_is_read_just_where_it_is_not_too_deep(self, value: Any, extra: int) -> None:
        for _ in range(extra):
            value = ["]]}}", value, '[[{{\\"']
        text = json.dumps(value)
        if depth(value) <= untrusted.MAX_DEPTH:
            assert untrusted.json_in(text) == value
            assert untrusted.json_in(text.encode()) == value
        else:
            with pytest.raises(ValueError, match="nests more than 32 deep"):
                untrusted.json_in(text)

    @pytest.mark.parametrize("text", ["[" * 10**6, '{"a":' * 10**6, '[{"a":[' * 10**5])
    def test_brackets_without_end(self, text: str) -> None:
        with pytest.raises(ValueError, match="nests more than 32 deep"):
            untrusted.json_in(text)

    @pytest.mark.parametrize(
        "text",
        ['["' + "\\" * 10**6, '["' + '\\"' * 10**6, "[" * 33 + '"' * 10**6, '"[' * 10**6],
    )
    def test_quotes_without_end_take_no_longer_than_their_length(self, text: str) -> None:
        began = time.monotonic()
        with pytest.raises(ValueError, match=r"."):
            untrusted.json_in("[" * 40 + "]" * 40 + text)
        with pytest.raises(ValueError, match=r"."):
            untrusted.json_in(text + "[" * 40)
        assert time.monotonic() - began < 10

    @pytest.mark.parametrize(
        "text",
        [
            "a = " + "[" * 40 + "]" * 40,
            "a = " + "{a = " * 40 + "1" + "}" * 40,
            ".".join("a" * 40) + " = 1",
            "[" + " . ".join(['"a"'] * 40) + "]",
            "a = " + "[" * 10**6,
            ".".join("a" * 10**6) + " = 1",
        ],
    )
    def test_toml_that_is_too_deep(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "x.toml").write_text(text)
        with pytest.raises(ValueError, match="nests more than 32 deep"):
            untrusted.toml_of(tmp_path / "x.toml")
        with pytest.raises(InputError, match=r"x\.toml: is not TOML \(nests more than 32 deep"):
            from_toml(tmp_path / "x.toml")

    @pytest.mark.parametrize(
        "value",
        [
            "'" + "[" * 99 + "'",
            '"' + "[{." * 99 + '"',
            '"""\n' + '["" {\\"' * 99 + '"""',
            "'''\n" + "['' {" * 99 + "'''",
            "1 # " + "[" * 99,
            "[" + ", ".join(["0.5"] * 999) + "]",
            "[\n" + "\n".join(["  [0.5], # ["] * 99) + "\n]",
        ],
    )
    def test_toml_that_only_looks_deep(self, tmp_path: Path, value: str) -> None:
        (tmp_path / "x.toml").write_text(f"a = {value}\nb.c = 1\n")
        assert untrusted.toml_of(tmp_path / "x.toml")["b"] == {"c": 1}

    def test_a_number_of_a_million_digits(self, tmp_path: Path) -> None:
        (tmp_path / "x.toml").write_text(f"[train]\nsteps = {'9' * 10**6}")
        with pytest.raises(InputError, match=r"x\.toml: is not TOML"):
            from_toml(tmp_path / "x.toml")
        (tmp_path / "x.toml").write_text(f"[train]\nlr = 0x{'f' * 10**5}")
        with pytest.raises(InputError, match=r"train\.lr = a whole number of 400000 bits"):
            from_toml(tmp_path / "x.toml")


class TestTensors:
    @pytest.mark.parametrize(
        ("data", "says"),
        [
            (b"", "a header of 0 bytes, in a file of 0"),
            (struct.pack("<Q", 2**63) + b"{}", "a header of 9,223,372,036,854,775,808 bytes, in a"),
            (struct.pack("<Q", 2**25) + bytes(2**25), "a header of 33,554,432 bytes, more than"),
            (struct.pack("<Q", 2) + b"[]", "a header that holds no names"),
            (struct.pack("<Q", 100) + b"[" * 100, "nests more than 32 deep"),
        ],
    )
    def test_a_header_that_will_not_do(self, data: bytes, says: str) -> None:
        with pytest.raises(ValueError, match=says):
            weights.parsed(data)

    @pytest.mark.parametrize(
        "about",
        [
            {"dtype": "F32", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]},
            {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]},
            {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
            {"dtype": "F32", "shape": [1] * 99, "data_offsets": [0, 4]},
            {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]},
            {"dtype": "X", "shape": [1], "data_offsets": [0, 4]},
            {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
            3,
        ],
    )
    def test_a_tensor_that_cannot_be(self, about: Any) -> None:
        header = json.dumps({"a": about}).encode()
        with pytest.raises(ValueError, match=r"."):
            weights.parsed(struct.pack("<Q", len(header)) + header + bytes(4))

    def test_an_expanded_tensor_of_another_program(self, tmp_path: Path) -> None:
        large = torch.zeros(1).expand(2**45)  # 128 TiB, of four bytes
        held = {"step": 1, "model": {"model.x": large}, "ema": {"ema_model.model.x": large}}
        torch.save(held, tmp_path / "model-1.pt")
        with pytest.raises(CheckpointError, match=r"model\.x of model says that it is larger"):
            lucidrains.read(tmp_path / "model-1.pt")

    def test_a_packed_file_of_another_program(self, tmp_path: Path) -> None:
        torch.save({"step": 1}, tmp_path / "plain.pt")
        with (
            zipfile.ZipFile(tmp_path / "plain.pt") as plain,
            zipfile.ZipFile(tmp_path / "model-1.pt", "w", zipfile.ZIP_DEFLATED) as packed,
        ):
            for name in plain.namelist():
                packed.writestr(name, plain.read(name))
            packed.writestr("archive/data/9", bytes(10**7))
        with pytest.raises(CheckpointError, match="holds parts that are packed"):
            lucidrains.read(tmp_path / "model-1.pt")


class TestNetworks:
    @pytest.mark.parametrize(
        "config",
        [
            LeanConfig(fold=1, widths=(2**16, 2**16)),
            UNetConfig(dim=2**16, multipliers=(256,) * 16),
            UNetConfig(heads=2**16, head_dim=2**16),
        ],
    )
    def test_none_is_built_that_does_not_fit(self, config: LeanConfig | UNetConfig) -> None:
        began = time.monotonic()
        with pytest.raises(InputError, match=r"network: its [0-9,]+ weights need [0-9,]+ GiB"):
            networks.build(config, channels=1, size=(2**15, 2**15))
        assert time.monotonic() - began < 20

    def test_a_run_that_asks_for_a_network_beyond_its_weights(
        self, tmp_path: Path, tiny_config: Config
    ) -> None:
        small = networks.shapes(tiny_config.network, channels=1, size=(8, 8))
        zeros = {name: torch.zeros(shape) for name, shape in small.items()}
        about = {"shape": [1, 8, 8], "class_names": [], "num_classes": 0, "sigma_data": 0.5}
        values = tiny_config.model_dump(mode="json")
        checkpoint.save_weights(
            tmp_path / "checkpoints",
            1,
            model=zeros,
            ema=zeros,
            about=about | {"clusters": None},
            data="",
            config=values,
        )
        (tmp_path / "config.toml").write_text(to_toml(tiny_config))
        assert generate.load(tmp_path).shape == (1, 8, 8)
        large = LeanConfig(fold=1, widths=(2**16, 2**16))
        written = to_toml(tiny_config.model_copy(update={"network": large}))
        (tmp_path / "config.toml").write_text(written)
        with pytest.raises(InputError, match=r"network: its|of another network|has shape"):
            generate.load(tmp_path)
        (tmp_path / "config.toml").write_text(to_toml(tiny_config))
        state = tmp_path / "checkpoints" / "step-00000001" / "state.json"
        said = json.loads(state.read_text())
        said["model"]["shape"] = [1, 2**20, 2**20]
        state.write_text(json.dumps(said))
        with pytest.raises(CheckpointError, match="1048576 x 1048576 pixels, which are too many"):
            generate.load(tmp_path)

    def test_asking_for_the_shapes_draws_no_number(self) -> None:
        config = LeanConfig(fold=1, widths=(8, 8))
        torch.manual_seed(0)
        before = torch.get_rng_state()
        found = networks.shapes(config, channels=1, size=(8, 8))
        assert torch.equal(torch.get_rng_state(), before)
        made = networks.build(config, channels=1, size=(8, 8)).state_dict()
        assert found == {name: value.shape for name, value in made.items()}

    @pytest.mark.parametrize(
        ("section", "key", "value"),
        [
            ({"kind": "lean"}, "widths", [8] * 17),
            ({"kind": "lean"}, "blocks", 10**9),
            ({"kind": "lean"}, "fold", 10**9),
            ({"kind": "unet"}, "multipliers", [10**9]),
            ({"kind": "unet"}, "head_dim", 10**9),
            ({"kind": "unet2d"}, "layers_per_block", 10**6),
            ({"kind": "unet2d"}, "num_class_embeds", 10**9),
            ({"kind": "lucidrains"}, "memory", 10**9),
            ({"kind": "lucidrains"}, "heads", [4] * 99),
        ],
    )
    def test_a_number_that_no_network_needs(
        self, section: dict[str, Any], key: str, value: object
    ) -> None:
        with pytest.raises(InputError, match=rf"^here: network\.{key}.* or fewer|give at most"):
            from_dict({"network": section | {key: value}}, where="here")

    @pytest.mark.parametrize(
        "values",
        [
            {"train": {"batch": 10**12}},
            {"train": {"seed": 2**64}},
            {"sample": {"steps": 10**6}},
            {"sample": {"sampler": "restart", "steps": 2000}},
            {"sample": {"sampler": "restart", "restart_repeats": 10**9}},
            {"schedule": {"steps": 10**6}},
            {"loss": {"borders": [0.0] * 200_000}},
        ],
    )
    def test_other_numbers_without_bound(self, values: dict[str, Any]) -> None:
        with pytest.raises(InputError, match=r"give (at most|less than|[0-9,]+ numbers)|at most"):
            from_dict(values)

    def test_the_longest_lists_that_are_written_are_read(self, tmp_path: Path) -> None:
        steps = 20_000  # a hundred thousand are as well, in five times the time
        schedule = Schedule(torch.linspace(1, 0, steps + 1, dtype=torch.float64))
        given = {"kind": "given", "steps": steps, "rescaled": False}
        config = from_dict({"schedule": given | {"alpha_bar": schedule.alpha_bar.tolist()}})
        (tmp_path / "config.toml").write_text(to_toml(config))
        assert from_toml(tmp_path / "config.toml", complete=True) == config

    def test_a_wrong_value_is_not_shown_at_length(self) -> None:
        for value in ("x" * 10**6, ["x" * 10**6], [[1.0] * 10**6], 10**400):
            with pytest.raises(InputError) as caught:
                from_dict({"train": {"lr": value}})
            assert len(str(caught.value)) < 600
        with pytest.raises(InputError, match=r"there is no key 'a\\nb") as caught:
            from_dict({"a\nb" + "c" * 10**5: 1})
        assert len(str(caught.value)) < 1200
        assert Config()  # which has none of it


class TestArraysAndPictures:
    @pytest.mark.parametrize("ending", ["", ".gz"])
    def test_an_idx_file_that_declares_more_than_it_can_hold(
        self, tmp_path: Path, ending: str
    ) -> None:
        data = struct.pack(">4I", 0x803, 2**14, 1000, 1000)
        file = tmp_path / f"train-images-idx3-ubyte{ending}"
        file.write_bytes(gzip.compress(data) if ending else data)
        with pytest.raises(DataError, match="declares 16384000000 bytes but has only"):
            load_images(file)

    def test_a_cifar_batch_of_terabytes(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"data_batch_1\.bin: has 4,398,046,511,104 bytes"):
            load_images(sparse(tmp_path / "data_batch_1.bin", b""))

    def test_a_zip_s_file_without_a_name(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            archive.writestr("0.png", b"")
        data = (tmp_path / "x.zip").read_bytes()
        at = data.rindex(b"PK\x01\x02")
        nameless = data[at : at + 28] + bytes(2) + data[at + 30 : at + 46]
        (tmp_path / "x.zip").write_bytes(data[:at] + nameless + data[at + 51 :])
        with pytest.raises(DataError, match=r"x\.zip: "):
            load_images(tmp_path / "x.zip")

    @pytest.mark.parametrize("mode", ["CMYK", "P", "1", "LA", "RGBA", "I;16", "L"])
    @pytest.mark.parametrize("name", ["0.jpg", "0.gif", "0.tga"])
    def test_a_picture_is_known_by_its_bytes_whatever_its_name(
        self, tmp_path: Path, mode: str, name: str
    ) -> None:
        level = 255 if mode == "1" else 200
        if mode == "I;16":
            picture = Image.fromarray(np.full((4, 6), level * 257, np.uint16))
        else:
            picture = Image.fromarray(np.full((4, 6), level, np.uint8)).convert(mode)
        (tmp_path / "set").mkdir()
        picture.save(tmp_path / "set" / name, "TIFF")
        found = load_images(tmp_path / "set", channels=3).pixels
        assert found.shape == (1, 3, 4, 6)
        assert np.abs(found.astype(int) - level).max() <= 1

    def test_of_a_moving_picture_the_first_frame(self, tmp_path: Path) -> None:
        frames = [Image.new("L", (6, 4), level) for level in (50, 200)]
        for ending in ("gif", "png", "webp"):
            (tmp_path / ending).mkdir()
            file = tmp_path / ending / f"0.{ending}"
            frames[0].save(file, save_all=True, append_images=frames[1:], lossless=True)
            pixels = load_images(tmp_path / ending, channels=1).pixels
            assert pixels.shape == (1, 1, 4, 6)
            assert (pixels == 50).all()

    @pytest.mark.parametrize("between", [b"", b"\0" * 9])
    def test_a_gif_of_comments_without_end(self, tmp_path: Path, between: bytes) -> None:
        comment = between + b"!\xfe" + (b"\xff" + b"a" * 255) * 60_000
        began = time.monotonic()
        (tmp_path / "set").mkdir()
        (tmp_path / "set" / "0.gif").write_bytes(b"GIF89a\4\0\4\0\0\0\0" + comment)
        with pytest.raises(DataError, match=r"0\.gif has comments of more than 1,048,576 bytes"):
            load_images(tmp_path / "set")
        with pytest.raises(InputError, match="cannot be read as a picture"):
            pictures.read_recipe(tmp_path / "set" / "0.gif")
        assert time.monotonic() - began < 20

    def test_a_gif_with_a_recipe_is_read(self, tmp_path: Path) -> None:
        frames = [Image.fromarray(np.full((4, 4, 3), level, np.uint8)) for level in (9, 99)]
        (tmp_path / "set").mkdir()
        pictures.write_film(frames, tmp_path / "set" / "0.gif", {"seed": 0, "x": "y" * 10**5})
        assert (load_images(tmp_path / "set").pixels == 9).all()

    def test_a_recipe_is_looked_for_at_the_beginning(self, tmp_path: Path) -> None:
        recipe = {"kind": "grid", "seed": 3}
        pictures.write_png(Image.new("L", (8, 8)), tmp_path / "x.png", recipe)
        os.truncate(tmp_path / "x.png", SPARSE)
        assert pictures.read_recipe(tmp_path / "x.png") == recipe
        with pytest.raises(InputError, match="cannot be read as a picture"):
            pictures.read_recipe(sparse(tmp_path / "y.png"))

    def test_a_recipe_that_is_too_deep(self, tmp_path: Path) -> None:
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_text(pictures.KEY, '{"a":' * 10**4)
        Image.new("L", (8, 8)).save(tmp_path / "x.png", pnginfo=info)
        with pytest.raises(InputError, match=r"its recipe cannot be read \(nests more than"):
            pictures.read_recipe(tmp_path / "x.png")


def test_a_few_large_pictures_are_read_like_many_small_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures are held in memory by their bytes, not their number: 256 MiB of them."""
    assert images.at_once((3, 32, 32), 256) == 256
    assert images.at_once((3, 10_000, 10_000), 256) == 1
    assert images.at_once((1, 2000, 2000), 256, itemsize=8) == 8
    pixels = np.random.default_rng(0).integers(0, 256, (7, 4, 5)).astype(np.uint8)
    np.save(tmp_path / "x.npy", pixels)
    (tmp_path / "set").mkdir()
    for number, each in enumerate(pixels):
        Image.fromarray(each).save(tmp_path / "set" / f"{number}.png")
    whole = load_images(tmp_path / "x.npy")
    monkeypatch.setattr(images, "_CHUNK_BYTES", 50)
    for source in ("x.npy", "set"):
        found = load_images(tmp_path / source)
        assert found.fingerprint == whole.fingerprint
        assert np.array_equal(found.pixels, pixels[:, None])
    assert stats(found) == stats(whole)


def test_more_pictures_at_once_than_fit_are_not_begun() -> None:
    require_pictures(64, (3, 64, 64))
    with pytest.raises(InputError, match=r"64 pictures of 10000 x 10000 at once need \d+ GiB"):
        require_pictures(64, (3, 10_000, 10_000))


def test_a_link_in_a_folder_that_is_written_into_is_named(tmp_path: Path) -> None:
    (tmp_path / "run" / "samples").mkdir(parents=True)
    (tmp_path / "run" / "stats.jsonl").write_text("")
    untrusted.require_no_links(tmp_path / "run")
    for name, target in (("samples/step-1.png", "no/such"), ("checkpoints", "/tmp")):
        (tmp_path / "run" / name).symlink_to(target)
        with pytest.raises(InputError, match=f"{name}: is a link"):
            untrusted.require_no_links(tmp_path / "run")
        (tmp_path / "run" / name).unlink()


def test_a_diffusers_model_of_terabytes(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read \(has 4,398,"):
        from_diffusers.read(sparse(tmp_path / "config.json").parent)


def test_archives_lead_nowhere(tmp_path: Path) -> None:
    """Names that lead out of an archive's folder, and links, write nothing and read nothing: those
    with two dots are as hidden files are, and what begins at the root begins at the archive's."""
    import io
    import tarfile

    picture = io.BytesIO()
    Image.new("L", (4, 4)).save(picture, "PNG")
    names = ("../a/0.png", "/b/1.png", "c/../../../2.png")
    home = tmp_path / "home"
    home.mkdir()
    with zipfile.ZipFile(home / "x.zip", "w") as archive:
        for name in names:
            archive.writestr(name, picture.getvalue())
    with tarfile.open(home / "x.tar", "w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(picture.getvalue())
            tar.addfile(info, io.BytesIO(picture.getvalue()))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo("a/link.png")
            link.type, link.linkname = kind, str(tmp_path / "secret.png")
            tar.addfile(link)
    (tmp_path / "secret.png").write_bytes(picture.getvalue())
    there = sorted(tmp_path.rglob("*"))
    for file in ("x.zip", "x.tar"):
        assert list(load_images(home / file).names) == [{"x.zip": "b/1.png"}.get(file, "/b/1.png")]
    assert sorted(tmp_path.rglob("*")) == there
