"""`unraze import lucidrains`: a run of a checkpoint of the package denoising-diffusion-pytorch."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter

from unraze.cli.app import OUTPUT, SAMPLING, parse_size, told_as_options
from unraze.cli.importing import importing
from unraze.errors import InputError

if TYPE_CHECKING:
    from unraze.config import Config
    from unraze.interop.lucidrains import Findings, Weights

__all__ = ["lucidrains"]

UNTOLD = Group("What the file does not tell", sort_key=1)
TOLD = Group("What the file tells (given otherwise, it is an error)", sort_key=2)

Numbers = Annotated[str | None, Parameter(group=TOLD, help="As 4, or one for each level: 4,4,8.")]
Number = Annotated[int | None, Parameter(group=TOLD)]
Flag = Annotated[bool | None, Parameter(group=TOLD)]


@importing.command(
    usage="Usage: unraze import lucidrains FILE --image-size SIZE [OPTIONS]",
    help_epilogue=(
        "Examples:\n\n"
        "  unraze import lucidrains results/model-10.pt --image-size 64\n"
        "  unraze import lucidrains model-10.pt --image-size 32x48 --sampling-timesteps 250\n\n"
        "Then, as with any run:\n\n"
        "  unraze sample RUN -n 64"
    ),
)
def lucidrains(
    file: Annotated[Path, Parameter(help="What the package's Trainer saved: model-….pt.")],
    /,
    *,
    image_size: Annotated[
        str | None,
        Parameter(group=UNTOLD, help="As 64, or height x width: 32x48. It has to be given."),
    ] = None,
    objective: Annotated[
        Literal["pred_v", "pred_noise", "pred_x0"] | None,
        Parameter(
            group=UNTOLD,
            help="What the network predicts; needed only where the weights of the loss, which the "
            "file has, do not tell it.",
        ),
    ] = None,
    theta: Annotated[
        float,
        Parameter(group=UNTOLD, help="sinusoidal_pos_emb_theta, where it was not the package's."),
    ] = 10000.0,
    auto_normalize: Annotated[
        bool,
        Parameter(
            group=UNTOLD,
            help="Whether pixels from 0 to 1 were made -1 to 1, as the package does by itself.",
        ),
    ] = True,
    dim: Number = None,
    init_dim: Number = None,
    dim_mults: Numbers = None,
    channels: Number = None,
    self_condition: Flag = None,
    learned_variance: Flag = None,
    attn_heads: Numbers = None,
    attn_dim_head: Numbers = None,
    timesteps: Number = None,
    sampling_timesteps: Annotated[
        int | None,
        Parameter(
            group=SAMPLING,
            help="What the run samples with, if not asked otherwise: DDIM in so many steps; the "
            "package's ddpm in all T steps if absent.",
        ),
    ] = None,
    ddim_sampling_eta: Annotated[
        float | None, Parameter(group=SAMPLING, help="Share of new noise in DDIM; 0 if absent.")
    ] = None,
    out: Annotated[
        Path | None,
        Parameter(group=OUTPUT, help="The run's folder; a fresh number under runs/ if absent."),
    ] = None,
) -> int:
    """Make a run of a checkpoint of the package denoising-diffusion-pytorch, release 2.

    Its network, its schedule and its averaged and raw weights are taken over; the run draws as that
    package does. The file is read as tensors alone: a pickle with code in it is refused. The run's
    folder is the last line printed.
    """
    told = {
        "dim": dim,
        "init_dim": init_dim,
        "dim_mults": _numbers("--dim-mults", dim_mults),
        "channels": channels,
        "self_condition": self_condition,
        "learned_variance": learned_variance,
        "attn_heads": _numbers("--attn-heads", attn_heads),
        "attn_dim_head": _numbers("--attn-dim-head", attn_dim_head),
        "timesteps": timesteps,
    }
    given = {name: value for name, value in told.items() if value is not None}
    if not 0 < theta < float("inf"):
        raise InputError(f"--theta {theta:g}: give a finite number above 0; the package's is 10000")
    if not auto_normalize:
        raise InputError(
            "--no-auto-normalize: that network knows pixels from 0 to 1, a run has them from -1 to "
            "1; where its images were brought to -1 to 1 before, leave the option out"
        )
    if out is not None:
        from unraze import run as runs
        from unraze.cli.drawing import require_place

        runs.require_free(out)
        require_place(out, f"--out {out}")
    size = parse_size(image_size, "--image-size")

    from unraze.interop import lucidrains as package
    from unraze.interop.made import create_run

    names = {"objective": "--objective", "sampling_timesteps": "--sampling-timesteps"}
    names |= {"eta": "--ddim-sampling-eta"} | {n: f"--{n.replace('_', '-')}" for n in given}
    with told_as_options(names):
        weights = package.read(file)
        found = package.findings(weights)
        package.require_agreement(weights, found, given)
        if size is None:
            halvings = 2 ** (len(found.network.multipliers) - 1)
            raise InputError(
                f"--image-size is missing: no tensor of {file} tells it; give what "
                f"GaussianDiffusion was given, a multiple of {halvings}, as --image-size "
                f"{max(halvings, 64)} or height x width"
            )
        config = package.configuration(
            weights,
            found,
            objective=objective,
            theta=theta,
            sampling_timesteps=sampling_timesteps,
            eta=ddim_sampling_eta,
        )
        run = create_run(
            config,
            weights.network,
            weights.average,
            shape=(found.channels, *size),
            step=weights.step,
            out=out,
            command=["unraze", *sys.argv[1:]],
        )
    for line in _said(weights, found, config, theta=theta):
        print(line)
    print(f"draw from it with: unraze sample {shlex.quote(str(run.path))} -n 16")
    print(run.path)
    return 0


def _said(weights: Weights, found: Findings, config: Config, *, theta: float) -> list[str]:
    """What was read, what was found in it, and what had to be assumed."""
    from unraze.interop.lucidrains import OBJECTIVES, written

    network, sample = found.network, config.sample
    (objective,) = (k for k, v in OBJECTIVES.items() if v == config.loss.parametrisation)
    parts = [
        f"dim {network.dim}" + (f", init_dim {network.init_dim}" if network.init_dim else ""),
        f"dim_mults {written(network.multipliers)}",
        f"{found.channels} channel{'s' if found.channels > 1 else ''}",
        f"full attention at level {written(network.attention) or 'none'}",
        f"heads {written(network.heads)} of {written(network.head_dim)} channels",
        *(["self-conditioning"] if found.self_conditioning else []),
        *(["learned variance"] if found.learned_variance else []),
    ]
    by = f"by its {found.by}" if found.objective else "as given"
    if config.schedule.allow_signal:
        by += "; its ᾱ_T is above 0.01, so samples start off-course, as they do there"
    way = f"ddpm in all {sample.steps} steps"
    if sample.sampler == "ddim":
        way = f"ddim in {sample.steps} steps, eta {sample.eta:g}"
    return [
        f"{weights.path}: step {weights.step}, by denoising-diffusion-pytorch {weights.version}",
        f"network, by its tensors: {', '.join(parts)}",
        f"schedule, by its buffers: T = {found.timesteps}, ᾱ_T = {found.alpha_bar[-1]:.3g}",
        f"objective: {objective}, {by}",
        f"not told by the file, so taken to be: sinusoidal_pos_emb_theta {theta:g}, auto_normalize "
        "true",
        f"draws as that package would: {way}",
    ]


def _numbers(option: str, text: str | None) -> tuple[int, ...] | None:
    """(1, 2, 4) from "1,2,4"; None from None. Raises `InputError`."""
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,6}(,[0-9]{1,6})*", text):
        raise InputError(f"{option} {text}: give whole numbers with commas between, as 1,2,4,8")
    return tuple(map(int, text.split(",")))
