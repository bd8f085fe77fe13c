"""How pictures are spoilt."""

import numpy as np
import pytest
import torch
from PIL import Image

from oracle import normals
from unraze.edit.operators import blurred, downsampled, grey, identity, only, shape_seen


def test_downsampling_takes_means_of_squares() -> None:
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    wanted = torch.tensor([[[[2.5, 4.5], [10.5, 12.5]]]])
    assert torch.equal(downsampled(2)(x), wanted)
    assert torch.equal(downsampled(1)(x), x)
    with pytest.raises(ValueError, match="does not divide 4 x 4"):
        downsampled(3)(x)
    with pytest.raises(ValueError, match="factor = 0"):
        downsampled(0)


def test_a_blur_keeps_what_is_even_and_widens_a_point_by_its_sigma() -> None:
    even = torch.full((2, 3, 16, 16), 0.7)
    torch.testing.assert_close(blurred(1.5)(even), even)
    point = torch.zeros(1, 1, 41, 41, dtype=torch.float64)
    point[0, 0, 20, 20] = 1.0
    spread = blurred(2.0)(point)[0, 0]
    places = torch.arange(41, dtype=torch.float64) - 20
    assert float(spread.sum()) == pytest.approx(1)
    assert float((spread.sum(1) * places**2).sum()) == pytest.approx(4.0, rel=0.05)  # cut off at 3σ
    assert torch.equal(spread, spread.T)
    with pytest.raises(ValueError, match="too wide"):
        blurred(3.0)(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="sigma = 0"):
        blurred(0.0)


def test_grey_is_pillow_s() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    wanted = np.asarray(Image.fromarray(pixels).convert("L"))
    x = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None].double()
    assert float((grey(x)[0, 0] - torch.from_numpy(wanted.copy())).abs().max()) <= 0.51
    with pytest.raises(ValueError, match="3 channels"):
        grey(x[:, :1])


def test_what_is_no_operator_is_refused_before_it_is_needed() -> None:
    assert shape_seen(downsampled(2), (3, 8, 8)) == (3, 4, 4)
    assert shape_seen(lambda x: x.mean((1, 2, 3)), (1, 8, 8)) == ()
    for operator, said in (
        (lambda x: x.detach(), "cannot be differentiated"),
        (lambda x: x.mean(0, keepdim=True), r"gives \(1, 1, 8, 8\) of two images"),
        (lambda x: x.mean(), r"gives \(\) of two"),
        (lambda x: x.shape, "gives Size of two"),
        (lambda x: x @ torch.ones(3, 3), "does not take the run's images"),
    ):
        with pytest.raises(ValueError, match=said):
            shape_seen(operator, (1, 8, 8))


def test_only_what_is_seen_is_left() -> None:
    x = normals(0, 2, 3, 4, 4)
    seen = torch.arange(16).reshape(4, 4) % 3 == 0
    found = only(seen)(x)
    assert torch.equal(found[..., seen], x[..., seen])
    assert not bool(found[..., ~seen].any())
    assert identity(x) is x
