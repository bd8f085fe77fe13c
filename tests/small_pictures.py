"""What a training draws of itself, in less time: most of a short run's would go there."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from matplotlib.figure import Figure

from unraze import generate, plots, preview
from unraze.config import Config, SampleConfig


@contextmanager
def small_pictures() -> Iterator[None]:
    """Previews are drawn in 4 calls of the network and not in 25; of curves only the page is drawn.

    In this process: what tests start by itself draws as it does for users.
    """
    whole = plots.save

    def quick(config: Config, calls: int) -> SampleConfig:
        return generate.quick(config, min(calls, 4))

    def save(figure: Figure, path: Path, recipe: Mapping[str, Any]) -> None:
        if recipe.get("kind") in ("loss", "quality"):
            figure.set_layout_engine("none")
            figure.set_dpi(20)
            for axes in figure.axes:
                axes.set_visible(False)
        whole(figure, path, recipe)

    with mock.patch.object(preview, "quick", quick), mock.patch.object(plots, "save", save):
        yield
