"""Checkpoints of denoising-diffusion-pytorch, held against what that package itself said and drew.

Its figures are in lucidrains.npz and lucidrains.json; tools/make_lucidrains_parity.py made them.
"""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import by_name
import numpy as np
import pytest
import torch
from torch import Tensor

from unraze import optim
from unraze.cli import main
from unraze.config import LucidrainsConfig
from unraze.errors import CheckpointError, InputError
from unraze.generate import Model, denoiser_of, load, plan_of, sample
from unraze.interop import lucidrains
from unraze.nn import build
from unraze.process import destroy
from unraze.run import Run, read_config
from unraze.walk import walk

HERE = Path(__file__).parent
ABOUT = json.loads((HERE / "lucidrains.json").read_text())
CASES: dict[str, Any] = ABOUT["cases"]
FIGURES = np.load(HERE / "lucidrains.npz")
every = pytest.mark.parametrize("case", CASES)


def figure(case: str, name: str) -> Tensor:
    return torch.from_numpy(FIGURES[f"{case}/{name}"])


def shape_of(described: str) -> tuple[int, ...]:
    """(3, 4) of "float32 3x4"."""
    return tuple(int(n) for n in described.partition(" ")[2].split("x") if n)


def tensors(case: str) -> dict[str, Tensor]:
    """The network's weights of the figures, as the package names them in `model`."""
    held = CASES[case]["file"]["model"]
    return {
        name: by_name.weight(name.removeprefix("model."), shape_of(what))
        for name, what in held.items()
        if name.startswith("model.")
    }


def buffers(case: str) -> dict[str, Tensor]:
    held = CASES[case]["file"]["model"]
    return {name: figure(case, f"buffer/{name}") for name in held if not name.startswith("model.")}


def content(case: str) -> dict[str, Any]:
    """What the package's trainer saves, its average being the weights of the figures."""
    averaged = tensors(case) | buffers(case)
    raw = {k: v + 0.01 for k, v in tensors(case).items()} | buffers(case)
    ema = {"initted": torch.tensor(True), "step": torch.tensor(5)}
    ema |= {f"online_model.{k}": v for k, v in raw.items()}
    ema |= {f"ema_model.{k}": v for k, v in averaged.items()}
    opt = {"state": {0: {"step": torch.tensor(5.0)}}, "param_groups": [{"lr": 1e-4}]}
    return {
        "step": 5000,
        "model": raw,
        "opt": opt,
        "ema": ema,
        "scaler": None,
        "version": ABOUT["denoising-diffusion-pytorch"],
    }


def size_of(case: str) -> str:
    size = CASES[case]["diffusion"]["image_size"]
    return "x".join(map(str, size)) if isinstance(size, list) else str(size)


def imported(case: str, folder: Path, *options: str) -> Path:
    """The run of a case, imported by the command; drawn from as the case's package does."""
    torch.save(content(case), folder / "model-5.pt")
    given = CASES[case]
    if theta := given["unet"].get("sinusoidal_pos_emb_theta"):
        options += ("--theta", str(theta))
    for name in ("sampling_timesteps", "ddim_sampling_eta"):
        if name in given["diffusion"]:
            options += (f"--{name.replace('_', '-')}", str(given["diffusion"][name]))
    command = ["import", "lucidrains", str(folder / "model-5.pt"), "--out", str(folder / "run")]
    assert main([*command, "--image-size", size_of(case), *options]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def of(case: str) -> Path:
        if case not in made:
            made[case] = imported(case, tmp_path_factory.mktemp("imported"))
        return made[case]

    return of


# -------------------------------------------------------------------------------- the same network


@every
def test_the_file_is_laid_out_as_the_packages_trainer_lays_it(case: str) -> None:
    theirs, ours = CASES[case]["file"], content(case)
    assert theirs.keys() == ours.keys()
    for part in ("model", "ema"):
        described = {
            k: f"{str(v.dtype)[6:]} {'x'.join(map(str, v.shape))}" for k, v in ours[part].items()
        }
        assert {k: v.strip() for k, v in described.items()} == theirs[part]


@every
def test_says_what_the_package_says(case: str, runs: Callable[[str], Path]) -> None:
    model = load(runs(case))
    shape = (2, *model.shape)
    x, t = by_name.noise("x", shape), torch.tensor([1.0, 1000.0])  # its 0 and 999
    out = model.network(x, t)
    theirs = figure(case, "output")
    assert float(theirs.square().mean()) > 0.01
    torch.testing.assert_close(out, theirs, rtol=0, atol=1e-5)
    if model.config.loss.self_conditioning:
        told = model.network(x, t, previous=by_name.uniform("previous", shape))
        theirs = figure(case, "output, told the last")
        assert not torch.allclose(out, theirs, atol=1e-2)
        torch.testing.assert_close(told, theirs, rtol=0, atol=1e-5)


@every
def test_draws_what_the_package_draws(case: str, runs: Callable[[str], Path]) -> None:
    """From the same noise, in as many steps, by the settings that the run came with."""
    model = load(runs(case))
    shape = (2, *model.shape)
    settings = model.config.sample
    chain = plan_of(model, settings).chain
    denoise = denoiser_of(model, settings, [None, None])

    def noise(step: int) -> Tensor:
        return by_name.noise(str(chain.steps - step + 1), shape)

    *_, last = walk(denoise, by_name.noise("0", shape), chain, settings, noise)
    torch.testing.assert_close(last.x, figure(case, "sample"), rtol=0, atol=1e-4)


@every
def test_its_schedule_is_the_packages(case: str, runs: Callable[[str], Path]) -> None:
    schedule = load(runs(case)).schedule
    for ours, theirs in (
        (schedule.alpha_bar, "sqrt_alphas_cumprod"),
        (schedule.beta_bar, "sqrt_one_minus_alphas_cumprod"),
        (schedule.beta**2, "betas"),
    ):
        found = figure(case, f"buffer/{theirs}").double()
        torch.testing.assert_close(ours[1:], found, rtol=3e-6, atol=0)


@every
def test_takes_the_average_and_the_raw_weights(case: str, runs: Callable[[str], Path]) -> None:
    model, raw = load(runs(case)), load(runs(case), raw=True)
    for name, value in tensors(case).items():
        ours = name.removeprefix("model.")
        assert torch.equal(model.network.state_dict()[ours], value)
        assert torch.equal(raw.network.state_dict()[ours], value + 0.01)
    assert model.step == 5000


# ------------------------------------------------------------------------------ what tensors tell


@every
def test_finds_what_the_package_was_given(case: str, tmp_path: Path) -> None:
    torch.save(content(case), tmp_path / "file.pt")
    found = lucidrains.findings(lucidrains.read(tmp_path / "file.pt"))
    unet, diffusion = CASES[case]["unet"], CASES[case]["diffusion"]
    levels = len(unet["dim_mults"])
    full = unet.get("full_attn", [False] * (levels - 1) + [True])
    assert found.network.attention == tuple(k for k in range(levels) if full[k])
    assert found.objective == diffusion.get("objective", "pred_v")
    told = {
        "dim": unet["dim"],
        "init_dim": unet.get("init_dim", unet["dim"]),
        "dim_mults": tuple(unet["dim_mults"]),
        "channels": unet["channels"],
        "self_condition": unet.get("self_condition", False),
        "learned_variance": unet.get("learned_variance", False),
        "attn_heads": tuple(unet.get("attn_heads", [4])),
        "attn_dim_head": tuple(unet.get("attn_dim_head", [32])),
        "timesteps": diffusion["timesteps"],
    }
    weights = lucidrains.read(tmp_path / "file.pt")
    lucidrains.require_agreement(weights, found, told)
    for name, value in told.items():
        other = {bool: lambda v: not v, int: lambda v: v + 2}.get(
            type(value), lambda v: tuple(n + 1 for n in v)
        )(value)
        with pytest.raises(ValueError, match=rf"{name} = .*: but {name} is .* in .*file\.pt, by"):
            lucidrains.require_agreement(weights, found, {name: other})


@pytest.mark.parametrize("gamma", [None, 5.0, 0.5])
@pytest.mark.parametrize("objective", lucidrains.OBJECTIVES)
@every
def test_the_weights_of_the_loss_tell_the_objective(
    case: str, objective: str, gamma: float | None, tmp_path: Path
) -> None:
    held = content(case)
    a = figure(case, "buffer/alphas_cumprod").double()
    snr = a / (1 - a)  # as GaussianDiffusion computes them
    clipped = snr if gamma is None else snr.clamp(max=gamma)
    over = {"pred_noise": snr, "pred_x0": 1, "pred_v": snr + 1}[objective]
    held["model"]["loss_weight"] = (clipped / over).float()
    torch.save(held, tmp_path / "file.pt")
    found = lucidrains.findings(lucidrains.read(tmp_path / "file.pt"))
    assert found.objective == ("pred_noise" if case == "learned variance" else objective)


# --------------------------------------------------------------------------------- the command


def test_tells_what_it_found_and_what_it_assumed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = imported("self-conditioned", tmp_path)
    said = capfd.readouterr().out
    for part in (
        "step 5000, by denoising-diffusion-pytorch 2.3.4",
        "dim 6, init_dim 10, dim_mults 1,3,2, 1 channel, full attention at level 1, "
        "heads 1,2,3 of 8,4,6 channels, self-conditioning",
        "T = 25",
        "objective: pred_x0, by its loss_weight",
        "sinusoidal_pos_emb_theta 500, auto_normalize true",
        "ddim in 7 steps, eta 0.5",
    ):
        assert part in said
    assert said.splitlines()[-1] == str(run)
    config = read_config(Run(run))
    assert config.data.source == f"imported:{tmp_path / 'model-5.pt'}"
    assert config.sample.spacing == (0.0, 3.0, 7.0, 10.0, 14.0, 17.0, 21.0, 25.0)


def test_a_run_of_it_is_a_run(tmp_path: Path) -> None:
    run = imported("default", tmp_path)
    model = load(run)
    assert sample(model, 2).shape == (2, 3, 8, 16)
    command = ["sample", str(run), "-n", "1", "--steps", "3", "--sampler", "dpmpp_2m"]
    assert main([*command, "--out", str(tmp_path / "drawn")]) == 0
    assert len(list((tmp_path / "drawn").glob("*.png"))) >= 1


def test_an_imported_network_can_be_learned_from(tmp_path: Path) -> None:
    """A gradient reaches every weight, so it is a network like ours."""
    model: Model = load(imported("self-conditioned", tmp_path))
    network = model.network.requires_grad_(True)
    x0 = by_name.uniform("pictures", (2, *model.shape))
    t = torch.tensor([3, 20])
    x_t = destroy(model.schedule, x0, t, by_name.noise("eps", tuple(x0.shape)))
    (network(x_t, t.float()) - x0).square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in network.parameters())


@pytest.mark.parametrize(
    ("config", "options", "says"),
    [
        ({"dim": 7}, {}, "network.dim = 7: give an even number"),
        ({"attention": (4,)}, {}, r"there is no level 4; the 4 multipliers make levels 0 to 3"),
        ({"heads": (4, 4)}, {}, r"network.heads = \[4, 4\]: give one number, or one for each of"),
        ({"head_dim": (4, 4)}, {}, r"network.head_dim = \[4, 4\]"),
        ({}, {"num_classes": 3}, "has no place for classes"),
        ({}, {"augment_values": 9}, "has no place for augmentation"),
        ({}, {"size": (8, 12)}, r"multiples of 8 .*nearest that fit: 8x8 and 8x16"),
    ],
)
def test_a_network_that_cannot_be_is_refused(
    config: dict[str, Any], options: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        build(LucidrainsConfig(**config), **{"channels": 3, "size": (8, 8)} | options)


def test_a_network_is_told_nothing_that_it_has_no_place_for() -> None:
    small = LucidrainsConfig(dim=4, multipliers=(1,), attention=(), heads=(1,), head_dim=(2,))
    network = build(small, channels=1, size=(4, 4))
    x, t = torch.zeros(1, 1, 4, 4), torch.ones(1)
    for name, value in (("classes", t.long()), ("augmentation", t), ("previous", x)):
        with pytest.raises(ValueError, match=f"{name}="):
            network(x, t, **{name: value})


def test_muon_is_for_the_filters_between_features(tmp_path: Path) -> None:
    model = load(imported("default", tmp_path))
    hidden = set(optim.hidden_weights(model.network))
    rest = {
        name.split(".")[0]
        for name in set(model.network.state_dict()) - hidden
        if name.endswith("weight")
    }
    assert rest == {"init_conv", "final_conv", "time_mlp"}
    assert "downs.0.2.to_qkv.weight" in hidden
    assert not [name for name in hidden if not name.endswith("weight")]


def refused(
    path: Path, *options: str, size: str = "8x16", capfd: pytest.CaptureFixture[str]
) -> str:
    """What the command says of a file that it refuses; nothing is left of it."""
    before = sorted(path.parent.iterdir())
    out = path.parent / "run"
    given = ["--image-size", size] if size else []
    assert main(["import", "lucidrains", str(path), "--out", str(out), *given, *options]) == 2
    assert sorted(path.parent.iterdir()) == before
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--dim", "64"], "--dim = 64: but dim is 8 in"),
        (["--dim-mults", "1,2"], "--dim-mults = 1,2: but dim_mults is 1,2,4 in"),
        (["--dim-mults", "1;2"], "--dim-mults 1;2: give whole numbers"),
        (["--channels", "1"], "--channels = 1: but channels is 3 in"),
        (["--timesteps", "1000"], "--timesteps = 1000: but timesteps is 12 in"),
        (["--attn-heads", "4,4,8"], "--attn-heads = 4,4,8: but attn_heads is 4,4,4 in"),
        (["--self-condition"], "--self-condition = true: but self_condition is false in"),
        (["--objective", "pred_noise"], "--objective = pred_noise: but"),
        (["--objective", "pred_eps"], "pred_eps"),
        (["--no-auto-normalize"], "--no-auto-normalize: that network knows pixels from 0 to 1"),
        (["--theta", "0"], "--theta 0: give a finite number above 0"),
        (["--sampling-timesteps", "13"], "--sampling-timesteps = 13: give 1 to T = 12"),
        (["--ddim-sampling-eta", "0.5"], "--ddim-sampling-eta = 0.5: is DDIM's"),
        (["--sampling-timesteps", "3", "--ddim-sampling-eta", "2"], "eta = 2: give 0 to 1"),
    ],
)
def test_what_contradicts_the_tensors_or_will_not_do_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    torch.save(content("default"), tmp_path / "model-5.pt")
    assert says in refused(tmp_path / "model-5.pt", *options, capfd=capfd)


def test_a_size_is_asked_for_and_has_to_fit(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.save(content("default"), tmp_path / "model-5.pt")
    said = refused(tmp_path / "model-5.pt", size="", capfd=capfd)
    assert "--image-size is missing: no tensor of" in said
    assert "a multiple of 4" in said
    said = refused(tmp_path / "model-5.pt", size="10", capfd=capfd)
    assert "size 10x10" in said
    assert "8x8 and 12x12" in said


def test_an_objective_that_no_tensor_tells_is_asked_for(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    held = content("default")
    del held["model"]["loss_weight"]
    torch.save(held, tmp_path / "model-5.pt")
    assert "give what GaussianDiffusion was given: pred_v (its default)" in refused(
        tmp_path / "model-5.pt", capfd=capfd
    )
    command = ["import", "lucidrains", str(tmp_path / "model-5.pt"), "--image-size", "8"]
    out = tmp_path / "run"
    assert main([*command, "--objective", "pred_noise", "--out", str(out)]) == 0
    assert read_config(Run(out)).loss.parametrisation == "eps"


def _changed(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        held = content("default")
        other = change(held)
        torch.save(held if other is None else other, path)

    return write


def _set(part: str, name: str, value: Any) -> Callable[[Path], None]:
    return _changed(lambda held: held[part].__setitem__(name, value))


def _drop(part: str, *names: str) -> Callable[[Path], None]:
    return _changed(lambda held: [held[part].pop(name) for name in names] and None)


CONV = "model.downs.0.0.block1.proj.weight"

BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nothing": (lambda path: None, "there is no such file"),
    "a folder": (lambda path: path.mkdir(), "is a folder"),
    "empty": (lambda path: path.write_bytes(b""), "is not a file of torch.save"),
    "another pickle": (
        lambda path: path.write_bytes(pickle.dumps({"step": 1})),
        "is not a file of torch.save",
    ),
    "text": (lambda path: path.write_text("weights"), "is not a file of torch.save"),
    "cut off": (
        lambda path: (
            torch.save(content("default"), path),
            path.write_bytes(path.read_bytes()[:9999]),
        ),
        "is not a file of torch.save, or is damaged",
    ),
    "code": (
        _changed(lambda held: held | {"more": Path("x")}),
        "holds code besides tensors (pathlib",
    ),
    "a tensor": (_changed(lambda _: torch.zeros(3)), "it holds Tensor"),
    "a state dict": (_changed(lambda held: held["model"]), "it holds model.init_conv.weight"),
    "no number of steps": (_changed(lambda held: held | {"step": -1}), "step is -1"),
    "no model": (_changed(lambda held: held | {"model": []}), "model is not a state dict"),
    "no tensor": (_set("model", "betas", 3), "model holds 'betas', a int"),
    "half": (_set("model", CONV, torch.zeros(8, 8, 3, 3).half()), f"{CONV} of model is float16"),
    "not finite": (
        _set("ema", f"ema_model.{CONV}", torch.full((8, 8, 3, 3), torch.nan)),
        f"ema_model.{CONV} of ema is not finite",
    ),
    "missing": (_drop("model", CONV), f"lacks {CONV}"),
    "first missing": (_drop("model", "model.init_conv.weight"), "lacks model.init_conv.weight"),
    "missing in the average": (_drop("ema", f"ema_model.{CONV}"), f"lacks ema_model.{CONV}"),
    "more": (_set("model", "model.more", torch.zeros(2)), "has model.more besides"),
    "more beside": (_set("model", "more", torch.zeros(2)), "model has more besides"),
    "misshapen": (
        _set("model", CONV, torch.zeros(8, 8, 1, 1)),
        f"{CONV} has shape (8, 8, 1, 1), where the other tensors need (8, 8, 3, 3)",
    ),
    "flat": (
        _set("model", "model.init_conv.weight", torch.zeros(8)),
        "init_conv.weight has shape (8,), where 4 numbers are expected",
    ),
    "uneven": (
        _set("model", "model.time_mlp.1.weight", torch.zeros(30, 8)),
        "which is no multiple of dim = 7",
    ),
    "four channels": (
        _set("model", "model.init_conv.weight", torch.zeros(8, 4, 7, 7)),
        "takes 4 channels and final_conv.weight gives 3",
    ),
    "release 1": (
        _set("model", "model.downs.0.0.block1.norm.weight", torch.zeros(8)),
        "is of release 1",
    ),
    "learned sines": (
        _set("model", "model.time_mlp.0.weights", torch.zeros(4)),
        "sines of random or learned frequency",
    ),
    "another class": (_drop("model", "betas"), "of another class"),
    "another schedule": (
        _set("model", "betas", torch.full((12,), 0.5)),
        "disagree at t = ",
    ),
    "a schedule of two lengths": (
        _set("model", "sqrt_alphas_cumprod", torch.zeros(3)),
        "sqrt_alphas_cumprod has shape (3,), where betas are 12",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_file_that_will_not_do_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    write, says = BAD[kind]
    write(tmp_path / "model-5.pt")
    said = refused(tmp_path / "model-5.pt", capfd=capfd)
    assert says in said
    assert str(tmp_path / "model-5.pt") in said


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return shutil.rmtree, (str(tmp_path / "precious"),)

    (tmp_path / "precious").mkdir()
    torch.save(content("default") | {"opt": Harmful()}, tmp_path / "model-5.pt")
    with pytest.raises(CheckpointError, match=r"holds code besides tensors \(shutil\.rmtree\)"):
        lucidrains.read(tmp_path / "model-5.pt")
    assert (tmp_path / "precious").is_dir()
