"""The documents: their snippets run, their links lead somewhere, the functions they name exist."""

import importlib
import re
import shlex
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluated import short_flow
from unraze.cli import main
from unraze.evaluate import feature_training

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers import UNet2DModel

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("docs/**/*.md"), *ROOT.glob("README.md")])
IDS = [str(page.relative_to(ROOT)) for page in PAGES]

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^()\s]+)\)|<(?:img|a)\s[^>]*(?:src|href)=\"([^\"]+)\"")
NAME = re.compile(r"`([A-Za-z_][\w.]*)`")


def snippets(page: Path) -> list[str]:
    """The page's Python blocks, each behind as many empty lines as are before it in the page."""
    text = page.read_text(encoding="utf-8")
    found = [m for m in FENCE.finditer(text) if m[1] == "python"]
    return ["\n" * text[: m.start(2)].count("\n") + m[2] for m in found]


def links(page: Path) -> list[tuple[str, str]]:
    """(text, target) of every link and picture outside of the fenced blocks."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    return [(m[2] or "", m[3] or m[4]) for m in LINK.finditer(text)]


def headings(page: Path) -> set[str]:
    """The anchors that GitHub gives to the page's headings."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+\s+(.*?)\s*$", text, re.MULTILINE)
    return {_anchor(title) for title in titles}


def _anchor(title: str) -> str:
    kept = (c for c in title.lower() if c in "-_ " or unicodedata.category(c)[0] in "LNM")
    return "".join(kept).replace(" ", "-")


def _is_local(target: str) -> bool:
    return not re.match(r"[a-z]+:", target)


def test_there_are_documents() -> None:
    assert ROOT / "docs" / "annotated.md" in PAGES


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_the_snippets_of_a_page_run_in_order_in_one_namespace(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    dtype, state = torch.get_default_dtype(), torch.get_rng_state()
    namespace: dict[str, object] = {"__name__": page.stem}
    try:
        for code in snippets(page):
            exec(compile(code, str(page), "exec"), namespace)
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(dtype)
        torch.set_rng_state(state)


SMALL = ["--steps", "4", "--dtype", "float32", "--threads", "1", "--set", "sample.steps=4"]
SMALL += ["--set", "network.widths=[8,8]", "--set", "network.groups=4", "--set", "train.batch=8"]


def commands(page: Path) -> list[list[str]]:
    """The `unraze` commands in the page's shell blocks, without their comments."""
    blocks = [m[2] for m in FENCE.finditer(page.read_text(encoding="utf-8")) if m[1] == "sh"]
    lines = [shlex.split(line, comments=True) for line in "\n".join(blocks).splitlines()]
    return [line[1:] for line in lines if line[:1] == ["unraze"]]


def test_the_commands_of_the_readme_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As they stand, on less: digits for Fashion-MNIST, made pictures for photos, four steps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(feature_training, "FEWEST_STEPS", 5)
    monkeypatch.setattr(feature_training, "EPOCHS", 1)
    short_flow(monkeypatch)
    generator = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(12):
        pixels = generator.integers(0, 256, (40, 50, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    # it does not end; tests/studio/test_server.py starts it
    monkeypatch.setattr("unraze.studio.server.serve", lambda *args, **how: None)
    tiny = {"block_out_channels": (8, 16), "norm_num_groups": 4, "sample_size": 8}
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    UNet2DModel(**tiny, **blocks, attention_head_dim=8).save_pretrained("FOLDER")
    found = commands(ROOT / "README.md")
    assert {command[0] for command in found} >= {"train", "sample"}
    for command in found:
        line = [word.replace("fashion-mnist", "digits") for word in command]
        if "--minutes" in line:
            at = line.index("--minutes")
            del line[at : at + 2]
        less = {"train": SMALL, "eval": ["-n", "50"], "tune": ["-n", "50", "--calls", "2"]}.get(
            line[0], []
        )
        assert main([*line, *less]) == 0, line
    run = Path("runs/00000-digits")
    names = [run.name, f"{run.name}-distilled", "00001-photos", "00002-imported-folder"]
    assert sorted(p.name for p in Path("runs").iterdir()) == names
    assert len(list(run.glob("samples-*/000*.png"))) == 64
    assert len(list(run.glob("samples-*/film.gif"))) == 1
    assert "<h2>Memorisation</h2>" in (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_local_link_and_picture_of_a_page_exists(page: Path) -> None:
    dead = []
    for text, target in links(page):
        if not _is_local(target):
            continue
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        if not there.exists() or (anchor and anchor not in headings(there)):
            dead.append(f"[{text}]({target})")
    assert not dead, f"{page.relative_to(ROOT)}: {', '.join(dead)}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_name_linked_to_a_source_file_is_found_in_that_module(page: Path) -> None:
    missing = []
    for text, target in links(page):
        if not (_is_local(target) and target.endswith(".py")):
            continue
        file = (page.parent / target).resolve()
        named = NAME.fullmatch(text)
        if named is None or named[1] == file.name or ROOT / "src" not in file.parents:
            continue
        parts = file.relative_to(ROOT / "src").with_suffix("").parts
        value: object = importlib.import_module(".".join(parts).removesuffix(".__init__"))
        for step in named[1].split("."):
            value = getattr(value, step, None)
        if value is None:
            missing.append(f"{named[1]} in {target}")
    assert not missing, f"{page.relative_to(ROOT)}: {', '.join(missing)}"


def test_the_derivation_links_every_function_of_the_forward_process_and_the_samplers() -> None:
    """A formula stands beside the function that is it: none of these may be left out."""
    named = {text.strip("`") for text, _ in links(ROOT / "docs" / "annotated.md")}
    samplers = ("ancestral", "ddim", "times", "heun", "dpmpp", "unipc", "ipndm", "deis", "adams")
    samplers += ("gits",)
    jumps = ("consistency", "samplers.consistency")
    for module in (
        "process",
        "samplers.restart",
        *jumps,
        *(f"samplers.{name}" for name in samplers),
    ):
        public = importlib.import_module(f"unraze.{module}").__all__
        functions = {name for name in public if name[0].islower()}
        assert functions - named <= {
            "destroy_at",
            "like",
            "check_steps",
            "heun_step",
            "restart_ends",
            "below",
            "bounded",
            "drawn",
        }
    assert {"four_variable", "reduced", "weighted", "predict", "guided"} <= named


def test_formulas_survive_markdown() -> None:
    """Markdown may take `}_` in a formula within a line for emphasis, and drop escapes."""
    for page in PAGES:
        prose = FENCE.sub("", page.read_text(encoding="utf-8"))
        prose = re.sub(r"`[^`]*`", "", prose)
        assert prose.count("$") % 2 == 0, page
        for formula in re.findall(r"\$([^$]+)\$", prose):
            assert not re.search(r"\}_|\\[,;:!{}|]|[<>*]", formula), f"{page.name}: ${formula}$"
