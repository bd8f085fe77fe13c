"""Editing with a run's model: what is promised holds to the bit, and what cannot be is refused."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from unraze import generate
from unraze.config import Config, DistilledConfig, updated
from unraze.data import Images, to_float
from unraze.edit import editing
from unraze.edit.editing import Inverted, Wish
from unraze.edit.operators import Observed, blurred, downsampled, identity
from unraze.errors import InputError
from unraze.generate import Model, Progress
from unraze.schedule import from_config
from unraze.train import fit


@pytest.fixture(scope="module")
def model(
    tiny_config: Config, tiny_images: Images, tmp_path_factory: pytest.TempPathFactory
) -> Model:
    changes = {"train.classes": True, "train.steps": 200, "train.lr": 1e-2}
    return fit(tiny_images, updated(tiny_config, changes), out=tmp_path_factory.mktemp("r") / "t")


@pytest.fixture(scope="module")
def image(tiny_images: Images) -> Tensor:
    """One that is bright above."""
    return to_float(tiny_images.pixels[:1])[0]


def wish(model: Model, *, by: editing.Walk = "flow", **how: Any) -> Wish:
    settings = editing.settings_for(model, {"steps": 10, **how.pop("changes", {})}, by=by)
    return Wish(settings, **{"count": 3, **how})


def results(moments: Iterator[Progress]) -> Tensor:
    return torch.cat([moment.x for moment in moments if moment.finished])


def lean(x: Tensor) -> Tensor:
    """How much brighter images are above than below, each."""
    return x[:, 0, :4].mean((1, 2)) - x[:, 0, 4:].mean((1, 2))


def test_no_strength_gives_the_image_and_more_strength_strays_further(
    model: Model, image: Tensor
) -> None:
    same = results(editing.vary(model, image, wish(model), strength=0.0))
    assert torch.equal(same, image.expand(3, -1, -1, -1))
    off = [
        float(
            (results(editing.vary(model, image, wish(model), strength=s)) - image).square().mean()
        )
        for s in (0.1, 0.4, 1.0)
    ]
    assert 0 < off[0] < off[1] < off[2]


@pytest.fixture(scope="module")
def between(model: Model) -> Model:
    """The model as one that knows the times between the steps, of which it has 300."""
    loss = model.config.loss.model_copy(update={"continuous": True})
    schedule = model.config.schedule.model_copy(update={"steps": 300})
    config = model.config.model_copy(update={"loss": loss, "schedule": schedule})
    return replace(model, config=config, schedule=from_config(schedule))


@pytest.mark.parametrize("spacing", ["karras", "log_snr", "angle"])
@pytest.mark.parametrize("strength", [1e-300, 1e-9, 1e-7, 1e-5, 2e-3, 0.07])
def test_however_little_strength_is_a_way(
    between: Model, image: Tensor, strength: float, spacing: Any
) -> None:
    """Also so little that ᾱ rounds to 1, and 0.07 of 300 steps, which is a little above 21."""
    asked, way = wish(between), {"sampler": "adams", "spacing": spacing, "steps": 5}
    asked = replace(asked, settings=generate.changed(asked.settings, way))
    found = results(editing.vary(between, image, asked, strength=strength))
    assert found.isfinite().all()
    assert strength > 0.01 or float((found - image).abs().max()) < 0.2
    led = editing.change_class(
        between, image, replace(asked, classes=(0,)), of=(1,), strength=strength
    )
    if strength < 1e-6:
        with pytest.raises(InputError, match="leaves the image as it is"):
            list(led)
    else:
        assert results(led).isfinite().all()


def test_full_strength_is_drawing(model: Model, image: Tensor) -> None:
    """But for what the schedule leaves of the image, ᾱ_T of it."""
    asked = wish(model, seed=4, classes=(1,))
    found = results(editing.vary(model, image, asked, strength=1.0))
    drawn = generate.sample(model, 3, seed=4, settings=asked.settings, classes=1)
    assert float((found.clamp(-1, 1) - drawn).abs().mean()) < 0.05


@pytest.mark.parametrize("method", ["mmps", "pigdm", "diffpir", "dps"])
def test_estimates_are_clipped_and_what_moves_a_step_is_not(
    model: Model, image: Tensor, method: Any
) -> None:
    asked = wish(model, by="posterior")
    moments = list(editing.inpaint(model, image, LOWER, asked, method=method))
    most = max(float(moment.estimate.abs().max()) for moment in moments)
    assert (most > 1.001) == (method == "dps")


def test_noise_that_an_edit_has_of_its_own_is_whole(model: Model) -> None:
    half = generate.changed(model.config.sample, {"sampler": "random", "sigma_share": 0.5})
    config = model.config.model_copy(update={"sample": half})
    for by in ("repaint", "class"):
        settings = editing.settings_for(replace(model, config=config), {}, by=by)
        assert settings.sigma_share is None


def test_results_depend_on_their_number_and_seed_alone(model: Model, image: Tensor) -> None:
    together = results(editing.vary(model, image, wish(model), strength=0.5))
    apart = results(editing.vary(model, image, wish(model, batch=1), strength=0.5))
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-4)
    other = results(editing.vary(model, image, wish(model, seed=1), strength=0.5))
    assert not torch.equal(together, other)
    moments = list(editing.vary(model, image, wish(model, batch=2), strength=0.5))
    assert [moment.done for moment in moments] == list(range(1, moments[-1].total + 1))
    assert [moment.numbers for moment in moments if moment.finished] == [range(2), range(2, 3)]


@pytest.mark.parametrize("sampler", ["random", "heun", "adams", "dpmpp_2m_sde", "restart"])
def test_variations_by_every_sampler_end_at_zero(model: Model, image: Tensor, sampler: str) -> None:
    asked = wish(model, changes={"sampler": sampler, "steps": 9})
    moments = list(editing.vary(model, image, asked, strength=0.6))
    assert moments[-1].finished
    assert moments[-1].done == moments[-1].total
    assert all(moment.t < 0.6 * 50 for moment in moments)


def test_a_class_is_led_to_from_an_image_of_another(model: Model, image: Tensor) -> None:
    """Class 1 is bright below."""
    guided = {"guidance": 3.0, "steps": 25}
    asked = wish(model, classes=(1,), count=4, changes=guided)
    same = wish(model, classes=(0,), count=4, changes=guided)
    drawn = [editing.vary(model, image, one, strength=0.9) for one in (asked, same)]
    below, above = (float(lean(results(moments)).mean()) for moments in drawn)
    assert below < above - 0.5
    # of these images the layout is the class, and the layout is what this keeps
    changed = [editing.change_class(model, image, one, of=(0,)) for one in (asked, same)]
    below, above = (float(lean(results(moments)).mean()) for moments in changed)
    assert below < above
    stays = results(editing.change_class(model, image, asked, of=(1,), strength=0.9))
    torch.testing.assert_close(stays, image.expand(4, -1, -1, -1), rtol=0, atol=1e-4)


def test_conditions_are_composed(model: Model, image: Tensor) -> None:
    """Both classes at once lie between them."""
    both, one = (
        lean(results(editing.vary(model, image, wish(model, classes=c, count=8), strength=1.0)))
        for c in ((0, 1), (0,))
    )
    assert abs(float(both.mean())) < abs(float(one.mean()))


LOWER = torch.arange(8)[:, None].expand(8, 8) >= 4


@pytest.mark.parametrize("method", editing.INPAINTING)
def test_known_pixels_are_kept_to_the_bit(
    model: Model, image: Tensor, method: editing.Inpainting
) -> None:
    asked = wish(model, by="posterior")
    moments = list(editing.inpaint(model, image, LOWER, asked, method=method))
    assert moments[-1].done == moments[-1].total
    found = results(iter(moments))
    assert torch.equal(found[..., :4, :], image[:, :4].expand(3, 1, 4, 8))
    assert bool(found.isfinite().all())
    assert float((found[0] - found[1]).abs().max()) > 0  # by seed


@pytest.mark.parametrize("method", [*editing.METHODS, "repaint"])
def test_what_is_drawn_goes_with_what_is_known(
    model: Model, tiny_images: Images, method: editing.Inpainting
) -> None:
    """Without a label: below what is bright it is dark, and below what is dark it is bright."""
    below = []
    for number in (0, 1):
        picture = to_float(tiny_images.pixels[number : number + 1])[0]
        asked = wish(model, by="posterior", count=8, changes={"steps": 25})
        found = results(editing.inpaint(model, picture, LOWER, asked, method=method))
        below.append(float(found[:, :, 4:].mean()))
    assert below[0] < below[1] - 0.3


@pytest.mark.parametrize("method", editing.METHODS)
def test_what_is_restored_is_what_was_seen(
    model: Model, image: Tensor, method: editing.Method
) -> None:
    """Spoilt in the same way again, results look as what was given, and better than by chance."""
    operator = downsampled(2)
    y = operator(image[None])
    asked = wish(model, by="posterior", changes={"steps": 25}, count=4)
    found = results(editing.restore(model, Observed(y, operator, 0.02), asked, method=method))
    by_chance = generate.sample(model, 4, settings=asked.settings, classes="none")
    near = float((operator(found) - y).abs().mean())
    assert near < 0.5 * float((operator(by_chance) - y).abs().mean())


def test_an_image_is_found_again_from_its_noise(model: Model, image: Tensor) -> None:
    errors = []
    for steps in (5, 40):
        asked = wish(model, changes={"steps": steps}, count=1)
        *moments, found = editing.inverted(model, image, asked)
        assert isinstance(found, Inverted)
        assert [m.done for m in moments] == list(range(1, 2 * steps + 1))
        assert found.error == pytest.approx(
            float((found.again - image).square().mean().sqrt()), rel=1e-5
        )
        assert 0.5 < float(found.noise.std()) < 1.5
        errors.append(found.error)
    assert errors[1] < 0.1
    assert errors[1] < errors[0]


def test_self_conditioning_does_not_stand_between_an_image_and_its_noise(
    tiny_config: Config, tiny_images: Images, tmp_path: Path
) -> None:
    """What such a network is told of the step before is not the same up and down: it is left out.
    Solved to the end, all but the last step comes back."""
    config = updated(tiny_config, {"train.steps": 100, "loss.self_conditioning": True})
    learned = fit(tiny_images, config, out=tmp_path / "t")
    x0 = to_float(tiny_images.pixels[:1])[0]
    asked = wish(learned, count=1, changes={"steps": 20, "clip": "none"})
    *moments, found = editing.inverted(learned, x0, asked, iterations=30)
    assert isinstance(found, Inverted)
    up, down = moments[0], moments[-2]
    assert up.t == down.t > 0
    torch.testing.assert_close(down.x, up.x, rtol=0, atol=1e-3)


def test_blends_go_from_one_end_to_the_other(model: Model, tiny_images: Images) -> None:
    ends = to_float(tiny_images.pixels[:2])
    asked = wish(model, count=5, changes={"steps": 40})
    moments = list(editing.interpolate(model, (ends[0], ends[1]), asked))
    assert moments[-1].done == moments[-1].total
    found = results(iter(moments))
    assert float((found[[0, -1]] - ends).abs().mean()) < 0.1
    assert float(lean(found)[0]) > float(lean(found)[-1])
    seeds = results(editing.interpolate(model, (3, 8), asked))
    settings = asked.settings
    for place, seed in ((0, 3), (-1, 8)):
        drawn = generate.sample(model, 1, seed=seed, settings=settings, classes="none")
        torch.testing.assert_close(seeds[place].clamp(-1, 1), drawn[0], rtol=0, atol=1e-4)


def refused(match: str, moments: Iterator[Any]) -> None:
    with pytest.raises(InputError, match=match):
        next(moments)


def test_what_cannot_be_edited_is_refused(model: Model, image: Tensor, tmp_path: Path) -> None:
    usual, none = wish(model), torch.zeros(8, 8, dtype=torch.bool)
    for strength in (-0.1, 1.1, float("nan")):
        refused("strength", editing.vary(model, image, usual, strength=strength))
    refused("image: is 1 x 4 x 4", editing.vary(model, image[:, :4, :4], usual, strength=0.5))
    refused("knows 2 classes", editing.vary(model, image, wish(model, classes=(7,)), strength=0.5))
    refused("count = 0", editing.vary(model, image, wish(model, count=0), strength=0.5))
    guided = wish(model, changes={"guidance": 2.0})
    refused("name the class", editing.vary(model, image, guided, strength=0.5))
    refused("mask: is empty", editing.inpaint(model, image, none, usual))
    refused("covers the whole", editing.inpaint(model, image, ~none, usual))
    repaint: dict[str, Any] = {"method": "repaint"}
    for repeats in (0, 10):
        moments = editing.inpaint(model, image, LOWER, usual, repeats=repeats, **repaint)
        refused(f"repeats = {repeats}: give", moments)
    refused("8 x 9", editing.inpaint(model, image, torch.ones(8, 9).bool(), usual))
    y = torch.zeros(1, 1, 2, 2)
    refused("operator makes 1 x 8 x 8", editing.restore(model, Observed(y, identity), usual))
    refused("does not divide", editing.restore(model, Observed(y, downsampled(3)), usual))
    refused("too wide", editing.restore(model, Observed(y, blurred(5.0)), usual))
    refused("knows 2 classes", editing.change_class(model, image, usual, of=(7,)))
    one_step = wish(model, changes={"steps": 1})
    refused("steps = 1", editing.inverted(model, image, one_step))
    refused("steps = 1", editing.interpolate(model, (1, 2), one_step))
    refused("name the class", editing.interpolate(model, (1, 2), guided))
    refused("at least 2", editing.interpolate(model, (1, 2), wish(model, count=1)))
    refused("above 0", editing.change_class(model, image, usual, of=(0,), strength=0.0))

    always = replace(model, config=updated(model.config, {"train.label_dropout": 0.0}))
    refused("without one", editing.vary(always, image, usual, strength=0.5))
    assert results(editing.vary(always, image, wish(model, classes=(0,)), strength=0.5)).shape[0]

    distilled = DistilledConfig(run="teacher", checkpoint="0" * 64)
    jumps = replace(model, config=model.config.model_copy(update={"distilled": distilled}))
    refused("distilled", editing.inpaint(jumps, image, LOWER, usual))
