"""The table of faults in docs/reliability.md names tests that there are."""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[2]


def test_every_test_that_the_table_names_is_there() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    faults = page.split("\n### In figures")[0]
    rows = [line for line in faults.splitlines() if line.startswith("|")][2:]
    assert len(rows) > 20
    tests = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "tests").rglob("test_*.py"))
    for row in rows:
        *_, last = row.strip("|").split(" | ")
        named = re.findall(r"`(?:tests/)?(\w+)(\.py)?`", last)
        assert named, row
        for name, file in named:
            if file:
                assert list((ROOT / "tests").rglob(f"{name}.py")), name
            else:
                assert re.search(rf"^(?:class|    def|def) {name}\b", tests, re.MULTILINE), name
