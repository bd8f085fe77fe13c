"""Publishing, against a hub of our own on this machine, which keeps what it is sent."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard

from evaluated import digits_file, small_run
from unraze import checkpoint, generate
from unraze.cli import main
from unraze.config import SampleConfig, updated
from unraze.data.reading import IMPORTED
from unraze.generate import Tuning, keep_tuning, load
from unraze.interop.made import create_run
from unraze.interop.publish import write_shared

TOKEN = "hf_of_a_test"
LARGE = 2000
"""Bytes from which on a file goes the way of large ones."""


class Hub(ThreadingHTTPServer):
    """What huggingface_hub asks of a hub to make a repository and commit files to it.

    The way of large files is that of Git LFS (its batch API of 2017); where `large` is false all
    files are in the commit itself.
    """

    daemon_threads = True

    def __init__(self, *, large: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.large = large
        self.repositories: dict[str, bool] = {}
        self.files: dict[str, bytes] = {}
        self.objects: dict[str, bytes] = {}
        self.commits: list[str] = []
        self.asked: list[str] = []
        self.refuse = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def say(self, value: Any, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def answer(self) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub.asked.append(f"{self.command} {path}")
        if self.command != "HEAD" and not path.startswith("/objects/"):
            assert self.headers["Authorization"] == f"Bearer {TOKEN}"
        if hub.refuse and path != "/":
            return self.say({"error": "You are not allowed to"}, 403)
        match [self.command, *path.strip("/").split("/")]:
            case ["HEAD", ""]:
                self.say({})
            case ["POST", "api", "repos", "create"]:
                told = json.loads(body)
                name = f"{told['organization']}/{told['name']}"
                status = 409 if name in hub.repositories else 200
                private = "private" in (
                    told.get("visibility"),
                    "private" * bool(told.get("private")),
                )
                hub.repositories.setdefault(name, private)
                self.say({"url": f"{hub.address}/{name}", "id": name}, status)
            case ["POST", "api", "validate-yaml"]:
                ModelCard(json.loads(body)["content"])
                self.say({"errors": [], "warnings": []})
            case ["GET", "api", "models", _, _, "tree", *_]:
                self.say(
                    [
                        {"type": "file", "path": p, "size": len(data), "oid": "0" * 40}
                        for p, data in hub.files.items()
                    ]
                )
            case ["GET", "api", "models", owner, name, *_]:
                private = hub.repositories[f"{owner}/{name}"]
                self.say({"id": f"{owner}/{name}", "private": private, "sha": "0" * 40, "tags": []})
            case ["POST", "api", "models", _, _, "preupload", "main"]:
                files = json.loads(body)["files"]
                modes = [("lfs" if hub.large and f["size"] > LARGE else "regular") for f in files]
                told = [
                    {"path": f["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None}
                    for f, mode in zip(files, modes, strict=True)
                ]
                self.say({"files": told})
            case ["POST", _, _, "info", "lfs", "objects", "batch"]:
                objects = [
                    {**o, "actions": {"upload": {"href": f"{hub.address}/objects/{o['oid']}"}}}
                    for o in json.loads(body)["objects"]
                ]
                self.say({"transfer": "basic", "objects": objects})
            case ["PUT", "objects", oid]:
                assert hashlib.sha256(body).hexdigest() == oid
                hub.objects[oid] = body
                self.say({})
            case ["POST", "api", "models", owner, name, "commit", "main"]:
                for line in body.splitlines():
                    told = json.loads(line)
                    value = told["value"]
                    if told["key"] == "header":
                        hub.commits.append(value["summary"])
                    elif told["key"] == "deletedFile":
                        del hub.files[value["path"]]
                    elif told["key"] == "file":
                        hub.files[value["path"]] = base64.b64decode(value["content"])
                    else:
                        hub.files[value["path"]] = hub.objects[value["oid"]]
                url = f"{hub.address}/{owner}/{name}/commit/{'1' * 40}"
                self.say({"commitUrl": url, "commitOid": "1" * 40})
            case _:
                self.say({"error": f"{self.command} {path} is not known here"}, 404)

    do_GET = do_POST = do_PUT = do_HEAD = answer


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub, and the library set up for it and logged in."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("publish")
    data = digits_file(folder / "digits.npz")
    return small_run(folder / "my-run", data, {"train.checkpoint_every": 10})


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "my-run")
    return tmp_path / "my-run"


CARD_OF_A_FOLDER = "---\nlicense: mit\nlibrary_name: diffusers\ntags:\n- ddpm\n---\n# x\n"


def holds_no_path(folder: Path, place: Path) -> None:
    """Asserts that no file of the folder names a place of this machine."""
    for file in folder.rglob("*"):
        if file.is_file():
            assert str(place).encode() not in file.read_bytes(), file


def received(hub: Hub, folder: Path) -> Path:
    """What the hub was sent, as a folder."""
    for name, data in hub.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


class TestRun:
    def test_what_arrives_draws_the_same(
        self, hub: Hub, run: Path, tmp_path: Path, capsys: Any
    ) -> None:
        assert main(["publish", str(run), "me/digits", "--private", "--licence", "mit"]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == f"{hub.address}/me/digits"
        assert hub.repositories == {"me/digits": True}
        assert len(hub.commits) == 1
        there = received(hub, tmp_path / "there")
        ours, theirs = load(run), load(there)
        assert theirs.checkpoint == ours.checkpoint
        drawn = [generate.sample(model, 4, seed=1) for model in (ours, theirs)]
        assert torch.equal(*drawn)
        assert ModelCard.load(there / "README.md").data.license == "mit"
        assert set(hub.files) == {
            *("README.md", "config.toml", "env.json", "samples.png"),
            *(f"checkpoints/step-00000030/{p}.safetensors" for p in ("model", "ema", "optim")),
            "checkpoints/step-00000030/state.json",
        }

    def test_nothing_of_this_machine_goes_along(self, hub: Hub, run: Path, tmp_path: Path) -> None:
        assert main(["publish", str(run), "me/digits"]) == 0
        for name, data in hub.files.items():
            assert str(tmp_path.parent).encode() not in data, name
        assert b"digits.npz" in hub.files["config.toml"]
        assert hub.repositories == {"me/digits": False}

    def test_its_own_card_clusters_and_tuning(self, hub: Hub, tmp_path: Path) -> None:
        data = digits_file(tmp_path / "digits.npz")
        run = small_run(tmp_path / "run", data, {"train.clusters": 1})
        model = load(run)
        settings = SampleConfig(sampler="ddim", steps=3)
        tuning = Tuning(checkpoint=model.checkpoint, default=3, settings={3: settings})
        keep_tuning(model, tuning)
        (run / "README.md").write_text("---\nlicense: other\n---\n# Mine\n")
        assert main(["publish", str(run), "me/digits"]) == 0
        theirs = load(received(hub, tmp_path / "there"))
        assert theirs.tuning == tuning
        assert (theirs.clusters is None) == (model.clusters is None)
        assert hub.files["README.md"].endswith(b"# Mine\n")
        assert "samples.png" not in hub.files

    def test_a_card_of_other_weights_is_refused(self, hub: Hub, run: Path, capsys: Any) -> None:
        assert main(["card", str(run)]) == 0
        steps = sorted(int(p.name[5:]) for p in (run / "checkpoints").iterdir())
        assert len(steps) > 1
        older = ["--checkpoint", str(steps[0])]
        assert main(["publish", str(run), "me/digits", *older]) == 2
        error = capsys.readouterr().err
        assert "README.md: is the card of other weights" in error
        assert load(run).checkpoint[:16] in error
        assert hub.files == {}
        assert main(["card", str(run), *older]) == 0
        assert main(["publish", str(run), "me/digits", *older]) == 0

    def test_another_checkpoint_takes_the_place_of_the_one_before(
        self, hub: Hub, run: Path, tmp_path: Path
    ) -> None:
        steps = sorted(int(p.name[5:]) for p in (run / "checkpoints").iterdir())
        assert len(steps) > 1
        hub.files["notes.txt"] = b"somebody's"
        for step in (steps[-1], steps[0]):
            assert main(["publish", str(run), "me/digits", "--checkpoint", str(step)]) == 0
        assert load(received(hub, tmp_path / "there")).step == steps[0]
        assert "notes.txt" in hub.files

    def test_what_arrives_is_not_resumed_but_gone_on_from(
        self, run: Path, tmp_path: Path, capsys: Any
    ) -> None:
        write_shared(load(run), tmp_path / "shared")
        (tmp_path / "shared" / "config.toml").write_text((run / "config.toml").read_text())
        assert main(["resume", str(tmp_path / "shared")]) != 0
        assert "is without the optimiser's state" in capsys.readouterr().err

    def test_a_licence_beside_a_card_is_refused(self, hub: Hub, run: Path, capsys: Any) -> None:
        assert main(["card", str(run)]) == 0
        assert main(["publish", str(run), "me/digits", "--licence", "mit"]) == 2
        assert "README.md is there already and says its own" in capsys.readouterr().err
        assert hub.repositories == {}

    def test_a_distilled_run_names_its_teacher_without_the_path(
        self, run: Path, tmp_path: Path
    ) -> None:
        from unraze import distillation
        from unraze.data import load as images_of

        teacher = load(run)
        made = tmp_path / "fast"
        distillation.distill(teacher, images_of(teacher.config.data), out=made, steps=2)
        write_shared(load(made), tmp_path / "shared")
        config = load(tmp_path / "shared").config
        assert config.distilled is not None
        assert config.distilled.run == "my-run"

    def test_one_that_was_begun_with_another_names_it_without_the_path(
        self, run: Path, tmp_path: Path
    ) -> None:
        source = load(run).config.data.source
        out = tmp_path / "begun"
        assert main(["train", source, "--from", str(run), "--steps", "2", "--out", str(out)]) == 0
        write_shared(load(out), tmp_path / "shared")
        config = load(tmp_path / "shared").config
        assert config.begun is not None
        assert config.begun.run == "my-run"
        holds_no_path(tmp_path / "shared", tmp_path)

    def test_an_imported_one_stays_imported(self, run: Path, tmp_path: Path, capsys: Any) -> None:
        model = load(run)
        config = updated(model.config, {"data.source": str(tmp_path / "far" / "model-5.pt")})
        weights = model.network.state_dict()
        made = create_run(
            config,
            weights,
            weights,
            shape=model.shape,
            class_names=model.class_names,
            num_classes=model.num_classes,
            out=tmp_path / "imported",
        )
        write_shared(load(made.path), tmp_path / "shared")
        shared = load(tmp_path / "shared")
        assert shared.config.data.source == f"{IMPORTED}model-5.pt"
        card = (tmp_path / "shared" / "README.md").read_text()
        assert "trained by another program (model-5.pt)" in card
        assert "not known: the images are not at hand" in card
        holds_no_path(tmp_path / "shared", tmp_path)


class TestFolder:
    def test_all_of_it_but_what_is_hidden(self, hub: Hub, tmp_path: Path, capsys: Any) -> None:
        files = {"README.md": CARD_OF_A_FOLDER, "unet/config.json": "{}"}
        for name, text in {**files, ".secret": "x", "unet/.y": "x", ".z.part": "x"}.items():
            (tmp_path / "made" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "made" / name).write_text(text)
        assert main(["publish", str(tmp_path / "made"), "me/made"]) == 0
        assert {name: data.decode() for name, data in hub.files.items()} == files
        *names, address = capsys.readouterr().out.splitlines()
        assert names == sorted(files)
        assert address == f"{hub.address}/me/made"

    @pytest.mark.parametrize("readme", [None, "# My project\n", "---\nlicense: mit\n---\n# x\n"])
    def test_without_a_card_is_refused(
        self, hub: Hub, tmp_path: Path, capsys: Any, readme: str | None
    ) -> None:
        if readme is not None:
            (tmp_path / "README.md").write_text(readme)
        assert main(["publish", str(tmp_path), "me/made"]) == 2
        assert "neither a run nor a model's folder with a card" in capsys.readouterr().err
        assert hub.repositories == {}
        assert main(["publish", str(tmp_path), "me/made", "--checkpoint", "best"]) == 2
        assert "--checkpoint: is for a run" in capsys.readouterr().err

    def test_into_a_repository_that_is_there(self, hub: Hub, tmp_path: Path, capsys: Any) -> None:
        (tmp_path / "README.md").write_text(CARD_OF_A_FOLDER)
        hub.repositories["me/made"] = False
        assert main(["publish", str(tmp_path), "me/made", "--private"]) == 2
        assert "is there already, and public" in capsys.readouterr().err
        assert hub.files == {}
        assert main(["publish", str(tmp_path), "me/made"]) == 0
        assert set(hub.files) == {"README.md"}


class TestRefused:
    def test_by_the_hub(self, hub: Hub, run: Path, capsys: Any) -> None:
        hub.refuse = True
        assert main(["publish", str(run), "me/digits"]) == 1
        error = capsys.readouterr().err
        assert "me/digits: could not be published (" in error
        assert error.count("\n") == 1

    @pytest.mark.parametrize("name", ["digits", "a/b/c", "me/", "/x", "me/a b", "me/-x", "me/a--b"])
    def test_no_name(self, hub: Hub, run: Path, capsys: Any, name: str) -> None:
        assert main(["publish", str(run), name]) == 2
        assert "give OWNER/NAME" in capsys.readouterr().err
        assert hub.asked == []

    def test_not_logged_in(
        self, hub: Hub, run: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
        assert main(["publish", str(run), "me/digits"]) == 2
        assert "hf auth login" in capsys.readouterr().err
        assert hub.asked == []

    def test_what_is_here_comes_first(
        self, hub: Hub, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
        assert main(["publish", str(tmp_path / "none"), "me/digits"]) == 2
        assert "none: is neither a run nor" in capsys.readouterr().err

    def test_without_the_package(
        self, run: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        assert main(["publish", str(run), "me/digits"]) == 2
        assert 'pip install "unraze[hub]"' in capsys.readouterr().err

    def test_offline_is_said_quickly(
        self, run: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
        began = time.monotonic()
        assert main(["publish", str(run), "me/digits"]) == 1
        assert time.monotonic() - began < 6
        assert "http://127.0.0.1:9: does not answer" in capsys.readouterr().err
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        assert main(["publish", str(run), "me/digits"]) == 2
        assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err


def test_large_files_from_a_process_of_its_own(hub: Hub, run: Path, tmp_path: Path) -> None:
    """As a person does it: where the hub is, and who one is, comes from the environment."""
    hub.large = True
    shutil.rmtree(run / "samples")
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.address,
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",  # a protocol of its own, whose code is closed to us
        "HF_HOME": str(tmp_path / "hf"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "unraze", "publish", str(run), "me/digits"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert hub.objects
    assert load(received(hub, tmp_path / "there")).checkpoint == load(run).checkpoint
    state = json.loads(hub.files["checkpoints/step-00000030/state.json"])
    assert re.fullmatch("[0-9a-f]{64}", state["sha256"]["ema"])
    assert checkpoint.newest(tmp_path / "there" / "checkpoints")[1] == []
