"""`unraze sample`: pictures from a run, and the same pictures again from their recipe."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, overload

from cyclopts import Parameter

from unraze.cli.app import (
    MACHINE,
    MAKE,
    OUTPUT,
    SAMPLING,
    Checkpoint,
    Device,
    Guidance,
    Raw,
    Sampler,
    Spacing,
    Steps,
    Threads,
    app,
    option_of,
    told_as_options,
)
from unraze.environment import are_several
from unraze.errors import InputError

if TYPE_CHECKING:
    from unraze.config import SampleConfig
    from unraze.generate import Model
    from unraze.ranks import Ranks

__all__ = ["class_named", "sample"]


@app.command(
    group=MAKE,
    sort_key=3,
    usage="Usage: unraze sample RUN [OPTIONS]",
    help_epilogue=(
        "Examples:\n\n"
        "  unraze sample RUN -n 64 --film\n"
        "  unraze sample RUN -n 64 --greedy\n"
        "  unraze sample RUN --sigma beta --steps 1000\n"
        "  unraze sample RUN --sampler adams --spacing angle --steps 10\n"
        "  unraze sample RUN --class 5 --guidance 2\n"
        "  unraze sample RUN -n 10000 --npy samples.npy --engine auto\n"
        "  unraze sample --like RUN/samples-00000/00003.png"
    ),
)
def sample(
    run: Annotated[
        Path | None, Parameter(help="The run's folder; with --like, the recipe's if absent.")
    ] = None,
    /,
    *,
    n: Annotated[
        int | None,
        Parameter(name=["-n", "--count"], group=SAMPLING, help="How many; 16 if absent."),
    ] = None,
    seed: Annotated[
        int | None,
        Parameter(group=SAMPLING, help="The same seed gives the same pictures; 0 if absent."),
    ] = None,
    steps: Steps = None,
    sampler: Sampler = None,
    spacing: Spacing = None,
    greedy: Annotated[
        bool,
        Parameter(
            group=SAMPLING,
            negative="",
            show_default=False,
            help="x_{t-1} = μ(x_t), x̂₀ clipped as in the run; with --clip none as in the text.",
        ),
    ] = False,
    sigma: Annotated[
        Literal["beta", "beta_tilde", "learned"] | None,
        Parameter(
            group=SAMPLING,
            help="σ_t of random sampling, which it implies; the run's own if absent.",
        ),
    ] = None,
    sigma_share: Annotated[
        float | None,
        Parameter(
            group=SAMPLING,
            help="Share of σ_t that random sampling adds, 0 (greedy) to 1; if absent the run's "
            "own, or, of another sampler than the run's, all of it.",
        ),
    ] = None,
    eta: Annotated[
        float | None,
        Parameter(
            group=SAMPLING,
            help="Share of new noise, 0 to 1, of ddim and the sde samplers; if absent the run's "
            "own, or, of another sampler than the run's, 0 of ddim, 1 of the sde samplers.",
        ),
    ] = None,
    order: Annotated[
        int | None,
        Parameter(
            group=SAMPLING,
            help="Of unipc, adams (1 to 3), ipndm, deis (1 to 4), restart (1, 2); if absent the "
            "run's own, or of another sampler than the run's the highest.",
        ),
    ] = None,
    restart_interval: Annotated[
        tuple[float, float] | None,
        Parameter(
            group=SAMPLING,
            negative="",
            help="Restart: the part of t/T that it goes through again; the run's own if absent, or "
            "0.05 0.2.",
        ),
    ] = None,
    restart_repeats: Annotated[
        int | None,
        Parameter(group=SAMPLING, help="Restart: how often; 2 if the run says nothing."),
    ] = None,
    final_noise: Annotated[
        bool,
        Parameter(
            group=SAMPLING,
            negative="",
            show_default=False,
            help="Random: noise at t = 1 too, as in the text.",
        ),
    ] = False,
    clip: Annotated[
        Literal["none", "clip", "x0-only", "dynamic"] | None,
        Parameter(
            group=SAMPLING, help="What is done with x̂₀ outside [-1, 1]; the run's own if absent."
        ),
    ] = None,
    class_: Annotated[
        str | None,
        Parameter(
            name="--class",
            group=SAMPLING,
            help="A class by name or number, a cluster by number, all in turn, or none. If absent "
            "all classes in turn, or clusters as often as in the training images.",
        ),
    ] = None,
    guidance: Guidance = None,
    guidance_interval: Annotated[
        tuple[float, float] | None,
        Parameter(
            group=SAMPLING,
            negative="",
            help="Part of the time t/T in which it acts, as 0.1 0.8; the run's own if absent.",
        ),
    ] = None,
    batch: Annotated[
        int | None, Parameter(group=SAMPLING, help="Pictures computed at once; 64 if absent.")
    ] = None,
    raw: Raw = False,
    checkpoint: Checkpoint = None,
    device: Device = None,
    threads: Threads = None,
    engine: Annotated[
        Literal["auto", "torch", "onnx", "openvino"] | None,
        Parameter(
            group=MACHINE,
            help="What computes the network, each held against torch first. auto: the fastest that "
            "is installed, measured once for a run, machine and batch; torch if absent, whose "
            "pictures depend on least.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        Parameter(group=OUTPUT, help="Folder for the pictures; RUN/samples-00000, … if absent."),
    ] = None,
    npy: Annotated[
        Path | None,
        Parameter(
            group=OUTPUT,
            help="Write a uint8 array (n, height, width, channels); no pictures without --out or "
            "--film.",
        ),
    ] = None,
    film: Annotated[
        bool,
        Parameter(
            group=OUTPUT,
            negative="",
            show_default=False,
            help="Also film.gif, from noise to pictures.",
        ),
    ] = False,
    like: Annotated[
        Path | None,
        Parameter(
            group=OUTPUT,
            help="Make this picture, grid or film again, from its recipe, into FOLDER-again beside "
            "its FOLDER.",
        ),
    ] = None,
) -> int:
    """Draw pictures from a run: 00000.png …, grid.png, and film.gif on demand.

    Where they are is the last line printed. Each carries its recipe.
    """
    if like is not None:
        with_it = {
            "-n": n,
            "--seed": seed,
            "--steps": steps,
            "--sampler": sampler,
            "--spacing": spacing,
            "--greedy": greedy or None,
            "--sigma": sigma,
            "--eta": eta,
            "--order": order,
            "--restart-interval": restart_interval,
            "--restart-repeats": restart_repeats,
            "--sigma-share": sigma_share,
            "--final-noise": final_noise or None,
            "--clip": clip,
            "--class": class_,
            "--guidance": guidance,
            "--guidance-interval": guidance_interval,
            "--batch": batch,
            "--raw": raw or None,
            "--checkpoint": checkpoint,
            "--device": device,
            "--threads": threads,
            "--engine": engine,
            "--npy": npy,
            "--film": film or None,
        }
        extra = [name for name, value in with_it.items() if value is not None]
        if extra:
            raise InputError(
                f"--like takes all from the recipe of {like}: leave {' and '.join(extra)} out"
            )
        from unraze.cli.drawing import again

        if are_several():
            raise InputError(f"--like {like}: one process makes it again; leave torchrun out")
        print(again(like, run, out))
        return 0
    if run is None:
        raise InputError("say which run to draw from; `unraze runs` lists them")

    from unraze import generate
    from unraze.cli.drawing import (
        MOST_PICTURES,
        PICTURES,
        PICTURES_AND_FILM,
        draw,
        overview,
        own_folder,
        require_new,
        require_ours,
        require_place,
        set_threads,
    )
    from unraze.cli.train import spoken_for
    from unraze.drawing import MOST_AT_ONCE, Order, share_of

    for name, value, least in (("-n", n, 1), ("--batch", batch, 1), ("--seed", seed, 0)):
        if value is not None and value < least:
            raise InputError(f"{name} {value}: give at least {least}")
    for name, value, most in (("-n", n, MOST_PICTURES), ("--batch", batch, MOST_AT_ONCE)):
        if value is not None and value > most:
            raise InputError(f"{name} {value}: give at most {most:,}")
    given = {
        "steps": steps,
        "sampler": sampler,
        "spacing": spacing,
        "sigma_share": sigma_share,
        "eta": eta,
        "order": order,
        "restart_interval": restart_interval,
        "restart_repeats": restart_repeats,
        "guidance": guidance,
        "guidance_interval": guidance_interval,
        "class": class_,
        "device": device,
        "engine": engine,
    }
    names = {key: option_of(key) for key, value in given.items() if value is not None}
    of_config = {f"sample.{key}": option for key, option in names.items()}
    where = "cpu" if device is None else device
    named = told_as_options({"train.threads": "--threads"} | of_config | names)
    with named, spoken_for(where) as ranks, ExitStack() as stack:
        if npy is not None and ranks.count > 1:
            raise InputError("--npy: one process writes it; leave torchrun out, or give --out")
        set_threads(threads)
        require_new(npy)
        model = generate.load(run, raw=raw, step=checkpoint, device=where)
        if sigma == "learned" and model.config.loss.variance == "fixed":
            raise InputError(
                "--sigma learned: this run learned no variance; give beta or beta_tilde, or train "
                "one with --set loss.variance=learned"
            )
        chosen = _sampler(model.config.sample.sampler, sampler, greedy, sigma, final_noise)
        own = {
            "sigma_share": sigma_share,
            "eta": eta,
            "order": order,
            "restart_interval": restart_interval,
            "restart_repeats": restart_repeats,
        }
        _require_its_own(chosen or model.config.sample.sampler, own)
        changes = own | {
            "sampler": chosen,
            "steps": steps,
            "spacing": spacing,
            "sigma": sigma,
            "final_noise": final_noise or None,
            "clip": clip,
            "guidance": guidance,
            "guidance_interval": guidance_interval,
        }
        given = {key: value for key, value in changes.items() if value is not None}
        classes = None if class_ is None else class_named(model, class_, "--class")
        for option, needless in (
            ("--guidance", guidance in (None, 1.0)),
            ("--guidance-interval", guidance_interval is None),
        ):
            if classes == "none" and not needless:
                raise InputError(f"{option} and --class none: there is no class to guide towards")
        settings = generate.asked(model, given, classes=classes)
        if guidance_interval is not None and settings.guidance == 1:
            raise InputError("--guidance-interval: nothing is guided; give --guidance too")
        at_once = min(16 if n is None else n, 64 if batch is None else batch)
        model, settings = _with_engine(model, engine, settings, at_once, ranks)
        whole = Order(
            model=model,
            settings=settings,
            seed=0 if seed is None else seed,
            classes=classes,
            count=16 if n is None else n,
            batch=64 if batch is None else batch,
            raw=raw,
        )
        folder = None
        if out is not None:
            names_of = PICTURES_AND_FILM if film else PICTURES
            ranks.first(require_ours, out, names_of, whole.count)
            ranks.first(require_place, out, f"--out {out}")
            folder = out
        elif npy is None or film:
            ranks.first(require_place, run, str(run))
            folder = stack.enter_context(own_folder(run, ranks))
        if (tuned := generate.tuned_for(model, given)) is not None:
            calls = generate.calls_of(model, settings)
            guided = settings.guidance, settings.guidance_interval
            but = guided != (tuned.guidance, tuned.guidance_interval)
            said = f"{settings.sampler} in {calls} network calls, as `unraze tune` found"
            print(said + ", but for the guidance" * but)
        wanted = share_of(whole, ranks)
        ranks.each(lambda: None if wanted is None else draw(wanted, folder, npy, film=film))
        if folder is not None:
            ranks.first(overview, whole, folder)
        for made in (npy, folder):
            if made is not None:
                print(made)
    return 0


def _with_engine(
    model: Model, engine: str | None, settings: SampleConfig, at_once: int, ranks: Ranks
) -> tuple[Model, SampleConfig]:
    """The model as that engine computes it, the same one on all ranks; says what auto found.

    The first rank is ready before the others begin, so that one alone measures, and makes the
    network's file.
    """
    if engine in (None, "torch"):
        return model, settings
    from unraze.interop import engines

    ready: list[tuple[Model, SampleConfig]] = []

    def chosen() -> engines.Engine:
        what = "the engines ready, each" if engine == "auto" else f"{engine} ready,"
        print(f"making {what} held against torch first", flush=True)
        if engine != "auto":
            name = next(name for name in engines.ENGINES if name == engine)
            ready.append(engines.with_engine(model, name, settings))
            return name
        found = engines.fastest(model, settings, batch=at_once)
        for reason in found.left_out:
            print(f"engine left out: {reason}")
        rates = ", ".join(f"{name} {rate:.0f}" for name, rate in found.rates.items())
        said = f"images a second a call: {rates}" if rates else "nothing else computes there"
        print(f"engine {found.engine} ({'as measured before' if found.remembered else said})")
        if found.forgotten is not None:
            print(f"engine to be measured again next time: {found.forgotten}")
        ready.append((found.model, found.settings))
        return found.engine

    name = ranks.first(chosen)

    def follow() -> None:
        if not ready:
            ready.append(engines.with_engine(model, name, settings))

    ranks.each(follow)
    return ready[0]


def _sampler(
    own: str, sampler: str | None, greedy: bool, sigma: str | None, final_noise: bool
) -> str | None:
    """The sampler that the options ask for, or None for the run's own; they must agree."""
    if greedy and sampler not in (None, "greedy"):
        raise InputError(f"--greedy and --sampler {sampler}: give one of them")
    asked = "greedy" if greedy else sampler
    if sigma is not None and asked is None:
        asked = "random"
    effective = asked or own
    noisy = {f"--sigma {sigma}": sigma is not None, "--final-noise": final_noise}
    for option, given in noisy.items():
        if given and effective != "random":
            raise InputError(_of_another(option, effective, ("random",)))
    return asked


def _require_its_own(sampler: str, options: Mapping[str, Any]) -> None:
    """Raises `InputError` for an option that this sampler does not have."""
    from unraze.config import OF_A_SAMPLER

    for key, value in options.items():
        if value is not None and sampler not in OF_A_SAMPLER[key]:
            words = map(str, value if isinstance(value, tuple) else (value,))
            said = " ".join((option_of(key), *words))
            raise InputError(_of_another(said, sampler, OF_A_SAMPLER[key]))


def _of_another(option: str, sampler: str, wanted: Sequence[str]) -> str:
    *others, last = wanted
    names = f"{', '.join(others)} or {last}" if others else last
    return (
        f"{option} is for {names}, the sampler is {sampler}: leave it out, or give "
        f"--sampler {wanted[0]}"
    )


@overload
def class_named(model: Model, text: str, option: str, *, one: Literal[True]) -> int: ...
@overload
def class_named(model: Model, text: str, option: str) -> int | Literal["all", "none"]: ...
def class_named(
    model: Model, text: str, option: str, *, one: bool = False
) -> int | Literal["all", "none"]:
    """A class by name or by number, or "all" or "none" where it need not be `one`; a name goes
    before a number."""
    if model.num_classes == 0:
        raise InputError(
            f"{option} {text}: this run was trained without classes; "
            "train one with --classes to ask for them"
        )
    if text in model.class_names:
        return model.class_names.index(text)
    if text in ("all", "none"):
        if one:
            raise InputError(f"{option} {text}: name one class; leave it out for no label")
        return "all" if text == "all" else "none"
    if text.removeprefix("-").isdecimal():
        return int(text)
    from unraze.data.found import listed

    others = () if one else ("none", "all")
    words = {name.lower(): name for name in (*others, *reversed(model.class_names))}
    close = difflib.get_close_matches(text.lower(), words, n=1, cutoff=0.5)
    hint = f", did you mean '{words[close[0]]}'?" if close and text.isalpha() else ""
    too = "" if one else "; all and none will do too"
    raise InputError(
        f"{option} {text}: there is no such class{hint}; this run knows "
        f"{listed(model.class_names, 20)}{too}"
    )
