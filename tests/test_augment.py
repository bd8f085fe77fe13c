"""Changed training images: each change against its definition; and samples show none of them."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from unraze import batches, rng, step as step_of_training
from unraze.augment import DRAWS, VALUES, augmented, chance_for, drawn
from unraze.config import Config, TrainConfig, preset, updated
from unraze.data import Images, batch as assemble
from unraze.denoiser import predict, raw_output
from unraze.errors import CheckpointError, InputError
from unraze.generate import load, sample
from unraze.loss import weighted
from unraze.process import destroy_at
from unraze.run import find
from unraze.train import fit, prepare, train

P = 0.12


def label(count: int = 1, **values: float) -> Tensor:
    """A label of these changes: mirror, upside_down, scale, angle (degrees), e_1, e_2, d_1, d_2."""
    angle = math.radians(values.pop("angle", 0.0))
    names = ("mirror", "upside_down", "scale", "cos", "sin", "e_1", "e_2", "d_1", "d_2")
    values |= {"cos": math.cos(angle) - 1, "sin": math.sin(angle)}
    assert values.keys() <= set(names)
    return torch.tensor([[values.get(n, 0.0) for n in names]] * count, dtype=torch.float64)


def pictures(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3)) * 2 - 1


def blob(height: int, width: int, x: float, y: float) -> Tensor:
    """A smooth spot (1, 1, H, W) whose middle is x columns and y rows from the picture's centre."""
    rows = torch.arange(height)[:, None] - (height - 1) / 2 - y
    columns = torch.arange(width)[None, :] - (width - 1) / 2 - x
    return (1.8 * torch.exp(-(rows**2 + columns**2) / 8) - 0.9)[None, None].float()


def middle_of(picture: Tensor) -> tuple[float, float]:
    """The centre of mass (x, y) of what is above -0.9, from the picture's centre."""
    mass = (picture[0, 0].double() + 0.9).clamp(min=0)
    height, width = mass.shape
    rows, columns = torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2
    total = mass.sum()
    return float((mass.sum(0) * columns).sum() / total), float((mass.sum(1) * rows).sum() / total)


numbers = st.floats(0, 1, exclude_max=True)
uniforms = st.lists(st.lists(numbers, min_size=DRAWS, max_size=DRAWS), min_size=1, max_size=4)
sizes = st.tuples(st.integers(1, 12), st.integers(1, 12))


class TestPictures:
    def test_a_label_of_zero_is_the_image_itself(self) -> None:
        x = pictures(3, 3, 7, 10)
        assert torch.equal(augmented(x, label(3)), x)

    @pytest.mark.parametrize("size", [(8, 8), (7, 7), (6, 11), (5, 1)])
    def test_mirrors_are_exact(self, size: tuple[int, int]) -> None:
        x = pictures(2, 3, *size)
        assert torch.equal(augmented(x, label(2, mirror=1)), x.flip(3))
        assert torch.equal(augmented(x, label(2, upside_down=1)), x.flip(2))
        assert torch.equal(augmented(x, label(2, mirror=1, upside_down=1)), x.flip((2, 3)))

    @pytest.mark.parametrize(("x", "y"), [(2, 0), (0, -3), (-1, 2), (5, 4)])
    @pytest.mark.parametrize("mirror", [0, 1])
    def test_whole_shifts_are_exact_and_the_border_is_mirrored(
        self, x: int, y: int, mirror: int
    ) -> None:
        """Behind a border the picture goes on as its own mirror image, the border's pixel twice."""
        height, width = 9, 12
        before = pictures(2, 1, height, width)
        shown = before.flip(3) if mirror else before
        wide = np.pad(
            shown.numpy(), ((0, 0), (0, 0), (height, height), (width, width)), "symmetric"
        )
        want = wide[:, :, height - y : 2 * height - y, width - x : 2 * width - x]
        moved = augmented(before, label(2, d_1=8 * x / width, d_2=8 * y / height, mirror=mirror))
        assert np.array_equal(moved.numpy(), want)

    @pytest.mark.parametrize("quarters", [1, 2, 3])
    @pytest.mark.parametrize("side", [8, 9])
    def test_quarter_turns_of_a_square(self, quarters: int, side: int) -> None:
        """From columns to rows, which go down: clockwise, where torch's is the other way."""
        x = pictures(2, 3, side, side)
        got = augmented(x, label(2, angle=90 * quarters))
        torch.testing.assert_close(got, torch.rot90(x, -quarters, (2, 3)), rtol=0, atol=1e-5)

    @pytest.mark.parametrize(
        ("changes", "lands"),
        [
            ({"angle": 90}, (4.0, 6.0)),
            ({"angle": -90}, (-4.0, -6.0)),
            ({"angle": 30}, (6 * math.sqrt(3) / 2 + 2, 3 - 4 * math.sqrt(3) / 2)),
            ({"scale": 5 * math.log2(1.5)}, (9.0, -6.0)),
            ({"e_1": 5 * math.log2(1.5)}, (9.0, -4 / 1.5)),
            ({"e_1": -5 * math.log2(1.5)}, (4.0, -6.0)),
            ({"mirror": 1, "angle": 90}, (4.0, -6.0)),  # mirrored before it is turned
            ({"mirror": 1, "d_1": 1.0, "d_2": 0.5}, (1.0, -1.0)),  # and shifted last
            ({"angle": 90, "d_1": 1.0}, (11.0, 6.0)),
        ],
    )
    def test_a_spot_comes_to_where_the_formula_says_in_an_oblong_picture(
        self, changes: dict[str, float], lands: tuple[float, float]
    ) -> None:
        got = middle_of(augmented(blob(48, 56, 6.0, -4.0), label(**changes)))
        assert got == pytest.approx(lands, abs=0.15)

    @pytest.mark.parametrize("psi", [0, 30, 45, 120])
    def test_a_stretching_keeps_the_area_and_points_in_its_direction(self, psi: float) -> None:
        """A spot at r (cos ψ, sin ψ) goes 2^(n/5) as far, one across comes as much nearer."""
        n, turn = 1.5, math.radians(psi)
        a = label(e_1=n * math.cos(2 * turn), e_2=n * math.sin(2 * turn))
        factor = 2 ** (n / 5)
        for (x, y), f in (
            ((math.cos(turn), math.sin(turn)), factor),
            ((-math.sin(turn), math.cos(turn)), 1 / factor),
        ):
            got = middle_of(augmented(blob(48, 40, 7 * x, 7 * y), a))
            assert got == pytest.approx((7 * f * x, 7 * f * y), abs=0.1)

    @settings(max_examples=60, deadline=None)
    @given(u=uniforms, size=sizes, grey=st.floats(-1, 1, width=32))
    def test_a_constant_stays_constant_and_nothing_leaves_the_range(
        self, u: list[list[float]], size: tuple[int, int], grey: float
    ) -> None:
        a = drawn(torch.tensor(u, dtype=torch.float64), 1.0, size)
        flat = torch.full((len(u), 1, *size), grey)
        torch.testing.assert_close(augmented(flat, a), flat, rtol=0, atol=2e-6)
        got = augmented(pictures(len(u), 3, *size).sign(), a)
        assert got.abs().max() <= 1
        assert got.dtype == torch.float32

    @settings(max_examples=30, deadline=None)
    @given(u=uniforms, p=st.floats(0, 1), size=sizes)
    def test_an_image_does_not_depend_on_the_others(
        self, u: list[list[float]], p: float, size: tuple[int, int]
    ) -> None:
        x, numbers = pictures(len(u), 2, *size), torch.tensor(u, dtype=torch.float64)
        together = augmented(x, drawn(numbers, p, size))
        for k in range(len(u)):
            one = slice(k, k + 1)
            assert torch.equal(together[one], augmented(x[one], drawn(numbers[one], p, size)))


class TestLabels:
    def test_the_formula(self) -> None:
        """u of the normals is Φ(z), so that z can be told."""
        z = torch.tensor([0.5, -1.0, 1.0, -2.0], dtype=torch.float64)
        always = torch.zeros(6, dtype=torch.float64)
        angles = torch.tensor([0.75, 0.25], dtype=torch.float64)  # φ = π/2, ψ = π/4
        a = drawn(torch.cat((always, angles, torch.special.ndtr(z)))[None], 0.5, (16, 24))
        want = torch.tensor([1, 1, 0.5, -1, 1, 0, -1, 1, -2], dtype=torch.float64)
        torch.testing.assert_close(a[0], want)

    @settings(max_examples=60, deadline=None)
    @given(u=uniforms, p=st.floats(0, 1), size=sizes)
    def test_zero_is_the_label_of_an_image_as_it_is_and_shifts_are_whole(
        self, u: list[list[float]], p: float, size: tuple[int, int]
    ) -> None:
        a = drawn(torch.tensor(u, dtype=torch.float64), p, size)
        x = pictures(len(u), 1, *size)
        same = ~a.any(1)
        assert torch.equal(augmented(x, a)[same], x[same])
        pixels = a[:, 7:] * torch.tensor([size[1], size[0]]) / 8
        torch.testing.assert_close(pixels, pixels.round(), rtol=0, atol=1e-9)
        assert a.isfinite().all()

    def test_a_changed_image_has_a_label(self) -> None:
        a = batches.augmentation_of(TrainConfig(batch=2000), P, (16, 16), 1)
        x = pictures(1, 1, 16, 16).expand(2000, -1, -1, -1)
        changed = (augmented(x, a) != x).flatten(1).any(1)
        assert torch.equal(changed, a.any(1))

    def test_each_change_is_as_frequent_as_asked_and_by_itself(self) -> None:
        count = 40_000
        u = rng.uniform(5, "test", count * DRAWS).reshape(count, DRAWS)
        a = drawn(u, P, (64, 64))
        made = torch.stack([a[:, :1], a[:, 1:2], a[:, 2:3], a[:, 4:5], a[:, 5:6], a[:, 7:8]]) != 0
        share = made[:, :, 0].double().mean(1)
        # of the shifts along a row within half a pixel of 0 nothing is left
        whole = P * 2 * (1 - float(torch.special.ndtr(torch.tensor(0.5 / 8))))
        want = torch.tensor([P / 2, P / 2, P, P, P, whole], dtype=torch.float64)
        error = (want * (1 - want) / count).sqrt()
        assert ((share - want).abs() < 5 * error).all()
        together = made[:, :, 0].double() @ made[:, :, 0].double().T / count
        apart = want[:, None] * want
        off = ~torch.eye(6, dtype=torch.bool)
        assert ((together - apart).abs() < 5 * (apart / count).sqrt())[off].all()
        untouched = float((~a.any(1)).double().mean())
        assert untouched == pytest.approx((1 - P / 2) ** 2 * (1 - P) ** 4, abs=0.015)

    def test_their_sizes(self) -> None:
        """At p = 1: a_3, |e| and d of unit variance, every angle and direction as likely."""
        count = 40_000
        u = rng.uniform(6, "test", count * DRAWS).reshape(count, DRAWS)
        a = drawn(u, 1.0, (256, 256))
        near = {"abs": 5 * 2 / math.sqrt(count)}
        mean, square = a.mean(0).tolist(), a.square().mean(0).tolist()
        assert mean == pytest.approx([0.5, 0.5, 0, -1, 0, 0, 0, 0, 0], **near)
        assert square == pytest.approx([0.5, 0.5, 1, 1.5, 0.5, 0.5, 0.5, 1, 1], **near)

    def test_none_are_made_at_no_chance(self) -> None:
        assert not drawn(torch.zeros(5, DRAWS), 0.0, (4, 4)).any()

    @pytest.mark.parametrize(
        ("u", "p", "says"),
        [
            ((2, DRAWS), 1.5, "p = 1.5"),
            ((2, DRAWS), math.nan, "p = nan"),
            ((2, 3), 0.5, r"\(2, 3\)"),
        ],
    )
    def test_what_will_not_do(self, u: tuple[int, int], p: float, says: str) -> None:
        with pytest.raises(ValueError, match=says):
            drawn(torch.zeros(u), p, (4, 4))

    def test_a_label_too_few(self) -> None:
        with pytest.raises(ValueError, match=rf"\(1, {VALUES}\): give \(2, {VALUES}\)"):
            augmented(pictures(2, 1, 4, 4), label(1))


class TestTraining:
    def test_labels_are_a_function_of_seed_step_and_place(self) -> None:
        config = TrainConfig(batch=64, seed=4)
        first, again = (batches.augmentation_of(config, 0.5, (8, 8), 3) for _ in range(2))
        assert torch.equal(first, again)
        others = [
            batches.augmentation_of(config, 0.5, (8, 8), 4),
            batches.augmentation_of(TrainConfig(batch=64, seed=5), 0.5, (8, 8), 3),
        ]
        assert not any(torch.equal(first, other) for other in others)

    @pytest.mark.parametrize(
        ("asked", "images", "network", "p"),
        [
            ("auto", 9_999, "lean", 0.12),
            ("auto", 10_000, "lean", 0.0),
            ("auto", 40, "unet", 0.12),
            ("auto", 40, "unet2d", 0.0),
            (0.3, 10**6, "lean", 0.3),
            (0.0, 40, "lean", 0.0),
        ],
    )
    def test_auto_goes_by_the_number_of_images(
        self, asked: float | str, images: int, network: str, p: float
    ) -> None:
        config = updated(Config(), {"data.augment": asked, "network.kind": network})
        assert chance_for(config, images) == p

    def test_auto_is_settled_before_training(
        self, tiny_config: Config, tiny_images: Images
    ) -> None:
        asked = updated(tiny_config, {"data.augment": "auto"})
        assert prepare(asked, tiny_images).data.augment == 0.12

    @pytest.mark.parametrize("accumulate", [1, 4])
    def test_the_loss_is_that_of_the_changed_images_with_their_labels(
        self, tiny_config: Config, tiny_images: Images, accumulate: int
    ) -> None:
        changes = {"data.augment": 0.6, "data.flip": True, "train.accumulate": accumulate}
        config = prepare(updated(tiny_config, changes), tiny_images)
        trainee = step_of_training.begin(config, tiny_images)
        shaken(trainee.network)
        got = step_of_training.gradients(trainee, 3)

        indices, flips = batches.samples_of(config.train, 40, 3, flip=True)
        a = batches.augmentation_of(config.train, 0.6, (8, 8), 3)
        x0 = augmented(assemble(tiny_images, indices, flips), a)
        t = batches.times_of(config.train, config.loss, trainee.schedule, 3)
        eps = rng.normal(config.train.seed, "noise", range(8), 3, (1, 8, 8))
        x_t = destroy_at(*trainee.schedule.at(t), x0, eps)
        losses = []
        trainee.network.requires_grad_(False)
        for told in (a.float(), None):
            raw = raw_output(trainee.network, trainee.schedule, "v", x_t, t, augmentation=told)
            prediction = predict("v", raw, x_t, trainee.schedule, t)
            each = weighted(prediction, x0, eps, trainee.schedule, t, config.loss)
            losses.append(float(each.mean()))
        assert got == pytest.approx(losses[0], rel=1e-4)
        assert got != pytest.approx(losses[1], rel=1e-4)

    def test_samples_are_told_of_no_change(
        self, tiny_config: Config, tiny_images: Images, tmp_path: Path
    ) -> None:
        """So the weights of the label have no say, and a network without them draws the same."""
        config = updated(tiny_config, {"data.augment": 0.5})
        model = fit(tiny_images, config, out=tmp_path / "run")
        assert model.config.data.augment == 0.5
        weight = model.network.state_dict()["conditioning.augmentation"]
        assert weight.abs().max() > 0
        first = sample(model, 4, seed=1)
        weight.fill_(7.0)
        assert torch.equal(first, sample(model, 4, seed=1))
        plain = step_of_training.network_of(updated(model.config, {"data.augment": 0.0}), 0)
        state = model.network.state_dict()
        del state["conditioning.augmentation"]
        plain.load_state_dict(state)
        object.__setattr__(model, "network", plain.eval().requires_grad_(False))
        assert torch.equal(first, sample(model, 4, seed=1))

    def test_it_draws_no_changed_picture_where_many_were_seen(self, tmp_path: Path) -> None:
        """Pictures that are bright above, which of those that it was shown half are no more."""
        bright = np.random.default_rng(0).integers(100, 250, (40, 1, 1, 1)).astype(np.uint8)
        pixels = np.full((40, 1, 8, 8), 20, dtype=np.uint8)
        pixels[:, :, :4] = bright
        images = Images.from_arrays(pixels, source="bright above")
        config = updated(
            Config(),
            {
                "data.augment": 0.4,
                "network.fold": 1,
                "network.widths": (16, 16),
                "network.blocks": 1,
                "network.groups": 4,
                "schedule.steps": 50,
                "sample.steps": 10,
                "train.steps": 300,
                "train.batch": 32,
                "train.lr": 5e-3,
                "train.ema": 0.98,
                "train.dtype": "float32",
                "train.threads": 1,
                "train.preview_every": 1000,
                "train.checkpoint_every": 1000,
            },
        )

        def upright(x: Tensor) -> Tensor:
            return x[:, :, :4].mean((1, 2, 3)) - x[:, :, 4:].mean((1, 2, 3)) > 0.3

        a = batches.augmentation_of(TrainConfig(batch=640), 0.4, (8, 8), 1)
        seen = augmented(assemble(images, np.arange(640) % 40), a)
        assert upright(seen).double().mean() < 0.7
        assert upright(sample(fit(images, config, out=tmp_path / "run"), 64, seed=0)).all()

    def test_a_run_keeps_what_it_was_trained_with(
        self, tiny_config: Config, tiny_images: Images, tmp_path: Path
    ) -> None:
        fit(tiny_images, updated(tiny_config, {"data.augment": 0.5}), out=tmp_path / "run")
        run = find(tmp_path / "run")
        file = run.path / "config.toml"
        text = file.read_text(encoding="utf-8")
        assert "augment = 0.5" in text
        file.write_text(text.replace("augment = 0.5", "augment = 0.0"), encoding="utf-8")
        says = r"has conditioning\.augmentation besides; was config\.toml changed since"
        with pytest.raises(CheckpointError, match=says):
            load(run.path)
        with pytest.raises(CheckpointError, match=says):
            list(train(run, tiny_images))

    def test_a_run_says_how_much(
        self, tiny_config: Config, tiny_images: Images, tmp_path: Path
    ) -> None:
        asked = updated(tiny_config, {"data.augment": "auto"})
        fit(tiny_images, asked, out=tmp_path / "run")
        run = find(tmp_path / "run")
        assert "augmented: each of six changes of an image" in (run.path / "log.txt").read_text(
            "utf-8"
        )
        file = run.path / "config.toml"
        text = file.read_text(encoding="utf-8")
        assert "augment = 0.12" in text
        file.write_text(text.replace("augment = 0.12", 'augment = "auto"'), encoding="utf-8")
        with pytest.raises(CheckpointError, match=r'says data\.augment = "auto"'):
            list(train(run, tiny_images))

    def test_bad_chances_are_named(self) -> None:
        for value, says in ((1.5, "at most 1"), (-0.1, "at least 0"), ("x", "a number")):
            with pytest.raises(InputError, match=rf"data\.augment = .*{says}"):
                updated(preset("fast"), {"data.augment": value})


def shaken(network: torch.nn.Module) -> None:
    """Every weight drawn at random, so that no zero hides a part of it."""
    for p in network.parameters():
        torch.manual_seed(p.numel())
        torch.nn.init.normal_(p, std=0.1)
