"""The page: whole in one file, right in what it says, whatever names and numbers are in it."""

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluated import Small
from unraze.evaluate.evaluation import (
    Against,
    Evaluation,
    InSpace,
    OfClass,
    Subject,
    evaluate_run,
)
from unraze.evaluate.figures import Figure
from unraze.evaluate.places import places_of_run
from unraze.evaluate.reference import Reference, of_run
from unraze.evaluate.report import noted, number, percent, scale, summary, write_report
from unraze.evaluate.stage import finish
from unraze.generate import load

NAN = float("nan")
EVIL = "<script>alert('&\"')</script>"
VOID = {"meta", "img", "br", "line", "circle"}


class Page(HTMLParser):
    """Tags, attributes and text; raises where a tag is not closed in its place."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.text += " " if tag == "td" else ""

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def figure(name: str = "KID", value: float = 0.25, **changes: Any) -> Figure:
    made = Figure(name, value, value - 0.05, value + 0.05, 0.01, "lower", generated=50, real=60)
    return replace(made, **changes)


def bare(**changes: Any) -> Evaluation:
    made = Evaluation(
        unraze="1.2",
        made="2026-01-02T03:04:05+00:00",
        subject=Subject(kind="images", name="pictures", generated=50),
        against=Against("digits", 60, "f" * 64, 150, (1, 8, 8)),
    )
    return replace(made, **changes)


@pytest.fixture(scope="module")
def whole(made_once: Small, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An evaluation of a conditional run with all its parts, its samples and its reference."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNRAZE_CACHE", str(made_once.cache))
        model = load(made_once.classy)
        reference = of_run(model)
        settings, count = model.config.sample, 30
        places = places_of_run(
            tmp_path_factory.mktemp("whole"),
            model,
            reference,
            settings=settings,
            count=count,
            seed=0,
        )
        subject = Subject(
            kind="run",
            name="runs/00000",
            generated=count,
            step=30,
            checkpoint=model.checkpoint,
            seed=0,
            classes="as held out",
            settings=settings.model_dump(mode="json"),
        )
        evaluation, samples = finish(
            evaluate_run(
                model,
                reference,
                made_once.spaces,
                subject=subject,
                settings=settings,
                parts=("figures", "memorisation", "levels", "bound", "flow"),
                places=places,
            )
        )
        return evaluation, samples, reference


@pytest.fixture
def reference(whole: Any) -> Reference:
    found: Reference = whole[2]
    return found


def written(
    evaluation: Evaluation,
    reference: Reference,
    folder: Path,
    samples: np.ndarray | None = None,
    command: str = "",
) -> str:
    file = folder / "report.html"
    write_report(evaluation, file, samples=samples, reference=reference, command=command)
    return file.read_text(encoding="utf-8")


# one file that needs no other


def test_the_page_needs_nothing_besides(whole: Any, tmp_path: Path) -> None:
    evaluation, samples, reference = whole
    text = written(evaluation, reference, tmp_path, samples, command="unraze eval runs/00000")
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "embed", "base", "a"} & set(page.tags)
    sources = [value for name, value in page.attributes if name in ("src", "href", "srcset")]
    assert len(sources) == 5  # samples, reals, pairs, terms of the bound, levels
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"base64,[^\"]*", "", text))
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_all_of_an_evaluation_is_on_its_page(whole: Any, tmp_path: Path) -> None:
    evaluation, samples, reference = whole
    command = "unraze eval 'runs/00000' -n 30"
    text = " ".join(Page(written(evaluation, reference, tmp_path, samples, command)).text.split())
    for space in evaluation.spaces:
        for f in space.figures:
            if math.isfinite(f.value):
                assert f"{f.name} {number(f.value)} {number(f.low)} … {number(f.high)}" in text
            else:
                assert f"{f.name} – –" in text
        for c in space.classes:
            assert f"{percent(c.agreement)} {percent(c.agreement_real)}" in text
        assert space.hash[:16] in text
    for bound in (*evaluation.bounds, evaluation.flow):
        assert number(bound.bits) in text
    assert evaluation.levels.words in text
    assert evaluation.memorisation.words.partition(": ")[2] in text
    for said in (*evaluation.remarks, command, "sampler = ddim", "seed 0, classes as held out"):
        assert said in text
    assert "nan" not in text.lower()


@pytest.mark.parametrize("part", ["spaces", "memorisation", "levels", "bounds", "flow"])
def test_the_page_stands_without_a_part(whole: Any, tmp_path: Path, part: str) -> None:
    evaluation, samples, reference = whole
    quick = replace(evaluation, levels=None, bounds=())  # their plots are in `alone`
    without = replace(quick, **{part: () if part in ("spaces", "bounds") else None})
    Page(written(without, reference, tmp_path, samples))
    alone = bare(**{part: getattr(evaluation, part)})
    Page(written(alone, reference, tmp_path))


def test_the_page_stands_without_anything(reference: Reference, tmp_path: Path) -> None:
    page = Page(written(bare(), reference, tmp_path))
    assert "img" not in page.tags
    assert "2026-01-02 03:04:05 UTC" in page.text


# names and numbers


def test_nothing_that_is_named_becomes_a_tag(reference: Reference, tmp_path: Path) -> None:
    one = OfClass(EVIL, None, NAN, NAN, 3, 4)
    space = InSpace(EVIL, EVIL, EVIL, (figure(EVIL, note=EVIL),), (one,))
    evil = bare(
        unraze=EVIL,
        subject=Subject("images", EVIL, 50, classes=EVIL, settings={EVIL: EVIL}),
        against=Against(EVIL, 60, EVIL, 150, (1, 8, 8)),
        spaces=(space,),
        seconds={EVIL: 1.0},
        remarks=(EVIL,),
    )
    text = written(evil, reference, tmp_path, command=EVIL)
    page = Page(text)
    assert "script" not in page.tags
    assert page.text.count(EVIL) >= 9
    assert not any("alert" in name for name, _ in page.attributes)


def test_what_is_no_number_is_a_dash(reference: Reference, tmp_path: Path) -> None:
    none = figure(value=NAN, low=NAN, high=NAN, floor=NAN)
    classes = (OfClass("0", None, NAN, NAN, 3, 4),)
    evaluation = bare(spaces=(InSpace("space", "hash", "", (none,), classes),))
    page = Page(written(evaluation, reference, tmp_path))
    assert "nan" not in page.text.lower()
    text = " ".join(page.text.split())
    assert "↓ KID – –" in text
    assert "0 – too few – – 3 4" in text


@pytest.mark.parametrize(
    ("value", "digits", "written_as"),
    [
        (0.0, 4, "0"),
        (1234.5678, 4, "1,235"),
        (0.12345678, 4, "0.1235"),
        (0.12345678, 3, "0.123"),
        (-0.5, 4, "-0.5"),
        (0.00001234, 4, "1.2e-05"),
        (1e12, 4, "1e+12"),
        (NAN, 4, "–"),
        (math.inf, 4, "–"),
        (None, 4, "–"),
    ],
)
def test_numbers(value: float | None, digits: int, written_as: str) -> None:
    assert number(value, digits) == written_as


def test_percents() -> None:
    assert [percent(v) for v in (0.0, 0.1234, 1.0, NAN, None)] == [
        "0.0 %",
        "12.3 %",
        "100.0 %",
        "–",
        "–",
    ]


def test_a_figure_stands_on_its_line_where_it_belongs() -> None:
    drawn = str(scale(figure(value=0.5, low=0.25, high=1.0, floor=0.0)))
    # from 0 at 6 to 1 at 170
    assert float(re.search(r'cx="([\d.]+)"', drawn)[1]) == pytest.approx(88)  # type: ignore[index]
    assert 'x1="47.0" x2="170.0"' in drawn
    assert 'x1="6.0" x2="6.0"' in drawn
    assert str(scale(figure(value=NAN, low=NAN, high=NAN, floor=NAN))) == ""
    for values in ({"value": 0.0, "low": 0.0, "high": 0.0, "floor": 0.0}, {"floor": NAN}):
        places = re.findall(r'\b(?:cx|x1|x2)="([-\d.]+)"', str(scale(figure(**values))))
        assert all(0 <= float(place) <= 176 for place in places)


def test_the_summary_says_what_the_numbers_say() -> None:
    apart, alike = figure(value=0.25), figure(value=0.01)
    spaces = tuple(InSpace(n, n, "", (f,)) for n, f in (("one", apart), ("two", alike)))
    assert summary(bare(spaces=spaces)) == [
        "KID × 1000 is 250 (200 … 300): samples can be told from real images (one).",
        "KID × 1000 is 10 (-40 … 60): so few images do not tell samples from real ones (two).",
    ]


def test_the_summary_counts_the_classes_by_their_images() -> None:
    classes = (OfClass("0", None, 1.0, 0.5, 30, 10), OfClass("1", None, 0.5, 1.0, 10, 30))
    said = summary(bare(spaces=(InSpace("one", "one", "", (), classes),)))
    # (1 · 30 + 0.5 · 10)/40 and (0.5 · 10 + 1 · 30)/40
    assert said == [
        "87.5 % of samples are taken for the class asked for, 87.5 % of real images for theirs "
        "(one)."
    ]
    nothing = (OfClass("0", None, NAN, NAN, 30, 10),)
    assert summary(bare(spaces=(InSpace("one", "one", "", (), nothing),))) == []


def test_notes_are_said_once_with_the_figures_they_are_of() -> None:
    refused = "not measured: 5 images are too few; take more"
    figures = [
        figure("a", note="short; long"),
        figure("b", note="long"),
        figure("c"),
        figure("d", note=refused),
    ]
    assert noted(figures) == ["a: short", "a, b: long", f"d: {refused}"]
