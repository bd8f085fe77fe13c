"""bench/engines.py: what it says of rounds, and that each way draws the run's pictures."""

import argparse
import subprocess
from pathlib import Path
from typing import Any

import engines
import pytest

from evaluated import digits_file, small_run
from unraze import generate


def cell(one: float, many: float, first: float) -> dict[str, Any]:
    return {"rates": {"1": one, "16": many}, "first": first, "peak": 2**20, "file": 10**6}


def test_the_table_has_ratios_round_by_round_and_what_was_left_out() -> None:
    lines = engines.told(
        {
            "torch": [cell(1, 10, 2), cell(2, 20, 2)],
            "onnxruntime": [cell(3, 8, 1), cell(6, 16, 1)],
            "torch compiled": [{"skipped": "took longer than 60 s"}],
        }
    )
    table = {line.split("  ")[0].strip(): line for line in lines}
    assert "0.80 (0.80 … 0.80)" in table["onnxruntime"]
    assert table["onnxruntime"].split()[-4:] == ["1.00", "2.00", "1", "1.0"]
    assert table["torch compiled"].endswith("left out: took longer than 60 s")
    assert lines[-2] == "a batch of 1, to torch: torch 1.00, onnxruntime 3.00"
    assert engines.best([cell(3, 8, 1), cell(6, 16, 1)]) == ("16", 12)


def test_a_way_draws_the_run_s_pictures(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", digits_file(tmp_path / "digits.npz"), {"network.heads": 2})
    model = generate.load(run)
    wanted = generate.sample(model, 2)
    for way in engines.WAYS:
        if way.compiled or way.dtype != "float32":
            continue
        computed, settings = engines.ready(way, model)
        assert computed.engine == way.engine
        assert (generate.sample(computed, 2, settings=settings) - wanted).abs().max() < 1e-3
    found = engines.alone(engines.WAYS[2], run, [2])
    assert found["first"] > 0
    assert list(found["rates"]) == ["2"]
    assert found["file"] > 10_000


def test_a_way_that_takes_too_long_or_fails_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    options = argparse.Namespace(run=Path("run"), threads=1, batches="1", patience=7)

    def slow(command: list[str], *, timeout: int, **more: Any) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    def broken(command: list[str], **more: Any) -> None:
        raise subprocess.CalledProcessError(3, command)

    for run, says in ((slow, "took longer than 7 s"), (broken, "ended with status 3")):
        monkeypatch.setattr(subprocess, "run", run)
        with pytest.raises(engines.LeftOut, match=says):
            engines.measured(engines.WAYS[0], options)


def test_what_is_left_out_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor tried again in the rounds that follow; the same command tries it anew."""
    model = generate.load(small_run(tmp_path / "run", digits_file(tmp_path / "digits.npz")))
    asked: list[str] = []

    def measured(way: engines.Way, _: argparse.Namespace) -> dict[str, Any]:
        asked.append(way.name)
        if way.name == "onnxruntime":
            raise engines.LeftOut("took longer than 7 s")
        return {"first": 1.0}

    monkeypatch.setattr(engines, "measured", measured)
    options = argparse.Namespace(out=tmp_path, threads=1, batches="1", rounds=2)
    for _ in range(2):
        found = engines.rounds(options, model)
        assert found["onnxruntime"] == [{"skipped": "took longer than 7 s"}]
        assert found["torch"] == [{"first": 1.0}] * 2
    assert (asked.count("torch"), asked.count("onnxruntime")) == (2, 2)
