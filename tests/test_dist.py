"""What is let out: the wheel, the source distribution, and the versions that they stand on."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from scripts import as_module
from unraze import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PIN = re.compile(r"^([A-Za-z0-9_.-]+)==([^\s;]+)", re.MULTILINE)
IN_A_CLONE = pytest.mark.skipif(
    not (ROOT / ".git").exists(), reason="what git tracks is what is built"
)

with as_module(ROOT / "tools" / "dist.py") as dist:
    pass


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(file: str) -> dict[str, str]:
    text = (ROOT / file).read_text(encoding="utf-8")
    return {plain(name): version for name, version in PIN.findall(text)}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    sdist, wheel = dist.built(tmp_path_factory.mktemp("built"))
    return sdist, wheel


@IN_A_CLONE
@pytest.mark.slow
class TestDistributions:
    def test_they_hold_what_git_has_and_nothing_else(self, built: tuple[Path, Path]) -> None:
        sdist, wheel = built
        assert sdist.name == f"unraze-{__version__}.tar.gz"
        assert dist.problems(sdist, wheel) == []

    def test_what_is_missing_or_too_much_is_named(
        self, built: tuple[Path, Path], tmp_path: Path
    ) -> None:
        sdist, wheel = built
        other = tmp_path / wheel.name
        with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(other, "w") as new:
            for name in old.namelist():
                if not name.endswith("fast.toml"):
                    new.writestr(name, old.read(name))
            new.writestr("unraze/notes.txt", "")
        said = dist.problems(sdist, other)
        assert "the wheel lacks unraze/presets/fast.toml" in said
        assert "the wheel holds unraze/notes.txt besides" in said

    def test_built_again_they_are_the_same_bytes(
        self, built: tuple[Path, Path], tmp_path: Path
    ) -> None:
        before = os.umask(0o077)
        try:
            again = dist.built(tmp_path / "another folder")
        finally:
            os.umask(before)
        for a, b in zip(built, again, strict=True):
            assert a.name == b.name
            assert a.read_bytes() == b.read_bytes()

    def test_what_is_in_the_wheel_does_what_the_package_does(
        self, built: tuple[Path, Path], tmp_path: Path
    ) -> None:
        with zipfile.ZipFile(built[1]) as wheel:
            wheel.extractall(tmp_path)
        asks = (
            "import unraze, pathlib; from unraze.config import preset, preset_names;"
            "[preset(name) for name in preset_names()];"
            "from unraze.data import load_images; assert len(load_images('digits')) > 1000;"
            "print(pathlib.Path(unraze.__file__).parent)"
        )
        done = subprocess.run(
            [sys.executable, "-c", asks],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == str(tmp_path / "unraze")


def test_the_lock_has_what_is_pinned_and_all_that_is_asked_for() -> None:
    locked, pinned = pins("requirements.lock"), pins("constraints.txt")
    assert {name: locked.get(name) for name in pinned} == pinned
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [need for extra in project["optional-dependencies"].values() for need in extra]
    for need in [*project["dependencies"], *asked]:
        name = re.match(r"[A-Za-z0-9_.-]+", need)
        assert name is not None
        assert plain(name[0]) in locked, need
        if "python_version" not in need:
            assert plain(name[0]) in pinned, need


def test_the_lock_names_no_place_that_packages_come_from() -> None:
    for file in ("requirements.lock", "constraints.txt"):
        for line in (ROOT / file).read_text(encoding="utf-8").splitlines():
            assert not line or line.startswith("#") or PIN.match(line), line
            assert "://" not in line
