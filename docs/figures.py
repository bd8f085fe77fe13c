"""Makes the figures of the documents, into docs/figures/.

python docs/figures.py                       lists them
python docs/figures.py schedules destroy     makes those that need no run
python docs/figures.py samplers RUN          makes one from a trained run
python docs/figures.py losses RUN RUN …      compares runs of the text's two losses
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.overrides import TorchFunctionMode

from unraze import data, generate, nn as networks, pictures, plots, rng, run as runs
from unraze.config import DataConfig, LeanConfig
from unraze.data import to_float
from unraze.errors import DataError, InputError, UnrazeError
from unraze.generate import Model
from unraze.loss import four_variable, reduced
from unraze.process import destroy, like
from unraze.schedule import SCHEDULES, Schedule, linear

FIGURES = Path(__file__).parent / "figures"
COLOURS = {"four-variable": "#c0392b", "reduced": "#1f6f8b", "weighted": "#555555"}
SYMBOLS = {"four-variable": "$L_4$, four variables", "reduced": "$L_2$, reduced"}


# ------------------------------------------------------------------------------- without a run


def schedules(out: Path) -> None:
    """ᾱ, β̄, β and log-SNR of every schedule at T = 1000."""
    chosen = {name: make(1000) for name, make in SCHEDULES.items()}
    plots.save(plots.schedule_figure(chosen), out / "schedules.png", {"figure": "schedules"})


def destroy_strip(out: Path, count: int = 3) -> None:
    """x_t of real pictures on the way from t = 0 to T: Fashion-MNIST, or digits without it."""
    try:
        images = data.load(DataConfig(source="fashion-mnist"), split="test")
    except DataError as error:
        print(f"{error}\ndrawing the bundled digits instead", file=sys.stderr)
        images = data.load(DataConfig(source="digits"))
    chosen = rng.permutation(1, "figure", len(images.pixels))[:count]
    x0 = data.batch(images, chosen)
    eps = rng.normal(0, "figure", range(count), 0, x0.shape[1:])
    schedule = linear(1000)
    strip = []
    for t in (0, 25, 75, 150, 250, 350, 500, 700, 1000):
        x_t = destroy(schedule, x0, t, eps)
        label = f"$t = {t}$\n$\\bar\\alpha_t = {float(schedule.alpha_bar[t]):.3g}$"
        strip.append((label, x_t))
    _save(_strip(strip), out / "destroy.png", "destroy")


def loss_variance(out: Path, draws: int = 512, over_all: int = 4096) -> None:
    """The gradients of the text's two losses: variance at each t, noise over the mixture.

    Printed as two tables, the first of `draws` gradients at each t, the second of `over_all`.
    """
    torch.set_num_threads(1)
    digits = to_float(data.load(DataConfig(source="digits")).pixels)
    schedule = linear(1000)
    network = _small_network(digits, schedule, steps=100)
    print(f"{networks.parameters_in(network):,} weights, 100 steps of training\n")

    times = (1, 3, 10, 30, 100, 200, 400, 600, 800, 1000)
    at_t, rows = [], []
    for t in times:
        ratio = float(schedule.beta[t] / schedule.beta_bar[t]) ** 2
        mean, variance = _moments(_gradients(network, digits, schedule, t), draws)
        at_t.append(variance[:2].tolist())
        agree = float(draws * mean[3].square().sum() / variance[3]) if t > 1 else 0
        four, two = at_t[-1]
        shown = [f"{ratio:.3f}", f"{four:.2g}", f"{two:.2g}", _rounded(four / two)]
        rows.append([str(t), *shown, f"{agree:.1f}" if t > 1 else "–"])
    weight, trace = r"$(\beta_t/\bar\beta_t)^2$", r"$\operatorname{tr}\operatorname{Var}$"
    heads = ["$t$", weight, f"{trace} of $g_4$", f"{trace} of {weight[:-1]} g_2$", "ratio"]
    print(_table([*heads, "means agree"], rows))

    mean, variance = _moments(_gradients(network, digits, schedule, None), over_all)
    signal = mean.square().sum(1) - variance / over_all
    signal[0] = signal[1]  # they have the same mean; the one that varies less tells it better
    scales = (variance / signal)[:3].tolist()
    names = ("$g_4$", f"{weight[:-1]} g_2$", "$g_2$")
    rows = [[n, f"{v:.2g}", _rounded(k)] for n, v, k in zip(names, variance, scales, strict=False)]
    print(_table(["over all $t$", trace, "noise scale"], rows))

    figure = plots.figure(9.0, 3.4)
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    plots.bare(left)
    left.plot(times, [v for v, _ in at_t], "o-", color=COLOURS["four-variable"], label="$g_4$")
    label = r"$(\beta_t/\bar\beta_t)^2\, g_2$, the same mean"
    left.plot(times, [v for _, v in at_t], "o-", color=COLOURS["reduced"], label=label)
    left.set(xscale="log", yscale="log", xlabel="t")
    left.set_title("variance of the gradient at t", loc="left")
    left.legend(frameon=False)
    colours = [COLOURS["four-variable"], "#7fb3c4", COLOURS["reduced"]]
    bars = right.barh(names, scales, color=colours, height=0.5)
    right.bar_label(bars, labels=[f" {_rounded(scale)}" for scale in scales])
    right.set_title("noise scale over all t, in pictures", loc="left")
    right.set(xscale="log", xlim=(1, 10 * max(scales)))
    right.invert_yaxis()
    for side in ("top", "right", "bottom", "left"):
        right.spines[side].set_visible(False)
    right.set_xticks([])
    right.minorticks_off()
    right.tick_params(length=0)
    _save(figure, out / "loss-variance.png", "loss-variance")


def _rounded(value: float) -> str:
    """Two digits that count, no exponent."""
    return f"{float(f'{value:.2g}'):,g}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    marks = ["---:"] * len(heads)
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, marks, *rows)) + "\n"


def _small_network(x: Tensor, schedule: Schedule, *, steps: int) -> nn.Module:
    """A lean network for 8×8 pictures, trained for a moment on the reduced loss."""
    config = LeanConfig(fold=1, widths=(8, 16), blocks=1, heads=4, groups=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = networks.build(config, channels=1, size=(8, 8))
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)

    def eps_theta(x_t: Tensor, t: Tensor) -> Tensor:
        out: Tensor = network(x_t, t.float())
        return out

    for step in range(steps):
        x0, t, eps, _ = _drawn(x, schedule, 64, None, "training", step)
        optimizer.zero_grad()
        (reduced(eps_theta, schedule, x0, t, eps).mean() / x0[0].numel()).backward()
        optimizer.step()
    return network


def _drawn(
    x: Tensor, schedule: Schedule, count: int, t: int | None, purpose: str, index: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pictures, times (all t, or uniform) and two noises, a function of (purpose, index)."""
    generator = torch.Generator().manual_seed(rng.torch_seed(0, purpose, index))
    x0 = x[torch.randint(len(x), (count,), generator=generator)]
    times = torch.randint(1, schedule.steps + 1, (count,), generator=generator)
    noises = torch.randn((2, *x0.shape), generator=generator)
    return x0, times if t is None else torch.full_like(times, t), noises[0], noises[1]


def _gradients(
    network: nn.Module, x: Tensor, schedule: Schedule, t: int | None, part: int = 64
) -> Iterator[Tensor]:
    """g₄, r² g₂, g₂ and g₄ - r² g₂ with r = β_t/β̄_t, of single draws at time t or at uniform times.

    Yields (4, part, weights) without end. All are per value, and see the same x_t.
    """
    weights, buffers = dict(network.named_parameters()), dict(network.named_buffers())

    def gradients(loss: Callable[..., Tensor], x0: Tensor, *drawn: Tensor) -> Tensor:
        # each draw has weights of its own; the losses themselves cannot be mapped, they look at t
        own = {k: w.detach().expand(len(x0), *w.shape).requires_grad_() for k, w in weights.items()}

        def of_one(weights: dict[str, Tensor], x_t: Tensor, t: Tensor) -> Tensor:
            out: Tensor = functional_call(network, (weights, buffers), (x_t[None], t.float()[None]))
            return out[0]

        def eps_theta(x_t: Tensor, t: Tensor) -> Tensor:
            with _AnyLayout():
                return vmap(of_one)(own, x_t, t)

        total = loss(eps_theta, schedule, x0, *drawn).sum() / x0[0].numel()
        rows = torch.autograd.grad(total, list(own.values()))
        return torch.cat([row.flatten(1) for row in rows], dim=1)

    for index in itertools.count():
        x0, times, before, step = _drawn(x, schedule, part, t, f"gradient at {t}", index)
        of_before = like(schedule.alpha[times] * schedule.beta_bar[times - 1], x0)
        whole = of_before * before + like(schedule.beta[times], x0) * step
        eps = whole / like(schedule.beta_bar[times], x0)
        g4 = gradients(four_variable, x0, times, before, step)
        g2 = gradients(reduced, x0, times, eps)
        scaled = like((schedule.beta[times] / schedule.beta_bar[times]) ** 2, g2) * g2
        yield torch.stack((g4, scaled, g2, g4 - scaled)).detach()


class _AnyLayout(TorchFunctionMode):
    """Leaves the layout in memory, which `vmap` cannot choose, as it comes; values are the same."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kept = {k: v for k, v in (kwargs or {}).items() if k != "memory_format"}
        return func(*args, **kept)


def _moments(parts: Iterator[Tensor], count: int) -> tuple[Tensor, Tensor]:
    """Mean (K, weights) and total variance (K,) of the first `count` draws (K, part, weights)."""
    total: Tensor | float = 0.0
    squares: Tensor | float = 0.0
    done = 0
    while done < count:
        rows = next(parts)
        total = total + rows.sum(1).double()
        squares = squares + rows.square().sum((1, 2)).double()
        done += rows.shape[1]
    mean = torch.as_tensor(total / done)
    return mean, (squares / done - mean.square().sum(1)) * done / (done - 1)


# --------------------------------------------------------------------------------- from a run


def reconstruct(out: Path, paths: Sequence[Path], options: argparse.Namespace) -> None:
    """The random sampler's states on the way from noise to pictures."""
    model = generate.load(_one(paths))
    settings = generate.changed(
        model.config.sample, {"sampler": "random", "steps": options.steps or model.schedule.steps}
    )
    steps = generate.plan_of(model, settings).chain
    shares = (0, 0.3, 0.5, 0.65, 0.75, 0.85, 0.92, 0.97, 1)
    kept = {round(share * steps.steps) for share in shares}
    start = rng.normal(options.seed, "start", range(3), 0, model.shape)
    strip = [(f"$t = {float(steps.times[-1]):g}$", start)]
    for moment in generate.generate(model, 3, seed=options.seed, settings=settings):
        if moment.done in kept:
            strip.append((f"$t = {moment.t:g}$", moment.x))
    _save(_strip(strip), out / "reconstruct.png", "reconstruct")


def samplers(out: Path, paths: Sequence[Path], options: argparse.Namespace) -> None:
    """Greedy, random and DDIM from the same starting noise, beside real pictures."""
    model = generate.load(_one(paths))
    count = 25
    steps = options.steps or model.schedule.steps
    panels: list[tuple[str, Tensor]] = []
    for sampler in ("greedy", "random", "ddim"):
        panels.append((sampler, _samples(model, sampler, steps, count, options.seed)))
    images = data.load(model.config.data)
    chosen = rng.permutation(options.seed, "figure", len(images.pixels))[:count]
    panels.append(("real", data.batch(images, chosen)))
    figure = plots.figure(9.0, 2.9)
    for axes, (name, x) in zip(figure.subplots(1, 4).flat, panels, strict=True):
        _panel(axes, x)
        axes.set_title({"ddim": "DDIM", "real": "real pictures"}.get(name, name))
        axes.set_xlabel(f"spread {_spread(x):.2f}")
    figure.suptitle(f"{steps} steps from the same noise", fontsize=10)
    _save(figure, out / "samplers.png", "samplers", run=model.run)


def losses(out: Path, paths: Sequence[Path], options: argparse.Namespace) -> None:
    """Runs of the text's two losses: curves, the noise estimate's error, and samples."""
    models = [generate.load(path) for path in paths]
    models.sort(key=lambda m: (m.config.loss.objective, m.config.train.seed))
    groups = {
        kind: [m for m in models if m.config.loss.objective == kind]
        for kind in ("four-variable", "reduced")
    }
    if not all(groups.values()):
        raise InputError("losses: give runs of both losses, four-variable and reduced")
    _save(_curves(groups), out / "two-losses.png", "losses")

    columns = max(map(len, groups.values()))
    figure = plots.figure(2.6 * columns, 3.2)
    grid = figure.subplots(2, 2 * columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for row, (kind, members) in enumerate(groups.items()):
        for column, model in enumerate(members):
            for block, sampler in enumerate(("greedy", "random")):
                steps = options.steps or model.schedule.steps
                x = _samples(model, sampler, steps, 16, options.seed)
                axes = grid[row, block * columns + column]
                axes.set_axis_on()
                _panel(axes, x)
                seed = model.config.train.seed
                axes.set_title(f"{sampler}, seed {seed}" if row == 0 else "", fontsize=9)
                axes.set_xlabel(f"spread {_spread(x):.2f}", fontsize=8)
        grid[row, 0].set_ylabel(SYMBOLS[kind], color=COLOURS[kind])
    _save(figure, out / "two-losses-samples.png", "losses")


def film(out: Path, paths: Sequence[Path], options: argparse.Namespace) -> None:
    """Noise turning into pictures: a GIF of the run's own sampler."""
    model = generate.load(_one(paths))
    settings = model.config.sample
    if options.steps:
        settings = generate.changed(settings, {"steps": options.steps})
    steps = generate.plan_of(model, settings).states
    kept = {round((k + 1) * steps / 50) for k in range(50)}
    start = rng.normal(options.seed, "start", range(24), 0, model.shape)
    states, times = [pictures.pixels_of(start)], [float(model.schedule.times[-1])]
    for moment in generate.generate(model, 24, seed=options.seed, settings=settings):
        if moment.done in kept:
            states.append(pictures.pixels_of(moment.x))
            times.append(moment.t)
    recipe = generate.recipe(model, settings, seed=options.seed, classes=None, batch=range(24))
    frames = pictures.film_frames(states, times, columns=8, upscale=2)
    pictures.write_film(frames, out / "film.gif", recipe | {"kind": "film", "images": [0, 24]})


def _one(paths: Sequence[Path]) -> Path:
    if len(paths) != 1:
        raise InputError(f"this figure is made from one run, {len(paths)} were given")
    return paths[0]


def _samples(model: Model, sampler: str, steps: int, count: int, seed: int) -> Tensor:
    changes = {"sampler": sampler, "steps": steps, "guidance": 1.0}
    settings = generate.changed(model.config.sample, changes)
    return generate.sample(model, count, seed=seed, settings=settings)


def _spread(x: Tensor) -> float:
    """The root mean square of a pixel's deviation from its mean over the pictures."""
    return float(x.var(0).mean().sqrt())


def _curves(groups: dict[str, list[Model]]) -> Figure:
    figure = plots.figure(10.0, 3.4)
    panels = figure.subplots(1, 3)
    for axes in panels:
        plots.bare(axes)
    for axes, (kind, members) in zip(panels, groups.items(), strict=False):
        for model in members:
            rows = [r for r in runs.read_rows(runs.find(Path(model.run)).stats) if "loss" in r]
            steps, values = _smooth([r["step"] for r in rows], [r["loss"] for r in rows])
            axes.plot(steps, values, color=COLOURS[kind], lw=1, alpha=0.8)
        axes.set(xlabel="step", yscale="log" if kind == "reduced" else "linear")
        axes.set_title(f"training loss {SYMBOLS[kind]}", loc="left", fontsize=10)
    for kind, members in groups.items():
        for model in members:
            times, errors = _noise_errors(model)
            label = SYMBOLS[kind] if model is members[0] else None
            panels[2].plot(times, errors, "o-", ms=3, lw=1, color=COLOURS[kind], label=label)
    panels[2].set(xscale="log", yscale="log", xlabel="t")
    panels[2].set_title("error of the whole noise's estimate", loc="left", fontsize=10)
    panels[2].legend(frameon=False)
    return figure


def _smooth(steps: list[int], values: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Means over some 150 stretches of equal length."""
    width = max(1, len(values) // 150)
    count = len(values) // width
    mean = np.reshape(values[: count * width], (count, width)).mean(1)
    return np.reshape(steps[: count * width], (count, width)).mean(1), mean


@torch.no_grad()
def _noise_errors(model: Model, count: int = 256) -> tuple[list[int], list[float]]:
    """‖ε̄ - ε̂‖²/d over the schedule's times, on pictures and noises that are the same for all."""
    images = data.load(model.config.data)
    chosen = rng.permutation(0, "figure", len(images.pixels))[:count]
    x0 = data.batch(images, np.resize(chosen, count))
    eps = rng.normal(0, "figure", range(count), 1, model.shape)
    settings = generate.changed(model.config.sample, {"clip": "none", "guidance": 1.0})
    denoise = generate.denoiser_of(model, settings, [None] * count)
    top = model.schedule.steps
    times = sorted({max(1, round(top * share)) for share in np.geomspace(1 / top, 1, 13)})
    errors = []
    for t in times:
        x_t = destroy(model.schedule, x0, t, eps)
        found = denoise(x_t, torch.tensor(float(t))).eps
        errors.append(float((found - eps).square().mean()))
    return times, errors


# ------------------------------------------------------------------------------------ drawing


def _strip(states: Sequence[tuple[str, Tensor]]) -> Figure:
    """States (B, C, H, W) side by side, one picture a row, a label above each column."""
    rows = len(states[0][1])
    figure = plots.figure(len(states), rows + 0.2 * (1 + states[0][0].count("\n")))
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    grid = figure.subplots(rows, len(states), squeeze=False)
    for column, (label, x) in enumerate(states):
        for row in range(rows):
            _panel(grid[row, column], x[row : row + 1])
        grid[0, column].set_title(label, fontsize=9)
    return figure


def _panel(axes: Axes, x: Tensor) -> None:
    """Pictures (B, C, H, W) in [-1, 1] as a square grid, without a frame."""
    pixels = pictures.pixels_of(x)
    picture = pixels[0]
    if len(pixels) > 1:
        picture = np.asarray(pictures.grid(pixels, upscale=4, padding=4))
    axes.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=255)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _save(figure: Figure, path: Path, name: str, **more: str) -> None:
    plots.save(figure, path, {"figure": name, **more})


@dataclass(frozen=True)
class Entry:
    """A figure: the function that makes it, and whether it is made from runs."""

    make: Callable[..., None]
    files: tuple[str, ...]
    from_runs: bool = False


ENTRIES = {
    "schedules": Entry(schedules, ("schedules.png",)),
    "destroy": Entry(destroy_strip, ("destroy.png",)),
    "loss-variance": Entry(loss_variance, ("loss-variance.png",)),
    "reconstruct": Entry(reconstruct, ("reconstruct.png",), from_runs=True),
    "samplers": Entry(samplers, ("samplers.png",), from_runs=True),
    "losses": Entry(losses, ("two-losses.png", "two-losses-samples.png"), from_runs=True),
    "film": Entry(film, ("film.gif",), from_runs=True),
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="figures, and after one that needs it, its runs")
    parser.add_argument("--out", type=Path, default=FIGURES, help="another folder for the files")
    parser.add_argument("--steps", type=int, help="sampling steps; all of the schedule's if absent")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if not options.names:
        for name, entry in ENTRIES.items():
            needs = " RUN …" if name == "losses" else " RUN" if entry.from_runs else ""
            about = (entry.make.__doc__ or "").splitlines()[0]
            print(f"  {name + needs:18} {', '.join(entry.files):38} {about}")
        return 0
    jobs: list[tuple[str, list[Path]]] = []
    for word in options.names:
        if word in ENTRIES and (not jobs or not _waits_for_a_run(jobs[-1])):
            jobs.append((word, []))
        elif jobs and ENTRIES[jobs[-1][0]].from_runs:
            jobs[-1][1].append(Path(word))
        else:
            parser.error(f"there is no figure '{word}'; there are {', '.join(ENTRIES)}")
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        for name, paths in jobs:
            entry = ENTRIES[name]
            entry.make(options.out, paths, options) if entry.from_runs else entry.make(options.out)
            for file in entry.files:
                print(options.out / file)
    except UnrazeError as error:
        print(f"{error}", file=sys.stderr)
        return error.exit_status
    return 0


def _waits_for_a_run(job: tuple[str, list[Path]]) -> bool:
    return ENTRIES[job[0]].from_runs and not job[1]


if __name__ == "__main__":
    sys.exit(main())
