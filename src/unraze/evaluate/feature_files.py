"""Networks of features on disk: weights without code, checked by their SHA-256.

A file is a safetensors file: matrices and filters in half precision, to which training rounds them,
the rest in single; as metadata what the network scored, and the SHA-256 by which both are checked.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from unraze import files, untrusted
from unraze.errors import CheckpointError
from unraze.evaluate.feature_networks import Net
from unraze.evaluate.feature_training import Recipe

__all__ = ["Score", "read", "weights_hash", "write"]

_DAMAGE = (OSError, ValueError, KeyError, TypeError, RuntimeError, safetensors.SafetensorError)
"""What reading a damaged file raises, by the part that is damaged."""


@dataclass(frozen=True)
class Score:
    """What a network scored on held-out images: the share of `count` of them for which it was
    right, and their fingerprint. Where it was not scored, `count` and `share` are 0."""

    share: float
    count: int
    held_out: str


def weights_hash(net: Net, recipe: Recipe) -> str:
    """SHA-256, in hex, of the kept weights: names, kinds, shapes and bytes, by name."""
    digest = hashlib.sha256()
    for name, value in _kept(net, recipe).items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def write(file: Path, net: Net, recipe: Recipe, score: Score) -> None:
    """Keeps a network: under a temporary name, which is then the file's. Raises `OSError`."""
    about = json.dumps(_about(net, recipe, score), sort_keys=True)
    data = safetensors.torch.save(_kept(net, recipe), metadata={"unraze": about})
    file.parent.mkdir(parents=True, exist_ok=True)
    files.write_whole(file, data)


def read(file: Path, net: Net, recipe: Recipe) -> tuple[Net, Score]:
    """Fills a network of the same recipe with the kept weights, and returns it and its score.

    Raises `CheckpointError` where the file is not whole, was changed, or is of another network.
    """
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            about = untrusted.json_in((opened.metadata() or {})["unraze"])
            names = opened.keys()
            kept = {name: opened.get_tensor(name) for name in names}
        score = Score(**about["score"])
        tensors = {k: v.float() if v.is_floating_point() else v for k, v in kept.items()}
        missing, extra = net.load_state_dict(tensors, strict=False)
    except _DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{file}: is damaged ({reason})") from error
    net.eval().requires_grad_(False)
    needed = [name for name in missing if _is_kept(name, recipe)]
    if needed or extra or about != _about(net, recipe, score):
        raise CheckpointError(f"{file}: is damaged, its contents do not have its SHA-256")
    return net, score


def _about(net: Net, recipe: Recipe, score: Score) -> dict[str, object]:
    said = {"score": asdict(score), "weights": weights_hash(net, recipe)}
    return {**said, "sha256": hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()}


def _kept(net: Net, recipe: Recipe) -> dict[str, Tensor]:
    """What of a network is kept, by name: all but a head that was only there for training."""
    return {
        name: (value.half() if value.dim() >= 2 else value).contiguous()
        for name, value in sorted(net.state_dict().items())
        if _is_kept(name, recipe)
    }


def _is_kept(name: str, recipe: Recipe) -> bool:
    return recipe.objective == "labels" or not name.startswith("head.")
