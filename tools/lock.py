"""Writes requirements.lock: every package that Unraze stands on, directly or not, by its version.

    make lock, or in an environment of all extras: python tools/lock.py > requirements.lock

Nothing is asked of any registry. The versions are those that this environment has, which pip chose
by constraints.txt when it was made; what is in it for another reason is not in the lock.
"""

import sys
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS = ("dev", "dist", "fuzz")
"""The others are parts of dev."""
HEAD = """\
# Every package of an environment of Unraze with all extras, by its version: what constraints.txt
# pins, and all that those need in turn, but for pip itself. Of Python {python} on {system}:
# elsewhere some need others. An environment of just these:
#
#   pip install -c requirements.lock -e ".[{extras}]"
#
# Written by `make lock`, audited by `make audit`.
"""


def closure(name: str, extras: tuple[str, ...]) -> dict[str, str]:
    """The packages that one needs with these extras, by their names, and their versions here."""
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    left = [(name, extra) for extra in ("", *extras)]
    while left:
        package, extra = left.pop()
        if (package, extra) in seen:
            continue
        seen.add((package, extra))
        try:
            there = distribution(package)
        except PackageNotFoundError:
            raise SystemExit(
                f"{package} is not installed here; install all extras first: "
                f'pip install -c constraints.txt -e ".[{",".join(EXTRAS)}]"'
            ) from None
        if package not in (name, "pip"):
            found[package] = there.version.partition("+")[0]  # without the mark of a build
        for text in there.requires or []:
            need = Requirement(text)
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                known = canonicalize_name(need.name)
                left += [(known, wanted) for wanted in ("", *need.extras)]
    return found


def main() -> int:
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    print(HEAD.format(python=python, system=sys.platform, extras=",".join(EXTRAS)))
    for name, version in sorted(closure("unraze", EXTRAS).items()):
        print(f"{name}=={version}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
