"""The loss at each noise level against exact denoisers: a Gaussian's, and that of finitely many
points."""

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from oracle import finite_set, gaussian, generic_covariance, normals
from unraze.config import Config
from unraze.data import Images
from unraze.denoiser import Denoiser, Prediction, from_x0
from unraze.errors import DataError, InputError
from unraze.evaluate.noise_levels import (
    Levels,
    compared,
    even_levels,
    linear_losses,
    noise_levels,
)
from unraze.evaluate.stage import finish
from unraze.generate import Model
from unraze.nn import build
from unraze.schedule import Schedule, cosine, from_config, linear

SCHEDULE = cosine(100)
MEAN = torch.tensor([0.2, -0.5, 0.1], dtype=torch.float64)
EIGENVALUES = torch.tensor([0.02, 0.3, 1.5], dtype=torch.float64)
COVARIANCE = generic_covariance(3, EIGENVALUES.tolist())


def draws(seed: int, n: int) -> Tensor:
    return MEAN + normals(seed, n, 3) @ torch.linalg.cholesky(COVARIANCE).T


def measured(
    denoise: Denoiser,
    training: Tensor,
    held_out: Tensor,
    *,
    schedule: Schedule = SCHEDULE,
    levels: int = 8,
    known: Tensor | None = None,
) -> Levels:
    return finish(
        compared(
            lambda labels: denoise,
            schedule,
            training,
            held_out,
            even_levels(schedule, levels),
            known=training if known is None else known,
        )
    )


def test_the_exact_denoiser_of_a_gaussian_loses_what_the_closed_form_says() -> None:
    # Var(x_0 | x_t) = λ β̄²/(ᾱ² λ + β̄²) in each axis, and the loss of v is that over β̄²
    found = measured(gaussian(SCHEDULE, MEAN, COVARIANCE), draws(0, 4000), draws(1, 4000))
    assert len(found.rows) == 8
    for row in found.rows:
        a2 = row.alpha_bar**2
        expected = float((EIGENVALUES / (a2 * EIGENVALUES + 1 - a2)).mean())
        assert row.training == pytest.approx(expected, abs=5 * row.training_error)
        assert row.held_out == pytest.approx(expected, abs=5 * row.held_out_error)
        assert row.training_error < 0.03 * expected
        assert abs(row.difference) < 5 * row.difference_error
        # the best linear denoiser is that very one
        assert row.linear == pytest.approx(expected, rel=0.05)
        assert not row.overfitted
    assert found.words == "No noise level at which held-out images lose more than training ones."


def test_the_times_are_even_in_angle_and_carry_their_alpha_bar() -> None:
    found = measured(gaussian(SCHEDULE, MEAN, COVARIANCE), draws(0, 4), draws(1, 4), levels=5)
    theta = np.arccos([row.alpha_bar for row in found.rows])
    last = float(torch.arccos(SCHEDULE.alpha_bar[-1]))
    assert theta == pytest.approx((np.arange(5) + 0.5) / 5 * last, abs=1e-3)
    assert [row.t for row in found.rows] == sorted(row.t for row in found.rows)
    assert found.last == 100


def test_the_denoiser_of_its_own_points_is_overfitted_where_noise_is_small() -> None:
    # points 30 values wide are far apart: at small t the noise cannot hide which one it was
    points, others = normals(0, 64, 30), normals(1, 64, 30)
    found = measured(finite_set(SCHEDULE, points), points, others, levels=10)
    first, last = found.rows[0], found.rows[-1]
    assert first.training < 1e-6
    # x̂_0 is one of the points, ‖x_0 - x̂_0‖²/d ≥ 1/2 or so, over β̄²
    assert first.held_out > 0.5 / (1 - first.alpha_bar**2)
    assert first.overfitted
    # 64 points of 30 values are enough for the linear one, and it does far better on the others
    assert first.linear < first.held_out / 10
    assert not first.underfitted  # that is another thing
    # where nearly all is noise, all that is to be known is the mean
    assert last.held_out < 2 * last.training
    assert found.words.startswith("Overfitted where t/T is 0.0")


def test_a_denoiser_worse_than_linear_is_underfitted_there_and_only_there() -> None:
    exact = gaussian(SCHEDULE, MEAN, COVARIANCE)

    def early(x_t: Tensor, t: Tensor, *, previous: Tensor | None = None) -> Prediction:
        right = exact(x_t, t)
        worse = from_x0(SCHEDULE, x_t, t, right.x0 + 2.0)
        return worse if float(t[0]) > 50 else right

    found = measured(early, draws(0, 300), draws(1, 300), known=draws(2, 5000))
    assert [row.underfitted for row in found.rows] == [row.t > 50 for row in found.rows]
    assert not any(row.overfitted for row in found.rows)
    assert "nderfitted where t/T is" in found.words


def test_errors_and_difference_are_those_of_the_images_losses() -> None:
    # a denoiser that says 0: ‖v - v̂‖²/d = ‖x_0‖²/(d β̄²), whatever the noise
    def zero(x_t: Tensor, t: Tensor, *, previous: Tensor | None = None) -> Prediction:
        return from_x0(SCHEDULE, x_t, t, torch.zeros_like(x_t))

    ours, theirs = draws(3, 70), 1.1 * draws(4, 70)
    for row in measured(zero, ours, theirs, levels=3).rows:
        a, b = (x.square().mean(1).numpy() / (1 - row.alpha_bar**2) for x in (ours, theirs))
        assert row.training == pytest.approx(a.mean(), rel=1e-5)
        assert row.held_out == pytest.approx(b.mean(), rel=1e-5)
        assert row.training_error == pytest.approx(a.std(ddof=1) / 70**0.5, rel=1e-5)
        assert row.held_out_error == pytest.approx(b.std(ddof=1) / 70**0.5, rel=1e-5)
        assert row.difference == pytest.approx((b - a).mean(), rel=1e-5)
        assert row.difference_error == pytest.approx((b - a).std(ddof=1) / 70**0.5, rel=1e-5)


def test_both_kinds_see_the_same_noise() -> None:
    # where the images are the same, nothing is left of the difference
    same = draws(5, 100)
    found = measured(gaussian(SCHEDULE, MEAN, COVARIANCE), same, same.clone(), levels=4)
    assert all(row.difference == row.difference_error == 0 for row in found.rows)
    assert not any(row.overfitted for row in found.rows)


@pytest.mark.slow
def test_equal_losses_are_called_different_at_most_once_in_a_hundred() -> None:
    denoise = gaussian(SCHEDULE, MEAN, COVARIANCE)
    alarms = 0
    for run in range(200):
        found = measured(denoise, draws(2 * run, 64), draws(2 * run + 1, 64), levels=6)
        alarms += any(row.overfitted for row in found.rows)
    assert alarms <= 8  # P(more) < 1e-3 at 1 in 100; at 1 in 20 P(no more) < 0.4


def test_the_linear_loss_is_that_of_the_regression_on_x_t() -> None:
    # by least squares over many draws: x̂_0 = B x_t + c
    x0 = draws(6, 200_000)
    t = torch.tensor([20.0], dtype=torch.float64)
    a, b = SCHEDULE.at(t)
    x_t = a * x0 + b * normals(7, *x0.shape)
    design = torch.cat([x_t, torch.ones(len(x_t), 1, dtype=torch.float64)], dim=1)
    fitted = design @ torch.linalg.lstsq(design, x0).solution
    expected = float((x0 - fitted).square().mean() / b**2)
    got = linear_losses(SCHEDULE, x0, x0[:5000], t)
    assert got.shape == (1, 5000)
    assert got.mean() == pytest.approx(expected, rel=0.02)


def test_no_linear_denoiser_of_too_few_images() -> None:
    found = measured(gaussian(SCHEDULE, MEAN, COVARIANCE), draws(0, 5), draws(1, 5), levels=2)
    assert [row.linear for row in found.rows] == [None, None]
    assert not any(row.underfitted for row in found.rows)
    adapter = TypeAdapter(Levels)
    assert adapter.validate_json(adapter.dump_json(found)) == found


# a trained model


def model(config: Config, num_classes: int = 0) -> Model:
    network = build(
        config.network, channels=1, size=(8, 8), num_classes=num_classes, self_conditioning=False
    )
    return Model(
        config=config,
        network=network.eval().requires_grad_(False),
        schedule=from_config(config.schedule),
        shape=(1, 8, 8),
        num_classes=num_classes,
    )


def test_a_model_is_measured_on_as_many_images_of_each_kind(
    tiny_config: Config, tiny_images: Images
) -> None:
    stages = noise_levels(
        model(tiny_config), tiny_images.pixels, tiny_images.pixels[:7], images=20, levels=3
    )
    seen = []
    while True:
        try:
            seen.append(next(stages))
        except StopIteration as end:
            found = end.value
            break
    assert found.images == 7
    assert [stage.done for stage in seen] == [14, 28, 42]
    assert {stage.total for stage in seen} == {42}
    assert all(np.isfinite([row.training, row.held_out]).all() for row in found.rows)


def test_whole_steps_are_asked_of_a_run_that_knows_no_others() -> None:
    between = even_levels(linear(6), 24)
    assert between[0] < 0.5
    times = even_levels(linear(6), 24, whole=True)
    assert times.tolist() == sorted({max(1, round(t)) for t in between.tolist()})
    assert len(times) < 24


def test_labels_reach_the_network(tiny_config: Config, tiny_images: Images) -> None:
    asked: list[list[int]] = []
    conditional = model(tiny_config, num_classes=2)
    conditional.network.register_forward_pre_hook(
        lambda module, args, kwargs: asked.append(kwargs["classes"].tolist()), with_kwargs=True
    )
    pixels, labels = tiny_images.pixels, tiny_images.labels
    finish(
        noise_levels(
            conditional,
            pixels[:4],
            pixels[4:7],
            training_labels=labels[:4],
            held_out_labels=labels[4:7],
            levels=1,
        )
    )
    assert asked == [[0, 0, 1], [0, 1, 0]]  # the 1st, 3rd and 4th of the four; all three
    with pytest.raises(InputError, match="held_out_labels: this run was trained with classes"):
        finish(noise_levels(conditional, pixels, pixels, training_labels=labels))


def test_bad_input_is_refused(tiny_config: Config, tiny_images: Images) -> None:
    pixels = tiny_images.pixels
    plain = model(tiny_config)
    with pytest.raises(DataError, match=r"held_out: uint8 \(40, 1, 8, 7\); give .* \(1, 8, 8\)"):
        finish(noise_levels(plain, pixels, pixels[..., :7]))
    with pytest.raises(DataError, match="held_out: holds 1 image"):
        finish(noise_levels(plain, pixels, pixels[:1]))
    with pytest.raises(InputError, match="images = 1: give at least 2"):
        finish(noise_levels(plain, pixels, pixels, images=1))
    with pytest.raises(InputError, match="levels = 0: give at least 1"):
        finish(noise_levels(plain, pixels, pixels, levels=0))
