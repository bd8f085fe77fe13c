"""A model's folder on a model hub, uploaded through huggingface_hub.

Of a run, what another needs to draw from it goes along, and nothing of the machine that it was
trained on: the weights and their average without the optimiser's moments, the configuration with
the data's name in place of its path, the clusters, the tuning, the card with its picture.
"""

import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unraze import checkpoint, clusters, run as runs
from unraze.config import Config, updated
from unraze.data import NAMES
from unraze.data.hub import hub_name, is_reachable
from unraze.data.reading import IMPORTED, IN_MEMORY
from unraze.errors import CheckpointError, InputError, UnrazeError
from unraze.generate import Model, keep_tuning, load
from unraze.interop.card import (
    CARD,
    PICTURE,
    Follow,
    require_card_of,
    source_name,
    write_card,
)
from unraze.run import Run

__all__ = ["OF_A_RUN", "Published", "packed", "publish", "require_hub", "write_shared"]

NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
OF_A_RUN = ("checkpoints/*", "clusters.safetensors")
"""What of a run that was published before does not stay beside another."""
HIDDEN = [".*", "**/.*", "*.part", "**/*.part"]
"""What of a folder is never uploaded: what its system hides, and what is half-written."""


@dataclass(frozen=True)
class Published:
    """Where it is, as the hub says, and the names of the files that are there now."""

    address: str
    files: tuple[str, ...]


def require_hub(name: str) -> None:
    """Raises `InputError` where huggingface_hub is not installed, the name is none of a repository,
    or nobody is logged in, `UnrazeError` where the hub does not answer."""
    try:
        from huggingface_hub import constants, get_token
    except ImportError as error:
        raise InputError(
            "publishing needs the package huggingface_hub, which is not installed; install it: "
            'pip install "unraze[hub]"'
        ) from error
    if not NAME.fullmatch(name) or "--" in name or ".." in name:
        raise InputError(f"{name}: is no name of a repository; give OWNER/NAME")
    if constants.HF_HUB_OFFLINE:
        raise InputError("HF_HUB_OFFLINE is set, so nothing can be published; unset it")
    if get_token() is None:
        raise InputError(
            "nobody is logged in to the hub; log in once with `hf auth login`, or set HF_TOKEN"
        )
    if not is_reachable():
        raise UnrazeError(
            f"{constants.ENDPOINT}: does not answer; connect to the network and "
            "give the same command again"
        )


def publish(
    folder: Path,
    name: str,
    *,
    private: bool = False,
    message: str = "",
    in_place_of: Sequence[str] = (),
) -> Published:
    """Uploads all of a folder but what is hidden into the repository OWNER/NAME, made where it is
    not there yet.

    What is there under the patterns of `in_place_of`, and not in the folder, goes. With `private`,
    nothing is uploaded to a repository that is there and that others can see. Raises as
    `require_hub` does, and `UnrazeError` with what the hub says where it refuses.
    """
    require_hub(name)
    from huggingface_hub import HfApi

    hub: Any = HfApi(library_name="unraze")
    with _told(name):
        address = hub.create_repo(name, private=private or None, exist_ok=True)
        if private and not hub.model_info(name).private:
            raise InputError(
                f"--private: the repository {name} is there already, and public; make it private "
                "first, or give another name"
            )
        hub.upload_folder(
            repo_id=name,
            folder_path=str(folder),
            commit_message=message or "Upload by unraze publish",
            ignore_patterns=list(HIDDEN),
            delete_patterns=list(in_place_of) or None,
        )
    files = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )
    hidden = re.compile(r"(^|/)\.|\.part$")
    return Published(str(address), tuple(file for file in files if not hidden.search(file)))


@contextmanager
def packed(model: Model, *, licence: str | None = None, follow: Follow = iter) -> Iterator[Path]:
    """A temporary folder with what of the model's run is to be handed on; see `write_shared`."""
    with tempfile.TemporaryDirectory(prefix="unraze-") as made:
        folder = Path(made) / Path(model.run).resolve().name
        write_shared(model, folder, licence=licence, follow=follow)
        yield folder


def write_shared(
    model: Model, folder: Path, *, licence: str | None = None, follow: Follow = iter
) -> None:
    """Writes a run that another machine can draw from, with its card, into a new folder.

    The card is that of the run where it has one, else it is written; `follow` as of `write_card`.
    Raises `InputError` for a licence where there is a card and for a card of other weights,
    `CheckpointError` where the model is of no checkpoint.
    """
    run = runs.find(Path(model.run))
    if model.folder is None:
        raise CheckpointError(f"{run.path}: this model is of no checkpoint; load it from a run")
    own = run.path / CARD
    if own.is_file() and licence is not None:
        raise InputError(
            f"licence = {licence!r}: {own} is there already and says its own; leave it out, or "
            "write the card anew with `unraze card`"
        )
    if own.is_file():
        require_card_of(own, model)
    saved = checkpoint.read(model.folder)
    config = _without_places(model.config)
    shared = Run(folder)
    folder.mkdir(parents=True)
    runs.write_config(shared, config)
    if (run.path / "env.json").is_file():
        shutil.copyfile(run.path / "env.json", folder / "env.json")
    if model.clusters is not None:
        clusters.write(shared.clusters, model.clusters)
    state = {key: value for key, value in saved.state.items() if key != "shards"}  # it has none now
    checkpoint.save(
        shared.checkpoints,
        saved.step,
        model=saved.model,
        ema=saved.ema,
        optim={},
        state=state | {"config": config.model_dump(mode="json")},
        keep=1,
    )
    moved = load(folder)
    if model.tuning is not None and moved.checkpoint == model.tuning.checkpoint:
        keep_tuning(moved, model.tuning)
    if own.is_file():
        shutil.copyfile(own, folder / CARD)
        if (run.path / PICTURE).is_file():
            shutil.copyfile(run.path / PICTURE, folder / PICTURE)
    else:
        write_card(folder, model, licence=licence, follow=follow)


def _without_places(config: Config) -> Config:
    """The configuration with names in place of paths of this machine."""
    source = config.data.source
    if prefix := next((p for p in (IN_MEMORY, IMPORTED) if source.startswith(p)), None):
        source = prefix + Path(source.removeprefix(prefix)).name
    elif source not in NAMES and hub_name(source) is None:
        source = source_name(source)
    changes: dict[str, Any] = {"data.source": source}
    if config.distilled is not None:
        teacher = config.distilled.model_copy(update={"run": Path(config.distilled.run).name})
        config = config.model_copy(update={"distilled": teacher})
    if config.begun is not None:
        start = config.begun.model_copy(update={"run": Path(config.begun.run).name})
        config = config.model_copy(update={"begun": start})
    return updated(config, changes)


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Turns what the hub's library raises into one line."""
    try:
        yield
    except UnrazeError:
        raise
    except Exception as error:  # HTTP clients', the library's and the system's own share no base
        why = " ".join(str(error).split()) or type(error).__name__
        raise UnrazeError(
            f"{name}: could not be published ({why[:300]}); mend that and give the same command "
            "again: what is there already is not uploaded twice"
        ) from error
