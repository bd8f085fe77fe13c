"""Models of diffusers, read and drawn from as diffusers does; and written so that it loads them."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from unraze import generate
from unraze.cli import main
from unraze.errors import CheckpointError, InputError
from unraze.interop import from_diffusers as theirs
from unraze.interop.made import create_run
from unraze.walk import walk

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers import (
        DDIMScheduler,
        DDPMPipeline,
        DDPMScheduler,
        DPMSolverMultistepScheduler,
        EulerDiscreteScheduler,
        UNet2DModel,
        UniPCMultistepScheduler,
    )

KEYS: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}


def network(**changes: Any) -> UNet2DModel:
    """With weights of a seed, none of them left where it begins."""
    torch.manual_seed(0)
    made = UNet2DModel(**KEYS | changes).eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.1 * torch.randn(weight.shape))
    return made


def piped(folder: Path, scheduler: Any, **changes: Any) -> Path:
    """A pipeline's folder, as diffusers writes it."""
    DDPMPipeline(network(**changes), scheduler).save_pretrained(folder)
    return folder


def made(folder: Path, out: Path, **options: Any) -> generate.Model:
    """The run that is made of a folder, as it is sampled from."""
    found = theirs.read(folder, **options)
    create_run(
        found.config,
        found.weights,
        found.weights,
        shape=found.shape,
        class_names=[str(k) for k in range(found.num_classes)],
        num_classes=found.num_classes,
        out=out,
    )
    return generate.load(out)


def one_folder(folder: Path) -> Path:
    """A pipeline in a single folder, its attention's tensors under their names of old."""
    old = folder.with_name("old")
    old.mkdir()
    shutil.copy(folder / "model_index.json", old)
    shutil.copy(folder / "scheduler" / "scheduler_config.json", old)
    shutil.copy(folder / "unet" / "config.json", old)
    tensors = safetensors.torch.load_file(folder / "unet" / theirs.WEIGHTS)
    for before, now in theirs.OLD_NAMES.items():
        for name in list(tensors):
            if f".{now}." in name:
                tensors[name.replace(f".{now}.", f".{before}.")] = tensors.pop(name)
    safetensors.torch.save_file(tensors, old / theirs.WEIGHTS)
    return old


# --------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("layout", ["pipeline", "one folder", "model alone", "1 x 1 convolutions"])
def test_what_is_read_says_what_theirs_says(tmp_path: Path, layout: str) -> None:
    folder = piped(tmp_path / "pipe", DDPMScheduler())
    if layout == "one folder":
        folder = one_folder(folder)
    if layout == "model alone":
        folder = folder / "unet"
    if layout == "1 x 1 convolutions":
        file = folder / "unet" / theirs.WEIGHTS
        tensors = safetensors.torch.load_file(file)
        for name, value in tensors.items():
            if ".to_" in name and value.dim() == 2:
                tensors[name] = value[:, :, None, None].contiguous()
        safetensors.torch.save_file(tensors, file)
    model = made(folder, tmp_path / "run")
    assert (model.shape, model.num_classes) == ((3, 8, 8), 0)
    x, t = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 500, 999])
    with torch.no_grad():
        expected = network()(x, t).sample
        torch.testing.assert_close(model.network(x, t + 1), expected, rtol=1e-5, atol=1e-5)


def test_weights_of_half_the_digits_are_read_in_float32(tmp_path: Path) -> None:
    folder = piped(tmp_path / "pipe", DDPMScheduler())
    network().half().save_pretrained(folder / "unet")
    found = theirs.read(folder)
    assert {value.dtype for value in found.weights.values()} == {torch.float32}
    assert torch.equal(found.weights["conv_in.weight"], network().conv_in.weight.half().float())


SCHEDULERS: dict[str, tuple[type, dict[str, Any], int]] = {
    "ancestral": (DDPMScheduler, {}, 1000),
    "ancestral, large": (DDPMScheduler, {"variance_type": "fixed_large"}, 1000),
    "ancestral, of v": (DDPMScheduler, {"prediction_type": "v_prediction"}, 1000),
    "ancestral, of x_0, not clipped": (
        DDPMScheduler,
        {"prediction_type": "sample", "clip_sample": False},
        1000,
    ),
    "ancestral, thresholds": (DDPMScheduler, {"thresholding": True}, 1000),
    "ancestral, no noise at the end": (
        DDPMScheduler,
        {
            "rescale_betas_zero_snr": True,
            "prediction_type": "v_prediction",
            "timestep_spacing": "trailing",
        },
        1000,
    ),
    "ddim": (DDIMScheduler, {}, 50),
    "ddim, not clipped": (DDIMScheduler, {"clip_sample": False}, 50),
    "ddim, trailing": (DDIMScheduler, {"timestep_spacing": "trailing"}, 50),
    "ddim, offset": (DDIMScheduler, {"steps_offset": 1}, 50),
    "ddim, cosine": (DDIMScheduler, {"beta_schedule": "squaredcos_cap_v2"}, 50),
    "ddim, scaled": (
        DDIMScheduler,
        {"beta_schedule": "scaled_linear", "beta_start": 0.001, "beta_end": 0.03},
        50,
    ),
    "ddim, own betas": (
        DDIMScheduler,
        {"trained_betas": np.linspace(1e-3, 0.2, 60).tolist(), "num_train_timesteps": 60},
        50,
    ),
    "ddim, of v, no signal at the end": (
        DDIMScheduler,
        {
            "rescale_betas_zero_snr": True,
            "prediction_type": "v_prediction",
            "timestep_spacing": "trailing",
        },
        50,
    ),
    "dpm-solver++": (DPMSolverMultistepScheduler, {}, 25),
    "dpm-solver++, trailing": (DPMSolverMultistepScheduler, {"timestep_spacing": "trailing"}, 25),
    "dpm-solver++, leading": (
        DPMSolverMultistepScheduler,
        {"timestep_spacing": "leading", "steps_offset": 1},
        25,
    ),
    "dpm-solver++, thresholds": (DPMSolverMultistepScheduler, {"thresholding": True}, 25),
    "dpm-solver++ of order 1": (DPMSolverMultistepScheduler, {"solver_order": 1}, 25),
    "dpm-solver++ sde": (
        DPMSolverMultistepScheduler,
        {"algorithm_type": "sde-dpmsolver++"},
        25,
    ),
    "unipc": (UniPCMultistepScheduler, {}, 25),
    "unipc of order 3": (UniPCMultistepScheduler, {"solver_order": 3}, 25),
}


def drawn_by_theirs(
    scheduler: Any, said: Callable[[Tensor, Tensor], Tensor], x: Tensor, steps: int, *, most: int
) -> list[Tensor]:
    """Their states after each of the first `most` steps; noise comes from torch's own generator."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler.set_timesteps(steps)
    states = []
    for t in scheduler.timesteps[:most]:
        x = scheduler.step(said(x, t), t, x).prev_sample
        states.append(x)
    return states


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_run_draws_as_their_scheduler_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """In float64 from the same noise; their numbers of the schedule are float32, which is why the
    bound is not lower: it is in tests/test_diffusers_parity.py, on the same numbers."""
    kind, options, steps = SCHEDULERS[name]
    folder = piped(tmp_path / "pipe", kind(**options))
    model = made(folder, tmp_path / "run")
    settings = model.config.sample
    assert settings.steps == steps
    ours = model.network.double()
    plain = network().double()
    random = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=random)

    def noise(number: int) -> Tensor:
        return torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(number))

    drawing = {"number": 0}

    def drawn(*args: Any, **more: Any) -> Tensor:
        drawing["number"] += 1
        return noise(drawing["number"])

    for place in ("ddpm", "dpmsolver_multistep"):
        monkeypatch.setattr(f"diffusers.schedulers.scheduling_{place}.randn_tensor", drawn)
    scheduler = kind(**options)
    most = min(steps, 40)  # of a thousand the first are enough

    @torch.no_grad()
    def said(x: Tensor, t: Tensor) -> Tensor:
        return plain(x, t).sample.double()

    expected = drawn_by_theirs(scheduler, said, x, steps, most=most)
    way = generate.plan_of(model, settings)
    denoise = generate.denoiser_of(model, settings, [None, None])
    asked = {"number": 0}

    def asked_noise(_: int) -> Tensor:
        asked["number"] += 1
        return noise(asked["number"])

    with torch.no_grad():
        walked = walk(denoise, x, way.chain, settings, asked_noise)
        for number, (step, state) in enumerate(zip(walked, expected, strict=False)):
            scale = max(1.0, float(state.abs().max()))
            difference = float((step.x - state).abs().max()) / scale
            assert difference < 2e-4, (number, step.t, difference)
    assert number == len(expected) - 1
    del ours
    if steps <= most:
        assert step.t == 0


@pytest.mark.parametrize(
    ("scheduler", "says"),
    [
        (EulerDiscreteScheduler(), "_class_name = EulerDiscreteScheduler: Unraze follows"),
        (DDIMScheduler(set_alpha_to_one=False), "set_alpha_to_one = False"),
        (DDIMScheduler(timestep_spacing="linspace"), "timestep_spacing = linspace"),
        (DDIMScheduler(clip_sample_range=2.0), r"clip_sample_range = 2\.0"),
        (DDIMScheduler(thresholding=True, sample_max_value=3.0), r"sample_max_value = 3\.0"),
        (DDPMScheduler(variance_type="learned"), "variance_type = learned"),
        (DDPMScheduler(rescale_betas_zero_snr=True), "epsilon with ᾱ_T = 0"),
        (DDPMScheduler(variance_type="learned_range"), "emits no variance"),
        (DPMSolverMultistepScheduler(solver_order=3), "solver_order = 3"),
        (DPMSolverMultistepScheduler(use_karras_sigmas=True), "use_karras_sigmas = True"),
        (DPMSolverMultistepScheduler(final_sigmas_type="sigma_min"), "final_sigmas_type"),
        (DPMSolverMultistepScheduler(lambda_min_clipped=-5.1), "lambda_min_clipped"),
        (UniPCMultistepScheduler(solver_type="bh1"), "solver_type = bh1"),
    ],
)
def test_a_setting_that_cannot_be_followed_is_an_error(
    tmp_path: Path, scheduler: Any, says: str
) -> None:
    folder = piped(tmp_path / "pipe", scheduler)
    with pytest.raises(InputError, match=f"scheduler_config.json: .*{says}|{says}"):
        theirs.read(folder)
    if "ᾱ_T" not in says:
        assert theirs.read(folder, scheduler=False).config.sample.sampler == "ddim"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"time_embedding_type": "fourier"}, "time_embedding_type = fourier"),
        ({"class_embed_type": "timestep"}, "class_embed_type = timestep"),
        ({"in_channels": 4, "out_channels": 4}, "in_channels = 4: a model of latents"),
        ({"out_channels": 5}, "out_channels = 5"),
        ({"sample_size": None}, "does not say its sample_size; give --size"),
    ],
)
def test_a_network_that_is_none_of_ours_is_an_error(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    folder = piped(tmp_path / "pipe", DDPMScheduler())
    file = folder / "unet" / "config.json"
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps(values))
    with pytest.raises(InputError, match=says):
        theirs.read(folder)


def test_an_unknown_key_or_block_is_named(tmp_path: Path) -> None:
    folder = piped(tmp_path / "pipe", DDPMScheduler())
    file = folder / "unet" / "config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"new_switch": True}))
    with pytest.raises(InputError, match=r"config\.json: there is no key 'new_switch'"):
        theirs.read(folder)
    file.write_text(json.dumps(values | {"down_block_types": ["SkipDownBlock2D", "DownBlock2D"]}))
    with pytest.raises(InputError, match=r"down_block_types\.0 = .*SkipDownBlock2D"):
        theirs.read(folder)


def test_a_pipeline_of_other_parts_is_refused(tmp_path: Path) -> None:
    folder = piped(tmp_path / "pipe", DDPMScheduler())
    index = folder / "model_index.json"
    values = json.loads(index.read_text())
    index.write_text(json.dumps(values | {"vae": ["diffusers", "AutoencoderKL"]}))
    with pytest.raises(InputError, match="vae = AutoencoderKL"):
        theirs.read(folder)
    index.write_text(json.dumps(values | {"unet": ["diffusers", "UNet2DConditionModel"]}))
    with pytest.raises(InputError, match="unet = UNet2DConditionModel"):
        theirs.read(folder)


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    folder = piped(tmp_path / "pipe", DDPMScheduler())
    file = folder / "unet" / theirs.WEIGHTS
    tensors = safetensors.torch.load_file(file)
    bias = tensors.pop("conv_out.bias")
    safetensors.torch.save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"it lacks conv_out\.bias; is config\.json"):
        theirs.read(folder)
    safetensors.torch.save_file(tensors | {"conv_out.bias": bias[:2].clone()}, file)
    with pytest.raises(CheckpointError, match=r"conv_out\.bias has shape \(2,\), .* needs \(3,\)"):
        theirs.read(folder)
    safetensors.torch.save_file(tensors | {"conv_out.bias": bias, "more": bias.clone()}, file)
    with pytest.raises(CheckpointError, match="it has more besides"):
        theirs.read(folder)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        theirs.read(folder)


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    folder = piped(tmp_path / "pipe", DDPMScheduler())
    file = folder / "unet" / theirs.WEIGHTS
    file.rename(folder / "unet" / theirs.PICKLE)
    with pytest.raises(CheckpointError, match=r"a pickle can run code .*\.save_pretrained"):
        theirs.read(folder)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such folder"):
        theirs.read(tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"config\.json: is missing"):
        theirs.read(tmp_path)
    folder = piped(tmp_path / "pipe", DDPMScheduler())
    shutil.rmtree(folder / "scheduler")
    with pytest.raises(CheckpointError, match=r"scheduler_config\.json: is missing"):
        theirs.read(folder)


def test_classes_are_asked_for_by_number(tmp_path: Path) -> None:
    folder = piped(tmp_path / "pipe", DDIMScheduler(), num_class_embeds=3)
    model = made(folder, tmp_path / "run")
    assert model.num_classes == 3
    two, one = (generate.sample(model, 2, classes=c, settings=short(model)) for c in (2, 1))
    assert not torch.equal(one, two)
    with pytest.raises(InputError, match="does not know images without one"):
        generate.sample(model, 1, classes="none", settings=short(model))


def short(model: generate.Model) -> Any:
    """Two steps, even in time."""
    return generate.changed(model.config.sample, {"steps": 2})


def test_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder, out = piped(tmp_path / "pipe", DDIMScheduler()), tmp_path / "run"
    assert main(["import", "diffusers", str(folder), "--out", str(out)]) == 0
    assert capfd.readouterr().out.splitlines()[-1] == str(out)
    pictures = tmp_path / "pictures"
    assert main(["sample", str(out), "-n", "2", "--steps", "3", "--out", str(pictures)]) == 0
    assert (pictures / "00001.png").is_file()
    capfd.readouterr()
    assert main(["import", "diffusers", str(folder), "--out", str(out)]) == 2
    assert "exists and is a run already" in capfd.readouterr().err
    alone = ["import", "diffusers", str(folder / "unet"), "--out", str(tmp_path / "alone")]
    assert main(alone) == 0
    assert "there is no scheduler beside it" in capfd.readouterr().out
