"""The doctor's figures, against whoever knows them: the operation counter, the processor."""

import time
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from unraze import doctor, hardware


def test_the_work_of_a_product_and_a_convolution_is_what_the_counter_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def counted(operation, work: float, *, seconds: float) -> float:
        counter = FlopCounterMode(display=False)
        with counter:
            operation()
        return work / counter.get_total_flops()

    monkeypatch.setattr(doctor, "gflops", counted)
    assert doctor.matmul_speed(torch.float32, size=24) == 1
    # the counter leaves out the zeros at the border, as does the claim: both count every pixel
    assert doctor.conv_speed(torch.float32, batch=2, channels=3, side=5) == 1


def test_a_speed_is_work_over_time() -> None:
    def operation() -> torch.Tensor:
        time.sleep(0.02)
        return torch.zeros(1)

    speed = doctor.gflops(operation, 1e9, seconds=0.1)
    assert 1 < speed <= 50  # sleep may last longer than asked for, never shorter


def test_more_pixels_are_more_work_unless_more_are_folded() -> None:
    # attention, quadratic in the pixels, adds a little
    ratio = doctor.flops_an_image(side=24) / doctor.flops_an_image(side=12)
    assert 3.9 < ratio < 4.6
    # twice the side, but 2 x 2 pixels in one place
    assert doctor.flops_an_image(side=32) == pytest.approx(doctor.flops_an_image(side=16), rel=0.02)


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="the kernel tells it on Linux only")
def test_bfloat16_in_hardware_is_what_the_kernel_says() -> None:
    flags = Path("/proc/cpuinfo").read_text().split()
    assert hardware.has_bfloat16("cpu") == ("avx512_bf16" in flags or "amx_bf16" in flags)


def test_measured_speeds_are_those_of_both_dtypes() -> None:
    speeds = doctor.measure(seconds=0.01)
    assert [s.dtype for s in speeds] == ["float32", "bfloat16"]
    assert all(s.matmul > 0 and s.conv > 0 for s in speeds)
    assert doctor.versions()["torch"] == torch.__version__
