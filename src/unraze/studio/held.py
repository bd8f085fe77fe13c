"""What stays in memory between two requests: models, images, and pictures that were dropped."""

import io
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from PIL import Image

from unraze import checkpoint, generate
from unraze.config import DataConfig
from unraze.data import Images, load
from unraze.data.shape import UnreadableError, colour, decode, fitted
from unraze.errors import DataError, InputError
from unraze.generate import Model
from unraze.run import Run
from unraze.studio.library import Missing

__all__ = ["Held"]

T = TypeVar("T")
Array = np.ndarray[Any, Any]

MODELS, SETS, PICTURES = 3, 2, 32
LARGEST = 2048
"""The longest side of a dropped picture that is kept: networks see smaller ones."""


class _Recent(Generic[T]):
    """The last few of what is dear to make."""

    def __init__(self, most: int) -> None:
        self._most, self._kept = most, OrderedDict[Hashable, T]()
        self._lock, self._making = threading.Lock(), dict[Hashable, threading.Lock]()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """What is kept under a key, or made now: by one thread, while others have what is kept."""
        with self._lock:
            making = self._making.setdefault(key, threading.Lock())
        with making:
            with self._lock:
                if key in self._kept:
                    self._kept.move_to_end(key)
                    return self._kept[key]
            made = make()
            with self._lock:
                self._kept[key] = made
                while len(self._kept) > self._most:
                    old, _ = self._kept.popitem(last=False)
                    self._making.pop(old, None)
        return made


class Held:
    """Models and images by what they are read from; uploads by their identifiers."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._lock = threading.Lock()
        self._models, self._sets = _Recent[Model](MODELS), _Recent[Images](SETS)
        self._uploads: OrderedDict[str, tuple[Image.Image, str]] = OrderedDict()

    def model(
        self, run: Run, *, step: int | Literal["best"] | None = None, raw: bool = False
    ) -> Model:
        """The model of a run, read anew where it has a newer checkpoint; raises as `load` does."""
        newest = checkpoint.listing(run.checkpoints)
        tuned = [(path / generate.TUNING).exists() for path in newest[-1:]]
        date = newest[-1].stat().st_mtime_ns if newest else 0
        key = (run.path, step, raw, date, *tuned)

        def read() -> Model:
            return generate.load(run.path, raw=raw, step=step, device=self.device)

        return self._models.get(key, read)

    def images(
        self,
        data: DataConfig,
        split: Literal["train", "held-out"],
        progress: Callable[[int, int], None] | None = None,
    ) -> Images:
        """Images of a data set; raises `DataError`."""
        key = (data.model_dump_json(), split)
        return self._sets.get(key, lambda: load(data, split=split, progress=progress))

    def examples(self, model: Model) -> Images:
        """Images to show a run's way with: such as it was not trained on, where there are any."""
        try:
            return self.images(model.config.data, "held-out")
        except DataError:
            return self.images(model.config.data, "train")

    def keep(self, data: bytes, file: str) -> dict[str, Any]:
        """Keeps a dropped picture, of a file of that name; raises `InputError` for what is no
        picture."""
        try:
            picture = decode(io.BytesIO(data))
        except UnreadableError as error:
            raise InputError(f"the picture {error}; give a PNG, JPEG or the like") from error
        about = {"width": picture.width, "height": picture.height, "mode": picture.mode}
        picture.thumbnail((LARGEST, LARGEST))
        name = secrets.token_hex(8)
        with self._lock:
            self._uploads[name] = (picture, file)
            while len(self._uploads) > PICTURES:
                self._uploads.popitem(last=False)
        return {"id": name, **about}

    def upload(self, name: str, model: Model) -> Array:
        """A dropped picture, brought to a model's size and colours: uint8 (C, H, W)."""
        picture, _ = self._upload(name)
        data, (channels, height, width) = model.config.data, model.shape
        ground = colour(data.background)
        try:
            return fitted(
                picture,
                size=(height, width),
                fit=data.fit,
                channels=channels,
                background=ground,
            )
        except UnreadableError as error:
            raise InputError(f"the picture {error}; give another") from error

    def file_of(self, name: str) -> str:
        """The name of the file that a dropped picture was in; raises `Missing`."""
        return self._upload(name)[1]

    def _upload(self, name: str) -> tuple[Image.Image, str]:
        found = self._uploads.get(name)
        if found is None:
            raise Missing("this picture is not kept any more; drop it again")
        return found
