"""Throws damaged and made-up files at every reader of a stranger's files, for minutes or hours.

    python tools/fuzz.py --list             the readers
    python tools/fuzz.py zip --minutes 60   one of them; `all` takes one after the other

A reader may read a file, or refuse it in one line by an error of the package (`UnrazeError`).
Whatever else happens is a finding: another exception, more than 2 GiB of memory, more than 20
seconds over one input. Its input is kept under fuzz-findings/. Inputs begin with whole files, which
`seeds` makes, and are changed by atheris (libFuzzer), which keeps what reaches lines of the readers
that no other input did. `pip install -c constraints.txt ".[fuzz]"` installs it.

The tests try the same readers on some dozens of changed files each (tests/fuzz).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import re
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FINDINGS = Path("fuzz-findings")
MOST_BYTES, MOST_SECONDS, MOST_MIB = 2**16, 20, 2048
"""Of an input, over an input, and of memory, which torch and its like take 500 of."""
READERS = (
    *("unraze.drawing", "unraze.checkpoint", "unraze.clusters", "unraze.config"),
    *("unraze.data", "unraze.generate", "unraze.pictures"),
    *("unraze.interop.from_diffusers", "unraze.interop.lucidrains"),
)
"""The modules whose lines are watched, with what they import of these packages."""
WATCHED = ["unraze", "PIL", "zipfile", "tarfile", "tomllib", "tomli", "gzip", "json"]

SHAPE = (1, 8, 8)
TINY: dict[str, Any] = {
    "preset": "tiny",
    "network": {"kind": "lean", "fold": 1, "widths": [4, 4], "groups": 2, "heads": 2},
    "schedule": {"steps": 50},
    "sample": {"steps": 4},
    "train": {"steps": 12, "batch": 8, "dtype": "float32", "threads": 1},
}


@dataclass(frozen=True)
class Reader:
    """What reads: `prepare` lays out a folder once, `read` puts the bytes into it and reads it;
    `seeds` are whole files."""

    read: Callable[[Path, bytes], None]
    seeds: Callable[[], list[bytes]]
    prepare: Callable[[Path], None] = lambda folder: None


def tried(reader: Reader, folder: Path, data: bytes) -> str | None:
    """None where the bytes were read, or in what words they were refused; raises for a finding."""
    from unraze.errors import UnrazeError

    try:
        reader.read(folder, data)
    except UnrazeError as error:
        said = str(error)
        if not said or "\n" in said or len(said) > 4000:
            raise AssertionError(f"not one line that a person reads: {said[:4000]!r}") from error
        return said
    return None


# -------------------------------------------------------------------------------------- the readers


def _config(folder: Path, data: bytes) -> None:
    from unraze import nn, schedule
    from unraze.config import from_toml, to_toml

    (folder / "config.toml").write_bytes(data)
    config = from_toml(folder / "config.toml", complete=True)
    to_toml(config)
    schedule.from_config(config.schedule)
    nn.shapes(config.network, channels=1, size=SHAPE[1:])


def _config_seeds() -> list[bytes]:
    from unraze.config import from_dict, preset_names, preset_text, to_toml

    made = [to_toml(from_dict(TINY)), *map(preset_text, preset_names())]
    return [text.encode() for text in made]


def _run(folder: Path) -> None:
    """A run of one checkpoint, of a network of some thousand weights that says zero."""
    import torch

    from unraze import checkpoint, nn
    from unraze.config import from_dict, to_toml

    config = from_dict(TINY)
    (folder / "config.toml").write_text(to_toml(config), encoding="utf-8")
    wanted = nn.shapes(config.network, channels=1, size=SHAPE[1:])
    weights = {name: torch.zeros(shape) for name, shape in wanted.items()}
    about = {"shape": list(SHAPE), "class_names": [], "num_classes": 0, "sigma_data": 0.5}
    checkpoint.save_weights(
        folder / "checkpoints",
        1,
        model=weights,
        ema=weights,
        about=about | {"clusters": None},
        data="",
        config=config.model_dump(mode="json"),
    )


SAVED = Path("checkpoints", "step-00000001")


@cache
def _in_a_run(*names: str) -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        _run(Path(folder))
        return [(Path(folder) / SAVED / name).read_bytes() for name in names]


def _weights(folder: Path, data: bytes) -> None:
    """With the hash that a stranger's checkpoint would have."""
    from unraze import generate

    (folder / SAVED / "ema.safetensors").write_bytes(data)
    state = json.loads(_in_a_run("state.json")[0])
    state["sha256"]["ema"] = hashlib.sha256(data).hexdigest()
    state["hash"] = None
    (folder / SAVED / "state.json").write_text(json.dumps(state), encoding="utf-8")
    generate.load(folder)


def _state(folder: Path, data: bytes) -> None:
    from unraze import generate

    (folder / SAVED / "state.json").write_bytes(data)
    generate.load(folder)


SHARD = "shard-00001-model-00001-of-00001.safetensors"


def _shards(folder: Path, data: bytes) -> None:
    """A checkpoint of many ranks, with one file that holds all parts."""
    from unraze import generate

    for part in ("model", "ema", "optim"):  # those of one process
        (folder / SAVED / f"{part}.safetensors").unlink(missing_ok=True)
    (folder / SAVED / SHARD).write_bytes(data)
    state = json.loads(_in_a_run("state.json")[0])
    del state["sha256"]
    state["hash"] = None
    state["shards"] = {SHARD: hashlib.sha256(data).hexdigest()}
    (folder / SAVED / "state.json").write_text(json.dumps(state), encoding="utf-8")
    generate.load(folder)


def _shards_seeds() -> list[bytes]:
    import safetensors.torch

    (data,) = _in_a_run("ema.safetensors")
    whole = safetensors.torch.load(data)
    parts = {f"{part}/{name}": v.clone() for part in ("model", "ema") for name, v in whole.items()}
    places = {key: {"saved_offsets": [0] * value.ndim} for key, value in parts.items()}
    said = {"DCP_SHARDING_INFO": json.dumps(places)}
    return [safetensors.torch.save(parts, metadata=said)]


def _sampling(folder: Path, data: bytes) -> None:
    from unraze import generate

    (folder / SAVED / "sampling.json").write_bytes(data)
    model = generate.load(folder)
    assert model.tuning is not None
    for settings in model.tuning.settings.values():
        generate.check(model, settings)
        generate.plan_of(model, settings)


def _sampling_seeds() -> list[bytes]:
    from unraze.config import SampleConfig
    from unraze.generate import Tuning

    (state,) = _in_a_run("state.json")
    ways = {
        4: SampleConfig(steps=4, spacing=(0.0, 9.0, 20.0, 40.0, 50.0)),
        9: SampleConfig(sampler="restart", steps=9, order=1, restart_repeats=1),
    }
    of = json.loads(state)["sha256"]["ema"]
    return [Tuning(checkpoint=of, default=4, settings=ways).model_dump_json(indent=1).encode()]


def _clusters(folder: Path, data: bytes) -> None:
    from unraze import clusters

    (folder / "clusters.safetensors").write_bytes(data)
    found = clusters.read(folder / "clusters.safetensors")
    clusters.drawn(found, 3, 0)


def _clusters_seeds() -> list[bytes]:
    import safetensors.numpy

    arrays = {
        "mean": np.zeros(4),
        "axes": np.eye(4)[:, :2],
        "centres": np.zeros((3, 2)),
        "labels": np.arange(9) % 3,
    }
    return [safetensors.numpy.save(arrays)]


NETWORK: dict[str, Any] = {
    "_class_name": "UNet2DModel",
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [4, 4],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "attention_head_dim": 2,
}
DIFFUSERS = {
    "model_index.json": {
        "_class_name": "DDPMPipeline",
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "DDPMScheduler"],
    },
    "unet/config.json": NETWORK,
    "scheduler/scheduler_config.json": {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": 50,
        "beta_schedule": "linear",
        "clip_sample": True,
        "prediction_type": "epsilon",
        "variance_type": "fixed_small",
    },
}


def _model(folder: Path) -> None:
    import safetensors.torch
    import torch

    from unraze import nn
    from unraze.config import UNet2DConfig
    from unraze.interop.from_diffusers import WEIGHTS

    for name, values in DIFFUSERS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(values), encoding="utf-8")
    keys = {k: v for k, v in NETWORK.items() if k in UNet2DConfig.model_fields}
    wanted = nn.shapes(UNet2DConfig(**keys), channels=1, size=SHAPE[1:])
    weights = {name: torch.zeros(shape) for name, shape in wanted.items()}
    safetensors.torch.save_file(weights, folder / "unet" / WEIGHTS)


def _diffusers(folder: Path, data: bytes) -> None:
    """The first byte says which of the three files the others are."""
    from unraze.interop import from_diffusers

    if data:
        name = list(DIFFUSERS)[data[0] % len(DIFFUSERS)]
        (folder / name).write_bytes(data[1:])
        try:
            from_diffusers.read(folder)
        finally:
            (folder / name).write_text(json.dumps(DIFFUSERS[name]), encoding="utf-8")


def _diffusers_seeds() -> list[bytes]:
    return [bytes([i]) + json.dumps(v).encode() for i, v in enumerate(DIFFUSERS.values())]


def _lucidrains(folder: Path, data: bytes) -> None:
    from unraze.interop import lucidrains

    (folder / "model-1.pt").write_bytes(data)
    read = lucidrains.read(folder / "model-1.pt")
    lucidrains.configuration(read, lucidrains.findings(read), objective="pred_v")


def _lucidrains_seeds() -> list[bytes]:
    import torch

    from unraze import nn
    from unraze.config import LucidrainsConfig

    small = LucidrainsConfig(dim=4, multipliers=(1,), attention=(0,), heads=(1,), head_dim=(2,))
    wanted = nn.shapes(small, channels=1, size=SHAPE[1:])
    betas = torch.tensor([0.5, 0.9, 0.999])
    alphas = (1 - betas).cumprod(0)
    held = {f"model.{name}": torch.zeros(shape) for name, shape in wanted.items()}
    held |= {"betas": betas, "sqrt_alphas_cumprod": alphas.sqrt()}
    held |= {"sqrt_one_minus_alphas_cumprod": (1 - alphas).sqrt()}
    ema = {f"ema_model.{name}": value for name, value in held.items()}
    file = io.BytesIO()
    torch.save({"step": 1, "model": held, "opt": {}, "ema": ema, "version": "2.2"}, file)
    return [file.getvalue()]


def _images(name: str) -> Callable[[Path, bytes], None]:
    """Reads a file of that name as a set of images: as they are, and brought to a size."""

    def read(folder: Path, data: bytes) -> None:
        from unraze.config import DataConfig
        from unraze.data import load
        from unraze.data.reading import has_test_part
        from unraze.errors import DataError

        file = folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(data)
        source = str(file.parent if name.startswith("pictures/") else file)
        has_test_part(source)
        first = None
        for options in ({}, {"size": (4, 6), "channels": 3, "background": "red"}):
            try:
                load(DataConfig(source=source, skip_bad=bool(options), **options))
            except DataError as error:
                first = first or error
        if first is not None:
            raise first

    return read


def _noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def _idx_seeds() -> list[bytes]:
    return [struct.pack(">4I", 0x803, 3, 4, 5) + _noise(3, 4, 5).tobytes()]


def _gz_seeds() -> list[bytes]:
    import gzip

    return [gzip.compress(data, mtime=0) for data in _idx_seeds()]


def _cifar_seeds() -> list[bytes]:
    records = _noise(2, 3073)
    records[:, 0] = 3, 9
    return [records.tobytes()]


def _npy_seeds() -> list[bytes]:
    made = []
    for array in (_noise(3, 4, 5), _noise(3, 4, 5, 3), _noise(3, 4, 5) / np.float32(255)):
        file = io.BytesIO()
        np.save(file, array)
        made.append(file.getvalue())
    return made


def _npz_seeds() -> list[bytes]:
    made = []
    for save in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        names = np.array(["a", "b"])
        save(file, images=_noise(3, 4, 5), labels=np.array([0, 1, 0]), class_names=names)
        made.append(file.getvalue())
    return made


@cache
def _pictures() -> dict[str, bytes]:
    """A picture of each kind that is read, by its ending and its mode."""
    rgb, made = Image.fromarray(_noise(5, 7, 3)), {}
    for ending in ("png", "jpg", "bmp", "gif", "webp", "tif", "ppm", "tga", "jp2", "ico", "avif"):
        for mode in ("RGB", "L", "P", "RGBA", "CMYK", "LAB", "I;16", "F", "1"):
            file = io.BytesIO()
            picture = rgb.convert("L") if mode in ("I;16", "F") else rgb
            try:
                picture = Image.new("LAB", (7, 5)) if mode == "LAB" else picture.convert(mode)
                sizes = {"sizes": [(7, 5)]} if ending == "ico" else {}
                picture.save(file, Image.registered_extensions()[f".{ending}"], **sizes)
            except (OSError, KeyError, ValueError):  # a mode that this format does not have
                continue
            made[f"{ending} {mode}"] = file.getvalue()
    for ending in ("gif", "png", "webp", "tif"):
        file = io.BytesIO()
        frames = [Image.fromarray(_noise(5, 7, 3)[::k]) for k in (1, -1)]
        frames[0].save(file, ending.replace("tif", "tiff"), save_all=True, append_images=frames[1:])
        made[f"{ending} moving"] = file.getvalue()
    return made


def _picture_seeds() -> list[bytes]:
    Image.init()
    return list(_pictures().values())


def _zip_seeds() -> list[bytes]:
    made = []
    picture = _picture_seeds()[0]
    for packing in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", packing) as archive:
            for name in ("a/0.png", "b/../1.png", "/c/2.png"):
                archive.writestr(name, picture)
        made.append(file.getvalue())
    return made


def _tar_seeds() -> list[bytes]:
    made = []
    picture = _picture_seeds()[0]
    members = {"a.png": picture, "a.json": b'{"label": 3}', "b.png": picture, "b.json": b"4"}
    members |= {"../c.png": picture, "../c.json": b'"4"', "d" * 120: b""}
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=kind) as archive:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                if len(name) < 100 or kind != tarfile.USTAR_FORMAT:
                    archive.addfile(info, io.BytesIO(data))
            link = tarfile.TarInfo("e.png")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
        made.append(file.getvalue())
    return made


def _recipe(folder: Path, data: bytes) -> None:
    from unraze import pictures
    from unraze.drawing import understood

    (folder / "x.png").write_bytes(data)
    understood(pictures.read_recipe(folder / "x.png"), folder / "x.png")


def _recipe_text(folder: Path, data: bytes) -> None:
    """The words of a recipe, in a picture that is whole."""
    from PIL.PngImagePlugin import PngInfo

    from unraze.pictures import KEY

    info, file = PngInfo(), io.BytesIO()
    info.add_itxt(KEY, data.decode("utf-8", "replace").replace("\0", ""))
    Image.new("L", (2, 2)).save(file, "PNG", pnginfo=info)
    _recipe(folder, file.getvalue())


def _recipe_words() -> bytes:
    from unraze.config import SampleConfig

    said: dict[str, Any] = {"kind": "image", "unraze": "0.1.0", "run": "runs/x", "checkpoint": "ab"}
    said |= {"step": 1, "raw": False, "seed": 0, "class": None, "batch": [0, 4], "threads": 2}
    said |= {"device": "cpu", "engine": "torch", "image": 1}
    return json.dumps(said | {"settings": SampleConfig().model_dump(mode="json")}).encode()


def _recipe_seeds() -> list[bytes]:
    from unraze.pictures import write_film, write_png

    picture, recipe = Image.fromarray(_noise(5, 7)), json.loads(_recipe_words())
    with tempfile.TemporaryDirectory() as folder:
        one, film = Path(folder) / "x.png", Path(folder) / "x.gif"
        write_png(picture, one, recipe)
        write_film([picture, picture.rotate(180)], film, recipe)
        return [one.read_bytes(), film.read_bytes()]


def _cache(folder: Path, data: bytes) -> None:
    from unraze.data import cache as kept

    os.environ["UNRAZE_CACHE"] = str(folder)
    (folder / "images" / "x" / "about.json").write_bytes(data)
    kept.kept("x", "somewhere")


def _cached(folder: Path) -> None:
    (folder / "images" / "x").mkdir(parents=True)
    (folder / "images" / "x" / "pixels").write_bytes(bytes(2 * 1 * 4 * 4))


def _cache_seeds() -> list[bytes]:
    said = {"shape": [2, 1, 4, 4], "labels": [0, 1], "class_names": ["a", "b"], "skipped": []}
    said |= {"names": ["0.png", "1.png"], "held_back": 0, "fingerprint": "0" * 64, "version": 2}
    return [json.dumps(said).encode()]


def _record(folder: Path, data: bytes) -> None:
    from unraze.data import Images, record

    (folder / "data.json").write_bytes(data)
    kept = record.read(folder / "data.json")
    if kept is not None:
        record.changes(kept, Images.from_arrays(np.zeros((2, 1, 4, 4), np.uint8)))


def _record_seeds() -> list[bytes]:
    from unraze.data import Images, record

    pixels = np.zeros((2, 1, 4, 4), np.uint8)
    sets = Images.from_arrays(pixels), Images.from_arrays(pixels, names=["a.png", "b.png"])
    return [record.written(record.record(images, "run")).encode() for images in sets]


TARGETS = {
    "config": Reader(_config, _config_seeds),
    "weights": Reader(_weights, lambda: _in_a_run("ema.safetensors"), _run),
    "shards": Reader(_shards, _shards_seeds, _run),
    "state": Reader(_state, lambda: _in_a_run("state.json"), _run),
    "sampling": Reader(_sampling, _sampling_seeds, _run),
    "clusters": Reader(_clusters, _clusters_seeds),
    "diffusers": Reader(_diffusers, _diffusers_seeds, _model),
    "lucidrains": Reader(_lucidrains, _lucidrains_seeds),
    "idx": Reader(_images("train-images-idx3-ubyte"), _idx_seeds),
    "idx-gz": Reader(_images("train-images-idx3-ubyte.gz"), _gz_seeds),
    "cifar": Reader(_images("data_batch_1.bin"), _cifar_seeds),
    "npy": Reader(_images("x.npy"), _npy_seeds),
    "npz": Reader(_images("x.npz"), _npz_seeds),
    "zip": Reader(_images("x.zip"), _zip_seeds),
    "tar": Reader(_images("x.tar"), _tar_seeds),
    "image": Reader(_images("pictures/0.png"), _picture_seeds),
    "recipe": Reader(_recipe, _recipe_seeds),
    "recipe-text": Reader(_recipe_text, lambda: [_recipe_words()]),
    "cache": Reader(_cache, _cache_seeds, _cached),
    "data": Reader(_record, _record_seeds),
}


# ------------------------------------------------------------------------------------- the fuzzing


def fuzz(name: str, place: Path, seconds: int) -> None:
    """Fuzzes one reader in this process, which ends with it; libFuzzer speaks on stderr."""
    import importlib
    import logging
    import warnings

    import atheris

    with atheris.instrument_imports(include=WATCHED, enable_loader_override=False):
        for module in READERS:
            importlib.import_module(module)
    warnings.simplefilter("ignore")
    logging.disable()
    reader = TARGETS[name]
    os.environ["UNRAZE_CACHE"] = str(place / "cache")
    reader.prepare(place / "work")
    options = {
        "max_total_time": seconds,
        "max_len": MOST_BYTES,
        "timeout": MOST_SECONDS,
        "rss_limit_mb": MOST_MIB,
        "print_final_stats": 1,
        "artifact_prefix": f"{FINDINGS}/{name}-",
    }
    words = [sys.argv[0], *(f"-{key}={value}" for key, value in options.items())]
    words.append(str(place / "corpus"))
    atheris.Setup(words, lambda data: tried(reader, place / "work", data) and None)
    atheris.Fuzz()


def fuzzed(name: str, minutes: float) -> bool:
    """Fuzzes one reader in a process of its own, and says in a line what came of it."""
    FINDINGS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"unraze-fuzz-{name}-") as place:
        corpus = Path(place) / "corpus"
        for folder in (corpus, Path(place) / "work"):
            folder.mkdir()
        for number, seed in enumerate(TARGETS[name].seeds()):
            (corpus / f"seed-{number:03d}").write_bytes(seed)
        command = [sys.executable, __file__, name, "--inside", place, "--minutes", str(minutes)]
        done = subprocess.run(command, stderr=subprocess.PIPE, check=False)
        kept = len(list(corpus.iterdir()))
    said = done.stderr.decode(errors="replace")
    (FINDINGS / f"{name}.log").write_text(said, encoding="utf-8")
    memory = [int(mib) for mib in re.findall(r"rss: (\d+)Mb", said)]
    tries = re.search(r"number_of_executed_units: (\d+)", said) or re.search(
        r"Done (\d+) runs", said
    )
    print(
        f"{name}: {int(tries[1]) if tries else 0:,} inputs in {minutes:g} minutes, {kept} kept, "
        f"memory {memory[0] if memory else 0} to {memory[-1] if memory else 0} MiB, "
        + ("no finding" if done.returncode == 0 else f"A FINDING: {FINDINGS / name}.log"),
        flush=True,
    )
    return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("target", nargs="?", choices=["all", *TARGETS])
    parser.add_argument("--minutes", type=float, default=60.0, help="for each reader")
    parser.add_argument("--list", action="store_true", help="say what can be fuzzed")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.list or asked.target is None:
        print("\n".join(TARGETS))
        return 0
    if asked.inside is not None:
        fuzz(asked.target, asked.inside, round(asked.minutes * 60))
        return 0
    names = list(TARGETS) if asked.target == "all" else [asked.target]
    good = [fuzzed(name, asked.minutes) for name in names]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
