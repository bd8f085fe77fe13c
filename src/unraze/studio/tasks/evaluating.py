"""Measuring a run: the evaluation of `unraze eval`, with its files and its page."""

import shlex
from collections.abc import Generator
from typing import Any

from unraze import generate, untrusted
from unraze.evaluate.evaluation import (
    EVALUATION,
    PARTS,
    Evaluation,
    Subject,
    evaluate_run,
    require_enough,
)
from unraze.evaluate.features import spaces
from unraze.evaluate.figures import Figure
from unraze.evaluate.kept import newest_first, read_result, write_result
from unraze.evaluate.places import places_of_run
from unraze.evaluate.reference import of_run
from unraze.evaluate.report import write_report
from unraze.evaluate.samples import classes_drawn
from unraze.evaluate.stage import Stage
from unraze.run import Run
from unraze.studio.asked import Evaluated
from unraze.studio.held import Held
from unraze.studio.library import finite
from unraze.studio.work import Task, Work

__all__ = ["evaluating", "evaluations_of", "told"]

NEED_A_MEAN = ("levels", "bound", "flow")
"""Parts that a distilled run, which knows no mean of x_0, has not."""


def evaluating(asked: Evaluated, run: Run, held: Held) -> Work:
    """The work of an evaluation; stopped, it goes on where it was when it is asked for again."""

    def work(task: Task) -> Generator[Stage, None, dict[str, Any]]:
        yield Stage("reading network and images", 0, 1)
        untrusted.require_no_links(run.path)
        model = held.model(run)
        settings = generate.settings_of(model)
        with task.aside():
            reference = of_run(model)
        distilled = model.config.distilled is not None
        parts = tuple(p for p in PARTS if not (distilled and p in NEED_A_MEAN))
        require_enough(f"{asked.count} samples", asked.count, reference, parts)
        subject = Subject(
            kind="run",
            name=str(run.path),
            generated=asked.count,
            preset=model.config.preset,
            step=model.step,
            checkpoint=model.checkpoint,
            seed=0,
            trained_seed=model.config.train.seed,
            classes=classes_drawn(model),
            settings=settings.model_dump(mode="json"),
        )
        places = places_of_run(
            run.path / "eval", model, reference, settings=settings, count=asked.count, seed=0
        )
        found = yield from spaces(reference.training, reference.held_out)
        result, samples = yield from evaluate_run(
            model,
            reference,
            found,
            subject=subject,
            settings=settings,
            parts=parts,
            places=places,
        )
        file = places.result(found, f"step-{model.step:08d}")
        write_result(file, EVALUATION, result)
        command = shlex.join(["unraze", "eval", str(run.path), "-n", str(asked.count)])
        report = run.path / "report.html"
        write_report(result, report, samples=samples, reference=reference, command=command)
        return told(file.stem, result)

    return work


def evaluations_of(run: Run) -> list[tuple[str, Evaluation]]:
    """All evaluations of a run by name, the newest first; raises `InputError` for a damaged one."""
    files = newest_first((run.path / "eval").glob("step-*.json"))
    return [(file.stem, read_result(file, EVALUATION)) for file in files]


def told(name: str, evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation as the page shows it."""
    subject, copies = evaluation.subject, evaluation.memorisation
    return {
        "name": name,
        "made": evaluation.made,
        "generated": subject.generated,
        "step": subject.step,
        "checkpoint": subject.checkpoint,
        "seed": subject.seed,
        "settings": subject.settings,
        "spaces": [
            {"name": space.name, "figures": [_figure(figure) for figure in space.figures]}
            for space in evaluation.spaces
        ],
        "memorisation": copies and {"verdict": copies.verdict, "words": copies.words},
        "note": " ".join(evaluation.remarks) or None,
    }


def _figure(figure: Figure) -> dict[str, Any]:
    numbers = ("value", "low", "high", "floor", "alike")
    return {
        "name": figure.name,
        "better": figure.better,
        "halves": figure.halves,
        "note": figure.note,
        **{name: finite(getattr(figure, name)) for name in numbers},
    }
