"""The figures of the documents can be made, from a run and without one; here small ones."""

import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from scripts import as_module
from unraze import data, train as training
from unraze.config import Config, DataConfig, updated

SCRIPT = Path(__file__).parent.parent / "docs" / "figures.py"


@pytest.fixture(scope="module")
def figures() -> Iterator[ModuleType]:
    """docs/figures.py as a module."""
    with as_module(SCRIPT) as module:
        yield module


def trained(folder: Path, objective: str) -> Path:
    """A run of eight steps of the text's network on digits."""
    images = data.load(DataConfig(source="digits"))
    config = updated(
        Config(),
        {
            "data.source": "digits",
            "schedule.kind": "linear",
            "schedule.steps": 20,
            "network.fold": 1,
            "network.widths": (8, 8),
            "network.blocks": 1,
            "network.groups": 4,
            "loss.parametrisation": "eps_step",
            "loss.objective": objective,
            "loss.times": "uniform",
            "loss.continuous": False,
            "train.steps": 8,
            "train.batch": 4,
            "train.threads": 1,
            "train.dtype": "float32",
            "sample.steps": 4,
        },
    )
    training.fit(images, config, out=folder)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each of the text's two losses."""
    folder = tmp_path_factory.mktemp("runs")
    return {name: trained(folder / name, name) for name in ("four-variable", "reduced")}


def made(figures: ModuleType, out: Path, *arguments: str) -> None:
    """Asks the script for one figure and looks at what is there afterwards."""
    assert figures.main([*arguments, "--out", str(out)]) == 0
    files = figures.ENTRIES[arguments[0]].files
    assert sorted(path.name for path in out.iterdir()) == sorted(files)
    for name in files:
        with Image.open(out / name) as picture:
            picture.load()
            low, high = picture.convert("L").getextrema()
            assert high - low > 100, f"{name} shows nothing"


def test_each_figure_is_made_by_a_test(figures: ModuleType) -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in figures.ENTRIES if f'"{name}"' not in text] == []


@pytest.mark.parametrize("name", ["schedules", "destroy"])
def test_a_figure_that_needs_no_run(name: str, figures: ModuleType, tmp_path: Path) -> None:
    made(figures, tmp_path, name)


@pytest.mark.parametrize("name", ["reconstruct", "samplers", "film"])
def test_a_figure_of_one_run(
    name: str, figures: ModuleType, runs: dict[str, Path], tmp_path: Path
) -> None:
    made(figures, tmp_path, name, str(runs["reduced"]), "--steps", "10")


def test_the_figure_of_the_two_losses(
    figures: ModuleType, runs: dict[str, Path], tmp_path: Path
) -> None:
    made(figures, tmp_path, "losses", *map(str, runs.values()), "--steps", "5")


def test_the_figure_of_the_variances_and_what_its_tables_say(
    figures: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures.loss_variance(tmp_path, draws=64, over_all=64)  # "loss-variance"
    assert (tmp_path / "loss-variance.png").is_file()
    rows = re.findall(r"^\| (\d+) \|(.*)\|$", capsys.readouterr().out, re.MULTILINE)
    assert [int(t) for t, _ in rows] == [1, 3, 10, 30, 100, 200, 400, 600, 800, 1000]
    for t, row in rows:
        factor, four, two, ratio, agree = (cell.strip().replace(",", "") for cell in row.split("|"))
        if t == "1":  # there is no ω: both are the same
            assert (factor, ratio, four) == ("1.000", "1", two)
        else:
            assert float(four) > 1.5 * float(two)
            # that the means are the same: a mean square in units of its expected value
            assert float(agree) < 4


def test_gradients_of_single_draws_average_to_that_of_the_batch(figures: ModuleType) -> None:
    import torch

    from unraze.loss import reduced
    from unraze.schedule import linear

    x = torch.linspace(-1, 1, 5 * 64).reshape(5, 1, 8, 8)
    schedule = linear(1000)
    network = figures._small_network(x, schedule, steps=2)
    g4, scaled, g2, difference = next(figures._gradients(network, x, schedule, 30, part=6))

    x0, times, before, step = figures._drawn(x, schedule, 6, 30, "gradient at 30", 0)
    a, b = float(schedule.alpha[30] * schedule.beta_bar[29]), float(schedule.beta[30])
    whole = float(schedule.beta_bar[30])
    eps = (a * before + b * step) / whole
    loss = reduced(lambda x_t, t: network(x_t, t.float()), schedule, x0, times, eps).mean() / 64
    rows = torch.autograd.grad(loss, list(network.parameters()))
    torch.testing.assert_close(
        g2.mean(0), torch.cat([row.flatten() for row in rows]), rtol=1e-4, atol=3e-6
    )
    torch.testing.assert_close(scaled, (b / whole) ** 2 * g2)
    torch.testing.assert_close(difference, g4 - scaled)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nonsense"], "there is no figure 'nonsense'"),
        (["film", "schedules", "destroy"], "schedules"),
        (["samplers"], "one run, 0 were given"),
        (["losses", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_drawn_is_said(
    arguments: list[str],
    says: str,
    figures: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    try:
        status = figures.main([*arguments, "--out", str(tmp_path)])
    except SystemExit as usage:
        status = int(usage.code or 0)
    assert status == 2
    assert says in capsys.readouterr().err


def test_without_a_name_the_figures_are_listed(
    figures: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert figures.main([]) == 0
    listed = capsys.readouterr().out
    for entry in figures.ENTRIES.values():
        assert all(file in listed for file in entry.files)
