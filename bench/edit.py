"""Filling in, enlarging, sharpening and cleaning: our methods and azula's on one trained network.

    python bench/edit.py RUN [--split validation] [--calls 25]
    python bench/edit.py RUN --split test

RUN is a run of `unraze train fashion-mnist`. Four tasks, on images that it never saw: the lower
half is missing; every 4 x 4 pixels are one (noise 0.02); a Gaussian blur of 2 pixels (noise 0.02);
noise of 0.5, all in units of [-1, 1]. Every method has the same network, told no class, the same
spoilt images and the same number of network calls, forwards; what goes back through the network is
in its seconds.

What decides was fixed before anything was measured: for the missing half the Fréchet distance of
the filled-in images to real ones, for the others the mean squared distance of result and truth in
the first feature space, on features of length 1. PSNR and SSIM stand beside them; PSNR rewards a
blurred mean. The test images are halved: variants are chosen by some of the first half (`--split
validation`), claims are made on more of the second (`--split test`), of each method by its best
variant.
azula's denoisers and samplers come as they are, through an adapter; of each the parameters that its
authors leave to the user are tried. Every cell is kept; the same command goes on where it was.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import azula.denoise
import azula.guidance
import azula.noise
import azula.sample
import kept
import numpy as np
import torch
from azula.linalg.covariance import IsotropicCovariance
from material import test_images
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from unraze import generate, rng
from unraze.data import to_float, to_uint8
from unraze.denoiser import Denoiser, clipped
from unraze.edit.inpainting import repaint, repaint_steps, replaced
from unraze.edit.operators import Observed, Operator, blurred, downsampled, identity, only
from unraze.edit.restoration import diffpir, dps, held, mmps, pigdm
from unraze.evaluate.features import FeatureSpace
from unraze.evaluate.metrics import frechet
from unraze.generate import Model
from unraze.samplers import adams, ddim, even_angles, last
from unraze.schedule import Schedule

RESULTS = Path(__file__).parent / "results" / "edit"
AT_ONCE = 64
Array = np.ndarray[Any, Any]

HALF = torch.arange(28)[:, None].expand(28, 28) < 14
"""What is known where the lower half is missing."""
TASKS: dict[str, tuple[Operator, float]] = {
    "missing half": (only(HALF), 0.0),
    "4 x 4 in one": (downsampled(4), 0.02),
    "blur of 2": (blurred(2.0), 0.02),
    "noise of 0.5": (identity, 0.5),
}
INPAINTING = "missing half"
IMAGES = {"validation": (256, 64), "test": (1000, 256)}
"""How many are filled in, and how many there are of each other task."""
LEAST = 0.01
"""σ that both are told where there is none: neither can divide by 0."""


class Job:
    """One batch of one task: the network, the schedule, what is seen, and the noise."""

    def __init__(self, model: Model, task: str, truth: Tensor, numbers: range, calls: int) -> None:
        operator, sigma = TASKS[task]
        y = operator(truth)
        y = y + sigma * rng.normal(0, f"spoilt {task}", numbers, 0, y.shape[1:])
        self.task, self.model, self.calls, self.truth = task, model, calls, truth
        self.numbers = numbers
        self.seen = Observed(y, operator, max(sigma, LEAST))
        settings = generate.changed(
            model.config.sample, {"clip": "none", "guidance": 1.0, "dtype": "float32"}
        )
        self.denoise = generate.denoiser_of(model, settings, [None] * len(numbers))
        self.start = generate.start(model, 1, numbers)
        self.noise = generate.noise_of(model, 1, numbers)
        self.variance = model.sigma_data**2

    def chain(self, steps: int | None = None) -> Schedule:
        return even_angles(self.model.schedule, self.calls if steps is None else steps)


Method = Callable[[Job], Tensor]


def walked(
    wrap: Callable[[Denoiser, Job, Schedule], Denoiser], eta: float | None, *, moves: bool = False
) -> Method:
    """Ours: a wrapped denoiser, clipped, by DDIM with this η, or where it is None by Adams.

    Of those that move the step, what they begin from is clipped.
    """

    def draw(job: Job) -> Tensor:
        chain = job.chain()
        if moves:
            bound = partial(clipped, schedule=job.model.schedule)
            denoise = wrap(held(job.denoise, bound), job, chain)
        else:
            denoise = clipped(wrap(job.denoise, job, chain), job.model.schedule)
        if job.task == INPAINTING:
            denoise = replaced(denoise, job.model.schedule, job.truth, HALF)
        if eta is None:
            return last(adams(denoise, job.start, chain, order=2))
        return last(ddim(denoise, job.start, chain, noise=job.noise, eta=eta))

    return draw


def _mmps(iterations: int) -> Callable[[Denoiser, Job, Schedule], Denoiser]:
    return lambda denoise, job, chain: mmps(
        denoise, job.model.schedule, job.seen, iterations=iterations, variance=job.variance
    )


def _pigdm(denoise: Denoiser, job: Job, chain: Schedule) -> Denoiser:
    return pigdm(denoise, job.model.schedule, job.seen, variance=job.variance)


def _published(denoise: Denoiser, job: Job, chain: Schedule) -> Denoiser:
    how: dict[str, Any] = {"variance": job.variance, "chain": chain}
    return pigdm(denoise, job.model.schedule, job.seen, **how)


def _diffpir(strength: float) -> Callable[[Denoiser, Job, Schedule], Denoiser]:
    return lambda denoise, job, chain: diffpir(
        denoise, job.model.schedule, job.seen, strength=strength, variance=job.variance
    )


def _dps(step: float) -> Callable[[Denoiser, Job, Schedule], Denoiser]:
    return lambda denoise, job, chain: dps(denoise, chain, job.seen, step=step)


def _repainted(repeats: int) -> Method:
    def draw(job: Job) -> Tensor:
        steps = repaint_steps(job.calls, repeats=repeats)
        how: dict[str, Any] = {"known": job.truth, "mask": HALF, "repeats": repeats}
        denoise = clipped(job.denoise, job.model.schedule)
        return last(repaint(denoise, job.start, job.chain(steps), noise=job.noise, **how))

    return draw


OURS: dict[str, dict[str, Method]] = {
    "mmps": {
        f"{k} iterations, {name}": walked(_mmps(k), eta)
        for k in (1, 3)
        for name, eta in (("η 1", 1.0), ("η 0", 0.0))
    },
    "pigdm": {
        name: walked(_pigdm, eta) for name, eta in (("η 1", 1.0), ("η 0", 0.0), ("adams", None))
    }
    | {"published, η 1": walked(_published, 1.0, moves=True)},
    "diffpir": {
        f"λ {strength:g}, {name}": walked(_diffpir(strength), eta)
        for strength in (0.3, 1.0)
        for name, eta in (("η 1", 1.0), ("η 0", 0.0))
    },
    "dps": {f"ζ {step:g}": walked(_dps(step), 1.0, moves=True) for step in (0.3, 1.0)},
    "repaint": {f"{r} repeats": _repainted(r) for r in (2, 5)},
    "replace": {
        "η 1": walked(lambda denoise, job, chain: denoise, 1.0),
    },
}
OF_INPAINTING = ("repaint", "replace", "azula RePaint")


class TheirSchedule(azula.noise.Schedule):
    """Our schedule in azula's time, 0 to 1."""

    def __init__(self, schedule: Schedule) -> None:
        self.ours = schedule

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.ours.at(t.double() * float(self.ours.times[-1]))
        return a.float(), b.float()


class TheirDenoiser(azula.denoise.Denoiser):
    """Our denoiser as azula's, its estimate clipped, as ours begin from it."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job, self._schedule = job, TheirSchedule(job.model.schedule)
        self.denoise = held(job.denoise, partial(clipped, schedule=job.model.schedule))

    @property
    def schedule(self) -> TheirSchedule:
        return self._schedule

    def forward(self, x_t: Tensor, t: Tensor, **how: Any) -> azula.denoise.DiracPosterior:
        time = t.double() * float(self.job.model.schedule.times[-1])
        return azula.denoise.DiracPosterior(mean=self.denoise(x_t, time).x0)


START = 0.995
"""Where azula begins: at 1 this schedule has ᾱ = 0, by which its methods divide."""


def theirs(make: Callable[[Job, dict[str, Any]], Any]) -> Method:
    """azula's sampler, on our starting noise; its own noise is of each batch another."""

    def draw(job: Job) -> Tensor:
        sampler = make(job, {"start": START, "steps": job.calls, "silent": True})
        with torch.random.fork_rng():
            torch.manual_seed(rng.torch_seed(0, "azula's own noise", job.numbers.start))
            found: Tensor = sampler(job.start)
        return found

    return draw


def _by_ddim(wrap: Callable[[Any, Job], Any], eta: float) -> Method:
    return theirs(
        lambda job, how: azula.sample.DDIMSampler(wrap(TheirDenoiser(job), job), eta=eta, **how)
    )


def _azula(eta: float) -> dict[str, Callable[..., Method]]:
    """azula's denoisers, walked by its DDIM with this η."""
    g = azula.guidance
    return {
        "mmps": lambda k: _by_ddim(
            lambda d, job: g.MMPSDenoiser(
                d, job.seen.y, job.seen.operator, _covariance(job), iterations=k
            ),
            eta,
        ),
        "diffpir": lambda strength: _by_ddim(
            lambda d, job: g.DiffPIRDenoiser(
                d, job.seen.y, job.seen.operator, _variance(job), lmbda=strength
            ),
            eta,
        ),
        "tmpd": lambda: _by_ddim(
            lambda d, job: g.TMPDenoiser(d, job.seen.y, job.seen.operator, _variance(job)), eta
        ),
        "jfps": lambda k: _by_ddim(
            lambda d, job: g.JFPSDenoiser(
                d,
                job.seen.y,
                job.seen.operator,
                _covariance(job),
                IsotropicCovariance(torch.tensor(job.variance)),
                iterations=k,
            ),
            eta,
        ),
    }


def _variance(job: Job) -> Tensor:
    return torch.tensor(job.seen.sigma**2)


def _covariance(job: Job) -> IsotropicCovariance:
    return IsotropicCovariance(_variance(job))


def _inverse(job: Job) -> Operator:
    """A pseudo-inverse, which azula's ΠGDM asks its user for; it takes no noise into account."""
    shape = (len(job.start), *job.model.shape)
    if job.task == "4 x 4 in one":
        return lambda y: y.repeat_interleave(4, -1).repeat_interleave(4, -2)
    if job.task == "blur of 2":
        basis = torch.eye(28 * 28).reshape(-1, 1, 28, 28)
        matrix = job.seen.operator(basis).flatten(1).T
        inverse = torch.linalg.pinv(matrix.double(), rtol=0.02).float()
        return lambda y: (y.flatten(1) @ inverse.T).reshape(shape)
    return identity  # of what is missing, and of noise, it is the same picture


THEIRS: dict[str, dict[str, Method]] = {
    "azula MMPS": {
        f"{k} iterations, η {eta:g}": _azula(eta)["mmps"](k) for k in (1, 3) for eta in (1.0, 0.0)
    },
    "azula DiffPIR": {
        f"λ {strength:g}, η {eta:g}": _azula(eta)["diffpir"](strength)
        for strength in (1.0, 10.0)
        for eta in (1.0, 0.0)
    },
    "azula TMPD": {f"η {eta:g}": _azula(eta)["tmpd"]() for eta in (1.0, 0.0)},
    "azula JFPS": {f"{k} iterations": _azula(1.0)["jfps"](k) for k in (1, 3)},
    "azula ΠGDM": {
        f"η {eta:g}": theirs(
            lambda job, how, eta=eta: azula.guidance.PGDMSampler(
                TheirDenoiser(job), job.seen.y, job.seen.operator, _inverse(job), eta=eta, **how
            )
        )
        for eta in (1.0, 0.0)
    },
    "azula DPS": {
        # its norm is that of the whole batch, so that ζ is, for each image, √batch times smaller
        f"ζ {step:g}": theirs(
            lambda job, how, step=step: azula.guidance.DPSSampler(
                TheirDenoiser(job),
                job.seen.y,
                job.seen.operator,
                zeta=step * len(job.start) ** 0.5,
                **how,
            )
        )
        for step in (0.3, 1.0)
    },
    "azula RePaint": {
        f"{r} repeats": theirs(
            lambda job, how, r=r: azula.guidance.RePaintSampler(
                TheirDenoiser(job),
                job.seen.y,
                HALF,
                iterations=r,
                eta=1.0,
                **how | {"steps": job.calls // r},
            )
        )
        for r in (2, 5)
    },
}
METHODS = OURS | THEIRS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--calls", type=int, default=25)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    model = generate.load(options.run)
    pixels, (space, _) = test_images()
    halves = {"validation": pixels[:5000], "test": pixels[5000:]}
    told, cells = [], []
    for task in options.tasks.split(","):
        count = images(task, options.split)
        found = []
        for method in options.methods.split(","):
            if method in OF_INPAINTING and task != INPAINTING:
                continue
            for variant in chosen(options, model, task, method):
                file = place(options, model, task, method, variant, options.split)
                one = kept.cell(
                    file,
                    lambda m=METHODS[method][variant], t=task, n=count: measured(
                        model, t, m, halves[options.split], n, options.calls, space
                    ),
                )
                found.append({"task": task, "method": method, "variant": variant, **one})
                print(line(found[-1]), flush=True)
        cells += found
        told += table(task, found)
    print("\n".join(told))
    name = f"edit-{options.split}"
    kept.summary(options.out, name, seeds=[0, 1], options=options, told=told, cells=cells)


def images(task: str, split: str) -> int:
    """How many images a task is of, by the split."""
    filled_in, others = IMAGES[split]
    return filled_in if task == INPAINTING else others


def place(
    options: argparse.Namespace,
    model: Model,
    task: str,
    method: str,
    variant: str,
    split: str,
) -> Path:
    name = "-".join(kept.slug(word) for word in (task, method, variant, split))
    of = kept.key(model.checkpoint, options.calls, images(task, split))
    cells: Path = options.out / "cells"
    return cells / f"{name}-{of}.json"


def chosen(options: argparse.Namespace, model: Model, task: str, method: str) -> Sequence[str]:
    """All variants to choose by; to claim by, the one that was the best of those."""
    variants = list(METHODS[method])
    if options.split == "validation":
        return variants
    files = [place(options, model, task, method, v, "validation") for v in variants]
    if not all(file.is_file() for file in files):
        raise SystemExit(f"{task}, {method}: run it with --split validation first")
    cells = [kept.cell(file, lambda: ({}, None)) for file in files]
    return [min(zip(variants, cells, strict=True), key=lambda pair: decides(task, pair[1]))[0]]


def decides(task: str, cell: dict[str, Any]) -> float:
    """The figure that decides; what is no number is the worst."""
    value = cell["frechet"]["value"] if task == INPAINTING else cell["features"]
    return float("inf") if value is None else float(value)


def measured(
    model: Model,
    task: str,
    method: Method,
    images: Array,
    count: int,
    calls: int,
    space: FeatureSpace,
) -> tuple[dict[str, Any], Array]:
    """Restores the first `count` images, and holds them against the truth."""
    results, seconds = [], 0.0
    for first in range(0, count, AT_ONCE):
        numbers = range(first, min(first + AT_ONCE, count))
        job = Job(model, task, to_float(images[numbers.start : numbers.stop]), numbers, calls)
        began = time.perf_counter()
        with torch.no_grad():
            results.append(method(job).detach())
        seconds += time.perf_counter() - began
    restored, truth = torch.cat(results).clamp(-1, 1), to_float(images[:count])
    if task == INPAINTING:
        restored = torch.where(HALF, truth, restored)
    broken = int((~restored.isfinite().flatten(1).all(1)).sum())
    restored = restored.nan_to_num(0.0)
    pixels = to_uint8(restored)
    of_results, of_truth = space.extract(pixels), space.extract(images[:count])
    figures = {
        "images": count,
        "broken": broken,
        "seconds": seconds,
        "psnr": float((10 * (4 / (restored - truth).square().flatten(1).mean(1)).log10()).mean()),
        "ssim": float(structural_similarity_index_measure(restored, truth, data_range=2.0)),
        "each": np.square(unit(of_results) - unit(of_truth)).sum(1).tolist(),
    }
    figures["features"] = float(np.mean(figures["each"]))
    if task == INPAINTING:
        others = space.extract(images[count:])  # real images that none of these was made from
        found = frechet(others, of_results)
        figures["frechet"] = {"value": found.value, "low": found.low, "high": found.high}
    return figures, pixels


def unit(features: Array) -> Array:
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def line(cell: dict[str, Any]) -> str:
    words = f"{cell['task']:14} {cell['method']:14} {cell['variant']:20}"
    of = f"features {cell['features']:.4f}  PSNR {cell['psnr']:5.2f}  SSIM {cell['ssim']:.3f}"
    if "frechet" in cell:
        of = f"FD {cell['frechet']['value']:.3f}  {of}"
    broken = f"  {cell['broken']} not finite" if cell["broken"] else ""
    return f"{words} {of}  {cell['seconds']:.0f} s{broken}"


def table(task: str, cells: Sequence[dict[str, Any]]) -> list[str]:
    """The best variant of each method, and how much better or worse it is than the best of all."""
    best: dict[str, dict[str, Any]] = {}
    for cell in cells:
        before = best.get(cell["method"])
        if before is None or decides(task, cell) < decides(task, before):
            best[cell["method"]] = cell
    ranked = sorted(best.values(), key=lambda cell: decides(task, cell))
    lines = [f"\n{task}:"]
    for cell in ranked:
        share = decides(task, cell) / decides(task, ranked[0])
        lines.append(f"{line(cell)}  {share:.2f} of the best{apart(task, cell, ranked[0])}")
    return lines


def apart(task: str, cell: dict[str, Any], best: dict[str, Any]) -> str:
    """Whether the difference to the best is more than chance: 95 %, image by image; of Fréchet
    distances, which all images have together, where their intervals lie apart."""
    if cell is best:
        return ""
    if task == INPAINTING:
        is_apart = cell["frechet"]["low"] > best["frechet"]["high"]
        return ", really worse" if is_apart else ", as good, as far as can be told"
    off = np.array(cell["each"]) - np.array(best["each"])
    half = 1.96 * off.std(ddof=1) / len(off) ** 0.5
    return ", really worse" if off.mean() > half else ", as good, as far as can be told"


if __name__ == "__main__":
    main()
