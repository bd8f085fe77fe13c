"""Unraze: raze an image to noise; learn to raise it back.

Denoising diffusion probabilistic models, from a folder of images to a trained generator. The names
below are the public ones; they are imported when first used, so that `unraze --help` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from unraze.environment import prepare_math

__version__ = "0.1.0"

prepare_math()  # before anything here imports torch: the same bits from Python and the terminal

if TYPE_CHECKING:
    from unraze.config import Config, DataConfig, SampleConfig, preset
    from unraze.data import Images, load_images
    from unraze.denoiser import Denoiser, Prediction, clipped, denoiser as as_denoiser, guided
    from unraze.distillation import distill
    from unraze.generate import Model, load, sample
    from unraze.pictures import to_pil
    from unraze.process import destroy, destroy_step, mu, posterior
    from unraze.samplers import ddim, even_times, greedy, random
    from unraze.schedule import Schedule, cosine, linear
    from unraze.train import fit

_HOME = {
    "Config": "config",
    "DataConfig": "config",
    "Denoiser": "denoiser",
    "Images": "data",
    "Model": "generate",
    "Prediction": "denoiser",
    "SampleConfig": "config",
    "Schedule": "schedule",
    "as_denoiser": "denoiser:denoiser",
    "clipped": "denoiser",
    "cosine": "schedule",
    "ddim": "samplers",
    "destroy": "process",
    "destroy_step": "process",
    "distill": "distillation",
    "even_times": "samplers",
    "fit": "train",
    "greedy": "samplers",
    "guided": "denoiser",
    "linear": "schedule",
    "load": "generate",
    "load_images": "data",
    "mu": "process",
    "posterior": "process",
    "preset": "config",
    "random": "samplers",
    "sample": "generate",
    "to_pil": "pictures",
}

__all__ = [
    "Config",
    "DataConfig",
    "Denoiser",
    "Images",
    "Model",
    "Prediction",
    "SampleConfig",
    "Schedule",
    "__version__",
    "as_denoiser",
    "clipped",
    "cosine",
    "ddim",
    "destroy",
    "destroy_step",
    "distill",
    "even_times",
    "fit",
    "greedy",
    "guided",
    "linear",
    "load",
    "load_images",
    "mu",
    "posterior",
    "preset",
    "random",
    "sample",
    "to_pil",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'unraze' has no attribute '{name}'")
    module, _, there = _HOME[name].partition(":")
    return getattr(import_module(f"unraze.{module}"), there or name)
