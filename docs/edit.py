"""The pictures of docs/edit.md, made by the commands that stand beside them.

    python docs/edit.py RUN [--out docs/figures] [--images 0,1]

RUN is a run of `unraze train fashion-mnist`; the images are two that it holds out, by number.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from unraze import generate, pictures
from unraze.cli import main as unraze
from unraze.data import load

COMMANDS = {
    "vary": "vary RUN one.png -n 7 --strength 0.6",
    "inpaint": "inpaint RUN one.png -n 6 --mask 0,14,28,14",
    "enlarge": "restore RUN one.png -n 6 --operator downsample:4 --spoil",
    "sharpen": "restore RUN one.png -n 6 --operator blur:2 --noise 0.02 --spoil",
    "clean": "restore RUN one.png -n 6 --operator noise --noise 0.5 --spoil",
    "interpolate": "interpolate RUN one.png two.png",
    "invert": "invert RUN one.png",
}
"""The words of `unraze edit` for each picture."""


def take(run: Path, out: Path, numbers: tuple[int, int]) -> None:
    """Makes them all; raises `SystemExit` where a command fails."""
    model = generate.load(run)
    held_out = load(model.config.data, split="held-out")
    height, width = model.shape[1:]
    half = f"0,{height // 2},{width},{height - height // 2}"
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for name, number in zip(("one", "two"), numbers, strict=True):
            pixels = held_out.pixels[number].transpose(1, 2, 0)[None]
            pictures.write_png(pictures.to_pil(pixels)[0], place / f"{name}.png", {})
        for name, words in COMMANDS.items():
            there = {"RUN": str(run), "0,14,28,14": half}
            there |= {f"{k}.png": str(place / f"{k}.png") for k in ("one", "two")}
            line = [there.get(word, word) for word in words.split()]
            if unraze(["edit", *line, "--out", str(place / name)]) != 0:
                raise SystemExit(f"unraze edit {words}: failed")
            shown = "strip.png" if name == "interpolate" else "grid.png"
            shutil.copyfile(place / name / shown, out / f"edit-{name}.png")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "figures")
    parser.add_argument("--images", default="0,1")
    options = parser.parse_args(argv)
    first, second = (int(number) for number in options.images.split(","))
    take(options.run, options.out, (first, second))


if __name__ == "__main__":
    main(sys.argv[1:])
