"""`unraze tune`: the best samplers of few network calls for a run, searched and kept."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from unraze.cli.app import (
    INTERRUPTED,
    MAKE,
    SAMPLING,
    Checkpoint,
    Device,
    Threads,
    app,
    told_as_options,
)
from unraze.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from unraze.config import SampleConfig
    from unraze.evaluate.figures import Figure
    from unraze.generate import Model, Tuning

__all__ = ["tune"]

FEWEST_CALLS, MOST_CALLS = 2, 100


@app.command(
    group=MAKE,
    sort_key=4,
    usage="Usage: unraze tune RUN [OPTIONS]",
    help_epilogue=(
        "Examples:\n\n"
        "  unraze tune runs/00000-fashion-mnist\n"
        "  unraze tune RUN --calls 5 --calls 10\n"
        "  unraze sample RUN --steps 10"
    ),
)
def tune(
    run: Annotated[Path, Parameter(help="The run's folder.")],
    /,
    *,
    calls: Annotated[
        tuple[int, ...],
        Parameter(
            group=SAMPLING,
            negative="",
            show_default=False,
            help="Network calls to search for, 2 to 100, one number each time; 4 6 8 10 15 20 if "
            "absent.",
        ),
    ] = (),
    n: Annotated[
        int,
        Parameter(
            name=["-n", "--count"], group=SAMPLING, help="Samples for each score, at least 50."
        ),
    ] = 500,
    checkpoint: Checkpoint = None,
    device: Device = None,
    threads: Threads = None,
) -> int:
    """Search the steps, the sampler and the guidance that give the best pictures in few calls.

    Each candidate draws the same noise and is judged by its Fréchet distance to training images
    (KID where there are few); the winners are then held against held-out images, with new noise.
    What is found is kept beside the checkpoint, with what was found for other numbers of calls, and
    `unraze sample` and `unraze eval` take it from then on, unless another way is asked for: a
    sampler, a spacing, their options. Stopped, the same command goes on where it was.
    """
    from rich.console import Console

    from unraze import generate
    from unraze.cli.drawing import MOST_PICTURES, require_place, set_threads
    from unraze.cli.show import clock, follow_reading, follow_stages
    from unraze.evaluate import tuning
    from unraze.evaluate.features import first_space
    from unraze.evaluate.forecast import call_time
    from unraze.evaluate.reference import of_run
    from unraze.hardware import require_kept
    from unraze.run import find, is_busy
    from unraze.untrusted import require_no_links

    for number in calls:
        if not FEWEST_CALLS <= number <= MOST_CALLS:
            raise InputError(f"--calls {number}: give {FEWEST_CALLS} to {MOST_CALLS}")
    if not 1 <= n <= MOST_PICTURES:
        raise InputError(f"-n {n}: give 1 to {MOST_PICTURES:,}")
    with told_as_options({"train.threads": "--threads", "device": "--device"}):
        set_threads(threads)
        model = generate.load(run, step=checkpoint, device=device or "cpu", tuned=False)
    require_kept(n, model.shape, f"-n {n}")
    if model.config.distilled is not None:
        raise InputError(
            f"{run}: is distilled and jumps as far as it was taught to, so there is nothing to "
            f"search; tune the run that it was distilled from: {model.config.distilled.run}"
        )
    most = model.schedule.steps
    if calls and max(calls) > most:
        raise InputError(f"--calls {max(calls)}: the run's schedule has {most}")
    wanted = sorted(set(calls or (n for n in tuning.CALLS if n <= most)))
    if not wanted:
        raise InputError(f"{run}: its schedule has {most} steps; say how many calls, --calls")
    if is_busy(find(run)):
        raise InputError(
            f"{run}: is being trained, and what is found is kept with its checkpoint, which goes "
            "when newer ones come; wait for its end"
        )
    require_no_links(run)
    require_place(run / "tune", str(run))
    console = Console(stderr=True)
    reference = of_run(model, progress=follow_reading(console))
    tuning.require_enough(reference, n)  # training the features takes longest
    try:
        space = follow_stages(first_space(reference.training, reference.held_out), console)
        search = tuning.search(model, reference, space, count=n, folder=run / "tune")
        made = tuning.calls_to_make(model, wanted, n)
        seconds = made * call_time(model, model.config.sample.dtype)
        print(f"about {clock(seconds)}, less what is kept from before", flush=True)
        found, own, winners = follow_stages(tuning.tuned(search, wanted), console)
    except KeyboardInterrupt:
        again = shlex.join(["unraze", *sys.argv[1:]])
        print(f"unraze: interrupted; what is done is kept, go on with: {again}", file=sys.stderr)
        return INTERRUPTED
    print(f"{own.name} against held-out images, with noise that only the default was chosen by")
    found, others = _with_others(model, found)
    of_own = generate.calls_of(model, model.config.sample)
    print(_line(of_own, model.config.sample, own) + "   the run's own")
    for number, one in winners.items():
        mark = "   the default from now on" if number == found.default else ""
        print(_line(number, one.settings, one.found) + mark)
    if others:
        stays = f"; the default stays {found.default}" if found.default in others else ""
        print(f"kept from before: {', '.join(map(str, others))} calls{stays}")
    print(generate.keep_tuning(model, found))
    return 0


def _with_others(model: Model, found: Tuning) -> tuple[Tuning, list[int]]:
    """What was found, with what was kept before of other numbers of calls; which these are.

    Nothing holds the figures of then and now against each other, so a default of then stays.
    """
    from unraze import generate

    try:
        before = generate.kept_tuning(model)
    except CheckpointError as error:
        print(f"{error}: what is found takes its place")
        before = None
    if before is None:
        return found, []
    others = sorted(before.settings.keys() - found.settings.keys())
    both = dict(sorted({**before.settings, **found.settings}.items()))
    default = before.default if before.default in others else found.default
    return found.model_copy(update={"settings": both, "default": default}), others


def _line(calls: int, settings: SampleConfig, figure: Figure) -> str:
    order = "" if settings.order is None else f" {settings.order}"
    spacing = settings.spacing if isinstance(settings.spacing, str) else "steps searched"
    what = f"{settings.sampler}{order}, {spacing}"
    if settings.guidance != 1:
        low, high = settings.guidance_interval
        what += f", guidance {settings.guidance:g} in {low:g} … {high:g}"
    return (
        f"{calls:>5} calls  {what:<44} {figure.value:9.4f}  ({figure.low:.4f} … {figure.high:.4f})"
    )
