"""Models of diffusers, read and drawn from as diffusers does; and written so that it loads them."""

import errno
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from huggingface_hub import ModelCard
from torch import Tensor

from evaluated import digits_file, small_run
from unraze import generate, nn as networks, schedule as schedules
from unraze.cli import main
from unraze.clusters import Clusters
from unraze.config import Config, DistilledConfig, updated
from unraze.errors import CheckpointError, InputError, UnrazeError
from unraze.generate import Progress
from unraze.interop import from_diffusers as theirs, to_diffusers
from unraze.interop.made import create_run
from unraze.samplers import last
from unraze.walk import walk

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers import (
        DDIMPipeline,
        DDIMScheduler,
        DDPMPipeline,
        DDPMScheduler,
        DiffusionPipeline,
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
        (DDIMScheduler(set_alpha_to_one=False), "set_alpha_to_one = "),
        (DDIMScheduler(timestep_spacing="linspace"), "timestep_spacing = linspace"),
        (DDIMScheduler(clip_sample_range=2.0), r"clip_sample_range = 2\.0"),
        (DDIMScheduler(thresholding=True, sample_max_value=3.0), "thresholding = true"),
        (DDIMScheduler(1010, steps_offset=25), "steps_offset = 25"),
        (DDPMScheduler(thresholding=True, sample_max_value=3.0), "sample_max_value = 3"),
        (DDPMScheduler(variance_type="learned"), "variance_type = "),
        (DDPMScheduler(steps_offset=1), "steps_offset = 1"),
        (DDPMScheduler(rescale_betas_zero_snr=True), "epsilon with ᾱ_T = 0"),
        (DDPMScheduler(variance_type="learned_range"), "emits no variance"),
        (DPMSolverMultistepScheduler(solver_order=3), "solver_order = 3"),
        (DPMSolverMultistepScheduler(use_karras_sigmas=True), "use_karras_sigmas = "),
        (DPMSolverMultistepScheduler(final_sigmas_type="sigma_min"), "final_sigmas_type"),
        (DPMSolverMultistepScheduler(lambda_min_clipped=-5.1), "lambda_min_clipped"),
        (DPMSolverMultistepScheduler(variance_type="learned_range"), "variance_type"),
        (DPMSolverMultistepScheduler(steps_offset=50, timestep_spacing="leading"), "steps_offset"),
        (UniPCMultistepScheduler(solver_type="bh1"), "solver_type = "),
        (UniPCMultistepScheduler(solver_order=4), "solver_order = 4"),
    ],
)
def test_a_setting_that_cannot_be_followed_is_an_error(
    tmp_path: Path, scheduler: Any, says: str
) -> None:
    folder = piped(tmp_path / "pipe", scheduler)
    with pytest.raises(InputError, match=rf"scheduler_config\.json: .*{says}"):
        theirs.read(folder)
    if "ᾱ_T" not in says:
        assert theirs.read(folder, scheduler=False).config.sample.sampler == "ddim"


@pytest.mark.parametrize(
    "scheduler",
    [
        DDPMScheduler(100, steps_offset=1, timestep_spacing="trailing"),
        DPMSolverMultistepScheduler.from_config(DDPMScheduler(variance_type="fixed_large").config),
        DPMSolverMultistepScheduler.from_config(DDPMScheduler(clip_sample_range=2.0).config),
    ],
    ids=["an offset of another spacing", "a variance of another", "a range of another"],
)
def test_what_a_scheduler_leaves_aside_is_no_error(tmp_path: Path, scheduler: Any) -> None:
    theirs.read(piped(tmp_path / "pipe", scheduler))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("num_train_timesteps", v) for v in (0, 1.5, "x", None, 10**9)),
        *(("beta_end", v) for v in (None, "x", -1, 10**400, [1])),
        *(("trained_betas", v) for v in ([0.1], 3, ["x"], [10**400] * 1000, [math.nan] * 1000)),
        *(("prediction_type", v) for v in (["epsilon"], None, "flow")),
        *(("steps_offset", v) for v in (None, "x", [1], 0.7, -20)),
        *(("thresholding", v) for v in (None, 3)),
        *(("set_alpha_to_one", v) for v in (None, 0)),
        *(("timestep_spacing", v) for v in (None, "even")),
        ("a_new_switch", True),
    ],
)
def test_a_scheduler_of_wrong_values_is_one_line(
    tmp_path: Path, key: str, value: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = piped(tmp_path / "pipe", DDIMScheduler())
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    assert main(["import", "diffusers", str(folder), "--out", str(tmp_path / "run")]) == 2
    said = capfd.readouterr().err
    assert f"scheduler_config.json: {'there is no key ' if key == 'a_new_switch' else ''}" in said
    assert key in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("sample_size", v) for v in ("32", True, [8.5, 8.5], 8.0, [8], [8, 8, 8], [8, None])),
        *(("sample_size", v) for v in ({}, 0, 10**9)),
        *(("in_channels", v) for v in (None, [1], 1.9)),
        *(("block_out_channels", v) for v in ([8, 10**12], [8], 8, None)),
        ("layers_per_block", 1_000_000),
        ("attn_norm_num_groups", 7),
        ("norm_num_groups", 7),
    ],
)
def test_a_network_of_wrong_values_is_one_line(
    tmp_path: Path, key: str, value: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = piped(tmp_path / "pipe", DDIMScheduler())
    file = folder / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    assert main(["import", "diffusers", str(folder), "--out", str(tmp_path / "run")]) == 2
    said = capfd.readouterr().err
    assert key in said
    assert "unet/" in said


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    folder = piped(tmp_path / "pipe", DDIMScheduler())
    file = folder / "unet" / theirs.WEIGHTS
    tensors = safetensors.torch.load_file(file)
    tensors["conv_out.bias"][1] = math.nan
    safetensors.torch.save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"conv_out\.bias holds values that are not finite"):
        theirs.read(folder)


def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    piped(tmp_path / "pipe", DDIMScheduler()).rename(folder)
    assert made(folder, tmp_path / "run").config.data.source == "imported:caf\ufffd"


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
    nowhere = str(pictures / "00001.png" / "x")
    assert main(["import", "diffusers", str(folder), "--out", nowhere]) == 2
    assert f"--out {nowhere}: cannot be written" in capfd.readouterr().err
    alone = ["import", "diffusers", str(folder / "unet"), "--out", str(tmp_path / "alone")]
    assert main(alone) == 0
    assert "there is no scheduler beside it" in capfd.readouterr().out


# --------------------------------------------------------------------------------------- writing


NETWORKS: dict[str, dict[str, Any]] = {
    "ho et al.": {
        "kind": "unet",
        "dim": 8,
        "multipliers": (1, 2),
        "blocks": 2,
        "attention": (1,),
        "linear_attention": False,
        "heads": 1,
        "groups": 4,
        "scale_shift": False,
    },
    "scale and shift, heads": {
        "kind": "unet",
        "dim": 8,
        "multipliers": (1, 2, 2),
        "blocks": 1,
        "attention": (2,),
        "linear_attention": False,
        "heads": 4,
        "groups": 4,
        "scale_shift": True,
    },
    "theirs": {
        "kind": "unet2d",
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    },
}
OWN: dict[str, dict[str, Any]] = {
    "lean": {"kind": "lean", "fold": 2, "widths": (8, 16), "groups": 2, "heads": 2},
    "lean, filled up": {"kind": "lean", "fold": 3, "widths": (8, 16), "groups": 2, "heads": 2},
    "lean, finished": {"kind": "lean", "fold": 4, "widths": (8, 8), "groups": 2, "finish": 8},
    "linear attention": {"kind": "unet", "dim": 8, "multipliers": (1, 2), "blocks": 1},
    "convnext": {"kind": "unet", "dim": 8, "multipliers": (1, 2), "blocks": 1, "block": "convnext"},
}


def trained(
    layers: dict[str, Any],
    changes: dict[str, Any] | None = None,
    *,
    num_classes: int = 0,
    clusters: Clusters | None = None,
) -> generate.Model:
    """A model of that network, its weights of a seed and none of them left where it begins."""
    torch.manual_seed(0)
    keys = {f"network.{key}": value for key, value in layers.items()}
    short = {"schedule.kind": "angle", "schedule.steps": 20, "sample.steps": 5}
    config = updated(Config(), short | keys | (changes or {}))
    network = networks.build(
        config.network,
        channels=1,
        size=(8, 8),
        num_classes=num_classes,
        self_conditioning=config.loss.self_conditioning,
        learned_variance=config.loss.variance == "learned",
        augment_values=9 if config.data.augment else 0,
    )
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.1 * torch.randn(weight.shape))
    return generate.Model(
        config=config,
        network=network.eval().requires_grad_(False),
        schedule=schedules.from_config(config.schedule),
        shape=(1, 8, 8),
        num_classes=num_classes,
        class_names=tuple(map(str, range(num_classes))),
        sigma_data=0.5,
        clusters=clusters,
    )


def write(model: generate.Model, out: Path) -> to_diffusers.Written:
    """Of a model that is of no run, which has no card."""
    return to_diffusers.write(model, out, with_card=False)


def loaded(folder: Path) -> Any:
    """The pipeline, as a user of diffusers loads it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_theirs_is_a_stock_pipeline(tmp_path: Path, name: str) -> None:
    model = trained(NETWORKS[name], {"schedule.kind": "linear", "schedule.steps": 1000})
    written = write(model, tmp_path / "out")
    assert (written.stock, written.pipeline) == (True, "DDIMPipeline")
    assert not list((tmp_path / "out").rglob("*.py"))
    pipe = DDIMPipeline.from_pretrained(tmp_path / "out")
    x, t = torch.randn(5, 1, 8, 8), torch.tensor([0, 1, 20, 500, 999])
    expected = model.network(x, t + 1)
    torch.testing.assert_close(pipe.unet(x, t).sample, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_learned_variance_goes_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over all steps, each with its noise, from their ancestral scheduler and from ours."""
    changes = {"loss.variance": "learned", "schedule.kind": "linear", "schedule.steps": 30}
    changes |= {"sample.sampler": "random", "sample.sigma": "learned", "sample.steps": 30}
    changes |= {"schedule.rescaled": True, "loss.parametrisation": "v"}
    model = trained(NETWORKS["ho et al."], changes)
    assert write(model, tmp_path / "out").pipeline == "DDPMPipeline"
    pipe = DDPMPipeline.from_pretrained(tmp_path / "out")
    pipe.set_progress_bar_config(disable=True)
    random = torch.Generator().manual_seed(3)
    drawn = pipe(2, random, num_inference_steps=30, output_type="np").images
    random.manual_seed(3)
    x = torch.randn(2, 1, 8, 8, generator=random)
    settings = model.config.sample
    denoise = generate.denoiser_of(model, settings, [None, None])
    chain = generate.plan_of(model, settings).chain
    steps = walk(denoise, x, chain, settings, lambda _: torch.randn(x.shape, generator=random))
    picture = (last(steps) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert picture == pytest.approx(drawn, abs=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["linear", "cosine", "angle", "quadratic"])
def test_a_stock_pipeline_draws_the_same_pictures(tmp_path: Path, kind: str) -> None:
    changes = {"schedule.kind": kind, "schedule.steps": 100, "sample.steps": 20}
    model = trained(NETWORKS["ho et al."], changes)
    write(model, tmp_path / "out")
    pipe = DDIMPipeline.from_pretrained(tmp_path / "out")
    pipe.set_progress_bar_config(disable=True)
    random = torch.Generator().manual_seed(3)
    drawn = pipe(
        batch_size=2,
        num_inference_steps=20,
        generator=random,
        use_clipped_model_output=True,
        output_type="np",
    ).images
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    assert drawn_here(model, x, [None, None]) == pytest.approx(drawn, abs=1e-3)


def drawn_here(model: generate.Model, x: Tensor, labels: list[int | None]) -> np.ndarray:
    """From x by the run's own settings, as diffusers gives pictures."""
    settings = model.config.sample
    way = generate.plan_of(model, settings)
    denoise = generate.denoiser_of(model, settings, labels)
    with torch.no_grad():
        picture = last(walk(denoise, x, way.chain, settings, lambda _: torch.zeros_like(x)))
    return (picture / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("lean", {}),
        ("lean, filled up", {}),
        ("lean", {"loss.parametrisation": "x0"}),
        ("lean", {"loss.parametrisation": "edm"}),
        ("lean", {"loss.self_conditioning": True}),
        ("lean", {"data.augment": 0.1}),
        ("lean", {"loss.variance": "learned"}),
        ("lean", {"loss.variance": "learned", "loss.parametrisation": "edm"}),
        ("linear attention", {}),
        (
            "convnext",
            {
                "schedule.kind": "linear",
                "loss.parametrisation": "eps_step",
                "loss.continuous": False,
            },
        ),
    ],
)
def test_other_networks_carry_their_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, changes: dict[str, Any]
) -> None:
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path))
    changes = {"sample.steps": 20} | changes
    model = trained(OWN[name], changes)
    written = write(model, tmp_path / "out")
    assert (written.stock, written.pipeline) == (False, "UnrazePipeline")
    pipe = loaded(tmp_path / "out")
    drawn = pipe(
        batch_size=2,
        num_inference_steps=20,
        generator=torch.Generator().manual_seed(3),
        output_type="np",
    ).images
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    assert drawn_here(model, x, [None, None]) == pytest.approx(drawn, abs=1e-3)


@torch.no_grad()
def test_clusters_and_guidance_go_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path))
    labels = np.repeat(np.arange(3), [10, 30, 60])
    clusters = Clusters(np.zeros(4), np.zeros((4, 2)), np.zeros((3, 2)), labels)
    changes = {
        "sample.guidance": 3.0,
        "sample.guidance_interval": (0.2, 0.7),
        "train.clusters": 3,
        "sample.steps": 10,
    }
    model = trained(OWN["lean"], changes, num_classes=3, clusters=clusters)
    write(model, tmp_path / "out")
    pipe = loaded(tmp_path / "out")
    random = torch.Generator().manual_seed(3)
    told = [0, 2, 1]
    drawn = pipe(3, random, told, 10, output_type="np").images
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    assert drawn_here(model, x, [0, 2, 1]) == pytest.approx(drawn, abs=1e-3)
    plain = pipe(3, random.manual_seed(3), told, 10, guidance_scale=1.0, output_type="np").images
    assert np.abs(plain - drawn).max() > 0.01
    drawn_labels = pipe._labels(100, None, torch.Generator().manual_seed(0))
    assert torch.bincount(drawn_labels).tolist() == pytest.approx([10, 30, 60], abs=2)
    with pytest.raises(ValueError, match="give 2 numbers from 0 to 3"):
        pipe(2, class_labels=[0, 4])


@pytest.mark.parametrize("name", ["theirs", "ho et al."])
def test_there_and_back_again_is_the_same_to_the_byte(tmp_path: Path, name: str) -> None:
    model = trained(NETWORKS[name], {"schedule.kind": "linear", "schedule.steps": 1000})
    write(model, tmp_path / "out")
    back = made(tmp_path / "out", tmp_path / "run")
    write(back, tmp_path / "again")
    for file in ("unet/config.json", f"unet/{theirs.WEIGHTS}", "scheduler/scheduler_config.json"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([1.0, 300.0, 1000.0])
    torch.testing.assert_close(back.network(x, t), model.network(x, t), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler(),
        DDIMScheduler(steps_offset=1, clip_sample=False),
        DDIMScheduler(timestep_spacing="trailing"),
        DPMSolverMultistepScheduler(),
        DPMSolverMultistepScheduler(timestep_spacing="trailing", thresholding=True),
    ],
    ids=["ddim", "offset", "trailing", "dpm-solver++", "dpm-solver++, thresholds"],
)
def test_a_pipeline_that_was_read_draws_the_same_once_it_is_written(
    tmp_path: Path, scheduler: Any
) -> None:
    folder = piped(tmp_path / "pipe", scheduler)
    written = write(made(folder, tmp_path / "run"), tmp_path / "out")
    assert written.notes == ()
    drawn = []
    for place in (folder, tmp_path / "out"):
        pipe = loaded(place)
        pipe.scheduler = type(scheduler).from_pretrained(place / "scheduler")
        random = torch.Generator().manual_seed(3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # theirs, of numpy's copy=
            images = DDPMPipeline(pipe.unet, pipe.scheduler)(
                2, random, num_inference_steps=written.steps, output_type="np"
            ).images
        drawn.append(images)
    assert drawn[0] == pytest.approx(drawn[1], abs=1e-5)


NOTES: dict[str, tuple[dict[str, Any], str, int]] = {
    "steps that do not go round": ({"sample.steps": 30}, "30 steps lie where theirs can't", 25),
    "a few steps of many": ({"schedule.steps": 97, "sample.steps": 9}, "9 steps lie", 97),
    "karras": ({"sample.spacing": "karras", "sample.steps": 20}, "20 steps lie", 20),
    "new noise": ({"sample.eta": 1.0, "sample.steps": 20}, "call it with eta=1", 20),
    "thresholds": (
        {"sample.clip": "dynamic", "sample.steps": 20},
        "use_clipped_model_output=True",
        20,
    ),
    "another sampler": ({"sample.sampler": "adams", "sample.steps": 20}, "draws by adams", 50),
    "noise at the end": (
        {"sample.sampler": "random", "sample.steps": 100, "sample.final_noise": True},
        "no noise in the last step",
        100,
    ),
    "fewer random steps": (
        {"sample.sampler": "random", "sample.steps": 20},
        "in all 100 steps, the run in 20",
        100,
    ),
    "a learned variance": (
        {"loss.variance": "learned", "sample.steps": 20},
        "draws by DDPM in all 100 steps, where the run draws by ddim in 20",
        100,
    ),
}


@pytest.mark.parametrize("name", NOTES)
def test_what_is_drawn_otherwise_is_said(tmp_path: Path, name: str) -> None:
    changes, says, steps = NOTES[name]
    given = {"schedule.kind": "linear", "schedule.steps": 100} | changes
    written = write(trained(NETWORKS["ho et al."], given), tmp_path / "out")
    assert says in " ".join(written.notes)
    assert written.steps == steps
    pipe = loaded(tmp_path / "out")
    assert pipe(1, num_inference_steps=steps, output_type="np").images.shape == (1, 8, 8, 1)


def test_what_is_tuned_is_what_is_exported(tmp_path: Path) -> None:
    model = trained(NETWORKS["ho et al."], {"schedule.kind": "linear", "schedule.steps": 100})
    found = generate.changed(model.config.sample, {"sampler": "ddim", "steps": 10})
    tuning = generate.Tuning(checkpoint="", default=10, settings={10: found})
    assert write(replace(model, tuning=tuning), tmp_path / "out").steps == 10


def test_what_diffusers_wrote_is_written_as_it_was(tmp_path: Path) -> None:
    for scheduler in (DDIMScheduler(timestep_spacing="trailing"), DDPMScheduler()):
        folder = piped(tmp_path / "pipe", scheduler)
        write(made(folder, tmp_path / "run"), tmp_path / "out")
        before, after = (d / "unet" / theirs.WEIGHTS for d in (folder, tmp_path / "out"))
        assert before.read_bytes() == after.read_bytes()
        kind = type(scheduler)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            again = kind.from_pretrained(tmp_path / "out" / "scheduler")
        assert torch.equal(again.alphas_cumprod, scheduler.alphas_cumprod)
        for place in ("pipe", "run", "out"):
            shutil.rmtree(tmp_path / place)


def test_nothing_half_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, out = trained(NETWORKS["theirs"]), tmp_path / "out"
    done = []

    def full(path: Path, data: bytes) -> None:
        if len(done) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        done.append(path)

    with monkeypatch.context() as patch:
        patch.setattr("unraze.files.write_and_flush", full)
        with pytest.raises(UnrazeError, match=r"out: cannot be written, the disk is full"):
            write(model, out)
    assert list(tmp_path.iterdir()) == []
    write(model, out)
    with pytest.raises(InputError, match="exists; give another"):
        write(model, out)


def test_the_drawing_for_its_card_can_be_followed(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", digits_file(tmp_path / "digits.npz"))
    ends = []

    def follow(moments: Iterator[Progress]) -> Iterator[Progress]:
        for moment in moments:
            ends.append(moment.finished)
            yield moment

    to_diffusers.write(generate.load(run), tmp_path / "out", follow=follow)
    assert (tmp_path / "out" / "samples.png").is_file()
    assert ends == [*(False for _ in ends[1:]), True]


def test_a_distilled_run_is_refused(tmp_path: Path) -> None:
    model = trained(OWN["lean"])
    distilled = DistilledConfig(run="the-teacher", checkpoint="0")
    config = model.config.model_copy(update={"distilled": distilled})
    with pytest.raises(InputError, match="export the run that it was made of: the-teacher"):
        write(replace(model, config=config), tmp_path / "out")


def test_a_run_is_exported_with_its_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path))
    run, out = str(tmp_path / "run"), tmp_path / "digits"
    small = [f"--set=network.{key}" for key in ("fold=1", "widths=[8,8]", "groups=2", "heads=2")]
    assert main(["train", "digits", "--steps", "3", "--out", run, *small]) == 0
    assert main(["export", "diffusers", run, "--out", str(out), "--licence", "a b"]) == 2
    assert "error: --licence = 'a b': give its identifier" in capfd.readouterr().err
    assert main(["export", "diffusers", run, "--out", str(out), "--licence", "mit"]) == 0
    said = capfd.readouterr().out
    assert "trust_remote_code=True" in said
    assert said.splitlines()[-1] == str(out)
    words = (out / "README.md").read_text()
    assert ModelCard(words).data.to_dict()["library_name"] == "diffusers"
    assert "trust_remote_code=True" in words
    assert (out / "samples.png").is_file()
    pipe = loaded(out)
    assert pipe(2, num_inference_steps=3).images[0].size == (8, 8)
    assert main(["export", "diffusers", run, "--out", str(out)]) == 2
    assert "exists; give another" in capfd.readouterr().err
