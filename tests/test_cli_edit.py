"""`unraze edit`: each command writes what it says, and refuses in one line what cannot be."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from evaluated import digits_file, small_run
from scripts import as_module
from unraze import pictures
from unraze.cli import main
from unraze.config import Config, updated
from unraze.data import Images
from unraze.generate import Progress
from unraze.run import find, read_config
from unraze.train import fit

MINE = """
def mirrored(x):
    return x.flip(-1)

def scalar(x):
    return x.mean((1, 2, 3))

def deaf(x):
    return x.detach()

def broken(x):
    raise RuntimeError("oh")

def leaving(x):
    raise SystemExit(5)
"""


@pytest.fixture(scope="module")
def run(tiny_config: Config, tiny_images: Images, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tiny"
    fit(tiny_images, updated(tiny_config, {"train.classes": True, "train.steps": 100}), out=out)
    return out


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_images: Images) -> Path:
    """A folder with two pictures of the run's kind, one of another size, one in colours, masks."""
    monkeypatch.chdir(tmp_path)
    for number in (0, 1):
        Image.fromarray(tiny_images.pixels[number, 0]).save(f"{number}.png")
    with Image.open("0.png") as picture:
        picture.resize((20, 16)).save("large.png")
        picture.resize((4, 4)).save("small.png")
        picture.convert("RGB").save("colours.png")
    mask = np.zeros((8, 8), dtype=np.uint8)
    Image.fromarray(mask).save("empty.png")
    mask[4:] = 255
    Image.fromarray(mask).save("mask.png")
    Image.fromarray(mask[:, :6]).save("narrow.png")
    Path("mine.py").write_text(MINE, encoding="utf-8")
    Path("gone.py").write_text("raise SystemExit(5)", encoding="utf-8")
    return tmp_path


def edited(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[Path, str]:
    """Runs the command; returns the folder that it names, and what it said."""
    assert main(["edit", *words]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    return Path(said.splitlines()[-1]), said


COMMANDS = {
    "vary": ("vary RUN 0.png --strength 0.5 --film", "grid.png film.gif"),
    "a class": ("vary RUN 0.png --class below --guidance 2", "grid.png"),
    "two classes": ("vary RUN 0.png --class 0 --class below", "grid.png"),
    "another class": ("vary RUN 0.png --of above --class below", "grid.png"),
    "fitted": ("vary RUN large.png --fit crop --sampler random", "grid.png"),
    "inpaint": ("inpaint RUN 0.png --mask mask.png", "grid.png given.png"),
    "a rectangle": ("inpaint RUN 0.png --mask 0,4,8,4 --method mmps", "grid.png given.png"),
    "repaint": (
        "inpaint RUN 0.png --mask mask.png --method repaint --repeats 2 --film",
        "grid.png given.png film.gif",
    ),
    "restore": ("restore RUN small.png --operator downsample:2", "grid.png seen.png"),
    "spoil": ("restore RUN 0.png --operator blur:1 --noise 0.1 --spoil", "grid.png seen.png"),
    "missing": ("restore RUN 0.png --operator missing:mask.png", "grid.png seen.png"),
    "at random": (
        "restore RUN 0.png --operator missing:0.5 --spoil --method diffpir",
        "grid.png seen.png",
    ),
    "noise": ("restore RUN 0.png --operator noise --noise 0.5", "grid.png seen.png"),
    "one's own": ("restore RUN 0.png --operator mine.py:mirrored", "grid.png seen.png"),
    "no picture": ("restore RUN 0.png --operator mine.py:scalar --spoil", "grid.png"),
    "interpolate": ("interpolate RUN 0.png 1.png --film", "strip.png film.gif"),
    "seeds": ("interpolate RUN --seeds 1 2", "strip.png"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_writes_its_results_with_their_recipe(
    name: str, run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, others = (text.split() for text in COMMANDS[name])
    line = [str(run) if word == "RUN" else word for word in words]
    folder, said = edited(capsys, *line, "-n", "3", "--steps", "6", "--out", "out")
    assert folder == Path("out")
    assert {p.name for p in folder.iterdir()} == {f"0000{k}.png" for k in range(3)} | set(others)
    recipe = pictures.read_recipe(folder / "00001.png")
    assert (recipe["kind"], recipe["edit"], recipe["result"]) == ("edit", words[0], 1)
    with Image.open(folder / "00001.png") as picture:
        assert picture.size == (8, 8)
    assert ("PSNR" in said) == ("--spoil" in words)


def test_results_that_are_done_outlive_an_interruption(
    run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("tired.py").write_text(
        "import pathlib\n\n"
        "def operator(x):\n"
        "    there = pathlib.Path('out/00001.png').exists()\n"
        "    if there and not pathlib.Path('out/grid.png').exists():\n"
        "        raise KeyboardInterrupt\n"
        "    return x\n",
        encoding="utf-8",
    )
    line = ["restore", str(run), "0.png", "--operator", "tired.py:operator", "--steps", "4"]
    line += ["-n", "5", "--batch", "1", "--out", "out"]
    assert main(["edit", *line]) == 130
    said = capsys.readouterr()
    assert "2 of 5 pictures are in out" in said.out
    assert "interrupted" in said.err
    two = ["00000.png", "00001.png"]
    assert sorted(p.name for p in Path("out").iterdir()) == two
    recipe = pictures.read_recipe(Path("out/00001.png"))
    assert (recipe["result"], recipe["batch"]) == (1, [1, 1])
    assert len(recipe["code"]) == 64

    # nor are they mixed with those of an older one that were to be written over
    edited(capsys, *["blur:1" if word == "tired.py:operator" else word for word in line])
    assert main(["edit", *line]) == 130
    assert sorted(p.name for p in Path("out").iterdir()) == two


def test_what_a_picture_has_where_it_is_not_known_says_nothing(
    run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Image.open("0.png") as picture:
        pixels = np.asarray(picture).copy()
    for name, grey in (("black", 0), ("white", 255)):
        pixels[4:] = grey
        Image.fromarray(pixels).save(f"{name}.png")
    for method in ("mmps", "pigdm", "diffpir", "dps"):
        made = []
        for name in ("black", "white"):
            line = ["restore", str(run), f"{name}.png", "--operator", "missing:mask.png"]
            line += ["--method", method, "--steps", "5", "--out", f"{method}-{name}"]
            folder, _ = edited(capsys, *line)
            made.append(np.asarray(Image.open(folder / "00000.png")))
            recipe = pictures.read_recipe(folder / "00000.png")
            assert recipe["mask"] == "0,4,8,4"
        np.testing.assert_array_equal(*made)


def test_memory_that_an_edit_cannot_have_is_one_line(
    run: Path, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def vary(*args: Any, **how: Any) -> Iterator[Any]:
        raise MemoryError
        yield

    before = sorted(run.iterdir())
    monkeypatch.setattr("unraze.edit.editing.vary", vary)
    assert main(["edit", "vary", str(run), "0.png"]) == 1
    assert re.search(r"out of memory .*; give a smaller --batch$", capsys.readouterr().err)
    assert sorted(run.iterdir()) == before


@pytest.mark.parametrize("film", [[], ["--film"]])
def test_what_is_not_a_number_is_one_line(
    run: Path,
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    film: list[str],
) -> None:
    def vary(*args: Any, **how: Any) -> Iterator[Progress]:
        x = torch.full((4, 1, 8, 8), torch.nan)
        yield Progress(range(4), 0.0, x, x, 1, 1, finished=True)

    monkeypatch.setattr("unraze.edit.editing.vary", vary)
    assert main(["edit", "vary", str(run), "0.png", *film]) == 1
    assert "what was drawn is not a number; give more steps" in capsys.readouterr().err


def test_an_inversion_is_kept_and_its_error_said(
    run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, said = edited(capsys, "invert", str(run), "0.png", "--steps", "40", "--film")
    assert folder == run / "edits-00000"
    assert {p.name for p in folder.iterdir()} == {"noise.npy", "again.png", "grid.png", "film.gif"}
    noise = np.load(folder / "noise.npy")
    assert (noise.shape, noise.dtype) == ((1, 8, 8), np.float32)
    off = float(re.findall(r"differs by ([\d.]+)", said)[0])
    with Image.open("0.png") as given, Image.open(folder / "again.png") as again:
        pair = [np.asarray(one).astype(float) / 127.5 for one in (given, again)]
    assert off == pytest.approx(np.sqrt(np.square(pair[0] - pair[1]).mean()), abs=0.01)


def test_the_same_seed_gives_the_same_files(
    run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["inpaint", str(run), "0.png", "--mask", "mask.png", "--steps", "5", "--seed"]
    made = [edited(capsys, *line, seed, "--out", f"out{k}")[0] for k, seed in enumerate("445")]
    one, same, other = ((folder / "00002.png").read_bytes() for folder in made)
    assert one == same != other
    with Image.open("0.png") as given, Image.open(made[0] / "00002.png") as result:
        np.testing.assert_array_equal(np.asarray(result)[:4], np.asarray(given)[:4])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("vary RUN 0.png --strength 1.5", "--strength = 1.5"),
        (
            "vary RUN 0.png --class shoe",
            "--class shoe: there is no such class; this run knows above, below$",
        ),
        ("vary RUN 0.png --class all", "--class all: name one class"),
        ("vary RUN 0.png --guidance 2", "--guidance = 2: name the class"),
        ("vary RUN 0.png --of above", "--of above: say with --class"),
        ("vary RUN 0.png --of above --class below --sampler ddim", "leave --sampler out"),
        ("vary RUN 0.png -n 0", "-n 0: give 1"),
        ("vary RUN 0.png --seed -1", "--seed -1: give at least 0"),
        ("vary RUN 0.png --batch 0", "--batch 0"),
        ("vary RUN 0.png --steps 500", "--steps"),
        ("vary RUN large.png", "large.png: is 1 x 16 x 20 .*needs 1 x 8 x 8.*--fit"),
        ("vary RUN colours.png", "colours.png: is 3 x 8 x 8"),
        ("vary RUN mine.py", "mine.py: is in no image format"),
        ("vary RUN absent.png", "absent.png: cannot be read"),
        ("vary nowhere 0.png", "nowhere"),
        ("inpaint RUN 0.png --mask empty.png", "--mask empty.png: is empty"),
        ("inpaint RUN 0.png --mask narrow.png", "--mask narrow.png: is 6 x 8 pixels"),
        ("inpaint RUN 0.png --mask 0,0,8,8", "--mask 0,0,8,8: covers the whole image"),
        ("inpaint RUN 0.png --mask -1,0,4,4", "--mask -1,0,4,4: a rectangle is LEFT,TOP"),
        ("inpaint RUN 0.png --mask 0,4,8,5", "--mask 0,4,8,5: goes beyond"),
        ("inpaint RUN 0.png --mask 0,4,8", "a rectangle is LEFT,TOP,WIDTH,HEIGHT"),
        ("inpaint RUN 0.png --mask 0,4,0,4", "a rectangle is LEFT,TOP,WIDTH,HEIGHT"),
        ("inpaint RUN 0.png --mask absent.png", "absent.png: cannot be read"),
        ("inpaint RUN 0.png --mask mask.png --repeats 3", "--repeats is for repaint"),
        (
            "restore RUN 0.png --operator downsample:2",
            "0.png: is 1 x 8 x 8 .*downsample:2 needs 1 x 4",
        ),
        (
            "restore RUN 0.png --operator downsample:3",
            "downsample:3: does not take the run's images",
        ),
        ("restore RUN 0.png --operator downsample:x", "give a number above 0"),
        ("restore RUN 0.png --operator blur:-1", "give a number above 0"),
        ("restore RUN 0.png --operator blur:1e308", "give a number above 0"),
        ("restore RUN 0.png --operator grey", "no colours to restore"),
        ("restore RUN 0.png --operator noise", "say with --noise"),
        ("restore RUN 0.png --operator blur:1 --noise -1 --spoil", "--noise = -1: give a number"),
        ("restore RUN 0.png --operator blur:inf", "blur:inf: give a number above 0"),
        ("restore RUN 0.png --operator blur:1e9", "too wide a blur"),
        ("inpaint RUN 0.png --mask " + 300 * "m", "cannot be read .File name too long"),
        ("vary RUN 0.png --of 9 --class below", "--of = 9: this run knows 2 classes"),
        ("vary RUN 0.png --class 9", "--class = 9: this run knows 2 classes"),
        ("interpolate RUN --seeds 1 2 --guidance 3", "--guidance = 3: name the class"),
        ("interpolate RUN 0.png 1.png --steps 1", "--steps = 1: one step up"),
        ("invert RUN 0.png --steps 1", "--steps = 1: one step up"),
        ("restore RUN 0.png --operator sharpen", "sharpen: is not known"),
        ("restore RUN 0.png --operator missing:0.5", "which pixels are missing is not known"),
        ("restore RUN 0.png --operator missing:1.5", "between 0 and 1"),
        ("restore RUN 0.png --operator mine.py:absent", "there is no function of that name"),
        ("restore RUN 0.png --operator mine.py:broken", "mine.py:broken: RuntimeError: oh$"),
        ("restore RUN 0.png --operator mine.py:leaving", "mine.py:leaving: SystemExit: 5$"),
        ("restore RUN 0.png --operator gone.py:f", "gone.py:f: SystemExit in the file: 5$"),
        ("restore RUN 0.png --operator missing:", "--operator missing: say which pixels"),
        (
            "restore RUN 0.png --operator missing:narrow.png",
            "--operator missing:narrow.png: is 6 x 8 pixels",
        ),
        ("restore RUN 0.png --operator mine.py:deaf", "mine.py:deaf: cannot be differentiated"),
        (
            "inpaint RUN 0.png --mask mask.png --method repaint --steps 4 --repeats 4",
            "--repeats = 4: give .* fewer than the 4 calls",
        ),
        ("restore RUN 0.png --operator none.py:f", "there is no file none.py"),
        ("restore RUN 0.png --operator mine.py:scalar", "is no picture"),
        ("interpolate RUN", "give two pictures, or --seeds"),
        ("interpolate RUN 0.png", "give two"),
        ("interpolate RUN 0.png 1.png --seeds 1 2", "give two pictures, or --seeds"),
        ("interpolate RUN 0.png 1.png -n 1", "-n 1: give at least 2"),
        ("interpolate RUN --seeds -1 2", "give 0 or more"),
        ("interpolate RUN --seeds 1 2 --fit crop", "--fit crop: is for pictures"),
        ("interpolate RUN --seeds 1 2 --iterations 5", "--iterations 5: is for pictures"),
        ("invert RUN 0.png --batch 7", "--batch"),
        ("invert RUN 0.png --iterations 0", "--iterations 0"),
    ],
)
def test_what_cannot_be_is_said_in_one_line_and_nothing_is_written(
    words: str, said: str, run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [str(run) if word == "RUN" else word for word in words.split()]
    assert main(["edit", *line, "--out", "out"]) != 0
    error = capsys.readouterr().err
    assert re.search(said, error), error
    assert error.count("\n") == 1
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "words",
    [
        "vary RUN 0.png",
        "inpaint RUN 0.png --mask mask.png",
        "restore RUN 0.png --operator blur:1",
        "interpolate RUN 0.png 1.png",
        "invert RUN 0.png",
    ],
)
def test_a_run_that_always_saw_a_label_asks_for_a_class(
    words: str,
    tiny_config: Config,
    tiny_images: Images,
    here: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = {"train.classes": True, "train.steps": 2, "train.label_dropout": 0.0}
    fit(tiny_images, updated(tiny_config, told), out=Path("told"))
    line = ["edit", *words.replace("RUN", "told").split(), "--steps", "4", "--out", "out"]
    assert main(line) == 2
    assert "error: name a class with --class: this run saw a label" in capsys.readouterr().err
    assert main([*line, "--class", "0", "--class", "1"]) == 2
    assert "error: --class = 0, 1: this run saw a label" in capsys.readouterr().err
    assert main([*line, "--class", "below"]) == 0


@pytest.mark.parametrize("command", ["vary", "inpaint", "restore", "interpolate", "invert"])
def test_help_says_in_how_many_calls_and_how_guided_it_edits(
    command: str,
    run: Path,
    here: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What is said of absent options is what a recipe then has; the run's own are other numbers."""
    assert main(["edit", command, "--help"]) == 0
    told = re.sub(r"[\s│╭╮╰╯─]+", " ", capsys.readouterr().out)  # however wide the terminal is
    calls, scale = (
        re.findall(rf"--{name} \w+ (.*?absent.*?)\. ", told)[0] for name in ("steps", "guidance")
    )
    own = read_config(find(run)).sample
    words = {
        "vary": ["0.png"],
        "inpaint": ["0.png", "--mask", "mask.png"],
        "restore": ["0.png", "--operator", "blur:1"],
        "interpolate": ["0.png", "1.png"],
        "invert": ["0.png"],
    }[command]
    folder, _ = edited(capsys, command, str(run), *words, "--class", "below", "--out", "out")
    settings = pictures.read_recipe(next(folder.glob("[0a]*.png")))["settings"]
    found = settings["steps"], settings["guidance"]
    if command == "vary":
        assert "the run's own if absent" in calls
        assert "the run's own with --class" in scale
        assert found == (own.steps, own.guidance)
    else:
        assert calls.endswith("50 if absent")
        assert scale.endswith("1, which is none, if absent")
        assert found == (50, 1.0) != (own.steps, own.guidance)


def test_a_folder_with_other_things_is_left_alone(
    run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("out").mkdir()
    Path("out/mine.txt").write_text("mine", encoding="utf-8")
    assert main(["edit", "vary", str(run), "0.png", "--out", "out"]) == 2
    assert "holds other things, mine.txt" in capsys.readouterr().err
    assert [p.name for p in Path("out").iterdir()] == ["mine.txt"]


def test_results_of_two_edits_are_not_mixed(
    run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is all written over may be there; what would stay beside the new results may not."""
    line = ["vary", str(run), "0.png", "--steps", "4", "--out", "out"]
    edited(capsys, *line, "-n", "3", "--film")
    for words, said in (
        ([*line, "-n", "2", "--film"], "holds more pictures than are to be drawn now, 00002.png"),
        ([*line, "-n", "3"], "holds other things, film.gif"),
        (["interpolate", *line[1:3], "1.png", *line[3:], "-n", "3", "--film"], "grid.png"),
    ):
        assert main(["edit", *words]) == 2
        assert said in capsys.readouterr().err
    edited(capsys, *line, "-n", "3", "--film", "--seed", "1")


def test_recipes_say_how_it_went(run: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, sampler, sigma in (
        ("inpaint RUN 0.png --mask mask.png --method repaint --repeats 2", "random", "beta_tilde"),
        ("vary RUN 0.png --of above --class below", "random", "beta"),
        ("inpaint RUN 0.png --mask mask.png", "ddim", "beta"),
    ):
        line = [str(run) if word == "RUN" else word for word in words.split()]
        folder, _ = edited(capsys, *line, "--steps", "5")
        settings = pictures.read_recipe(folder / "00000.png")["settings"]
        assert (settings["sampler"], settings["sigma"]) == (sampler, sigma)


def test_a_film_has_the_steps_of_its_results_alone(
    run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["vary", str(run), "0.png", "--film", "-n", "5", "--steps", "6"]
    for words, frames in ((["--batch", "2"], 6), (["--strength", "0", "--batch", "2"], 1)):
        folder, _ = edited(capsys, *line, *words)
        with Image.open(folder / "film.gif") as film:
            assert getattr(film, "n_frames", 1) == frames


def test_the_pictures_of_the_documents_are_made(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", digits_file(tmp_path / "digits.npz"))
    docs = Path(__file__).parents[1] / "docs"
    with as_module(docs / "edit.py") as script:
        script.take(run, tmp_path / "made", (0, 1))
    made = {file.name for file in (tmp_path / "made").iterdir()}
    text = (docs / "edit.md").read_text(encoding="utf-8")
    assert made == set(re.findall(r"figures/(edit-[a-z]+\.png)", text))
