"""Randomness is a function of (seed, purpose, index), and of nothing else."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import stats

from unraze import rng
from unraze.rng import generator, normal, permutation, torch_seed, uniform

numbers = st.integers(0, 2**64 - 1)


@settings(deadline=None)
@given(
    samples=st.lists(numbers, min_size=1, max_size=6),
    order=st.randoms(use_true_random=False),
    step=numbers,
)
def test_noise_does_not_depend_on_who_else_is_in_the_batch(samples, order, step) -> None:
    together = normal(3, "walk", samples, step, (2, 3))
    assert together.shape == (len(samples), 2, 3)
    assert together.dtype == torch.float32
    for row, sample in zip(together, samples, strict=True):
        assert torch.equal(row, normal(3, "walk", [sample], step, (2, 3))[0])
    shuffled = list(range(len(samples)))
    order.shuffle(shuffled)
    again = normal(3, "walk", [samples[i] for i in shuffled], step, (2, 3))
    assert torch.equal(again, together[shuffled])
    streams = [generator(3, "walk", sample, step) for sample in samples]
    rows = [stream.standard_normal((2, 3), dtype=np.float32) for stream in streams]
    assert torch.equal(together, torch.from_numpy(np.stack(rows)))


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_threads_change_no_number(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    samples, shape = [5, 2**40, 0, 9, 11], (3, 7)
    alone = normal(3, "walk", samples, 4, shape)
    monkeypatch.setattr(rng, "WORTH_A_THREAD", 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    asked = []
    pool = rng.ThreadPoolExecutor
    monkeypatch.setattr(rng, "ThreadPoolExecutor", lambda n: asked.append(n) or pool(n))
    assert torch.equal(normal(3, "walk", samples, 4, shape), alone)
    assert asked == [min(threads, len(samples))]
    with pytest.raises(ValueError, match="-1"):
        normal(3, "walk", [1, 2, 3, -1], 4, shape)


@settings(deadline=None)
@given(seed=numbers, index=st.tuples(numbers, numbers))
def test_the_same_place_gives_the_same_numbers_and_its_neighbours_others(seed, index) -> None:
    a, b = index
    here = generator(seed, "noise", a, b).random(4).tolist()
    assert generator(seed, "noise", a, b).random(4).tolist() == here
    others = [
        (seed + 1, "noise", a, b),
        (seed, "noises", a, b),
        (seed, "noise", a ^ 1, b),
        (seed, "noise", a, b ^ 1),
        (seed, "noise", a ^ 2**63, b),
        (seed, "noise", a, b ^ 2**63),
    ]
    if a != b:
        others.append((seed, "noise", b, a))
    for other in others:
        assert generator(*other).random(4).tolist() != here


def test_no_two_streams_of_a_run_share_a_number() -> None:
    # seeds, purposes, images and steps as a run uses them; 64 bits each, so chance is no excuse
    drawn = np.concatenate(
        [
            generator(seed, purpose, image, step).integers(0, 2**64, 8, dtype=np.uint64)
            for seed in range(4)
            for purpose in ("walk", "start", "time", "1:walk", "")
            for image in range(10)
            for step in range(10)
        ]
    )
    assert len(np.unique(drawn)) == len(drawn)


def test_a_long_stream_does_not_run_into_the_next() -> None:
    one = generator(0, "walk", 5, 7).integers(0, 2**64, 200_000, dtype=np.uint64)
    for neighbour in ((6, 7), (5, 8), (4, 7)):
        other = generator(0, "walk", *neighbour).integers(0, 2**64, 200_000, dtype=np.uint64)
        assert len(np.intersect1d(one, other)) == 0


def test_an_index_left_out_is_0() -> None:
    assert generator(1, "x").random() == generator(1, "x", 0).random()
    assert generator(1, "x").random() == generator(1, "x", 0, 0).random()


def test_noise_is_normal_within_and_across_images_and_steps() -> None:
    within = normal(0, "walk", range(50), 3, (1, 20, 20)).flatten().numpy()
    across = normal(0, "walk", range(5000), 3, (1,)).flatten().numpy()
    over_steps = np.array([normal(0, "walk", [4], s, (1,)).item() for s in range(3000)])
    over_seeds = np.array([normal(s, "walk", [4], 1, (1,)).item() for s in range(3000)])
    for values in (within, across, over_steps, over_seeds):
        assert stats.kstest(values, stats.norm.cdf).pvalue > 1e-3
        # and each is independent of the one before
        correlation = np.corrcoef(values[:-1], values[1:])[0, 1]
        assert abs(correlation) <= 5 / np.sqrt(len(values))


def test_uniform_numbers_are_uniform() -> None:
    u = uniform(0, "time", 5000, 12)
    assert u.dtype == torch.float64
    assert ((u >= 0) & (u < 1)).all()
    assert stats.kstest(u.numpy(), stats.uniform.cdf).pvalue > 1e-3
    # a prefix is a prefix: how many are asked for changes none of them
    assert torch.equal(uniform(0, "time", 10, 12), u[:10])


@settings(deadline=None)
@given(st.integers(0, 200), numbers)
def test_a_permutation_is_one(count: int, epoch: int) -> None:
    order = permutation(0, "order", count, epoch)
    assert sorted(order.tolist()) == list(range(count))
    assert order.dtype == np.int64


def test_permutations_are_uniformly_drawn() -> None:
    firsts = [int(permutation(0, "order", 6, epoch)[0]) for epoch in range(3000)]
    assert stats.chisquare(np.bincount(firsts, minlength=6)).pvalue > 1e-3


def test_a_torch_seed_is_one_that_torch_takes() -> None:
    seeds = {torch_seed(0, "weights", i) for i in range(100)}
    assert len(seeds) == 100
    for seed in seeds:
        torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("index", [(-1,), (2**64,), (0, -1), (0, 2**64), (1, 2, 3)])
def test_an_index_outside_its_bounds_is_refused(index: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="index"):
        generator(0, "x", *index)
    assert 0 <= generator(0, "x", 2**64 - 1, 2**64 - 1).random() < 1


def test_another_process_draws_the_same() -> None:
    code = (
        "from unraze.rng import normal, permutation;"
        "print(normal(7, 'walk', [3, 2**40], 5, (2,)).tolist(), permutation(7, 'o', 9).tolist())"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = f"{normal(7, 'walk', [3, 2**40], 5, (2,)).tolist()} {permutation(7, 'o', 9).tolist()}\n"
    assert said.stdout == here


def test_noise_of_single_numbers_is_that_of_one_pixel() -> None:
    single = normal(1, "spoilt", range(3), 0, ())
    assert single.shape == (3,)
    assert torch.equal(single[:, None], normal(1, "spoilt", range(3), 0, (1,)))
