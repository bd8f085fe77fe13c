"""The scripts of docs/ as modules, for tests."""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType


@contextmanager
def as_module(script: Path) -> Iterator[ModuleType]:
    """The script as a module of its name, as long as the context lasts; its `main` is not run."""
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[script.stem] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[script.stem]
