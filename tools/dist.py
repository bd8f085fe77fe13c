"""Builds the wheel and the source distribution, and looks into both before they are let out.

    make dist, or python tools/dist.py --out dist

What git tracks is copied and built, so that nothing else can get in: the source distribution, and
from it the wheel. Each is built twice, in folders of other names and under other masks of
permissions, and both times are to give the same bytes: all dates are those of the last commit, or
SOURCE_DATE_EPOCH. They hold what git has under src/, file for file, and what describes it; `twine
check` reads that. Nothing is fetched: what builds is installed first, by the extra `dist`.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
ABOUT = {"LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "PKG-INFO", "setup.cfg"}
"""What a source distribution has beside the sources."""
OF_THE_WHEEL = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt"} | {
    "licenses/LICENSE"
}
NEEDED = {
    "presets/fast.toml",
    "evaluate/report.html",
    "interop/page/app.js",
    "studio/page/main.js",
    "data/digits.npz",
} | {
    "py.typed",
    "evaluate/weights/fashion-mnist-contrast.safetensors",
}
"""A file of each kind that is no code, without which the package would not do what it does."""


def tracked(root: Path = ROOT) -> list[str]:
    """The files that git tracks, as they are now."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True)
    names = listed.stdout.decode().split("\0")
    return sorted(name for name in names if name and (root / name).is_file())


def epoch(root: Path = ROOT) -> int:
    """Seconds since 1970 that everything in the files is dated with."""
    if said := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(said)
    asked = ["git", "log", "-1", "--format=%ct"]
    return int(subprocess.run(asked, cwd=root, check=True, capture_output=True).stdout)


def built(into: Path, *, root: Path = ROOT) -> tuple[Path, Path]:
    """Copies what git tracks to `into`, and builds there: the source distribution, the wheel."""
    source, out = into / "source", into / "dist"
    for name in tracked(root):
        if not name.startswith("bench/results/"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, source / name)
            (source / name).chmod(0o644)
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(epoch(root))}
    environment.pop("PYTHONPATH", None)
    sdist = _made("--sdist", source, out, environment)
    plain = into / "plain"
    repack(sdist, plain / sdist.name, epoch(root))
    with tarfile.open(plain / sdist.name) as archive:
        archive.extractall(into / "unpacked", filter="data")
    (unpacked,) = (into / "unpacked").iterdir()
    return plain / sdist.name, _made("--wheel", unpacked, out, environment)


def _made(kind: str, source: Path, out: Path, environment: dict[str, str]) -> Path:
    command = [sys.executable, "-m", "build", "--no-isolation", kind, "--outdir", str(out)]
    command.append(str(source))
    # a wheel keeps the permissions of the files that it is made of, and these are the mask's
    done = subprocess.run(command, env=environment, umask=0o022, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{kind} cannot be built:\n{done.stdout}{done.stderr}")
    (made,) = out.glob("*.tar.gz" if kind == "--sdist" else "*.whl")
    return made


def repack(sdist: Path, to: Path, date: int) -> None:
    """Writes an archive anew with its files in order of their names, and no owner, and one date."""
    written = io.BytesIO()
    with (
        tarfile.open(sdist) as old,
        tarfile.open(fileobj=written, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in sorted(old.getmembers(), key=lambda member: member.name):
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            member.mtime, member.pax_headers = date, {}
            member.mode = 0o755 if member.isdir() else 0o644
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_bytes(gzip.compress(written.getvalue(), mtime=date))


def contents(file: Path) -> set[str]:
    """The files in a distribution, by their names below its own folder."""
    if file.suffix == ".whl":
        with zipfile.ZipFile(file) as wheel:
            return set(wheel.namelist())
    with tarfile.open(file) as archive:
        return {m.name.partition("/")[2] for m in archive.getmembers() if not m.isdir()}


def problems(sdist: Path, wheel: Path, *, root: Path = ROOT) -> list[str]:
    """What is in the distributions that should not be, and what is not."""
    sources = {name for name in tracked(root) if name.startswith("src/unraze/")}
    found = contents(sdist)
    beside = {name for name in found if name.startswith("src/unraze.egg-info/")}
    said = _differing("the source distribution", found - beside, sources | ABOUT)
    found = contents(wheel)
    info = {name for name in found if name.split("/")[0].endswith(".dist-info")}
    said += _differing("the wheel", found - info, {name.removeprefix("src/") for name in sources})
    said += _differing("the wheel's own folder", {n.partition("/")[2] for n in info}, OF_THE_WHEEL)
    missing = sorted(name for name in NEEDED if f"unraze/{name}" not in found)
    return said + [f"the wheel lacks {name}" for name in missing]


def _differing(what: str, found: set[str], wanted: set[str]) -> list[str]:
    return [f"{what} lacks {name}" for name in sorted(wanted - found)] + [
        f"{what} holds {name} besides" for name in sorted(found - wanted)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("dist"), help="where they are put")
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory(suffix="-b") as two:
        first = built(Path(one))
        before = os.umask(0o077)
        second = built(Path(two) / "deeper")
        os.umask(before)
        for a, b in zip(first, second, strict=True):
            if a.read_bytes() != b.read_bytes():
                raise SystemExit(f"{a.name}: built twice, and not to the same bytes")
        if said := problems(*first):
            raise SystemExit("\n".join(said))
        check = [sys.executable, "-m", "twine", "check", "--strict", *map(str, first)]
        if subprocess.run(check).returncode:
            return 1
        out.mkdir(parents=True, exist_ok=True)
        for file in first:
            names = sorted(contents(file))
            print(f"\n{file.name}: {file.stat().st_size:,} bytes, {len(names)} files")
            print("\n".join(f"  {name}" for name in names))
            shutil.copyfile(file, out / file.name)
    print()
    for file in first:
        digest = hashlib.sha256((out / file.name).read_bytes()).hexdigest()
        print(f"{digest}  {out / file.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
