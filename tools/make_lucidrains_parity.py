"""Makes tests/interop/lucidrains.npz and .json from the real package denoising-diffusion-pytorch.

    pip install --no-deps --target FOLDER -c constraints.txt denoising-diffusion-pytorch==2.3.4 \\
        ema-pytorch==0.8.3 accelerate==1.15.0 einops==0.8.2 tqdm psutil
    python tools/make_lucidrains_parity.py FOLDER

The network, its diffusion, the average and the trainer that writes the file are the package's own.
The package imports torchvision, which has no wheel for every torch. It has no part in what is
stored, so this script puts a module in its place whose transforms do nothing: the trainer names
them where it lists its data, and applies none, for no image is read here.

Weights, pictures and noise are functions of their names (tests/interop/by_name.py), so the test
makes them again. What is stored is what they become: outputs, schedules, samples, and the names and
shapes of what the trainer's file holds.
"""

import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

TESTS = Path(__file__).parents[1] / "tests" / "interop"
sys.path.insert(0, str(TESTS))

import by_name  # noqa: E402

CASES: dict[str, dict[str, Any]] = {
    "default": {
        "unet": {"dim": 8, "dim_mults": (1, 2, 4), "channels": 3},
        "diffusion": {"image_size": (8, 16), "timesteps": 12},
    },
    "self-conditioned": {
        "unet": {
            "dim": 6,
            "init_dim": 10,
            "dim_mults": (1, 3, 2),
            "channels": 1,
            "self_condition": True,
            "attn_heads": (1, 2, 3),
            "attn_dim_head": (8, 4, 6),
            "full_attn": (False, True, False),
            "sinusoidal_pos_emb_theta": 500,
        },
        "diffusion": {
            "image_size": 12,
            "timesteps": 25,
            "beta_schedule": "linear",
            "objective": "pred_x0",
            "sampling_timesteps": 7,
            "ddim_sampling_eta": 0.5,
        },
    },
    "noise": {
        "unet": {"dim": 8, "dim_mults": (2,), "channels": 3, "flash_attn": True},
        "diffusion": {
            "image_size": 8,
            "timesteps": 10,
            "beta_schedule": "cosine",
            "objective": "pred_noise",
            "min_snr_loss_weight": True,
            "sampling_timesteps": 5,
        },
    },
    "learned variance": {
        "unet": {"dim": 8, "dim_mults": (1, 2), "channels": 1, "learned_variance": True},
        "diffusion": {"image_size": 8, "timesteps": 10, "objective": "pred_noise"},
    },
}
"""Small networks that have, between them, all that the import reads from tensors."""
BATCH = 2


def main() -> None:
    """Writes both files and says how large they are."""
    (folder,) = sys.argv[1:]
    sys.path.insert(1, folder)
    stand_in()
    arrays: dict[str, Any] = {}
    about: dict[str, Any] = {"torch": torch.__version__, "cases": {}}
    for name in ("denoising-diffusion-pytorch", "ema-pytorch", "accelerate", "einops"):
        about[name] = version(name)
    for name, case in CASES.items():
        made = of_case(name, case)
        about["cases"][name] = case | {"file": made.pop("file")}
        arrays |= {f"{name}/{key}": value for key, value in made.items()}
    np.savez_compressed(TESTS / "lucidrains.npz", **arrays)
    (TESTS / "lucidrains.json").write_text(json.dumps(about, indent=1) + "\n")
    for file in ("lucidrains.npz", "lucidrains.json"):
        print(f"{TESTS / file}: {(TESTS / file).stat().st_size} bytes")


def stand_in() -> None:
    """Puts an empty module where torchvision is, with the names that the package takes from it."""
    torchvision, transforms = ModuleType("torchvision"), ModuleType("torchvision.transforms")
    for name in ("Compose", "Lambda", "Resize", "RandomHorizontalFlip", "CenterCrop", "ToTensor"):
        setattr(transforms, name, lambda *_: None)
    torchvision.transforms = transforms  # type: ignore[attr-defined]
    torchvision.utils = ModuleType("torchvision.utils")  # type: ignore[attr-defined]
    sys.modules["torchvision"] = torchvision


@torch.no_grad()
def of_case(name: str, case: dict[str, Any]) -> dict[str, Any]:
    """What a network of that configuration says and draws, and how its trainer's file looks."""
    from denoising_diffusion_pytorch import GaussianDiffusion, LearnedGaussianDiffusion, Unet

    unet = Unet(**case["unet"])
    learned = case["unet"].get("learned_variance", False)
    kind = LearnedGaussianDiffusion if learned else GaussianDiffusion
    diffusion = kind(unet, **case["diffusion"]).eval()
    for key, value in unet.state_dict().items():
        value.copy_(by_name.weight(key, tuple(value.shape)))
    shape = (BATCH, unet.channels, *diffusion.image_size)
    x, previous = by_name.noise("x", shape), by_name.uniform("previous", shape)
    t = torch.tensor([0, 999])  # the network takes any; a late one asks most of its sines
    out = {"output": unet(x, t).numpy()}
    if unet.self_condition:
        out["output, told the last"] = unet(x, t, previous).numpy()
    out["sample"] = sampled(diffusion, shape)
    out |= {f"buffer/{k}": v.numpy() for k, v in diffusion.named_buffers()}
    return out | {"file": of_trainer(diffusion)}


def sampled(diffusion: Any, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """The package's own sampling, in [-1, 1], with the k-th noise it draws that named "k"."""
    drawn = 0

    def normal(like: Any, **_: Any) -> torch.Tensor:
        nonlocal drawn
        drawn += 1
        return by_name.noise(f"{drawn - 1}", shape)

    with patch("torch.randn", normal), patch("torch.randn_like", normal):
        images = diffusion.sample(batch_size=shape[0])
    return np.asarray(images * 2 - 1)


def of_trainer(diffusion: Any) -> dict[str, Any]:
    """Names, shapes and types of what the package's trainer saves after a step."""
    from denoising_diffusion_pytorch import Trainer
    from PIL import Image

    with tempfile.TemporaryDirectory() as place:
        images = Path(place) / "images"
        images.mkdir()
        for number in range(100):  # the least that the trainer takes
            Image.new("L", (8, 8)).save(images / f"{number}.png")
        trainer = Trainer(
            diffusion, str(images), results_folder=f"{place}/results", calculate_fid=False
        )
        for weight in diffusion.parameters():
            weight.grad = torch.zeros_like(weight)
        trainer.opt.step()  # leaves its state in the file
        trainer.ema.update()
        trainer.step = 1
        trainer.save(1)
        return described(torch.load(f"{place}/results/model-1.pt", weights_only=True))


def described(value: Any) -> Any:
    """A tensor as "float32 2x3", a dictionary as one of such; anything else as its type."""
    if isinstance(value, torch.Tensor):
        shape = "x".join(map(str, value.shape))
        return f"{str(value.dtype).removeprefix('torch.')} {shape}".strip()
    if isinstance(value, dict) and value and all(isinstance(key, str) for key in value):
        return {key: described(each) for key, each in value.items()}
    return value if isinstance(value, str) else type(value).__name__


if __name__ == "__main__":
    main()
