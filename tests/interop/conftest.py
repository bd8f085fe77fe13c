"""What the tests of exports share: each ONNX file is made once."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from unraze.interop import onnx_files
from unraze.interop.graphs import Graph


@pytest.fixture(scope="session")
def files_made_once() -> Iterator[None]:
    """The exporter takes seconds a file: those of the same weights and settings are the same."""
    made: dict[str, Any] = {}
    network_file, sampler_file = onnx_files.network_file, onnx_files.sampler_file

    def network(graph: Graph) -> Any:
        key = json.dumps(graph.about)
        if key not in made:
            made[key] = network_file(graph)
        return made[key]

    def sampler(graph: Graph, of: Any) -> Any:
        key = json.dumps(graph.about)
        if key not in made:
            made[key] = sampler_file(graph, of)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_files, "network_file", network)
        patch.setattr(onnx_files, "sampler_file", sampler)
        yield
