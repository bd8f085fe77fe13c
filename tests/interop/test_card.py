"""The card: what the hub's own library reads in it, and what a Markdown reader shows of it."""

import itertools
import math
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from PIL import Image

from evaluated import digits_file, small_run
from unraze import generate, pictures
from unraze.cli import main, show
from unraze.config import updated
from unraze.data.found import shown
from unraze.errors import InputError
from unraze.evaluate.evaluation import EVALUATION, Against, Evaluation, InSpace, Subject
from unraze.evaluate.figures import Figure
from unraze.evaluate.kept import write_result
from unraze.evaluate.memorisation import Memorisation
from unraze.generate import Model, load
from unraze.interop.card import PICTURE, card, newest_preview, write_card
from unraze.run import find

EVIL = (
    "<script>alert('&')</script>",
    "a | b || c",
    "![x](http://evil.example/x.png) [y](javascript:z)",
    "`code` ``more`` `",
    "# heading",
    "---",
    "1. one",
    "- item",
    "+ item",
    "===",
    "**bold** _em_ ~~gone~~ \\* $x$ www.evil.example http://evil.example @who",
    "two\n---\nlicense: evil\n---\nlines",
    "&lt; &amp; &#35;",
    "{{ 7 * 7 }} {% for %}",
)


class Page(HTMLParser):
    """What a browser shows: tags, links and pictures, the text by the tag that it is in."""

    def __init__(self, markdown: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[tuple[str, str]] = []
        body = re.sub(r"\A---\n.*?\n---\n", "", markdown, flags=re.DOTALL)
        reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])
        self.feed(reader.render(body))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag in ("h1", "h2", "h3", "p", "li", "td", "th", "pre"):
            self.texts.append((tag, ""))

    def handle_data(self, data: str) -> None:
        if self.texts:
            tag, text = self.texts[-1]
            self.texts[-1] = (tag, text + data)

    def of(self, tag: str) -> list[str]:
        return [text.strip() for where, text in self.texts if where == tag]

    @property
    def table(self) -> dict[str, str]:
        """The tables of two columns: the second by the first."""
        cells = self.of("td")
        return dict(itertools.pairwise(cells))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("card")
    return small_run(folder / "my-run", digits_file(folder / "digits.npz"))


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A run of its own, to be written into."""
    shutil.copytree(trained, tmp_path / "my-run")
    return tmp_path / "my-run"


def evaluation(model: Model, **changes: Any) -> Evaluation:
    kid = Figure("KID", 0.0123, 0.0101, 0.0145, 0.0007, "lower", 500, 60, alike=0.0131, halves=30)
    made = Evaluation(
        unraze="1.2",
        made="2026-01-02T03:04:05+00:00",
        subject=Subject("run", "my-run", 500, step=model.step, checkpoint=model.checkpoint),
        against=Against("digits.npz", 60, "f" * 64, 150, (1, 8, 8)),
        spaces=(InSpace("first space", "a" * 64, "features of a kind", (kid,)),),
        memorisation=verdict("no sign of copying"),
        remarks=("Only 60 held-out images.",),
    )
    return replace(made, **changes)


def verdict(word: Any) -> Memorisation:
    return Memorisation(word, f"{word}: in pixels", (), 1 / 3, False, 500, 150, 150, 60, 150)


def keep(run: Path, result: Evaluation, name: str = "step-00000030-00000000.json") -> None:
    write_result(run / "eval" / name, EVALUATION, result)


class TestFrontMatter:
    def test_the_hub_reads_it(self, trained: Path) -> None:
        read = ModelCard(card(trained, licence="CC-BY-4.0", tags=("mine", "ddpm")))
        assert read.data.to_dict()["library_name"] == "unraze"
        assert read.data.pipeline_tag == "unconditional-image-generation"
        assert read.data.license == "cc-by-4.0"
        assert read.data.tags.count("ddpm") == 1
        assert {"unraze", "diffusion", "mine"} <= set(read.data.tags)
        assert read.data.datasets is None
        assert read.text.lstrip().startswith("# my-run")

    def test_what_is_not_given_is_left_out(self, trained: Path) -> None:
        read = ModelCard(card(trained))
        assert read.data.license is None
        assert "no licence is given here" in read.text

    def test_another_library_says_how_itself(self, trained: Path) -> None:
        text = card(trained, library_name="diffusers", usage="```python\npipe = load()\n```\n")
        assert ModelCard(text).data.to_dict()["library_name"] == "diffusers"
        assert Page(text).of("pre") == ["pipe = load()"]

    def test_a_data_set_with_a_name_there(self, run: Path) -> None:
        model = load(run)
        keep(run, evaluation(model))  # which has the counts: the images are not looked for
        known = replace(model, config=updated(model.config, {"data.source": "fashion-mnist"}))
        assert ModelCard(card(known)).data.datasets == ["zalando-datasets/fashion_mnist"]

    @pytest.mark.parametrize("licence", ["", "my own", "mit\nevil: 1", "-"])
    def test_a_licence_is_an_identifier(self, trained: Path, licence: str) -> None:
        with pytest.raises(InputError, match=r"licence = .*as mit"):
            card(trained, licence=licence)


class TestEscaping:
    @pytest.mark.parametrize("evil", EVIL)
    def test_a_title_is_text(self, trained: Path, evil: str) -> None:
        text = card(trained, title=evil, tags=(evil,))
        read, page = ModelCard(text), Page(text)
        assert shown(evil) in read.data.tags
        assert read.data.license is None
        assert page.of("h1") == [shown(evil)]
        assert {"script", "a", "img", "del"}.isdisjoint(page.tags)

    def test_names_of_classes_and_of_features_are_text(self, run: Path) -> None:
        model = replace(load(run), class_names=EVIL, num_classes=len(EVIL))
        found = evaluation(model)
        for i, evil in enumerate(EVIL):
            space = replace(found.spaces[0], name=evil, about=evil)
            keep(run, replace(found, spaces=(space,), remarks=(evil,)), f"step-{i}.json")
            page = Page(card(model))
            assert {"script", "a", "img", "del"}.isdisjoint(page.tags)
            assert shown(evil) in page.of("li")
            assert any(f"In {shown(evil)} ({shown(evil)}; weights" in p for p in page.of("p"))
            assert any(p.endswith(f"{', '.join(map(shown, EVIL))}.") for p in page.of("p"))
            (run / "eval" / f"step-{i}.json").unlink()


class TestWhatItSays:
    def test_data_and_recipe(self, trained: Path) -> None:
        model = load(trained)
        table = Page(card(model)).table
        assert table["Source"] == "digits.npz"
        assert table["Images trained on"] == "150"
        assert table["Held out from training"] == "the source's own test part"
        assert table["Steps"] == "30, of 16 images each"
        assert table["Schedule"] == "angle, T = 50, ᾱ_T = 0"
        weights = sum(p.numel() for p in model.network.parameters())
        assert table["Network"].endswith(f", {weights:,} parameters")
        assert model.checkpoint.startswith(table["Weights (SHA-256)"])
        assert table["Seed"] == "0"
        assert re.fullmatch(r"2\.\d+.*", table["torch"])

    def test_images_that_are_gone_or_others(self, run: Path, tmp_path: Path) -> None:
        model = load(run)
        for source in (tmp_path / "gone", digits_file(tmp_path / "other.npz", test_labels=False)):
            config = updated(model.config, {"data.source": str(source)})
            table = Page(card(replace(model, config=config, data="0" * 64))).table
            assert table["Images trained on"].startswith("not known")

    def test_no_folder_of_this_machine(self, run: Path, tmp_path: Path) -> None:
        text = write_card(run, run).read_text()
        assert str(tmp_path) not in text
        assert str(tmp_path).encode() not in (run / PICTURE).read_bytes()

    def test_its_code_draws(self, run: Path, tmp_path: Path, monkeypatch: Any) -> None:
        shell, python = Page(card(run)).of("pre")
        monkeypatch.chdir(tmp_path)
        (tmp_path / "FOLDER").symlink_to(run)
        exec(python, {})
        with Image.open("picture.png") as picture:
            assert picture.size == (8, 8)
        for line in shell.splitlines():
            assert main(line.partition("#")[0].split()[1:]) == 0
        assert len(list(run.glob("samples-00001/000*.png"))) == 64


class TestEvaluation:
    def test_none(self, trained: Path) -> None:
        page = Page(card(trained))
        assert any("was not evaluated" in p for p in page.of("p"))
        assert any("was not measured" in p for p in page.of("li"))

    def test_figures_with_intervals_and_the_verdict(self, run: Path) -> None:
        keep(run, evaluation(load(run)))
        page = Page(card(run))
        row = page.of("td")
        at = row.index("↓ KID")
        assert row[at : at + 5] == ["↓ KID", "0.0123", "0.0101 … 0.0145", "0.0131", "0.0007"]
        assert "No sign of copying. In pixels" in page.of("p")
        assert "Only 60 held-out images." in page.of("li")
        assert not any("not of the weights" in p for p in page.of("p"))
        assert page.table["Held out from training"] == "60 images"

    def test_the_newest_of_these_weights(self, run: Path) -> None:
        model = load(run)
        keep(run, evaluation(model, made="2026-01-01T00:00:00+00:00", unraze="old"), "step-2.json")
        keep(run, evaluation(model, unraze="new"), "step-1.json")
        later = evaluation(model, made="2027-01-01T00:00:00+00:00", unraze="other")
        others = replace(later, subject=replace(later.subject, checkpoint="b" * 64, step=7))
        keep(run, others, "step-3.json")
        assert any("Unraze new" in p for p in Page(card(run)).of("p"))
        for name in ("step-1.json", "step-2.json"):
            (run / "eval" / name).unlink()
        said = " ".join(Page(card(run)).of("p"))
        assert "not of the weights described above, but of step 7 (bbbbbbbbbbbbbbbb)" in said

    def test_a_model_that_copies_is_called_that(self, run: Path) -> None:
        keep(run, evaluation(load(run), memorisation=verdict("copies")))
        page = Page(card(run))
        assert "Copies. In pixels" in page.of("p")
        assert any(p.startswith("It copies training images") for p in page.of("li"))

    def test_figures_that_do_not_exist(self, run: Path) -> None:
        found = evaluation(load(run))
        kid = replace(found.spaces[0].figures[0], value=math.nan, low=math.nan, high=math.nan)
        keep(run, replace(found, spaces=(replace(found.spaces[0], figures=(kid,)),)))
        row = Page(card(run)).of("td")
        assert row[row.index("↓ KID") + 1 :][:2] == ["–", "–"]

    def test_one_of_an_older_version_does_not_matter_any_more(self, run: Path) -> None:
        keep(run, evaluation(load(run)), "step-2.json")
        (run / "eval" / "step-1.json").write_text('{"made": "2020-01-01T00:00:00+00:00"}')
        assert any("Unraze 1.2" in p for p in Page(card(run)).of("p"))

    def test_a_damaged_one_is_named(self, run: Path) -> None:
        (run / "eval").mkdir()
        (run / "eval" / "step-1.json").write_text("{")
        with pytest.raises(InputError, match=r"step-1\.json: is damaged, or no evaluation"):
            card(run)


class TestWriting:
    def test_beside_a_picture_with_its_recipe(self, run: Path, capsys: Any) -> None:
        assert main(["card", str(run), "--licence", "mit"]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == str(run / "README.md")
        page = Page((run / "README.md").read_text())
        assert ("src", PICTURE) in page.attributes
        recipe = pictures.read_recipe(run / PICTURE)
        assert recipe["kind"] == "grid"
        assert recipe["checkpoint"] == load(run).checkpoint
        assert main(["sample", str(run), "--like", str(run / PICTURE)]) == 0
        [again] = run.parent.rglob("*-again/*.png")
        with Image.open(run / PICTURE) as ours, Image.open(again) as theirs:
            assert ours.tobytes() == theirs.tobytes()

    def test_and_says_how_far_drawing_has_come(
        self, run: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(show, "PLAIN_SECONDS", 0.0)
        assert main(["card", str(run), "--out", str(run / "mine.md")]) == 0
        said = capsys.readouterr().out.splitlines()
        states = generate.plan_of(load(run), generate.settings_of(load(run))).states
        assert said == [*(f"step {k}/{states}" for k in range(1, states + 1)), str(run / "mine.md")]

    def test_or_a_preview_of_the_training(self, run: Path) -> None:
        previews = run / "samples"
        newest = newest_preview(find(run))
        assert newest == previews / "step-00000030.png"
        Image.new("L", (3, 3)).save(previews / "step-100000000.png")
        assert main(["card", str(run), "--preview"]) == 0
        assert (run / PICTURE).read_bytes() == (previews / "step-100000000.png").read_bytes()
        assert any("step 100000000" in p for p in Page((run / "README.md").read_text()).of("p"))
        for file in previews.iterdir():
            file.unlink()
        with pytest.raises(InputError, match="left no preview"):
            newest_preview(find(run))

    def test_again_unless_it_was_edited(self, run: Path, capsys: Any) -> None:
        readme = run / "README.md"
        assert main(["card", str(run)]) == 0
        assert main(["card", str(run), "--licence", "mit"]) == 0
        assert ModelCard(readme.read_text()).data.license == "mit"
        for edited in (readme.read_text().replace("# my-run", "# Mine"), "# Mine\n", ""):
            readme.write_text(edited)
            assert main(["card", str(run)]) == 2
            assert "README.md: is there already" in capsys.readouterr().err
            assert readme.read_text() == edited

    def test_elsewhere(self, run: Path, tmp_path: Path) -> None:
        assert main(["card", str(run), "--out", str(tmp_path / "new" / "mine.md")]) == 0
        assert {p.name for p in (tmp_path / "new").iterdir()} == {"mine.md", "mine.png"}
        assert ("src", "mine.png") in Page((tmp_path / "new" / "mine.md").read_text()).attributes
        assert not (run / "README.md").exists()

    def test_a_picture_of_somebody_s_stays(self, run: Path, capsys: Any) -> None:
        Image.new("L", (3, 3)).save(run / PICTURE)
        before = (run / PICTURE).read_bytes()
        assert main(["card", str(run)]) == 2
        assert "samples.png: is there already, and of no card" in capsys.readouterr().err
        assert (run / PICTURE).read_bytes() == before

    def test_nor_is_one_that_was_drawn_taken_for_the_card_s(self, run: Path, capsys: Any) -> None:
        assert main(["sample", str(run), "-n", "4", "--out", str(run / "mine")]) == 0
        before = (run / "mine" / "grid.png").read_bytes()
        assert main(["card", str(run), "--out", str(run / "mine" / "grid.md")]) == 2
        assert "grid.png: is there already, and of no card" in capsys.readouterr().err
        assert main(["card", str(run), "--out", str(run / "mine" / "card.png")]) == 2
        assert "card.png: a card is Markdown" in capsys.readouterr().err
        assert (run / "mine" / "grid.png").read_bytes() == before
        assert not (run / "mine" / "card.png").exists()

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (["--licence", "my own"], "--licence = 'my own': give its identifier"),
            (["--out", "/dev/null/card.md"], "--out /dev/null/card.md: cannot be written"),
            (["--checkpoint", "7"], "no checkpoint of step 7"),
        ],
    )
    def test_refused(self, run: Path, capsys: Any, options: list[str], says: str) -> None:
        before = sorted(run.rglob("*"))
        assert main(["card", str(run), *options]) == 2
        assert says in capsys.readouterr().err
        assert sorted(run.rglob("*")) == before

    def test_what_is_no_run(self, tmp_path: Path, capsys: Any) -> None:
        assert main(["card", str(tmp_path)]) == 2
        assert "is not a run" in capsys.readouterr().err
