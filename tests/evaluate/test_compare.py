"""Which differences between evaluations are real, where spaces disagree, what is not comparable."""

from dataclasses import replace

import pytest

from unraze.errors import InputError
from unraze.evaluate.compare import Pair, compared, letter
from unraze.evaluate.evaluation import Against, Evaluation, InSpace, Subject
from unraze.evaluate.figures import Figure
from unraze.evaluate.metrics import difference

NAN = float("nan")


def lower(value: float, half: float = 0.1) -> Figure:
    """A figure of which less is better, with its interval to either side."""
    return Figure("KID", value, value - half, value + half, NAN, "lower", generated=50, real=60)


def higher(value: float, half: float = 0.1) -> Figure:
    return replace(lower(value, half), name="recall", better="higher")


def evaluation(
    name: str, *spaces: tuple[Figure, ...], seed: int = 0, count: int = 50
) -> Evaluation:
    return Evaluation(
        unraze="1",
        made="2026-01-01T00:00:00+00:00",
        subject=Subject(kind="run", name=name, generated=count, step=7, seed=seed),
        against=Against("digits", 60, "real images", 150, (1, 8, 8)),
        spaces=tuple(
            InSpace(f"space {k}", f"hash {k}", "", figures) for k, figures in enumerate(spaces)
        ),
    )


def test_a_difference_is_real_where_its_interval_leaves_out_0() -> None:
    for gap, real in ((0.13, False), (0.15, True), (-0.13, False), (-0.15, True)):
        # √(0.1² + 0.1²) = 0.1414 to either side
        first, second = lower(1.0), lower(1.0 + gap)
        (pair,) = compared([evaluation("a", (first,)), evaluation("b", (second,))]).pairs
        assert pair.difference == difference(first, second)
        better = 0 if gap > 0 else 1
        assert pair.better == (better if real else None)


def test_the_better_one_is_the_lower_or_the_higher_as_the_figure_says() -> None:
    low, high = (lower(1.0), higher(1.0)), (lower(2.0), higher(2.0))
    found = compared([evaluation("a", low), evaluation("b", high)])
    assert [(p.figure, p.better) for p in found.pairs] == [("KID", 0), ("recall", 1)]
    found = compared([evaluation("b", high), evaluation("a", low)])
    assert [(p.figure, p.better) for p in found.pairs] == [("KID", 1), ("recall", 0)]
    assert "A and B: of 2 figures A is really better in 1, B in 1" in found.words[0]


def test_a_figure_that_one_has_not_decides_nothing() -> None:
    none = Figure("KID", NAN, NAN, NAN, NAN, "lower", generated=50, real=60)
    found = compared([evaluation("a", (none,)), evaluation("b", (lower(1.0),))])
    assert found.pairs == (Pair("space 0", "KID", 0, 1, None, None),)
    assert "of 0 figures" in found.words[0]
    assert not any("differences are tested" in remark for remark in found.remarks)


def test_three_are_held_against_each_other_in_pairs() -> None:
    three = [evaluation(name, (lower(value),)) for name, value in (("a", 2), ("b", 1), ("c", 1.1))]
    found = compared(three)
    assert [(p.first, p.second, p.better) for p in found.pairs] == [
        (0, 1, 1),
        (0, 2, 2),
        (1, 2, None),
    ]
    assert [words.partition(":")[0] for words in found.words] == ["A and B", "A and C", "B and C"]


def test_spaces_that_disagree_are_named() -> None:
    a = evaluation("a", (lower(1.0), higher(1.0)), (lower(2.0), higher(1.0)))
    b = evaluation("b", (lower(2.0), higher(1.0)), (lower(1.0), higher(2.0)))
    words = compared([a, b]).words
    assert words[1:] == (
        "The feature spaces disagree on KID: better is A in space 0, B in space 1.",
    )
    # where one of the two cannot tell, there is no disagreement
    c = evaluation("c", (lower(2.0), higher(1.0)), (lower(2.0), higher(1.0)))
    assert len(compared([a, c]).words) == 1
    # nor where both say the same
    d = evaluation("d", (lower(2.0), higher(1.0)), (lower(3.0), higher(1.0)))
    assert [p.better for p in compared([a, d]).pairs] == [0, None, 0, None]
    assert len(compared([a, d]).words) == 1


def test_it_is_said_how_many_would_be_real_by_chance() -> None:
    many = tuple(lower(1.0) for _ in range(40))
    remarks = compared([evaluation("a", many), evaluation("b", many)]).remarks
    assert "40 differences are tested, each at 5 %: about 2 would" in remarks[0]


def test_the_same_noise_and_the_seeds_of_training_are_spoken_of() -> None:
    a, b = evaluation("a", (lower(1.0),)), evaluation("b", (lower(1.0),))
    assert any("begin with the same noise" in said for said in compared([a, b]).remarks)
    b = evaluation("b", (lower(1.0),), seed=1)
    remarks = compared([a, b]).remarks
    assert not any("begin with the same noise" in said for said in remarks)
    assert "other seeds of the training must show" in remarks[-1]


def test_letters() -> None:
    assert [letter(k) for k in (0, 1, 25, 26, 27, 52)] == ["A", "B", "Z", "A2", "B2", "A3"]


GOOD = evaluation("a", (lower(1.0),))


@pytest.mark.parametrize(
    ("others", "says"),
    [
        ([], "give two evaluated runs or more"),
        ([replace(GOOD, spaces=())], r"a: was evaluated without figures; .*without --skip figures"),
        (
            [evaluation("b", (lower(1.0),), count=40)],
            r"a and b: 50 and 40 samples, .*with the same -n",
        ),
        (
            [replace(GOOD, against=replace(GOOD.against, fingerprint="others", real=9))],
            r"different real images \(60 of digits, .*9 of digits, .*eval FOLDER --against IMAGES",
        ),
        (
            [replace(GOOD, spaces=(replace(GOOD.spaces[0], hash="another"),))],
            r"different feature spaces \(space 0 hash 0…; space 0 another…\).*same --features",
        ),
        ([GOOD, evaluation("c", (lower(1.0),), count=40)], r"a and c: 50 and 40 samples"),
    ],
)
def test_what_is_not_comparable_is_refused(others: list[Evaluation], says: str) -> None:
    with pytest.raises(InputError, match=says):
        compared([GOOD, *others])


def test_runs_that_were_drawn_differently_are_said_to_be() -> None:
    a, b = evaluation("a", (lower(1.0),)), evaluation("b", (lower(2.0),))
    steps = [
        replace(e, subject=replace(e.subject, settings={"sampler": "ddim", "steps": n}, raw=raw))
        for e, n, raw in ((a, 10, False), (b, 25, True))
    ]
    (said,) = [line for line in compared(steps).remarks if "drawn differently" in line]
    assert said.endswith("weights averaged (A), raw (B); steps 10 (A), 25 (B).")
    assert "as they were sampled" in compared(steps).remarks[-1]
    assert "drawn differently" not in "".join(compared([a, b]).remarks)
    assert "between these trained models;" in compared([a, b]).remarks[-1]


def test_a_density_above_its_floor_is_not_better_for_being_higher() -> None:
    def density(value: float) -> Figure:
        return replace(higher(value), name="density", alike=value, floor=1.0)

    def better(a: float, b: float) -> int | None:
        (pair,) = compared([evaluation("a", (density(a),)), evaluation("b", (density(b),))]).pairs
        assert pair.difference is not None
        assert pair.difference.real
        return pair.better

    assert better(0.5, 0.9) == 1
    assert better(1.4, 1.0) is None
    assert better(0.5, 1.4) is None
