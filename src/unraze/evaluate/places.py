"""Where an evaluation keeps its parts: under names that say what each depends on.

    FOLDER/kept/samples-…/                  drawn by these weights, settings, seed
    FOLDER/kept/figures-…, memorisation-…   of those samples, so many of them, and the real images
    FOLDER/kept/levels-…, bound-…, flow-…   of these weights and the real images
    FOLDER/step-00001000-….json             the result, of all of it

The dots are a hash. So an evaluation that was stopped goes on, and one of more samples, or in other
features, draws none twice but those of a last batch that was not full.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from unraze.config import SampleConfig
from unraze.data import Images
from unraze.evaluate.features import FeatureSpace
from unraze.evaluate.kept import key_of
from unraze.evaluate.reference import Reference
from unraze.evaluate.samples import in_proportion
from unraze.generate import Model

__all__ = ["Places", "places_of_images", "places_of_run"]


@dataclass(frozen=True)
class Places:
    """What the names of an evaluation's files are made from.

    Arguments:
        folder: of the results.
        generated: a key of the samples, or the fingerprint of images, and their number.
        drawing: the name of the folder of samples; empty for images.
        network: a key of the weights and of what they mean; empty for images.
        real, training: the fingerprints of the reference's parts.
        flip: the reference's.
    """

    folder: Path
    generated: str
    drawing: str
    network: str
    real: str
    training: str
    flip: bool

    @property
    def samples(self) -> Path:
        """The folder of a run's samples."""
        return self.folder / "kept" / self.drawing

    def figures(self, space: FeatureSpace) -> Path:
        """The file of the figures in one space."""
        key = key_of(generated=self.generated, real=self.real, space=space.hash)
        return self.folder / "kept" / f"figures-{key}.json"

    def memorisation(self, spaces: Iterable[FeatureSpace]) -> Path:
        """The file of what is said of copies."""
        key = key_of(
            generated=self.generated,
            real=self.real,
            training=self.training,
            flip=self.flip,
            spaces=[space.hash for space in spaces],
        )
        return self.folder / "kept" / f"memorisation-{key}.json"

    def of_network(self, part: str) -> Path:
        """The file of a part that depends on the network and the real images, not on samples."""
        key = key_of(network=self.network, real=self.real, training=self.training)
        return self.folder / "kept" / f"{part}-{key}.json"

    def result(self, spaces: Iterable[FeatureSpace], prefix: str) -> Path:
        """The file of the whole."""
        key = key_of(
            generated=self.generated,
            network=self.network,
            real=self.real,
            training=self.training,
            spaces=[space.hash for space in spaces],
        )
        return self.folder / f"{prefix}-{key}.json"


def places_of_run(
    folder: Path,
    model: Model,
    reference: Reference,
    *,
    settings: SampleConfig,
    count: int,
    seed: int,
) -> Places:
    """Where `evaluate_run` keeps what it makes of so many samples."""
    meaning = {"schedule", "loss", "network"}
    network = key_of(
        checkpoint=model.checkpoint, **model.config.model_dump(mode="json", include=meaning)
    )
    classes = in_proportion(model, reference.held_out)
    drawing = key_of(
        network=network, settings=settings.model_dump(mode="json"), seed=seed, classes=classes
    )
    return Places(
        folder=folder,
        generated=f"{count} of {drawing}",
        drawing=f"samples-{drawing}",
        network=network,
        real=reference.held_out.fingerprint,
        training=reference.training.fingerprint,
        flip=reference.flip,
    )


def places_of_images(folder: Path, images: Images, reference: Reference) -> Places:
    """Where `evaluate_images` keeps what it makes."""
    return Places(
        folder=folder,
        generated=images.fingerprint,
        drawing="",
        network="",
        real=reference.held_out.fingerprint,
        training=reference.training.fingerprint,
        flip=reference.flip,
    )
