"""Features by a file of the user's: a network exported to ONNX elsewhere.

    input    one, float32 (N, 3, H, W), RGB from 0 to 255; H and W fixed, N free or fixed
    output   the first one, float (N, …), flattened to (N, d)

Everything else, scaling and normalising above all, belongs into the file, so that its hash says
all. Images are brought to H x W channel by channel in floating point, by Pillow's bicubic filter,
which averages where it makes smaller, and cut off at 0 and 255, as Parmar et al. 2022 do
("On aliased resizing and surprising subtleties in GAN evaluation", arXiv:2104.11222); grey images
are repeated for R, G and B. docs/features.md says how such a file is made.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from unraze import untrusted
from unraze.errors import InputError
from unraze.evaluate.features import FeatureSpace
from unraze.hardware import memory

__all__ = ["onnx_space", "resized"]

Array = np.ndarray[Any, Any]

BATCH = 8
"""Images a call, where the file leaves it open: a large network takes seconds for these already."""
FLOATS = ("tensor(float)", "tensor(float16)", "tensor(double)")


def onnx_space(path: Path | str) -> FeatureSpace:
    """The feature space of an ONNX file; it is tried on two images first.

    Raises `InputError` where onnxruntime is not installed, where the file does not load, where its
    input or output is not as this module says, or where it gives a value that is not finite.
    """
    path = Path(path).expanduser()
    session, data = _loaded(path)
    batch, size = _input(session, path)
    output = session.get_outputs()[0]
    if output.type not in FLOATS:
        raise InputError(
            f"{path}: its first output {output.name!r} is {output.type}; export one of floats"
        )

    def run(pixels: Array) -> Array:
        return _run(session, pixels, path, batch, size)

    black_and_white = np.zeros((2, 3, *size), dtype=np.uint8)
    black_and_white[1] = 255
    dim = run(black_and_white).shape[1]

    def extract(pixels: Array) -> Array:
        right = pixels.dtype == np.uint8 and pixels.ndim == 4 and pixels.shape[1] in (1, 3)
        if not right or pixels.size == 0:
            raise InputError(
                f"images are {pixels.dtype} {pixels.shape}; give uint8 (N, 1 or 3, H, W)"
            )
        return run(pixels)

    def classify(pixels: Array) -> Array | None:
        return None

    digest = hashlib.sha256(data).hexdigest()
    return FeatureSpace(
        name=f"onnx:{path.name}",
        hash=digest,
        dim=dim,
        about=f"{dim} features by {path.name}; images are brought to {size[0]} x {size[1]} by "
        "Pillow's bicubic filter; not scored",
        extract=extract,
        classify=classify,
    )


def resized(pixels: Array, size: tuple[int, int]) -> Array:
    """uint8 (N, 1 or 3, H, W) as float32 (N, 3, *size) from 0 to 255."""
    count, channels, height, width = pixels.shape
    out = np.empty((count, 3, *size), dtype=np.float32)
    if (height, width) == size:
        out[:] = pixels
        return out
    for target, image in zip(out, pixels, strict=True):
        for number, channel in enumerate(image):
            picture = Image.fromarray(channel.astype(np.float32))
            small = picture.resize((size[1], size[0]), Image.Resampling.BICUBIC)
            target[number] = np.asarray(small).clip(0, 255)
        if channels == 1:
            target[1:] = target[0]
    return out


def _loaded(path: Path) -> tuple[Any, bytes]:
    """onnxruntime's session, and the file's bytes: what is run is what is hashed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(
            f"{path}: features by an ONNX file need onnxruntime, which is not installed; "
            'install it: pip install "unraze[onnx]"'
        ) from error
    try:
        data = untrusted.read(path, memory())
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(
            f"{path}: cannot be read ({why}); give the path of a network exported to ONNX"
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is in the exception
    options.use_deterministic_compute = True
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions share no other base
        raise InputError(
            f"{path}: does not load as an ONNX model ({_reason(error)}); export it as one file, "
            "its weights in it"
        ) from error
    return session, data


def _input(session: Any, path: Path) -> tuple[int, tuple[int, int]]:
    """The batch and the (H, W) that the file's input asks for; raises `InputError`."""
    inputs = session.get_inputs()
    wanted = "export it with one input, float32 (N, 3, H, W), H and W fixed"
    if len(inputs) != 1:
        raise InputError(f"{path}: has {len(inputs)} inputs; {wanted}")
    (one,) = inputs
    shape = list(one.shape)
    fixed = all(isinstance(n, int) and n > 0 for n in shape[1:])
    if one.type != "tensor(float)" or len(shape) != 4 or not fixed or shape[1] != 3:
        stated = ", ".join(str(n) for n in shape)
        raise InputError(f"{path}: its input {one.name!r} is {one.type} ({stated}); {wanted}")
    batch = shape[0] if isinstance(shape[0], int) and shape[0] > 0 else BATCH
    return batch, (shape[2], shape[3])


def _run(session: Any, pixels: Array, path: Path, batch: int, size: tuple[int, int]) -> Array:
    """Features float32 (N, d), in calls of one size, the last one filled up with black."""
    name, first_output = session.get_inputs()[0].name, session.get_outputs()[0].name
    out: list[Array] = []
    for first in range(0, len(pixels), batch):
        part = resized(pixels[first : first + batch], size)
        whole = np.zeros((batch, *part.shape[1:]), dtype=np.float32)
        whole[: len(part)] = part
        try:
            (features,) = session.run([first_output], {name: whole})
        except Exception as error:  # onnxruntime's own exceptions share no other base
            raise InputError(f"{path}: does not run ({_reason(error)})") from error
        if features.ndim < 2 or len(features) != batch or features.size == 0:
            raise InputError(
                f"{path}: its first output is {features.shape} for {batch} images; export one "
                "that is (N, d), a row of features for each image"
            )
        rows = features[: len(part)].reshape(len(part), -1).astype(np.float32)
        if not np.isfinite(rows).all():
            raise InputError(
                f"{path}: gives features that are not finite numbers; check that it is given RGB "
                "from 0 to 255 where it was exported, too"
            )
        out.append(rows)
    return np.concatenate(out)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
