"""The model card: what a model is, how it was made, how good it is, and what it is not good for.

A card is the `README.md` of a model's folder, as model hubs show it: YAML between two lines of
`---`, which says what the hub sorts models by, then Markdown. The text is `card.md` beside this
file. Every value that is put into it is escaped, so that a folder's or a class's name is read as
that name and never as markup.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import torch
from markupsafe import Markup

from unraze import __version__, pictures, run as runs, untrusted
from unraze.config import Config, SampleConfig
from unraze.data import NAMES, has_test_part, load as load_images_of
from unraze.data.found import counted, shown
from unraze.data.hub import hub_name, is_source, short_name
from unraze.data.reading import IMPORTED, IN_MEMORY
from unraze.data.remote import is_address, short
from unraze.errors import DataError, InputError
from unraze.evaluate.evaluation import EVALUATION, Evaluation
from unraze.evaluate.kept import newest_first, read_result, write_bytes
from unraze.evaluate.report import count, likelihoods, noted, number, percent, summary
from unraze.generate import Model, Progress, calls_of, generate, load, quick, recipe, settings_of

__all__ = [
    "CARD",
    "PICTURE",
    "Follow",
    "card",
    "is_card",
    "newest_preview",
    "require_card_of",
    "require_replaceable",
    "source_name",
    "write_card",
]

CARD, PICTURE = "README.md", "samples.png"
"""The names of a card and of the picture beside it; beside another name it is called like that."""
DRAWN = 36
"""How many images the picture shows."""
MOST_CALLS, DDIM_CALLS = 100, 50
"""Network calls an image that it is drawn in at most, and those of DDIM where more would be due."""
WITH_CLASSES = 20
"""The names of more classes than this are not listed."""
LICENCE = re.compile(r"[a-z0-9][a-z0-9._-]*")
HUB_NAMES = {"fashion-mnist": "zalando-datasets/fashion_mnist"}
"""What the data sets that are known by name are called where a card's `datasets` are looked up."""
WEIGHTS = re.compile(r"^\| Weights \(SHA-256\) \| `([0-9a-f]{16})` \|$", re.MULTILINE)
"""Where a card says which weights it is of."""
MARK = re.compile(r"<!-- made by unraze ([0-9a-f]{16}) -->\n\Z")
OF_A_MACHINE = ("unraze", "python", "torch", "numpy", "processor", "threads")
"""What of `env.json` belongs in a card."""

Follow = Callable[[Iterator[Progress]], Iterator[Progress]]
"""What hands on the steps of drawing, and may show them."""


@dataclass(frozen=True)
class Data:
    """The images of a run, as far as they are known: how many were trained on and held out."""

    source: str
    training: int | None
    held_out: str


def card(
    model: Model | Path | str,
    *,
    title: str | None = None,
    licence: str | None = None,
    library_name: str = "unraze",
    tags: Sequence[str] = (),
    usage: str | None = None,
    picture: str | None = None,
    caption: str = "",
) -> str:
    """The text of a model's card.

    Arguments:
        model: a model, or the folder of a run, of which the newest checkpoint is described.
        title: its name; the run's folder's where absent.
        licence: an identifier as `mit` or `cc-by-4.0`; absent, the card says that none was given.
        library_name: the library that loads what lies beside the card.
        tags: more of them, besides the card's own.
        usage: Markdown that says how to load it and to draw from it, taken as it is; absent, how
            Unraze does.
        picture: the name of a picture beside the card; `caption` says what it shows.

    Raises `InputError` for a licence that is no identifier and for an evaluation that cannot be
    read, `CheckpointError` as `unraze.generate.load` does.
    """
    model = model if isinstance(model, Model) else load(model)
    run = runs.find(Path(model.run))
    evaluation = _evaluation(run, model)
    settings = settings_of(model)
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_finalize,
    )
    environment.filters["capitalised"] = _capitalised
    environment.filters["yaml"] = _yaml
    template = environment.from_string(
        (resources.files("unraze.interop") / "card.md").read_text(encoding="utf-8")
    )
    text = template.render(
        title=title or _name(run.path),
        licence=_identifier(licence),
        library_name=library_name,
        tags=_tags(model.config, tags),
        datasets=_datasets(model.config.data.source),
        usage=None if usage is None else Markup(usage.strip()),
        picture=picture,
        caption=caption,
        model=model,
        config=model.config,
        parameters=sum(p.numel() for p in model.network.parameters()),
        network=_network(model.config),
        loss=_loss(model.config),
        data=_data(model, evaluation),
        classes=_classes(model),
        guided=settings.guidance != 1,
        settings=settings,
        guidance_interval=settings.guidance_interval,
        calls=calls_of(model, settings),
        versions={k: v for k, v in runs.read_env(run).items() if k in OF_A_MACHINE},
        seconds=_seconds(run, model),
        unraze=__version__,
        e=evaluation,
        stale=evaluation is not None and evaluation.subject.checkpoint != model.checkpoint,
        summary=summary(evaluation) if evaluation else [],
        likelihoods=likelihoods(evaluation) if evaluation else [],
        count=count,
        number=number,
        percent=percent,
        noted=noted,
    )
    return f"{text}\n<!-- made by unraze {_mark(text)} -->\n"


def write_card(
    folder: Path,
    model: Model | Path | str,
    *,
    file: str = CARD,
    title: str | None = None,
    licence: str | None = None,
    library_name: str = "unraze",
    tags: Sequence[str] = (),
    usage: str | None = None,
    preview: Path | None = None,
    follow: Follow = iter,
) -> Path:
    """Writes a card into a folder, and beside it a picture; returns the card's path.

    The picture shows images drawn as the model is drawn from by default; with `preview`, it is a
    copy of that file, a preview of the training. `follow` is given the steps of drawing, and hands
    them on. The rest is as `card` has it. A card that is there is replaced where it was written so
    and not touched since. Raises as `card` does, `InputError` where another file stands in its
    place, `UnrazeError` where it cannot be written.
    """
    model = model if isinstance(model, Model) else load(model)
    require_replaceable(folder / file)
    picture = _picture_of(file)
    caption = f"{counted(DRAWN, 'sample')} of seed 0, as they came: nothing is picked out."
    if preview is None and _drawn_by(model) != settings_of(model):
        caption = caption.replace(" of seed 0", f" of seed 0, by DDIM in {DDIM_CALLS} steps")
    if preview is not None:
        caption = f"A preview of step {_step_of(preview)} of the training: weights as trained on "
        caption += "the left, averaged on the right."
    text = card(
        model,
        title=title,
        licence=licence,
        library_name=library_name,
        tags=tags,
        usage=usage,
        picture=picture,
        caption=caption,
    )
    if preview is not None:
        try:
            write_bytes(folder / picture, preview.read_bytes())
        except OSError as error:
            raise InputError(f"{preview}: cannot be read ({error.strerror or error})") from error
    else:
        _draw(model, folder / picture, follow)
    write_bytes(folder / file, text.encode())
    return folder / file


def newest_preview(run: runs.Run) -> Path:
    """The last picture that training left; raises `InputError` where it left none."""
    found = sorted(run.samples.glob("step-*.png"), key=_step_of)
    if not found:
        raise InputError(f"{run.path}: training left no preview; leave --preview out")
    return found[-1]


def require_replaceable(file: Path) -> None:
    """Raises `InputError` where a file that is there is no card, or one that was edited, or where
    there is a picture beside it of the name that the card's gets, which is not that card's."""
    picture = file.parent / _picture_of(file.name)
    if picture == file:
        raise InputError(f"{file}: a card is Markdown; give a name that ends in .md")
    if file.exists():
        try:
            text = untrusted.read(file, untrusted.MAX_JSON).decode("utf-8")
        except (OSError, ValueError):
            text = ""
        found = MARK.search(text)
        if found is None or found[1] != _mark(text[: found.start() - 1]):
            raise InputError(
                f"{file}: is there already, and was edited or is no card of unraze; move it away, "
                "or give another --out"
            )
    elif picture.exists():
        raise InputError(
            f"{picture}: is there already, and of no card; move it away, or give another --out"
        )


def is_card(file: Path) -> bool:
    """Whether a file is a model card: it begins with YAML that names the library of the model."""
    try:
        text = untrusted.read(file, untrusted.MAX_JSON).decode("utf-8")
    except (OSError, ValueError):
        return False
    first, *lines = text.splitlines() or [""]
    if first != "---" or "---" not in lines:
        return False
    return any(line.startswith("library_name:") for line in lines[: lines.index("---")])


def require_card_of(file: Path, model: Model) -> None:
    """Raises `InputError` where a card says that it is of other weights; one that names none is
    somebody's own."""
    try:
        found = WEIGHTS.search(untrusted.read(file, untrusted.MAX_JSON).decode("utf-8"))
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{file}: cannot be read as a card ({why}); move it away") from error
    if found is not None and found[1] != model.checkpoint[:16]:
        raise InputError(
            f"{file}: is the card of other weights, {found[1]}; those of step {model.step} are "
            f"{model.checkpoint[:16]}: write it anew with `unraze card`, or move it away"
        )


def _picture_of(card: str) -> str:
    return PICTURE if card == CARD else f"{Path(card).stem}.png"


# -------------------------------------------------------------------------- what the card is told


def _evaluation(run: runs.Run, model: Model) -> Evaluation | None:
    """The newest one of these weights, or else the newest of the run's; None where it has none."""
    newest = None
    for file in newest_first((run.path / "eval").glob("step-*.json")):
        result = read_result(file, EVALUATION)
        if result.subject.checkpoint == model.checkpoint:
            return result
        newest = newest or result
    return newest


def _data(model: Model, evaluation: Evaluation | None) -> Data:
    """Counts from the evaluation, or else from the images themselves, where they still are."""
    data = model.config.data
    source = source_name(data.source)
    if not model.data:  # what it was held against is not what it was trained on
        return Data(source, None, "not known")
    if evaluation is not None:
        against = evaluation.against
        return Data(source, against.training, f"{counted(against.real, 'image')}")
    if data.source.startswith(IN_MEMORY):
        return Data(source, None, "not known")
    try:
        images = load_images_of(data)
    except DataError:  # they were moved, or are on another machine
        return Data(source, None, f"a share of {data.held_out:g}, or the source's own test part")
    if images.fingerprint != model.data:
        return Data(source, None, f"a share of {data.held_out:g}, or the source's own test part")
    held = str(images.held_back or "none")
    own = has_test_part(data.source)
    return Data(source, len(images), "the source's own test part" if own else held)


def source_name(source: str) -> str:
    """What the data is called: no folders of somebody's machine."""
    if source.startswith(IN_MEMORY):
        return f"images given from Python ({shown(Path(source.removeprefix(IN_MEMORY)).name)})"
    if source.startswith(IMPORTED):
        return f"not known: trained by another program ({Path(source.removeprefix(IMPORTED)).name})"
    if is_source(source):
        return short_name(source)
    if is_address(source):
        return short(source)
    path = Path(source)
    if "*" in path.name:  # says little without the folder
        return f"{path.parent.name}/{path.name}"
    return source if source in NAMES else path.name


def _datasets(source: str) -> list[str]:
    name = HUB_NAMES.get(source) or hub_name(source)
    return [] if name is None else [name]


def _tags(config: Config, more: Sequence[str]) -> list[str]:
    own = ["diffusion", "ddpm", "unconditional-image-generation", "unraze"]
    if config.train.classes:
        own.append("class-conditional")
    if config.distilled is not None:
        own.append("distillation")
    return list(dict.fromkeys([*own, *more]))


def _network(config: Config) -> str:
    values = config.network.model_dump(mode="json")
    kind = values.pop("kind")
    said = (f"{k} {_plain(v)}" for k, v in values.items() if v is not None)
    return f"{kind} ({', '.join(said)})"


def _loss(config: Config) -> str:
    loss = config.loss
    said = [f"{loss.objective}, {loss.distance}", f"times {loss.times}"]
    if loss.weighting is not None:
        said.insert(1, f"weighting {loss.weighting}")
    return ", ".join(said)


def _classes(model: Model) -> str:
    """What the network is told besides the picture and the time; empty where nothing."""
    if model.clusters is not None:
        return (
            f"The network is told which of {model.num_classes} clusters of alike images a picture "
            "is of; samples are drawn of each as often as it occurs in the training images."
        )
    if not model.num_classes:
        return ""
    names = ", ".join(map(shown, model.class_names[:WITH_CLASSES]))
    more = model.num_classes - WITH_CLASSES
    return f"Classes: {names}{f' and {more} more' if more > 0 else ''}."


def _seconds(run: runs.Run, model: Model) -> float | None:
    """What the steps up to the model's took, by their logged pace; None where none is logged."""
    rows = [row for row in runs.read_rows(run.stats) if row["step"] <= model.step]
    paces = [pace for row in rows if (pace := row.get("images_per_second", 0)) > 0]
    return sum(model.config.train.batch / pace for pace in paces) if paces else None


def _drawn_by(model: Model) -> SampleConfig:
    """As it is drawn from by default, or where that is dear, by DDIM."""
    settings = settings_of(model)
    return settings if calls_of(model, settings) <= MOST_CALLS else quick(model.config, DDIM_CALLS)


def _draw(model: Model, path: Path, follow: Follow) -> None:
    """Draws the picture; its recipe is that of `unraze sample`, but for the run's folder."""
    settings = _drawn_by(model)
    moments = follow(generate(model, DRAWN, seed=0, settings=settings, batch=DRAWN))
    x = torch.cat([moment.x for moment in moments if moment.finished])
    made = recipe(model, settings, seed=0, classes=None, batch=range(DRAWN))
    made |= {"kind": "grid", "drawn": DRAWN, "run": _name(Path(model.run))}
    pictures.write_png(pictures.grid(pictures.pixels_of(x)), path, made)


def _identifier(licence: str | None) -> str | None:
    if licence is None:
        return None
    if not LICENCE.fullmatch(licence.lower()):
        raise InputError(f"licence = {licence!r}: give its identifier, as mit, cc-by-4.0 or other")
    return licence.lower()


def _name(path: Path) -> str:
    return shown(path.resolve().name)


def _step_of(preview: Path) -> int:
    found = re.fullmatch(r"step-(\d+)\.png", preview.name)
    if found is None:
        raise InputError(f"{preview}: is no preview of training; give a samples/step-….png")
    return int(found[1])


def _plain(value: Any) -> str:
    """A value of a configuration as one reads it: "0.1 … 0.8" and the like without brackets."""
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _mark(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ------------------------------------------------------------------------------------- escaping


def _finalize(value: Any) -> Any:
    """What jinja2 does with every value that the template prints: escapes it, but for markup."""
    return value if isinstance(value, Markup) else _escaped(str(value))


def _escaped(text: str) -> str:
    r"""Text that any Markdown reader shows as it is, in a line, a list or a table.

    What HTML begins with becomes entities, punctuation that Markdown or mathematics begins with has
    a backslash before it, also where a bare address or a person's name would become a link; so has
    what would begin a list or a heading where it is the first of a line.
    """
    text = shown(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_{}\[\]#|~$@!])", r"\\\1", text)
    text = re.sub(r"(?i)\b(www)\.", r"\1\\.", text).replace("://", r"\://")
    text = re.sub(r"^(\s*)([-+=])(?!\d)", r"\1\\\2", text)
    return re.sub(r"^(\s*\d+)([.)])(?=\s|$)", r"\1\\\2", text)


def _capitalised(text: str) -> str:
    """With a capital first letter, and no other letter changed."""
    return text[:1].upper() + text[1:]


def _yaml(value: str) -> Markup:
    """A YAML string: JSON's are, of printable text."""
    return Markup(json.dumps(shown(value), ensure_ascii=False))
