"""Curves: what is drawn is what was given, and the file is the same each time."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unraze import pictures, plots
from unraze.evaluate.likelihood import Bound, Sigma, Term
from unraze.evaluate.noise_levels import Levels, NoiseLevel
from unraze.schedule import SCHEDULES, Schedule


def rows(count: int) -> list[dict[str, float]]:
    return [{"step": k, "loss": 2.0 / k + 0.1, "lr": 1e-3 * k} for k in range(1, count + 1)]


def test_the_running_mean_is_the_two_sided_exponential_one() -> None:
    v = np.random.default_rng(0).standard_normal(40)
    places = np.arange(40)
    weights = 0.8 ** np.abs(places[:, None] - places)
    expected = weights @ v / weights.sum(1)
    np.testing.assert_allclose(plots.smoothed(v, keep=0.8), expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(plots.smoothed(v, keep=0.0), v, atol=1e-15)
    with pytest.raises(ValueError, match="keep = 1"):
        plots.smoothed(v, keep=1)


def test_the_panels_show_the_schedules_own_numbers() -> None:
    schedule = SCHEDULES["linear"](50)
    panels = plots.schedule_figure({"linear": schedule}).axes
    expected = (
        schedule.alpha_bar,
        schedule.beta_bar,
        schedule.beta[1:],  # none at t = 0
        schedule.log_snr[1:],  # infinite at t = 0
    )
    for axes, values in zip(panels, expected, strict=True):
        (line,) = axes.lines
        assert np.array_equal(line.get_ydata(), values.numpy())
        assert line.get_xdata()[-1] == 1


def test_what_is_infinite_is_left_out(tmp_path: Path) -> None:
    figure = plots.schedule_figure({"to zero": Schedule([1.0, 0.6, 0.0])})
    assert len(figure.axes[3].lines[0].get_ydata()) == 1
    plots.save(figure, tmp_path / "s.png", {})
    with pytest.raises(ValueError, match="no schedule"):
        plots.schedule_figure({})


def test_losses_that_are_not_finite_are_marked_and_not_drawn() -> None:
    given = [*rows(5), {"step": 6, "skipped": "nan"}, {"step": 7, "loss": float("nan"), "lr": 1.0}]
    raw, mean, skipped = plots.loss_figure(given).axes[0].lines
    assert list(raw.get_xdata()) == list(mean.get_xdata()) == [1, 2, 3, 4, 5]
    assert list(skipped.get_xdata()) == [6, 7]


@pytest.mark.parametrize("count", [0, 1, 2, 300])
def test_any_number_of_steps_is_drawn_without_a_warning(count: int, tmp_path: Path) -> None:
    plots.save(plots.loss_figure(rows(count)), tmp_path / "loss.png", {"steps": count})
    with Image.open(tmp_path / "loss.png") as picture:
        picture.load()
        assert 800 <= picture.width <= 1100


@pytest.mark.parametrize(("losses", "scale"), [([1, 9], "log"), ([2, 3], "linear")])
def test_the_axis_is_logarithmic_where_losses_span_much(losses: list[float], scale: str) -> None:
    given = [{"step": k, "loss": loss, "lr": 0.0} for k, loss in enumerate(losses)]
    assert plots.loss_figure(given).axes[0].get_yscale() == scale


def levels(losses: list[float], *, linear: float | None = None) -> Levels:
    """One level for each held-out loss; the training ones are 1, and above 2 it is overfitted."""
    rows = tuple(
        NoiseLevel(
            t=10.0 * k + 5,
            alpha_bar=0.5,
            training=1.0,
            training_error=0.01,
            held_out=loss,
            held_out_error=0.02,
            difference=loss - 1,
            difference_error=0.02,
            linear=linear,
            overfitted=loss > 2,
            underfitted=False,
        )
        for k, loss in enumerate(losses)
    )
    return Levels(rows, images=100, last=200.0, words="")


def test_the_loss_by_noise_level_is_drawn_for_both_kinds_with_its_errors() -> None:
    axes = plots.noise_level_figure(levels([4.0, 2.5, 1.1], linear=1.5)).axes[0]
    training, held_out = axes.containers
    assert list(training.lines[0].get_ydata()) == [1, 1, 1]
    assert list(held_out.lines[0].get_ydata()) == [4, 2.5, 1.1]
    assert list(held_out.lines[0].get_xdata()) == [0.025, 0.075, 0.125]
    ends = [segment[:, 1].tolist() for segment in held_out.lines[2][0].get_segments()]
    np.testing.assert_allclose(ends, [[3.96, 4.04], [2.46, 2.54], [1.06, 1.14]])
    by_name = {line.get_label(): line for line in axes.lines}
    assert list(by_name["linear denoiser"].get_ydata()) == [1.5] * 3
    assert list(by_name["overfitted"].get_xdata()) == [0.025, 0.075]
    assert axes.get_yscale() == "log"


@pytest.mark.parametrize("losses", [[1.0], [0.0, 1.2]])
def test_levels_without_a_linear_denoiser_are_drawn_without_a_warning(
    losses: list[float], tmp_path: Path
) -> None:
    whole = plots.noise_level_figure(levels(losses))
    plots.save(whole, tmp_path / "levels.png", {})
    assert [text.get_text() for text in whole.axes[0].get_legend().get_texts()] == [
        "training images",
        "held-out images",
    ]
    assert whole.axes[0].get_yscale() == "linear"


def bits(sigma: Sigma, decoder: float, steps: list[float], prior: float) -> Bound:
    terms = tuple(
        Term(first=k, last=k, t_first=k, t_last=k, bits=cost, error=0.1)
        for k, cost in enumerate(steps, start=2)
    )
    return Bound(
        bits=decoder + sum(steps) + prior,
        low=0,
        high=0,
        prior=prior,
        steps=sum(steps),
        decoder=decoder,
        terms=terms,
        images=10,
        calls=30,
        chain=3,
        sigma=sigma,
        clipped=True,
        note="",
    )


def test_the_bounds_terms_stand_side_by_side_one_bar_for_each_sigma() -> None:
    given = [bits("beta", 1.0, [0.5, 0.25], 0.125), bits("beta_tilde", 2.0, [0.6, 0.3], 0.125)]
    axes = plots.bound_figure(given).axes[0]
    bars = [c for c in axes.containers if type(c).__name__ == "BarContainer"]
    assert [[bar.get_height() for bar in one] for one in bars] == [
        [1.0, 0.5, 0.25, 0.125],
        [2.0, 0.6, 0.3, 0.125],
    ]
    for first, second in zip(*bars, strict=True):
        assert first.get_x() + first.get_width() == pytest.approx(second.get_x())
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["σ = β: 1.875 in all", "σ = β̃: 3.025 in all"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["decoder", "2", "3", "prior"]


def test_the_best_evaluation_is_marked() -> None:
    rows = [
        {"step": 10 * k, "kid": kid, "low": kid - 0.1, "high": kid + 0.1}
        for k, kid in enumerate([0.5, 0.2, 0.3], start=1)
    ]
    axes = plots.quality_figure(rows).axes[0]
    curve, best = axes.lines
    assert list(curve.get_xdata()) == [10, 20, 30]
    assert list(curve.get_ydata()) == [500, 200, 300]
    assert (list(best.get_xdata()), list(best.get_ydata())) == ([20], [200])
    assert "not evaluated yet" in plots.quality_figure([]).axes[0].texts[0].get_text()


def test_a_figures_file_is_the_same_each_time_and_holds_its_recipe(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        plots.save(plots.loss_figure(rows(30)), tmp_path / name, {"run": "r", "steps": 30})
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert pictures.read_recipe(tmp_path / "a.png") == {"run": "r", "steps": 30}
    assert b"Matplotlib" not in (tmp_path / "a.png").read_bytes()


def test_matplotlib_is_imported_only_to_draw() -> None:
    code = "import sys, unraze.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
