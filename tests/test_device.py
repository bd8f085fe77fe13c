"""What a GPU computes is what the processor computes: a training, and all that is done with it.

`UNRAZE_TEST_DEVICE=cuda pytest tests/test_device.py`, on a machine that has one. With `cpu` the
same is asked of the processor, which shows that the tests are not at fault.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from evaluated import digits_file, few_steps
from stopping import after_step
from unraze import checkpoint, run as runs
from unraze.cli import main
from unraze.config import Config, updated
from unraze.data import Images
from unraze.generate import changed, device_of, load, sample
from unraze.hardware import peak_memory
from unraze.nn import layers
from unraze.step import begin, gradients
from unraze.train import fit, prepare, train

DEVICE = os.environ.get("UNRAZE_TEST_DEVICE", "")

pytestmark = pytest.mark.skipif(not DEVICE, reason="UNRAZE_TEST_DEVICE names no device")

VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "adamw": {"train.optimizer": "adamw"},
    "classes": {"train.classes": True},
    "dropout": {"network.dropout": 0.2},
    "augmented": {"data.augment": 0.5, "data.flip": True},
    "self-conditioned": {"loss.self_conditioning": True},
    "finished": {"network.finish": 8},
    "parts": {"train.accumulate": 2},
    "recomputed": {"train.recompute": True},
    "bfloat16": {"train.dtype": "bfloat16"},
    "no class left out": {"train.classes": True, "train.label_dropout": 0.0},
}


def numbers(drawn: torch.Tensor) -> torch.Tensor:
    return drawn.detach().cpu().double()


@pytest.fixture(scope="module")
def trained(
    tiny_config: Config, tiny_images: Images, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run of 100 steps with classes, trained on the device."""
    config = {"train.classes": True, "train.steps": 100, "train.device": DEVICE}
    out = tmp_path_factory.mktemp("runs") / "tiny"
    fit(tiny_images, updated(tiny_config, config), out=out)
    return out


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_gradient_is_that_of_the_processor(
    variant: str, tiny_config: Config, tiny_images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third step's, of weights that are no longer zero at the end of the network; what dropout
    leaves out is drawn by the processor as a GPU of CUDA draws it."""
    monkeypatch.setattr(layers, "_drawn", drawn_at_once)
    found = {}
    for device in ("cpu", DEVICE):
        changes = VARIANTS[variant] | {"train.device": device}
        config = prepare(updated(tiny_config, changes), tiny_images)
        trainee = begin(config, tiny_images)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in trainee.network.parameters():
                p.copy_(0.2 * torch.randn(p.shape, generator=generator))
        loss = gradients(trainee, 3)
        found[device] = (
            loss,
            [numbers(p.grad) for p in trainee.network.parameters() if p.grad is not None],
        )
    (loss, theirs), (other, ours) = found["cpu"], found[DEVICE]
    near = 0.1 if variant == "bfloat16" else 0.02  # convolutions of a GPU may be in TF32
    assert other == pytest.approx(loss, rel=near)
    whole, apart = torch.cat([x.ravel() for x in theirs]), torch.cat([x.ravel() for x in ours])
    assert (whole - apart).norm() < near * whole.norm()


def drawn_at_once(x: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
    return layers.split_mix(torch.tensor(seeds).to(x.device), x[0].numel()).view(x.shape)


def test_a_device_draws_what_dropout_leaves_out_as_the_processor_does() -> None:
    seeds = torch.tensor([2**63 - 1, 0, 1234567])
    assert torch.equal(
        layers.split_mix(seeds.to(DEVICE), 1000).cpu(), layers.split_mix(seeds, 1000)
    )


def test_a_stopped_run_goes_on_as_the_whole_one_and_to_the_byte(
    tiny_config: Config, tiny_images: Images, tmp_path: Path
) -> None:
    found = []
    for stopped in (False, True):
        config = prepare(updated(tiny_config, {"train.device": DEVICE}), tiny_images)
        run = runs.create(config, out=tmp_path / str(stopped))
        if stopped:
            list(train(run, tiny_images, stop=after_step(run, 5)))
        list(train(run, tiny_images))
        last = checkpoint.listing(run.checkpoints)[-1]
        found.append({p.name: p.read_bytes() for p in sorted(last.glob("*.safetensors"))})
    assert found[0] == found[1]


def test_speed_and_memory_are_measured_and_the_dtype_found(
    tiny_config: Config, tiny_images: Images, tmp_path: Path
) -> None:
    changes = {
        "train.device": DEVICE,
        "train.dtype": "auto",
        "train.steps": None,
        "train.minutes": 0.05,
        "train.checkpoint_every": None,
    }
    model = fit(tiny_images, updated(tiny_config, changes), out=tmp_path / "run")
    assert model.config.train.dtype in ("float32", "bfloat16")
    assert model.step == model.config.train.steps
    log = (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")
    assert re.search(r"\d+ steps of .* \d+\.\d GiB of memory", log), log
    assert peak_memory(DEVICE) > 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_compiled_step_trains(tiny_config: Config, tiny_images: Images, tmp_path: Path) -> None:
    changes = {"train.device": DEVICE, "train.compile": True, "train.steps": 6}
    compiled = fit(tiny_images, updated(tiny_config, changes), out=tmp_path / "compiled")
    plain = fit(
        tiny_images,
        updated(tiny_config, changes | {"train.compile": False}),
        out=tmp_path / "plain",
    )
    for p, q in zip(compiled.network.parameters(), plain.network.parameters(), strict=True):
        torch.testing.assert_close(numbers(p), numbers(q), rtol=0.05, atol=0.01)


@pytest.mark.parametrize(
    "sampler",
    ["greedy", "random", "adams", "dpmpp_3m_sde", "unipc", "deis", "ipndm", "heun", "restart"],
)
def test_samples_are_those_of_the_processor(sampler: str, trained: Path) -> None:
    drawn = {}
    for device in ("cpu", DEVICE):
        model = load(trained, device=device)
        assert device_of(model).type == torch.device(device).type
        settings = changed(model.config.sample, {"sampler": sampler, "steps": 10})
        drawn[device] = numbers(sample(model, 8, seed=1, settings=settings))
    off = (drawn["cpu"] - drawn[DEVICE]).abs()
    assert off.mean() < 0.01
    assert drawn[DEVICE].std() > 0.1


@pytest.mark.parametrize(
    "words",
    [
        "sample RUN -n 4 --film",
        "sample RUN -n 4 --class above --guidance 2",
        "edit vary RUN 0.png --film",
        "edit vary RUN 0.png --of above --class below",
        "edit inpaint RUN 0.png --mask 0,4,8,4",
        "edit inpaint RUN 0.png --mask 0,4,8,4 --method mmps",
        "edit inpaint RUN 0.png --mask 0,4,8,4 --method repaint --repeats 2",
        "edit restore RUN 0.png --operator downsample:2 --spoil",
        "edit restore RUN 0.png --operator blur:1 --noise 0.1 --spoil --method diffpir",
        "edit restore RUN 0.png --operator blur:1 --noise 0.1 --spoil --method dps",
        "edit restore RUN 0.png --operator noise --noise 0.5",
        "edit interpolate RUN 0.png 1.png --film",
        "edit interpolate RUN --seeds 1 2",
        "edit invert RUN 0.png --steps 20 --film",
    ],
)
def test_what_is_drawn_and_edited_is_what_the_processor_draws(
    words: str,
    trained: Path,
    tiny_images: Images,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the mean over a picture's values, of 255: a few may differ where a way divides."""
    monkeypatch.chdir(tmp_path)
    for number in (0, 1):
        Image.fromarray(tiny_images.pixels[number, 0]).save(f"{number}.png")
    line = [str(trained) if word == "RUN" else word for word in words.split()]
    found = []
    for out, device in (("a", "cpu"), ("b", DEVICE)):
        assert main([*line, "--device", device, "--out", out]) == 0, capsys.readouterr().err
        files = sorted(Path(out).glob("*.png"))
        assert files
        found.append([(file.name, np.asarray(Image.open(file)).astype(float)) for file in files])
    for (name, theirs), (other, ours) in zip(*found, strict=True):
        assert name == other
        assert np.abs(theirs - ours).mean() < 6, name


def test_from_training_to_a_distilled_and_exported_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands of a user, one after the other, on digits."""
    monkeypatch.chdir(tmp_path)
    digits_file(tmp_path / "digits.npz")
    small = "--set network.fold=1 --set network.widths=[16,32] --set network.groups=4 --batch 16"
    lines = [
        f"train digits.npz --steps 60 --out run --classes {small} --device DEVICE",
        "eval run -n 60 --device DEVICE",
        "tune run --calls 4 -n 50 --device DEVICE",
        "distill run --steps 20 --out two --device DEVICE",
        "sample two -n 4 --device DEVICE",
        "sample two -n 4 --device cpu",
        "train digits.npz --from run --steps 10 --out further --batch 16 --device DEVICE",
        "export diffusers run --out exported",
    ]
    with few_steps():
        for line in lines:
            assert main(line.replace("DEVICE", DEVICE).split()) == 0, (
                line,
                capsys.readouterr().err,
            )
    assert f'device = "{DEVICE}"' in Path("run/config.toml").read_text(encoding="utf-8")
