"""A tape plays back what a sampler does, to the bit, for other images and more of them."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from unraze import generate, nn as networks, rng, schedule as schedules
from unraze.config import Config, SampleConfig, from_dict, updated
from unraze.denoiser import Denoiser
from unraze.errors import InputError
from unraze.generate import Model
from unraze.interop import tape as tapes
from unraze.interop.tape import play, record
from unraze.samplers import Step
from unraze.schedule import Schedule

CONFIG = from_dict(
    {
        "network": {"kind": "lean", "fold": 1, "widths": [8, 8], "blocks": 1, "groups": 4},
        "schedule": {"kind": "angle", "steps": 50},
        "loss": {"parametrisation": "v", "weighting": "v"},
        "train": {"dtype": "float32"},
    }
)


def model_of(config: Config, *, num_classes: int = 0, size: int = 4) -> Model:
    """An untrained network in which what begins at zero is drawn too, so that all of it counts."""
    torch.manual_seed(0)
    network = networks.build(
        config.network,
        channels=1,
        size=(size, size),
        num_classes=num_classes,
        self_conditioning=config.loss.self_conditioning,
        learned_variance=config.loss.variance == "learned",
    )
    for weight in network.parameters():
        if not bool(weight.any()):
            nn.init.normal_(weight, std=0.1)
    return Model(
        config=config,
        network=network.eval().requires_grad_(False),
        schedule=schedules.from_config(config.schedule),
        shape=(1, size, size),
        class_names=tuple(map(str, range(num_classes))),
        num_classes=num_classes,
        sigma_data=0.7,
    )


def settings(**changes: object) -> SampleConfig:
    return SampleConfig.model_validate({"steps": 5, **changes})


def played(
    model: Model, how: SampleConfig, count: int, seed: int, guidance: Tensor | None = None
) -> Tensor:
    """As `unraze.generate.sample` draws them."""
    tape = record(model, how)
    numbers = range(count)
    start = rng.normal(seed, "start", numbers, 0, model.shape)
    labels = [generate.class_of(model, None, k, seed) for k in numbers]
    classes = torch.tensor(labels) if model.num_classes else None
    steps = [rng.normal(seed, "walk", numbers, step, model.shape) for step in tape.noise_steps]
    noise = torch.stack(steps) if steps else None

    def network(x: Tensor, t: Tensor, classes: Tensor | None, previous: Tensor | None) -> Tensor:
        assert t.shape == x.shape[:1]
        assert classes is None or classes.shape == t.shape
        told = {"classes": classes, "previous": previous}
        out: Tensor = model.network(x, t, **{k: v for k, v in told.items() if v is not None})
        return out

    with torch.no_grad():
        return play(tape, network, start, classes=classes, guidance=guidance, noise=noise)


SAMPLERS = [
    settings(sampler="greedy"),
    settings(sampler="random"),
    settings(sampler="random", sigma="beta_tilde", final_noise=True),
    settings(sampler="random", sigma_share=0.5),
    settings(sampler="ddim", eta=0.5),
    settings(sampler="ddim", spacing="angle", clip="dynamic"),
    settings(sampler="heun", steps=7),
    settings(sampler="dpmpp_2m", spacing="karras", clip="none"),
    settings(sampler="dpmpp_3m", spacing="log_snr"),
    settings(sampler="dpmpp_2m_sde", steps=10),
    settings(sampler="dpmpp_3m_sde", eta=0.5),
    settings(sampler="unipc", order=2),
    settings(sampler="ipndm"),
    settings(sampler="deis", spacing="angle"),
    settings(sampler="adams", spacing=(0.0, 3.5, 10.0, 20.0, 30.5, 50.0)),
    settings(sampler="restart", steps=10, order=1),
]


@pytest.mark.parametrize("how", SAMPLERS, ids=lambda s: f"{s.sampler}-{s.spacing}-{s.clip}")
def test_played_back_to_the_bit(how: SampleConfig) -> None:
    model = model_of(CONFIG)
    wanted = generate.sample(model, 3, seed=4, settings=how)
    assert torch.equal(played(model, how, 3, 4), wanted)
    assert record(model, how).calls == generate.calls_of(model, how)
    assert wanted.std() > 0.01


NETWORKS = {
    "eps": {"schedule.kind": "linear", "loss.parametrisation": "eps", "loss.weighting": "eps"},
    "eps_step": {"schedule.kind": "linear", "loss.parametrisation": "eps_step"},
    "x0": {"loss.parametrisation": "x0"},
    "edm": {"loss.parametrisation": "edm"},
    "self-conditioning": {"loss.self_conditioning": True},
    "whole times": {"loss.continuous": False},
}


@pytest.mark.parametrize("changes", NETWORKS.values(), ids=NETWORKS)
def test_every_kind_of_network(changes: dict[str, object]) -> None:
    config = updated(CONFIG, {"loss.weighting": None, "loss.target": None, **changes})
    model, how = model_of(config), settings(sampler="ddim")
    assert torch.equal(played(model, how, 3, 0), generate.sample(model, 3, settings=how))


def test_a_learned_variance() -> None:
    model = model_of(updated(CONFIG, {"loss.variance": "learned"}))
    how = settings(sampler="random", sigma="learned")
    assert generate.calls_of(model, how) == record(model, how).calls == 5
    assert torch.equal(played(model, how, 3, 0), generate.sample(model, 3, settings=how))


def test_guidance_costs_two_calls_within_its_interval_alone() -> None:
    model = model_of(updated(CONFIG, {"train.label_dropout": 0.1}), num_classes=3)
    how = settings(sampler="ddim", guidance=2.0, guidance_interval=(0.3, 0.7), steps=10)
    assert record(model, how).calls == generate.calls_of(model, how) == 15
    wanted = generate.sample(model, 4, seed=1, settings=how)
    assert torch.equal(played(model, how, 4, 1, torch.tensor(2.0)), wanted)


def test_guidance_is_an_input_where_the_settings_guide() -> None:
    model = model_of(updated(CONFIG, {"train.label_dropout": 0.1}), num_classes=3)
    how = settings(sampler="heun", guidance=2.0, guidance_interval=(0.3, 0.7), steps=9)
    drawn = {}
    for scale in (2.0, 0.0, 0.3, 3.25):
        drawn[scale] = played(model, how, 4, 1, torch.tensor(scale))
        other = how.model_copy(update={"guidance": scale})
        assert torch.equal(drawn[scale], generate.sample(model, 4, seed=1, settings=other))
        assert scale == 2.0 or not torch.equal(drawn[scale], drawn[2.0])
    none = generate.sample(model, 4, seed=1, settings=how.model_copy(update={"guidance": 1.0}))
    # what guides by 1 is mixed with the rest, and comes out of that as it was
    assert torch.equal(played(model, how, 4, 1, torch.tensor(1.0)), none)
    assert record(model, how).guidance is not None
    for changes in ({"guidance": 1.0}, {"guidance": 2.0, "guidance_interval": (0.001, 0.002)}):
        assert record(model, settings(sampler="ddim", **changes)).guidance is None


def test_the_class_is_an_input() -> None:
    model = model_of(CONFIG, num_classes=3)
    tape = record(model, settings(sampler="ddim"))
    assert tape.classes is not None
    start = rng.normal(0, "start", range(2), 0, model.shape)[:1].expand(2, -1, -1, -1)

    def network(x: Tensor, t: Tensor, classes: Tensor | None, previous: Tensor | None) -> Tensor:
        out: Tensor = model.network(x, t, classes=classes)
        return out

    one, other = play(tape, network, start, classes=torch.tensor([0, 2]))
    assert not torch.equal(one, other)


def test_a_distilled_network() -> None:
    changes = {
        "loss.objective": "consistency",
        "loss.weighting": None,
        "loss.target": None,
        "loss.distance": "l2",
        "loss.borders": (0.0, 30.0, 50.0),
        "sample.sampler": "consistency",
        "sample.steps": 4,
        "sample.spacing": "angle",
        "distilled": {"run": "teacher", "checkpoint": ""},
    }
    model = model_of(updated(CONFIG, changes))
    how = model.config.sample
    assert record(model, how).noise_steps == (4, 2)  # no noise where a border is reached
    assert torch.equal(played(model, how, 3, 2), generate.sample(model, 3, seed=2, settings=how))


def test_a_way_that_depends_on_the_picture_is_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    def looking(denoise: Denoiser, x: Tensor, schedule: Schedule) -> Iterator[Step]:
        if float(x.mean()) > 0:
            yield Step(0.0, x, denoise(x, schedule.times[-1]))
        else:
            yield Step(0.0, -x, denoise(x, schedule.times[-1]))

    monkeypatch.setattr("unraze.walk.greedy", looking)
    with pytest.raises(InputError, match="decide how to go on"):
        record(model_of(CONFIG), settings(sampler="greedy"))


def test_what_cannot_be_sampled_cannot_be_recorded() -> None:
    model = model_of(CONFIG)
    with pytest.raises(InputError, match="learned no variance"):
        record(model, settings(sampler="random", sigma="learned"))
    with pytest.raises(InputError, match="without classes"):
        record(model, settings(guidance=2.0))
    assert tapes.KNOWN_BEFORE.isdisjoint({"item", "tolist", "__bool__", "__float__"})
    assert replace(model, num_classes=0) == model
