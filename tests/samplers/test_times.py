"""Which steps are kept: both ends, rising, as even as can be."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

from unraze.edit.variation import below
from unraze.errors import InputError
from unraze.samplers import even_angles, even_log_snr, even_times, karras
from unraze.schedule import angle, cosine, linear


@settings(deadline=None)
@given(total=st.integers(2, 1200), data=st.data())
def test_even_times_rise_from_0_to_the_end_in_whole_steps(total: int, data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, total))
    schedule = linear(total)
    kept = even_times(schedule, steps)
    assert kept.steps == steps
    assert kept.times[0] == 0
    assert kept.times[-1] == total
    assert torch.equal(kept.times, kept.times.round())
    # no time is further than half a step from where it would be if fractions were allowed
    ideal = torch.arange(steps + 1, dtype=torch.float64) * total / steps
    assert (kept.times - ideal).abs().max() <= 0.5 + 1e-9
    assert torch.equal(kept.alpha_bar, schedule.alpha_bar[kept.times.long()])


def test_even_times_need_not_be_whole() -> None:
    kept = even_times(linear(100), 7, whole=False)
    torch.testing.assert_close(kept.times, torch.linspace(0, 100, 8, dtype=torch.float64))


def test_all_steps_are_the_schedule_itself() -> None:
    schedule = cosine(123)
    kept = even_times(schedule, 123)
    assert torch.equal(kept.alpha_bar, schedule.alpha_bar)
    assert torch.equal(kept.times, schedule.times)


@pytest.mark.parametrize("schedule", [linear(), cosine(), angle(), angle(50)])
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_even_angles_are_even(schedule, steps: int) -> None:
    kept = even_angles(schedule, steps)
    theta = torch.atan2((1 - kept.alpha_bar**2).sqrt(), kept.alpha_bar)
    assert kept.times[0] == 0
    assert kept.times[-1] == schedule.times[-1]
    ideal = torch.linspace(0, float(theta[-1]), steps + 1, dtype=torch.float64)
    torch.testing.assert_close(theta, ideal, rtol=0, atol=1e-8)


@settings(deadline=None)
@given(st.integers(1, 1000))
def test_any_number_of_angles_is_a_schedule(steps: int) -> None:
    for schedule in (linear(), cosine()):
        kept = even_angles(schedule, steps)
        assert kept.steps == steps
        assert (kept.times.diff() > 0).all()


@pytest.mark.parametrize("choose", [even_times, even_angles, even_log_snr, karras])
@pytest.mark.parametrize("steps", [0, -1, 101])
def test_more_steps_than_there_are_or_none_is_refused(choose, steps: int) -> None:
    with pytest.raises(InputError, match=f"steps = {steps}: .*from 1 to 100"):
        choose(linear(100), steps)


@pytest.mark.parametrize(
    "schedule", [linear(), cosine(), angle()], ids=["linear", "cosine", "angle"]
)
@pytest.mark.parametrize("steps", [3, 10, 40])
def test_levels_of_karras_and_of_log_snr_are_those_of_the_formula(schedule, steps: int) -> None:
    top = min(float(schedule.theta[-1].tan()), 80.0)
    place = torch.arange(steps, dtype=torch.float64) / (steps - 1)
    ends = torch.tensor([0.002, top], dtype=torch.float64)
    roots = ends ** (1 / 7)
    wanted = {
        karras: (roots[0] + place * (roots[1] - roots[0])) ** 7,
        even_log_snr: ends[0] * (ends[1] / ends[0]) ** place,
    }
    for choose, levels in wanted.items():
        kept = choose(schedule, steps)
        assert kept.steps == steps
        assert (kept.times[0], kept.times[-1]) == (0, schedule.times[-1])
        sigma = kept.beta_bar / kept.alpha_bar
        # the noisiest level is T itself, whatever σ is there
        torch.testing.assert_close(sigma[1:-1], levels[:-1], rtol=1e-6, atol=0)


@pytest.mark.parametrize("choose", [even_log_snr, karras])
def test_levels_rise_where_the_end_is_below_the_least(choose) -> None:
    """An image of which next to nothing was destroyed: σ of its end is less than 0.002."""
    end = below(angle(1000), 1.2)
    kept = choose(end, 2)
    sigma = kept.beta_bar / kept.alpha_bar
    assert sigma[-1] < 0.002
    assert sigma[1] == pytest.approx(float(sigma[-1] / 2), rel=1e-6)
    assert (kept.times[0], kept.times[-1]) == (0, 1.2)


@settings(deadline=None)
@given(
    steps=st.integers(1, 60),
    choose=st.sampled_from([even_angles, even_log_snr, karras]),
    schedule=st.sampled_from([linear(60), cosine(60), angle(60)]),
)
def test_whole_times_rise_strictly_between_the_ends(steps: int, choose, schedule) -> None:
    kept = choose(schedule, steps, whole=True)
    assert torch.equal(kept.times, kept.times.round())
    assert (kept.times.diff() >= 1).all()
    assert (kept.times[0], kept.times[-1], kept.steps) == (0, 60, steps)
