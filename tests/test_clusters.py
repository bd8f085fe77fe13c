"""Clusters of alike images: found, told to the network, and drawn as often as they are."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from stopping import after_step
from unraze import clusters as clustering, generate, run as runs, step, train as training
from unraze.clusters import Clusters
from unraze.config import Config, preset, updated
from unraze.data import Images
from unraze.errors import CheckpointError, InputError
from unraze.evaluate import likelihood
from unraze.evaluate.chosen import label_nats, labels_for
from unraze.evaluate.samples import in_proportion
from unraze.run import find as find_run


def kinds(count: int, each: int = 150, seed: int = 0) -> tuple[Images, np.ndarray]:
    """Grey images of 8×8 with one bright spot in as many places, and which place."""
    generator = np.random.default_rng(seed)
    place = generator.permutation(np.repeat(np.arange(count), each))
    pixels = generator.integers(0, 60, (len(place), 1, 8, 8)).astype(np.uint8)
    rows, columns = np.divmod(place, 4)
    for k in range(2):
        for m in range(2):
            pixels[np.arange(len(place)), 0, 2 * rows + k, 2 * columns + m] += 180
    return Images.from_arrays(pixels, source="kinds"), place


def test_what_is_far_apart_is_told_apart() -> None:
    images, place = kinds(6)
    found = clustering.find(images, 60)  # more than there are: the start hits every place
    pure = [len(np.unique(place[found.labels == k])) for k in range(len(found))]
    assert max(pure) == 1
    assert set(np.unique(place)) == {place[found.labels == k][0] for k in range(len(found))}


def test_every_cluster_has_enough_images_and_every_image_the_nearest() -> None:
    images, _ = kinds(3)
    found = clustering.find(images, 40)
    assert 2 <= len(found) <= 40
    assert np.bincount(found.labels, minlength=len(found)).min() >= clustering.FEWEST
    assert found.shares.sum() == pytest.approx(1)
    assert np.array_equal(clustering.nearest(found, images.pixels), found.labels)


def test_the_same_images_and_seed_give_the_same_clusters() -> None:
    images, _ = kinds(3)
    assert clustering.find(images, 9).hash == clustering.find(images, 9).hash
    assert clustering.find(images, 9).hash != clustering.find(images, 9, seed=1).hash


def test_images_without_any_difference_are_one_cluster() -> None:
    images = Images.from_arrays(np.full((200, 3, 8, 8), 7, dtype=np.uint8), source="one")
    found = clustering.find(images, 4)
    assert len(found) == 1
    assert not found.labels.any()


@pytest.mark.parametrize(
    ("asked", "images", "had"),
    [(256, 60_000, 256), (256, 3786, 37), (256, 199, 0), (1, 10**6, 0), (0, 10**6, 0)],
)
def test_few_images_have_few_clusters(asked: int, images: int, had: int) -> None:
    assert clustering.clusters_for(asked, images) == had


def shares_of(counts: list[int]) -> Clusters:
    empty = np.zeros((0, 0))
    labels = np.repeat(np.arange(len(counts)), counts)
    return Clusters(np.zeros(0), empty, np.zeros((len(counts), 0)), labels)


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=12),
    st.integers(0, 2**32),
    st.integers(0, 10**6),
)
def test_samples_are_of_clusters_in_proportion(counts: list[int], seed: int, first: int) -> None:
    of, n = shares_of(counts), 400
    drawn = [clustering.drawn(of, number, seed) for number in range(first, first + n)]
    had = np.bincount(drawn, minlength=len(counts)) / n
    # an additive recurrence by the golden ratio has a discrepancy of about ln(n)/n
    assert np.abs(had - of.shares).max() < 2 * np.log(n) / n


def test_another_seed_draws_other_clusters() -> None:
    of = shares_of([10] * 20)
    sequences = {tuple(clustering.drawn(of, k, seed) for k in range(8)) for seed in range(5)}
    assert len(sequences) == 5


def test_what_was_written_is_read(tmp_path: Path) -> None:
    found = clustering.find(kinds(3)[0], 9)
    file = tmp_path / "clusters.safetensors"
    clustering.write(file, found)
    assert clustering.read(file, found.hash).hash == found.hash
    with pytest.raises(CheckpointError, match="is not that of this checkpoint"):
        clustering.read(file, "0" * 64)
    whole = file.read_bytes()
    for damaged in (whole[:40], whole[:-5], b"", b"\0" * len(whole)):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="cannot be read"):
            clustering.read(file)
    with pytest.raises(CheckpointError, match="bring it back"):
        clustering.read(tmp_path / "absent")


@pytest.fixture
def told(tiny_config: Config) -> Config:
    return updated(tiny_config, {"train.clusters": 4})


def test_a_run_of_clusters_draws_in_proportion_and_is_evaluated_by_the_nearest(
    told: Config, tmp_path: Path
) -> None:
    images, place = kinds(4)
    model = training.fit(images, told, out=tmp_path / "run")
    assert model.clusters is not None
    assert model.num_classes == len(model.clusters) <= 4
    assert model.data == images.fingerprint  # the images' own, whatever clusters there are
    drawn = [generate.class_of(model, None, k, 3) for k in range(400)]
    had = np.bincount(np.array(drawn, dtype=np.int64), minlength=len(model.clusters)) / 400
    assert np.abs(had - model.clusters.shares).max() < 0.02
    asked = labels_for(model, images)
    assert asked is not None
    assert np.array_equal(asked, model.clusters.labels)
    assert in_proportion(model, replace(images, labels=place)) is None  # classes not asked for
    assert generate.sample(model, 3, seed=1).shape == (3, 1, 8, 8)
    assert generate.sample(model, 3, seed=1, classes=1).shape == (3, 1, 8, 8)


def test_a_network_begins_with_near_clusters_alike(told: Config) -> None:
    images, _ = kinds(4)
    config = training.prepare(told, images)
    found = clustering.find(images, 8)
    table = step.begin(config, images, clusters=found).network.get_parameter(
        "conditioning.table.weight"
    )
    spread = found.centres.std(0)
    there = (found.centres - found.centres.mean(0)) / np.where(spread > 0, spread, 1)
    width = table.shape[1]
    apart = torch.cdist(table[:-1], table[:-1]).detach().numpy()
    wanted = 0.3 * np.linalg.norm(there[:, None, :width] - there[None, :, :width], axis=2)
    assert np.allclose(apart, wanted, atol=1e-5)


def test_the_bound_of_clusters_counts_the_cluster(told: Config, tmp_path: Path) -> None:
    images, _ = kinds(4)
    model = training.fit(images, told, out=tmp_path / "run")
    assert model.clusters is not None
    asked = labels_for(model, images)
    bounds = {}
    for name, of in (("image", model), ("given", replace(model, clusters=None))):
        steps = likelihood.bound(of, images.pixels, labels=asked, images=50, draws=4)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                bounds[name] = end.value[0]
                break
    chosen = np.linspace(0, len(images) - 1, 50).round().astype(int)
    assert asked is not None
    nats = label_nats(model, asked[chosen].tolist())
    everyone = list(range(len(model.clusters.shares)))
    found = np.exp(-label_nats(model, everyone))
    assert found.sum() == pytest.approx(1.0)  # or it were no bound
    assert np.allclose(found, model.clusters.shares, atol=len(everyone) / len(images))
    np.testing.assert_array_equal(np.exp(-nats), found[asked[chosen]])
    emptied = replace(model.clusters, labels=np.zeros_like(model.clusters.labels))
    assert np.isfinite(label_nats(replace(model, clusters=emptied), everyone)).all()
    assert bounds["image"].bits > bounds["given"].bits
    assert bounds["image"].bits - bounds["given"].bits == pytest.approx(
        nats.mean() / (64 * np.log(2)), rel=0.1
    )
    assert "cluster" in bounds["image"].note


def test_a_stopped_run_goes_on_with_its_clusters(told: Config, tmp_path: Path) -> None:
    images, _ = kinds(4)
    whole = training.fit(images, told, out=tmp_path / "whole")
    config = training.prepare(told, images)
    halves = runs.create(config, out=tmp_path / "halves")
    stop = after_step(halves, 5)
    assert list(training.train(halves, images, stop=stop))[-1].phase == "stopped"
    kept = halves.clusters.read_bytes()
    halves.clusters.unlink()
    with pytest.raises(CheckpointError, match=r"clusters\.safetensors.*bring it back"):
        list(training.train(halves, images))
    other = clustering.find(images, 4, seed=9)
    clustering.write(halves.clusters, other)
    with pytest.raises(CheckpointError, match="is not that of this checkpoint"):
        list(training.train(halves, images))
    halves.clusters.write_bytes(kept)
    assert list(training.train(halves, images))[-1].phase == "done"
    resumed = generate.load(find_run(tmp_path / "halves").path)
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name])


@pytest.mark.parametrize("change", ["fewer", "more", "others"])
def test_a_run_that_was_killed_before_it_saved_sorts_the_images_there_are(
    told: Config, tmp_path: Path, change: str
) -> None:
    """Its clusters are on the disk, found of the images that were there then."""
    images, _ = kinds(4)
    run = runs.create(training.prepare(told, images), out=tmp_path / "run")
    clustering.write(run.clusters, clustering.find(images, 4))
    kept = {"fewer": slice(0, 300), "more": slice(None), "others": slice(None, None, -1)}[change]
    pixels = images.pixels[kept]
    if change == "more":
        pixels = np.concatenate([pixels, pixels[:50]])
    now = Images.from_arrays(np.ascontiguousarray(pixels))
    assert list(training.train(run, now))[-1].phase == "done"
    found = clustering.read(run.clusters)
    assert np.array_equal(found.labels, clustering.nearest(found, now.pixels))
    assert found.of == now.fingerprint


def test_images_that_come_back_have_their_clusters_again(told: Config) -> None:
    images, _ = kinds(4)
    others = Images.from_arrays(np.ascontiguousarray(images.pixels[::-1]))
    found = clustering.find(images, 4)
    changed = clustering.of_others(found, others)
    back = clustering.of_others(changed, images)
    assert changed.hash != found.hash == back.hash
    assert np.array_equal(back.labels, found.labels)
    assert found.hash in changed.before
    assert changed.hash in back.before  # a checkpoint of then may name it
    assert clustering.of_others(back, images) is back


def test_classes_and_clusters_are_one_or_the_other(told: Config) -> None:
    assert updated(told, {"train.classes": True}).train.clusters == 0
    with pytest.raises(InputError, match="a network is told one of them"):
        updated(told, {"train.classes": True, "train.clusters": 3})


def test_only_a_run_that_is_told_something_and_at_times_nothing_is_guided(told: Config) -> None:
    images, _ = kinds(4)
    guided = updated(told, {"sample.guidance": 2.0})
    assert training.prepare(guided, images).sample.guidance == 2.0
    fast = {"preset": "fast", "sample.guidance": preset("fast").sample.guidance}
    by_default = updated(told, fast)
    for change in ({"train.clusters": 0}, {"train.label_dropout": 0.0}):
        assert training.prepare(updated(by_default, change), images).sample.guidance == 1.0
        with pytest.raises(InputError, match=r"sample\.guidance = 2: .*--clusters"):
            training.prepare(updated(guided, change), images)
