"""Sampling from a run: what the same seed gives, and what is refused."""

import copy
import itertools
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from unraze import checkpoint, generate, run as runs
from unraze.config import ORDERS, Config, SampleConfig, SamplerName, updated
from unraze.data import Images, to_uint8
from unraze.errors import CheckpointError, InputError
from unraze.generate import Model
from unraze.train import fit


@pytest.fixture(scope="module")
def trained(
    tiny_config: Config, tiny_images: Images, tmp_path_factory: pytest.TempPathFactory
) -> Model:
    config = updated(tiny_config, {"train.classes": True, "train.steps": 200, "train.lr": 1e-2})
    return fit(tiny_images, config, out=tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="module")
def model_path(trained: Model) -> Path:
    assert trained.run is not None
    return Path(trained.run)


@pytest.fixture
def model(trained: Model) -> Model:
    """The trained model, its network to be spoilt at will."""
    return replace(trained, network=copy.deepcopy(trained.network))


def settings(**changes: object) -> SampleConfig:
    return SampleConfig.model_validate({"steps": 5, **changes})


SAMPLERS = [
    settings(sampler="greedy"),
    settings(sampler="random"),
    settings(sampler="random", sigma="beta_tilde", final_noise=True),
    settings(sampler="random", sigma_share=0.5),
    settings(sampler="ddim", eta=0.5),
    settings(sampler="ddim", spacing="angle", clip="dynamic"),
    settings(sampler="ddim", steps=50, clip="none", guidance=2.0),
    settings(sampler="heun", steps=7),
    settings(sampler="dpmpp_2m", spacing="karras"),
    settings(sampler="dpmpp_3m", spacing="log_snr"),
    settings(sampler="dpmpp_2m_sde", steps=10),
    settings(sampler="dpmpp_3m_sde", eta=0.5),
    settings(sampler="unipc", order=2),
    settings(sampler="ipndm"),
    settings(sampler="deis", spacing="angle"),
    settings(sampler="adams", spacing=(0.0, 3.5, 10.0, 20.0, 30.5, 50.0), steps=5),
    settings(sampler="restart", steps=10, order=1),
]


@pytest.mark.parametrize("how", SAMPLERS, ids=lambda s: f"{s.sampler}-{s.spacing}-{s.clip}")
def test_the_same_seed_gives_the_same_images_and_another_gives_others(
    model: Model, how: SampleConfig
) -> None:
    a = generate.sample(model, 4, seed=3, settings=how)
    assert torch.equal(a, generate.sample(model, 4, seed=3, settings=how))
    assert not torch.equal(a, generate.sample(model, 4, seed=4, settings=how))
    assert a.shape == (4, 1, 8, 8)
    assert bool(torch.isfinite(a).all())


@pytest.mark.parametrize("how", SAMPLERS, ids=lambda s: f"{s.sampler}-{s.spacing}-{s.clip}")
def test_image_k_is_the_same_in_any_batch(model: Model, how: SampleConfig) -> None:
    """At most one grey level on a few pixels of the 768: kernels differ with the shape."""
    whole = to_uint8(generate.sample(model, 12, settings=how, batch=12)).astype(int)
    parts = to_uint8(generate.sample(model, 12, settings=how, batch=5)).astype(int)
    off = abs(whole - parts)
    assert off.max() <= 1
    assert (off > 0).sum() <= 3


def test_in_bfloat16_the_images_are_nearly_those_of_float32(model: Model) -> None:
    """auto is as trained, where the machine has it; the recipe says what it was."""
    plain = generate.sample(model, 4, seed=3, settings=settings(dtype="float32"))
    rounded = generate.sample(model, 4, seed=3, settings=settings(dtype="bfloat16"))
    assert rounded.dtype == torch.float32
    assert 0 < float((plain - rounded).abs().mean()) < 0.02
    assert torch.equal(plain, generate.sample(model, 4, seed=3, settings=settings()))
    recipe = generate.recipe(model, settings(), seed=3, classes=None, batch=range(4))
    assert recipe["settings"]["dtype"] == "float32"


@pytest.mark.parametrize("hardware", [True, False])
def test_a_network_trained_in_bfloat16_samples_in_it_where_there_is_hardware(
    model: Model, hardware: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "has_bfloat16", lambda kind: hardware)
    trained = replace(model, config=updated(model.config, {"train.dtype": "bfloat16"}))
    assert generate.dtype_of(trained, settings()) == ("bfloat16" if hardware else "float32")
    assert generate.dtype_of(trained, settings(dtype="float32")) == "float32"
    assert generate.dtype_of(model, settings()) == "float32"


def test_images_can_be_drawn_from_the_middle(model: Model) -> None:
    last = [p for p in generate.generate(model, 3, first=4, batch=3) if p.finished]
    assert [p.numbers for p in last] == [range(4, 7)]
    whole = generate.sample(model, 7, batch=7)
    torch.testing.assert_close(last[0].x.clamp(-1, 1), whole[4:7], atol=1e-5, rtol=0)


def test_progress_counts_every_step(model: Model) -> None:
    steps = list(generate.generate(model, 5, batch=2, settings=settings()))
    assert [p.done for p in steps] == list(range(1, 16))
    assert {p.total for p in steps} == {15}
    assert [p.t for p in steps[:5]] == [40.0, 30.0, 20.0, 10.0, 0.0]


@pytest.mark.parametrize("asked", [4, 9, 10, 24])
@pytest.mark.parametrize("name", [n for n in get_args(SamplerName) if n != "consistency"])
def test_steps_are_network_calls_of_every_sampler(model: Model, name: str, asked: int) -> None:
    calls: list[float] = []
    model.network.register_forward_pre_hook(lambda _, inputs: calls.append(float(inputs[1][0])))
    how = settings(sampler=name, steps=asked, **({"order": 1} if name == "restart" else {}))
    way = generate.plan_of(model, how)
    seen = list(generate.generate(model, 2, settings=how, classes=0))
    assert len(calls) == way.calls <= asked
    assert way.calls >= asked - 2 or (name == "restart" and way.calls >= 0.7 * asked)
    assert [p.done for p in seen] == list(range(1, way.states + 1))
    assert {p.total for p in seen} == {way.states}
    assert [p.finished for p in seen] == [False] * (way.states - 1) + [True]


def test_restart_takes_as_many_steps_as_its_calls_allow(model: Model) -> None:
    for order in (1, 2):
        counts = [
            generate.plan_of(model, settings(sampler="restart", steps=n, order=order))
            for n in range(7, 41)
        ]
        assert all(plan.calls <= n for n, plan in zip(range(7, 41), counts, strict=True))
        steps = [plan.chain.steps for plan in counts]
        assert steps == sorted(steps)
        assert steps[-1] > steps[0]
    with pytest.raises(InputError, match="too few calls for restart to go 9 times through"):
        generate.plan_of(model, settings(sampler="restart", steps=8, restart_repeats=9))


def test_a_network_trained_at_whole_times_is_asked_at_whole_times(model: Model) -> None:
    whole = replace(model, config=updated(model.config, {"loss.continuous": False}))
    for spacing in ("time", "angle", "log_snr", "karras"):
        for name in ("ddim", "heun", "restart"):
            how = settings(sampler=name, spacing=spacing, steps=15)
            between, at_whole = generate.plan_of(model, how), generate.plan_of(whole, how)
            times = at_whole.chain.times
            assert torch.equal(times, times.round())
            assert at_whole.calls == between.calls or name == "restart"
    own = settings(sampler="adams", spacing=(0.0, 2.5, 50.0), steps=2)
    assert generate.plan_of(model, own).chain.times.tolist() == [0.0, 2.5, 50.0]
    with pytest.raises(InputError, match="give whole numbers"):
        generate.plan_of(whole, own)
    long = settings(sampler="adams", spacing=(0.0, 2.0, 51.0), steps=2)
    with pytest.raises(InputError, match="the last time is at most T = 50"):
        generate.plan_of(model, long)
    near = settings(sampler="adams", spacing=(0.0, 1e-9, 50.0), steps=2)
    with pytest.raises(InputError, match="spacing: two of its times are too close"):
        generate.plan_of(model, near)


def test_a_way_that_begins_before_the_end_begins_in_noise(model: Model) -> None:
    """Times of one's own may end before T, as diffusers' do, where hardly a picture is left."""
    near = settings(sampler="ddim", spacing=(0.0, 20.0, 49.9), steps=2)
    assert generate.sample(model, 1, settings=near).shape == (1, *model.shape)
    early = settings(sampler="ddim", spacing=(0.0, 20.0, 40.0), steps=2)
    with pytest.raises(InputError, match=r"= … 40: ᾱ = 0\.309 of .* let the last time be T = 50"):
        generate.sample(model, 1, settings=early)


def test_other_steps_than_a_list_of_times_has_are_even(model: Model) -> None:
    listed = settings(sampler="ddim", spacing=(0.0, 20.0, 50.0), steps=2)
    assert generate.changed(listed, {"steps": 2}).spacing == listed.spacing
    assert generate.changed(listed, {"steps": 3}).spacing == "time"


def test_another_sampler_has_its_own_share_of_noise(model: Model) -> None:
    """A run that records ddim's η = 0 does not turn the samplers with noise into ones without."""
    ddim = settings(sampler="ddim", eta=0.0)
    sde = generate.changed(ddim, {"sampler": "dpmpp_2m_sde"})
    assert sde.eta is None
    ode = generate.changed(ddim, {"sampler": "dpmpp_2m"})
    a, b = (generate.sample(model, 4, settings=how) for how in (sde, ode))
    assert not torch.allclose(a, b, atol=0.05)
    still = generate.sample(model, 4, settings=generate.changed(sde, {"eta": 0.0}))
    torch.testing.assert_close(still, b)
    kept = generate.changed(settings(sampler="unipc", order=1), {"steps": 4})
    assert kept.order == 1
    assert generate.changed(kept, {"sampler": "adams"}).order is None


def test_an_order_is_heeded(model: Model) -> None:
    for name, most in ORDERS.items():
        ends = [
            generate.sample(model, 2, settings=settings(sampler=name, order=k, steps=9))
            for k in range(1, most + 1)
        ]
        for a, b in itertools.pairwise(ends):
            assert not torch.equal(a, b), name
        own = generate.sample(model, 2, settings=settings(sampler=name, steps=9))
        assert torch.equal(own, ends[-1])


def test_a_class_is_learned(model: Model) -> None:
    """The two classes are bright above and bright below; guidance must separate them."""
    above = generate.sample(model, 16, classes=0, settings=settings(guidance=1.5))
    below = generate.sample(model, 16, classes=1, settings=settings(guidance=1.5))

    def lean(x: torch.Tensor) -> float:
        return float((x[:, :, :4] - x[:, :, 4:]).mean())

    assert lean(above) > lean(below) + 0.1
    in_turn = generate.sample(model, 4, classes="all", batch=4)
    one = generate.sample(model, 4, classes=0, batch=4)
    assert torch.equal(in_turn[::2], one[::2])
    assert not torch.equal(in_turn[1::2], one[1::2])


def test_no_label_is_guided_only_where_that_is_asked_for(model: Model) -> None:
    """Guided, each call of the network would be a second one of the same images and label."""
    guided, calls = settings(guidance=2.0), []
    own = replace(model, config=model.config.model_copy(update={"sample": guided}))
    model.network.register_forward_hook(lambda *_: calls.append(1))
    drawn = []
    for how in ({}, {"settings": settings()}, {"settings": guided}):
        calls.clear()
        drawn.append(generate.sample(own, 2, classes="none", **how))
        assert len(calls) == (10 if how.get("settings") is guided else 5)
    assert torch.equal(drawn[0], drawn[1])
    torch.testing.assert_close(drawn[0], drawn[2], rtol=0, atol=1e-4)
    asked = generate.asked(own, {"steps": 3}, classes="none")
    assert (asked.steps, asked.guidance) == (3, 1.0)
    assert generate.asked(own, {"sampler": "ddim"}, classes="none").guidance == 1.0
    assert generate.asked(own, {"guidance": 3.0}, classes="none").guidance == 3.0
    assert generate.asked(own, {}, classes=1).guidance == 2.0


def test_no_label_is_neither_class(model: Model) -> None:
    none = generate.sample(model, 2, classes="none")
    assert not torch.equal(none, generate.sample(model, 2, classes="all"))


def test_raw_weights_are_not_their_average(model: Model, model_path: Path) -> None:
    raw = generate.load(model_path, raw=True)
    assert raw.checkpoint != model.checkpoint
    assert not torch.equal(generate.sample(raw, 2), generate.sample(model, 2))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"n": 0}, "n = 0"),
        ({"n": 1, "batch": 0}, "batch = 0"),
        ({"n": 1, "seed": -1}, "seed = -1"),
        ({"n": 1, "classes": 2}, "class = 2: this run knows 2 classes, 0 to 1"),
        ({"n": 1, "classes": -1}, "class = -1"),
        ({"n": 1, "settings": settings(sigma="learned")}, "this run learned no variance"),
        ({"n": 1, "settings": settings(steps=51)}, "steps = 51: the schedule has 50"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    model: Model, arguments: dict[str, object], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        next(generate.generate(model, **arguments))  # type: ignore[arg-type]


def test_an_unconditional_run_has_no_classes_and_no_guidance(model: Model) -> None:
    plain = replace(model, num_classes=0, class_names=())
    with pytest.raises(InputError, match="trained without classes"):
        next(generate.generate(plain, 1, classes=1))
    with pytest.raises(InputError, match="nothing to guide towards"):
        next(generate.generate(plain, 1, settings=settings(guidance=2.0)))


def test_pure_noise_is_no_start_where_signal_is_left(model: Model) -> None:
    from unraze.schedule import linear

    left = replace(model, schedule=linear(50, rescaled=False))
    with pytest.raises(InputError, match="ᾱ_T"):
        next(generate.generate(left, 1))


def test_a_run_that_cannot_be_loaded_says_why(
    tmp_path: Path, model: Model, model_path: Path, tiny_config: Config
) -> None:
    with pytest.raises(CheckpointError, match="no such run"):
        generate.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="is not a run"):
        generate.load(tmp_path)
    empty = runs.create(tiny_config, out=tmp_path / "empty")
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        generate.load(empty.path)
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 7; there is .*200"):
        generate.load(model_path, step=7)
    other = updated(model.config, {"network.widths": [8, 16]})
    changed = runs.create(other, out=tmp_path / "changed")
    newest = checkpoint.listing(model_path / "checkpoints")[-1]
    (changed.checkpoints / newest.name).symlink_to(newest)
    with pytest.raises(CheckpointError, match="shape"):
        generate.load(changed.path)


def test_a_run_with_times_of_its_own_is_looked_at_by_ddim(model: Model) -> None:
    own = {"sample.sampler": "adams", "sample.steps": 2, "sample.spacing": (0.0, 9.0, 50.0)}
    how = generate.quick(updated(model.config, own), 25)
    assert (how.sampler, how.steps, how.spacing) == ("ddim", 25, "time")


@pytest.mark.parametrize("how", SAMPLERS, ids=lambda s: f"{s.sampler}-{s.spacing}-{s.clip}")
def test_network_calls_are_counted_as_they_are_made(model: Model, how: SampleConfig) -> None:
    for guidance, interval in ((1.0, (0.0, 1.0)), (2.0, (0.0, 1.0)), (2.0, (0.2, 0.8))):
        wanted = generate.changed(how, {"guidance": guidance, "guidance_interval": interval})
        made = 0

        def count(*_: object) -> None:
            nonlocal made
            made += 1

        hook = model.network.register_forward_hook(count)
        generate.sample(model, 2, settings=wanted)
        hook.remove()
        assert generate.calls_of(model, wanted) == made
        if guidance == 1:
            assert made == generate.plan_of(model, wanted).calls
        elif interval == (0.0, 1.0):
            assert made == 2 * generate.plan_of(model, wanted).calls


def test_as_many_steps_are_made_as_the_calls_allow(model: Model) -> None:
    def of_steps(steps: int) -> SampleConfig:
        return settings(steps=steps, guidance=2.0, guidance_interval=(0.2, 0.8))

    for calls in (1, 4, 9, 25, 80):
        found = generate.within(model, calls, of_steps)
        assert generate.calls_of(model, found) <= calls
        if found.steps < model.schedule.steps:
            assert generate.calls_of(model, of_steps(found.steps + 1)) > calls
    with pytest.raises(InputError, match="one step takes more"):
        generate.within(model, 1, lambda steps: settings(steps=steps, guidance=2.0))
