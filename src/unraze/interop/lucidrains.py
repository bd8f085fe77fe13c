"""Checkpoints of the package denoising-diffusion-pytorch (Phil Wang, "lucidrains"), release 2.

Its trainer saves, by torch.save, `{step, model, opt, ema, scaler, version}`. `model` is the state
dict of its GaussianDiffusion: the network's tensors, named model.…, and the schedule's, betas and
others; `ema` has their averages, named ema_model.…, beside the model again, online_model.….

The tensors tell nearly all: their names and shapes the network, the schedule's numbers ᾱ_t, and
their weights in the loss what the network predicts. What they do not tell is asked for or assumed.
"""

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from unraze import nn as networks, untrusted
from unraze.config import (
    Config,
    DataConfig,
    LossConfig,
    LucidrainsConfig,
    SampleConfig,
    ScheduleConfig,
    TrainConfig,
    explained,
)
from unraze.errors import CheckpointError, InputError
from unraze.hardware import memory
from unraze.samplers import even_times
from unraze.schedule import MAX_TERMINAL_SIGNAL, Schedule

__all__ = [
    "OBJECTIVES",
    "Findings",
    "Objective",
    "Weights",
    "configuration",
    "findings",
    "read",
    "require_agreement",
    "written",
]

Objective = Literal["pred_v", "pred_noise", "pred_x0"]
OBJECTIVES: dict[Objective, Literal["v", "eps", "x0"]] = {
    "pred_v": "v",
    "pred_noise": "eps",
    "pred_x0": "x0",
}
"""That package's names of what a network predicts, and ours."""

PACKAGE = "denoising-diffusion-pytorch"
UNLESS = "give the model-….pt that its Trainer saves"
MAX_PICKLE = 2**26
"""The most bytes of the part that says which tensors there are."""
BUFFERS = {
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "loss_weight",
}
"""What a GaussianDiffusion holds beside its network, a number a step each."""


@dataclass(frozen=True)
class Weights:
    """What a file holds: the network's tensors, raw and averaged, named as the network names them,
    the schedule's, the training step, and the release of the package that saved it."""

    path: Path
    step: int
    version: str
    network: dict[str, Tensor]
    average: dict[str, Tensor]
    buffers: dict[str, Tensor]


@dataclass(frozen=True)
class Findings:
    """What the tensors tell. `objective` is None where they do not tell it; `by` is what did."""

    network: LucidrainsConfig
    channels: int
    self_conditioning: bool
    learned_variance: bool
    alpha_bar: tuple[float, ...]
    objective: Objective | None
    by: str

    @property
    def timesteps(self) -> int:
        """T, the number of steps."""
        return len(self.alpha_bar) - 1


def read(path: Path) -> Weights:
    """Reads a file of the package's trainer, tensors alone; no code in it is run.

    Raises `CheckpointError` for a file that is not one, holds code, or holds tensors that are not
    float32 or not finite.
    """
    held = _loaded(path)
    if not isinstance(held, dict) or not {"step", "model", "ema"} <= held.keys():
        keys = ", ".join(map(str, list(held)[:6])) if isinstance(held, dict) else ""
        raise CheckpointError(
            f"{path}: is not a checkpoint of {PACKAGE}, which holds step, model, opt, ema, scaler "
            f"and version (it holds {keys or type(held).__name__}); {UNLESS}"
        )
    step = held["step"]
    if not isinstance(step, int) or not 0 <= step < 2**53:
        raise CheckpointError(f"{path}: step is {step!r}, which is no number of steps; {UNLESS}")
    model = _tensors(path, "model", held["model"])
    ema = _tensors(path, "ema", held["ema"])
    network, buffers = _parted(model, "model.")
    if not {"betas", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod"} <= buffers.keys():
        raise CheckpointError(
            f"{path}: model has no betas, so it is of another class of {PACKAGE} than "
            "GaussianDiffusion and LearnedGaussianDiffusion, which alone are read"
        )
    if extra := sorted(buffers.keys() - BUFFERS):
        raise CheckpointError(f"{path}: model has {_some(extra)} besides; {UNLESS}")
    average, _ = _parted(ema, "ema_model.model.")
    if not average:
        raise CheckpointError(f"{path}: ema has no tensor ema_model.model.…; {UNLESS}")
    version = held.get("version")
    return Weights(
        path, step, version if isinstance(version, str) else "?", network, average, buffers
    )


def findings(weights: Weights) -> Findings:
    """What the tensors of a file tell of its network and schedule.

    Raises `CheckpointError` that names what is missing, besides, or of another shape.
    """
    path, network = weights.path, weights.network
    if any(name.endswith("block1.norm.weight") for name in network):
        raise CheckpointError(
            f"{path}: is of release 1 of {PACKAGE} (version {weights.version}), whose blocks have "
            "group norms; release 2 and later are read"
        )
    if "time_mlp.0.weights" in network:
        raise CheckpointError(
            f"{path}: time_mlp.0.weights are sines of random or learned frequency, which a "
            "GaussianDiffusion does not take; networks without are read"
        )
    config, inputs, outputs = _network(weights)
    channels = min(inputs, outputs)
    self_conditioning, learned_variance = inputs == 2 * outputs, outputs == 2 * inputs
    if channels not in (1, 3) or not (self_conditioning or learned_variance or inputs == outputs):
        raise CheckpointError(
            f"{path}: init_conv.weight takes {inputs} channels and final_conv.weight gives "
            f"{outputs}; read are 1 and 3, twice as many taken (self-conditioning) or given "
            "(learned variance)"
        )
    with torch.device("meta"):  # shapes alone
        ours = networks.lucidrains.LucidrainsUNet(
            config,
            channels=channels,
            self_conditioning=self_conditioning,
            learned_variance=learned_variance,
        )
    wanted = {name: tuple(value.shape) for name, value in ours.state_dict().items()}
    for part, tensors in (("model.", network), ("ema_model.model.", weights.average)):
        _require_fit(path, part, wanted, tensors)
    alpha_bar = _alpha_bar(weights)
    objective, by = _objective(weights, alpha_bar)
    if learned_variance:  # LearnedGaussianDiffusion asks for one objective and trains this one
        objective, by = "pred_noise", f"final_conv.weight of {outputs} channels, for the variance"
    return Findings(config, channels, self_conditioning, learned_variance, alpha_bar, objective, by)


def configuration(
    weights: Weights,
    found: Findings,
    *,
    objective: Objective | None = None,
    theta: float = 10000.0,
    sampling_timesteps: int | None = None,
    eta: float | None = None,
) -> Config:
    """The configuration of a run of these weights, which draws as that package does.

    Arguments:
        objective: what the network predicts, where the tensors do not tell it.
        theta: its `sinusoidal_pos_emb_theta`, which no tensor tells.
        sampling_timesteps: DDIM in so many steps; T steps of its ddpm where absent, or T.
        eta: share of new noise in DDIM; 0 where absent.

    Raises `InputError` where the objective is not told, is told otherwise by the tensors, or cannot
    be sampled from, and for more sampling steps than T.
    """
    if objective is not None and found.objective not in (None, objective):
        raise InputError(
            f"objective = {objective}: but {weights.path} was trained with "
            f"{found.objective}, by its {found.by}"
        )
    objective = found.objective or objective
    if objective is None:
        raise InputError(
            f"objective is missing: no tensor of {weights.path} tells what its network predicts; "
            "give what GaussianDiffusion was given: pred_v (its default), pred_noise or pred_x0"
        )
    if objective == "pred_noise" and found.alpha_bar[-1] == 0:
        raise InputError(
            f"objective = {objective}: with the schedule of {weights.path}, of ᾱ_T = 0, no picture "
            "follows from the noise at T"
        )
    return Config(
        preset="imported",
        about=f"{weights.path.name}, of {PACKAGE} {weights.version}",
        data=DataConfig(source=str(weights.path.resolve())),
        schedule=ScheduleConfig(
            kind="given",
            steps=found.timesteps,
            rescaled=False,
            alpha_bar=found.alpha_bar,
            allow_signal=found.alpha_bar[-1] > MAX_TERMINAL_SIGNAL,
        ),
        network=found.network.model_copy(update={"max_period": theta}),
        loss=LossConfig(
            parametrisation=OBJECTIVES[objective],
            times="uniform",
            continuous=False,
            self_conditioning=found.self_conditioning,
            variance="learned" if found.learned_variance else "fixed",
        ),
        train=TrainConfig(dtype="float32"),
        sample=_sampling(found, sampling_timesteps, eta),
    )


def require_agreement(weights: Weights, found: Findings, given: Mapping[str, Any]) -> None:
    """Raises `InputError` where the tensors tell otherwise than what is given.

    `given` are arguments of that package's Unet and GaussianDiffusion, by their names there.
    """
    network, levels = found.network, len(found.network.multipliers)
    known: dict[str, tuple[Any, str]] = {
        "dim": (network.dim, "time_mlp.1.weight"),
        "init_dim": (network.init_dim or network.dim, "init_conv.weight"),
        "dim_mults": (network.multipliers, "the last weights of downs"),
        "channels": (found.channels, "init_conv.weight and final_conv.weight"),
        "self_condition": (found.self_conditioning, "init_conv.weight"),
        "learned_variance": (found.learned_variance, "final_conv.weight"),
        "attn_heads": (_of_each(network.heads, levels), "mem_kv of downs"),
        "attn_dim_head": (_of_each(network.head_dim, levels), "mem_kv of downs"),
        "timesteps": (found.timesteps, "betas"),
    }
    for name, value in given.items():
        there, by = known[name]
        wanted = _of_each(value, levels) if name.startswith("attn") else value
        if wanted != there:
            raise InputError(
                f"{name} = {written(value)}: but {name} is {written(there)} in {weights.path}, by "
                f"{by}; leave it out, or give the file that it is of"
            )


def written(value: Any) -> str:
    """A value as that package's arguments are given here: "1,2,4" of a tuple."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _sampling(found: Findings, steps: int | None, eta: float | None) -> SampleConfig:
    """As GaussianDiffusion.sample does: x̂₀ clipped, and σ = β̃ over all steps, or DDIM."""
    last = found.timesteps
    if steps is not None and not 1 <= steps <= last:
        raise InputError(f"sampling_timesteps = {steps}: give 1 to T = {last}")
    if eta is not None and not 0 <= eta <= 1:
        raise InputError(f"eta = {eta:g}: give 0 to 1")
    if steps is None or steps == last:
        if eta is not None:
            raise InputError(
                f"eta = {eta:g}: is DDIM's; give fewer sampling timesteps than T = {last} too"
            )
        learned = found.learned_variance
        return SampleConfig(
            sampler="random", steps=last, sigma="learned" if learned else "beta_tilde"
        )
    kept = torch.linspace(-1, last - 1, steps + 1).int() + 1  # by that package, in float32
    times = tuple(kept.double().tolist())
    ours = even_times(Schedule(found.alpha_bar), steps).times.tolist()
    spacing: Any = "time" if list(times) == ours else times
    return SampleConfig(sampler="ddim", steps=steps, spacing=spacing, eta=eta or 0.0)


# ------------------------------------------------------------------------------ what a file holds


def _loaded(path: Path) -> Any:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "there is no such file"
        raise CheckpointError(f"{path}: {what}; {UNLESS}")
    _require_plain(path)
    try:
        with warnings.catch_warnings():  # of a pickle's protocol, where the error below says it all
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code is None:
            raise _no_such_file(path) from error
        raise CheckpointError(
            f"{path}: holds code besides tensors ({code[1]}), and opening it could run it, so it "
            "is not read; where you trust it, write its tensors alone: d = torch.load(FILE, "
            'weights_only=False); torch.save({k: d[k] for k in ("step", "model", "ema", '
            '"version")}, NEW)'
        ) from error
    except Exception as error:  # over damaged bytes that reader stumbles in any way there is
        raise _no_such_file(path) from error


def _require_plain(path: Path) -> None:
    """Raises `CheckpointError` unless the file is a zip of parts that are stored as they are, as
    torch.save writes them: then no part is larger than the file, and the file fits in memory."""
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # what is raised over damaged bytes is not a closed set
        raise _no_such_file(path) from error
    if size > memory():
        raise CheckpointError(f"{path}: has {size:,} bytes, which do not fit in memory")
    packed = any(part.compress_type != zipfile.ZIP_STORED for part in parts)
    if packed or sum(part.file_size for part in parts) > size:
        raise CheckpointError(
            f"{path}: holds parts that are packed, or overlap, as torch.save never writes them; "
            f"{UNLESS}"
        )
    if any(p.filename.endswith("data.pkl") and p.file_size > MAX_PICKLE for p in parts):
        raise CheckpointError(f"{path}: its list of tensors is longer than that of any network")


def _no_such_file(path: Path) -> CheckpointError:
    return CheckpointError(f"{path}: is not a file of torch.save, or is damaged; {UNLESS}")


def _tensors(path: Path, part: str, held: object) -> dict[str, Tensor]:
    """A part of the file, whose every value is to be a tensor, of floats finite and in float32."""
    if not isinstance(held, dict) or not held:
        raise CheckpointError(f"{path}: {part} is not a state dict; {UNLESS}")
    for name, value in held.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path}: {part} holds {name!r}, a {type(value).__name__}, where tensors by name "
                f"belong; {UNLESS}"
            )
        if value.is_sparse or value.nbytes > value.untyped_storage().nbytes():
            raise CheckpointError(
                f"{path}: {untrusted.one_line(name)} of {part} says that it is larger than what is "
                "there; a trainer's tensors are whole"
            )
        if name in ("initted", "step"):  # of the average
            continue
        if value.dtype != torch.float32:
            raise CheckpointError(
                f"{path}: {name} of {part} is {str(value.dtype).removeprefix('torch.')}, where the "
                "package has float32; convert it back"
            )
        if name.startswith(("model.", "ema_model.model.")) and not bool(value.isfinite().all()):
            raise CheckpointError(
                f"{path}: {name} of {part} is not finite: that training had diverged; give a "
                "checkpoint from before"
            )
    return held


def _parted(tensors: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Those of the prefix, without it, and the others."""
    own = {name.removeprefix(prefix): v for name, v in tensors.items() if name.startswith(prefix)}
    return own, {name: v for name, v in tensors.items() if not name.startswith(prefix)}


def _require_fit(
    path: Path, prefix: str, wanted: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]
) -> None:
    """Raises `CheckpointError` unless the tensors have exactly these names and shapes."""
    says = []
    if missing := sorted(wanted.keys() - tensors.keys()):
        says.append(f"lacks {_some([prefix + name for name in missing])}")
    if extra := sorted(tensors.keys() - wanted.keys()):
        says.append(f"has {_some([prefix + name for name in extra])} besides")
    if says:
        raise CheckpointError(
            f"{path}: is not of the package's Unet: it {' and '.join(says)}; networks that were "
            "changed, or are of another class, are not read"
        )
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != shape:
            raise CheckpointError(
                f"{path}: {prefix}{name} has shape {tuple(tensors[name].shape)}, where the other "
                f"tensors need {shape}; networks that were changed are not read"
            )


# ----------------------------------------------------------------------------- what tensors tell


def _network(weights: Weights) -> tuple[LucidrainsConfig, int, int]:
    """The network's configuration, and how many channels it takes and gives."""
    tensors = weights.network

    def shape(name: str, dims: int) -> tuple[int, ...]:
        if name not in tensors:
            raise CheckpointError(
                f"{weights.path}: is not of the package's Unet: it lacks model.{name}"
            )
        found = tuple(tensors[name].shape)
        if len(found) != dims:
            raise CheckpointError(
                f"{weights.path}: model.{name} has shape {found}, where {dims} numbers are expected"
            )
        return found

    numbers = {int(m[1]) for name in tensors if (m := re.match(r"downs\.(\d+)\.", name))}
    levels = len(numbers)
    first, inputs = shape("init_conv.weight", 4)[:2]
    dim, rest = divmod(shape("time_mlp.1.weight", 2)[0], 4)
    multipliers, attention, heads, head_dim, memory = [], [], [], [], 0
    for level in range(levels):
        resize = f"downs.{level}.3{'.1' if level < levels - 1 else ''}.weight"
        width = shape(resize, 4)[0]
        if rest or not dim or width % dim:
            raise CheckpointError(
                f"{weights.path}: {resize} has {width} channels, which is no multiple of dim = "
                f"{dim} (a quarter of time_mlp.1.weight's)"
            )
        multipliers.append(width // dim)
        _, count, third, fourth = shape(f"downs.{level}.2.mem_kv", 4)
        full = f"downs.{level}.2.to_out.weight" in tensors
        attention += [level] if full else []
        heads.append(count)
        head_dim.append(fourth if full else third)
        memory = third if full else fourth
    try:
        config = LucidrainsConfig(
            dim=dim,
            init_dim=None if first == dim else first,
            multipliers=tuple(multipliers),
            attention=tuple(attention),
            heads=_once(heads),
            head_dim=_once(head_dim),
            memory=memory,
        )
    except ValidationError as error:
        raise CheckpointError(
            f"{weights.path}: is not of the package's Unet: {explained(error)}"
        ) from error
    return config, inputs, shape("final_conv.weight", 4)[0]


def _once(values: list[int]) -> tuple[int, ...]:
    """One number where all are the same."""
    return tuple(values[:1] if len(set(values)) == 1 else values)


def _alpha_bar(weights: Weights) -> tuple[float, ...]:
    """ᾱ_0 … ᾱ_T in double precision, from the float32 ᾱ_t and β̄_t that the file has.

    Of the two the smaller has the more digits, √(1 - β̄_t²) where ᾱ_t is near 1.
    """
    path, count = weights.path, weights.buffers["betas"].numel()
    for name, value in weights.buffers.items():
        if tuple(value.shape) != (count,) or count < 2:
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(value.shape)}, where betas are {count}; a "
                "schedule has one number a step, of two steps or more"
            )
    a = weights.buffers["sqrt_alphas_cumprod"].double()
    b = weights.buffers["sqrt_one_minus_alphas_cumprod"].double()
    product = (1 - weights.buffers["betas"].double()).cumprod(0).sqrt()
    off = torch.stack(((a * a + b * b - 1).abs(), (a - product).abs())).amax(0)
    if not bool((off < 1e-4).all()):
        t = int((~(off < 1e-4)).nonzero()[0])
        raise CheckpointError(
            f"{path}: betas, sqrt_alphas_cumprod and sqrt_one_minus_alphas_cumprod disagree at t = "
            f"{t}; was the schedule changed since?"
        )
    fine = torch.where(a < 0.5**0.5, a, ((1 - b) * (1 + b)).sqrt())
    try:
        schedule = Schedule(torch.cat((torch.ones(1, dtype=torch.float64), fine)))
    except ValueError as error:
        raise CheckpointError(f"{path}: its schedule will not do: {error}") from error
    return tuple(schedule.alpha_bar.tolist())


def _objective(weights: Weights, alpha_bar: tuple[float, ...]) -> tuple[Objective | None, str]:
    """What the network predicts, by the weights of its loss, which differ with it.

    They are min(SNR, γ), γ = ∞ where min-SNR was not asked for, over SNR for the noise, over 1 for
    x_0, over SNR + 1 for v (Hang et al. 2023, arXiv:2303.09556).
    """
    if "loss_weight" not in weights.buffers:
        return None, ""
    given = weights.buffers["loss_weight"].double()
    square = torch.tensor(alpha_bar[1:], dtype=torch.float64) ** 2
    snr = square / (1 - square)
    over: dict[Objective, Tensor] = {
        "pred_noise": snr,
        "pred_x0": torch.ones_like(snr),
        "pred_v": snr + 1,
    }
    fitting: list[Objective] = []
    for objective, divisor in over.items():
        clipped = given * divisor
        expected = snr.clamp(max=float(clipped.max()))
        if torch.allclose(clipped, expected, rtol=1e-3, atol=1e-12):
            fitting.append(objective)
    return (fitting[0], "loss_weight") if len(fitting) == 1 else (None, "")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _of_each(values: tuple[int, ...], levels: int) -> tuple[int, ...]:
    return values * levels if len(values) == 1 else values
